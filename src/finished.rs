//! Causes that say that a context's work is done: the normal end, which is no event.
//!
//! They lie low, since `trace` reads what the modules above give.

use std::error::Error as StdError;
use std::fmt;
#[cfg(feature = "http")]
use std::sync::{Arc, LazyLock};

use crate::error::Cause;

/// The cause of a context that the crate itself ends when all is done, in words for an error.
#[derive(Debug)]
pub(crate) struct Finished(pub(crate) &'static str);

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Finished {}

/// Returns the cause with that number, which a token stores in two bits; none for 0.
pub(crate) fn preset(number: u8) -> Option<Cause> {
    #[cfg(feature = "http")]
    return Budget::of_preset(number);
    #[cfg(not(feature = "http"))]
    {
        let _ = number;
        None
    }
}

/// Who set a request's budget: the cause of an end by its deadline.
///
/// ```
/// use std::time::Duration;
/// use http::HeaderMap;
/// use tokio_ctx::wire::{Budget, Inbound};
/// use tokio_ctx::Context;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("grpc-timeout", "0n".parse().unwrap());
/// let ctx = Context::background().extract(&headers, &Inbound::new())?;
/// assert_eq!(ctx.err().unwrap().cause_as::<Budget>(), Some(&Budget::Caller));
/// # Ok::<(), tokio_ctx::wire::BadHeader>(())
/// ```
#[cfg(feature = "http")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Budget {
    /// The caller, in a header.
    Caller,
    /// The server: its [default](crate::wire::Inbound::default_budget).
    Default,
    /// The server: its [maximum](crate::wire::Inbound::max_budget), or that of a [date](crate::wire::DeadlineAt).
    Maximum,
    /// The server: less than its [minimum](crate::wire::Inbound::min_budget) is not worth beginning.
    Minimum,
}

#[cfg(feature = "http")]
impl Budget {
    /// The causes with a number: those of requests that are served.
    const PRESET: [Budget; 3] = [Budget::Caller, Budget::Default, Budget::Maximum];

    /// Its number as a preset cause, if it is one.
    pub(crate) fn preset(self) -> Option<u8> {
        let at = Budget::PRESET.iter().position(|&whose| whose == self)?;
        Some(at as u8 + 1)
    }

    /// Returns the same allocation each time, so that all errors of one end share their cause.
    fn of_preset(number: u8) -> Option<Cause> {
        static CAUSES: LazyLock<[Cause; 3]> =
            LazyLock::new(|| Budget::PRESET.map(|whose| Arc::new(whose) as Cause));
        CAUSES.get(usize::from(number).checked_sub(1)?).cloned()
    }
}

#[cfg(feature = "http")]
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Budget::Caller => "as the caller asked",
            Budget::Default => "the server's default",
            Budget::Maximum => "the server's maximum",
            Budget::Minimum => "less than the server's minimum",
        })
    }
}

#[cfg(feature = "http")]
impl StdError for Budget {}

/// How a request ended, if not by a deadline or with the service: the cause that its context has then.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::RequestEnd;
///
/// /// Whether the report is no longer waited for, rather than that there is no more time for it.
/// fn is_unwanted(ctx: &Context) -> bool {
///     ctx.err().is_some_and(|end| end.cause_as() == Some(&RequestEnd::Dropped))
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
    /// The request was dropped before that. In most cases the client has left: a server drops the handler, or the
    /// response body, when the connection closes or the stream is reset. A timeout outside of the layer (tower's
    /// `Timeout`, tonic's `Server::timeout`), a hedge, or the shutdown of the server drops it in the same way.
    Dropped,
    /// The client has left. The layer never uses this, as it sees no more than a drop. A server that calls
    /// [`extract`](crate::Context::extract) itself, and knows, can pass it as the cause.
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
            RequestEnd::Dropped => "request dropped",
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
