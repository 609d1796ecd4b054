//! [`RetryError`]: the error of the last attempt, the history of all attempts, and why there was no further one.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::Location;
use std::time::Duration;

use super::history::{Attempt, History};
use crate::context::NotEnoughTime;
use crate::error::{Error, Place};

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
            // The error itself is the source.
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
/// // gave up after 2 attempts in 80ms (10ms, 10ms, and 60ms between them): not enough time left:
/// // 61ms required, 20ms left of the 100ms budget set at src/main.rs:5
/// println!("{failed}");
/// assert_eq!(failed.attempts(), 2);
/// assert_eq!(failed.elapsed(), failed.in_attempts() + failed.in_delays());
/// assert_eq!(failed.into_error().to_string(), "503 from the shard");
/// # }
/// ```
pub struct RetryError<E>(Box<Inner<E>>);

struct Inner<E> {
    error: E,
    /// Whether `error` was returned by an attempt, or stands for an attempt that exceeded its limit. Otherwise there
    /// was no attempt, and it was converted from the reason.
    is_own: bool,
    why: GaveUp,
    history: History,
    called_at: &'static Location<'static>,
}

impl<E: From<Error>> RetryError<E> {
    pub(super) fn new(
        last: Option<E>,
        why: GaveUp,
        history: History,
        called_at: &'static Location<'static>,
    ) -> Self {
        let is_own = last.is_some();
        let error = last.unwrap_or_else(|| match &why {
            GaveUp::NotEnoughTime(short) => Error::from(short.clone()).into(),
            GaveUp::Ended(ended) => ended.clone().into(),
            _ => unreachable!("an attempt has failed before any other reason"),
        });
        RetryError(Box::new(Inner { error, is_own, why, history, called_at }))
    }
}

impl<E> RetryError<E> {
    /// Returns the error of the last attempt. If there was no attempt, or the context ended during the first one,
    /// returns the context's error or the [`NotEnoughTime`] that prevented it, converted into `E`.
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
        self.0.history.attempts()
    }

    /// Returns the failed attempts, oldest first: all of them, or the last sixteen.
    pub fn latest(&self) -> impl ExactSizeIterator<Item = &Attempt> + DoubleEndedIterator {
        self.0.history.latest()
    }

    /// Returns the total time of all attempts.
    pub fn in_attempts(&self) -> Duration {
        self.0.history.in_attempts()
    }

    /// Returns the total time of all delays.
    pub fn in_delays(&self) -> Duration {
        self.0.history.in_delays()
    }

    /// Returns the time from the start of the first attempt until the retry gave up.
    pub fn elapsed(&self) -> Duration {
        self.in_attempts() + self.in_delays()
    }

    /// Returns the line that called [`retry`](crate::Context::retry).
    pub fn called_at(&self) -> &'static Location<'static> {
        self.0.called_at
    }

    /// Prints the attempts and the reason, without the error that is the source.
    fn fmt_history(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { history, why, .. } = &*self.0;
        match history.attempts() {
            0 => f.write_str("no attempt made")?,
            attempts => {
                let plural = if attempts == 1 { "" } else { "s" };
                write!(f, "gave up after {attempts} attempt{plural} in {:?}", round(self.elapsed()))?;
            }
        }
        if history.attempts() > 1 {
            let attempts = history.attempts() as usize;
            let skipped = attempts - history.latest().len().min(attempts);
            f.write_str(if skipped > 0 { " (…" } else { " (" })?;
            for (nth, attempt) in history.latest().enumerate() {
                let comma = if nth > 0 || skipped > 0 { ", " } else { "" };
                write!(f, "{comma}{:?}", round(attempt.took()))?;
            }
            write!(f, ", and {:?} between them)", round(history.in_delays()))?;
        }
        write!(f, ": {why}")
    }

    /// Returns whether the output has to include the last attempt's error, because the source is the context's error.
    fn prints_error(&self) -> bool {
        self.0.is_own && matches!(self.0.why, GaveUp::Ended(_))
    }
}

/// One line, such as `gave up after 2 attempts in 80ms (10ms, 10ms, and 60ms between them): no attempts left`.
impl<E: fmt::Display> fmt::Display for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_history(f)?;
        if self.prints_error() {
            write!(f, "; the last error: {}", self.0.error)?;
        }
        Ok(())
    }
}

/// Prints the line of `Display`, then the source. `{:#?}` prints the fields.
impl<E: fmt::Debug> fmt::Debug for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { error, why, history, called_at, .. } = &*self.0;
        if f.alternate() {
            return f
                .debug_struct("RetryError")
                .field("error", error)
                .field("why", why)
                .field("attempts", &history.attempts())
                .field("latest", &history.latest())
                .field("in_attempts", &self.in_attempts())
                .field("in_delays", &self.in_delays())
                .field("called_at", &format_args!("{}", Place(called_at)))
                .finish();
        }
        self.fmt_history(f)?;
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

/// The source is the error that `Display` leaves out: the context's error if the context ended, otherwise that of the
/// last attempt.
impl<E: StdError + 'static> StdError for RetryError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.why {
            GaveUp::Ended(ended) => Some(ended),
            _ => self.0.is_own.then_some(&self.0.error as _),
        }
    }
}

/// Returns the error of the last attempt, or of the context; see [`RetryError::into_error`].
impl From<RetryError<Error>> for Error {
    fn from(failed: RetryError<Error>) -> Error {
        failed.into_error()
    }
}

/// Wraps the error, and keeps the kind of the last attempt's error.
impl From<RetryError<io::Error>> for io::Error {
    fn from(failed: RetryError<io::Error>) -> io::Error {
        io::Error::new(failed.error().kind(), failed)
    }
}

/// Rounds times of a millisecond and more down to microseconds, to keep the message short.
fn round(time: Duration) -> Duration {
    if time < Duration::from_millis(1) {
        return time;
    }
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000))
}
