//! The owner of a request's context, which ends it with the right cause.

use std::borrow::Borrow;
use std::panic::Location;

use super::open::Open;
use crate::context::registered::InProgressHandle;
use crate::context::{CancelScope, Context};
pub use crate::finished::RequestEnd;

/// Owns a request's context, and ends it when dropped. The cause is what is known about the request at that time.
pub(crate) struct RequestScope {
    scope: CancelScope,
    /// The line that made the layer, for the error. A line inside of this crate would not be useful there.
    place: &'static Location<'static>,
    how: RequestEnd,
    in_progress: InProgressHandle,
}

impl RequestScope {
    pub(crate) fn new(
        scope: CancelScope,
        place: &'static Location<'static>,
        open: Option<&Open>,
    ) -> RequestScope {
        let in_progress = open.map(Open::handle).unwrap_or_default();
        RequestScope { scope, place, how: RequestEnd::Dropped, in_progress }
    }

    /// Sets the cause of the end for a drop from now on. Returns the previous cause.
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

/// Usually, the request has been answered, and nothing else holds its context. Such a context is not ended, which saves
/// a reading of the clock and an allocation. A watch counts it as finished.
impl Drop for RequestScope {
    fn drop(&mut self) {
        if self.how != RequestEnd::Answered || self.scope.is_observed() || !is_counted(&self.scope) {
            self.in_progress.finish_if_late(&self.scope);
            self.scope.cancel_at(self.place, Box::new(self.how));
        }
    }
}

/// Counts the end of an answered request, if there is a watch. Returns false if the context has to be ended first.
fn is_counted(scope: &CancelScope) -> bool {
    #[cfg(feature = "watch")]
    return !crate::registry::is_installed() || scope.count_as_finished("RequestEnd");
    #[cfg(not(feature = "watch"))]
    {
        let _ = scope;
        true
    }
}
