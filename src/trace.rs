//! The event that tracing receives for an end: one, from the context that ended by itself, unless the end is
//! the normal one.
//!
//! A subscriber is foreign code. One that panics, in `enabled` or when it takes the event, loses that event
//! and nothing else: contexts are derived and ended amidst wake-ups of others, which a panic would cost.

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

    pub(crate) fn ended(_error: &Error, _born: Option<Instant>) {}
}

#[cfg(feature = "tracing")]
mod imp {
    use std::time::Duration;

    use tokio::time::Instant;
    use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
    use tracing::{Level, debug, enabled};

    use super::shielded;
    use crate::error::{Error, Place};
    use crate::finished;

    /// Whether a subscriber takes events of this crate: one relaxed load while none takes any `DEBUG` event.
    #[inline]
    pub(crate) fn listens() -> bool {
        Level::DEBUG <= STATIC_MAX_LEVEL
            && Level::DEBUG <= LevelFilter::current()
            && subscriber_listens()
    }

    #[cold]
    fn subscriber_listens() -> bool {
        shielded(|| enabled!(target: "tokio_ctx", Level::DEBUG)).unwrap_or(false)
    }

    /// Emits the event of an end, unless the end says that the work was done.
    #[cold]
    pub(crate) fn ended(error: &Error, born: Option<Instant>) {
        if error.cause().is_some_and(finished::is_normal) {
            return;
        }
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        let origin = error.origin();
        let lived = born.map(|born| origin.ended_at().saturating_duration_since(born));
        shielded(|| {
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

/// When the first birth was noted; births are counted from here, so that one fits in a word.
static EPOCH: OnceLock<Instant> = OnceLock::new();

/// When a context is made, in nanoseconds since the epoch, if a subscriber listens, or a watch is installed; else 0.
#[inline]
pub(crate) fn birth() -> u64 {
    if listens() || registry::is_installed() { note_birth() } else { 0 }
}

#[cold]
fn note_birth() -> u64 {
    let now = Instant::now();
    let age = now.saturating_duration_since(*EPOCH.get_or_init(|| now));
    u64::try_from(age.as_nanos()).map_or(0, |age| age + 1)
}

/// The instant that [`birth`] noted.
pub(crate) fn noted(birth: u64) -> Option<Instant> {
    let age = Duration::from_nanos(birth.checked_sub(1)?);
    Some(*EPOCH.get()? + age)
}

/// Calls foreign code, such as a subscriber or a waker; `None` if it panics.
#[inline]
pub(crate) fn shielded<R>(f: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => return Some(done),
        Err(payload) => payload,
    };
    // A payload may panic when it is dropped; what that panics with is leaked.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    None
}
