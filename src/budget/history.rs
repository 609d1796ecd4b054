//! The history of a retry: its attempts, and the time that each of them and the delays took.
//!
//! All times are differences between successive readings of one clock, taken where attempts and delays begin and end.
//! Therefore they add up: the elapsed time is the time in attempts plus the time in delays.

use std::collections::{VecDeque, vec_deque};
use std::time::Duration;

use tokio::time::Instant;

/// The number of attempts that are kept one by one, the latest ones: a retry may go on for days.
const KEPT: usize = 16;

/// One attempt of a [`retry`](crate::Context::retry) that failed.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::{Context, Error};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let ctx = Context::background();
/// let failed = ctx.retry([Duration::from_millis(50)], |_, attempt| async move {
///     tokio::time::sleep(Duration::from_millis(20)).await;
///     Err::<(), _>(std::io::Error::other(format!("attempt {attempt}")))
/// });
/// let failed = failed.await.unwrap_err();
/// let second = failed.latest().last().unwrap();
/// assert_eq!((second.number(), second.took()), (2, Duration::from_millis(20)));
/// assert_eq!(second.waited(), Duration::from_millis(50));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    number: u32,
    waited: Duration,
    took: Duration,
}

impl Attempt {
    /// Returns the number of the attempt. The first is 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns how long the attempt took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the measured delay before the attempt. For the first attempt it is zero.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// Records the attempts so far.
///
/// What is only needed after a failure is boxed and allocated then, so that an immediate success allocates nothing.
#[derive(Debug, Default)]
pub(super) struct History {
    attempts: u32,
    /// The last reading of the clock.
    last: Option<Instant>,
    failures: Option<Box<Failures>>,
}

#[derive(Debug, Default)]
struct Failures {
    latest: VecDeque<Attempt>,
    in_attempts: Duration,
    in_delays: Duration,
    /// The shortest time in which an attempt has returned an error.
    fastest: Option<Duration>,
    /// The delay since the last attempt.
    waited: Duration,
}

impl History {
    /// Records the start of an attempt. Returns its number.
    #[inline]
    pub(super) fn start_attempt(&mut self, now: Instant) -> u32 {
        self.record_delay(now);
        self.attempts = self.attempts.saturating_add(1);
        self.last = Some(now);
        self.attempts
    }

    /// Records that the current attempt has failed. `returned` is false if it was dropped at its limit.
    pub(super) fn record_failure(&mut self, now: Instant, returned: bool) {
        let took = self.since_last(now);
        self.last = Some(now);
        let failures = self.failures.get_or_insert_default();
        failures.in_attempts += took;
        if returned {
            failures.fastest = Some(failures.fastest.map_or(took, |fastest| fastest.min(took)));
        }
        if failures.latest.len() == KEPT {
            failures.latest.pop_front();
        }
        failures.latest.push_back(Attempt { number: self.attempts, waited: failures.waited, took });
    }

    /// Records the time since the last attempt as delay.
    #[inline]
    pub(super) fn record_delay(&mut self, now: Instant) {
        let waited = self.since_last(now);
        if let Some(failures) = &mut self.failures {
            failures.waited = waited;
            failures.in_delays += waited;
            self.last = Some(now);
        }
    }

    fn since_last(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last))
    }

    /// Returns the shortest time in which an attempt has returned an error.
    pub(super) fn fastest(&self) -> Duration {
        self.failures.as_ref().and_then(|failures| failures.fastest).unwrap_or_default()
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn latest(&self) -> vec_deque::Iter<'_, Attempt> {
        static NONE: VecDeque<Attempt> = VecDeque::new();
        self.failures.as_ref().map_or(&NONE, |failures| &failures.latest).iter()
    }

    pub(super) fn in_attempts(&self) -> Duration {
        self.failures.as_ref().map_or(Duration::ZERO, |failures| failures.in_attempts)
    }

    pub(super) fn in_delays(&self) -> Duration {
        self.failures.as_ref().map_or(Duration::ZERO, |failures| failures.in_delays)
    }
}
