//! Causes for the normal end of a context, for which no tracing event is emitted.
//!
//! They are in a module of their own, below `trace`, which reads them.

use std::error::Error as StdError;
use std::fmt;

/// The cause of a context that this crate ends when its work is done.
#[derive(Debug)]
pub(crate) struct Finished(pub(crate) &'static str);

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Finished {}

/// The cause of a request's context when the request is over.
///
/// If the context ended at its deadline or with the service, its error has another cause.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::RequestEnd;
///
/// /// Whether the client has disconnected, rather than the deadline passed.
/// fn is_unwanted(ctx: &Context) -> bool {
///     ctx.err().is_some_and(|end| end.cause_as() == Some(&RequestEnd::ClientLeft))
/// }
/// # assert!(!is_unwanted(&Context::background()));
/// ```
#[cfg(feature = "tower")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestEnd {
    /// The response has been sent, or handed to the transport, completely. This is not a failure, and emits no
    /// tracing event.
    Answered,
    /// The connection or the stream was closed before that, by the client or by the server.
    ClientLeft,
    /// The service or the response body returned an error.
    Failed,
    /// The handler or the response body panicked.
    Panicked,
}

#[cfg(feature = "tower")]
impl fmt::Display for RequestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RequestEnd::Answered => "request answered",
            RequestEnd::ClientLeft => "client left",
            RequestEnd::Failed => "request failed",
            RequestEnd::Panicked => "handler panicked",
        })
    }
}

#[cfg(feature = "tower")]
impl StdError for RequestEnd {}

/// Returns whether a cause stands for a normal end.
#[cfg(feature = "tracing")]
pub(crate) fn is_normal(cause: &(dyn StdError + Send + Sync + 'static)) -> bool {
    #[cfg(feature = "tower")]
    if let Some(end) = cause.downcast_ref::<RequestEnd>() {
        return *end == RequestEnd::Answered;
    }
    cause.is::<Finished>()
}
