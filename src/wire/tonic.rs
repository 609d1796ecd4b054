//! For tonic: conversions between `Error` and `Status`, and the context of a request.

use std::error::Error as StdError;
use std::panic::Location;
use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status, TimeoutExpired};

use super::outcome::Outcome;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind};
use crate::sync::now;

/// Converts the error into `DEADLINE_EXCEEDED` for a deadline and `CANCELLED` for a cancel. If the service is shutting
/// down, the status is `UNAVAILABLE`, so that the caller tries another instance.
///
/// The service is shutting down if the service's context of the [current](Context::current) request has ended, or if the
/// cause is that of a [`Shutdown`](crate::Shutdown). The message is a short fixed text, without lines, causes or budgets.
/// The [`Error`] is the [`source`](std::error::Error::source) of the status, which is not sent.
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

/// Adds [`context_error`](StatusExt::context_error) to [`Status`].
pub trait StatusExt {
    /// Returns the error of the context whose end this status reports, or `None` for another status.
    ///
    /// If a context of this process has ended, this is its error, with all details. Otherwise, for `DEADLINE_EXCEEDED` and
    /// `CANCELLED` from a peer, it is a new error with the line of this call, and with the status as its cause. Check the
    /// context of the call first: if it has ended, its error has more details.
    ///
    /// ```
    /// use tokio_ctx::wire::StatusExt;
    /// use tonic::Status;
    ///
    /// let status = Status::deadline_exceeded("too slow");
    /// let error = status.context_error().unwrap();
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

/// Converts the error of a channel's own timer into `DEADLINE_EXCEEDED`. tonic sets that timer to the `grpc-timeout` of the
/// call, and reports `CANCELLED`. It may fire slightly before or after the timer of the context.
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
    /// Returns the context of a tonic request: the one that a [`ServerLayer`](crate::wire::ServerLayer) has put into its
    /// extensions, or else [`current`](Self::current).
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

    /// Makes a tonic request with this context: with the `grpc-timeout`, and with the context in its extensions, where a
    /// [`ClientLayer`](crate::wire::ClientLayer) finds it.
    ///
    /// If the channel has no such layer, bound the call as well:
    /// `ctx.try_run(client.check(ctx.to_request(message)?)).await`. Do the same for each message of a stream.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it has ended. `?` converts it into a [`Status`].
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
