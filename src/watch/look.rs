//! The part of a token's state that a snapshot contains. Reading it has no effect on the token: it does not record an end,
//! link a path, or wake a task.
//!
//! The engine holds the lock of one token at a time, for a limited number of children. Their weak handles are upgraded
//! after the lock is released, because the last handle of a child must not be dropped while the lock of its parent is
//! held.

use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Error;
use crate::token::Token;

/// The state of a token, without that of its ancestors.
pub(crate) struct Sight {
    pub(crate) made_at: &'static Location<'static>,
    pub(crate) created_at: Option<Instant>,
    /// Its error, if its own state has an end.
    pub(crate) end: Option<Error>,
    /// Whether the end of an ancestor would be stored in its state.
    pub(crate) is_linked: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) owns_deadline: bool,
    pub(crate) waiters: usize,
}

impl Token {
    pub(crate) fn sight(&self) -> Sight {
        // Read before the state: if a token was linked and its state has no end, no ancestor had ended.
        let is_linked = self.is_linked();
        Sight {
            made_at: self.made_at(),
            created_at: self.created_at(),
            end: self.ended().then(|| self.error()),
            is_linked,
            deadline: self.deadline(),
            owns_deadline: self.owns_deadline(),
            waiters: self.waiters(),
        }
    }

    /// Returns the error that its own deadline would cause.
    pub(crate) fn error_at_deadline(&self) -> Error {
        Error::with_cause(self.expiry_origin(), None)
    }

    /// Returns its error if it has ended by `now`, even if no query has noticed it yet. At most a thousand ancestors are
    /// checked.
    pub(crate) fn unnoticed_error(self: &Arc<Self>, now: Instant) -> Option<Error> {
        const FARTHEST: usize = 1000;
        let mut due = None;
        for token in std::iter::successors(Some(self), |token| token.parent()).take(FARTHEST) {
            let is_linked = token.is_linked();
            let is_due = |token: &Token| token.deadline().is_some_and(|deadline| deadline <= now);
            if token.ended() {
                let error = token.error();
                let is_first = due.as_ref().is_none_or(|due: &Error| {
                    let (due, ended) = (due.origin().ended_at(), error.origin().ended_at());
                    ended < due
                });
                return if is_first { Some(error) } else { due };
            }
            if due.is_none() && token.owns_deadline() && is_due(token) {
                due = Some(token.error_at_deadline());
            }
            if is_linked && (due.is_some() || !is_due(token)) {
                break;
            }
        }
        due
    }
}
