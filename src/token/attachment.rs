//! What modules above the engine attach to a token: something that ends with it, or that can end it.

use std::any::Any;
use std::sync::Arc;

use super::{CHECKED, OBSERVED, OCCUPIED, OWNS_CHECK, Token};
use crate::error::{BoxError, How};
use crate::stamp::Stamp;
use crate::sync::Ordering;

/// Something that is kept under a token's lock until the token is dropped.
pub(crate) trait Attachment: Send + Sync + 'static {
    /// Called once, when the token has ended, while no lock is held.
    fn ended(&self) {}

    /// Returns when and why this ended the token, if it has by `now`. Called by each query of the token, and of those
    /// below it.
    fn check(&self, _now: Stamp) -> Option<Check> {
        None
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// When something ended a token, how, and with which cause.
pub(crate) type Check = (Stamp, How, BoxError);

impl Token {
    /// Attaches something that is checked, before the token is shared.
    pub(crate) fn attach_check(&self, attachment: Arc<dyn Attachment>) {
        self.attachments(|attachments, _| attachments.push(attachment));
        self.state.fetch_or(CHECKED | OWNS_CHECK, Ordering::Relaxed);
    }

    /// Calls `f` with what is attached, and with whether the token has ended. `f` runs under the lock, and drops
    /// nothing.
    pub(crate) fn attachments<R>(&self, f: impl FnOnce(&mut Vec<Arc<dyn Attachment>>, bool) -> R) -> R {
        let mut inner = self.inner.lock();
        let ended = self.set(OCCUPIED);
        f(&mut inner.more().attachments, ended)
    }

    /// From now on an end counts also if no handle is left that could see it.
    pub(crate) fn set_observed(&self) {
        self.state.fetch_or(OBSERVED, Ordering::AcqRel);
    }

    /// Whether it, or one above it, is checked.
    #[inline]
    pub(crate) fn is_checked(&self) -> bool {
        self.has(CHECKED)
    }

    /// Whether a wait needs a timer.
    #[inline]
    pub(crate) fn needs_timer(&self) -> bool {
        self.has_deadline() || self.is_checked()
    }

    /// Calls `f` with each checked token, this one or above it, and what is attached there. No lock is held.
    pub(crate) fn each_check(self: &Arc<Self>, mut f: impl FnMut(&Arc<Token>, Arc<dyn Attachment>)) {
        self.walk_up(|token| {
            if token.has(OWNS_CHECK) {
                let attachments = token.attachments(|attachments, _| attachments.clone());
                attachments.into_iter().for_each(|attachment| f(token, attachment));
            }
            token.is_checked()
        });
    }

    /// Checks what is to be checked, and ends the token whose end came first, unless the deadline did.
    #[cold]
    pub(super) fn run_checks(self: &Arc<Self>, now: Stamp) {
        let mut first: Option<(Check, Arc<Token>)> = None;
        self.each_check(|owner, attachment| {
            let check = attachment.check(now);
            let first_at = first.as_ref().map_or(self.deadline, |(check, _)| check.0);
            if let Some(check) = check.filter(|check| check.0 < first_at) {
                first = Some((check, owner.clone()));
            }
        });
        if let Some(((at, how, cause), owner)) = first {
            owner.end(how, Some(cause), Some(at));
        }
    }
}
