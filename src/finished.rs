//! Causes that say that a context's work is done: the normal end, which is no event.
//!
//! They lie low, since `trace` reads what the modules above give.

use std::error::Error as StdError;
use std::fmt;

/// The cause of a context that the crate itself ends when all is done, in words for an error.
#[derive(Debug)]
pub(crate) struct Finished(pub(crate) &'static str);

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Finished {}

/// How a request ended, if not by a deadline or with the service: the cause that its context has then.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::RequestEnd;
///
/// /// Whether the report is no longer wanted, rather than that there is no more time for it.
/// fn is_unwanted(ctx: &Context) -> bool {
///     ctx.err().is_some_and(|end| end.cause_as() == Some(&RequestEnd::ClientLeft))
/// }
/// # assert!(!is_unwanted(&Context::background()));
/// ```
#[cfg(feature = "tower")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestEnd {
    /// The response has been sent, or at any rate handed over, to its end: no failure, and no event of
    /// `tracing`.
    Answered,
    /// The connection or the stream went before that: the client hung up, or the server closed it.
    ClientLeft,
    /// The service, or its response's body, returned an error.
    Failed,
    /// The handler, or the response's body, panicked.
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

/// Whether a cause says that the work was done.
#[cfg(feature = "tracing")]
pub(crate) fn is_normal(cause: &(dyn StdError + Send + Sync + 'static)) -> bool {
    #[cfg(feature = "tower")]
    if let Some(end) = cause.downcast_ref::<RequestEnd>() {
        return *end == RequestEnd::Answered;
    }
    cause.is::<Finished>()
}
