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

mod deadline;
mod end;
mod interop;
#[cfg(feature = "watch")]
pub(crate) mod look;
mod members;
mod pulse;
pub(crate) mod sync;
mod tree;
mod work;

use std::panic::Location;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::BoxError;
use crate::stamp::{Stamp, nanos};
use crate::trace;
use members::Inner;
pub(crate) use members::Seat;
pub use pulse::NoProgress;
pub(crate) use pulse::Pulse;
use sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Mutex, Ordering};

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
/// A list has, or had, a member, or something else is under the lock.
const OCCUPIED: u16 = 1 << 7;
/// A deadline lies below.
const TIMED: u16 = 1 << 8;
/// What is linked below it is being closed.
const CLOSING: u16 = 1 << 9;
const BRIDGED: u16 = 1 << 10;
const MERGED: u16 = 1 << 11;
/// Wakers have been taken out before the end.
const DISTURBED: u16 = 1 << 12;
/// Its deadline has a cause.
const CAUSED: u16 = 1 << 13;
/// It is a request's own: its parent is what serves.
#[cfg(feature = "http")]
const REQUEST: u16 = 1 << 14;
/// A pulse is on the path; and it is the token's own.
const PULSED: u16 = 1 << 6;
const OWNS_PULSE: u16 = 1 << 15;

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
    made_at: &'static Location<'static>,
    canceled_at: OnceLock<&'static Location<'static>>,
    /// Until the end 1 above its place in the bucket, if it is in one; from then on when it ended. 0 is neither.
    word: AtomicU64,
    inner: Mutex<Inner>,
}

/// The seat of a root, which counts as linked.
const ROOT: u32 = u32::MAX;

/// Set in `level` if the deadline is the token's own.
const OWNS_DEADLINE: u8 = 1 << 7;
/// Where the number of a preset cause begins in `level`.
const PRESET: u32 = 5;
/// What remains of `level`.
const LEVEL: u8 = (1 << PRESET) - 1;

impl Stamp {
    #[inline]
    fn now() -> Stamp {
        Stamp::new(sync::now())
    }
}

/// A deadline to be.
pub(crate) struct Limit {
    pub(crate) at: Instant,
    pub(crate) now: Instant,
    pub(crate) budget: Duration,
    pub(crate) cause: Option<BoxError>,
    /// In place of that, the number of a cause that needs no memory: see [`finished::preset`].
    pub(crate) preset: u8,
}

impl Token {
    /// Makes a child of `parent`, or a root. It takes no lock, and touches the parent's count only.
    #[inline]
    pub(crate) fn new(
        parent: Option<&Arc<Token>>,
        limit: Option<Limit>,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        match limit {
            Some(limit) => Token::with_limit(parent, limit, made_at),
            None => Arc::new_cyclic(|_| Token::plain(parent, None, made_at)),
        }
    }

    fn with_limit(
        parent: Option<&Arc<Token>>,
        limit: Limit,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let Limit { at, now, budget, cause, preset } = limit;
        let deadline = Stamp::new(at);
        if deadline >= parent.map_or(Stamp::NEVER, |parent| parent.deadline) {
            return Token::new(parent, None, made_at);
        }
        let limit = (deadline, nanos(budget), preset);
        let token = Arc::new_cyclic(|_| Token::plain(parent, Some(limit), made_at));
        if let Some(cause) = cause {
            token.inner.lock().more().expiry = Some(cause.into());
            token.state.fetch_or(OCCUPIED | CAUSED, Ordering::Relaxed);
        }
        if let Some(parent) = parent {
            parent.date_ends();
        }
        if at <= now {
            token.end_at_birth(Stamp::new(now));
        }
        token
    }

    /// Ends one that is born past its deadline; an end above, which came before its birth, goes first.
    #[cold]
    fn end_at_birth(self: &Arc<Self>, now: Stamp) {
        match &self.parent {
            Some(parent) if parent.is_over(now) => self.end_with(parent),
            _ => {
                self.settle(now);
            }
        }
    }

    /// Makes a child of both, which ends when either does. It is linked from birth.
    pub(crate) fn merge(
        parent: &Arc<Token>,
        other: &Arc<Token>,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let mut token = Token::plain(Some(parent), None, made_at);
        token.deadline = parent.deadline.min(other.deadline);
        let pulsed =
            PULSED & (token.state.load(Ordering::Relaxed) | other.state.load(Ordering::Relaxed));
        token.state = AtomicU16::new(OCCUPIED | MERGED | pulsed);
        token.inner.get_mut().more().second = Some((other.clone(), Seat::default()));
        if token.deadline != Stamp::NEVER {
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

    /// What a new token is made of, with a deadline of its own, the budget, and
    /// the number of a preset cause, if it has one. It is built where it
    /// is to stay, by `Arc::new_cyclic`: what `Arc::new` is given is copied there.
    #[inline(always)]
    fn plain(
        parent: Option<&Arc<Token>>,
        limit: Option<(Stamp, u64, u8)>,
        made_at: &'static Location<'static>,
    ) -> Token {
        let level = parent.map_or(0, |parent| (parent.level & LEVEL) + 1) % STRIDE;
        let inherited = parent.map_or(Stamp::NEVER, |parent| parent.deadline);
        let (deadline, level, clock) = match limit {
            Some((deadline, budget, preset)) => {
                (deadline, level | OWNS_DEADLINE | (preset << PRESET), budget)
            }
            None => (inherited, level, trace::birth()),
        };
        // Set at the parent's birth.
        let pulsed = parent.map_or(0, |parent| parent.state.load(Ordering::Relaxed) & PULSED);
        Token {
            state: AtomicU16::new(pulsed),
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
    #[inline]
    pub(crate) fn date_ends(self: &Arc<Self>) {
        if !self.has(TIMED) {
            self.date_path();
        }
    }

    #[cold]
    fn date_path(self: &Arc<Self>) {
        let date = |token: &Arc<Token>, others: &mut Vec<Arc<Token>>| {
            for token in token.ancestors().take_while(|token| !token.has(TIMED)) {
                if token.state.fetch_or(TIMED, Ordering::AcqRel) & MERGED != 0 {
                    others.extend(token.second());
                }
            }
        };
        let mut others = Vec::new();
        date(self, &mut others);
        while let Some(token) = others.pop() {
            date(&token, &mut others);
        }
    }

    /// Sets `bit`; true if the token has ended.
    #[inline]
    fn note(&self, bit: u16) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        if state & bit == 0 {
            state = self.state.fetch_or(bit, Ordering::AcqRel);
        }
        state & ENDED != 0
    }

    /// Whether it is in its parent's list, so that an end above reaches it; or a root.
    #[inline]
    fn is_linked(&self) -> bool {
        self.seat.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn has(&self, bits: u16) -> bool {
        self.state.load(Ordering::Acquire) & bits != 0
    }

    fn owns_deadline(&self) -> bool {
        self.level & OWNS_DEADLINE != 0
    }

    /// Returns whether `above` is this token or on a path to a root. A walk of more than a thousand steps is given up.
    #[cfg(feature = "tower")]
    pub(crate) fn is_below(&self, above: &Arc<Token>) -> bool {
        self.reaches(above, &mut 1000)
    }

    #[cfg(feature = "tower")]
    fn reaches(&self, above: &Arc<Token>, steps: &mut usize) -> bool {
        let mut at = self;
        while *steps > 0 {
            *steps -= 1;
            if std::ptr::eq(at, &**above) {
                return true;
            }
            if at.has(MERGED) && at.second().is_some_and(|second| second.reaches(above, steps)) {
                return true;
            }
            let Some(parent) = &at.parent else { return false };
            at = parent;
        }
        false
    }

    /// The number of the cause that its own deadline's end has, if that is a preset one.
    fn preset(&self) -> u8 {
        (self.level & !OWNS_DEADLINE) >> PRESET
    }

    /// Marks it as a request's own, before it is shared.
    #[cfg(feature = "http")]
    pub(crate) fn mark_request(&self) {
        self.state.fetch_or(REQUEST, Ordering::Relaxed);
    }

    /// The parent of the nearest request's own token on the path, and whether there is one.
    #[cfg(feature = "http")]
    pub(crate) fn serving(self: &Arc<Self>) -> Option<Option<&Arc<Token>>> {
        let mut next = Some(self);
        while let Some(token) = next {
            if token.has(REQUEST) {
                return Some(token.parent.as_ref());
            }
            next = token.parent.as_ref();
        }
        None
    }

    /// The parents of a merged token.
    #[cfg(feature = "http")]
    pub(crate) fn merged(&self) -> Option<(Arc<Token>, Arc<Token>)> {
        if self.has(MERGED) { Some((self.parent.clone()?, self.second()?)) } else { None }
    }

    /// The second parent of a merged token.
    fn second(&self) -> Option<Arc<Token>> {
        let inner = self.inner.lock();
        Some(inner.more.as_ref()?.second.as_ref()?.0.clone())
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.has_deadline().then(|| self.deadline.instant())
    }

    #[inline]
    pub(crate) fn has_deadline(&self) -> bool {
        self.deadline != Stamp::NEVER
    }

    pub(crate) fn made_at(&self) -> &'static Location<'static> {
        self.made_at
    }

    pub(crate) fn budget(&self) -> Option<Duration> {
        self.owns_deadline().then(|| Duration::from_nanos(self.clock))
    }

    /// Whether a wait that begins now is one that is to read the clock. Most need not, as there is a timer.
    pub(crate) fn is_turn_for_clock(&self) -> bool {
        let turns = self.turns.load(Ordering::Relaxed).wrapping_add(1);
        self.turns.store(turns, Ordering::Relaxed);
        turns % UNCLOCKED == 0
    }

    /// When it was made, if that is known.
    fn born_at(&self) -> Option<Instant> {
        match self.budget() {
            Some(budget) => self.deadline.instant().checked_sub(budget),
            None => trace::noted(self.clock),
        }
    }
}
