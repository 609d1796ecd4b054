//! The server's layer, which makes a context for each request. The context lives until the response has been sent.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{Bounded, Start, Step, StepOf, hint};
use super::end::{RequestEnd, RequestScope};
use super::inbound::Inbound;
use super::open::{Kept, Open};
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::reply::{Closing, Last, Reply};
use super::route::Routes;
use super::unsent::{Unsent, is_bodiless, is_silent};
use crate::context::Context;
use crate::context::current::enter;
use crate::context::done::Wait;
use crate::error::BoxError;
use crate::task::Shutdown;

/// Makes a context for each request of a server: for axum, tonic, hyper, and other servers that accept tower's layers.
///
/// The context is a child of the service's context. Its deadline comes from the headers of the request, as far as
/// [`Inbound`] trusts them. The context is in the request's extensions. It is the [`current`](Context::current) context
/// in the handler, in the response's body, and in tasks that the handler starts with [`Context::spawn`]. It ends:
///
/// - when the response's body has ended, trailers included, with the cause [`RequestEnd::Answered`];
/// - when the response is dropped before that, with [`RequestEnd::Dropped`]. In most cases, the client has left;
/// - at its deadline. The handler is dropped, and the response is `504 Gateway Timeout`, for gRPC and gRPC-Web
///   `DEADLINE_EXCEEDED`, for Connect `deadline_exceeded`. If the response has begun, a stream of these protocols ends
///   with the same status, and any other body is aborted with an error;
/// - when the context of the service ends. The response is then `503 Service Unavailable`, `UNAVAILABLE` or
///   `unavailable`, which clients retry. [`with_shutdown`](Self::with_shutdown) gives requests time to complete first.
///
/// The client receives the status and a short fixed text, see [the module](crate::wire#status-codes). If the layer is
/// nested in another one, its contexts are children of the contexts of the outer layer.
///
/// When the context ends, the handler's response body is dropped with everything it holds, even if the client has
/// stopped reading and the transport no longer polls it. The body has to be `Send` and `'static` for that. An HTTP/1
/// connection is closed. An HTTP/2 stream is reset when hyper polls it next. While the stream waits for a window
/// update, hyper does not poll it.
///
/// The deadline of a gRPC call is two milliseconds before its timeout, or an eighth of the timeout if that is less. The
/// response is then sent before the client's own timer fires, and before that of tonic's server, which responds
/// `CANCELLED`.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::get};
/// use tokio_ctx::{Context, Error, wire::{Inbound, ServerLayer}};
///
/// async fn report(ctx: Context) -> Result<String, Error> {
///     ctx.run(async { "all is well".to_string() }).await
/// }
///
/// let service = Context::background().with_cancel();
/// let inbound = Inbound::new().max_budget(Duration::from_secs(30));
/// let app: Router = Router::new()
///     .route("/report", get(report))
///     .layer(ServerLayer::new(service.clone(), inbound));
/// ```
#[derive(Clone)]
pub struct ServerLayer(Arc<Config>);

#[derive(Clone)]
struct Config {
    service: Context,
    /// If set, it waits for each request.
    shutdown: Option<Shutdown>,
    inbound: Inbound,
    routes: Routes,
    place: &'static Location<'static>,
}

impl ServerLayer {
    /// Makes a layer whose requests end with the context `service`.
    ///
    /// Errors report the line of this call as the origin of a request's context.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::{Inbound, ServerLayer}};
    ///
    /// let service = Context::background().with_cancel();
    /// let layer = ServerLayer::new(service.clone(), Inbound::new());
    /// ```
    #[track_caller]
    pub fn new(service: Context, inbound: Inbound) -> ServerLayer {
        ServerLayer::with(service, None, inbound, Location::caller())
    }

    fn with(
        service: Context,
        shutdown: Option<Shutdown>,
        inbound: Inbound,
        place: &'static Location<'static>,
    ) -> ServerLayer {
        ServerLayer(Arc::new(Config { service, shutdown, inbound, routes: Routes::default(), place }))
    }

    /// Makes a layer whose requests are part of a shutdown.
    ///
    /// The contexts of the requests derive from the shutdown's [`hard`](Shutdown::hard) context. Requests in progress
    /// have the grace period to complete. After that, the response is `503 Service Unavailable`, for gRPC
    /// `UNAVAILABLE`. The shutdown waits for each request until the body of its response has been sent. Its report
    /// lists the requests that were late by method and path, below the [name](Shutdown::named) of this handle:
    /// `http/GET /report/{id}`. With the feature `axum`, and with the layer inside of [`Router::layer`], the path is
    /// that of the route. Otherwise it is the path that was sent, without the query.
    ///
    /// The server has to stop accepting connections as well, which [`begun`](Shutdown::begun) signals, and the shutdown
    /// has to wait for it. [The guide](../guide/services/index.html) shows the complete `main`, for axum and for tonic.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tokio::net::TcpListener;
    /// use tokio_ctx::wire::{Inbound, ServerLayer};
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::BoxError> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let http = shutdown.named("http");
    /// let app: Router = Router::new()
    ///     .route("/report/{id}", get("all is well"))
    ///     .layer(ServerLayer::with_shutdown(&http, Inbound::new()));
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    /// http.spawn(server.into_future());
    /// # shutdown.begin("over");
    /// shutdown.wait().await.into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Router::layer`]: https://docs.rs/axum/0.8/axum/struct.Router.html#method.layer
    #[track_caller]
    pub fn with_shutdown(shutdown: &Shutdown, inbound: Inbound) -> ServerLayer {
        ServerLayer::with(shutdown.hard().clone(), Some(shutdown.clone()), inbound, Location::caller())
    }

    /// Sets other rules for the requests of one route, such as a longer maximum, no maximum, or a minimum.
    ///
    /// They replace the rules of the layer. To change only some of the rules, start with a clone of the layer's
    /// [`Inbound`].
    ///
    /// The route is a path, with parameters in axum's syntax (`/report/{id}`, `/files/{*path}`). A path that ends in
    /// `/*`, such as `/grpc.health.v1.Health/*`, matches all paths below it. With the feature `axum`, and with the
    /// layer inside of [`Router::layer`], the route that the router has matched is compared as well; the route of a
    /// nested router includes its prefix. The first route that matches applies.
    ///
    /// If the layer is inside of another `ServerLayer`, a request gets no more time than the outer layer allows. Set
    /// the rules of a route where the limit is set.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, routing::{get, post}};
    /// use tokio_ctx::{Context, wire::{Inbound, ServerLayer}};
    ///
    /// let service = Context::background().with_cancel();
    /// let usual = Inbound::new().max_budget(Duration::from_secs(5));
    /// let layer = ServerLayer::new(service.clone(), usual.clone())
    ///     .route("/events", usual.clone().unlimited())
    ///     .route("/upload/{name}", usual.clone().max_budget(Duration::from_secs(600)))
    ///     .route("/report", usual.clone().min_budget(Duration::from_millis(200)));
    ///
    /// let app: Router = Router::new()
    ///     .route("/events", get("one after the other"))
    ///     .route("/upload/{name}", post("thanks"))
    ///     .route("/report", get("all is well"))
    ///     .layer(layer);
    /// ```
    ///
    /// [`Router::layer`]: https://docs.rs/axum/0.8/axum/struct.Router.html#method.layer
    pub fn route(mut self, route: &str, inbound: Inbound) -> ServerLayer {
        Arc::make_mut(&mut self.0).routes.add(route, inbound);
        self
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = ServerService<S>;

    fn layer(&self, inner: S) -> ServerService<S> {
        ServerService { inner, config: self.0.clone() }
    }
}

impl fmt::Debug for ServerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { service, shutdown, inbound, routes, .. } = &*self.0;
        let mut debug = f.debug_struct("ServerLayer");
        match shutdown {
            Some(shutdown) => debug.field("shutdown", shutdown),
            None => debug.field("service", service),
        };
        debug.field("inbound", inbound).field("routes", routes).finish()
    }
}

/// A service that makes a context for each request. Made by [`ServerLayer`].
#[derive(Clone)]
pub struct ServerService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, A, B> Service<Request<A>> for ServerService<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    B: Body + Send + 'static,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<ServerBody<B>>;
    type Error = S::Error;
    type Future = ServerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let Config { service, shutdown, inbound, routes, place } = &*self.config;
        let inbound = routes.rules(&request, inbound);
        let scan = inbound.scan(request.headers());
        let reply = Reply::of(&request, scan.content_type);
        let head_start = if reply == Reply::Http { |_| Duration::ZERO } else { head_start };
        let outer = request.extensions().get::<Context>();
        let both = outer.map(|outer| under_both(&outer.nearest(Context::current()), service));
        let parent = both.as_ref().unwrap_or(service);
        let admitted = match inbound.derive(parent, request.headers(), scan.timeout, place, head_start) {
            Ok(scope) => match scope.ended_at_creation(parent) {
                None => Ok(scope),
                Some(ended) => {
                    #[cfg(feature = "watch")]
                    crate::registry::refused(&ended);
                    Err(reply.ended(Outcome::of_request(&ended)))
                }
            },
            Err(bad) => Err(reply.bad_header(&bad)),
        };
        let scope = match admitted {
            Ok(scope) => scope,
            Err(refusal) => {
                // A clone has reserved nothing: what the service reserved when it became ready is released.
                self.inner = self.inner.clone();
                return ServerFuture::refused(refusal);
            }
        };
        let open = Open::new(&scope, &request, shutdown.as_ref(), place);
        let bodiless = is_bodiless(request.method());
        request.extensions_mut().insert(scope.context().clone());
        let mut scope = RequestScope::new(scope, place, open.as_ref());
        scope.expect(RequestEnd::Panicked);
        let entered = scope.enter();
        let handler = Some(self.inner.call(request));
        drop(entered);
        scope.expect(RequestEnd::Dropped);
        let live = Some(Live { wait: Wait::new(scope), reply, bodiless });
        ServerFuture { live, refusal: Refusal::new(None), handler, open }
    }
}

/// Returns the parent of the contexts of a nested layer. Their deadlines can only be earlier than that of the outer one.
fn under_both(outer: &Context, service: &Context) -> Context {
    outer.merge(service).detach()
}

/// Returns how much earlier than its timeout a gRPC call ends: more than the resolution of timers.
fn head_start(budget: Duration) -> Duration {
    Duration::from_millis(2).min(budget / 8)
}

impl<S: fmt::Debug> fmt::Debug for ServerService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerService").field(&self.inner).finish()
    }
}

/// A request that has been passed to the handler.
struct Live {
    wait: Wait<RequestScope>,
    reply: Reply,
    /// Whether the body of the response is never sent, whatever the response is.
    bodiless: bool,
}

pin_project! {
    /// Future for the response. Made by [`ServerService`].
    ///
    /// If it is dropped before it is ready, the request's context ends with [`RequestEnd::Dropped`].
    ///
    /// # Panics
    ///
    /// Panics when polled again after it was ready, and, as [`Context::done`] does, without a time driver.
    #[must_use = "futures do nothing unless polled"]
    pub struct ServerFuture<F> {
        live: Option<Live>,
        // The layer's own response to a request that is not passed to the handler.
        refusal: Refusal<Box<Response<Bytes>>>,
        #[pin]
        handler: Option<F>,
        // Dropped last, after everything else that belongs to the request.
        open: Option<Open>,
    }

    impl<F> PinnedDrop for ServerFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.handler.is_some() {
                drop_early(this.live, this.handler);
            }
        }
    }
}

impl<F> ServerFuture<F> {
    fn refused(response: Response<Bytes>) -> Self {
        let refusal = Refusal::new(Some(Box::new(response)));
        ServerFuture { live: None, refusal, handler: None, open: None }
    }
}

/// Ends the context, and then drops the handler, whose drop may read the cause.
fn drop_early<F>(live: &mut Option<Live>, mut handler: Pin<&mut Option<F>>) {
    let mut ctx = live.as_ref().map(|live| live.wait.ctx().clone()).unwrap_or_default();
    *live = None;
    let _entered = enter(&mut ctx);
    handler.set(None);
}

impl<F, B, E> Future for ServerFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Send + 'static,
{
    type Output = Result<Response<ServerBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        const OVER: &str = "polled again after the response";
        let mut this = self.project();
        if let Some(refusal) = ready!(this.refusal.poll(cx)) {
            return Poll::Ready(Ok((*refusal).map(ServerBody::own)));
        }
        let live = this.live.as_mut().expect(OVER);
        let handler = this.handler.as_mut().as_pin_mut().expect(OVER);
        // Not by `watch`, which would move the response.
        live.wait.owner_mut().expect(RequestEnd::Panicked);
        let at_work = this.open.as_ref().map(Open::at_work);
        let entered = live.wait.owner_mut().enter();
        let polled = handler.poll(cx);
        if polled.is_ready() {
            this.handler.set(None);
        }
        drop((entered, at_work));
        live.wait.owner_mut().expect(RequestEnd::Dropped);
        match polled {
            Poll::Ready(Ok(response)) => {
                let live = this.live.take().expect(OVER);
                Poll::Ready(Ok(live.respond(response, this.open.take(), cx)))
            }
            Poll::Ready(Err(error)) => {
                live.wait.owner_mut().expect(RequestEnd::Failed);
                (*this.live, *this.open) = (None, None);
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                let ended = ready!(Pin::new(&mut live.wait).poll(cx));
                let response = live.reply.ended(Outcome::of_request(&ended));
                drop_early(this.live, this.handler);
                *this.open = None;
                Poll::Ready(Ok(response.map(ServerBody::own)))
            }
        }
    }
}

impl<F> fmt::Debug for ServerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ctx = self.live.as_ref().map(|live| live.wait.ctx());
        f.debug_tuple("ServerFuture").field(&ctx).finish()
    }
}

impl Live {
    /// Makes the response. Its body holds the request's context, and its registrations, until it has ended.
    fn respond<B: Body + Send + 'static>(
        mut self,
        response: Response<B>,
        open: Option<Open>,
        cx: &mut task::Context<'_>,
    ) -> Response<ServerBody<B>> {
        let (head, body) = response.into_parts();
        if let Some(outcome) = self.outcome(&head) {
            self.wait.owner_mut().expect(RequestEnd::Answered);
            return self.reply.ended_with(outcome, head).map(ServerBody::own);
        }
        let content = if self.wait.owner_mut().watch(|| body.is_end_stream()) {
            self.wait.owner_mut().expect(RequestEnd::Answered);
            // The same order as in a body.
            drop(self.wait);
            drop(open);
            Content::Over { body }
        } else {
            self.begin(&head, body, open, cx)
        };
        Response::from_parts(head, ServerBody { content })
    }

    fn begin<B: Body + Send + 'static>(
        mut self,
        head: &Parts,
        body: B,
        open: Option<Open>,
        cx: &mut task::Context<'_>,
    ) -> Content<B> {
        let size = self.wait.owner_mut().watch(|| body.size_hint().exact());
        let unsent = |live: &Live| Unsent::new(head.status, &head.headers, size, live.bodiless);
        let is_unsent = match self.reply {
            // It has trailers, and needs HTTP/2, which polls every body.
            Reply::Grpc => is_silent(head.status, self.bodiless),
            _ => unsent(&self).is_nothing(),
        };
        let start = if is_unsent {
            // The transport may drop the body without polling it.
            self.wait.owner_mut().expect(RequestEnd::Answered);
            Start::Part(Box::pin(body), Vec::new())
        } else {
            let how = self.wait.owner_mut().expect(RequestEnd::Panicked);
            let at_work = open.as_ref().map(Open::at_work_again);
            let entered = self.wait.owner_mut().enter();
            let start = Start::poll(body, self.reply == Reply::Grpc, cx);
            drop((entered, at_work));
            self.wait.owner_mut().expect(how);
            start
        };
        match start {
            Start::Whole(first, step) => {
                // Nothing waits here any more, so the end need not wake this task.
                self.wait.remove_waker();
                let kept = open.map(|open| Kept::new(open, &mut self.wait));
                let (request, step, is_sized) = (Some(self.wait), Some(step), size.is_some());
                Content::Whole { request, first, step, is_sized, kept }
            }
            Start::Part(body, early) => {
                let unsent = unsent(&self);
                // Nothing can be added to a body whose length has been announced.
                let closing =
                    if unsent.is_known() { Closing::Break } else { self.reply.closing(&head.headers) };
                let ctx = Some(self.wait.ctx().clone());
                let body = Bounded::new(self.wait, ctx, body, early, open, true);
                Content::Part { body, framing: Framing { closing, unsent } }
            }
        }
    }

    /// Returns the outcome if the handler's response is the context's error, and the protocol has another form for it.
    fn outcome(&self, head: &Parts) -> Option<Outcome> {
        if self.reply == Reply::Http { None } else { head.extensions.get::<Outcome>().copied() }
    }
}

/// How a body ends.
struct Framing {
    closing: Closing,
    unsent: Unsent,
}

pin_project! {
    /// The body of a response, which holds the request's context until it has ended. Made by [`ServerService`].
    ///
    /// If it is dropped before that, the context ends with [`RequestEnd::Dropped`]. When the context ends, the handler's
    /// body is dropped, even if this body is not polled.
    pub struct ServerBody<B: Body> {
        #[pin]
        content: Content<B>,
    }
}

pin_project! {
    #[project = ContentProj]
    enum Content<B: Body> {
        // The body of the layer's own response.
        Own { text: Option<Bytes> },
        // A body that was at its end from the start.
        Over { #[pin] body: B },
        // It is complete. The fields are dropped in this order.
        Whole {
            request: Option<Wait<RequestScope>>,
            first: Option<B::Data>,
            step: Option<StepOf<B>>,
            // Whether the handler's body announced its length. The transport would send a length in the head.
            is_sized: bool,
            kept: Option<Kept>,
        },
        Part {
            body: Bounded<B, RequestScope>,
            framing: Framing,
        },
    }
}

impl<B: Body> ServerBody<B> {
    fn own(text: Bytes) -> Self {
        let text = Some(text).filter(|text| !text.is_empty());
        ServerBody { content: Content::Own { text } }
    }
}

impl<B> Body for ServerBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let (body, framing) = match this.content.project() {
            ContentProj::Own { text } => {
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text.into()))));
            }
            ContentProj::Over { body } => return body.poll_frame(cx).map_err(Into::into),
            ContentProj::Whole { request, first, step, kept, .. } => {
                if let Some(data) = first.take() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if let Some(ending) = request {
                    let has_failed = matches!(step, Some(Step::Failed(_) | Step::Ended(_)));
                    let how = if has_failed { RequestEnd::Failed } else { RequestEnd::Answered };
                    ending.owner_mut().expect(how);
                    let open = kept.take().and_then(|kept| kept.into_open(ending));
                    *request = None;
                    drop(open);
                }
                return Poll::Ready(step.take().and_then(|step| step.into_frame(Into::into)));
            }
            ContentProj::Part { body, framing } => (body, framing),
        };
        let how_before = body.owner_mut().map(|request| request.expect(RequestEnd::Panicked));
        let step = body.poll_step(cx);
        if let (Some(request), Some(how)) = (body.owner_mut(), how_before) {
            request.expect(how);
        }
        let frame = match ready!(step) {
            Step::Frame(frame) => {
                framing.unsent.subtract(&frame);
                if framing.unsent.is_nothing() {
                    expect(body, RequestEnd::Answered);
                }
                return Poll::Ready(Some(Ok(framing.closing.follow(frame))));
            }
            Step::Ended(ended) => match framing.closing.last(Outcome::of_request(&ended)) {
                Last::Frame(frame) => Some(Ok(frame.map_data(Into::into))),
                Last::Nothing => None,
                Last::Broken => Some(Err(ended.into())),
            },
            step => step.into_frame(Into::into),
        };
        expect(body, how(frame.as_ref()));
        body.finish();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own { text } => text.is_none(),
            Content::Over { body } => body.is_end_stream(),
            Content::Whole { first, step, .. } => {
                first.is_none() && matches!(step, None | Some(Step::Over))
            }
            Content::Part { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Content::Over { body } => body.size_hint(),
            Content::Whole { first, step, is_sized: true, .. } => hint(first.as_ref(), step.as_ref()),
            Content::Whole { .. } => SizeHint::default(),
            Content::Part { body, .. } => body.size_hint(),
        }
    }
}

fn how<D>(last: Option<&Result<Frame<D>, BoxError>>) -> RequestEnd {
    if last.is_some_and(Result::is_err) { RequestEnd::Failed } else { RequestEnd::Answered }
}

fn expect<B: Body>(body: &mut Bounded<B, RequestScope>, how: RequestEnd) {
    if let Some(request) = body.owner_mut() {
        request.expect(how);
    }
}

impl<B: Body> fmt::Debug for ServerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").finish_non_exhaustive()
    }
}
