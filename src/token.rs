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
//! So that the walk stays short in a deep tree, who has a long way up makes every [`STRIDE`]th level an
//! *anchor*: he links it (a merged token is one from birth). Later walks stop there, as ends are *pushed*
//! to anchors. While a push is under way anywhere above an anchor, [`PUSHES`] is not zero, and the walk
//! goes on instead. A tree that nobody looks up from deep down has no anchors and pays for none.
//!
//! # Ending
//!
//! [`Token::close`] ends one token, under its lock: it publishes what the end was, takes the members
//! out, and sets `ENDED` in `state`. [`Token::finish`] then closes all linked descendants, with a
//! worklist, and only when all are closed does it wake anybody. What ends with its parent says so
//! (`INHERITED`), and its error is found by a walk up; every [`STRIDE`]th level keeps a copy.
//!
//! Two cases need no lock. A guard dropped while `state` is still 0 (no child, no member ever) moves it
//! from 0 to `ENDED`: such an end has stopped nobody, so that it need not even be dated; who asks first
//! does that. And a token without members is closed with its parent by one step in `state`.
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
//!    before `ENDED` is set on a token with an anchor below it (`DEEP`, set in the same word before the
//!    anchor is `ANCHORED`, or whoever sets it sees the end, and closes the anchor first), `PUSHES` goes
//!    up, and it goes down when the anchor has been closed. A reader that knows of the end therefore
//!    reads `PUSHES` above zero and walks on, or reads zero, synchronises with the decrement, and finds
//!    the anchor closed when it looks again.
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
use std::sync::atomic::fence;
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

/// Every so many levels may be an anchor: what a walk costs at most, against what a deep chain costs.
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
/// A walk up may stop here.
const ANCHORED: u8 = 32;
/// Ended with its parent, whose error is its own.
const INHERITED: u8 = 64;

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
    /// Levels down from the last that may be an anchor; 0: this may be one, or is a root.
    level: u8,
    /// Whether a walk up has to look closer here: an anchor, or foreign.
    halts: bool,
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
    Inherited,
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

/// When it ended, and whether it was cancelled; by its deadline, if not.
#[derive(Clone, Copy)]
struct End {
    at: Instant,
    canceled: bool,
}

/// The members of a token that has ended, of whom the children are to end with it.
struct Layer {
    /// None: where it all began.
    token: Option<Arc<Token>>,
    first: Option<Member>,
    more: slab::IntoIter<Member>,
    end: End,
}

impl Layer {
    fn next(&mut self) -> Option<Member> {
        self.first.take().or_else(|| self.more.next().map(|(_, member)| member))
    }
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
            token.settle_by(Some(now));
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
        let token = token.born();
        token.drop_anchor();
        token
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
            halts: false,
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
    fn born(mut self) -> Arc<Self> {
        self.halts = self.foreign || self.may_anchor();
        let inherits = self.deadline.is_some() || self.foreign;
        if inherits && self.may_anchor() { self.born_knowing() } else { Arc::new(self) }
    }

    #[cold]
    fn born_knowing(mut self) -> Arc<Self> {
        let above = Above { owner: self.find_owner(), foreign: self.find_foreign() };
        if above.owner.is_some() || above.foreign.is_some() {
            self.rare.get_or_insert_default().above = above;
        }
        Arc::new(self)
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
                above = token.parent.as_ref().filter(|_| !token.may_anchor());
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

    /// Makes anchors of those above that may be, from the top down.
    #[cold]
    fn anchor_above(&self) {
        let mut bare = Vec::new();
        let mut above = self.parent.as_ref();
        while let Some(token) = above.filter(|token| !token.is_anchored()) {
            if token.may_anchor() {
                bare.push(token);
            }
            above = token.parent.as_ref();
        }
        for token in bare.into_iter().rev() {
            token.drop_anchor();
        }
    }

    fn drop_anchor(self: &Arc<Self>) {
        for parent in self.parents() {
            let mut above = parent;
            while !above.note(DEEP) && !above.is_anchored() {
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
            self.settle();
        }
        self.note(ANCHORED);
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
    fn may_anchor(&self) -> bool {
        self.level == 0 && self.parent.is_some()
    }

    fn is_anchored(&self) -> bool {
        self.state.load(Ordering::Acquire) & ANCHORED != 0
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
            None => self.settle(),
            Some(_) => self.is_over(now()),
        }
    }

    #[inline]
    fn is_over(&self, now: Instant) -> bool {
        let live = |token: &Token| {
            token.deadline.is_none_or(|deadline| now < deadline) && token.none_above_ended()
        };
        self.ended() || (!live(self) && self.settle_by(Some(now)))
    }

    #[inline]
    fn none_above_ended(&self) -> bool {
        matches!(self.look_up(), Ancestors::Live)
    }

    /// Walks up as far as it needs to.
    #[inline]
    fn look_up(&self) -> Ancestors {
        let mut token = self;
        while let (false, Some(parent)) = (token.halts, &token.parent) {
            if parent.ended() {
                return Ancestors::Ended;
            }
            token = parent;
        }
        if !token.halts {
            Ancestors::Live
        } else if token.is_held() && !token.foreign {
            token.as_ancestor()
        } else {
            token.look_on(self)
        }
    }

    /// Whether this is an anchor that every end above has reached.
    #[inline]
    fn is_held(&self) -> bool {
        self.is_anchored() && PUSHES.load(Ordering::Acquire) == 0
    }

    #[inline]
    fn as_ancestor(&self) -> Ancestors {
        if self.ended() { Ancestors::Ended } else { Ancestors::Live }
    }

    /// From where an anchor may be. Who has a long way to go leaves some for the next.
    fn look_on(&self, from: &Token) -> Ancestors {
        let mut token = self;
        let mut far = false;
        loop {
            if token.foreign && token.rare.as_ref().is_some_and(|rare| rare.is_canceled_from_outside()) {
                return Ancestors::Unclear;
            }
            let Some(parent) = &token.parent else { break };
            if token.level == 0 {
                if token.is_held() {
                    match token.as_ancestor() {
                        Ancestors::Live => break,
                        ended => return ended,
                    }
                }
                if token.second().is_some() {
                    return Ancestors::Unclear;
                }
                far |= !std::ptr::eq(token, from);
            }
            if parent.ended() {
                return Ancestors::Ended;
            }
            token = parent;
        }
        if far {
            from.anchor_above();
        }
        Ancestors::Live
    }

    /// Looks at all ancestors for the earliest end, one that is due included, and ends everything from
    /// there down to this token. False: there is none.
    #[cold]
    fn settle(&self) -> bool {
        self.settle_by((self.deadline.is_some() || self.foreign).then(now))
    }

    /// With no deadline on any path it takes no clock.
    #[cold]
    fn settle_by(&self, now: Option<Instant>) -> bool {
        let mut aftermath = Aftermath::default();
        let settled = self.close_path(now, &mut aftermath);
        // Who only asked, often Tokio's timer, is not to fall over a stranger's waker.
        let _panic = aftermath.clear_up();
        settled
    }

    fn close_path(&self, now: Option<Instant>, aftermath: &mut Aftermath) -> bool {
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
        let Some((rank, mut place)) = earliest else { return false };
        let end = match rank {
            Rank::Dated(at, canceled) => End { at, canceled },
            Rank::Noticed => End { at: now.unwrap_or_else(crate::sync::now), canceled: true },
        };
        seen[place].0.close_by_itself(end, aftermath);
        while place != 0 {
            let parent = seen[place].0;
            place = seen[place].1;
            seen[place].0.close_with(parent, end, aftermath);
        }
        true
    }

    /// Ends it by its deadline, or as a foreign token says.
    fn close_by_itself(&self, end: End, aftermath: &mut Aftermath) {
        if self.ended() {
            return;
        }
        let error = match end.canceled {
            false => self.expiry(),
            true => Error::new(self.origin(How::Token, end.at), None),
        };
        self.close_all(Ending::Told(error), end, Story::Own, aftermath);
    }

    /// Ends it with one of its parents, which has ended.
    fn close_with(&self, parent: &Token, end: End, aftermath: &mut Aftermath) {
        if self.second().is_some() {
            self.close_all(Ending::Told(parent.error()), end, Story::Other, aftermath);
        } else if !self.inherit_unseen() {
            self.close_all(Ending::Inherited, end, Story::Other, aftermath);
        }
    }

    /// Ends it with its parent, which has ended, if it is in no list and has none.
    fn inherit_unseen(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let ended = state | ENDED | INHERITED;
        state & !PARENT == 0
            && self.state.compare_exchange(state, ended, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            && self.remember_inherited()
    }

    /// Every so often on the way down, so that no way up to an error is long; always true.
    fn remember_inherited(&self) -> bool {
        if let (0, Some(parent)) = (self.level, &self.parent) {
            let _told = self.told.set(parent.error());
        }
        true
    }

    /// This token and its ancestors, each with the place of the child it was reached from; those above
    /// one that is not to be passed are left out.
    fn ancestry(&self, pass: impl Fn(&Token) -> bool) -> Vec<(&Token, usize)> {
        let mut seen: Vec<(&Token, usize)> = Vec::with_capacity(2 * STRIDE as usize);
        seen.push((self, 0));
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
    fn rank(&self, now: Option<Instant>) -> Option<Rank> {
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
            next = token.parent.as_deref().filter(|_| !token.may_anchor());
        }
        tokens
    }

    fn is_overdue(&self, now: Option<Instant>) -> bool {
        let over = |deadline| now.is_some_and(|now| deadline <= now);
        self.owns_deadline && self.deadline.is_some_and(over)
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
        let mut token = self;
        loop {
            if let Some(error) = token.told.get().cloned().or_else(|| token.own_error()) {
                return error;
            }
            // Only a child inherits.
            match &token.parent {
                Some(parent) => token = parent,
                None => return token.tell_canceled(None, None),
            }
        }
    }

    /// What its own end was; none if it ended with its parent.
    fn own_error(&self) -> Option<Error> {
        if self.state.load(Ordering::Acquire) & INHERITED != 0 {
            return None;
        }
        let (caller, at) = match &*self.inner.lock() {
            Inner::Closed(Ending::Told(error)) => {
                let error = error.clone();
                return Some(self.told.get_or_init(|| error).clone());
            }
            Inner::Closed(Ending::Inherited) => return None,
            Inner::Closed(Ending::Canceled(caller, at)) => (*caller, *at),
            Inner::Open(_) => (None, None),
        };
        Some(self.tell_canceled(caller, at))
    }

    fn tell_canceled(&self, caller: Caller, at: Option<Instant>) -> Error {
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
            // Settled, so that the next one below has not as far to walk.
            Ancestors::Ended | Ancestors::Unclear if self.settle() => return false,
            Ancestors::Ended | Ancestors::Unclear => {}
        }
        let story = if caller.is_some() { Story::Own } else { Story::Other };
        if caller.is_none() && self.close_unseen() {
            return true;
        }
        let now = now();
        if self.deadline.is_some_and(|deadline| deadline <= now) && self.settle_by(Some(now)) {
            return false;
        }
        let ending = match cause {
            None => Ending::Canceled(caller, Some(now)),
            cause => Ending::Told(Error::new(self.origin(How::by(caller), now), cause)),
        };
        self.finish(ending, End { at: now, canceled: true }, story)
    }

    /// Ends one that nobody waits on and that is of nobody's concern; true if it had not ended.
    pub(crate) fn trip(&self) -> bool {
        self.close_unseen()
    }

    /// Ends it as its scope or guard is dropped, unless no code can see that: with no handle left but this
    /// one, hence no child and no waiter, and no bridge in its list, there is no end.
    #[inline]
    pub(crate) fn abandon(self: &Arc<Self>) {
        // The count before the state: a handle that is gone may have left a bridge. The fence pairs with
        // the count's decrement, so that the state read here is the one that it left.
        let last = Arc::strong_count(self) == 1;
        fence(std::sync::atomic::Ordering::Acquire);
        let state = self.state.load(Ordering::Acquire);
        let alone = last && state & OCCUPIED == 0;
        if state & ENDED == 0 && !alone {
            self.cancel(None, None);
        }
    }

    /// Ends it as its guard goes, with no look at the clock, if it matters to nobody yet when that was: it
    /// has no member, never had a child, and has no deadline that could have come first.
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
    fn finish(&self, ending: Ending, end: End, story: Story) -> bool {
        let Some(closed) = self.close(ending) else { return false };
        if closed.is_all() && !story.is_told() {
            return true;
        }
        let mut aftermath = Aftermath::default();
        self.spread(closed, end, story, &mut aftermath);
        match aftermath.clear_up() {
            Some(panic) if !std::thread::panicking() => resume_unwind(panic),
            _ => true,
        }
    }

    /// Closes it and all that is linked below it, and leaves the rest to `aftermath`.
    fn close_all(&self, ending: Ending, end: End, story: Story, aftermath: &mut Aftermath) {
        if let Some(closed) = self.close(ending) {
            self.spread(closed, end, story, aftermath);
        }
    }

    fn spread(&self, closed: Closed, end: End, story: Story, aftermath: &mut Aftermath) {
        if story.is_told() {
            aftermath.tell(self);
        }
        let mut layers = Vec::from_iter(aftermath.sort(closed, end));
        while let Some(layer) = layers.last_mut() {
            let child = match layer.next() {
                Some(Member::Child(child)) => child.upgrade(),
                Some(Member::Waiter(waker)) => {
                    aftermath.calls.push(Call::Wake(waker));
                    continue;
                }
                None => {
                    aftermath.handles.extend(layers.pop().and_then(|layer| layer.token));
                    continue;
                }
            };
            let Some(child) = child else { continue };
            if child.was_over_before(layer.end) {
                aftermath.forked.push((child, layer.end.at));
                continue;
            }
            let parent = layer.token.as_deref().unwrap_or(self);
            let (ending, end, story) = child.ending_below(parent, layer.end);
            let Some(closed) = child.close(ending) else {
                aftermath.handles.push(child);
                continue;
            };
            if story.is_told() {
                aftermath.tell(&child);
            }
            match aftermath.sort(closed, end) {
                Some(layer) => layers.push(Layer { token: Some(child), ..layer }),
                None if child.rare.is_some() => aftermath.handles.push(child),
                // What has nothing rare in it drops nothing foreign.
                None => {}
            }
        }
    }

    /// What it ends by when a parent has ended: its own deadline, if that came before.
    fn ending_below(&self, parent: &Token, end: End) -> (Ending, End, Story) {
        match self.deadline {
            Some(deadline) if self.owns_deadline && deadline <= end.at => {
                let end = End { at: deadline, canceled: false };
                (Ending::Told(self.expiry()), end, Story::Own)
            }
            _ if self.second().is_some() => (Ending::Told(parent.error()), end, Story::Other),
            _ => (Ending::Inherited, end, Story::Other),
        }
    }

    /// Whether a merged token, about to be told of an end, had ended before by its other path.
    fn was_over_before(&self, end: End) -> bool {
        let over = |at| at < end.at || (at == end.at && end.canceled);
        self.second().is_some() && self.deadline.is_some_and(over)
    }

    /// Ends this token alone.
    fn close(&self, ending: Ending) -> Option<Closed> {
        let mut inner = self.inner.lock();
        if self.ended() {
            return None;
        }
        // A quiet end may come in between; it has no story of its own, and shares this one.
        let inherited = if matches!(ending, Ending::Inherited) { INHERITED } else { 0 };
        let members = match mem::replace(&mut *inner, Inner::Closed(ending)) {
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
            let ended = state | ENDED | inherited;
            match self.state.compare_exchange(state, ended, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) if now & ENDED != 0 => return None,
                Err(now) => state = now,
            }
        }
        drop(inner);
        if inherited != 0 {
            self.remember_inherited();
        }
        Some(Closed { members, pushing })
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
    alarms: Vec<Alarm>,
}

impl Aftermath {
    fn tell(&mut self, token: &Token) {
        self.stories.push((token.error(), token.born_at()));
    }

    /// Takes in what closing a token left, but for its members if there are several, or children.
    #[inline]
    fn sort(&mut self, closed: Closed, end: End) -> Option<Layer> {
        self.pushes += usize::from(closed.pushing);
        let Members { first, more } = closed.members;
        let more = match (&first, more) {
            (_, Some(more)) => self.unpack(*more),
            (Some(Member::Child(_)), None) => Slab::new(),
            (_, None) => {
                if let Some(Member::Waiter(waker)) = first {
                    self.calls.push(Call::Wake(waker));
                }
                return None;
            }
        };
        Some(Layer { token: None, first, more: more.into_iter(), end })
    }

    fn unpack(&mut self, more: More) -> Slab<Member> {
        if let Some(bridge) = more.bridge {
            self.calls.push(Call::Cancel(bridge.outer));
        }
        self.alarms.extend(more.alarm);
        self.calls.more.reserve(more.members.len());
        more.members
    }

    /// Gives back the first panic of somebody else's code.
    fn clear_up(mut self) -> Option<Panic> {
        while let Some((token, at)) = self.forked.pop() {
            token.close_path(Some(at), &mut self);
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
    #[inline]
    pub(crate) fn link(self: &Arc<Self>) -> bool {
        self.is_linked() || self.link_path()
    }

    fn link_path(self: &Arc<Self>) -> bool {
        while !self.is_linked() {
            let mut child = self;
            let mut above = self.parent.as_ref();
            let mut steps = 0;
            while let Some(parent) = above.filter(|parent| !parent.is_linked()) {
                if parent.ended() {
                    return false;
                }
                child = parent;
                above = parent.parent.as_ref();
                steps += 1;
            }
            // A long way is gone once, from anchor to anchor.
            if steps > 2 * STRIDE as usize {
                self.anchor_above();
                continue;
            }
            if above.is_some_and(|parent| !parent.admit(child, &child.seat)) {
                return false;
            }
            child.linked.store(true, Ordering::Release);
        }
        true
    }

    #[inline]
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
    #[inline]
    fn open<'a>(&self, inner: &'a mut Inner) -> Option<&'a mut Members> {
        match inner {
            Inner::Open(members) if !self.note(OCCUPIED) => Some(members),
            _ => None,
        }
    }

    /// Enters a waiter at `seat`, or has the one that sits there wake `waker` from now on. Answers
    /// whether there is an alarm of the runtime `here`; none if the token has ended.
    #[inline]
    pub(crate) fn join(
        &self,
        seat: &mut Seat,
        mut waker: Waker,
        here: Option<runtime::Id>,
    ) -> Option<bool> {
        // What is left of the waker, a parameter, is dropped after the lock.
        let mut inner = self.inner.lock();
        let members = self.open(&mut inner)?;
        let armed = members.alarm().is_some_and(|alarm| Some(alarm.runtime) == here);
        match members.waker(*seat) {
            Some(present) => mem::swap(present, &mut waker),
            None => *seat = members.insert(Member::Waiter(waker)),
        }
        Some(armed)
    }

    /// Whether it lives, and no waker has been taken from here.
    #[inline]
    pub(crate) fn is_undisturbed(&self) -> bool {
        self.state.load(Ordering::Acquire) & (ENDED | ROUSED) == 0
    }

    /// Whether wakers have been taken from here, so that a waiter cannot count on its own being there.
    pub(crate) fn is_roused(&self) -> bool {
        self.state.load(Ordering::Acquire) & ROUSED != 0
    }

    /// A waiter, or a child, leaves.
    #[inline]
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

    #[inline]
    fn insert(&mut self, member: Member) -> Seat {
        if self.first.is_none() {
            self.first = Some(member);
            return Seat(1);
        }
        self.insert_more(member)
    }

    fn insert_more(&mut self, member: Member) -> Seat {
        let more = self.more.get_or_insert_default();
        Seat(u32::try_from(more.members.insert(member) + 2).expect("fewer than 2^32 members"))
    }

    fn alarm(&self) -> Option<&Alarm> {
        self.more.as_ref().and_then(|more| more.alarm.as_ref())
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

    #[inline]
    fn remove(&mut self, seat: Seat) -> Option<Member> {
        match seat.0 {
            0 => None,
            1 => self.first.take(),
            at => self.remove_more(at as usize - 2),
        }
    }

    fn remove_more(&mut self, key: usize) -> Option<Member> {
        let more = self.more.as_mut()?;
        let member = more.members.try_remove(key);
        // What a crowd left behind is given back.
        if more.members.is_empty() && more.members.capacity() > ROOMY {
            more.members = Slab::new();
        }
        member
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
            return self.settle_by(Some(deadline.max(now())));
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
                members.alarm().map(|alarm| here.is_none_or(|here| alarm.runtime == here))
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
            self.settle_by(Some(deadline.max(now())));
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
    #[inline]
    fn drop(&mut self) {
        let second = self.leave_second();
        let parent = self.leave_parent().and_then(Arc::into_inner);
        if parent.is_some() || second.is_some() {
            take_apart(parent, Vec::from_iter(second));
        }
    }
}

/// Takes the last handles' tokens apart, `next` first.
#[cold]
fn take_apart(mut next: Option<Token>, mut pending: Vec<Arc<Token>>) {
    loop {
        // Before the token goes: its cause's drop may panic, and the rest must go all the same.
        while let Some(mut token) = next.take() {
            pending.extend(token.leave_second());
            next = token.leave_parent().and_then(Arc::into_inner);
        }
        let Some(other) = pending.pop() else { break };
        next = Arc::into_inner(other);
    }
}

impl Token {
    #[inline]
    fn leave_parent(&mut self) -> Option<Arc<Token>> {
        let parent = self.parent.take()?;
        parent.leave_if_seated(&self.seat);
        Some(parent)
    }

    /// Leaves a merged one's other parent.
    #[inline]
    fn leave_second(&mut self) -> Option<Arc<Token>> {
        let second = self.rare.as_mut()?.second.take()?;
        second.parent.leave_if_seated(&second.seat);
        Some(second.parent)
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
