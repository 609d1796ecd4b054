//! The server's layer: a context for each request, from its head to the end of its response.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{Bounded, Step};
use super::end::{Ending, RequestEnd};
use super::inbound::Inbound;
use super::reply::Reply;
use super::request_line::RequestLine;
use crate::context::Context;
use crate::context::done::Wait;
use crate::context::enter::Underway;
use crate::context::refusal::Entry;
use crate::error::BoxError;
use crate::registry::{Kind, Name};
use crate::task::Shutdown;
use crate::task::shutdown::Ticket;

/// Gives each request of a server a context: for axum, tonic, hyper, and whatever else takes tower's layers.
///
/// The context is a child of the service's. Its deadline is what the request's headers say, as far as
/// [`Inbound`] believes them. It is in the request's extensions and is
/// [`current`](Context::current) in the handler, in the response's body, and in what the handler starts
/// with [`Context::spawn`]. It ends:
///
/// - when the response's body has ended, trailers included, with the cause [`RequestEnd::Answered`];
/// - when the client leaves before that, with [`RequestEnd::ClientLeft`];
/// - by its deadline: the handler is dropped, and the answer is `504 Gateway Timeout`, or for gRPC
///   `DEADLINE_EXCEEDED`; amidst a body, an error that breaks it off, or for gRPC the same status;
/// - with the service: the same, with `503 Service Unavailable`, for gRPC `UNAVAILABLE`. To let requests
///   come to their end first, end the service's context after them: [`with_shutdown`](Self::with_shutdown)
///   does.
///
/// What the client is told is those words and no more. Of two such layers, one within the other, the inner
/// one's contexts are below the outer one's.
///
/// Where a gRPC call gives a timeout, two milliseconds of it (an eighth, if that is less) are kept back, so
/// that the answer comes before the client's own timer and before that of tonic's server, which answers
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

struct Config {
    service: Context,
    /// Waits for each request, if there is one.
    shutdown: Option<Shutdown>,
    inbound: Inbound,
    place: &'static Location<'static>,
}

impl ServerLayer {
    /// A layer whose requests end with the context `service`.
    ///
    /// The line of this call is the one that errors name as the context's origin.
    ///
    /// ```
    /// use tokio_ctx::{Context, wire::{Inbound, ServerLayer}};
    ///
    /// let service = Context::background().with_cancel();
    /// let layer = ServerLayer::new(service.clone(), Inbound::new());
    /// ```
    #[track_caller]
    pub fn new(service: Context, inbound: Inbound) -> ServerLayer {
        ServerLayer(Arc::new(Config { service, shutdown: None, inbound, place: Location::caller() }))
    }

    /// A layer whose requests are part of a shutdown.
    ///
    /// They derive from its [`hard`](Shutdown::hard) context: those under way have the grace to come to their
    /// end, and are then answered `503 Service Unavailable`, for gRPC `UNAVAILABLE`. From the head to the end
    /// of its response's body the shutdown waits for each, and its report names what was late by method and
    /// path, below the [name](Shutdown::named) of this handle: `http/GET /report/{id}`. That is the path of
    /// the route with the feature `axum` and the layer within [`Router::layer`]; otherwise as it was
    /// sent, without the query.
    ///
    /// A server must be told apart from that to stop accepting, by [`begun`](Shutdown::begun), and is
    /// work itself. [The guide](../guide/services/index.html) has all of `main`, for axum and for tonic.
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
        let (service, place) = (shutdown.hard().clone(), Location::caller());
        ServerLayer(Arc::new(Config { service, shutdown: Some(shutdown.clone()), inbound, place }))
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
        let Config { service, shutdown, inbound, .. } = &*self.0;
        let mut debug = f.debug_struct("ServerLayer");
        match shutdown {
            Some(shutdown) => debug.field("shutdown", shutdown),
            None => debug.field("service", service),
        };
        debug.field("inbound", inbound).finish()
    }
}

/// A service whose requests have a context each. Made by [`ServerLayer`].
#[derive(Clone)]
pub struct ServerService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, A, B> Service<Request<A>> for ServerService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: Body,
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
        let Config { service, shutdown, inbound, place } = &*self.config;
        let reply = Reply::to(request.headers());
        let head_start = if reply == Reply::Http { |_| Duration::ZERO } else { head_start };
        let parent = match request.extensions().get::<Context>() {
            None => service.clone(),
            Some(outer) => under_both(outer, service),
        };
        let (ctx, guard) = match inbound.derive(&parent, request.headers(), place, head_start) {
            Ok(scope) => scope.split(),
            Err(bad) => return ServerFuture::refused(reply.bad_header(&bad), service),
        };
        if let Some(ended) = ctx.err() {
            #[cfg(feature = "watch")]
            crate::registry::refused(&ended);
            return ServerFuture::refused(reply.ended(&ended), service);
        }
        let tracked = |shutdown: &Shutdown| shutdown.labeled_ticket(RequestLine::of(&request), place);
        let ticket = shutdown.as_ref().map(tracked);
        let named = || Some(Box::new(RequestLine::of(&request)) as Name);
        let underway = Some(Underway::new(&ctx, Kind::Request, place, named));
        let bodiless = matches!(*request.method(), Method::HEAD | Method::CONNECT);
        let mut live = Live { ending: Ending::new(guard, place), reply, bodiless };
        request.extensions_mut().insert(ctx.clone());
        let handler = ctx.sync_scope(|| live.ending.watch(|| self.inner.call(request)));
        let wait = Wait::new(ctx);
        let (live, handler, entry) = (Some(live), Some(handler), Entry::Fresh);
        ServerFuture { live, refusal: None, entry, wait, handler, underway, ticket }
    }
}

/// What the requests of a layer within another are derived from: deadlines shrink there as well.
fn under_both(outer: &Context, service: &Context) -> Context {
    outer.merge(service).detach()
}

/// What is kept back of the time that a gRPC call gave: more than timers are coarse.
fn head_start(budget: Duration) -> Duration {
    Duration::from_millis(2).min(budget / 8)
}

impl<S: fmt::Debug> fmt::Debug for ServerService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerService").field(&self.inner).finish()
    }
}

/// A request that has been given to the handler.
struct Live {
    ending: Ending,
    reply: Reply,
    /// Whatever the response's body is, nobody will ask for it.
    bodiless: bool,
}

pin_project! {
    /// The response to come. Made by [`ServerService`].
    ///
    /// Dropped before it has come, it ends the request's context: the client has left.
    ///
    /// # Panics
    ///
    /// When polled again after it was ready; and as [`Context::done`] without a time driver.
    #[must_use = "futures do nothing unless polled"]
    pub struct ServerFuture<F> {
        live: Option<Live>,
        // The layer's own answer, for a request that the handler is not asked.
        refusal: Option<Box<Response<Bytes>>>,
        entry: Entry,
        #[pin]
        wait: Wait<Context>,
        #[pin]
        handler: Option<F>,
        // Last: the request is over when all that it held is gone.
        underway: Option<Underway>,
        ticket: Option<Ticket>,
    }

    impl<F> PinnedDrop for ServerFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // In this order: what a handler does when it is dropped may look at why.
            *this.live = None;
            if this.handler.is_some() {
                this.wait.ctx().sync_scope(|| this.handler.set(None));
            }
        }
    }
}

impl<F> ServerFuture<F> {
    fn refused(response: Response<Bytes>, service: &Context) -> Self {
        let wait = Wait::new(service.clone());
        let (refusal, entry) = (Some(Box::new(response)), Entry::Fresh);
        ServerFuture { live: None, refusal, entry, wait, handler: None, underway: None, ticket: None }
    }
}

impl<F, B, E> Future for ServerFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<ServerBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        const OVER: &str = "polled again after the response";
        let mut this = self.project();
        if this.refusal.is_some() {
            ready!(this.entry.poll_refused(cx));
        }
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Ok((*refusal).map(ServerBody::own)));
        }
        let live = this.live.as_mut().expect(OVER);
        let handler = this.handler.as_mut().as_pin_mut().expect(OVER);
        let polled = {
            let _at_work = this.ticket.as_ref().map(Ticket::at_work);
            let _polling = this.underway.as_ref().map(Underway::polling);
            this.wait.ctx().sync_scope(|| live.ending.watch(|| handler.poll(cx)))
        };
        let answer = match polled {
            Poll::Ready(Ok(response)) => {
                let live = this.live.take().expect(OVER);
                Ok(live.respond(response, this.wait.ctx().clone(), this.underway, this.ticket))
            }
            Poll::Ready(Err(error)) => {
                live.ending.expect(RequestEnd::Failed);
                Err(error)
            }
            Poll::Pending => {
                let ended = ready!(this.wait.as_mut().poll(cx));
                Ok(live.reply.ended(&ended).map(ServerBody::own))
            }
        };
        *this.live = None;
        this.wait.ctx().sync_scope(|| this.handler.set(None));
        *this.underway = None;
        *this.ticket = None;
        // Nothing waits here any more: the end need not wake this task.
        let ctx = this.wait.ctx().clone();
        this.wait.set(Wait::new(ctx));
        Poll::Ready(answer)
    }
}

impl<F> fmt::Debug for ServerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerFuture").field(self.wait.ctx()).finish()
    }
}

impl Live {
    /// The response, whose body keeps the request's context, and its ticket, unless it has ended already.
    fn respond<B: Body>(
        mut self,
        response: Response<B>,
        ctx: Context,
        underway: &mut Option<Underway>,
        ticket: &mut Option<Ticket>,
    ) -> Response<ServerBody<B>> {
        let (head, body) = response.into_parts();
        let length =
            head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = length.or(body.size_hint().exact());
        let silent = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let over = body.is_end_stream();
        if over || self.bodiless || silent || head.status.is_informational() || left == Some(0) {
            // Whoever sends this may drop the body without a look at it.
            self.ending.expect(RequestEnd::Answered);
        }
        // What was asked for as gRPC need not be answered so; a body of another kind is broken off.
        let reply = Reply::to(&head.headers);
        let ending = if over { None } else { Some(self.ending) };
        let (underway, ticket) = if over { (None, None) } else { (underway.take(), ticket.take()) };
        let body = Some(Bounded::new(ctx, body));
        let body = ServerBody { ending, reply, left, own: None, body, underway, ticket };
        Response::from_parts(head, body)
    }
}

pin_project! {
    /// A response's body, which keeps the request's context until it has ended. Made by [`ServerService`].
    ///
    /// Dropped before that, it ends the context: the client has left.
    pub struct ServerBody<B> {
        // Before the body, so that the context has ended when that is dropped.
        ending: Option<Ending>,
        reply: Reply,
        // How many bytes the response still owes, if that is known: it may be dropped after them.
        left: Option<u64>,
        // The layer's own answer.
        own: Option<Bytes>,
        #[pin]
        body: Option<Bounded<B>>,
        // Last: the request is over when all that it held is gone.
        underway: Option<Underway>,
        ticket: Option<Ticket>,
    }

}

impl<B> ServerBody<B> {
    fn own(text: Bytes) -> Self {
        let own = Some(text).filter(|text| !text.is_empty());
        let (ending, body, underway, ticket) = (None, None, None, None);
        ServerBody { ending, reply: Reply::Http, left: None, own, body, underway, ticket }
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
        let mut this = self.project();
        if let Some(own) = this.own.take() {
            return Poll::Ready(Some(Ok(Frame::data(own.into()))));
        }
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let step = {
            let _at_work = this.ticket.as_ref().map(Ticket::at_work);
            let _polling = this.underway.as_ref().map(Underway::polling);
            match this.ending.as_mut() {
                // Ended by its own account, but asked all the same.
                None => ready!(body.poll_step(cx)),
                Some(ending) => ready!(ending.watch(|| body.poll_step(cx))),
            }
        };
        let frame = match step {
            Step::Frame(frame) => {
                let sent = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                *this.left = this.left.map(|left| left.saturating_sub(sent));
                if *this.left == Some(0) {
                    expect(this.ending, RequestEnd::Answered);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Step::Last(frame) => Some(Ok(frame)),
            Step::Over => None,
            Step::Failed(error) => Some(Err(error.into())),
            Step::Ended(ended) => Some(match this.reply.trailers(&ended) {
                Some(trailers) => Ok(Frame::trailers(trailers)),
                None => Err(ended.into()),
            }),
        };
        let failed = frame.as_ref().is_some_and(Result::is_err);
        expect(this.ending, if failed { RequestEnd::Failed } else { RequestEnd::Answered });
        *this.ending = None;
        *this.underway = None;
        *this.ticket = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.own.is_none() && self.body.as_ref().is_none_or(Bounded::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.own, &self.body) {
            (Some(own), _) => SizeHint::with_exact(own.len() as u64),
            (None, Some(body)) => body.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

fn expect(ending: &mut Option<Ending>, how: RequestEnd) {
    if let Some(ending) = ending {
        ending.expect(how);
    }
}

impl<B> fmt::Debug for ServerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").field("ended", &self.ending.is_none()).finish_non_exhaustive()
    }
}
