//! The layer for routes whose handlers continue when the client has left.
//!
//! A server drops the future of a request, and the handler with it, when the connection or stream closes. This layer
//! runs the handler in a task of its own, and the future only waits for it. The context of the task keeps the
//! request's deadline and values, and ends with the service, but not with the request. A shutdown tracks the task
//! separately, because the request itself is over when the client leaves.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{Location, resume_unwind};
use std::pin::{Pin, pin};
use std::task::{self, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::task::JoinHandle;
use tower_layer::Layer;
use tower_service::Service;

use super::call;
use super::end::{RequestEnd, RequestScope};
use super::open::Open;
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::reply::Reply;
use super::unsent::{Unsent, is_bodiless};
use crate::context::Context;
use crate::error::Error;
use crate::task::Shutdown;

/// Runs the handlers of a route to completion even if the client has left: for example a payment, or a write in two
/// steps.
///
/// The handler runs in a task of its own. Its [`Context`] has the request's values and deadline, and ends with the
/// service, but not when the client leaves. It is the current context and the one that extractors return. If the
/// client has left, the response is dropped. At the deadline the handler is dropped, as with other routes. The
/// response's body is not part of the task: it ends with the connection.
///
/// Apply the layer to single routes, inside a [`ServerLayer`](super::ServerLayer). Without a `ServerLayer`, the handler
/// has the current context. For work that continues after the request, as long as the service runs, use
/// [`beyond_request`](Context::beyond_request) instead.
///
/// # Panics
///
/// A call panics outside of a runtime, as [`tokio::spawn`] does.
///
/// ```
/// use axum::{Router, routing::post};
/// use tokio_ctx::wire::{FinishLayer, Inbound, ServerLayer};
/// use tokio_ctx::{Context, Error, Shutdown};
///
/// async fn pay(ctx: Context) -> Result<&'static str, Error> {
///     // Both steps must complete.
///     ctx.run(async { /* book, and send the receipt */ }).await?;
///     Ok("paid")
/// }
///
/// let shutdown = Shutdown::new(&Context::background());
/// let app: Router = Router::new()
///     .route("/pay", post(pay).layer(FinishLayer::with_shutdown(&shutdown)))
///     .layer(ServerLayer::with_shutdown(&shutdown, Inbound::new()));
/// ```
#[derive(Clone)]
pub struct FinishLayer {
    /// If set, it waits for each handler.
    shutdown: Option<Shutdown>,
    place: &'static Location<'static>,
}

impl FinishLayer {
    /// Makes a layer whose handlers are not tracked. Once the client has left, nothing waits for the handler, not even
    /// a shutdown.
    ///
    /// ```
    /// use tokio_ctx::wire::FinishLayer;
    ///
    /// let layer = FinishLayer::new();
    /// ```
    #[track_caller]
    #[allow(clippy::new_without_default, reason = "a default would name no line")]
    pub fn new() -> FinishLayer {
        FinishLayer { shutdown: None, place: Location::caller() }
    }

    /// Makes a layer whose handlers are tracked by a shutdown, also after the client has left. The report of the
    /// shutdown lists them by method and route.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown, wire::FinishLayer};
    ///
    /// let shutdown = Shutdown::new(&Context::background());
    /// let layer = FinishLayer::with_shutdown(&shutdown.named("http"));
    /// ```
    #[track_caller]
    pub fn with_shutdown(shutdown: &Shutdown) -> FinishLayer {
        FinishLayer { shutdown: Some(shutdown.clone()), place: Location::caller() }
    }
}

impl<S> Layer<S> for FinishLayer {
    type Service = FinishService<S>;

    fn layer(&self, inner: S) -> FinishService<S> {
        FinishService { inner, layer: self.clone() }
    }
}

impl fmt::Debug for FinishLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishLayer").field("shutdown", &self.shutdown).finish_non_exhaustive()
    }
}

/// A service whose handlers run to completion. Made by [`FinishLayer`].
#[derive(Clone)]
pub struct FinishService<S> {
    inner: S,
    layer: FinishLayer,
}

impl<S, A, B> Service<Request<A>> for FinishService<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    B::Data: From<Bytes>,
{
    type Response = Response<FinishBody<B>>;
    type Error = S::Error;
    type Future = FinishFuture<B, S::Error>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let FinishLayer { shutdown, place } = &self.layer;
        let reply = Reply::to(&request);
        let outer = call::context_of(&request);
        if let Some(ended) = outer.err() {
            // A clone has reserved nothing: what the service reserved when it became ready is released.
            self.inner = self.inner.clone();
            return FinishFuture { task: None, refusal: Refusal::new(Some(ended)), reply };
        }
        let scope = outer.finishing_made_at(place);
        let ctx = scope.context().clone();
        let open = Open::new(&ctx, &request, shutdown.as_ref(), place);
        let mut scope = RequestScope::new(scope, place, open.as_ref());
        let bodiless = is_bodiless(request.method());
        request.extensions_mut().insert(ctx.clone());
        let handler = ctx.sync_scope(|| scope.watch(|| self.inner.call(request)));
        let task = finish(handler, bodiless, ctx, open, scope);
        #[cfg(feature = "tracing")]
        let task = tracing::Instrument::in_current_span(task);
        let task = tokio::spawn(task);
        FinishFuture { task: Some(task), refusal: Refusal::new(None), reply }
    }
}

type Finished<B, E> = Result<Result<Response<FinishBody<B>>, E>, Error>;

/// Runs a handler to its end, or until its context ends.
async fn finish<B: Body, E>(
    handler: impl Future<Output = Result<Response<B>, E>>,
    bodiless: bool,
    ctx: Context,
    // Dropped after the scope, so that the context has ended when a shutdown completes.
    open: Option<Open>,
    mut scope: RequestScope,
) -> Finished<B, E> {
    let done = {
        let mut handler = pin!(ctx.run(ctx.scope(handler)));
        poll_fn(|cx| {
            let _at_work = open.as_ref().map(Open::at_work);
            scope.watch(|| handler.as_mut().poll(cx))
        })
        .await
    };
    let done = done?;
    if done.is_err() {
        scope.expect(RequestEnd::Failed);
    }
    Ok(done.map(|response| {
        let (unsent, is_over) = scope.watch(|| {
            let size = response.body().size_hint().exact();
            let unsent = Unsent::new(response.status(), response.headers(), size, bodiless);
            (unsent, response.body().is_end_stream())
        });
        if is_over || unsent.is_nothing() {
            // The transport may drop the body without polling it.
            scope.expect(RequestEnd::Answered);
        }
        let unsent = Some(unsent);
        response.map(|body| FinishBody { scope: Some(scope), ctx, own: None, unsent, body: Some(body) })
    }))
}

impl<S: fmt::Debug> fmt::Debug for FinishService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FinishService").field(&self.inner).finish()
    }
}

/// Future for the response. Made by [`FinishService`].
///
/// If it is dropped before the response is ready, the handler continues.
///
/// # Panics
///
/// Panics if the handler panicked, and when polled again after it was ready.
#[must_use = "futures do nothing unless polled"]
pub struct FinishFuture<B, E> {
    task: Option<JoinHandle<Finished<B, E>>>,
    refusal: Refusal<Error>,
    reply: Reply,
}

impl<B, E> FinishFuture<B, E> {
    /// Returns the layer's own response.
    fn respond(&self, outcome: Outcome) -> Response<FinishBody<B>> {
        self.reply.ended(outcome).map(FinishBody::own)
    }
}

impl<B, E> Future for FinishFuture<B, E> {
    type Output = Result<Response<FinishBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        if let Some(refusal) = ready!(self.refusal.poll(cx)) {
            return Poll::Ready(Ok(self.respond(Outcome::of_request(&refusal))));
        }
        let task = self.task.as_mut().expect("polled again after the response");
        let done = ready!(Pin::new(task).poll(cx));
        self.task = None;
        Poll::Ready(match done {
            Ok(Ok(answer)) => answer,
            Ok(Err(ended)) => Ok(self.respond(Outcome::of_request(&ended))),
            Err(lost) => match lost.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_aborted) => Ok(self.respond(Outcome::Stopping)),
            },
        })
    }
}

impl<B, E> fmt::Debug for FinishFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishFuture").field("refused", &self.refusal.is_some()).finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a response, which holds the handler's context until it has ended. Made by [`FinishService`].
    pub struct FinishBody<B> {
        // Dropped before the body, so that the context has ended when the body is dropped.
        scope: Option<RequestScope>,
        ctx: Context,
        // The body of the layer's own response.
        own: Option<Bytes>,
        // `None` if there is no body of the handler.
        unsent: Option<Unsent>,
        #[pin]
        body: Option<B>,
    }
}

impl<B> FinishBody<B> {
    fn own(text: Bytes) -> Self {
        let own = Some(text).filter(|text| !text.is_empty());
        FinishBody { scope: None, ctx: Context::background(), own, unsent: None, body: None }
    }
}

impl<B> Body for FinishBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        if let Some(own) = this.own.take() {
            return Poll::Ready(Some(Ok(Frame::data(own.into()))));
        }
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let ctx = &*this.ctx;
        let mut poll = || {
            ctx.sync_scope(|| {
                let polled = body.as_mut().poll_frame(cx);
                polled.map(|frame| (frame, body.is_end_stream()))
            })
        };
        let (frame, is_over) = match this.scope.as_mut() {
            None => ready!(poll()),
            Some(scope) => ready!(scope.watch(poll)),
        };
        if let (Some(Ok(frame)), Some(unsent)) = (&frame, this.unsent.as_mut()) {
            unsent.subtract(frame);
        }
        let is_sent = is_over || this.unsent.as_ref().is_some_and(Unsent::is_nothing);
        let how = match &frame {
            Some(Err(_)) => RequestEnd::Failed,
            Some(Ok(_)) if !is_sent => return Poll::Ready(frame),
            _ => RequestEnd::Answered,
        };
        if let Some(scope) = this.scope.as_mut() {
            scope.expect(how);
        }
        if is_over || !matches!(frame, Some(Ok(_))) {
            *this.scope = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.own.is_none() && self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.own, &self.body) {
            (Some(own), _) => SizeHint::with_exact(own.len() as u64),
            (None, Some(body)) => body.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

impl<B> fmt::Debug for FinishBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishBody").field("ended", &self.scope.is_none()).finish_non_exhaustive()
    }
}
