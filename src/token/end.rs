//! Whether a token has ended, which of two ends came first, and the error of an end.

use std::panic::Location;
use std::sync::Arc;

use tokio::time::Instant;

use super::sync::{Ordering, fence, now};
use super::work::Work;
use super::{
    BRIDGED, CALLED, CAUSED, DATED, ENDED, EXPIRED, FOREIGN, INHERITED, KEPT, LEVEL, LONG, MERGED,
    NoProgress, PULSED, Stamp, TIMED, Token,
};
use crate::error::{BoxError, Error, How, Origin};
use crate::{finished, registry, trace};

/// The line that cancels; none for a scope or a guard that is dropped.
pub(crate) type Caller = Option<&'static Location<'static>>;

/// How a token is to be closed.
pub(super) struct Ending {
    /// What is set in the state with `ENDED`.
    pub(super) kind: u16,
    pub(super) caller: Caller,
    /// When, if that is known.
    pub(super) at: Option<Stamp>,
    is_canceled: bool,
    /// The error, where the token alone does not tell.
    pub(super) error: Option<Error>,
}

/// When an end was, if it has a date, and whether it was a cancel, not a deadline.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) at: Option<Stamp>,
    canceled: bool,
}

impl End {
    /// Whether a deadline came before: one that passes at the time of a cancel has passed before it. An end
    /// without a date came before there was a deadline to compare it with.
    fn is_after(self, deadline: Stamp) -> bool {
        self.at.is_some_and(|at| deadline < at || (deadline == at && self.canceled))
    }
}

impl Ending {
    pub(super) fn own(kind: u16, caller: Caller, at: Option<Stamp>, error: Option<Error>) -> Ending {
        Ending { kind, caller, at, is_canceled: kind != EXPIRED, error }
    }

    pub(super) fn end(&self) -> End {
        End { at: self.at, canceled: self.is_canceled }
    }

    pub(super) fn is_own(&self) -> bool {
        self.kind != INHERITED
    }

    /// Whether tracing is told of it: not of a scope that is merely dropped, nor of what ends with its parent.
    pub(super) fn is_reported(&self) -> bool {
        self.is_own() && self.kind != 0
    }

    /// What the state gains.
    pub(super) fn bits(&self) -> u16 {
        ENDED | self.kind | if self.at.is_some() { DATED } else { 0 }
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
        self.ended() || if self.deadline <= now { self.settle(Some(now)) } else { self.is_over_above() }
    }

    /// Walks up to the nearest linked ancestor, whose own state is the whole truth.
    #[inline]
    fn is_over_above(self: &Arc<Self>) -> bool {
        let (mut token, mut steps) = (self, 0);
        while let (false, Some(parent)) = (token.is_linked(), &token.parent) {
            if parent.ended() {
                return self.settle(None);
            }
            token = parent;
            steps += 1;
        }
        if steps > LONG {
            self.link_parent();
        }
        false
    }

    /// Looks for the first end on the path, its deadline included if that has passed by `now`, and closes all
    /// from there down to this token. False: there is none.
    #[cold]
    pub(super) fn settle(self: &Arc<Self>, now: Option<Stamp>) -> bool {
        if let Some(now) = now.filter(|_| self.is_pulsed()) {
            self.end_by_pulse(now);
        }
        let mut work = Work::new();
        let ended = self.close_path(now, &mut work);
        work.finish();
        ended
    }

    /// [`settle`](Self::settle), which leaves what is not the engine's own to `work`.
    pub(super) fn close_path(self: &Arc<Self>, now: Option<Stamp>, work: &mut Work) -> bool {
        let (path, owner) = self.path(now.is_some_and(|now| self.deadline <= now));
        let top = path.len() - 1;
        let ended_above = path[top].ended();
        let first = match owner {
            Some(owner) if !ended_above || path[top].end().is_after(self.deadline) => owner,
            _ if ended_above => top,
            _ => return false,
        };
        if !path[first].ended() {
            path[first].close_all(path[first].expiring(), work);
        }
        let mut end = path[first].end();
        for at in (0..first).rev() {
            if !path[at].ended() {
                let ending = path[at].ending_below(&path[at + 1], end);
                end = ending.end();
                path[at].close_all(ending, work);
            }
        }
        true
    }

    /// The tokens from this one up to the first that has ended, or that is linked; if its deadline is due, at
    /// least to the token that owns it, whose place is returned as well.
    fn path(self: &Arc<Self>, due: bool) -> (Vec<Arc<Token>>, Option<usize>) {
        let (mut path, mut owner) = (vec![self.clone()], None);
        loop {
            let token = &path[path.len() - 1];
            if due && owner.is_none() && token.owns_deadline() {
                owner = Some(path.len() - 1);
            }
            let is_sought = due && owner.is_none();
            if token.ended() || (!is_sought && token.is_linked()) {
                return (path, owner);
            }
            match token.parent_towards(is_sought.then_some(self.deadline)) {
                Some(parent) => path.push(parent),
                None => return (path, owner),
            }
        }
    }

    /// Returns the token whose own deadline this one's is; none if there is no deadline.
    pub(crate) fn deadline_owner(self: &Arc<Self>) -> Option<Arc<Token>> {
        let (mut path, owner) = self.path(true);
        Some(path.swap_remove(owner?))
    }

    /// Its parent; of two the one that a deadline comes from.
    fn parent_towards(&self, deadline: Option<Stamp>) -> Option<Arc<Token>> {
        let parent = self.parent.as_ref();
        match deadline {
            Some(deadline)
                if self.has(MERGED) && parent.is_some_and(|parent| parent.deadline != deadline) =>
            {
                self.second()
            }
            _ => parent.cloned(),
        }
    }

    /// Ends one that is being born with a parent that had ended before.
    pub(super) fn end_with(self: &Arc<Self>, parent: &Token) {
        let mut work = Work::new();
        self.close_all(self.inheriting(parent, parent.end()), &mut work);
        work.finish();
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
            let ended_at = at.map_or_else(now, Stamp::instant);
            let is_idle = cause.is::<NoProgress>();
            let how = if is_idle { How::Idle } else { How::by(kind, caller) };
            Error::new(self.origin(how, ended_at), Some(cause))
        });
        let mut ending = Ending::own(kind, caller, at, error);
        let is_told = trace::listens() || is_watched;
        if !is_told && (self.close_unseen(&mut ending) || self.close_deserted(&mut ending)) {
            return true;
        }
        let mut work = Work::new();
        let first = self.close_all(ending, &mut work);
        work.finish();
        if !first {
            self.wait_until_closed();
        }
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

    fn expiring(&self) -> Ending {
        Ending::own(EXPIRED, None, Some(self.deadline), None)
    }

    /// How it ends when a parent has ended: by its own deadline, if that came before.
    pub(super) fn ending_below(&self, parent: &Token, end: End) -> Ending {
        match self.owns_deadline() && end.is_after(self.deadline) {
            true => self.expiring(),
            false => self.inheriting(parent, end),
        }
    }

    /// Whether it ends with its parent, by no more than a bit in its state.
    #[inline]
    pub(super) fn inherits_plainly(&self, end: End) -> bool {
        let expires = self.owns_deadline() && end.is_after(self.deadline);
        !(expires || self.copies_error() || self.has(CAUSED))
    }

    /// Whether it keeps a copy of an inherited error, so that no way up to one is long.
    fn copies_error(&self) -> bool {
        self.level & LEVEL == 0 || self.has(MERGED)
    }

    fn inheriting(&self, parent: &Token, end: End) -> Ending {
        let error = self.copies_error().then(|| parent.error());
        Ending { kind: INHERITED, caller: None, at: end.at, is_canceled: end.canceled, error }
    }

    /// Whether a merged token, which an end is about to reach, has ended before by its other path.
    pub(super) fn ended_before(&self, end: End) -> bool {
        self.has(MERGED) && end.is_after(self.deadline)
    }
}

// Errors.
impl Token {
    /// What the end was. Only for a token that has ended.
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

    fn own_origin(&self, state: u16) -> Origin {
        match state & FOREIGN {
            EXPIRED => self.expiry_origin(),
            kind => self.origin(How::by(kind, self.canceled_at.get().copied()), self.date().instant()),
        }
    }

    pub(super) fn expiry_origin(&self) -> Origin {
        self.origin(How::Deadline, self.deadline.instant())
    }

    fn origin(&self, how: How, ended_at: tokio::time::Instant) -> Origin {
        Origin { made_at: self.made_at, how, budget: self.budget(), ended_at }
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
        let at = if at.0 == 0 { 1 } else { at.0 };
        match self.word.compare_exchange(0, at, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Stamp(at),
            Err(before) => Stamp(before),
        }
    }

    /// The end of a token that has ended.
    fn end(&self) -> End {
        let error = self.error();
        let at = self.has(DATED).then(|| Stamp::new(error.origin().ended_at()));
        End { at, canceled: error.is_canceled() }
    }
}

impl How {
    fn by(kind: u16, caller: Caller) -> How {
        match (kind, caller) {
            (EXPIRED, _) => How::Deadline,
            (FOREIGN, _) => How::Token,
            (CALLED, Some(caller)) => How::Canceled(caller),
            _ => How::GuardDropped,
        }
    }
}
