//! The owner of a request's context, which ends it with the right cause.

use std::borrow::Borrow;
use std::panic::Location;

use crate::context::{CancelScope, Context};
pub use crate::finished::RequestEnd;
use crate::registry;

/// Owns a request's context, and ends it when dropped. The cause is what is known about the request at that time.
pub(crate) struct RequestScope {
    scope: CancelScope,
    /// The line where the layer was made. Lines of this crate would not help a reader.
    place: &'static Location<'static>,
    how: RequestEnd,
}

impl RequestScope {
    pub(crate) fn new(scope: CancelScope, place: &'static Location<'static>) -> RequestScope {
        RequestScope { scope, place, how: RequestEnd::Dropped }
    }

    /// Sets the cause of the end, if this is dropped from now on. Returns the previous one.
    pub(crate) fn expect(&mut self, how: RequestEnd) -> RequestEnd {
        std::mem::replace(&mut self.how, how)
    }

    /// Calls a function that may panic. If it does, the cause is [`RequestEnd::Panicked`].
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
        if self.how != RequestEnd::Answered || self.scope.is_seen() || registry::is_installed() {
            self.scope.cancel_at(self.place, Box::new(self.how));
        }
    }
}
