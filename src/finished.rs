//! Causes for the normal end of a context, for which no tracing event is emitted.
//!
//! They are in a module of their own, below `trace`, which reads them.

use std::error::Error as StdError;
use std::fmt;
#[cfg(feature = "http")]
use std::sync::{Arc, LazyLock};

use crate::error::Cause;

/// The cause of a context that this crate ends when its work is done.
#[derive(Debug)]
pub(crate) struct Finished(pub(crate) &'static str);

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Finished {}

/// Returns the cause with the given number, which a token stores in place of the cause. None for 0.
pub(crate) fn preset(number: u8) -> Option<Cause> {
    #[cfg(feature = "http")]
    return Budget::of_preset(number);
    #[cfg(not(feature = "http"))]
    {
        let _ = number;
        None
    }
}

/// Where the deadline of a request came from. It is the cause when the deadline passes.
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
    /// The [default](crate::wire::Inbound::default_budget) of the server.
    Default,
    /// The [maximum](crate::wire::Inbound::max_budget) of the server, or that of a
    /// [date](crate::wire::DeadlineAt).
    Maximum,
    /// The caller allowed less than the [minimum](crate::wire::Inbound::min_budget) of the server.
    Minimum,
}

#[cfg(feature = "http")]
impl Budget {
    /// The values of a request that is served, which fit in two bits.
    const PRESET: [Budget; 3] = [Budget::Caller, Budget::Default, Budget::Maximum];

    /// Returns the number of a preset cause.
    pub(crate) fn preset(self) -> Option<u8> {
        let at = Budget::PRESET.iter().position(|&whose| whose == self)?;
        Some(at as u8 + 1)
    }

    /// Returns the same cause each time, so that two errors of one end share it.
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
            Budget::Caller => "the deadline of the caller",
            Budget::Default => "the server's default",
            Budget::Maximum => "the server's maximum",
            Budget::Minimum => "less than the server's minimum",
        })
    }
}

#[cfg(feature = "http")]
impl StdError for Budget {}

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
///     ctx.err().is_some_and(|end| end.cause_as() == Some(&RequestEnd::Dropped))
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
    /// The server dropped the request before that. Usually the client has disconnected: servers drop the
    /// handler or the response body when the connection is closed or the stream is reset. A timeout outside of
    /// the layer (tower's `Timeout`, tonic's `Server::timeout`), a hedged request, and closing the server have
    /// the same effect, and cannot be distinguished.
    Dropped,
    /// The client has disconnected. The layer never uses this cause. Use it in a server of your own that
    /// detects this, with [`extract`](crate::Context::extract).
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
            RequestEnd::Dropped => "request dropped",
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
