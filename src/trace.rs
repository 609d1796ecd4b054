//! What tracing is told of an end: one event, from the context that ended by itself.

#[cfg(not(feature = "tracing"))]
mod imp {
    use tokio::time::Instant;

    use crate::error::Error;

    #[inline]
    pub(crate) fn listens() -> bool {
        false
    }

    #[inline]
    pub(crate) fn birth() -> u64 {
        0
    }

    pub(crate) fn noted(_birth: u64) -> Option<Instant> {
        None
    }

    pub(crate) fn ended(_error: &Error, _born: Option<Instant>) {}
}

#[cfg(feature = "tracing")]
mod imp {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::OnceLock;
    use std::time::Duration;

    use tokio::time::Instant;
    use tracing::{Level, debug, enabled};

    use crate::error::{Error, Place};

    /// When the first birth was noted; births are counted from here, so that one fits in a word.
    static EPOCH: OnceLock<Instant> = OnceLock::new();

    #[inline]
    pub(crate) fn listens() -> bool {
        enabled!(target: "tokio_ctx", Level::DEBUG)
    }

    /// When a context is made, in nanoseconds since the epoch, if somebody listens; else 0.
    #[inline]
    pub(crate) fn birth() -> u64 {
        if listens() { note_birth() } else { 0 }
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

    /// Whoever ends a context, often Tokio's timer, must not fall over a cause that cannot be shown.
    #[cold]
    pub(crate) fn ended(error: &Error, born: Option<Instant>) {
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        let origin = error.origin();
        let lived = born.map(|born| origin.ended_at().saturating_duration_since(born));
        let _shown = catch_unwind(AssertUnwindSafe(|| {
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
        }));
    }
}

pub(crate) use imp::*;
