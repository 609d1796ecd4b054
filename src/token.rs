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
//! dropped while `state` is still 0 (no child, no member ever) moves it from 0 to `ENDED`. Such an end
//! has stopped nobody, so that it need not even be dated: who asks first does that.
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
//!    end that reaches it has ended by that deadline; a merged one looks at its other path first. Any
//!    end that can be compared with another is dated when it comes: `PARENT` in `state` tells.
//!
//! # Locks
//!
//! One lock per token, and never two at once. `linked` and `seat` of a child are written under its
//! parent's lock. Wakers are cloned before and woken and dropped after; so is everything else that is
//! not ours.

use std::any::Any;
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
const STRIDE: u8 = if cfg!(tokio_ctx_loom) { 4 } else { 8 };
/// So many waits, or polls of one, may go without a look at the clock.
pub(crate) const UNCLOCKED: u8 = 64;
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
    /// Counts waits that did not look at the clock.
    turns: AtomicU8,
    /// Its place in the parent's list.
    seat: AtomicU32,
    parent: Option<Arc<Token>>,
    /// The earliest deadline on the path.
    deadline: Option<Instant>,
    /// With a deadline of its own the budget in nanoseconds, else what `trace` noted of its birth.
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
    /// What can end it from outside.
    token: Option<CancellationToken>,
    /// For an anchor, what a walk further up would look for.
    above: Above,
}

/// What lies anywhere above an anchor.
#[derive(Clone, Default)]
struct Above {
    /// The token whose deadline this one's is.
    owner: Option<Arc<Token>>,
    /// The tokens that can be ended from outside.
    foreign: Option<Arc<[Arc<Token>]>>,
}

/// The other parent of a merged token.
struct Second {
    parent: Arc<Token>,
    seat: AtomicU32,
}

enum Inner {
    Open(Members),
    Closed(Ending),
}

/// What an end was, until `told` says it.
enum Ending {
    /// Where it was cancelled, unless its guard was dropped, and when, unless nobody looked.
    Canceled(Caller, Option<Instant>),
    Told(Error),
}

/// The line that cancels; none for a guard that is dropped.
type Caller = Option<&'static Location<'static>>;

#[derive(Default)]
struct Members {
    first: Option<Member>,
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    members: Slab<Member>,
    alarm: Option<Alarm>,
    bridge: Option<Bridge>,
}

enum Member {
    Waiter(Waker),
    Child(Weak<Token>),
}

/// A place in a list of members: 0 none, 1 the one in the token, from 2 on those in the slab.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seat(u32);

impl Rare {
    /// Asks every `CancellationToken` known here, which takes that one's lock.
    #[cold]
    fn is_canceled_from_outside(&self) -> bool {
        let above = self.above.foreign.as_deref().unwrap_or_default();
        let mut tokens = above.iter().filter_map(|token| token.foreign_token()).chain(&self.token);
        tokens.any(CancellationToken::is_cancelled)
    }
}

/// A deadline to be.
pub(crate) struct Limit {
    pub(crate) at: Instant,
    pub(crate) now: Instant,
    pub(crate) budget: Duration,
    pub(crate) cause: Option<BoxError>,
}

/// Which of two ends came first: the lesser.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// When, and whether it was cancelled: a deadline that passes at that moment has passed before.
    Dated(Instant, bool),
    /// Some time before now, by a foreign token.
    Noticed,
}

/// What a walk up finds.
enum Ancestors {
    Live,
    Ended,
    /// It takes a closer look.
    Unclear,
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
        let Limit { at, now, budget, cause } = limit;
        let mut token = Token::plain(parent, made_at);
        token.deadline = Some(at);
        token.owns_deadline = true;
        token.clock = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        if let Some(cause) = cause {
            let expiry = Error::new(token.origin(How::Deadline, at), Some(cause));
            token.rare = Some(Box::new(Rare { expiry: Some(expiry), ..Rare::default() }));
        }
        // An end that came before its birth comes before any deadline.
        if let Some(parent) = parent.filter(|parent| parent.is_over(now)) {
            let _told = token.told.set(parent.error());
            token.state = AtomicU8::new(ENDED);
            return Arc::new(token);
        }
        let token = token.born();
        if at <= now {
            token.settle(now);
        }
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
            turns: AtomicU8::new(0),
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
        if self.is_anchor() { self.born_anchor() } else { Arc::new(self) }
    }

    #[cold]
    fn born_anchor(mut self) -> Arc<Self> {
        let above = Above { owner: self.find_owner(), foreign: self.find_foreign() };
        if above.owner.is_some() || above.foreign.is_some() {
            self.rare.get_or_insert_default().above = above;
        }
        let token = Arc::new(self);
        token.drop_anchor();
        token
    }

    fn find_owner(&self) -> Option<Arc<Token>> {
        let inherits = !self.owns_deadline && self.deadline.is_some();
        let from = self.parents().find(|parent| inherits && parent.deadline == self.deadline);
        from.map(|parent| parent.deadline_owner().clone())
    }

    fn find_foreign(&self) -> Option<Arc<[Arc<Token>]>> {
        if !self.foreign {
            return None;
        }
        let mut found: Vec<Arc<Token>> = Vec::new();
        let mut lists = Vec::new();
        for parent in self.parents() {
            let mut above = Some(parent);
            while let Some(token) = above {
                found.extend(token.foreign_token().map(|_| token.clone()));
                lists.extend(token.above().and_then(|above| above.foreign.as_ref()));
                above = token.parent.as_ref().filter(|_| !token.is_anchor());
            }
        }
        // Mostly there is nothing new since the last anchor.
        if let ([list], true) = (lists.as_slice(), found.is_empty()) {
            return Some(Arc::clone(list));
        }
        for token in lists.into_iter().flat_map(|list| list.iter()) {
            if !found.iter().any(|other| Arc::ptr_eq(other, token)) {
                found.push(token.clone());
            }
        }
        (!found.is_empty()).then(|| found.into())
    }

    fn above(&self) -> Option<&Above> {
        self.rare.as_ref().map(|rare| &rare.above)
    }

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

    #[inline]
    fn none_above_ended(&self) -> bool {
        matches!(self.look_up(), Ancestors::Live)
    }

    /// Walks up as far as it needs to.
    #[inline]
    fn look_up(&self) -> Ancestors {
        let mut token = self;
        loop {
            if token.foreign && token.rare.as_ref().is_some_and(|rare| rare.is_canceled_from_outside()) {
                return Ancestors::Unclear;
            }
            let Some(parent) = &token.parent else { return Ancestors::Live };
            if token.level == 0 {
                if PUSHES.load(Ordering::Acquire) == 0 {
                    return if token.ended() { Ancestors::Ended } else { Ancestors::Live };
                }
                if token.second().is_some() {
                    return Ancestors::Unclear;
                }
            }
            if parent.ended() {
                return Ancestors::Ended;
            }
            token = parent;
        }
    }

    /// Looks at all ancestors for the earliest end, one that is due included, and ends everything from
    /// there down to this token. False: there is none.
    #[cold]
    fn settle(&self, now: Instant) -> bool {
        let mut aftermath = Aftermath::default();
        let settled = self.close_path(now, &mut aftermath);
        // Who only asked, often Tokio's timer, is not to fall over a stranger's waker.
        let _panic = aftermath.clear_up();
        settled
    }

    fn close_path(&self, now: Instant, aftermath: &mut Aftermath) -> bool {
        let seen = self.ancestry(|token| !token.ended());
        let mut earliest: Option<(Rank, usize)> = None;
        for (place, (token, _)) in seen.iter().enumerate() {
            if let Some(rank) = token.rank(now) {
                // Of two that are noticed only now the one further up comes first.
                let first = earliest.is_none_or(|(best, _)| {
                    rank < best || (rank == best && matches!(rank, Rank::Noticed))
                });
                if first {
                    earliest = Some((rank, place));
                }
            }
        }
        let Some((_, mut place)) = earliest else { return false };
        let token = seen[place].0;
        let error = match token.is_overdue(now) {
            true => token.expiry(),
            false => Error::new(token.origin(How::Token, now), None),
        };
        token.close_all(Ending::Told(error), Story::Own, aftermath);
        while place != 0 {
            let error = seen[place].0.error();
            place = seen[place].1;
            seen[place].0.close_all(Ending::Told(error), Story::Other, aftermath);
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

    /// Whether it has ended, or has to, and what that comes before.
    fn rank(&self, now: Instant) -> Option<Rank> {
        if self.ended() {
            let error = self.error();
            Some(Rank::Dated(error.origin().ended_at(), error.is_canceled()))
        } else if self.is_overdue(now) {
            self.deadline.map(|deadline| Rank::Dated(deadline, false))
        } else if self.foreign_token().is_some_and(CancellationToken::is_cancelled) {
            Some(Rank::Noticed)
        } else {
            None
        }
    }

    #[inline]
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Every `CancellationToken` that can end it.
    pub(crate) fn foreign_tokens(&self) -> Vec<CancellationToken> {
        let mut tokens = Vec::new();
        let mut next = Some(self);
        while let Some(token) = next {
            tokens.extend(token.foreign_token().cloned());
            let above = token.above().and_then(|above| above.foreign.as_deref()).unwrap_or_default();
            tokens.extend(above.iter().filter_map(|token| token.foreign_token().cloned()));
            next = token.parent.as_deref().filter(|_| !token.is_anchor());
        }
        tokens
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

    /// When it was made, if that is known.
    fn born_at(&self) -> Option<Instant> {
        match self.budget() {
            Some(budget) => self.deadline?.checked_sub(budget),
            None => trace::noted(self.clock),
        }
    }

    pub(crate) fn budget(&self) -> Option<Duration> {
        self.owns_deadline.then(|| Duration::from_nanos(self.clock))
    }

    /// What the end was. Only for a token that has ended.
    pub(crate) fn error(&self) -> Error {
        if let Some(error) = self.told.get() {
            return error.clone();
        }
        let (caller, at) = match &*self.inner.lock() {
            Inner::Closed(Ending::Told(error)) => {
                let error = error.clone();
                return self.told.get_or_init(|| error).clone();
            }
            Inner::Closed(Ending::Canceled(caller, at)) => (*caller, *at),
            Inner::Open(_) => (None, None),
        };
        let origin = self.origin(How::by(caller), at.unwrap_or_else(now));
        self.told.get_or_init(|| Error::new(origin, None)).clone()
    }

    fn origin(&self, how: How, ended_at: Instant) -> Origin {
        Origin { made_at: self.made_at, how, budget: self.budget(), ended_at }
    }
}

// Ending.
impl Token {
    /// Ends it; false if it had ended.
    pub(crate) fn cancel(&self, caller: Caller, cause: Option<BoxError>) -> bool {
        if self.ended() {
            return false;
        }
        match self.look_up() {
            Ancestors::Live => {}
            // Over; whoever asks settles with what.
            Ancestors::Ended => return false,
            Ancestors::Unclear if self.settle(now()) => return false,
            Ancestors::Unclear => {}
        }
        let story = if caller.is_some() { Story::Own } else { Story::Other };
        if caller.is_none() && self.close_unseen() {
            return true;
        }
        let now = now();
        if self.deadline.is_some_and(|deadline| deadline <= now) && self.settle(now) {
            return false;
        }
        let end = match cause {
            None => Ending::Canceled(caller, Some(now)),
            cause => Ending::Told(Error::new(self.origin(How::by(caller), now), cause)),
        };
        self.finish(end, story)
    }

    /// Ends one that nobody waits on and that is of nobody's concern; true if it had not ended.
    pub(crate) fn trip(&self) -> bool {
        self.close_unseen()
    }

    /// What a dropped guard does.
    #[inline]
    pub(crate) fn abandon(self: &Arc<Self>) {
        // With no handle left but this one, and no bridge in its list, there is nobody to tell.
        let alone = Arc::strong_count(self) == 1 && self.state.load(Ordering::Acquire) & OCCUPIED == 0;
        if !alone {
            self.cancel(None, None);
        }
    }

    /// Ends it as its guard goes, with no look at the clock, if it matters to nobody yet when that was: it has no member,
    /// never had a child, and has no deadline that could have come first.
    #[inline]
    fn close_unseen(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & !OCCUPIED != 0 || self.deadline.is_some() {
            return false;
        }
        let end = |state| self.state.compare_exchange(state, ENDED, Ordering::AcqRel, Ordering::Relaxed);
        if state == 0 {
            return end(0).is_ok();
        }
        let mut inner = self.inner.lock();
        let left = match &mut *inner {
            Inner::Open(members) if members.is_deserted() => mem::take(members),
            _ => return false,
        };
        *inner = Inner::Closed(Ending::Canceled(None, None));
        // Whoever enters now waits for the lock; a child that is being derived is noted in the state.
        let closed = end(state).is_ok();
        if !closed {
            *inner = Inner::Open(Members::default());
        }
        drop(inner);
        drop(left);
        closed
    }

    fn expiry(&self) -> Error {
        match (self.rare.as_ref().and_then(|rare| rare.expiry.as_ref()), self.deadline) {
            (Some(error), _) => error.clone(),
            (None, deadline) => {
                Error::new(self.origin(How::Deadline, deadline.unwrap_or_else(now)), None)
            }
        }
    }

    /// Ends it and all that is linked below it; false if it had ended.
    fn finish(&self, end: Ending, story: Story) -> bool {
        let Some(closed) = self.close(end) else { return false };
        if closed.is_all() && !story.is_told() {
            return true;
        }
        let mut aftermath = Aftermath::default();
        self.spread(closed, story, &mut aftermath);
        match aftermath.clear_up() {
            Some(panic) if !std::thread::panicking() => resume_unwind(panic),
            _ => true,
        }
    }

    /// Closes it and all that is linked below it, and leaves the rest to `aftermath`.
    fn close_all(&self, end: Ending, story: Story, aftermath: &mut Aftermath) {
        if let Some(closed) = self.close(end) {
            self.spread(closed, story, aftermath);
        }
    }

    fn spread(&self, closed: Closed, story: Story, aftermath: &mut Aftermath) {
        if story.is_told() {
            aftermath.tell(self);
        }
        let mut pending = Vec::from_iter(aftermath.sort(self, closed));
        while let Some((children, error)) = pending.last_mut() {
            let Some(child) = children.pop() else {
                pending.pop();
                continue;
            };
            let Some(child) = child.upgrade() else { continue };
            let ended_at = error.origin().ended_at();
            if child.was_over_before(error) {
                aftermath.forked.push((child, ended_at));
                continue;
            }
            let expired = child.is_overdue(ended_at);
            let error = if expired { child.expiry() } else { error.clone() };
            if let Some(closed) = child.close(Ending::Told(error)) {
                if expired && trace::listens() {
                    aftermath.tell(&child);
                }
                pending.extend(aftermath.sort(&child, closed));
            }
            aftermath.handles.push(child);
        }
    }

    /// Whether a merged token, about to be told of an end, had ended before by its other path.
    fn was_over_before(&self, error: &Error) -> bool {
        let ended_at = error.origin().ended_at();
        let over = |at| at < ended_at || (at == ended_at && error.is_canceled());
        self.second().is_some() && self.deadline.is_some_and(over)
    }

    /// Ends this token alone.
    fn close(&self, end: Ending) -> Option<Closed> {
        let mut inner = self.inner.lock();
        if self.ended() {
            return None;
        }
        // A quiet end may come in between; it has no story of its own, and shares this one.
        let members = match mem::replace(&mut *inner, Inner::Closed(end)) {
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

impl How {
    fn by(caller: Caller) -> How {
        caller.map_or(How::GuardDropped, How::Canceled)
    }
}

/// Whether an end is the token's own story, which tracing is told if it listens.
#[derive(Clone, Copy)]
enum Story {
    Own,
    Other,
}

impl Story {
    #[inline]
    fn is_told(self) -> bool {
        matches!(self, Story::Own) && trace::listens()
    }
}

impl Closed {
    /// Whether there is nobody to tell.
    fn is_all(&self) -> bool {
        !self.pushing && self.members.first.is_none() && self.members.more.is_none()
    }
}

/// What is left to be done once everything is closed: nothing of it is ours, so no lock is held.
#[derive(Default)]
struct Aftermath {
    pushes: usize,
    calls: Few<Call>,
    stories: Vec<(Error, Option<Instant>)>,
    /// Merged tokens whose other path is to be looked at first, as of then.
    forked: Vec<(Arc<Token>, Instant)>,
    /// Kept until then, as a last handle's drop runs foreign code.
    handles: Vec<Arc<Token>>,
    rooms: Vec<More>,
}

impl Aftermath {
    fn tell(&mut self, token: &Token) {
        self.stories.push((token.error(), token.born_at()));
    }

    /// Takes in what closing `token` left, but for its children and what they are to be told.
    fn sort(&mut self, token: &Token, closed: Closed) -> Option<(Few<Weak<Token>>, Error)> {
        self.pushes += usize::from(closed.pushing);
        let Members { first, mut more } = closed.members;
        let mut children = Few::default();
        let others = more.iter_mut().flat_map(|more| mem::take(&mut more.members));
        for member in first.into_iter().chain(others.map(|(_, member)| member)) {
            match member {
                Member::Waiter(waker) => self.calls.push(Call::Wake(waker)),
                Member::Child(child) => children.push(child),
            }
        }
        if let Some(more) = more {
            if let Some(bridge) = &more.bridge {
                self.calls.push(Call::Cancel(bridge.outer.clone()));
            }
            self.rooms.push(*more);
        }
        (!children.is_empty()).then(|| (children, token.error()))
    }

    /// Gives back the first panic of somebody else's code.
    fn clear_up(mut self) -> Option<Panic> {
        while let Some((token, at)) = self.forked.pop() {
            token.close_path(at, &mut self);
            self.handles.push(token);
        }
        if self.pushes != 0 {
            PUSHES.fetch_sub(self.pushes, Ordering::AcqRel);
        }
        let panic = call(self.calls);
        for (error, born) in &self.stories {
            trace::ended(error, *born);
        }
        panic
    }
}

type Panic = Box<dyn Any + Send>;

enum Call {
    Wake(Waker),
    Cancel(Arc<CancellationToken>),
}

/// Mostly one, which takes no allocation.
struct Few<T> {
    first: Option<T>,
    more: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few { first: None, more: Vec::new() }
    }
}

impl<T> Few<T> {
    fn push(&mut self, item: T) {
        match &self.first {
            None => self.first = Some(item),
            Some(_) => self.more.push(item),
        }
    }

    fn pop(&mut self) -> Option<T> {
        self.more.pop().or_else(|| self.first.take())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// Makes all calls, also if one panics, and gives back that panic.
fn call(calls: Few<Call>) -> Option<Panic> {
    let mut panic = None;
    for call in calls.first.into_iter().chain(calls.more) {
        let make = || match call {
            Call::Wake(waker) => waker.wake(),
            Call::Cancel(token) => token.cancel(),
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(make)) {
            panic.get_or_insert(payload);
        }
    }
    panic
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
            if let Some(owner) = token.above().and_then(|above| above.owner.as_ref()) {
                return owner;
            }
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
    pub(crate) fn arm(self: &Arc<Self>, here: Option<runtime::Id>) -> bool {
        if let Some(armed) = self.is_armed(here) {
            return armed;
        }
        let runtime = Handle::current().id();
        let deadline = self.deadline.unwrap_or_else(now);
        let ring = Arc::new(Ring { token: Arc::downgrade(self), rung: AtomicBool::new(false) });
        let waker = Waker::from(ring.clone());
        let mut sleep = Box::pin(unconstrained(sleep_until(deadline)));
        if sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return self.settle(deadline.max(now()));
        }
        // What is left of it is dropped without the lock.
        let _spare = self.keep_alarm(Alarm { runtime, _sleep: sleep }, &ring);
        self.is_armed(Some(runtime)).unwrap_or(false)
    }

    /// Whether a wait that begins now is one that is to look at the clock. Most need not, as there is a
    /// timer; but a loop that never lets its runtime go on keeps every timer from firing.
    pub(crate) fn is_turn_for_clock(&self) -> bool {
        let turns = self.turns.load(Ordering::Relaxed).wrapping_add(1);
        self.turns.store(turns, Ordering::Relaxed);
        turns % UNCLOCKED == 0
    }

    /// Whether an alarm of the runtime `here` will end it at its deadline.
    pub(crate) fn is_armed_here(&self, here: Option<runtime::Id>) -> bool {
        self.timed.load(Ordering::Relaxed) && self.is_armed(here) == Some(true)
    }

    /// Whether there is an alarm, and one to count on: of this runtime, or of any if there is none here.
    fn is_armed(&self, here: Option<runtime::Id>) -> Option<bool> {
        match &*self.inner.lock() {
            Inner::Closed(_) => Some(true),
            Inner::Open(members) => {
                let alarm = members.more.as_ref()?.alarm.as_ref()?;
                Some(here.is_none_or(|here| alarm.runtime == here))
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
        let mut calls = Few::default();
        let mut children = Vec::new();
        // Kept until the end, as a last handle's drop runs foreign code.
        let mut handles = vec![self.clone()];
        let mut next = 0;
        while let Some(token) = handles.get(next) {
            if let Some(members) = token.open(&mut token.inner.lock()) {
                token.note(ROUSED);
                let more = members.more.iter_mut().flat_map(|more| more.members.iter_mut());
                for member in members.first.iter_mut().chain(more.map(|(_, member)| member)) {
                    match member {
                        // The seat stays the waiter's; it puts its waker back when it comes again.
                        Member::Waiter(waker) => {
                            calls.push(Call::Wake(mem::replace(waker, Waker::noop().clone())));
                        }
                        Member::Child(child) => children.push(child.clone()),
                    }
                }
            }
            next += 1;
            handles.extend(children.drain(..).filter_map(|child: Weak<Token>| child.upgrade()));
        }
        let _panic = call(calls);
    }
}

/// A `CancellationToken` that is cancelled when a token ends.
///
/// It is a child of the parent's, so that when a context goes without having ended, tokio-util's own
/// tree hands what was derived from it to the parent's, and forgets what nobody holds.
struct Bridge {
    outer: Arc<CancellationToken>,
    /// Whether a task sees to what only a waiter notices: the deadline, a foreign token.
    watched: bool,
}

/// What a bridge's watching task holds, so that another takes its place if it dies with its runtime.
pub(crate) struct Watch(Arc<Token>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Inner::Open(members) = &mut *self.0.inner.lock() {
            if let Some(bridge) = members.more.as_mut().and_then(|more| more.bridge.as_mut()) {
                bridge.watched = false;
            }
        }
    }
}

impl Token {
    /// What is cancelled when this token ends; none if it has.
    pub(crate) fn bridge(self: &Arc<Self>) -> Option<Arc<CancellationToken>> {
        if !self.link() {
            return None;
        }
        let mut unbridged = vec![self];
        let mut above = None;
        while let Some(parent) = unbridged[unbridged.len() - 1].parent.as_ref() {
            above = parent.keep_bridge(None)?;
            if above.is_some() {
                break;
            }
            unbridged.push(parent);
        }
        for token in unbridged.into_iter().rev() {
            let outer = above.map_or_else(CancellationToken::new, |above| above.child_token());
            above = token.keep_bridge(Some(Arc::new(outer)))?;
        }
        above
    }

    /// The bridge that is there, or `fresh` if there is none; nothing at all if the token has ended.
    fn keep_bridge(
        &self,
        mut fresh: Option<Arc<CancellationToken>>,
    ) -> Option<Option<Arc<CancellationToken>>> {
        // Declared before the lock is taken, what is left of `fresh` is dropped after it.
        let mut inner = self.inner.lock();
        let members = self.open(&mut inner)?;
        let present = members.more.as_ref().and_then(|more| more.bridge.as_ref());
        if let Some(bridge) = present {
            return Some(Some(bridge.outer.clone()));
        }
        let Some(outer) = fresh.take() else { return Some(None) };
        let bridge = Bridge { outer: outer.clone(), watched: false };
        members.more.get_or_insert_default().bridge = Some(bridge);
        Some(Some(outer))
    }

    /// For who is to keep a watch on a bridge, if nobody does yet.
    pub(crate) fn watch(self: &Arc<Self>) -> Option<Watch> {
        let mut inner = self.inner.lock();
        let bridge = self.open(&mut inner)?.more.as_mut()?.bridge.as_mut()?;
        let watched = mem::replace(&mut bridge.watched, true);
        drop(inner);
        (!watched).then(|| Watch(self.clone()))
    }

    /// Whether it can end without anybody ending it.
    pub(crate) fn needs_watch(&self) -> bool {
        self.deadline.is_some() || self.foreign
    }
}

/// Leaves the parents' lists, and takes a chain of ancestors apart one by one, so that its length never
/// becomes stack depth.
impl Drop for Token {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        let mut next = self.depart(&mut pending);
        while let Some(parent) = next.take().or_else(|| pending.pop()) {
            if let Some(mut token) = Arc::into_inner(parent) {
                // Before the token goes: its cause's drop may panic, and the rest must go all the same.
                next = token.depart(&mut pending);
            }
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

#[cfg(all(test, tokio_ctx_loom))]
impl Token {
    /// What is registered here, and the pushes under way anywhere: for the models' last look.
    pub(crate) fn census(&self) -> (usize, usize) {
        let members = match &*self.inner.lock() {
            Inner::Closed(_) => 0,
            Inner::Open(members) => {
                let more = members.more.as_ref().map_or(0, |more| more.members.len());
                usize::from(members.first.is_some()) + more
            }
        };
        (members, PUSHES.load(Ordering::Acquire))
    }
}
