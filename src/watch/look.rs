//! The state of a token, as a watch reads it. Reading changes nothing: it closes no token whose end has not been noticed,
//! links no path and wakes nothing.
//!
//! One lock is held at a time, for a limited number of children. The children are not upgraded under the lock of their
//! parent, because the last handle of a child must not be dropped there.

use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Error;
use crate::registry::Subject;
use crate::token::Token;

/// The state of one token, without that of its ancestors.
pub(crate) struct Sight {
    pub(crate) made_at: &'static Location<'static>,
    pub(crate) born: Option<Instant>,
    /// The error, if the state of this token alone tells that it has ended.
    pub(crate) end: Option<Error>,
    /// Whether the end of an ancestor would have reached this token.
    pub(crate) is_linked: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) owns_deadline: bool,
    pub(crate) waiters: usize,
}

impl Token {
    pub(crate) fn sight(&self) -> Sight {
        // Read before the state: a token that was linked, and has not ended afterwards, is reached by all ends above.
        let is_linked = self.is_linked();
        Sight {
            made_at: self.made_at(),
            born: self.created_at(),
            end: self.ended().then(|| self.error()),
            is_linked,
            deadline: self.deadline(),
            owns_deadline: self.owns_deadline(),
            waiters: self.waiters(),
        }
    }

    /// Returns the error that the token has if its own deadline ends it.
    pub(crate) fn error_at_deadline(&self) -> Error {
        Error::with_cause(self.expiry_origin(), None)
    }
}

impl Token {
    /// Returns the token of a record, if it has not been dropped.
    pub(crate) fn of_subject(subject: &Subject) -> Option<Arc<Token>> {
        subject.upgrade()?.downcast().ok()
    }

    /// Returns the error if the token has ended by `now`, even if nothing has noticed the end yet. Reads at most a thousand
    /// ancestors.
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
