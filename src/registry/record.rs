//! A record: what is known of one piece of work, or of one context.

use std::any::Any;
use std::panic::Location;
#[cfg(feature = "watch")]
use std::sync::OnceLock;
use std::sync::Weak;
#[cfg(feature = "watch")]
use std::sync::atomic::Ordering;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
#[cfg(feature = "watch")]
use std::time::{Duration, Instant as RealInstant};

use tokio::time::Instant;

use super::kind::Kind;
#[cfg(feature = "watch")]
use super::name::brief;
use super::name::{Label, Probe};

/// A context. Its type is not known here, only whether it still exists.
pub(crate) type Subject = Weak<dyn Any + Send + Sync>;

/// One piece of work, or one context.
#[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "a test reads only the line"))]
pub(crate) struct Record<N: ?Sized = dyn Label> {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) line: &'static Location<'static>,
    /// When the work was started. `None` if the context that it describes stores the time.
    pub(crate) started: Option<Instant>,
    pub(crate) subject: Option<Subject>,
    pub(crate) probe: Option<Probe>,
    /// The work has ended, and the context is still held.
    over: AtomicBool,
    /// When its last poll began, in nanoseconds since the epoch, doubled; 1 more while it is being polled. 0: never.
    polled: AtomicU64,
    /// How often it has been reported as overstaying.
    pub(crate) reports: AtomicU32,
    /// The recorder of the metrics has counted it.
    pub(crate) is_counted: AtomicBool,
    label: N,
}

/// The contents of a record before it is registered.
pub(crate) struct Draft<N> {
    pub(crate) kind: Kind,
    pub(crate) line: &'static Location<'static>,
    pub(crate) started: Option<Instant>,
    pub(crate) label: N,
    pub(crate) subject: Option<Subject>,
    pub(crate) probe: Option<Probe>,
}

impl<N> Record<N> {
    pub(super) fn new(id: u64, draft: Draft<N>) -> Record<N> {
        let Draft { kind, line, started, label, subject, probe } = draft;
        Record {
            id,
            kind,
            line,
            started,
            subject,
            probe,
            over: AtomicBool::new(false),
            polled: AtomicU64::new(0),
            reports: AtomicU32::new(0),
            is_counted: AtomicBool::new(false),
            label,
        }
    }
}

#[cfg(feature = "watch")]
fn since_epoch() -> u64 {
    // The system's clock, also in a test that pauses Tokio's.
    static EPOCH: OnceLock<RealInstant> = OnceLock::new();
    let since = EPOCH.get_or_init(RealInstant::now).elapsed().as_nanos() as u64;
    // Never zero, which means that there was no poll.
    (since << 1).max(2)
}

#[cfg(feature = "watch")]
impl Record {
    /// Returns its name, truncated to the part that is shown.
    pub(crate) fn name(&self) -> Option<String> {
        self.label.text().map(brief)
    }

    /// Marks it as being polled, until the returned value is dropped.
    pub(crate) fn start_poll(&self) -> ActivePoll<'_> {
        self.start_poll_at(since_epoch())
    }

    /// Marks it as being polled again, within the poll that [`start_poll`](Self::start_poll) marked before. Reads no clock.
    #[cfg(feature = "tower")]
    pub(crate) fn start_nested_poll(&self) -> ActivePoll<'_> {
        self.start_poll_at(self.polled.load(Ordering::Relaxed))
    }

    fn start_poll_at(&self, begun: u64) -> ActivePoll<'_> {
        self.polled.store(begun | 1, Ordering::Relaxed);
        ActivePoll(self, begun)
    }

    /// Returns how long ago its last poll began, and whether it is being polled.
    pub(crate) fn last_poll(&self) -> Option<(Duration, bool)> {
        let polled = self.polled.load(Ordering::Relaxed);
        let ago = since_epoch().saturating_sub(polled) >> 1;
        (polled != 0).then(|| (Duration::from_nanos(ago), polled & 1 != 0))
    }

    /// Records that the work has ended, and only its context is still held. Returns false if that was already recorded.
    pub(super) fn finish(&self) -> bool {
        !self.over.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// A poll in progress.
#[cfg(feature = "watch")]
pub(crate) struct ActivePoll<'a>(&'a Record, u64);

#[cfg(feature = "watch")]
impl Drop for ActivePoll<'_> {
    fn drop(&mut self) {
        // The time at which the poll returns is not recorded, which saves reading the clock.
        self.0.polled.store(self.1, Ordering::Relaxed);
    }
}
