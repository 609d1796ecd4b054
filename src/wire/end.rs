//! How a request's context ends: with the answer, or because the client has left.

use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;

use crate::CancelGuard;

/// How a request ended, if not by a deadline or with the service: the cause that its context has then.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::RequestEnd;
///
/// /// Whether nobody wants the report any more, rather than that there is no more time for it.
/// fn is_unwanted(ctx: &Context) -> bool {
///     ctx.err().is_some_and(|end| end.cause_as() == Some(&RequestEnd::ClientLeft))
/// }
/// # assert!(!is_unwanted(&Context::background()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestEnd {
    /// The response has been sent, or at any rate handed over, to its end: no failure.
    Answered,
    /// The connection or the stream went before that: the client hung up, or the server closed it.
    ClientLeft,
    /// The service, or its response's body, returned an error.
    Failed,
    /// The handler, or the response's body, panicked.
    Panicked,
}

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

impl StdError for RequestEnd {}

/// Ends a request's context when dropped, with what is known of the request by then.
pub(crate) struct Ending {
    guard: CancelGuard,
    /// Where the layer was made: its own lines say nothing to anybody.
    place: &'static Location<'static>,
    how: RequestEnd,
}

impl Ending {
    /// Dropped as it is, the client has left.
    pub(crate) fn new(guard: CancelGuard, place: &'static Location<'static>) -> Ending {
        Ending { guard, place, how: RequestEnd::ClientLeft }
    }

    /// Dropped from now on, the request ended so.
    pub(crate) fn expect(&mut self, how: RequestEnd) {
        self.how = how;
    }

    /// Runs what may panic, which ends the context as such: at once, or when it is dropped for it.
    pub(crate) fn watch<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let how = std::mem::replace(&mut self.how, RequestEnd::Panicked);
        let done = f();
        self.how = how;
        done
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.guard.cancel_at(self.place, self.how);
    }
}
