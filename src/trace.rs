//! The tracing event for the end of a context. One event is emitted, for the context that ended itself and not
//! for its descendants, and none for a normal end.
//!
//! A subscriber is foreign code. If it panics, only that event is lost. The panic must not propagate, because
//! it would prevent other tasks from being woken. A subscriber may use contexts itself, for example to export events
//! with a timeout. Their ends are no events, because they could cause further ones forever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry;

#[cfg(not(feature = "tracing"))]
mod imp {
    use tokio::time::Instant;

    use crate::error::Error;

    #[inline]
    pub(crate) fn listens() -> bool {
        false
    }

    pub(crate) fn ended(_error: &Error, _created_at: Option<Instant>) {}
}

#[cfg(feature = "tracing")]
mod imp {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::Instant;
    use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
    use tracing::{Level, debug, enabled};

    use super::shielded;
    use crate::error::{Error, Place};
    use crate::finished;

    thread_local! {
        /// Whether this thread is calling a subscriber.
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    /// Calls a subscriber. Returns `None` if it panics, or if it is being called already.
    pub(crate) fn call<R>(f: impl FnOnce() -> R) -> Option<R> {
        if INSIDE.replace(true) {
            return None;
        }
        let result = shielded(f);
        INSIDE.set(false);
        result
    }

    /// Returns whether a subscriber is interested in events of this crate. One relaxed load if none is interested in `DEBUG`
    /// events.
    #[inline]
    pub(crate) fn listens() -> bool {
        Level::DEBUG <= STATIC_MAX_LEVEL
            && Level::DEBUG <= LevelFilter::current()
            && subscriber_listens()
    }

    #[cold]
    fn subscriber_listens() -> bool {
        call(|| enabled!(target: "tokio_ctx", Level::DEBUG)).unwrap_or(false)
    }

    /// Emits the event for an end, unless it is a normal end.
    #[cold]
    pub(crate) fn ended(error: &Error, created_at: Option<Instant>) {
        if error.cause().is_some_and(finished::is_normal) {
            return;
        }
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        let origin = error.origin();
        let lived = created_at.map(|created_at| origin.ended_at().saturating_duration_since(created_at));
        call(|| {
            debug!(
                target: "tokio_ctx",
                kind = ?error.kind(),
                cause = error.cause().map(tracing::field::display),
                budget_ms = origin.budget().map(millis),
                derived_at = %Place(origin.made_at()),
                canceled_at = origin.canceled_at().map(|place| tracing::field::display(Place(place))),
                lived_ms = lived.map(millis),
                "context ended"
            );
        });
    }
}

pub(crate) use imp::*;

/// The time from which the creation of contexts is counted, so that the time of one fits in a word.
static EPOCH: OnceLock<Instant> = OnceLock::new();

/// Returns whether ends are reported to a subscriber or to a watch. If so, the times at which contexts are created are
/// recorded.
#[inline]
pub(crate) fn reports_ends() -> bool {
    listens() || registry::is_installed()
}

/// Returns the time of creation for a context that is created now, or 0 if it is not recorded.
#[inline]
pub(crate) fn creation_stamp() -> u64 {
    if reports_ends() { read_clock() } else { 0 }
}

/// Returns the time in nanoseconds since the epoch, plus one.
#[cold]
pub(crate) fn read_clock() -> u64 {
    let now = Instant::now();
    let since = now.saturating_duration_since(*EPOCH.get_or_init(|| now));
    u64::try_from(since.as_nanos()).map_or(0, |since| since + 1)
}

/// Returns the instant of a time of creation, or `None` if it was not recorded.
pub(crate) fn creation_time(stamp: u64) -> Option<Instant> {
    let since = Duration::from_nanos(stamp.checked_sub(1)?);
    Some(*EPOCH.get()? + since)
}

/// Calls foreign code, such as a subscriber or a waker. Returns `None` if it panics.
#[inline]
pub(crate) fn shielded<R>(f: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => return Some(done),
        Err(payload) => payload,
    };
    // The payload may panic when it is dropped. The payload of that panic is leaked.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    None
}
