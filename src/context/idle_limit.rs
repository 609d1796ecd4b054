//! [`IdleLimit`]: a limit on the time without progress.
//!
//! Reporting progress is one relaxed store of [`JUST_NOW`], without reading the clock or changing a timer. The next
//! *check* replaces it with the time of the check, and the limit counts from there. A token therefore never ends too
//! early. It ends too late by at most the time between two checks.
//!
//! An idle limit is an [`Attachment`], which the engine checks in each query of the token or of a descendant. While
//! something waits, a task of the runtime runs a check in intervals of the limit divided by [`SHARE`]. The first wait on
//! the token, or on a descendant, spawns the task. As with buckets, each runtime in which something waits has its own
//! task, so that a runtime that stalls or shuts down does not affect the others.
//!
//! The tasks are aborted when the token ends or is dropped. Relaxed orders suffice: a check observes each report that
//! happens before it, and a report that is concurrent with a check may be later.

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

/// The number of checks in the time of the limit.
const SHARE: u32 = 8;
/// A value in place of a time: there has been progress since the last check.
const JUST_NOW: u64 = u64::MAX;
/// A value in place of a count: no bytes have been reported.
const NO_MEASURE: u64 = 1 << 63;

/// The state of an idle limit.
pub(crate) struct IdleLimit {
    /// When a check first observed the latest progress, or [`JUST_NOW`].
    last: AtomicU64,
    /// A counter that nothing else depends on.
    bytes: Count,
    limit: Duration,
    set_at: &'static Location<'static>,
    /// `None` after the end.
    checkers: Mutex<Option<Vec<CheckerTask>>>,
}

/// A task that runs checks, and its runtime. `None` while it is being spawned.
type CheckerTask = (RuntimeId, Option<AbortHandle>);

impl IdleLimit {
    #[inline]
    pub(crate) fn report(&self) {
        self.last.store(JUST_NOW, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn report_bytes(&self, bytes: u64) {
        if self.bytes.load(Ordering::Relaxed) == NO_MEASURE {
            // If another thread was first, this adds to its count.
            let _first =
                self.bytes.compare_exchange(NO_MEASURE, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    /// Runs a check, and returns the time at which the limit is exceeded if there is no further progress.
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

/// An idle limit that is attached to its token. Aborts the tasks when dropped.
struct AttachedLimit(Arc<IdleLimit>);

impl Attachment for AttachedLimit {
    fn ended(&self) {
        let checkers = self.0.checkers.lock().take().unwrap_or_default();
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
    /// Creates a child that ends when there has been no progress for the given time.
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
            checkers: Mutex::new(Some(Vec::new())),
        };
        let token = Token::new(parent, None, made_at);
        token.attach_check(Arc::new(AttachedLimit(Arc::new(idle_limit))));
        token
    }

    /// Calls `f` with each idle limit on the path, and its token, while no lock is held.
    fn each_idle_limit(self: &Arc<Self>, mut f: impl FnMut(&Arc<Token>, Arc<IdleLimit>)) {
        if self.is_checked() {
            self.each_check(|owner, attachment| {
                if let Ok(beat) = attachment.into_any().downcast::<AttachedLimit>() {
                    f(owner, beat.0.clone());
                }
            });
        }
    }

    /// Returns all idle limits on the path, to which progress has to be reported.
    pub(crate) fn idle_limits(self: &Arc<Self>) -> Vec<Arc<IdleLimit>> {
        let mut idle_limits = Vec::new();
        self.each_idle_limit(|_, idle_limit| idle_limits.push(idle_limit));
        idle_limits
    }

    /// Returns when the idle limits on the path have to be checked at the latest, for waits without a timer.
    pub(crate) fn next_check(self: &Arc<Self>) -> Option<Instant> {
        let (now, mut next) = (Stamp::now(), None);
        self.each_idle_limit(|_, idle_limit| {
            let next_check = idle_limit.next_check(now);
            next = Some(next.map_or(next_check, |next: Instant| next.min(next_check)));
        });
        next
    }

    /// Spawns a task in this runtime that checks the idle limits on the path, unless there is one.
    ///
    /// # Panics
    ///
    /// Panics in a runtime without a time driver, as `tokio::time::sleep` does.
    #[track_caller]
    pub(crate) fn check_idle_limits(self: &Arc<Self>) {
        // A wait that is polled outside of a runtime relies on the runtime in which it was polled before.
        let Some(here) = runtime() else { return };
        let mut unwatched = Vec::new();
        self.each_idle_limit(|owner, idle_limit| {
            let checkers = idle_limit.checkers.lock();
            let is_unwatched = checkers.as_ref().is_some_and(|checkers| find(checkers, here).is_none());
            drop(checkers);
            if is_unwatched {
                unwatched.push((Arc::downgrade(owner), idle_limit));
            }
        });
        for (owner, idle_limit) in unwatched {
            let sleep = sleep_until(idle_limit.next_check(Stamp::now()));
            Checker::start(owner, idle_limit, here, sleep);
        }
    }
}

/// A task that runs checks.
struct Checker {
    owner: Weak<Token>,
    idle_limit: Arc<IdleLimit>,
    here: RuntimeId,
}

impl Checker {
    fn start(owner: Weak<Token>, idle_limit: Arc<IdleLimit>, here: RuntimeId, sleep: Sleep) {
        match &mut *idle_limit.checkers.lock() {
            Some(checkers) if find(checkers, here).is_none() => checkers.push((here, None)),
            _ => return,
        }
        let checker = Checker { owner, idle_limit: idle_limit.clone(), here };
        // A runtime that is shutting down drops the task at once.
        let task = tokio::spawn(checker.run(Box::pin(sleep))).abort_handle();
        let mut checkers = idle_limit.checkers.lock();
        let Some(present) = &mut *checkers else {
            // The token has ended in the meantime, and the end has not found the handle.
            drop(checkers);
            return task.abort();
        };
        if let Some(at) = find(present, here) {
            present[at].1 = Some(task);
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

/// Deregisters the task, so that another one can be spawned if this one is dropped with its runtime.
impl Drop for Checker {
    fn drop(&mut self) {
        let mut checkers = self.idle_limit.checkers.lock();
        let gone = checkers
            .as_mut()
            .and_then(|checkers| find(checkers, self.here).map(|at| checkers.swap_remove(at)));
        drop(checkers);
        drop(gone);
    }
}

/// Returns the place of the task of this runtime.
fn find(checkers: &[CheckerTask], here: RuntimeId) -> Option<usize> {
    checkers.iter().position(|(runtime, _)| *runtime == here)
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
/// // context deadline exceeded: no progress for 10s (budget set at src/main.rs:5), 3.2 MB so far
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

/// A number of bytes, printed with a suitable unit: `312 B`, `3.2 MB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0 as f64;
        for unit in ["B", "kB", "MB", "GB", "TB"] {
            // An amount that would be printed as 1000.0 is printed in the next unit.
            if amount < 999.95 {
                let digits = usize::from(unit != "B");
                return write!(f, "{amount:.digits$} {unit}");
            }
            amount /= 1e3;
        }
        write!(f, "{amount:.1} PB")
    }
}
