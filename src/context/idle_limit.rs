//! Pulses: a limit on the time without progress.
//!
//! To report progress is one relaxed store, of [`JUST_NOW`]: no clock is read, and no timer is touched. A *look* turns it
//! into the time of the look, by which the limit then counts. So the limit is exact in one direction, since nothing
//! ends before so much time without progress has passed; in the other it is late by the time between two looks.
//!
//! A look is taken by all that asks the token, or one below it, whether it has ended: the idle_limit is an [`Attachment`] that
//! the engine checks then. What waits has looks taken by a task of its runtime, every
//! [`SHARE`]th of the limit, which is started by the first wait, here or below. As with buckets, each runtime in
//! which something waits has its own, so that one that stands still, or is gone, hinders no other.
//!
//! The end of its token, or its drop, stops the tasks. The relaxed orders do: a report that happens before a question is
//! seen by it; a question at the same time may be first.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::AtomicU64 as Count;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{How, Place};
use crate::stamp::Stamp;
use crate::sync::{AtomicU64, Mutex, Ordering, RuntimeId, runtime};
use crate::token::{Attachment, Check, Token};

/// Looks in the time of a limit.
const SHARE: u32 = 8;
/// Stands for a time that is not known yet: there has been progress since the last look.
const JUST_NOW: u64 = u64::MAX;
/// No bytes have been reported. The first to report some takes it away.
const NO_MEASURE: u64 = 1 << 63;

pub(crate) struct IdleLimit {
    /// When a look first saw the latest progress, or [`JUST_NOW`].
    last: AtomicU64,
    /// A count, and no part of the protocol.
    bytes: Count,
    limit: Duration,
    set_at: &'static Location<'static>,
    /// The tasks that look, each with its runtime. `None`: it is being spawned.
    checkers: Mutex<Vec<(RuntimeId, Option<AbortHandle>)>>,
}

impl IdleLimit {
    #[inline]
    pub(crate) fn report(&self) {
        self.last.store(JUST_NOW, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn report_bytes(&self, bytes: u64) {
        if self.bytes.load(Ordering::Relaxed) == NO_MEASURE {
            // What is not the first adds to what was.
            let _first =
                self.bytes.compare_exchange(NO_MEASURE, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    /// Looks, and returns when the limit will have passed if there is no progress from now on.
    fn due(&self, now: Stamp) -> Stamp {
        let mut last = self.last.load(Ordering::Relaxed);
        if last == JUST_NOW {
            let looked =
                self.last.compare_exchange(JUST_NOW, now.0, Ordering::Relaxed, Ordering::Relaxed);
            last = looked.map_or_else(|other| if other == JUST_NOW { now.0 } else { other }, |_| now.0);
        }
        let due = Stamp(last).instant().checked_add(self.limit);
        due.map_or(Stamp::NEVER, Stamp::new)
    }

    fn next_check(&self, now: Stamp) -> Instant {
        let soon = now.instant() + (self.limit / SHARE).max(Duration::from_millis(1));
        self.due(now).instant().min(soon)
    }
}

/// A idle_limit that is attached to its token. Dropped, nothing looks any more.
struct AttachedLimit(Arc<IdleLimit>);

impl Attachment for AttachedLimit {
    fn ended(&self) {
        let checkers = std::mem::take(&mut *self.0.checkers.lock());
        checkers.into_iter().filter_map(|(_, checker)| checker).for_each(|checker| checker.abort());
    }

    fn check(&self, now: Stamp) -> Option<Check> {
        let AttachedLimit(idle_limit) = self;
        let due = idle_limit.due(now);
        if due > now {
            return None;
        }
        let bytes = Some(idle_limit.bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes != NO_MEASURE);
        let cause = NoProgress { limit: idle_limit.limit, set_at: idle_limit.set_at, bytes };
        Some((due, How::Idle, cause.into()))
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for AttachedLimit {
    fn drop(&mut self) {
        self.ended();
    }
}

impl Token {
    /// Makes a child that ends when there has been no progress for that long.
    pub(crate) fn with_idle_limit(
        parent: Option<&Arc<Token>>,
        limit: Duration,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let idle_limit = IdleLimit {
            last: AtomicU64::new(Stamp::now().0),
            bytes: Count::new(NO_MEASURE),
            limit,
            set_at: made_at,
            checkers: Mutex::new(Vec::new()),
        };
        let token = Token::new(parent, None, made_at);
        token.attach_check(Arc::new(AttachedLimit(Arc::new(idle_limit))));
        token
    }

    /// Calls `f` with each idle_limit on the path, and the token whose it is. No lock is held.
    fn each_idle_limit(self: &Arc<Self>, mut f: impl FnMut(&Arc<Token>, Arc<IdleLimit>)) {
        if self.is_checked() {
            self.each_check(|owner, attachment| {
                if let Ok(beat) = attachment.into_any().downcast::<AttachedLimit>() {
                    f(owner, beat.0.clone());
                }
            });
        }
    }

    /// All idle_limits on the path: what progress is to be reported to.
    pub(crate) fn idle_limits(self: &Arc<Self>) -> Vec<Arc<IdleLimit>> {
        let mut idle_limits = Vec::new();
        self.each_idle_limit(|_, idle_limit| idle_limits.push(idle_limit));
        idle_limits
    }

    /// When the idle_limits on the path are to be looked at, at the latest, by what has no timer.
    pub(crate) fn next_check(self: &Arc<Self>) -> Option<Instant> {
        let (now, mut next) = (Stamp::now(), None);
        self.each_idle_limit(|_, idle_limit| {
            let look = idle_limit.next_check(now);
            next = Some(next.map_or(look, |next: Instant| next.min(look)));
        });
        next
    }

    /// Has a task of this runtime look at the idle_limits on the path.
    ///
    /// # Panics
    ///
    /// In a runtime without a time driver, as `tokio::time::sleep`.
    #[track_caller]
    pub(crate) fn check_idle_limits(self: &Arc<Self>) {
        // Polled outside of one, a wait relies on the one that it was polled in before.
        let Some(here) = runtime() else { return };
        let mut unwatched = Vec::new();
        self.each_idle_limit(|owner, idle_limit| {
            if !idle_limit.checkers.lock().iter().any(|(runtime, _)| *runtime == here) {
                unwatched.push((Arc::downgrade(owner), idle_limit));
            }
        });
        for (owner, idle_limit) in unwatched {
            let sleep = sleep_until(idle_limit.next_check(Stamp::now()));
            Checker::start(owner, idle_limit, here, sleep);
        }
    }
}

/// A task that looks.
struct Checker {
    owner: Weak<Token>,
    idle_limit: Arc<IdleLimit>,
    here: RuntimeId,
}

impl Checker {
    fn start(owner: Weak<Token>, idle_limit: Arc<IdleLimit>, here: RuntimeId, sleep: Sleep) {
        let mut checkers = idle_limit.checkers.lock();
        if checkers.iter().any(|(runtime, _)| *runtime == here) {
            return;
        }
        checkers.push((here, None));
        drop(checkers);
        let checker = Checker { owner, idle_limit: idle_limit.clone(), here };
        // A runtime that is shutting down drops it at once.
        let task = tokio::spawn(checker.run(Box::pin(sleep))).abort_handle();
        let mut checkers = idle_limit.checkers.lock();
        if let Some(checker) = checkers.iter_mut().find(|(runtime, _)| *runtime == here) {
            checker.1 = Some(task);
        }
    }

    async fn run(self, mut sleep: Pin<Box<Sleep>>) {
        loop {
            sleep.as_mut().await;
            let Some(owner) = self.owner.upgrade().filter(|owner| !owner.is_done()) else { return };
            drop(owner);
            sleep.as_mut().reset(self.idle_limit.next_check(Stamp::now()));
        }
    }
}

/// Another takes its place if it goes with its runtime.
impl Drop for Checker {
    fn drop(&mut self) {
        let mut checkers = self.idle_limit.checkers.lock();
        let at = checkers.iter().position(|(runtime, _)| *runtime == self.here);
        let gone = at.map(|at| checkers.swap_remove(at));
        drop(checkers);
        drop(gone);
    }
}

/// There was no progress within an idle limit. The cause of the error of a context that
/// [`with_idle`](crate::Context::with_idle) ended.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
/// use tokio_ctx::budget::NoProgress;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let ctx = Context::background().with_idle(Duration::from_secs(10));
/// ctx.progress().report_bytes(3_200_000);
/// let stalled = ctx.done().await;
///
/// // context deadline exceeded: no progress for 10s (budget set at src/main.rs:6), 3.2 MB so far
/// println!("{stalled}");
/// assert!(stalled.is_deadline_exceeded());
/// assert_eq!(stalled.cause_as::<NoProgress>().unwrap().bytes(), Some(3_200_000));
/// # }
/// ```
#[derive(Debug)]
pub struct NoProgress {
    limit: Duration,
    set_at: &'static Location<'static>,
    bytes: Option<u64>,
}

impl NoProgress {
    /// Returns the limit.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns the line that set the limit.
    pub fn set_at(&self) -> &'static Location<'static> {
        self.set_at
    }

    /// Returns the number of bytes that were reported, if any were.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }
}

impl fmt::Display for NoProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no progress for {:?} (budget set at {})", self.limit, Place(self.set_at))?;
        match self.bytes {
            Some(bytes) => write!(f, ", {} so far", Bytes(bytes)),
            None => Ok(()),
        }
    }
}

impl StdError for NoProgress {}

/// Bytes as a person reads them: `312 B`, `3.2 MB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0 as f64;
        for unit in ["B", "kB", "MB", "GB", "TB"] {
            // What would be printed as 1000.0 is one of the next.
            if amount < 999.95 {
                let digits = usize::from(unit != "B");
                return write!(f, "{amount:.digits$} {unit}");
            }
            amount /= 1e3;
        }
        write!(f, "{amount:.1} PB")
    }
}
