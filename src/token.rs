//! The hierarchical cancellation token: the only file with atomics and locks.
//!
//! # The tree
//!
//! A [`Token`] points at its parent (a merged one at two) and is made without touching it: one
//! allocation, no lock. *Has it ended?* is a walk up of atomic loads. A token enters its parent's list
//! of members, and its parents theirs, only when something first waits on it ([`Token::link`]); the
//! list holds it weakly. A member is a child or a waiter; one of them sits in the token itself, more in
//! a [`Slab`].
//!
//! So that the walk stays short in a deep tree, every [`STRIDE`]th level is an *anchor*, linked at
//! birth (and so is a merged token). The walk stops there, as ends are *pushed* to anchors. While a
//! push is under way anywhere above an anchor, [`PUSHES`] is not zero, and the walk goes on instead.
//!
//! # Ending
//!
//! [`Token::close`] ends one token, under its lock: it publishes what the end was, takes the members
//! out, and sets `ENDED` in `state`. [`Token::finish`] then closes all linked descendants, with a
//! worklist, and only when all are closed does it wake anybody. One case needs no lock: a guard
//! dropped while `state` is still 0 (no child, no member ever) moves it from 0 to `ENDED`.
//!
//! # Why it is right
//!
//! 1. *Ended is told from the token's own `state` alone.* Who finds an ended ancestor or a passed
//!    deadline first closes every token on the path, from the top down ([`Token::settle`]), and then
//!    answers. So the first to close decides for good, and no two answers differ.
//! 2. *No member is lost.* Entering takes the lock and sets `OCCUPIED` in the same word that ends it:
//!    either the end is seen, or whoever ends it must take the lock, and finds the member.
//! 3. *No end is missed.* A token is linked top down, each step under the parent's lock, which refuses
//!    if the parent has ended. From then on every ancestor's end reaches it.
//! 4. *An ancestor's end is seen at once.* Below an anchor the walk reads every ancestor. At an anchor:
//!    before `ENDED` is set on a token with an anchor below it (`DEEP`, set at the anchor's birth in
//!    the same word, or the birth sees the end), `PUSHES` goes up, and it goes down when the anchor has
//!    been closed. A reader that knows of the end therefore reads `PUSHES` above zero and walks on, or
//!    reads zero, synchronises with the decrement, and finds the anchor closed when it looks again.
//! 5. *The earliest end wins.* Ends carry their time. A child whose own deadline is not later than the
//!    end that reaches it has ended by that deadline.
//!
//! # Locks
//!
//! One lock per token, and never two at once. `linked` and `seat` of a child are written under its
//! parent's lock. Wakers are cloned before and woken and dropped after; so is everything else that is
//! not ours.

use std::collections::HashSet;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::runtime::{self, Handle};
use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::{BoxError, Error, How, Origin};
use crate::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Mutex, Ordering, now};
use crate::trace;

/// Every so many levels is an anchor: what a walk costs at most, against what a deep chain costs.
const STRIDE: u8 = 8;
/// More room than this is not kept by an empty list.
const ROOMY: usize = 64;

/// Has, or had, members: whoever ends it takes the lock.
const OCCUPIED: u8 = 1;
/// Has, or had, children.
const PARENT: u8 = 2;
/// Has an anchor below it.
const DEEP: u8 = 4;
const ENDED: u8 = 8;
/// Some of its waiters' wakers have been taken, and must be put back.
const ROUSED: u8 = 16;

/// Ends that have been published but have not yet reached every anchor below them.
#[cfg(not(tokio_ctx_loom))]
static PUSHES: AtomicUsize = AtomicUsize::new(0);
#[cfg(tokio_ctx_loom)]
loom::lazy_static! {
    static ref PUSHES: AtomicUsize = AtomicUsize::new(0);
}

pub(crate) struct Token {
    state: AtomicU8,
    /// Whether it is in its parent's list; a root is.
    linked: AtomicBool,
    /// Whether a waiter carries, or carried, a timer for this token's own deadline.
    timed: AtomicBool,
    /// Levels down from the last anchor; 0: this is one, or a root.
    level: u8,
    /// Whether `deadline` is its own, not an ancestor's.
    owns_deadline: bool,
    /// Whether a `CancellationToken` can end it or an ancestor.
    foreign: bool,
    /// Its place in the parent's list.
    seat: AtomicU32,
    parent: Option<Arc<Token>>,
    /// The earliest deadline on the path.
    deadline: Option<Instant>,
    /// With a deadline of its own the budget in nanoseconds, else what `trace` notes of its birth.
    clock: u64,
    made_at: &'static Location<'static>,
    /// What the end was, for everyone who is told of it. Made when the first one is.
    told: OnceLock<Error>,
    rare: Option<Box<Rare>>,
    inner: Mutex<Inner>,
}

/// What few tokens have.
#[derive(Default)]
struct Rare {
    /// The error of a deadline that was given a cause.
    expiry: Option<Error>,
    second: Option<Second>,
    token: Option<CancellationToken>,
}

/// The other parent of a merged token.
struct Second {
    parent: Arc<Token>,
    seat: AtomicU32,
}

enum Inner {
    Open(Members),
    /// By what it ended itself, and when, unless `told` says it, or a guard's quiet drop ended it.
    Closed(Option<(How, Option<Instant>)>),
}

#[derive(Default)]
struct Members {
    first: Option<Member>,
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    members: Slab<Member>,
    alarm: Option<Alarm>,
    bridge: Option<Arc<Bridge>>,
}

enum Member {
    Waiter(Waker),
    Child(Weak<Token>),
}

/// A place in a list of members: 0 none, 1 the one in the token, from 2 on those in the slab.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seat(u32);

/// A deadline to be.
pub(crate) struct Limit {
    pub(crate) at: Instant,
    pub(crate) now: Instant,
    pub(crate) cause: Option<BoxError>,
}

/// How a token is to end: by itself, or as it was told.
enum End {
    Own(How, Instant),
    Told(Error),
}

/// What closing a token leaves to be done.
struct Closed {
    members: Members,
    pushing: bool,
}

// Making one.
impl Token {
    #[inline]
    pub(crate) fn new(
        parent: Option<&Arc<Token>>,
        limit: Option<Limit>,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let inherited = parent.and_then(|parent| parent.deadline);
        match limit {
            Some(limit) if inherited.is_none_or(|inherited| limit.at < inherited) => {
                Token::with_limit(parent, limit, made_at)
            }
            _ => Token::plain(parent, made_at).born(),
        }
    }

    fn with_limit(
        parent: Option<&Arc<Token>>,
        limit: Limit,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let Limit { at, now, cause } = limit;
        let budget = at.saturating_duration_since(now);
        let mut token = Token::plain(parent, made_at);
        token.deadline = Some(at);
        token.owns_deadline = true;
        token.clock = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        if let Some(cause) = cause {
            let expiry = Error::new(token.origin(How::Deadline, at), Some(cause));
            token.rare = Some(Box::new(Rare { expiry: Some(expiry), ..Rare::default() }));
        }
        let token = token.born();
        // An end that came before its birth comes before any deadline.
        match parent {
            Some(parent) if parent.is_over(now) => token.finish(End::Told(parent.error())),
            _ if at <= now => token.settle(now),
            _ => false,
        };
        token
    }

    /// A child of both that ends when either does.
    pub(crate) fn merge(
        parent: &Arc<Token>,
        other: &Arc<Token>,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let mut token = Token::plain(Some(parent), made_at);
        token.deadline = match (parent.deadline, other.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        token.level = 0;
        token.foreign |= other.foreign;
        other.note(PARENT);
        let second = Second { parent: other.clone(), seat: AtomicU32::new(0) };
        token.rare = Some(Box::new(Rare { second: Some(second), ..Rare::default() }));
        token.born()
    }

    /// A child that also ends when `token` is cancelled.
    pub(crate) fn foreign(
        parent: Option<&Arc<Token>>,
        token: CancellationToken,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let rare = Rare { token: Some(token), ..Rare::default() };
        let mut token = Token::plain(parent, made_at);
        token.foreign = true;
        token.rare = Some(Box::new(rare));
        token.born()
    }

    #[inline]
    fn plain(parent: Option<&Arc<Token>>, made_at: &'static Location<'static>) -> Token {
        if let Some(parent) = parent {
            parent.note(PARENT);
        }
        Token {
            state: AtomicU8::new(0),
            linked: AtomicBool::new(parent.is_none()),
            timed: AtomicBool::new(false),
            level: parent.map_or(0, |parent| (parent.level + 1) % STRIDE),
            owns_deadline: false,
            foreign: parent.is_some_and(|parent| parent.foreign),
            seat: AtomicU32::new(0),
            parent: parent.cloned(),
            deadline: parent.and_then(|parent| parent.deadline),
            clock: trace::birth(),
            made_at,
            told: OnceLock::new(),
            rare: None,
            inner: Mutex::new(Inner::Open(Members::default())),
        }
    }

    #[inline]
    fn born(self) -> Arc<Self> {
        let token = Arc::new(self);
        if token.is_anchor() {
            token.drop_anchor();
        }
        token
    }

    #[cold]
    fn drop_anchor(self: &Arc<Self>) {
        for parent in self.parents() {
            let mut above = parent;
            while !above.note(DEEP) && !above.is_anchor() {
                let Some(parent) = &above.parent else { break };
                above = parent;
            }
        }
        self.link();
        if let Some(second) = self.second() {
            let _admitted = second.parent.link() && second.parent.admit(self, &second.seat);
        }
        // Whoever had ended before it was told of the anchor does not push to it.
        if self.parents().any(|parent| parent.ended() || !parent.none_above_ended()) {
            self.settle(now());
        }
    }

    /// Notes `bit` in the state; true if it has ended.
    #[inline]
    fn note(&self, bit: u8) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        if state & bit == 0 {
            state = self.state.fetch_or(bit, Ordering::AcqRel);
        }
        state & ENDED != 0
    }

    #[inline]
    fn is_anchor(&self) -> bool {
        self.level == 0 && self.parent.is_some()
    }

    fn parents(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.parent.iter().chain(self.second().map(|second| &second.parent))
    }

    fn second(&self) -> Option<&Second> {
        self.rare.as_ref().and_then(|rare| rare.second.as_ref())
    }
}

// Asking.
impl Token {
    #[inline]
    pub(crate) fn ended(&self) -> bool {
        self.state.load(Ordering::Acquire) & ENDED != 0
    }

    /// Whether it has ended, by itself or with an ancestor.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        if self.ended() {
            return true;
        }
        match self.deadline {
            None if self.none_above_ended() => false,
            None => self.settle(now()),
            Some(_) => self.is_over(now()),
        }
    }

    #[inline]
    fn is_over(&self, now: Instant) -> bool {
        let live = |token: &Token| {
            token.deadline.is_none_or(|deadline| now < deadline) && token.none_above_ended()
        };
        self.ended() || (!live(self) && self.settle(now))
    }

    /// Walks up. True: nothing above has ended, as far as this can tell; false: `settle` must look.
    #[inline]
    fn none_above_ended(&self) -> bool {
        if self.foreign {
            return false;
        }
        let mut token = self;
        while let Some(parent) = &token.parent {
            if token.level == 0 {
                if PUSHES.load(Ordering::Acquire) == 0 {
                    return !token.ended();
                }
                if token.rare.is_some() && token.second().is_some() {
                    return false;
                }
            }
            if parent.ended() {
                return false;
            }
            token = parent;
        }
        true
    }

    /// Looks at all ancestors for the earliest end, one that is due included, and closes everything
    /// from there down to this token. False: there is none.
    #[cold]
    fn settle(&self, now: Instant) -> bool {
        let mut earliest: Option<(Instant, usize)> = None;
        let seen = self.ancestry(|token| !token.ended());
        for (place, (token, _)) in seen.iter().enumerate() {
            if let Some(at) = token.due(now) {
                // Of two at once the one further up was there first.
                if earliest.is_none_or(|(best, _)| at <= best) {
                    earliest = Some((at, place));
                }
            }
        }
        let Some((_, mut at)) = earliest else { return false };
        seen[at].0.expire(now);
        while at != 0 {
            let error = seen[at].0.error();
            at = seen[at].1;
            seen[at].0.finish(End::Told(error));
        }
        true
    }

    /// This token and its ancestors, each with the place of the child it was reached from; those above
    /// one that is not to be passed are left out.
    fn ancestry(&self, pass: impl Fn(&Token) -> bool) -> Vec<(&Token, usize)> {
        let mut seen: Vec<(&Token, usize)> = vec![(self, 0)];
        let mut merged = HashSet::new();
        let mut next = 0;
        while let Some(&(token, _)) = seen.get(next) {
            if pass(token) {
                for parent in token.parents() {
                    // Once is enough: paths that fork and meet again and again are many.
                    if parent.second().is_none() || merged.insert(Arc::as_ptr(parent)) {
                        seen.push((parent, next));
                    }
                }
            }
            next += 1;
        }
        seen
    }

    /// When it ended by itself, or would have to now.
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.ended() {
            Some(self.error().origin().ended_at())
        } else if self.is_overdue(now) {
            self.deadline
        } else if self.foreign_token().is_some_and(CancellationToken::is_cancelled) {
            Some(now)
        } else {
            None
        }
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Every `CancellationToken` that can end it.
    pub(crate) fn foreign_tokens(&self) -> Vec<CancellationToken> {
        let ancestors = self.ancestry(|_| true);
        ancestors.iter().filter_map(|(token, _)| token.foreign_token().cloned()).collect()
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.owns_deadline && self.deadline.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn foreign_token(&self) -> Option<&CancellationToken> {
        self.rare.as_ref().and_then(|rare| rare.token.as_ref())
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn made_at(&self) -> &'static Location<'static> {
        self.made_at
    }

    #[cfg(feature = "tracing")]
    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    pub(crate) fn budget(&self) -> Option<Duration> {
        self.owns_deadline.then(|| Duration::from_nanos(self.clock))
    }

    /// What the end was. Only for a token that has ended.
    pub(crate) fn error(&self) -> Error {
        if let Some(error) = self.told.get() {
            return error.clone();
        }
        let record = match &*self.inner.lock() {
            Inner::Closed(record) => *record,
            Inner::Open(_) => None,
        };
        let (how, at) = record.unwrap_or((How::GuardDropped, None));
        let at = at.unwrap_or_else(now);
        self.told.get_or_init(|| Error::new(self.origin(how, at), None)).clone()
    }

    fn origin(&self, how: How, ended_at: Instant) -> Origin {
        Origin { made_at: self.made_at, how, budget: self.budget(), ended_at }
    }
}

// Ending.
impl Token {
    /// Ends it; false if it had ended.
    pub(crate) fn cancel(&self, how: How, cause: Option<BoxError>) -> bool {
        if self.ended() {
            return false;
        }
        if cause.is_none() && self.close_unseen(how) {
            self.report(how);
            return true;
        }
        let now = now();
        if self.is_over(now) {
            return false;
        }
        let end = match cause {
            None => End::Own(how, now),
            cause => End::Told(Error::new(self.origin(how, now), cause)),
        };
        self.end(end, how)
    }

    /// What a dropped guard does.
    #[inline]
    pub(crate) fn abandon(self: &Arc<Self>) {
        // With no handle left but this one there is nobody to tell.
        if Arc::strong_count(self) > 1 {
            self.cancel(How::GuardDropped, None);
        }
    }

    /// Ends it, with no look at the clock, if it matters to nobody yet when that was: it has no member,
    /// never had a child, and has no deadline that could have come first.
    #[inline]
    fn close_unseen(&self, how: How) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & !OCCUPIED != 0 || self.deadline.is_some() || !self.none_above_ended() {
            return false;
        }
        let end = |state| self.state.compare_exchange(state, ENDED, Ordering::AcqRel, Ordering::Relaxed);
        if state == 0 && matches!(how, How::GuardDropped) {
            return end(0).is_ok();
        }
        let mut inner = self.inner.lock();
        let left = match &mut *inner {
            Inner::Open(members) if members.is_deserted() => mem::take(members),
            _ => return false,
        };
        *inner = Inner::Closed(Some((how, None)));
        // Whoever enters now waits for the lock; a child that is being derived is noted in the state.
        let closed = end(state).is_ok();
        if !closed {
            *inner = Inner::Open(Members::default());
        }
        drop(inner);
        drop(left);
        closed
    }

    /// Ends it by the deadline or the `CancellationToken` that is due.
    fn expire(&self, now: Instant) {
        if self.ended() {
        } else if self.is_overdue(now) {
            self.end(self.expiry(), How::Deadline);
        } else {
            self.end(End::Own(How::Token, now), How::Token);
        }
    }

    fn expiry(&self) -> End {
        match (self.rare.as_ref().and_then(|rare| rare.expiry.as_ref()), self.deadline) {
            (Some(error), _) => End::Told(error.clone()),
            (None, deadline) => End::Own(How::Deadline, deadline.unwrap_or_else(now)),
        }
    }

    /// `finish`, and tells tracing.
    fn end(&self, end: End, how: How) -> bool {
        let ended = self.finish(end);
        if ended {
            self.report(how);
        }
        ended
    }

    #[inline]
    fn report(&self, how: How) {
        if !matches!(how, How::GuardDropped) {
            trace::ended(self);
        }
    }

    /// Closes it and all that is linked below it, then wakes; false if it had ended.
    fn finish(&self, end: End) -> bool {
        match self.close(end) {
            None => return false,
            Some(Closed { members: Members { first: None, more: None }, .. }) => {}
            Some(Closed {
                members: Members { first: Some(Member::Waiter(waker)), more: None }, ..
            }) => {
                waker.wake();
            }
            Some(closed) => self.push(closed),
        }
        true
    }

    fn push(&self, closed: Closed) {
        let mut pushes = 0;
        let mut wakers = Vec::new();
        // Dropped last: a last handle's drop runs foreign code.
        let mut remains = Vec::new();
        let mut children = Vec::new();
        let mut pending = vec![(closed, self.error())];
        while let Some((closed, error)) = pending.pop() {
            pushes += usize::from(closed.pushing);
            let Members { first, mut more } = closed.members;
            let more_members = more.iter_mut().flat_map(|more| mem::take(&mut more.members));
            for member in first.into_iter().chain(more_members.map(|(_, member)| member)) {
                let child = match member {
                    Member::Waiter(waker) => {
                        wakers.push(waker);
                        continue;
                    }
                    Member::Child(child) => child.upgrade(),
                };
                let Some(child) = child else { continue };
                let expired = child.is_overdue(error.origin().ended_at());
                let end = if expired { child.expiry() } else { End::Told(error.clone()) };
                if let Some(closed) = child.close(end) {
                    if closed.pushing || !closed.members.is_empty() {
                        pending.push((closed, child.error()));
                    }
                    children.push((child, expired));
                }
            }
            remains.extend(more);
        }
        if pushes != 0 {
            PUSHES.fetch_sub(pushes, Ordering::AcqRel);
        }
        wake_all(wakers);
        for (child, _) in children.iter().filter(|(_, expired)| *expired) {
            trace::ended(child);
        }
    }

    /// Ends this token alone.
    fn close(&self, end: End) -> Option<Closed> {
        let mut inner = self.inner.lock();
        if self.ended() {
            return None;
        }
        // Before the state says so, for whoever reads that without the lock. A quiet end may come in
        // between; it has no story of its own, and shares this one.
        let record = match end {
            End::Own(how, at) => Some((how, Some(at))),
            End::Told(error) => {
                let _first = self.told.set(error);
                None
            }
        };
        let members = match mem::replace(&mut *inner, Inner::Closed(record)) {
            Inner::Open(members) => members,
            Inner::Closed(_) => Members::default(),
        };
        let mut pushing = false;
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & DEEP != 0 && !pushing {
                pushing = true;
                PUSHES.fetch_add(1, Ordering::AcqRel);
            }
            let ended = state | ENDED;
            match self.state.compare_exchange(state, ended, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(Closed { members, pushing }),
                Err(now) if now & ENDED != 0 => return None,
                Err(now) => state = now,
            }
        }
    }
}

/// Wakes all of them, also if one panics; that panic goes on afterwards.
fn wake_all(wakers: Vec<Waker>) {
    let mut panic = None;
    for waker in wakers {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            panic.get_or_insert(payload);
        }
    }
    if let Some(payload) = panic.filter(|_| !std::thread::panicking()) {
        resume_unwind(payload);
    }
}

// Waiting.
impl Token {
    /// Enters the list of its parent, and that one of its own; false if an ancestor has ended.
    pub(crate) fn link(self: &Arc<Self>) -> bool {
        while !self.is_linked() {
            let mut child = self;
            let mut above = self.parent.as_ref();
            while let Some(parent) = above.filter(|parent| !parent.is_linked()) {
                child = parent;
                above = parent.parent.as_ref();
            }
            if above.is_some_and(|parent| !parent.admit(child, &child.seat)) {
                return false;
            }
            child.linked.store(true, Ordering::Release);
        }
        true
    }

    fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Acquire)
    }

    /// Seats a child; false if this token has ended.
    fn admit(&self, child: &Arc<Token>, seat: &AtomicU32) -> bool {
        let mut inner = self.inner.lock();
        let Some(members) = self.open(&mut inner) else { return false };
        if seat.load(Ordering::Relaxed) == 0 {
            let taken = members.insert(Member::Child(Arc::downgrade(child)));
            seat.store(taken.0, Ordering::Relaxed);
        }
        true
    }

    /// The list, for who enters it. Ended quietly, a token has one that is of no use any more.
    fn open<'a>(&self, inner: &'a mut Inner) -> Option<&'a mut Members> {
        match inner {
            Inner::Open(members) if !self.note(OCCUPIED) => Some(members),
            _ => None,
        }
    }

    /// Enters a waiter at `seat`, or has the one that sits there wake `waker` from now on; false if
    /// the token has ended.
    pub(crate) fn join(&self, seat: &mut Seat, waker: Waker) -> bool {
        // What is left of a waker is dropped without the lock.
        let (joined, _unused) = self.put(seat, waker);
        joined
    }

    fn put(&self, seat: &mut Seat, mut waker: Waker) -> (bool, Option<Waker>) {
        let mut inner = self.inner.lock();
        let Some(members) = self.open(&mut inner) else { return (false, Some(waker)) };
        if let Some(present) = members.waker(*seat) {
            mem::swap(present, &mut waker);
            return (true, Some(waker));
        }
        *seat = members.insert(Member::Waiter(waker));
        (true, None)
    }

    /// Whether wakers have been taken from here, so that a waiter cannot count on its own being there.
    pub(crate) fn is_roused(&self) -> bool {
        self.state.load(Ordering::Acquire) & ROUSED != 0
    }

    /// A waiter, or a child, leaves.
    pub(crate) fn leave(&self, seat: Seat) {
        if self.ended() {
            return;
        }
        let mut inner = self.inner.lock();
        let member = match &mut *inner {
            Inner::Open(members) => members.remove(seat),
            Inner::Closed(_) => None,
        };
        drop(inner);
        drop(member);
    }
}

impl Members {
    fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_none()
    }

    /// Nobody is in it, though there may be room.
    fn is_deserted(&self) -> bool {
        let idle =
            |more: &More| more.members.is_empty() && more.alarm.is_none() && more.bridge.is_none();
        self.first.is_none() && self.more.as_deref().is_none_or(idle)
    }

    fn insert(&mut self, member: Member) -> Seat {
        if self.first.is_none() {
            self.first = Some(member);
            return Seat(1);
        }
        let more = self.more.get_or_insert_default();
        Seat(u32::try_from(more.members.insert(member) + 2).expect("fewer than 2^32 members"))
    }

    fn waker(&mut self, seat: Seat) -> Option<&mut Waker> {
        let member = match seat.0 {
            0 => None,
            1 => self.first.as_mut(),
            at => self.more.as_mut().and_then(|more| more.members.get_mut(at as usize - 2)),
        };
        match member {
            Some(Member::Waiter(waker)) => Some(waker),
            _ => None,
        }
    }

    fn remove(&mut self, seat: Seat) -> Option<Member> {
        match seat.0 {
            0 => None,
            1 => self.first.take(),
            at => {
                let more = self.more.as_mut()?;
                let member = more.members.try_remove(at as usize - 2);
                // What a crowd left behind is given back.
                if more.members.is_empty() && more.members.capacity() > ROOMY {
                    more.members = Slab::new();
                }
                member
            }
        }
    }
}

/// A token's own timer: it wakes the token, not a task.
///
/// The first waiter on a deadline brings a timer of its own, which costs no allocation. Whoever waits
/// on it besides, or again, shares this one, so that a loop that re-makes `done()` registers no timer
/// each turn. It belongs to the runtime it was armed on, and serves waiters of that one alone: another
/// may be shut down, or stand still, without them.
struct Alarm {
    runtime: runtime::Id,
    _sleep: Pin<Box<Unconstrained<Sleep>>>,
}

/// What an alarm wakes.
struct Ring {
    token: Weak<Token>,
    rung: AtomicBool,
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        if let Some(token) = self.token.upgrade() {
            // Before its time an alarm rings when its runtime shuts down.
            if !token.is_done() {
                let alarm = match &mut *token.inner.lock() {
                    Inner::Open(members) => members.more.as_mut().and_then(|more| more.alarm.take()),
                    Inner::Closed(_) => None,
                };
                drop(alarm);
                token.rouse();
            }
        }
    }
}

impl Token {
    /// The token whose own deadline this one's is.
    pub(crate) fn deadline_owner(self: &Arc<Self>) -> &Arc<Token> {
        let mut token = self;
        while !token.owns_deadline {
            let owner = token.parents().find(|parent| parent.deadline == token.deadline);
            match owner {
                Some(parent) => token = parent,
                None => break,
            }
        }
        token
    }

    /// Whether this is the first waiter on the deadline, which is to bring a timer of its own.
    pub(crate) fn is_first_timer(&self) -> bool {
        !self.timed.load(Ordering::Relaxed) && !self.timed.swap(true, Ordering::Relaxed)
    }

    /// Sees to it that an alarm of the current runtime will end this token at its deadline, or that it
    /// has ended; false if there is one already of another runtime.
    ///
    /// Panics outside a runtime, or in one without a time driver, as `tokio::time::sleep`.
    #[track_caller]
    pub(crate) fn arm(self: &Arc<Self>) -> bool {
        let runtime = Handle::current().id();
        if let Some(armed) = self.is_armed(runtime) {
            return armed;
        }
        let deadline = self.deadline.unwrap_or_else(now);
        let ring = Arc::new(Ring { token: Arc::downgrade(self), rung: AtomicBool::new(false) });
        let waker = Waker::from(ring.clone());
        let mut sleep = Box::pin(unconstrained(sleep_until(deadline)));
        if sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return self.settle(deadline.max(now()));
        }
        // What is left of it is dropped without the lock.
        let _spare = self.keep_alarm(Alarm { runtime, _sleep: sleep }, &ring);
        self.is_armed(runtime).unwrap_or(false)
    }

    /// Whether an alarm of the current runtime, if there is one, will end it at its deadline.
    pub(crate) fn is_armed_here(&self) -> bool {
        self.timed.load(Ordering::Relaxed)
            && Handle::try_current().is_ok_and(|here| self.is_armed(here.id()) == Some(true))
    }

    fn is_armed(&self, runtime: runtime::Id) -> Option<bool> {
        match &*self.inner.lock() {
            Inner::Closed(_) => Some(true),
            Inner::Open(members) => {
                let alarm = members.more.as_ref()?.alarm.as_ref()?;
                Some(alarm.runtime == runtime)
            }
        }
    }

    fn keep_alarm(&self, alarm: Alarm, ring: &Ring) -> Option<Alarm> {
        let mut inner = self.inner.lock();
        let Some(members) = self.open(&mut inner) else { return Some(alarm) };
        let kept = &mut members.more.get_or_insert_default().alarm;
        if kept.is_some() || ring.rung.load(Ordering::Acquire) {
            return Some(alarm);
        }
        *kept = Some(alarm);
        None
    }

    /// Ends it by its deadline, whatever the clock says: a timer has.
    pub(crate) fn expire_now(&self, deadline: Instant) {
        if !self.ended() {
            self.settle(deadline.max(now()));
        }
    }

    /// Wakes everyone who waits here and below, to look again.
    #[cold]
    fn rouse(self: &Arc<Self>) {
        let mut wakers = Vec::new();
        let mut children = Vec::new();
        let mut pending = vec![self.clone()];
        while let Some(token) = pending.pop() {
            if let Some(members) = token.open(&mut token.inner.lock()) {
                token.note(ROUSED);
                let more = members.more.iter_mut().flat_map(|more| more.members.iter_mut());
                for member in members.first.iter_mut().chain(more.map(|(_, member)| member)) {
                    match member {
                        // The seat stays the waiter's; it puts its waker back when it comes again.
                        Member::Waiter(waker) => {
                            wakers.push(mem::replace(waker, Waker::noop().clone()));
                        }
                        Member::Child(child) => children.push(child.clone()),
                    }
                }
            }
            pending.extend(children.drain(..).filter_map(|child| child.upgrade()));
        }
        wake_all(wakers);
    }
}

/// A `CancellationToken` that is cancelled when a token ends. It sits in the list as a waiter does, and
/// keeps the token until then.
pub(crate) struct Bridge {
    pub(crate) outer: CancellationToken,
    inner: Arc<Token>,
}

impl Wake for Bridge {
    fn wake(self: Arc<Self>) {
        if self.inner.is_done() {
            self.outer.cancel();
        }
    }
}

impl Token {
    /// The token's bridge, built when first asked for; true if this call built it.
    pub(crate) fn bridge(self: &Arc<Self>) -> (Arc<Bridge>, bool) {
        let bridge = Arc::new(Bridge { outer: CancellationToken::new(), inner: self.clone() });
        let kept = {
            let mut inner = self.inner.lock();
            self.open(&mut inner).map(|members| {
                let kept = &mut members.more.get_or_insert_default().bridge;
                kept.get_or_insert_with(|| bridge.clone()).clone()
            })
        };
        match kept {
            Some(kept) => {
                let built = Arc::ptr_eq(&kept, &bridge);
                (kept, built)
            }
            None => {
                bridge.outer.cancel();
                (bridge, false)
            }
        }
    }
}

/// Leaves the parents' lists, and takes a chain of ancestors apart one by one, so that its length never
/// becomes stack depth.
impl Drop for Token {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        let mut next = self.depart(&mut pending);
        while let Some(parent) = next.or_else(|| pending.pop()) {
            next = Arc::into_inner(parent).and_then(|mut token| token.depart(&mut pending));
        }
    }
}

impl Token {
    /// Leaves the parents' lists and gives the parents away, a merged one's second into `others`.
    #[inline]
    fn depart(&mut self, others: &mut Vec<Arc<Token>>) -> Option<Arc<Token>> {
        let parent = self.parent.take();
        if let Some(parent) = &parent {
            parent.leave_if_seated(&self.seat);
        }
        if let Some(second) = self.rare.as_mut().and_then(|rare| rare.second.take()) {
            second.parent.leave_if_seated(&second.seat);
            others.push(second.parent);
        }
        parent
    }

    #[inline]
    fn leave_if_seated(&self, seat: &AtomicU32) {
        let seat = seat.load(Ordering::Relaxed);
        if seat != 0 {
            self.leave(Seat(seat));
        }
    }
}
