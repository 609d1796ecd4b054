//! What tracing is told of an end: one event, from the context that ended by itself.

#[cfg(not(feature = "tracing"))]
mod imp {
    use crate::token::Token;

    #[inline]
    pub(crate) fn birth() -> u64 {
        0
    }

    #[inline]
    pub(crate) fn ended(_token: &Token) {}
}

#[cfg(feature = "tracing")]
mod imp {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::OnceLock;
    use std::time::Duration;

    use tokio::time::Instant;
    use tracing::{Level, debug, enabled};

    use crate::error::{Error, Place};
    use crate::token::Token;

    /// When the first birth was noted; births are counted from here, so that one fits in a word.
    static EPOCH: OnceLock<Instant> = OnceLock::new();

    /// When a context without a deadline was made, in nanoseconds, if anyone may want to know; else 0.
    #[inline]
    pub(crate) fn birth() -> u64 {
        if enabled!(target: "tokio_ctx", Level::DEBUG) { note_birth() } else { 0 }
    }

    #[cold]
    fn note_birth() -> u64 {
        let now = Instant::now();
        let age = now.saturating_duration_since(*EPOCH.get_or_init(|| now));
        u64::try_from(age.as_nanos()).map_or(0, |age| age + 1)
    }

    fn born_at(token: &Token) -> Option<Instant> {
        match (token.budget(), token.clock()) {
            (Some(budget), _) => token.deadline()?.checked_sub(budget),
            (None, 0) => None,
            (None, age) => Some(*EPOCH.get()? + Duration::from_nanos(age - 1)),
        }
    }

    #[inline]
    pub(crate) fn ended(token: &Token) {
        if enabled!(target: "tokio_ctx", Level::DEBUG) {
            report(&token.error(), born_at(token));
        }
    }

    /// Whoever ends a context, often Tokio's timer, must not fall over a cause that cannot be shown.
    #[cold]
    fn report(error: &Error, born: Option<Instant>) {
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
