//! How a request's context ends: with the answer, or because it was dropped before.

use std::borrow::Borrow;
use std::panic::Location;

use super::open::Open;
use crate::context::enter::UnderwayHandle;
use crate::context::{CancelScope, Context};
pub use crate::finished::RequestEnd;

/// A request's context. Dropped, it ends that, with what is known of the request by then.
pub(crate) struct RequestScope {
    scope: CancelScope,
    /// Where the layer was made: its own lines say nothing to a reader.
    place: &'static Location<'static>,
    how: RequestEnd,
    underway: UnderwayHandle,
}

impl RequestScope {
    pub(crate) fn new(
        scope: CancelScope,
        place: &'static Location<'static>,
        open: Option<&Open>,
    ) -> RequestScope {
        let underway = open.map(Open::handle).unwrap_or_default();
        RequestScope { scope, place, how: RequestEnd::Dropped, underway }
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

/// The context of an answered request that nothing else holds, the usual one, is not ended: no clock is read, and no
/// cause is allocated. A watch counts it as finished.
impl Drop for RequestScope {
    fn drop(&mut self) {
        if self.how != RequestEnd::Answered || self.scope.is_seen() || !is_counted(&self.scope) {
            self.underway.finish_if_late(&self.scope);
            self.scope.cancel_at(self.place, Box::new(self.how));
        }
    }
}

/// Counts the end of an answered request, if there is a watch. Returns false if its context has to be ended for that.
fn is_counted(scope: &CancelScope) -> bool {
    #[cfg(feature = "watch")]
    return !crate::registry::is_installed() || scope.count_as_finished("RequestEnd");
    #[cfg(not(feature = "watch"))]
    {
        let _ = scope;
        true
    }
}
