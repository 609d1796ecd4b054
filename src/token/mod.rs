//! The engine: a tree of tokens, each of which ends once.
//!
//! # The obvious design
//!
//! Every child is registered with its parent at birth; a cancel locks the parent, and goes through the children.
//! tokio-util's `CancellationToken` is built so. It costs each derive two locks and a place in a list, which most
//! contexts never need: they live for one call, and nothing waits on them. Threads that derive from one parent
//! queue for its lock. A deadline costs each wait a Tokio timer, registered and removed under one lock of the
//! runtime, often with a system call that wakes the driver. And it has a race: a child that is being derived while
//! the parent is canceled must either be in the list that is gone through, or see the end by itself.
//!
//! # The design instead
//!
//! **Linked means local.** A child is one allocation that points at its parent, and touches no lock. Only when
//! something waits on it is it *linked*: entered in its parent's list, as the parents are in theirs, from the top
//! down. For cancellation a linked token's own state is the whole truth. One that is not linked walks up to its
//! nearest linked ancestor, and all on the way count; a walk of more than [`LONG`] steps links the path, once.
//!
//! **Deadlines share timers**, see [`deadline`].
//!
//! **An end is dated only if it can be compared** with another: if a deadline is on the path, or lies below.
//!
//! # State
//!
//! | bit | set by | under | never before |
//! |---|---|---|---|
//! | `ENDED` | what closes the token | the lock, once `OCCUPIED`; otherwise nothing | date, caller and error are stored |
//! | `INHERITED`, `CALLED`, `EXPIRED`, `DATED`, `KEPT` | the same step | | |
//! | `CLOSING` | the same step, if there may be linked children | the lock | |
//! | `OCCUPIED` | what enters a list, or stores anything else under the lock | the lock | |
//! | `TIMED` | the birth of a deadline, on all ancestors | nothing | |
//! | `BRIDGED`, `DISTURBED` | a `CancellationToken` made from it; wakers taken out before the end | the lock | `OCCUPIED` |
//! | `MERGED`, `PULSED`, `OWNS_PULSE`, `CAUSED` | birth, with `OCCUPIED` (an inherited `PULSED` without) | nothing | |
//!
//! `seat` is zero until the token is linked. It is written under the parent's lock.
//!
//! ```text
//!  born ── link() ──> linked ── close() ──> ENDED|CLOSING ── descendants are closed ──> ENDED
//!    │                   │                                                                ^
//!    │                   └── close(), with no children ───────────────────────────────────┤
//!    ├── close(), by itself or by what finds an ended ancestor ──────────────────────────-┤
//!    └── dropped by its last handle: no end                                               │
//!                                                         wakers are called, outside of all locks
//! ```
//!
//! One request:
//!
//! ```text
//!  root   with_timeout(5 s)       born: one allocation; TIMED on its ancestors
//!  child  root.with_cancel()      born
//!  child  .done() is polled       root and child are linked, the waker registered, the deadline in a bucket
//!  root   .cancel()               root ENDED|CLOSING; child ENDED; root's CLOSING is cleared; the waker is called
//!  child  .done() is polled       reads ENDED: its error is found at root
//!  child, root                    dropped: out of the lists, out of the bucket
//! ```
//!
//! # Why no end is missed
//!
//! 1. *A token ends once.* `ENDED` is set by one compare-and-swap, and all that tells of the end is stored before
//!    it. An end that is found above is made the token's own, from the top of the path down, before it is
//!    reported ([`Token::settle`]): two answers about one token never differ.
//! 2. *No member is lost.* What enters a list holds its lock, and sets `OCCUPIED` in the word that `ENDED` is set
//!    in: either it sees the end, and is refused, or what ends the token has to take the lock, and finds it.
//! 3. *No ancestor's end is missed.* A linked token's ancestors are linked. Each took its child in under its lock,
//!    not having ended; so its end finds the child in its list. A token that is not linked reads the state of each
//!    ancestor up to a linked one.
//! 4. *When a `cancel` returns, all descendants have ended.* Descendants are closed depth first. A token with
//!    children is `CLOSING` until all below it are closed. What meets one that another thread is closing waits
//!    until it is not `CLOSING`, and so does a second `cancel`. Nothing foreign runs meanwhile, and a wait is always
//!    for a token further down the tree, so that there is no circle.
//! 5. *The earliest end wins.* An end is dated if the state shows that it can be compared: `TIMED` is in the word
//!    that `ENDED` is set in. One that is not dated came before there was any deadline below. Each end has a bound
//!    ([`end::Ending`]): a child whose own deadline lies before it ends by that deadline.
//!
//! # Locks
//!
//! One lock a token and one a bucket; never two at once. Wakers are cloned before and called or dropped after,
//! as is everything that may run foreign code ([`work::Work`]). They are all called once everything is closed, not as
//! closing proceeds: a waker that cancels again would wait for what its own thread is closing.

mod attachment;
mod deadline;
mod end;
mod members;
mod tree;
mod work;

use std::collections::BTreeSet;
use std::panic::Location;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use crate::sync;

pub(crate) use self::attachment::{Attachment, Check};
pub(crate) use crate::pages::Seat;

use self::members::Inner;
use crate::error::BoxError;
use crate::stamp::{Stamp, nanos};
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::trace;

/// So many polls of a wait, or waits made on a token, may go without a look at the clock.
pub(crate) const UNCLOCKED: u8 = 64;
/// A walk up that is longer than this links the path.
const LONG: usize = if cfg!(tokio_ctx_loom) { 3 } else { 32 };
/// Every so many levels an inherited error is copied.
const STRIDE: u8 = if cfg!(tokio_ctx_loom) { 4 } else { 32 };

const ENDED: u16 = 1;
/// Ended with its parent, whose error it has.
const INHERITED: u16 = 1 << 1;
/// How it ended, if by itself: otherwise its scope was dropped.
const CALLED: u16 = 1 << 2;
const EXPIRED: u16 = 1 << 3;
const FOREIGN: u16 = CALLED | EXPIRED;
/// The time of its end is known, and compared with others.
const DATED: u16 = 1 << 4;
/// Its error is kept under the lock.
const KEPT: u16 = 1 << 5;
/// An attachment of the token, or of one above it, is checked by queries; and one of its own is.
const CHECKED: u16 = 1 << 6;
const OWNS_CHECK: u16 = 1 << 15;
/// A list has, or had, a member, or something else is under the lock.
const OCCUPIED: u16 = 1 << 7;
/// A deadline lies below.
const TIMED: u16 = 1 << 8;
/// What is linked below it is being closed.
const CLOSING: u16 = 1 << 9;
/// An attachment observes its end.
const OBSERVED: u16 = 1 << 10;
const MERGED: u16 = 1 << 11;
/// Wakers have been taken out before the end.
const DISTURBED: u16 = 1 << 12;
/// Its deadline has a cause.
const CAUSED: u16 = 1 << 13;
/// Marked by a module above.
const MARKED: u16 = 1 << 14;

pub(crate) struct Token {
    state: AtomicU16,
    /// Levels below the last one that copies an inherited error, [`OWNS_DEADLINE`], and in between the preset cause of
    /// its own deadline's end.
    level: u8,
    /// Counts waits that did not look at the clock.
    turns: AtomicU8,
    /// Its place in the parent's list, once it is linked.
    seat: AtomicU32,
    parent: Option<Arc<Token>>,
    /// The earliest deadline on the path.
    deadline: Stamp,
    /// With a deadline of its own, the budget in nanoseconds; otherwise the time of its birth, as `trace` notes it.
    clock: u64,
    made_at: Line,
    canceled_at: OnceLock<Line>,
    /// Until the end 1 above its place in the bucket, if it is in one; from then on when it ended. 0 is neither.
    word: AtomicU64,
    inner: Mutex<Inner>,
}

type Line = &'static Location<'static>;

/// The seat of a root, which counts as linked.
const ROOT: u32 = u32::MAX;

/// Set in `level` if the deadline is the token's own.
const OWNS_DEADLINE: u8 = 1 << 7;
/// Where the number of a preset cause begins in `level`.
const PRESET: u32 = 5;
/// What remains of `level`.
const LEVEL: u8 = (1 << PRESET) - 1;

/// A deadline to be.
pub(crate) struct Limit {
    pub(crate) at: Instant,
    pub(crate) now: Instant,
    pub(crate) budget: Duration,
    pub(crate) cause: Option<BoxError>,
    /// In place of that, the number of a cause that needs no memory: see [`finished::preset`](crate::finished::preset).
    pub(crate) preset: u8,
}

// Creation.
impl Token {
    /// Makes a child of `parent`, or a root. It takes no lock, and touches the parent's count only.
    #[inline]
    pub(crate) fn new(parent: Option<&Arc<Token>>, limit: Option<Limit>, made_at: Line) -> Arc<Token> {
        match limit {
            Some(limit) => Token::with_limit(parent, limit, made_at),
            None if trace::records_creation() => Token::with_time(parent, made_at),
            None => Arc::new_cyclic(|_| Token::node(parent, None, 0, made_at)),
        }
    }

    /// Makes one whose time of creation is recorded. A function of its own, so that the others pay for one branch only.
    #[cold]
    fn with_time(parent: Option<&Arc<Token>>, made_at: Line) -> Arc<Token> {
        let created = trace::time_of_creation();
        Arc::new_cyclic(|_| Token::node(parent, None, created, made_at))
    }

    fn with_limit(parent: Option<&Arc<Token>>, limit: Limit, made_at: Line) -> Arc<Token> {
        let deadline = Stamp::new(limit.at);
        if parent.is_some_and(|parent| parent.deadline <= deadline) || deadline == Stamp::NEVER {
            return Token::new(parent, None, made_at);
        }
        let own = (deadline, nanos(limit.budget), limit.preset);
        let token = Arc::new_cyclic(|_| Token::node(parent, Some(own), 0, made_at));
        if let Some(cause) = limit.cause {
            token.inner.lock().more().expiry = Some(cause.into());
            token.state.fetch_or(OCCUPIED | CAUSED, Ordering::Relaxed);
        }
        if let Some(parent) = parent {
            parent.date_ends();
        }
        if limit.at <= limit.now {
            let now = Stamp::new(limit.now);
            match parent.filter(|parent| parent.is_done_by(now)) {
                // The parent's end came before this token was created.
                Some(parent) => token.end_with(parent),
                None => _ = token.end_if_due(now),
            }
        }
        token
    }

    /// Makes a child of both, which ends when either does. It is linked from birth.
    pub(crate) fn merge(parent: &Arc<Token>, other: &Arc<Token>, made_at: Line) -> Arc<Token> {
        let mut token = Token::node(Some(parent), None, trace::created_now(), made_at);
        token.deadline = parent.deadline.min(other.deadline);
        let checked = CHECKED & (parent.state() | other.state());
        token.state = AtomicU16::new(OCCUPIED | MERGED | checked);
        token.inner.get_mut().more().second = Some((other.clone(), Seat::default()));
        if token.has_deadline() {
            parent.date_ends();
            other.date_ends();
        }
        let token = Arc::new(token);
        let ended = || [parent, other].into_iter().find(|parent| parent.is_done());
        let ended = ended().or_else(|| {
            token.link_both(other);
            ended()
        });
        if let Some(parent) = ended {
            token.end_with(parent);
        }
        token
    }

    /// What a new token is made of, with a deadline of its own, the budget, and the number of a preset cause, if it
    /// has one. It is built where it is to stay, by `Arc::new_cyclic`: what `Arc::new` is given is copied there.
    #[inline(always)]
    fn node(
        parent: Option<&Arc<Token>>,
        own: Option<(Stamp, u64, u8)>,
        created: u64,
        made_at: Line,
    ) -> Token {
        let level = parent.map_or(0, |parent| (parent.level & LEVEL) + 1) % STRIDE;
        let (deadline, level, clock) = match own {
            Some((deadline, budget, preset)) => {
                (deadline, level | OWNS_DEADLINE | (preset << PRESET), budget)
            }
            None => (parent.map_or(Stamp::NEVER, |parent| parent.deadline), level, created),
        };
        // Set at the parent's birth.
        let checked = parent.map_or(0, |parent| parent.state.load(Ordering::Relaxed) & CHECKED);
        Token {
            state: AtomicU16::new(checked),
            level,
            turns: AtomicU8::new(0),
            seat: AtomicU32::new(if parent.is_none() { ROOT } else { 0 }),
            parent: parent.cloned(),
            deadline,
            clock,
            made_at,
            canceled_at: OnceLock::new(),
            word: AtomicU64::new(0),
            inner: Mutex::new(Inner::EMPTY),
        }
    }

    /// Has this token's end dated, whatever ends it: sets `TIMED` here and on all ancestors, up to those that
    /// have it.
    pub(crate) fn date_ends(self: &Arc<Self>) {
        let is_new = |token: &Token| token.state.fetch_or(TIMED, Ordering::AcqRel) & TIMED == 0;
        if !self.has(TIMED) {
            self.walk_up(|token| is_new(token));
        }
    }
}

// State.
impl Token {
    #[inline]
    fn state(&self) -> u16 {
        self.state.load(Ordering::Acquire)
    }

    #[inline]
    fn has(&self, bits: u16) -> bool {
        self.state() & bits != 0
    }

    /// Sets `bit`; true if the token has ended.
    #[inline]
    fn set(&self, bit: u16) -> bool {
        let state = self.state();
        let state = if state & bit == 0 { self.state.fetch_or(bit, Ordering::AcqRel) } else { state };
        state & ENDED != 0
    }

    /// Whether it is in its parent's list, so that an end above reaches it; or a root.
    pub(crate) fn is_linked(&self) -> bool {
        self.seat.load(Ordering::Acquire) != 0
    }

    /// Marks it for the module that made it, before it is shared.
    #[cfg(feature = "http")]
    pub(crate) fn mark(&self) {
        self.state.fetch_or(MARKED, Ordering::Relaxed);
    }

    #[cfg(feature = "http")]
    pub(crate) fn is_marked(&self) -> bool {
        self.has(MARKED)
    }

    #[inline]
    pub(crate) fn has_deadline(&self) -> bool {
        self.deadline != Stamp::NEVER
    }

    pub(crate) fn owns_deadline(&self) -> bool {
        self.level & OWNS_DEADLINE != 0
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.has_deadline().then(|| self.deadline.instant())
    }

    pub(crate) fn budget(&self) -> Option<Duration> {
        self.owns_deadline().then(|| Duration::from_nanos(self.clock))
    }

    pub(crate) fn made_at(&self) -> Line {
        self.made_at
    }

    /// When it was made, if that is known.
    pub(crate) fn created_at(&self) -> Option<Instant> {
        match self.budget() {
            Some(budget) => self.deadline.instant().checked_sub(budget),
            None => trace::instant_of(self.clock),
        }
    }

    /// Whether a wait that begins now is one that is to read the clock. Most need not, as there is a timer.
    pub(crate) fn is_turn_for_clock(&self) -> bool {
        let turns = self.turns.load(Ordering::Relaxed).wrapping_add(1);
        self.turns.store(turns, Ordering::Relaxed);
        turns % UNCLOCKED == 0
    }
}

// Ancestors.
impl Token {
    /// The parent; of a merged token the first.
    pub(crate) fn parent(&self) -> Option<&Arc<Token>> {
        self.parent.as_ref()
    }

    /// The second parent of a merged token.
    pub(crate) fn second(&self) -> Option<Arc<Token>> {
        if !self.has(MERGED) {
            return None;
        }
        let inner = self.inner.lock();
        Some(inner.more.as_ref()?.second.as_ref()?.0.clone())
    }

    /// Visits this token and all above it, on both sides of a merged one, whose own two paths are walked once. Goes no
    /// further up from one for which `visit` returns false.
    #[cold]
    pub(crate) fn walk_up(self: &Arc<Self>, mut visit: impl FnMut(&Arc<Token>) -> bool) {
        let (mut merged, mut pending) = (BTreeSet::new(), Vec::new());
        let mut walk = |first: &Arc<Token>, pending: &mut Vec<Arc<Token>>| {
            let mut next = Some(first);
            while let Some(token) = next.filter(|token| visit(token)) {
                if token.has(MERGED) {
                    if !merged.insert(Arc::as_ptr(token)) {
                        break;
                    }
                    pending.extend(token.second());
                }
                next = token.parent();
            }
        };
        walk(self, &mut pending);
        while let Some(second) = pending.pop() {
            walk(&second, &mut pending);
        }
    }
}
