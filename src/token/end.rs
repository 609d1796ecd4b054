//! Whether a token has ended, which of two ends came first, and the error of an end.

use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use super::sync::{Ordering, fence};
use super::work::Work;
use super::{
    BRIDGED, CALLED, DATED, ENDED, EXPIRED, FOREIGN, INHERITED, KEPT, LEVEL, LONG, MERGED, NoProgress,
    PULSED, Stamp, TIMED, Token,
};
use crate::error::{BoxError, Error, How, NO_BUDGET, Origin};
use crate::trace::{self, shielded};
use crate::{finished, registry};

/// The line that cancels; none for a scope or a guard that is dropped.
pub(crate) type Caller = Option<&'static Location<'static>>;

/// How and when a token ends.
#[derive(Clone, Copy)]
pub(super) struct Ending {
    /// What is set in the state with `ENDED`.
    pub(super) kind: u16,
    pub(super) caller: Caller,
    /// What has a deadline before this ended by that. One that passes at the time of a cancel has passed before it.
    /// `UNDATED`: the end came before there was a deadline to compare it with.
    pub(super) bound: Stamp,
}

pub(super) const UNDATED: Stamp = Stamp(0);

impl Ending {
    fn canceled(kind: u16, caller: Caller, at: Option<Stamp>) -> Ending {
        let bound = at.map_or(UNDATED, |at| at.bound(true));
        Ending { kind, caller, bound }
    }

    fn expired(deadline: Stamp) -> Ending {
        Ending { kind: EXPIRED, caller: None, bound: deadline }
    }

    /// Whether tracing is told of it: not of a scope that is merely dropped, nor of what ends with its parent.
    pub(super) fn is_reported(&self) -> bool {
        !matches!(self.kind, 0 | INHERITED)
    }

    #[inline]
    pub(super) fn is_cancel(&self) -> bool {
        !matches!(self.kind, INHERITED | EXPIRED)
    }

    /// What the state gains.
    #[inline]
    pub(super) fn bits(&self) -> u16 {
        ENDED | self.kind | if self.bound == UNDATED { 0 } else { DATED }
    }
}

impl Stamp {
    /// The [`bound`](Ending::bound) of an end at this time.
    fn bound(self, is_canceled: bool) -> Stamp {
        Stamp(self.0 + u64::from(is_canceled))
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
    #[inline]
    pub(crate) fn is_done(self: &Arc<Self>) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & ENDED != 0 {
            true
        } else if state & PULSED != 0 {
            self.is_over_by_pulse()
        } else if self.has_deadline() {
            self.is_over(Stamp::now())
        } else {
            !self.is_linked() && self.is_over_above()
        }
    }

    /// [`is_done`](Self::is_done), for what has read the clock.
    #[inline]
    pub(crate) fn is_done_at(self: &Arc<Self>, now: Instant) -> bool {
        let reads_clock = self.has_deadline() && !self.is_pulsed() && !self.ended();
        if reads_clock { self.is_over(Stamp::new(now)) } else { self.is_done() }
    }

    #[inline]
    pub(super) fn is_over(self: &Arc<Self>, now: Stamp) -> bool {
        self.ended() || if self.deadline <= now { self.settle(now) } else { self.is_over_above() }
    }

    /// Walks up to the nearest linked ancestor, whose own state is the whole truth.
    #[inline]
    fn is_over_above(self: &Arc<Self>) -> bool {
        let (mut token, mut steps) = (self, 0);
        while let (false, Some(parent)) = (token.is_linked(), &token.parent) {
            if parent.ended() {
                return self.settle(UNDATED);
            }
            (token, steps) = (parent, steps + 1);
        }
        if steps > LONG {
            self.link_parent();
        }
        false
    }

    /// Looks for the first end on the path, its deadline included if that has passed by `now`, and closes all
    /// from there down to this token. False: there is none.
    #[cold]
    pub(super) fn settle(self: &Arc<Self>, now: Stamp) -> bool {
        if now != UNDATED && self.is_pulsed() {
            self.end_by_pulse(now);
        }
        let mut work = Work::new();
        let ended = self.close_path(now, &mut work);
        work.finish();
        ended
    }

    /// [`settle`](Self::settle), which leaves what is not the engine's own to `work`.
    pub(super) fn close_path(self: &Arc<Self>, now: Stamp, work: &mut Work) -> bool {
        let (mut path, owner) = self.path(self.deadline <= now);
        let top = path.len() - 1;
        let ended_above = path[top].ended();
        match owner {
            Some(owner) if !ended_above || self.deadline < path[top].bound() => {
                path.truncate(owner + 1);
                path[owner].close_all(&mut Ending::expired(self.deadline), None, work);
            }
            _ if ended_above => {}
            _ => return false,
        }
        let Some(mut parent) = path.pop() else { return false };
        let mut bound = parent.bound();
        while let Some(token) = path.pop() {
            let mut ending = token.ending_below(bound);
            let error = token.error_below(&parent, &ending);
            let is_first = token.close_all(&mut ending, error, work);
            bound = if is_first { ending.bound } else { token.bound() };
            parent = token;
        }
        true
    }

    /// The tokens from this one up to the first that has ended, or that is linked; if its deadline is due, at
    /// least to the token that owns it, whose place is returned as well.
    fn path(self: &Arc<Self>, due: bool) -> (Vec<Cow<'_, Arc<Token>>>, Option<usize>) {
        let (mut path, mut owner) = (Vec::with_capacity(16), None);
        let mut next = Some(Cow::Borrowed(self));
        while let Some(token) = next {
            if due && owner.is_none() && token.owns_deadline() {
                owner = Some(path.len());
            }
            let is_sought = due && owner.is_none();
            let is_last = token.ended() || (!is_sought && token.is_linked());
            next = match &token {
                _ if is_last => None,
                token if is_sought && token.is_forked() => token.second().map(Cow::Owned),
                Cow::Borrowed(token) => token.parent.as_ref().map(Cow::Borrowed),
                Cow::Owned(token) => token.parent.clone().map(Cow::Owned),
            };
            path.push(token);
        }
        (path, owner)
    }

    /// Whether it is a merged token whose deadline comes from its second parent.
    fn is_forked(&self) -> bool {
        self.has(MERGED) && self.parent.as_ref().is_some_and(|parent| parent.deadline != self.deadline)
    }

    /// Returns the token whose own deadline this one's is; none if there is no deadline.
    pub(crate) fn deadline_owner(self: &Arc<Self>) -> Option<Arc<Token>> {
        let (mut path, owner) = self.path(true);
        Some(path.swap_remove(owner?).into_owned())
    }

    /// Ends one that is being born with a parent that had ended before.
    pub(super) fn end_with(self: &Arc<Self>, parent: &Token) {
        let ending = Ending { kind: INHERITED, caller: None, bound: parent.bound() };
        self.finish_end(ending, self.error_below(parent, &ending));
    }
}

// Ends.
impl Token {
    /// Ends it, and returns once all its descendants have ended; false if it had ended.
    pub(crate) fn cancel(self: &Arc<Self>, caller: Caller, cause: Option<BoxError>) -> bool {
        self.end_by(caller.map_or(0, |_| CALLED), caller, cause, None)
    }

    /// Ends it as a foreign token says.
    pub(super) fn end_from_outside(self: &Arc<Self>) {
        self.end_by(FOREIGN, None, None, None);
    }

    /// Ends it at that time, or else now.
    pub(super) fn end_by(
        self: &Arc<Self>,
        kind: u16,
        caller: Caller,
        cause: Option<BoxError>,
        at: Option<Stamp>,
    ) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let is_watched = registry::is_installed();
        let is_dated = state & TIMED != 0 || self.has_deadline() || cause.is_some() || is_watched;
        let at = at.or_else(|| (is_dated && state & ENDED == 0).then(Stamp::now));
        if state & ENDED != 0 || at.map_or_else(|| self.is_over_above(), |at| self.is_over(at)) {
            self.wait_until_closed();
            return false;
        }
        let error = cause.map(|cause| {
            let ended_at = at.unwrap_or_else(Stamp::now);
            let is_idle = cause.is::<NoProgress>();
            let how = if is_idle { How::Idle } else { How::canceled(kind, caller) };
            Box::new(Error::new(self.origin(how, ended_at), Some(cause)))
        });
        let mut ending = Ending::canceled(kind, caller, at);
        if error.is_none() && !is_watched && !trace::listens() {
            if let Some(waker) = self.close_simple(&mut ending) {
                if let Some(waker) = waker {
                    shielded(|| waker.wake());
                }
                return true;
            }
        }
        let first = self.finish_end(ending, error);
        if !first {
            self.wait_until_closed();
        }
        first
    }

    /// Closes it and all below it, and does what that leaves; false if it had ended.
    #[inline(never)]
    fn finish_end(self: &Arc<Self>, mut ending: Ending, error: Option<Box<Error>>) -> bool {
        let mut work = Work::new();
        let first = self.close_all(&mut ending, error, &mut work);
        work.finish();
        first
    }

    /// Ends it as its scope or guard is dropped. With no handle left but that one and no bridge, there is
    /// nothing that could see an end, and none is made.
    #[inline]
    pub(crate) fn abandon(self: &Arc<Self>) {
        if self.is_seen() {
            self.cancel(None, None);
        }
    }

    /// Whether there is more than the one handle, or a bridge, that could see an end.
    #[inline]
    pub(crate) fn is_seen(self: &Arc<Self>) -> bool {
        let is_last = Arc::strong_count(self) == 1;
        // The count first: what the handles that have gone did before is seen in the state.
        fence(Ordering::Acquire);
        !is_last || self.has(BRIDGED)
    }

    /// How it ends when a parent has ended: by its own deadline, if that came before.
    #[inline]
    pub(super) fn ending_below(&self, bound: Stamp) -> Ending {
        match self.deadline < bound && self.owns_deadline() {
            true => Ending::expired(self.deadline),
            false => Ending { kind: INHERITED, caller: None, bound },
        }
    }

    /// The copy of an inherited error that some tokens keep, so that no way up to one is long.
    #[inline]
    pub(super) fn error_below(&self, parent: &Token, ending: &Ending) -> Option<Box<Error>> {
        let is_kept = ending.kind == INHERITED && (self.level & LEVEL == 0 || self.has(MERGED));
        is_kept.then(|| Box::new(parent.error()))
    }

    /// Whether a merged token, which an end is about to reach, has ended before by its other path.
    #[inline]
    pub(super) fn ended_before(&self, bound: Stamp) -> bool {
        self.deadline < bound && self.has(MERGED)
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
            let state = token.state.load(Ordering::Acquire);
            if state & KEPT != 0 {
                if let Some(error) = token.inner.lock().error() {
                    return error.clone();
                }
            }
            match &token.parent {
                Some(parent) if state & INHERITED != 0 => token = parent,
                _ => {
                    let preset = if state & FOREIGN == EXPIRED { token.preset() } else { 0 };
                    return Error::with_cause(token.own_origin(state), finished::preset(preset));
                }
            }
        }
    }

    #[inline(always)]
    fn own_origin(&self, state: u16) -> Origin {
        let kind = state & FOREIGN;
        if kind == EXPIRED {
            return self.expiry_origin();
        }
        self.origin(How::canceled(kind, self.canceled_at.get().copied()), self.date())
    }

    #[inline(always)]
    pub(super) fn expiry_origin(&self) -> Origin {
        self.origin(How::Deadline, self.deadline)
    }

    #[inline(always)]
    fn origin(&self, how: How, ended_at: Stamp) -> Origin {
        let budget = if self.owns_deadline() { self.clock } else { NO_BUDGET };
        Origin::new(self.made_at, how, budget, ended_at)
    }

    /// When it ended; if that was of no interest until now, now.
    #[inline]
    fn date(&self) -> Stamp {
        match self.word.load(Ordering::Acquire) {
            0 => self.set_date(Stamp::now()),
            at => Stamp(at),
        }
    }

    /// Notes when it is about to end, if that can be compared.
    #[inline]
    pub(super) fn prepare_date(&self, state: u16, ending: &mut Ending) {
        if state & TIMED != 0 && ending.bound == UNDATED {
            ending.bound = Stamp::now().bound(true);
        }
        if ending.bound != UNDATED {
            self.set_date(Stamp(ending.bound.0 - 1));
        }
    }

    /// Sets the time of its end, once: 0 stands for none.
    fn set_date(&self, at: Stamp) -> Stamp {
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
        error.origin().stamp().bound(error.is_canceled())
    }
}

impl How {
    #[inline(always)]
    fn canceled(kind: u16, caller: Caller) -> How {
        if kind == FOREIGN {
            return How::Token;
        }
        caller.filter(|_| kind == CALLED).map_or(How::GuardDropped, How::Canceled)
    }
}
