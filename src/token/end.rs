//! Whether a token has ended, which of two ends came first, and the error of an end.

use std::sync::Arc;

use super::{
    BY_TOKEN, CANCELED, CHECKED, DATED, DEADLINE_BELOW, ENDED, EXPIRED, HAS_CAUSE, HAS_ERROR, INHERITED,
    LEVEL, LINK_AFTER, Line, MERGED, OBSERVED, OCCUPIED, OWNS_DEADLINE, PRESET, Token,
};
use crate::error::{BoxError, Error, How, NO_BUDGET, Origin};
use crate::stamp::Stamp;
use crate::sync::{Ordering, fence};
use crate::work::Work;
use crate::{finished, registry, trace};

/// How and when a token ends.
pub(super) struct Ending {
    /// The bits that are set together with `ENDED`.
    pub(super) kind: u16,
    /// The line that called `cancel`. `None` for a scope or guard that was dropped.
    pub(super) caller: Option<Line>,
    /// A descendant whose own deadline is before this ended by that deadline. For a cancel, this is the next nanosecond,
    /// because a deadline at the same time counts as earlier. `UNDATED` if there was no deadline to compare with.
    pub(super) bound: Stamp,
    /// The error, if it cannot be derived from the token alone.
    pub(super) error: Option<Box<Error>>,
}

pub(super) const UNDATED: Stamp = Stamp(0);

impl Ending {
    fn expired(deadline: Stamp) -> Ending {
        Ending { kind: EXPIRED, caller: None, bound: deadline, error: None }
    }
}

// Queries.
impl Token {
    /// Returns whether the state of this token alone tells that it has ended.
    #[inline]
    pub(crate) fn ended(&self) -> bool {
        self.has(ENDED)
    }

    /// Returns whether the token has ended, by itself or with an ancestor.
    pub(crate) fn is_done(self: &Arc<Self>) -> bool {
        let state = self.state();
        if state & (ENDED | CHECKED) != 0 {
            state & ENDED != 0 || self.is_done_checked()
        } else if self.has_deadline() {
            self.is_done_by(Stamp::now())
        } else {
            !self.is_linked() && self.is_done_above()
        }
    }

    #[cold]
    fn is_done_checked(self: &Arc<Self>) -> bool {
        let now = Stamp::now();
        self.run_checks(now);
        self.is_done_by(now)
    }

    /// Like [`is_done`](Self::is_done), with the current time, and without the checks of attachments.
    pub(crate) fn is_done_by(self: &Arc<Self>, now: Stamp) -> bool {
        let is_due = self.deadline <= now;
        self.ended() || if is_due { self.end_if_due(now) } else { self.is_done_above() }
    }

    /// Returns whether an ancestor has ended, up to the nearest linked one.
    fn is_done_above(self: &Arc<Self>) -> bool {
        let (mut token, mut steps) = (self, 0);
        while let (false, Some(parent)) = (token.is_linked(), token.parent()) {
            if parent.ended() {
                return self.end_if_due(UNDATED);
            }
            (token, steps) = (parent, steps + 1);
        }
        if steps > LINK_AFTER {
            self.parent().map(Token::link);
        }
        false
    }

    /// Closes the path from the first end down to this token. A deadline that has passed by `now` is such an end. Returns
    /// false if there is none.
    #[cold]
    pub(super) fn end_if_due(self: &Arc<Self>, now: Stamp) -> bool {
        if now != UNDATED && self.is_checked() {
            self.run_checks(now);
        }
        let mut work = Work::default();
        let ended = self.close_path(now, &mut work);
        work.run();
        ended
    }

    /// Like [`end_if_due`](Self::end_if_due), but defers foreign code to `work`.
    pub(super) fn close_path(self: &Arc<Self>, now: Stamp, work: &mut Work) -> bool {
        let (mut path, owner) = self.path(self.deadline <= now);
        let top = &path[path.len() - 1];
        match owner {
            Some(owner) if !top.ended() || self.deadline < top.bound() => {
                path.truncate(owner + 1);
                path[owner].close_all(&mut Ending::expired(self.deadline), work);
            }
            _ if top.ended() => {}
            _ => return false,
        }
        let Some(mut parent) = path.pop() else { return false };
        let mut bound = parent.bound();
        while let Some(token) = path.pop() {
            let mut ending = token.ending_below(&parent, bound);
            let is_first = token.close_all(&mut ending, work);
            bound = if is_first { ending.bound } else { token.bound() };
            parent = token;
        }
        true
    }

    /// Returns the tokens from this one up to the first that has ended or is linked. If the deadline is due, the path
    /// reaches at least up to the token that owns the deadline, and the index of that token is returned as well.
    pub(crate) fn path(self: &Arc<Self>, due: bool) -> (Vec<Arc<Token>>, Option<usize>) {
        let (mut path, mut owner) = (Vec::with_capacity(16), None);
        let mut next = Some(self.clone());
        while let Some(token) = next {
            if due && owner.is_none() && token.owns_deadline() {
                owner = Some(path.len());
            }
            let is_sought = due && owner.is_none();
            next = match token.parent() {
                _ if token.ended() || (!is_sought && token.is_linked()) => None,
                // The deadline of a merged token may be that of its second parent.
                Some(parent) if is_sought && parent.deadline != token.deadline => token.second(),
                parent => parent.cloned(),
            };
            path.push(token);
        }
        (path, owner)
    }
}

// Ends.
impl Token {
    /// Ends the token at the given time, or now, and returns when all its descendants have ended. Returns false if it had
    /// ended before.
    pub(crate) fn end(self: &Arc<Self>, how: How, cause: Option<BoxError>, at: Option<Stamp>) -> bool {
        let state = self.state();
        let is_dated = state & DEADLINE_BELOW != 0 || self.has_deadline() || cause.is_some();
        let reads_clock = (is_dated || registry::is_installed()) && state & ENDED == 0;
        let at = at.or_else(|| reads_clock.then(Stamp::now));
        if state & ENDED != 0 || at.map_or_else(|| self.is_done_above(), |at| self.is_done_by(at)) {
            self.wait_until_closed();
            return false;
        }
        let (kind, caller) = match how {
            How::Canceled(line) => (CANCELED, Some(line)),
            How::GuardDropped => (0, None),
            How::Token => (BY_TOKEN, None),
            _ => (CANCELED, None),
        };
        let error = cause.map(|cause| {
            let origin = self.origin(how, at.unwrap_or_else(Stamp::now));
            Box::new(Error::new(origin, Some(cause)))
        });
        let bound = at.map_or(UNDATED, |at| Stamp(at.0 + 1));
        let mut ending = Ending { kind, caller, bound, error };
        if state & OCCUPIED == 0 && ending.error.is_none() && !trace::reports_ends() {
            // There are no waiters, no children and no attachments.
            if self.publish(state, &mut ending, 0).is_ok() {
                return true;
            }
        }
        let is_first = self.end_by(ending);
        if !is_first {
            self.wait_until_closed();
        }
        is_first
    }

    /// Closes the token and its descendants, and runs what that defers. Returns false if it had ended.
    #[inline]
    pub(super) fn end_by(self: &Arc<Self>, mut ending: Ending) -> bool {
        let mut work = Work::default();
        let is_first = self.close_all(&mut ending, &mut work);
        work.run();
        is_first
    }

    /// Returns whether another handle, or an attachment, could observe the end.
    #[inline]
    pub(crate) fn is_observed(self: &Arc<Self>) -> bool {
        let is_last = Arc::strong_count(self) == 1;
        // The count is read first, so that the state includes what handles that have been dropped did before.
        fence(Ordering::Acquire);
        !is_last || self.has(OBSERVED)
    }

    /// Returns how the token ends after a parent has ended: by its own deadline, if that was earlier, else with its parent.
    ///
    /// Some tokens store a copy of the inherited error, so that no lookup has to walk up far.
    #[inline]
    pub(super) fn ending_below(&self, parent: &Token, bound: Stamp) -> Ending {
        if self.deadline < bound && self.owns_deadline() {
            return Ending::expired(self.deadline);
        }
        let is_kept = self.level & LEVEL == 0 || self.has(MERGED);
        let error = is_kept.then(|| Box::new(parent.error()));
        Ending { kind: INHERITED, caller: None, bound, error }
    }
}

// Errors.
impl Token {
    /// Returns the error, if the token has ended. Not inlined, so that the error is written once, where it is returned.
    #[inline(never)]
    pub(crate) fn err(self: &Arc<Self>) -> Option<Error> {
        if self.ended() || self.is_done() { Some(self.error()) } else { None }
    }

    /// Returns the error of a token that has ended.
    #[inline(always)]
    pub(crate) fn error(&self) -> Error {
        let mut token = self;
        loop {
            let state = token.state();
            debug_assert!(state & ENDED != 0, "no end, and so no error");
            if state & HAS_ERROR != 0 {
                if let Some(error) = &token.inner.lock().more().error {
                    return error.as_ref().clone();
                }
            }
            match token.parent() {
                Some(parent) if state & INHERITED != 0 => token = parent,
                _ if state & BY_TOKEN == EXPIRED => return token.expiry_error(),
                _ => {
                    let how = match (state & BY_TOKEN, token.canceled_at.get()) {
                        (BY_TOKEN, _) => How::Token,
                        (CANCELED, Some(line)) => How::Canceled(line),
                        _ => How::GuardDropped,
                    };
                    return Error::with_cause(token.origin(how, token.date()), None);
                }
            }
        }
    }

    /// Returns the error that the token has when its own deadline passes.
    #[inline(always)]
    pub(crate) fn expiry_error(&self) -> Error {
        let cause = match self.state() & HAS_CAUSE {
            0 => finished::preset((self.level & !OWNS_DEADLINE) >> PRESET),
            _ => self.inner.lock().more().expiry.clone(),
        };
        Error::with_cause(self.origin(How::Deadline, self.deadline), cause)
    }

    #[inline(always)]
    pub(crate) fn origin(&self, how: How, ended_at: Stamp) -> Origin {
        let budget = if self.owns_deadline() { self.clock } else { NO_BUDGET };
        Origin::new(self.made_at, how, budget, ended_at)
    }

    /// Returns when the token ended. If the time was not recorded, records the current time.
    fn date(&self) -> Stamp {
        match self.key_or_end.load(Ordering::Acquire) {
            0 => self.set_date(Stamp::now()),
            at => Stamp(at),
        }
    }

    /// Records the time of the end, unless one has been recorded, and returns the recorded one.
    pub(super) fn set_date(&self, at: Stamp) -> Stamp {
        match self.key_or_end.compare_exchange(0, at.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => at,
            Err(before) => Stamp(before),
        }
    }

    /// Returns the [`bound`](Ending::bound) of a token that has ended.
    fn bound(&self) -> Stamp {
        if !self.has(DATED) {
            return UNDATED;
        }
        let error = self.error();
        Stamp(error.origin().stamp().0 + u64::from(error.is_canceled()))
    }
}
