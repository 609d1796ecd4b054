//! The engine: a tree of tokens, each of which ends once.
//!
//! # The obvious design
//!
//! Each child is registered with its parent when it is created. To cancel, the parent is locked, and the end is
//! propagated to each child in its list. tokio-util's `CancellationToken` works like this. The design has three problems:
//!
//! - Each derive takes two locks and a place in a list. Most contexts live for one call, nothing waits on them, and they
//!   need neither. Threads that derive from the same parent wait for its lock.
//! - Each wait on a deadline takes a Tokio timer, which is registered and deregistered under the one lock of the
//!   runtime's time driver, often with a system call that wakes the driver.
//! - There is a race. A child that is derived while its parent is canceled must either be in the list before the list is
//!   walked, or notice the end itself.
//!
//! # This design
//!
//! **Tokens are linked late.** Deriving a child is one allocation. The child points at its parent, and no lock is taken.
//! A child is *linked*, which means that it is in its parent's list, when something waits on it for the first time. Its
//! ancestors are linked before it, from the top down. From then on, the end of any ancestor reaches it, so its own state
//! tells whether it was canceled. A query of a token that is not linked also reads the state of each ancestor, up to
//! the nearest linked one. If there are more than [`LINK_AFTER`] of them, the query links the path, so that the next
//! query is short.
//!
//! **Deadlines share timers.** See [`bucket`](crate::bucket) and [`deadline`].
//!
//! **The time of an end is recorded only if it can matter**, that is, if a deadline is on the path or below, because the
//! two have to be compared.
//!
//! **Everything else is attached.** A `CancellationToken`, an idle limit and the registration with a watch are
//! [attachments](attachment). The engine does not know their types.
//!
//! # State
//!
//! The state of a token is one atomic word. "The lock" is the token's own lock.
//!
//! | bit | set when | under the lock | never before |
//! |---|---|---|---|
//! | `ENDED` | the token ends | if it is `OCCUPIED` | the line, the time and the error of the end are stored |
//! | `INHERITED`, `CANCELED`, `EXPIRED`, `DATED`, `HAS_ERROR` | together with `ENDED` | | |
//! | `CLOSING` | together with `ENDED`, if there are linked children | yes | |
//! | `OCCUPIED` | something is first stored under the lock | yes | |
//! | `DEADLINE_BELOW` | a descendant with a deadline is created | no | |
//! | `OBSERVED` | an attachment is to be notified of the end | no | |
//! | `WAKERS_TAKEN` | waiters are woken before the end, to register again | yes | `OCCUPIED` |
//! | `MERGED`, `CHECKED`, `OWNS_CHECK`, `HAS_CAUSE`, `MARKED` | the token is created | no | |
//!
//! `CLOSING` is cleared when all descendants are closed. All other bits stay set. `key` is zero until the token is
//! linked, and is written under the parent's lock.
//!
//! ```text
//!  created ── link() ──> linked ── close() ──> ENDED|CLOSING ── all descendants are closed ──> ENDED
//!    │                     │                                                                    ^
//!    │                     └── close(), without children ───────────────────────────────────────┤
//!    ├── close(), by itself or because an ancestor has ended ───────────────────────────────────┘
//!    └── last handle dropped: no end
//!                                                   wakers are called when all locks are released
//! ```
//!
//! One request:
//!
//! ```text
//!  root   with_timeout(5 s)       created: one allocation
//!  child  root.with_cancel()      created: one allocation, no lock
//!  child  .done() is polled       child is linked; its waker is registered, and the deadline with a bucket
//!  root   .cancel()               root: ENDED|CLOSING; child: ENDED; CLOSING is cleared; the waker is called
//!  child  .done() is polled       reads ENDED, and takes the error from root
//!  child, root                    dropped: removed from the parent's list and from the bucket
//! ```
//!
//! # Why no wake-up is lost
//!
//! 1. *A token ends once.* One compare-and-swap sets `ENDED`. Everything that the error needs is stored before. If a
//!    query finds that an ancestor has ended, or that a deadline on the path has passed, it first closes the path from
//!    there down to the token, and then answers ([`Token::end_if_due`]). So two answers about one token never differ.
//! 2. *A registration is never missed.* A waiter or a child is inserted into a list under the lock, and in the same step
//!    sets `OCCUPIED` in the word that also contains `ENDED`. One of the two bits is first. If `ENDED` is first, the
//!    insertion is refused, and the waiter reports the end at once. If `OCCUPIED` is first, the end has to take the lock
//!    as well, and finds what was inserted.
//! 3. *The end of an ancestor is never missed.* The ancestors of a linked token are linked. Each of them accepted its
//!    child under its lock when it had not ended, so its end will find that child in the list. A token that is not
//!    linked has no waiters, and a query of it reads the states of its ancestors. If an ancestor that has ended refuses an
//!    insertion, no token below it will ever be linked, and all of them have ended for their queries. But a child that another
//!    thread inserted before the end may not be closed yet, and linking goes on below that child.
//! 4. *When `cancel` returns, all descendants have ended.* They are closed depth first, and a token with children is
//!    `CLOSING` until all tokens below it are closed. A thread that meets a token that another thread is closing waits
//!    until it is no longer `CLOSING`, and so does a second call of `cancel`. This wait is short, because no foreign
//!    code runs in the meantime. It cannot deadlock, because a thread only waits for tokens further down the tree.
//! 5. *The earliest end wins.* `DEADLINE_BELOW` is in the same word as `ENDED`. If it is first, the end records its
//!    time. If `ENDED` is first, the deadline was created after the end. The bit is set on the ancestors first, so that a
//!    token that has it stands for all of them. Each end has a [bound](end::Ending::bound). A child whose own deadline is
//!    before the bound ends by that deadline.
//!
//! # Locks
//!
//! Each token and each bucket has one lock. No thread ever holds two. Wakers are cloned before a lock is taken, and are
//! called or dropped after it is released, like everything else that can run foreign code ([`work`](crate::work)). They
//! are called when all tokens are closed, and not earlier: a waker that cancels again would wait for tokens that its own
//! thread is closing.

mod attachment;
mod deadline;
mod end;
mod members;
mod tree;

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use once_cell::race::OnceRef;
use tokio::time::Instant;

pub(crate) use self::attachment::{Attachment, Check};
use self::end::UNDATED;
use self::members::Inner;
use crate::error::BoxError;
pub(crate) use crate::pages::Key;
use crate::stamp::Stamp;
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::trace;

/// One in so many polls of a wait, and one in so many waits created for a token, reads the clock.
pub(crate) const CLOCK_INTERVAL: u8 = 64;
/// A query that walks up more levels than this links the path.
const LINK_AFTER: usize = if cfg!(tokio_ctx_loom) { 3 } else { 32 };
/// An inherited error is copied at each level that is a multiple of this.
const COPY_INTERVAL: u8 = if cfg!(tokio_ctx_loom) { 4 } else { 32 };

/// The token has ended.
const ENDED: u16 = 1;
/// It ended with its parent, and has the error of its parent.
const INHERITED: u16 = 1 << 1;
/// How it ended: by a call of `cancel`, by its deadline, or, with both bits, by a `CancellationToken`. With neither bit,
/// its scope was dropped.
const CANCELED: u16 = 1 << 2;
const EXPIRED: u16 = 1 << 3;
const BY_TOKEN: u16 = CANCELED | EXPIRED;
/// The end has a time, which is compared with deadlines.
const DATED: u16 = 1 << 4;
/// The error is stored under the lock.
const HAS_ERROR: u16 = 1 << 5;
/// Queries check an attachment of this token or of an ancestor.
const CHECKED: u16 = 1 << 6;
/// Queries check an attachment of this token.
const OWNS_CHECK: u16 = 1 << 15;
/// Something is, or was, stored under the lock.
const OCCUPIED: u16 = 1 << 7;
/// A descendant has a deadline, or the time of the end is needed for another reason.
const DEADLINE_BELOW: u16 = 1 << 8;
/// The linked descendants are being closed.
const CLOSING: u16 = 1 << 9;
/// An attachment is to be notified of the end.
const OBSERVED: u16 = 1 << 10;
/// The token has two parents.
const MERGED: u16 = 1 << 11;
/// Waiters have been woken before the end.
const WAKERS_TAKEN: u16 = 1 << 12;
/// The deadline has a cause, which is stored under the lock.
const HAS_CAUSE: u16 = 1 << 13;
/// A module above has marked the token.
#[cfg(feature = "http")]
const MARKED: u16 = 1 << 14;

/// A node of the tree.
pub(crate) struct Token {
    state: AtomicU16,
    /// From the low bits up: the level modulo [`COPY_INTERVAL`], the number of the deadline's preset cause, and
    /// [`OWNS_DEADLINE`].
    level: u8,
    /// Counts waits, so that some of them read the clock.
    unclocked_waits: AtomicU8,
    /// The key in the parent's list if the token is linked, else 0.
    key: AtomicU32,
    parent: Option<Arc<Token>>,
    /// The earliest deadline on the path.
    deadline: Stamp,
    /// If the token has a deadline of its own, the budget in nanoseconds. Else the creation time, as `trace` returns it.
    clock: u64,
    made_at: Line,
    canceled_at: OnceRef<'static, Location<'static>>,
    /// Before the end, the key in the bucket plus 1. After the end, the time of the end. In both cases, 0 if there is none.
    key_or_end: AtomicU64,
    inner: Mutex<Inner>,
}

type Line = &'static Location<'static>;
type Parent<'a> = Option<&'a Arc<Token>>;

/// The `key` of a root, which counts as linked.
const ROOT: u32 = u32::MAX;

/// The bit in `level` of a token that has a deadline of its own.
const OWNS_DEADLINE: u8 = 1 << 7;
/// The lowest bit in `level` of the number of the preset cause.
const PRESET: u32 = 5;
/// The bits in `level` of the level.
const LEVEL: u8 = (1 << PRESET) - 1;

/// The deadline of a new token.
pub(crate) struct Limit {
    pub(crate) at: Stamp,
    pub(crate) now: Stamp,
    /// In nanoseconds.
    pub(crate) budget: u64,
    pub(crate) cause: Option<BoxError>,
    /// Instead of a cause, the number of a [preset](crate::finished::preset) one, which takes no memory.
    pub(crate) preset: u8,
}

// Creation.
impl Token {
    /// Creates a child of `parent`, or a root. Takes no lock.
    #[inline]
    pub(crate) fn new(parent: Parent<'_>, limit: Option<Limit>, made_at: Line) -> Arc<Token> {
        match limit {
            Some(limit) => Token::with_limit(parent, limit, made_at),
            None if trace::reports_ends() => Token::with_time(parent, made_at),
            None => Arc::new_cyclic(|_| Token::node(parent, None, 0, 0, made_at)),
        }
    }

    /// Creates a token whose time of creation is recorded. It is a separate function so that other tokens only pay for one
    /// branch.
    #[cold]
    fn with_time(parent: Parent<'_>, made_at: Line) -> Arc<Token> {
        Arc::new_cyclic(|_| Token::node(parent, None, trace::read_clock(), 0, made_at))
    }

    fn with_limit(parent: Parent<'_>, limit: Limit, made_at: Line) -> Arc<Token> {
        let Limit { at, now, budget, preset, .. } = limit;
        if parent.is_some_and(|parent| parent.deadline <= at) || at == Stamp::NEVER {
            return Token::new(parent, None, made_at);
        }
        let token = Arc::new_cyclic(|_| Token::node(parent, Some(at), budget, preset, made_at));
        if let Some(cause) = limit.cause {
            token.inner.lock().more().expiry = Some(cause.into());
            token.state.fetch_or(OCCUPIED | HAS_CAUSE, Ordering::Relaxed);
        }
        if let Some(parent) = parent {
            parent.record_end_time();
        }
        if at <= now {
            match parent.filter(|parent| parent.is_done_by(now)) {
                // The parent ended before this token was created.
                Some(parent) => _ = token.end_by(token.ending_below(parent, UNDATED)),
                None => _ = token.end_if_due(now),
            }
        }
        token
    }

    /// Creates a child of both tokens, which ends when either of them does. It is linked from the start.
    pub(crate) fn merge(parent: &Arc<Token>, other: &Arc<Token>, made_at: Line) -> Arc<Token> {
        let mut token = Token::node(Some(parent), None, trace::creation_stamp(), 0, made_at);
        token.deadline = parent.deadline.min(other.deadline);
        token.state = AtomicU16::new(OCCUPIED | MERGED | CHECKED & (parent.state() | other.state()));
        let stop = |of: &Arc<Token>| of.is_checked().then(|| of.nearest_stop());
        token.inner.get_mut().more().stop = match (stop(parent), stop(other)) {
            (Some(a), Some(b)) if !Arc::ptr_eq(&a, &b) => None,
            (a, b) => a.or(b).map(|stop| Arc::downgrade(&stop)),
        };
        token.inner.get_mut().more().second = Some((other.clone(), Key::default()));
        if token.has_deadline() {
            parent.record_end_time();
            other.record_end_time();
        }
        let token = Arc::new(token);
        // Queried before the link as well: a parent whose deadline has passed must end before its new child can.
        let ended = || [parent, other].into_iter().find(|parent| parent.is_done());
        let ended = ended().or_else(|| (token.link_both(other), ended()).1);
        if let Some(parent) = ended {
            token.end_by(token.ending_below(parent, UNDATED));
        }
        token
    }

    /// Returns a new token. With a deadline of its own, `own`, its `clock` is the budget, and `preset` the number of the preset
    /// cause. Otherwise `clock` is the time of creation.
    ///
    /// Called in `Arc::new_cyclic`, which constructs the token in place. `Arc::new` would copy it.
    #[inline(always)]
    fn node(parent: Parent<'_>, own: Option<Stamp>, clock: u64, preset: u8, made_at: Line) -> Token {
        let level = parent.map_or(0, |parent| (parent.level & LEVEL) + 1) % COPY_INTERVAL;
        let (deadline, level) = match own {
            Some(deadline) => (deadline, level | OWNS_DEADLINE | (preset << PRESET)),
            None => (parent.map_or(Stamp::NEVER, |parent| parent.deadline), level),
        };
        // Set when the parent was created.
        let checked = parent.map_or(0, |parent| parent.state.load(Ordering::Relaxed) & CHECKED);
        let stop = parent.filter(|_| checked != 0 && level & LEVEL == 0).map(Token::nearest_stop);
        Token {
            state: AtomicU16::new(checked),
            level,
            unclocked_waits: AtomicU8::new(0),
            key: AtomicU32::new(if parent.is_none() { ROOT } else { 0 }),
            parent: parent.cloned(),
            deadline,
            clock,
            made_at,
            canceled_at: OnceRef::new(),
            key_or_end: AtomicU64::new(0),
            inner: Mutex::new(Inner::new(stop)),
        }
    }

    /// Requires that the time is recorded when this token ends. Sets `DEADLINE_BELOW` on all ancestors and here.
    ///
    /// The bit is set from the top down. Another thread that finds it on a token then relies on it for all ancestors.
    #[inline]
    pub(crate) fn record_end_time(self: &Arc<Self>) {
        if !self.has(DEADLINE_BELOW) {
            self.record_end_times();
        }
    }

    #[cold]
    fn record_end_times(self: &Arc<Self>) {
        let is_new = |token: &Arc<Token>| !token.has(DEADLINE_BELOW);
        let (mut next, mut below) = (Some(self.clone()), Vec::new());
        while let Some(token) = next {
            let parent = token.parent().cloned().filter(is_new);
            next = parent.or_else(|| token.second().filter(is_new));
            if next.is_some() {
                below.push(token);
            } else {
                token.state.fetch_or(DEADLINE_BELOW, Ordering::AcqRel);
                next = below.pop();
            }
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

    /// Sets a bit, and returns whether the token has ended.
    #[inline]
    fn set(&self, bit: u16) -> bool {
        let state = self.state();
        let state = if state & bit == 0 { self.state.fetch_or(bit, Ordering::AcqRel) } else { state };
        state & ENDED != 0
    }

    /// Returns whether the token is in its parent's list, or a root. The end of an ancestor then reaches it.
    pub(crate) fn is_linked(&self) -> bool {
        self.key.load(Ordering::Acquire) != 0
    }

    /// Marks the token for the module that created it, before it is shared.
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

    /// Returns when the token was created, if that is known.
    pub(crate) fn created_at(&self) -> Option<Instant> {
        match self.budget() {
            Some(budget) => self.deadline.instant().checked_sub(budget),
            None => trace::creation_time(self.clock),
        }
    }

    /// Returns whether the wait that is being created should read the clock. Most do not have to, because there is a
    /// timer.
    pub(crate) fn should_read_clock(&self) -> bool {
        let unclocked_waits = self.unclocked_waits.load(Ordering::Relaxed).wrapping_add(1);
        self.unclocked_waits.store(unclocked_waits, Ordering::Relaxed);
        unclocked_waits % CLOCK_INTERVAL == 0
    }
}

// Ancestors.
impl Token {
    /// Returns the parent, or the first parent of a merged token.
    pub(crate) fn parent(&self) -> Option<&Arc<Token>> {
        self.parent.as_ref()
    }

    /// Returns the second parent of a merged token.
    pub(crate) fn second(&self) -> Option<Arc<Token>> {
        if !self.has(MERGED) {
            return None;
        }
        let inner = self.inner.lock();
        Some(inner.more.as_ref()?.second.as_ref()?.0.clone())
    }
}
