//! [`Stamp`]: a point in time in one word. It is half as large as an `Instant`, fits into an atomic, and is cheap to copy
//! into an error.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync;

/// Nanoseconds since a hundred years before the first stamp. The latest one is 484 years after the first; a later deadline
/// counts as none. Zero is not a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(pub(crate) u64);

/// The first stamp.
const FIRST: u64 = 100 * 365 * 86_400 * 1_000_000_000;

impl Stamp {
    pub(crate) const NEVER: Stamp = Stamp(u64::MAX);

    #[inline]
    pub(crate) fn now() -> Stamp {
        Stamp::new(sync::now())
    }

    #[inline]
    pub(crate) fn new(at: Instant) -> Stamp {
        let epoch = Stamp::epoch();
        match at.checked_duration_since(epoch) {
            Some(after) => Stamp(nanos(after).saturating_add(FIRST)),
            None => Stamp(FIRST.saturating_sub(nanos(epoch - at)).max(1)),
        }
    }

    #[inline]
    pub(crate) fn instant(self) -> Instant {
        let (epoch, span) = (Stamp::epoch(), Duration::from_nanos(self.0.abs_diff(FIRST)));
        let at = if self.0 < FIRST { epoch.checked_sub(span) } else { epoch.checked_add(span) };
        at.unwrap_or(epoch)
    }

    /// Returns when the first stamp was created.
    #[inline]
    fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }
}

/// Returns a duration in nanoseconds, at most 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
