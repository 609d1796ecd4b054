//! The error of a retry: the attempts, the time that each took, and why there was no further one.
//!
//! All times are differences between readings of one clock at the borders of attempts and delays, so that they add
//! up: the time that has passed is that in attempts and that in delays.

use std::collections::{VecDeque, vec_deque};
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

use crate::context::NotEnoughTime;
use crate::error::{Error, Place};

/// So many attempts are told of one by one, the latest: a retry may go on for days.
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

    /// Returns the measured delay before the attempt. It is zero for the first.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// The attempts so far. What a first one that succeeds has no need of is apart, and made when one fails.
#[derive(Debug, Default)]
pub(super) struct Story {
    attempts: u32,
    /// When the last attempt began or failed, or a delay was measured.
    last: Option<Instant>,
    failures: Option<Box<Failures>>,
}

#[derive(Debug, Default)]
struct Failures {
    latest: VecDeque<Attempt>,
    in_attempts: Duration,
    in_delays: Duration,
    /// The shortest attempt that has returned an error.
    quickest: Option<Duration>,
    /// The delay since the last one.
    waited: Duration,
}

impl Story {
    /// Notes that an attempt begins, and returns its number.
    #[inline]
    pub(super) fn begin(&mut self, now: Instant) -> u32 {
        self.note_delay(now);
        self.attempts = self.attempts.saturating_add(1);
        self.last = Some(now);
        self.attempts
    }

    /// Notes that the attempt has failed, by itself or by its limit.
    pub(super) fn fail(&mut self, now: Instant, by_itself: bool) {
        let took = self.since_last(now);
        self.last = Some(now);
        let failures = self.failures.get_or_insert_default();
        failures.in_attempts += took;
        if by_itself {
            failures.quickest = Some(failures.quickest.map_or(took, |quickest| quickest.min(took)));
        }
        if failures.latest.len() == KEPT {
            failures.latest.pop_front();
        }
        failures.latest.push_back(Attempt { number: self.attempts, waited: failures.waited, took });
    }

    /// Notes the time since the last attempt as one of delay.
    #[inline]
    pub(super) fn note_delay(&mut self, now: Instant) {
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

    pub(super) fn quickest(&self) -> Duration {
        self.failures.as_ref().and_then(|failures| failures.quickest).unwrap_or_default()
    }

    fn latest(&self) -> vec_deque::Iter<'_, Attempt> {
        static NONE: VecDeque<Attempt> = VecDeque::new();
        self.failures.as_ref().map_or(&NONE, |failures| &failures.latest).iter()
    }

    fn in_attempts(&self) -> Duration {
        self.failures.as_ref().map_or(Duration::ZERO, |failures| failures.in_attempts)
    }

    fn in_delays(&self) -> Duration {
        self.failures.as_ref().map_or(Duration::ZERO, |failures| failures.in_delays)
    }
}

/// Why a [`retry`](crate::Context::retry) made no further attempt.
///
/// ```
/// use std::io;
/// use tokio_ctx::Context;
/// use tokio_ctx::budget::GaveUp;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let ctx = Context::background();
/// let failed = ctx.retry([], |_, _| async { Err::<(), _>(io::Error::other("refused")) }).await;
/// assert!(matches!(failed.unwrap_err().why(), GaveUp::NoDelayLeft));
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GaveUp {
    /// The context had ended.
    Ended(Error),
    /// The remaining time was too short for the delay and another attempt.
    NotEnoughTime(NotEnoughTime),
    /// The delays were used up, so all attempts had been made.
    NoDelayLeft,
    /// [`when`](super::Retry::when) returned false for the error.
    NotWorthIt,
    /// [`permit`](super::Retry::permit) returned false.
    NotPermitted,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It is the source.
            GaveUp::Ended(_) => f.write_str("the context ended"),
            GaveUp::NotEnoughTime(short) => write!(f, "{short}"),
            GaveUp::NoDelayLeft => f.write_str("no attempts left"),
            GaveUp::NotWorthIt => f.write_str("not worth another attempt"),
            GaveUp::NotPermitted => f.write_str("no further attempt permitted"),
        }
    }
}

/// The error of a [`retry`](crate::Context::retry): the error of the last attempt, the attempts, and why there was no
/// further one.
///
/// [`into_error`](Self::into_error) returns the error of the last attempt by value, for functions that return an `E`.
/// `Display` prints the attempts and the reason. The source is the error of the last attempt. If the context ended,
/// the source is the context's error, so that [`Error::find`] finds it, and `Display` includes the error of the last
/// attempt.
///
/// ```
/// use std::io;
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let ctx = Context::background().with_timeout(Duration::from_millis(100));
/// let failed = ctx.retry([Duration::from_millis(60); 5], |_, _| async {
///     tokio::time::sleep(Duration::from_millis(10)).await;
///     Err::<(), _>(io::Error::other("503 from the shard"))
/// });
/// let failed = failed.await.unwrap_err();
///
/// // gave up after 2 attempts in 80ms (10ms, 10ms, and 60ms between them): not enough time left: 61ms required,
/// // 20ms left of the 100ms budget set at src/main.rs:6
/// println!("{failed}");
/// assert_eq!(failed.attempts(), 2);
/// assert_eq!(failed.elapsed(), failed.in_attempts() + failed.in_delays());
/// assert_eq!(failed.into_error().to_string(), "503 from the shard");
/// # }
/// ```
pub struct RetryError<E>(Box<Inner<E>>);

struct Inner<E> {
    error: E,
    /// Whether the error is an attempt's own, and not made of the reason.
    is_own: bool,
    why: GaveUp,
    story: Story,
    called_at: &'static Location<'static>,
}

impl<E: From<Error>> RetryError<E> {
    pub(super) fn new(
        last: Option<E>,
        why: GaveUp,
        story: Story,
        called_at: &'static Location<'static>,
    ) -> Self {
        let is_own = last.is_some();
        let error = last.unwrap_or_else(|| match &why {
            GaveUp::NotEnoughTime(short) => Error::from(short.clone()).into(),
            GaveUp::Ended(ended) => ended.clone().into(),
            _ => unreachable!("an attempt has failed before any other reason"),
        });
        RetryError(Box::new(Inner { error, is_own, why, story, called_at }))
    }
}

impl<E> RetryError<E> {
    /// Returns the error of the last attempt that failed, or that exceeded its limit. If there was none, this is the
    /// context's error, or the [`NotEnoughTime`] that prevented the first attempt, converted into `E`.
    pub fn error(&self) -> &E {
        &self.0.error
    }

    /// Returns the [`error`](Self::error) by value.
    pub fn into_error(self) -> E {
        self.0.error
    }

    /// Returns why no further attempt was made.
    pub fn why(&self) -> &GaveUp {
        &self.0.why
    }

    /// Returns the context's error if the context ended.
    pub fn context_error(&self) -> Option<&Error> {
        match &self.0.why {
            GaveUp::Ended(ended) => Some(ended),
            GaveUp::NotEnoughTime(short) => short.context_error(),
            _ => None,
        }
    }

    /// Returns the number of attempts that were started.
    pub fn attempts(&self) -> u32 {
        self.0.story.attempts
    }

    /// Returns the failed attempts in order, up to the last sixteen.
    pub fn latest(&self) -> impl ExactSizeIterator<Item = &Attempt> + DoubleEndedIterator {
        self.0.story.latest()
    }

    /// Returns the total time of all attempts.
    pub fn in_attempts(&self) -> Duration {
        self.0.story.in_attempts()
    }

    /// Returns the total time of all delays.
    pub fn in_delays(&self) -> Duration {
        self.0.story.in_delays()
    }

    /// Returns the time from the start of the first attempt until the retry gave up.
    pub fn elapsed(&self) -> Duration {
        self.in_attempts() + self.in_delays()
    }

    /// Returns the line that called [`retry`](crate::Context::retry).
    pub fn called_at(&self) -> &'static Location<'static> {
        self.0.called_at
    }

    /// Prints the story without what is the source.
    fn fmt_story(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { story, why, .. } = &*self.0;
        match story.attempts {
            0 => f.write_str("no attempt made")?,
            attempts => {
                let plural = if attempts == 1 { "" } else { "s" };
                write!(f, "gave up after {attempts} attempt{plural} in {:?}", legible(self.elapsed()))?;
            }
        }
        if story.attempts > 1 {
            let skipped = story.attempts as usize - story.latest().len().min(story.attempts as usize);
            f.write_str(if skipped > 0 { " (…" } else { " (" })?;
            for (nth, attempt) in story.latest().enumerate() {
                let comma = if nth > 0 || skipped > 0 { ", " } else { "" };
                write!(f, "{comma}{:?}", legible(attempt.took))?;
            }
            write!(f, ", and {:?} between them)", legible(story.in_delays()))?;
        }
        write!(f, ": {why}")
    }

    /// Whether the last attempt's error is not the source, which the context's end is.
    fn prints_error(&self) -> bool {
        self.0.is_own && matches!(self.0.why, GaveUp::Ended(_))
    }
}

/// `gave up after 2 attempts in 80ms (10ms, 10ms, and 60ms between them): no attempts left`, on one line.
impl<E: fmt::Display> fmt::Display for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_story(f)?;
        if self.prints_error() {
            write!(f, "; the last error: {}", self.0.error)?;
        }
        Ok(())
    }
}

/// The line of `Display`, with the error in its `Debug`; `{:#?}` shows the fields.
impl<E: fmt::Debug> fmt::Debug for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { error, why, story, called_at, .. } = &*self.0;
        if f.alternate() {
            return f
                .debug_struct("RetryError")
                .field("error", error)
                .field("why", why)
                .field("attempts", &story.attempts)
                .field("latest", &story.latest())
                .field("in_attempts", &self.in_attempts())
                .field("in_delays", &self.in_delays())
                .field("called_at", &format_args!("{}", Place(called_at)))
                .finish();
        }
        self.fmt_story(f)?;
        if self.prints_error() {
            write!(f, "; the last error: {error:?}")?;
        }
        match &self.0.why {
            GaveUp::Ended(ended) => write!(f, "\n\nCaused by:\n    {ended}"),
            _ if self.0.is_own => write!(f, "\n\nCaused by:\n    {error:?}"),
            _ => Ok(()),
        }
    }
}

/// The source is what `Display` leaves out: the context's end if that is why, else the last attempt's error.
impl<E: StdError + 'static> StdError for RetryError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.why {
            GaveUp::Ended(ended) => Some(ended),
            _ => self.0.is_own.then_some(&self.0.error as _),
        }
    }
}

/// The last attempt's error, or the context's.
impl From<RetryError<Error>> for Error {
    fn from(failed: RetryError<Error>) -> Error {
        failed.into_error()
    }
}

/// Of the kind of the last attempt's error, with the story inside.
impl From<RetryError<io::Error>> for io::Error {
    fn from(failed: RetryError<io::Error>) -> io::Error {
        io::Error::new(failed.error().kind(), failed)
    }
}

/// To the microsecond, if that leaves anything: nanoseconds are noise.
fn legible(time: Duration) -> Duration {
    if time < Duration::from_millis(1) {
        return time;
    }
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000))
}
