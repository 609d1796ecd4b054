//! [`Context::require`]: work that cannot be finished in the time left is not begun.

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
    /// `Err` unless at least this much time is left: for a step that is not worth beginning with less.
    ///
    /// Without a deadline there is always enough. The deadline that counts is the earliest on the path, as for
    /// [`remaining`](Self::remaining). Go has no counterpart; `x/time/rate` has the same inside its `Wait`.
    ///
    /// # Errors
    ///
    /// [`NotEnoughTime`], which says how much there was and which line set the budget. A context that has ended
    /// has no time for anything: its [`err`](Self::err) is in
    /// [`context_error`](NotEnoughTime::context_error). `?` converts it where a function returns an
    /// [`Error`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// # async fn rebuild() -> u32 { 1 }
    /// async fn rebuild_index(ctx: &Context) -> Result<u32, Error> {
    ///     ctx.require(Duration::from_secs(2))?; // It takes that long at best.
    ///     ctx.run(rebuild()).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(500));
    /// // not enough time left: 2s required, 500ms left of the 500ms budget set at src/main.rs:8
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
        let Some(token) = self.token() else { return Ok(()) };
        if let Some(ended) = self.err() {
            return short(Why::Ended(ended));
        }
        let (Some(deadline), Some(left)) = (self.deadline(), self.remaining()) else { return Ok(()) };
        if left >= least {
            return Ok(());
        }
        let Some(owner) = token.deadline_owner() else {
            // It has ended meanwhile.
            return self.err().map_or(Ok(()), |ended| short(Why::Ended(ended)));
        };
        let (set_at, budget) = (owner.made_at(), owner.budget().unwrap_or_default());
        short(Why::Short { left, deadline, set_at, budget })
    }
}

/// There is less time left than a step requires. Made by [`Context::require`].
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
    /// The cause of an error that names the budget already.
    is_cause: bool,
}

#[derive(Clone)]
enum Why {
    Ended(Error),
    Short { left: Duration, deadline: Instant, set_at: &'static Location<'static>, budget: Duration },
}

impl NotEnoughTime {
    /// How much was required.
    pub fn required(&self) -> Duration {
        self.required
    }

    /// How much was left; zero if the context had ended.
    pub fn left(&self) -> Duration {
        match &self.why {
            Why::Short { left, .. } => *left,
            Why::Ended(_) => Duration::ZERO,
        }
    }

    /// The line that set the budget; `None` if the context was canceled.
    pub fn set_at(&self) -> Option<&'static Location<'static>> {
        match &self.why {
            Why::Short { set_at, .. } => Some(set_at),
            Why::Ended(error) => error.is_deadline_exceeded().then(|| error.origin().made_at()),
        }
    }

    /// The context's error, if it had ended; `None` if there was time left, and not enough.
    pub fn context_error(&self) -> Option<&Error> {
        match &self.why {
            Why::Ended(error) => Some(error),
            Why::Short { .. } => None,
        }
    }
}

/// `not enough time left: 2s required, 300ms left of the 500ms budget set at src/main.rs:8`, or what ended the
/// context: `not enough time left: context canceled at src/main.rs:9`.
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

/// The line of `Display`, then what the context's cause came from; `{:#?}` shows the fields.
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

/// `Display` includes the context's error, so that the chain goes on with that one's source.
impl StdError for NotEnoughTime {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.context_error()?.source()
    }
}

/// The context's error, if it had ended. Otherwise `DeadlineExceeded`, by the deadline that would have been
/// exceeded, with the [`NotEnoughTime`] as its cause.
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

/// As the [`Error`] of the same end: [`TimedOut`](io::ErrorKind::TimedOut), or what a cancel becomes.
impl From<NotEnoughTime> for io::Error {
    fn from(short: NotEnoughTime) -> io::Error {
        Error::from(short).into()
    }
}

/// As the [`Error`] of the same end.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum_core::response::IntoResponse for NotEnoughTime {
    fn into_response(self) -> axum_core::response::Response {
        Error::from(self).into_response()
    }
}

/// As the [`Error`] of the same end.
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl From<NotEnoughTime> for tonic::Status {
    fn from(short: NotEnoughTime) -> tonic::Status {
        Error::from(short).into()
    }
}

/// To the microsecond, if that leaves anything: nanoseconds are noise.
fn legible(time: Duration) -> Duration {
    if time < Duration::from_millis(1) {
        return time;
    }
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000))
}
