//! The client's layer, which bounds a call by its context and sends the remaining time to the server.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{Bounded, Start, Step, Whole};
use super::call::{context_of, ended};
use super::outbound::Outbound;
use super::refusal::Refusal;
use super::reply::Reply;
use super::request_body;
use super::send::SendLayer;
use crate::context::Context;
use crate::context::done::Wait;
use crate::error::{BoxError, Error};

/// Bounds the calls of a client by their context, and sends the remaining time to the server.
///
/// The context of a call is [`current`](Context::current), unless the request has one in its extensions. Then:
///
/// - If the current context is derived from the request's, the current one applies, with the values of both. This is
///   the case in a handler that forwards its own request [`within`](Context::within) a shorter time.
/// - Otherwise the request's context applies, with only its own values, and limited by the current deadline.
///
/// For a call with a later deadline than the current one, make it in the [`scope`](Context::scope) of another
/// context.
///
/// If the context has ended, the call fails at once and nothing is sent. If it ends during the call, the request is
/// dropped, which resets an HTTP/2 stream and closes an HTTP/1 connection, so that the server learns of it. A response
/// body that has not ended is dropped as well, even if it is not polled. A request body that is still being sent
/// fails; the layer does that for the body types of tonic and axum, and for others there is
/// [`RequestBody`](crate::wire::RequestBody).
///
/// Two things happen only at the next poll. The future of the call is dropped when it is polled after the end. An
/// HTTP/2 stream that waits for a window update, to continue its request body, is reset when hyper polls it next.
///
/// The error is then an [`Error`] in a box, or, for a gRPC call and with the feature `tonic`, the equivalent `Status`.
///
/// Waiting until the service is ready is not bounded, because the request is not known then: do that within
/// [`run`](Context::run). A call that is refused releases what the service had reserved when it became ready, such as
/// a place in the buffer of a tonic channel. For that, the service is replaced by a clone, so it has to be `Clone`.
///
/// The remaining time is written when the layer is called. If the request then waits (for a connection, in a buffer,
/// for a limit), the time in the header is too long; [`split`](Self::split) prevents that. Put retries outside of the
/// layer, so that each attempt writes the time that remains then.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Empty;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tokio_ctx::{Context, Error, wire::{ClientLayer, Outbound}};
/// use tower::{Layer, Service, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
/// let mut client = ClientLayer::new(Outbound::new()).layer(client);
///
/// let ctx = Context::background().with_cancel();
/// ctx.cancel();
/// let request = http::Request::get("http://127.0.0.1:9/").extension(ctx.clone()).body(Empty::new()).unwrap();
/// let error = client.ready().await.unwrap().call(request).await.unwrap_err();
/// assert!(error.downcast_ref::<Error>().unwrap().is_canceled());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientLayer {
    outbound: Arc<Outbound>,
    place: &'static Location<'static>,
    /// Whether the lower half writes the headers.
    is_split: bool,
}

impl ClientLayer {
    /// Makes a layer that writes the headers which `outbound` selects.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::wire::{ClientLayer, Outbound};
    ///
    /// let layer = ClientLayer::new(Outbound::new().margin(Duration::from_millis(5)));
    /// ```
    #[track_caller]
    pub fn new(outbound: Outbound) -> ClientLayer {
        ClientLayer { outbound: Arc::new(outbound), place: Location::caller(), is_split: false }
    }

    /// Splits the layer into two halves, so that the time a request waits between them is subtracted.
    ///
    /// Apply the upper half, which is a `ClientLayer` too, outside of everything that waits. It bounds the call,
    /// including the waiting, and puts the context into the request's extensions. Apply the lower half directly
    /// around each connection. It writes the remaining time and the values when the request is sent: if connecting
    /// took 300 of 600 ms, the header contains 300 ms. Both halves are needed: the upper one writes no headers,
    /// and the lower one does not bound the call.
    ///
    /// This requires a client that gives access to its connections: hyper's `conn`, with tower's `Reconnect` and
    /// `Buffer`, or with hyper-util's `pool`. [The guide](../guide/from_service_to_service/index.html) builds one
    /// for tonic's generated clients. hyper-util's `legacy::Client`, `reqwest` and tonic's `Channel` connect below
    /// every layer that can be added to them. With those, connect before the first call (`Endpoint::connect`
    /// instead of `connect_lazy`), or set a [`margin`](Outbound::margin) as long as connecting may take. The
    /// deadline is enforced in any case, because the call is dropped when it passes. Only the time in the
    /// header is too long.
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use std::time::Duration;
    /// use http::{Request, Response};
    /// use tokio_ctx::{BoxError, Context};
    /// use tokio_ctx::wire::{ClientLayer, Outbound};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let (upper, lower) = ClientLayer::new(Outbound::new()).split();
    /// // Responds with the timeout that it received.
    /// let connection = lower.layer(service_fn(async |request: Request<String>| {
    ///     let timeout = request.headers()["grpc-timeout"].to_str().unwrap().to_string();
    ///     Ok::<_, Infallible>(Response::new(timeout))
    /// }));
    /// let client = upper.layer(service_fn(move |request| {
    ///     let connection = connection.clone();
    ///     async {
    ///         tokio::time::sleep(Duration::from_millis(300)).await; // Connects.
    ///         connection.oneshot(request).await
    ///     }
    /// }));
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(600));
    /// let call = ctx.scope(client.oneshot(Request::new(String::new())));
    /// # let call = async { http_body_util::BodyExt::collect(call.await?.into_body()).await };
    /// # let timeout = call.await?.to_bytes();
    /// assert_eq!(timeout, "300000u");
    /// # Ok(())
    /// # }
    /// ```
    pub fn split(self) -> (ClientLayer, SendLayer) {
        let lower = SendLayer::new(self.outbound.clone(), self.place);
        (ClientLayer { is_split: true, ..self }, lower)
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = ClientService<S>;

    fn layer(&self, inner: S) -> ClientService<S> {
        ClientService { inner, layer: self.clone() }
    }
}

/// A service whose calls are bounded by their context. Made by [`ClientLayer`].
#[derive(Clone, Debug)]
pub struct ClientService<S> {
    inner: S,
    layer: ClientLayer,
}

impl<S, A, B> Service<Request<A>> for ClientService<S>
where
    A: 'static,
    S: Service<Request<A>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ClientBody<B>>;
    type Error = BoxError;
    type Future = ClientFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let ctx = context_of(&request);
        let grpc = Reply::is_grpc(request.headers());
        let ClientLayer { outbound, place, is_split } = &self.layer;
        let injected = if *is_split {
            request.extensions_mut().insert(ctx.clone());
            ctx.check()
        } else {
            outbound.inject(&ctx, request.headers_mut(), place)
        };
        if let Err(ended) = injected {
            // A clone has reserved nothing: what the service reserved when it became ready is released.
            self.inner = self.inner.clone();
            return ClientFuture { call: None, wait: None, refusal: Refusal::new(Some(ended)), grpc };
        }
        request_body::bind(&ctx, request.body_mut());
        ClientFuture {
            call: Some(self.inner.call(request)),
            wait: Some(Wait::new(ctx)),
            refusal: Refusal::new(None),
            grpc,
        }
    }
}

pin_project! {
    /// Future for the response. Made by [`ClientService`].
    ///
    /// # Panics
    ///
    /// Panics when polled again after it was ready, and, as [`Context::done`] does, without a time driver.
    #[must_use = "futures do nothing unless polled"]
    pub struct ClientFuture<F> {
        wait: Option<Wait<Context>>,
        #[pin]
        call: Option<F>,
        refusal: Refusal<Error>,
        grpc: bool,
    }
}

impl<F, B, E> Future for ClientFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body + Send + 'static,
{
    type Output = Result<Response<ClientBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(refusal) = ready!(this.refusal.poll(cx)) {
            return Poll::Ready(Err(ended(refusal, *this.grpc)));
        }
        const OVER: &str = "polled again after the response";
        let call = this.call.as_mut().as_pin_mut().expect(OVER);
        let answer = match call.poll(cx) {
            Poll::Ready(Ok(response)) => {
                let (wait, grpc) = (this.wait.take().expect(OVER), *this.grpc);
                Ok(response.map(|body| ClientBody { content: Content::new(body, grpc, wait, cx), grpc }))
            }
            // If the context has ended, the transport may report first that the request's body has failed.
            Poll::Ready(Err(error)) => match this.wait.as_ref().and_then(|wait| wait.ctx().err()) {
                Some(error) => Err(ended(error, *this.grpc)),
                None => Err(failed(error.into(), *this.grpc)),
            },
            Poll::Pending => {
                let wait = Pin::new(this.wait.as_mut().expect(OVER));
                Err(ended(ready!(wait.poll(cx)), *this.grpc))
            }
        };
        this.call.set(None);
        // Deregisters, so that the end does not wake this task.
        *this.wait = None;
        Poll::Ready(answer)
    }
}

/// Converts an error of the call itself.
fn failed(error: BoxError, grpc: bool) -> BoxError {
    #[cfg(feature = "tonic")]
    if grpc {
        return super::tonic::known_timeout(error);
    }
    let _ = grpc;
    error
}

impl<F> fmt::Debug for ClientFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientFuture").field(&self.wait.as_ref().map(Wait::ctx)).finish()
    }
}

pin_project! {
    /// The body of a response, which fails when the context ends. Made by [`ClientService`].
    ///
    /// When the context ends, the client's body is dropped, even if this body is not polled. That closes an HTTP/1
    /// connection, and resets an HTTP/2 stream.
    pub struct ClientBody<B: Body> {
        #[pin]
        content: Content<B>,
        grpc: bool,
    }
}

pin_project! {
    #[project = ContentProj]
    enum Content<B: Body> {
        // The context never ends.
        Free { #[pin] body: B },
        // The body is complete.
        Whole { whole: Whole<B> },
        Part { body: Bounded<B, Context> },
    }
}

impl<B: Body + Send + 'static> Content<B> {
    fn new(body: B, is_grpc: bool, wait: Wait<Context>, cx: &mut task::Context<'_>) -> Content<B> {
        if wait.ctx().is_endless() {
            return Content::Free { body };
        }
        match Start::poll(body, is_grpc, cx) {
            Start::Whole(whole) => Content::Whole { whole },
            // The end wakes the task only while it waits for a frame. A task that has a frame may do something else.
            Start::Part(body, early) => {
                Content::Part { body: Bounded::new(wait, None, body, early, None, false) }
            }
        }
    }
}

impl<B> Body for ClientBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let step = match this.content.project() {
            ContentProj::Free { body } => return body.poll_frame(cx).map_err(Into::into),
            ContentProj::Whole { whole } => whole.next(),
            ContentProj::Part { body } => {
                let step = ready!(body.poll_step(cx));
                if !matches!(step, Step::Frame(_)) {
                    body.finish();
                }
                step
            }
        };
        Poll::Ready(step.into_frame(|error| ended(error, *this.grpc)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Free { body } => body.is_end_stream(),
            Content::Whole { whole } => whole.is_end_stream(),
            Content::Part { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Free { body } => body.size_hint(),
            Content::Whole { whole } => whole.size_hint(),
            Content::Part { body } => body.size_hint(),
        }
    }
}

impl<B: Body> fmt::Debug for ClientBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBody").finish_non_exhaustive()
    }
}
