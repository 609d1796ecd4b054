//! How a request's context ends: with the answer, or because the client has left.

use std::panic::Location;

use crate::CancelGuard;
pub use crate::finished::RequestEnd;

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
