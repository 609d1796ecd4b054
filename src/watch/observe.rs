//! The part of a token's state that a snapshot contains. Reading it does not record an end, link a path, or wake a task. Its
//! only effect is on an idle limit, which it checks: progress that was reported before gets the time of the reading.
//!
//! The engine holds the lock of one token at a time, for a limited number of children. Their weak handles are upgraded
//! after the lock is released, because the last handle of a child must not be dropped while the lock of its parent is
//! held.

use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Error;
use crate::stamp::Stamp;
use crate::token::Token;

/// The state of a token, without that of its ancestors.
pub(crate) struct TokenView {
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
    pub(crate) fn view(&self) -> TokenView {
        // Read before the state: if a token was linked and its state has no end, no ancestor had ended, or another thread has
        // not closed this token yet.
        let is_linked = self.is_linked();
        TokenView {
            made_at: self.made_at(),
            created_at: self.created_at(),
            end: self.ended().then(|| self.error()),
            is_linked,
            deadline: self.deadline(),
            owns_deadline: self.owns_deadline(),
            waiters: self.waiters(),
        }
    }
}

/// Ends that have come, and that no query has noticed yet, for example because the runtime is stuck. At most a thousand
/// ancestors are visited.
impl Token {
    /// Returns its error if it has ended by `now`.
    pub(crate) fn unnoticed_error(self: &Arc<Self>, now: Instant) -> Option<Error> {
        let due = if self.ended() { None } else { self.due_error(now) };
        for token in std::iter::successors(Some(self), |token| token.parent()).take(FARTHEST) {
            // Read before the state, as above.
            let is_linked = token.is_linked();
            if token.ended() {
                return earlier(due, Some(token.error()));
            }
            if is_linked {
                break;
            }
        }
        due
    }

    /// Returns the error of its deadline or of an idle limit, if it is due by `now`.
    pub(crate) fn due_error(self: &Arc<Self>, now: Instant) -> Option<Error> {
        let mut due = self.due_owner(now).map(|owner| owner.expiry_error());
        if self.is_checked() {
            self.each_check(|owner, attachment| {
                let check = attachment.check(Stamp::new(now));
                let error = check.map(|(at, how, cause)| Error::new(owner.origin(how, at), Some(cause)));
                due = earlier(due.take(), error);
            });
        }
        due
    }

    /// Returns the token that owns the deadline, if it is due by `now`.
    fn due_owner(self: &Arc<Self>, now: Instant) -> Option<Arc<Token>> {
        let deadline = self.deadline().filter(|deadline| *deadline <= now)?;
        let mut token = self.clone();
        for _ in 0..FARTHEST {
            if token.owns_deadline() {
                return Some(token);
            }
            // The deadline of a merged token may be that of its second parent.
            let parent = token.parent().filter(|parent| parent.deadline() == Some(deadline)).cloned();
            token = parent.or_else(|| token.second())?;
        }
        None
    }

    /// Returns whether its end, if it is due, may be another one than that of its parent.
    pub(crate) fn may_be_due_alone(&self) -> bool {
        let parents = self.parent().and_then(|parent| parent.deadline());
        self.owns_deadline() || self.is_checked() || parents != self.deadline()
    }
}

const FARTHEST: usize = 1000;

/// Returns the earlier end, or the first one if both are at the same time.
fn earlier(a: Option<Error>, b: Option<Error>) -> Option<Error> {
    let at = |error: &Option<Error>| error.as_ref().map(|error| error.origin().ended_at());
    if a.is_none() || (b.is_some() && at(&b) < at(&a)) { b } else { a }
}
