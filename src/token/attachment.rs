//! [`Attachment`]s: objects that modules above the engine attach to a token, to be notified of its end, or to end it.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use super::{CHECKED, LEVEL, MERGED, OBSERVED, OCCUPIED, OWNS_CHECK, Token};
use crate::error::{BoxError, How};
use crate::stamp::Stamp;
use crate::sync::Ordering;

/// An object that is stored in a token until the token is dropped.
pub(crate) trait Attachment: Send + Sync + 'static {
    /// Called once, after the token has ended, while no lock is held.
    fn ended(&self) {}

    /// Returns when and why the token has to end, if that time is not after `now`.
    ///
    /// Called by each query of the token and of its descendants, if it was attached with [`Token::attach_check`].
    fn check(&self, _now: Stamp) -> Option<Check> {
        None
    }

    /// Returns the object, to be downcast.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// When an attachment ends a token, how, and with which cause.
pub(crate) type Check = (Stamp, How, BoxError);

impl Token {
    /// Attaches an object that is checked by queries. Called before the token is shared.
    pub(crate) fn attach_check(&self, attachment: Arc<dyn Attachment>) {
        self.attachments(|attachments, _| attachments.push(attachment));
        self.state.fetch_or(CHECKED | OWNS_CHECK, Ordering::Relaxed);
    }

    /// Calls `f` with the attachments, and with whether the token has ended. `f` runs under the lock, so it must not drop
    /// an attachment.
    pub(crate) fn attachments<R>(&self, f: impl FnOnce(&mut Vec<Arc<dyn Attachment>>, bool) -> R) -> R {
        let mut inner = self.inner.lock();
        let ended = self.set(OCCUPIED);
        f(&mut inner.more().attachments, ended)
    }

    /// Requires that the token ends when its scope is dropped, even if no other handle is left.
    pub(crate) fn set_observed(&self) {
        self.state.fetch_or(OBSERVED, Ordering::AcqRel);
    }

    /// Returns whether queries have to check an attachment of this token or of an ancestor.
    #[inline]
    pub(crate) fn is_checked(&self) -> bool {
        self.has(CHECKED)
    }

    /// Calls `f` with each attachment that has to be checked, and its token, while no lock is held.
    pub(crate) fn each_check(self: &Arc<Self>, mut f: impl FnMut(&Arc<Token>, Arc<dyn Attachment>)) {
        let (mut visited, mut has_branched) = (BTreeSet::new(), false);
        let (mut next, mut pending) = (Some(self.clone()), Vec::new());
        while let Some(token) = next.take().or_else(|| pending.pop()) {
            let stop = token.is_checked().then(|| token.nearest_stop());
            // Only above a merged token, several paths can lead to the same one.
            let is_new = |stop: &Arc<Token>| !has_branched || visited.insert(Arc::as_ptr(stop));
            let Some(stop) = stop.filter(is_new) else { continue };
            if stop.has(OWNS_CHECK) {
                let attachments = stop.attachments(|attachments, _| attachments.clone());
                attachments.into_iter().for_each(|attachment| f(&stop, attachment));
            }
            has_branched |= stop.has(MERGED);
            pending.extend(stop.second());
            next = stop.parent().cloned();
        }
    }

    /// Returns the nearest token, this one or an ancestor, that owns a check or has two checked parents.
    ///
    /// Tokens at certain levels store the one above them, so that the cost does not grow with the length of the path.
    #[cold]
    pub(super) fn nearest_stop(self: &Arc<Self>) -> Arc<Token> {
        let mut token = self;
        while let (false, Some(parent)) = (token.has(OWNS_CHECK), token.parent()) {
            if token.level & LEVEL == 0 || token.has(MERGED) {
                let stop = token.inner.lock().more().stop.as_ref().and_then(Weak::upgrade);
                return stop.unwrap_or_else(|| token.clone());
            }
            token = parent;
        }
        token.clone()
    }

    /// Runs the checks, and ends the token with the earliest end, unless the deadline is earlier.
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
