//! What a picture sees of a token. A look changes nothing: it notices no end that has not been noticed, links no path
//! and wakes nothing.
//!
//! It holds one token's lock at a time, for so many members at most, and upgrades none of them meanwhile: a child's last
//! handle must not be dropped under its parent's lock.

use std::any::Any;
use std::mem;
use std::panic::Location;
use std::sync::{Arc, Weak};
#[cfg(feature = "tower")]
use std::time::Duration;

use tokio::time::Instant;

use super::{OCCUPIED, Token};
use crate::error::Error;
use crate::registry::{self, Draft, Kind, Name, Registration, Subject};

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
        let waiters = if self.has(OCCUPIED) { self.inner.lock().waiters() } else { 0 };
        Sight {
            made_at: self.made_at,
            born: self.born_at(),
            end: self.ended().then(|| self.error()),
            is_linked,
            deadline: self.deadline(),
            owns_deadline: self.owns_deadline(),
            waiters,
        }
    }

    /// The error of its own deadline, if that ended it now.
    pub(crate) fn error_at_deadline(&self) -> Error {
        Error::new(self.expiry_origin(), None)
    }

    pub(crate) fn parent(&self) -> Option<&Arc<Token>> {
        self.parent.as_ref()
    }

    /// Copies handles on the linked children from the place `from` on, after a look at `most` places. Returns where to go
    /// on; none at the end. A child that is there all the time is met once.
    pub(crate) fn children(&self, from: u32, most: u32, found: &mut Vec<Weak<Token>>) -> Option<u32> {
        if !self.has(OCCUPIED) {
            return None;
        }
        self.inner.lock().children(from, most, found)
    }

    /// How long it has lived by then, if that is known.
    #[cfg(feature = "tower")]
    pub(crate) fn age_at(&self, now: Instant) -> Option<Duration> {
        self.born_at().map(|born| now.saturating_duration_since(born))
    }

    /// The token, as a record's subject.
    pub(crate) fn subject(self: &Arc<Self>) -> Subject {
        let token: Weak<Token> = Arc::downgrade(self);
        token as Weak<dyn Any + Send + Sync>
    }

    /// Keeps a registration for as long as the token is there, or until another of its kind takes its place.
    pub(crate) fn keep_registered(&self, registration: Registration) {
        let kind = registration.record().kind;
        let mut inner = self.inner.lock();
        let kept = &mut inner.more().registered;
        let _replaced = match kept.iter_mut().find(|kept| kept.record().kind == kind) {
            Some(place) => Some(mem::replace(place, registration)),
            None => {
                // Mostly there is no other.
                kept.reserve_exact(1);
                kept.push(registration);
                None
            }
        };
        drop(inner);
    }

    /// Registers it if it is a root, while a watch is installed.
    #[inline]
    pub(crate) fn register_root(self: &Arc<Self>) {
        if self.parent.is_none() && registry::is_installed() {
            self.register_root_now();
        }
    }

    #[cold]
    fn register_root_now(self: &Arc<Self>) {
        let (kind, line, subject) = (Kind::Root, self.made_at, Some(self.subject()));
        let label: Option<Name> = None;
        let draft = || Draft { kind, line, started: None, label, subject, probe: None };
        if let Some(registration) = Registration::new(draft) {
            self.keep_registered(registration);
        }
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
        for token in std::iter::successors(Some(self), |token| token.parent.as_ref()).take(FARTHEST) {
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
