//! A request body that fails when its context ends, so that the server learns of it.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use http_body::{Body, Frame, SizeHint};

use super::body::{Bounded, Step, bytes};
use crate::context::Context;
use crate::context::done::Wait;
use crate::error::{BoxError, Error};

/// A request body that fails when a context ends, unless it has been sent completely.
///
/// An HTTP client keeps sending a request body after the future of the call, or the response body, was dropped, so that
/// the server does not learn of the end. A body that fails resets the HTTP/2 stream, or closes the HTTP/1 connection.
///
/// [`ClientLayer`](crate::wire::ClientLayer) wraps the body types of tonic and axum by itself. If a body of another
/// type stays open, wrap it where the request is made:
///
/// ```
/// use bytes::Bytes;
/// use http::Request;
/// use http_body_util::{BodyExt, StreamBody};
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::RequestBody;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let ctx = Context::background().with_cancel();
/// let (send, messages) = tokio::sync::mpsc::channel::<Result<_, std::io::Error>>(8);
/// let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
/// let body = RequestBody::new(&ctx, StreamBody::new(messages));
/// let mut request = Request::post("http://far.side/chat").body(body).unwrap();
///
/// send.send(Ok(http_body::Frame::data(Bytes::from("hello")))).await.unwrap();
/// assert!(request.body_mut().frame().await.unwrap().is_ok());
/// ctx.cancel();
/// assert!(request.body_mut().frame().await.unwrap().is_err());
/// assert!(send.is_closed());
/// # }
/// ```
pub struct RequestBody<B: Body>(State<Pin<Box<B>>>);

/// A body that can be moved, and its context.
enum State<B: Body> {
    /// Most bodies are sent without waiting, and need no registration.
    Fresh {
        ctx: Context,
        body: B,
        /// Whether the first frame has been sent.
        is_sent: bool,
    },
    Bound(Box<Bounded<B, Context>>),
    Over,
    /// The registration with the context has panicked.
    Lost,
}

/// No field is pinned in place.
impl<B: Body> Unpin for State<B> {}

impl<B: Body + Send + 'static> RequestBody<B> {
    /// Wraps a body, which then fails when `ctx` ends.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::Full;
    /// use tokio_ctx::{Context, wire::RequestBody};
    ///
    /// let body = RequestBody::new(&Context::current(), Full::<Bytes>::from("hello"));
    /// assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
    /// ```
    pub fn new(ctx: &Context, body: B) -> RequestBody<B> {
        RequestBody(State::new(ctx, Box::pin(body)))
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl<B> Body for State<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        if let State::Fresh { ctx, body, is_sent } = &mut *self {
            match Pin::new(body).poll_frame(cx) {
                // A unary call has one message.
                Poll::Ready(Some(Ok(frame))) if !*is_sent || frame.is_trailers() => {
                    *is_sent = true;
                    ctx.progress().report_bytes(bytes(&frame));
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Ok(frame))) => self.bind(vec![frame]),
                Poll::Ready(last) => {
                    *self = State::Over;
                    return Poll::Ready(last.map(|last| last.map_err(Into::into)));
                }
                Poll::Pending => self.bind(Vec::new()),
            }
        }
        let body = match &mut *self {
            State::Bound(body) => body,
            State::Over => return Poll::Ready(None),
            // A body that is lost is not reported as complete.
            State::Fresh { .. } | State::Lost => panic!("polled again after a panic"),
        };
        let step = ready!(body.poll_step(cx));
        if !matches!(step, Step::Frame(_)) {
            body.finish();
            *self = State::Over;
        }
        Poll::Ready(step.into_frame(Reset::of))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            State::Fresh { body, .. } => body.is_end_stream(),
            State::Bound(body) => body.is_end_stream(),
            State::Lost => false,
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            State::Fresh { body, .. } => body.size_hint(),
            State::Bound(body) => body.size_hint(),
            State::Lost => SizeHint::default(),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B: Body + Send + 'static> State<B> {
    fn new(ctx: &Context, body: B) -> State<B> {
        State::Fresh { ctx: ctx.clone(), body, is_sent: false }
    }

    /// Registers with the context, which drops the body when it ends.
    fn bind(&mut self, early: Vec<Frame<B::Data>>) {
        if let State::Fresh { ctx, body, .. } = std::mem::replace(self, State::Lost) {
            // The end also wakes a transport that waits for its peer.
            let body = Bounded::new(Wait::new(ctx), None, Box::pin(body), early, None, true);
            *self = State::Bound(Box::new(body));
        }
    }
}

impl<B: Body> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

/// Wraps a body in place, if its type is one that can hold any other body.
pub(crate) fn bind<A: 'static>(ctx: &Context, body: &mut A) {
    if ctx.is_endless() {
        return;
    }
    let body: &mut dyn Any = body;
    #[cfg(feature = "tonic")]
    if let Some(body) = body.downcast_mut::<::tonic::body::Body>() {
        if !body.is_end_stream() {
            *body = ::tonic::body::Body::new(State::new(ctx, std::mem::take(body)));
        }
    }
    #[cfg(feature = "axum")]
    if let Some(body) = body.downcast_mut::<axum_core::body::Body>() {
        if !body.is_end_stream() {
            *body = axum_core::body::Body::new(State::new(ctx, std::mem::take(body)));
        }
    }
    let _ = body;
}

/// The error for the transport. Its source makes hyper reset the stream with `CANCEL` instead of `INTERNAL_ERROR`.
struct Reset {
    ended: Error,
    #[cfg(feature = "tonic")]
    reset: h2::Error,
}

impl Reset {
    fn of(ended: Error) -> BoxError {
        Box::new(Reset {
            ended,
            #[cfg(feature = "tonic")]
            reset: h2::Reason::CANCEL.into(),
        })
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.ended, f)
    }
}

impl fmt::Debug for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.ended, f)
    }
}

impl StdError for Reset {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        #[cfg(feature = "tonic")]
        return Some(&self.reset);
        #[cfg(not(feature = "tonic"))]
        self.ended.source()
    }
}
