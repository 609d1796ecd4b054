//! tonic: an error as a status and back, a context in requests.

use std::error::Error as StdError;
use std::panic::Location;
use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status, TimeoutExpired};

use super::outcome::Outcome;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind};
use crate::sync::now;

/// `DEADLINE_EXCEEDED` for a deadline, `CANCELLED` for a cancel, but `UNAVAILABLE` in a request whose service is
/// stopping, so that its caller tries another; and a few words.
///
/// That it is stopping, the end of the context says that serves the [current](Context::current) request, or the cause
/// that a [`Shutdown`](crate::Shutdown) gives. Lines, causes and budgets stay here: the [`Error`] is the status's
/// [`source`](std::error::Error::source), which is not sent.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::{Context, wire::StatusExt};
/// use tonic::{Code, Status};
///
/// fn handler(ctx: &Context) -> Result<u32, Status> {
///     ctx.check()?;
///     Ok(3)
/// }
///
/// let ctx = Context::background().with_timeout(Duration::ZERO);
/// let status = handler(&ctx).unwrap_err();
/// assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "deadline exceeded"));
/// assert!(status.context_error().unwrap().to_string().contains(" set at "));
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let outcome = Outcome::of(&error);
        let mut status = Status::new(Code::from_i32(outcome.grpc().into()), outcome.text());
        status.set_source(Arc::new(error));
        status
    }
}

/// [`context_error`](StatusExt::context_error) for a [`Status`].
pub trait StatusExt {
    /// The end of a context that this status tells of, here or at the far side; `None` for any other status.
    ///
    /// If a context of this process ended, that error, with all its detail. Otherwise, for
    /// `DEADLINE_EXCEEDED` and `CANCELLED`, one that says so: made at the line of this call, with the
    /// status as its cause. Ask the call's own context first: if it has ended, its error is the better
    /// account.
    ///
    /// ```
    /// use tokio_ctx::wire::StatusExt;
    /// use tonic::Status;
    ///
    /// let told = Status::deadline_exceeded("too slow");
    /// let error = told.context_error().unwrap();
    /// assert!(error.is_deadline_exceeded());
    /// assert!(error.to_string().starts_with("context deadline exceeded: reported by a peer at "));
    /// assert_eq!(error.cause_as::<Status>().unwrap().message(), "too slow");
    ///
    /// assert!(Status::not_found("no such user").context_error().is_none());
    /// ```
    fn context_error(&self) -> Option<Error>;
}

impl StatusExt for Status {
    #[track_caller]
    fn context_error(&self) -> Option<Error> {
        if let Some(error) = Error::find(self) {
            return Some(error.clone());
        }
        let kind = match self.code() {
            Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Code::Cancelled => ErrorKind::Canceled,
            _ => return None,
        };
        Some(Error::from_peer(kind, Location::caller(), now(), self.clone().into()))
    }
}

/// tonic's own timer of a channel says `CANCELLED`, before or after the context's by a hair, or by the margin:
/// what has run out all the same is the time that was given.
pub(crate) fn known_timeout(error: BoxError) -> BoxError {
    if in_chain::<TimeoutExpired>(&*error).is_none() {
        return error;
    }
    let mut status = Status::deadline_exceeded("deadline exceeded");
    status.set_source(error.into());
    status.into()
}

fn in_chain<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl Context {
    /// The context of a tonic request: the one that a [`ServerLayer`](crate::wire::ServerLayer) has put
    /// into its extensions, otherwise [`current`](Self::current).
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tonic::{Request, Response, Status};
    ///
    /// async fn lookup(request: Request<String>) -> Result<Response<usize>, Status> {
    ///     let ctx = Context::of_request(&request);
    ///     let length = ctx.run(async { request.into_inner().len() }).await?;
    ///     Ok(Response::new(length))
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # assert_eq!(lookup(Request::new("ada".into())).await.unwrap().into_inner(), 3);
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
    pub fn of_request<T>(request: &Request<T>) -> Context {
        request.extensions().get::<Context>().cloned().unwrap_or_else(Context::current)
    }

    /// A tonic request that goes out under this context: it has the `grpc-timeout`, and the context in its
    /// extensions, where a [`ClientLayer`](crate::wire::ClientLayer) finds it.
    ///
    /// For a channel without that layer, bound the call as well:
    /// `ctx.try_run(client.check(ctx.to_request(message)?)).await`, and likewise each message of a stream.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it has ended: `?` makes a [`Status`] of it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(300));
    /// let request = ctx.to_request("ada")?;
    /// assert!(request.metadata().contains_key("grpc-timeout"));
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
    #[track_caller]
    pub fn to_request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut headers = http::HeaderMap::new();
        self.inject(&mut headers)?;
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        request.extensions_mut().insert(self.clone());
        Ok(request)
    }
}
