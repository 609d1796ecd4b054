//! The result of a call that is refused before it begins.
//!
//! It is ready at the first poll. Like other refusals, it consumes a unit of the task's cooperative budget.

use std::task::{self, Poll, ready};

use crate::context::refusal::Entry;

/// The result of a refused call, or nothing if the call is not refused.
pub(crate) struct Refusal<T> {
    result: Option<T>,
    entry: Entry,
}

impl<T> Refusal<T> {
    pub(crate) fn new(result: Option<T>) -> Refusal<T> {
        Refusal { result, entry: Entry::Fresh }
    }

    pub(crate) fn is_some(&self) -> bool {
        self.result.is_some()
    }

    /// Returns the result once, or `None` if the call is not refused.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Option<T>> {
        if self.result.is_some() {
            ready!(self.entry.poll_refused(cx));
        }
        Poll::Ready(self.result.take())
    }
}
