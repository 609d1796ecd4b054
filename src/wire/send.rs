//! The lower half of a client's layer, which writes the remaining time when the request is sent.
//!
//! A request may wait after it has left a layer: for a connection, in a buffer, for a limit. Its headers cannot be
//! changed then. The remaining time is therefore written below everything that waits, around each connection. The
//! context is found in the request's extensions, because the request may have moved to another task.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};

use http::Request;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::call;
use super::outbound::Outbound;
use super::refusal::Refusal;
use super::reply::Reply;
use crate::error::{BoxError, Error};

/// Writes the remaining time into a request when it is sent. Made by
/// [`ClientLayer::split`](super::ClientLayer::split), which has an example.
///
/// Apply it directly around a connection. The context is the one that the upper half has put into the request's
/// extensions, or else [`current`](crate::Context::current). A call is not sent if its context has ended while it
/// waited, or if no more than the margin remains.
///
/// A call that is refused keeps the connection ready for the next call, instead of releasing it. Shared limits and
/// buffers therefore belong above this layer.
#[derive(Clone, Debug)]
pub struct SendLayer {
    outbound: Arc<Outbound>,
    place: &'static Location<'static>,
}

impl SendLayer {
    pub(crate) fn new(outbound: Arc<Outbound>, place: &'static Location<'static>) -> SendLayer {
        SendLayer { outbound, place }
    }
}

impl<S> Layer<S> for SendLayer {
    type Service = SendService<S>;

    fn layer(&self, inner: S) -> SendService<S> {
        SendService { inner, layer: self.clone() }
    }
}

/// A connection that writes the remaining time into each request when it is sent. Made by [`SendLayer`].
#[derive(Clone, Debug)]
pub struct SendService<S> {
    inner: S,
    layer: SendLayer,
}

impl<S, A> Service<Request<A>> for SendService<S>
where
    S: Service<Request<A>>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = SendFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let ctx = call::context_of(&request);
        let SendLayer { outbound, place } = &self.layer;
        let grpc = Reply::is_grpc(request.headers());
        let (call, refusal) = match outbound.inject(&ctx, request.headers_mut(), place) {
            Ok(()) => (Some(self.inner.call(request)), None),
            Err(ended) => (None, Some(ended)),
        };
        SendFuture { call, refusal: Refusal::new(refusal), grpc }
    }
}

pin_project! {
    /// Future for the response. Made by [`SendService`].
    ///
    /// # Panics
    ///
    /// Panics when polled again after it was ready.
    #[must_use = "futures do nothing unless polled"]
    pub struct SendFuture<F> {
        #[pin]
        call: Option<F>,
        refusal: Refusal<Error>,
        grpc: bool,
    }
}

impl<F, T, E> Future for SendFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(refusal) = ready!(this.refusal.poll(cx)) {
            return Poll::Ready(Err(call::ended(refusal, *this.grpc)));
        }
        let call = this.call.as_mut().as_pin_mut().expect("polled again after the response");
        let answer = ready!(call.poll(cx));
        this.call.set(None);
        Poll::Ready(answer.map_err(Into::into))
    }
}

impl<F> fmt::Debug for SendFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFuture").field("refused", &self.refusal.is_some()).finish_non_exhaustive()
    }
}
