//! `require`: fails early if too little time is left for a step.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use crate::error::{Error, How, Origin, Place, fmt_with_sources};
use crate::stamp::{Stamp, nanos};

impl Context {
    /// Returns an error unless at least `least` time is left until the deadline.
    ///
    /// Call it before a step that is not worth starting with less time. Without a deadline it always succeeds.
    /// The deadline is the one of [`remaining`](Self::remaining). Go has no counterpart, although `x/time/rate`
    /// does the same inside `Wait`.
    ///
    /// # Errors
    ///
    /// Returns [`NotEnoughTime`], which contains the time left and the line that set the deadline. If the
    /// context has ended, it contains the context's [`err`](Self::err). `?` converts it into an [`Error`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// # async fn rebuild() -> u32 { 1 }
    /// async fn rebuild_index(ctx: &Context) -> Result<u32, Error> {
    ///     ctx.require(Duration::from_secs(2))?; // A rebuild takes at least that long.
    ///     ctx.run(rebuild()).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(500));
    /// // not enough time left: 2s required, 500ms left of the 500ms budget set at src/main.rs:9
    /// println!("{}", ctx.require(Duration::from_secs(2)).unwrap_err());
    /// assert!(rebuild_index(&ctx).await.unwrap_err().is_deadline_exceeded());
    /// assert!(rebuild_index(&Context::background()).await.is_ok());
    /// # }
    /// ```
    pub fn require(&self, least: Duration) -> Result<(), NotEnoughTime> {
        let short = |why| {
            let short = NotEnoughTime { required: least, why, is_cause: false };
            #[cfg(feature = "watch")]
            if crate::registry::is_installed() {
                crate::registry::refused(&short.clone().into());
            }
            Err(short)
        };
        if self.token().is_none() {
            return Ok(());
        }
        if let Some(ended) = self.err() {
            return short(Why::Ended(ended));
        }
        let (Some(deadline), Some(left)) = (self.deadline(), self.remaining()) else { return Ok(()) };
        if left >= least {
            return Ok(());
        }
        let Some(owner) = self.deadline_owner() else {
            // The context has ended in the meantime, by itself or with an ancestor.
            return self.err().map_or(Ok(()), |ended| short(Why::Ended(ended)));
        };
        let (set_at, budget) = (owner.made_at(), owner.budget().unwrap_or_default());
        short(Why::Short { left, deadline, set_at, budget })
    }
}

/// Error returned by [`Context::require`] if less time is left than a step requires.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let ctx = Context::background().with_timeout(Duration::from_millis(40));
/// let set_at = line!() - 1;
/// let short = ctx.require(Duration::from_millis(100)).unwrap_err();
/// assert_eq!(short.required(), Duration::from_millis(100));
/// assert_eq!(short.left(), Duration::from_millis(40));
/// assert_eq!(short.set_at().unwrap().line(), set_at);
/// assert!(short.context_error().is_none());
/// # }
/// ```
#[derive(Clone)]
pub struct NotEnoughTime {
    required: Duration,
    why: Why,
    /// True for the cause of an error that already names the budget.
    is_cause: bool,
}

#[derive(Clone)]
enum Why {
    Ended(Error),
    Short { left: Duration, deadline: Instant, set_at: &'static Location<'static>, budget: Duration },
}

impl NotEnoughTime {
    /// Returns the time that was required.
    pub fn required(&self) -> Duration {
        self.required
    }

    /// Returns the time that was left; zero if the context had ended.
    pub fn left(&self) -> Duration {
        match &self.why {
            Why::Short { left, .. } => *left,
            Why::Ended(_) => Duration::ZERO,
        }
    }

    /// Returns the line that set the deadline, or `None` if the context was canceled.
    pub fn set_at(&self) -> Option<&'static Location<'static>> {
        match &self.why {
            Why::Short { set_at, .. } => Some(set_at),
            Why::Ended(error) => error.is_deadline_exceeded().then(|| error.origin().made_at()),
        }
    }

    /// Returns the context's error, if it had ended.
    pub fn context_error(&self) -> Option<&Error> {
        match &self.why {
            Why::Ended(error) => Some(error),
            Why::Short { .. } => None,
        }
    }
}

/// Prints `not enough time left: 2s required, 300ms left of the 500ms budget set at src/main.rs:8`, or the
/// error of the context: `not enough time left: context canceled at src/main.rs:9`.
impl fmt::Display for NotEnoughTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let required = self.required;
        match &self.why {
            Why::Ended(error) => write!(f, "not enough time left: {error}"),
            Why::Short { left, .. } if self.is_cause => {
                write!(f, "not enough time left: {required:?} required, {:?} left", legible(*left))
            }
            Why::Short { left, set_at, budget, .. } => {
                let (left, budget, place) = (legible(*left), legible(*budget), Place(set_at));
                write!(f, "not enough time left: {required:?} required, ")?;
                write!(f, "{left:?} left of the {budget:?} budget set at {place}")
            }
        }
    }
}

/// Prints the line of `Display`, then the sources of the context's cause. `{:#?}` shows the fields.
impl fmt::Debug for NotEnoughTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt_with_sources(self, f);
        }
        f.debug_struct("NotEnoughTime")
            .field("required", &self.required)
            .field("left", &self.left())
            .field("set_at", &self.set_at())
            .field("context_error", &self.context_error())
            .finish()
    }
}

/// `Display` includes the context's error, so the source is the source of that error.
impl StdError for NotEnoughTime {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.context_error()?.source()
    }
}

/// Converts into the context's error, if it had ended. Otherwise converts into `DeadlineExceeded`, for the
/// deadline that would have been exceeded, with the [`NotEnoughTime`] as its cause.
impl From<NotEnoughTime> for Error {
    fn from(short: NotEnoughTime) -> Error {
        let NotEnoughTime { required, why, .. } = short;
        let (made_at, budget, ended_at) = match &why {
            Why::Ended(error) => return error.clone(),
            Why::Short { set_at, budget, deadline, .. } => (*set_at, *budget, *deadline),
        };
        let cause = NotEnoughTime { required, why, is_cause: true };
        let origin = Origin::new(made_at, How::Deadline, nanos(budget), Stamp::new(ended_at));
        Error::new(origin, Some(Box::new(cause)))
    }
}

/// Converts into an [`Error`] first, and then into an `io::Error`.
impl From<NotEnoughTime> for io::Error {
    fn from(short: NotEnoughTime) -> io::Error {
        Error::from(short).into()
    }
}

/// Converts into an [`Error`] first.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum_core::response::IntoResponse for NotEnoughTime {
    fn into_response(self) -> axum_core::response::Response {
        Error::from(self).into_response()
    }
}

/// Converts into an [`Error`] first.
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl From<NotEnoughTime> for tonic::Status {
    fn from(short: NotEnoughTime) -> tonic::Status {
        Error::from(short).into()
    }
}

/// Rounds to microseconds, unless the time is shorter than a millisecond.
fn legible(time: Duration) -> Duration {
    if time < Duration::from_millis(1) {
        return time;
    }
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000))
}
