//! How a request's context ends: with the answer, or because it was dropped before.

use std::borrow::Borrow;
use std::panic::Location;

use crate::context::{CancelScope, Context};
pub use crate::finished::RequestEnd;
use crate::registry;

/// A request's context. Dropped, it ends that, with what is known of the request by then.
pub(crate) struct RequestScope {
    scope: CancelScope,
    /// Where the layer was made: its own lines say nothing to a reader.
    place: &'static Location<'static>,
    how: RequestEnd,
}

impl RequestScope {
    pub(crate) fn new(scope: CancelScope, place: &'static Location<'static>) -> RequestScope {
        RequestScope { scope, place, how: RequestEnd::Dropped }
    }

    /// Dropped from now on, the request ended so.
    pub(crate) fn expect(&mut self, how: RequestEnd) -> RequestEnd {
        std::mem::replace(&mut self.how, how)
    }

    /// Runs what may panic, which ends the context as such when this is dropped for it.
    pub(crate) fn watch<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let how = self.expect(RequestEnd::Panicked);
        let done = f();
        self.how = how;
        done
    }
}

impl Borrow<Context> for RequestScope {
    fn borrow(&self) -> &Context {
        &self.scope
    }
}

/// An answered request that nothing looks at any more, the usual one, needs no end: neither a clock is read nor a
/// cause made. A watch counts it as finished.
impl Drop for RequestScope {
    fn drop(&mut self) {
        if self.how != RequestEnd::Answered || self.scope.is_observed() || registry::is_installed() {
            self.scope.cancel_at(self.place, Box::new(self.how));
        }
    }
}
