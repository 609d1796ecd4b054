//! What a picture sees of a token. A look changes nothing: it notices no end that has not been noticed, links no path
//! and wakes nothing.
//!
//! The engine holds one token's lock at a time, for so many members at most, and none of them is upgraded meanwhile: a
//! child's last handle must not be dropped under its parent's lock.

use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Error;
use crate::registry::Subject;
use crate::token::Token;

/// What one token shows by itself, whatever its ancestors say.
pub(crate) struct Sight {
    pub(crate) made_at: &'static Location<'static>,
    pub(crate) born: Option<Instant>,
    /// Its error, if its own state says that it has ended.
    pub(crate) end: Option<Error>,
    /// Whether an end above would have reached its state.
    pub(crate) is_linked: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) owns_deadline: bool,
    pub(crate) waiters: usize,
}

impl Token {
    pub(crate) fn sight(&self) -> Sight {
        // Before the state: a token that was linked while it lived, and has not ended, is reached by every end above.
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

    /// The error of its own deadline, if that ended it now.
    pub(crate) fn error_at_deadline(&self) -> Error {
        Error::with_cause(self.expiry_origin(), None)
    }
}

impl Token {
    /// The token of a record, if it is still there.
    pub(crate) fn of_subject(subject: &Subject) -> Option<Arc<Token>> {
        subject.upgrade()?.downcast().ok()
    }

    /// Its error, if it has ended at that time, also where that has not been noticed: the nearest thousand ancestors are asked.
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
