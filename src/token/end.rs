//! Whether a token has ended, which of two ends came first, and the error of an end.

use std::sync::Arc;

use tokio::time::Instant;

use super::work::Work;
use super::{
    CALLED, CAUSED, CHECKED, DATED, ENDED, EXPIRED, FOREIGN, INHERITED, KEPT, LEVEL, LONG, Line, MERGED,
    OBSERVED, OCCUPIED, OWNS_DEADLINE, PRESET, TIMED, Token,
};
use crate::error::{BoxError, Cause, Error, How, NO_BUDGET, Origin};
use crate::stamp::Stamp;
use crate::sync::{Ordering, fence};
use crate::{finished, registry};

/// How and when a token ends.
pub(super) struct Ending {
    /// What is set in the state with `ENDED`.
    pub(super) kind: u16,
    /// The line that cancels; none for a scope or a guard that is dropped.
    pub(super) caller: Option<Line>,
    /// What has a deadline before this ended by that. One that passes at the time of a cancel has passed before it.
    /// `UNDATED`: the end came before there was a deadline to compare it with.
    pub(super) bound: Stamp,
    /// The error, if the token alone does not tell.
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
    /// Whether the token itself says that it has ended.
    #[inline]
    pub(crate) fn ended(&self) -> bool {
        self.has(ENDED)
    }

    /// Whether it has ended, by itself or with an ancestor.
    pub(crate) fn is_done(self: &Arc<Self>) -> bool {
        let state = self.state();
        if state & (ENDED | CHECKED) != 0 {
            state & ENDED != 0 || self.end_if_due(Stamp::now())
        } else if self.has_deadline() {
            self.is_done_by(Stamp::now())
        } else {
            !self.is_linked() && self.is_done_above()
        }
    }

    /// [`is_done`](Self::is_done), for what has read the clock.
    pub(crate) fn is_done_at(self: &Arc<Self>, now: Instant) -> bool {
        let reads_clock = self.has_deadline() && !self.has(CHECKED | ENDED);
        if reads_clock { self.is_done_by(Stamp::new(now)) } else { self.is_done() }
    }

    pub(super) fn is_done_by(self: &Arc<Self>, now: Stamp) -> bool {
        let is_due = self.deadline <= now;
        self.ended() || if is_due { self.end_if_due(now) } else { self.is_done_above() }
    }

    /// Walks up to the nearest linked ancestor, whose own state is the whole truth.
    fn is_done_above(self: &Arc<Self>) -> bool {
        let (mut token, mut steps) = (self, 0);
        while let (false, Some(parent)) = (token.is_linked(), token.parent()) {
            if parent.ended() {
                return self.end_if_due(UNDATED);
            }
            (token, steps) = (parent, steps + 1);
        }
        if steps > LONG {
            self.parent().map(Token::link);
        }
        false
    }

    /// Looks for the first end on the path, its deadline included if that has passed by `now`, and closes all
    /// from there down to this token. False: there is none.
    #[cold]
    pub(super) fn end_if_due(self: &Arc<Self>, now: Stamp) -> bool {
        if now != UNDATED && self.is_checked() {
            self.run_checks(now);
        }
        let mut work = Work::default();
        let ended = self.close_path(now, &mut work);
        work.finish();
        ended
    }

    /// [`end_if_due`](Self::end_if_due), which leaves what is not the engine's own to `work`.
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

    /// The tokens from this one up to the first that has ended, or that is linked; if its deadline is due, at
    /// least to the token that owns it, whose place is returned as well.
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
                // A merged token's deadline may come from its second parent.
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
    /// Ends it, and returns once all its descendants have ended; false if it had ended. Without a line, its scope or
    /// guard has been dropped.
    pub(crate) fn cancel(self: &Arc<Self>, caller: Option<Line>, cause: Option<BoxError>) -> bool {
        self.end(caller.map_or(How::GuardDropped, How::Canceled), cause, None)
    }

    /// Ends it at that time, or else now.
    pub(crate) fn end(self: &Arc<Self>, how: How, cause: Option<BoxError>, at: Option<Stamp>) -> bool {
        let state = self.state();
        let is_dated = state & TIMED != 0 || self.has_deadline() || cause.is_some();
        let reads_clock = (is_dated || registry::is_installed()) && state & ENDED == 0;
        let at = at.or_else(|| reads_clock.then(Stamp::now));
        if state & ENDED != 0 || at.map_or_else(|| self.is_done_above(), |at| self.is_done_by(at)) {
            self.wait_until_closed();
            return false;
        }
        let (kind, caller) = match how {
            How::Canceled(line) => (CALLED, Some(line)),
            How::GuardDropped => (0, None),
            How::Token => (FOREIGN, None),
            _ => (CALLED, None),
        };
        let error = cause.map(|cause| {
            let origin = self.origin(how, at.unwrap_or_else(Stamp::now));
            Box::new(Error::new(origin, Some(cause)))
        });
        let bound = at.map_or(UNDATED, |at| Stamp(at.0 + 1));
        let mut ending = Ending { kind, caller, bound, error };
        if state & OCCUPIED == 0 && ending.error.is_none() && !Work::is_observed() {
            // Nothing is left to be done after it.
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

    /// Ends one that is being born with a parent that had ended before.
    pub(super) fn end_with(self: &Arc<Self>, parent: &Token) {
        self.end_by(self.ending_below(parent, UNDATED));
    }

    /// Closes it and all below it, and does what that leaves; false if it had ended.
    #[inline]
    fn end_by(self: &Arc<Self>, mut ending: Ending) -> bool {
        let mut work = Work::default();
        let is_first = self.close_all(&mut ending, &mut work);
        work.finish();
        is_first
    }

    /// Whether there is more than the one handle, or an attachment, that could see an end.
    #[inline]
    pub(crate) fn is_seen(self: &Arc<Self>) -> bool {
        let is_last = Arc::strong_count(self) == 1;
        // The count first: what the handles that have gone did before is seen in the state.
        fence(Ordering::Acquire);
        !is_last || self.has(OBSERVED)
    }

    /// How it ends when a parent has ended: by its own deadline, if that came before. Some tokens keep a copy of an
    /// inherited error, so that no way up to one is long.
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
    /// What its end was, if it has ended. Not inline: an error is written once, where it is returned.
    #[inline(never)]
    pub(crate) fn err(self: &Arc<Self>) -> Option<Error> {
        if self.ended() || self.is_done() { Some(self.error()) } else { None }
    }

    /// What the end was. Only for a token that has ended.
    #[inline(always)]
    pub(crate) fn error(&self) -> Error {
        let mut token = self;
        loop {
            let state = token.state();
            if state & KEPT != 0 {
                if let Some(error) = token.inner.lock().error() {
                    return error.clone();
                }
            }
            match token.parent() {
                Some(parent) if state & INHERITED != 0 => token = parent,
                _ if state & FOREIGN == EXPIRED => {
                    return Error::with_cause(token.expiry_origin(), token.expiry_cause(state));
                }
                _ => {
                    let how = match (state & FOREIGN, token.canceled_at.get()) {
                        (FOREIGN, _) => How::Token,
                        (CALLED, Some(line)) => How::Canceled(line),
                        _ => How::GuardDropped,
                    };
                    return Error::with_cause(token.origin(how, token.date()), None);
                }
            }
        }
    }

    /// The cause that its own deadline's end has.
    fn expiry_cause(&self, state: u16) -> Option<Cause> {
        match state & CAUSED != 0 {
            true => self.inner.lock().more().expiry.clone(),
            false => finished::preset((self.level & !OWNS_DEADLINE) >> PRESET),
        }
    }

    #[inline(always)]
    pub(crate) fn expiry_origin(&self) -> Origin {
        self.origin(How::Deadline, self.deadline)
    }

    #[inline(always)]
    fn origin(&self, how: How, ended_at: Stamp) -> Origin {
        let budget = if self.owns_deadline() { self.clock } else { NO_BUDGET };
        Origin::new(self.made_at, how, budget, ended_at)
    }

    /// When it ended; if that was of no interest until now, now.
    fn date(&self) -> Stamp {
        match self.word.load(Ordering::Acquire) {
            0 => self.set_date(Stamp::now()),
            at => Stamp(at),
        }
    }

    /// Sets the time of its end, once: 0 stands for none.
    pub(super) fn set_date(&self, at: Stamp) -> Stamp {
        match self.word.compare_exchange(0, at.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => at,
            Err(before) => Stamp(before),
        }
    }

    /// The [`bound`](Ending::bound) of its end. Only for a token that has ended.
    fn bound(&self) -> Stamp {
        if !self.has(DATED) {
            return UNDATED;
        }
        let error = self.error();
        Stamp(error.origin().stamp().0 + u64::from(error.is_canceled()))
    }
}
