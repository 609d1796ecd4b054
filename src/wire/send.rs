//! The lower half of a client's layer: what is told is written when the request is sent.
//!
//! A header cannot be changed once the request has been handed down, and between a layer and the wire a request may
//! wait: for a connection, in a buffer, for a limit. So what computes the time that is left sits below all that
//! waits, around each single connection, and knows the context by the request's extensions, since tasks lie
//! between.

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
use super::reply::Reply;
use crate::context::refusal::Entry;
use crate::error::{BoxError, Error};

/// Tells the far side how much time is left at the moment a request is sent. Made by
/// [`ClientLayer::split`](super::ClientLayer::split), which has an example.
///
/// It belongs right above a connection. The context is the one that the upper half has put into the request's
/// extensions, otherwise [`current`](crate::Context::current). A call whose context has ended while it waited, or
/// has no more left than the margin, is not sent.
///
/// Such a refusal does not give back what the connection reserved when it was made ready: it is the next call's. That
/// is why shared limits and buffers go above this layer.
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

/// A connection whose requests say how much time is left as they are sent. Made by [`SendLayer`].
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
        SendFuture { call, refusal, entry: Entry::Fresh, grpc }
    }
}

pin_project! {
    /// The response to come. Made by [`SendService`].
    ///
    /// # Panics
    ///
    /// When polled again after it was ready.
    #[must_use = "futures do nothing unless polled"]
    pub struct SendFuture<F> {
        #[pin]
        call: Option<F>,
        refusal: Option<Error>,
        entry: Entry,
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
        if this.refusal.is_some() {
            ready!(this.entry.poll_refused(cx));
        }
        if let Some(refusal) = this.refusal.take() {
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
