//! Why a context ended, and where.
//!
//! An [`Error`] is one pointer to a record that is shared by everyone who is told of the same end, and
//! it holds no context: keeping an error, or giving it to another context as its cause, keeps no tree
//! alive.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// A cause, as [`cancel_with`](crate::CancelScope::cancel_with) and the `_cause` constructors take it.
///
/// Any error converts into one, and so do `&str` and `String`.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a context ended: what [`Context::err`](crate::Context::err), `check`, `done` and `run` answer.
///
/// Its [`Display`](fmt::Display) begins with Go's words, `context canceled` or `context deadline
/// exceeded`, and goes on with where and why, on one line; its
/// [`source`](std::error::Error::source) is the cause. A clone is a reference count. A context that
/// ended with its parent has its parent's error. Go's counterpart is `ctx.Err()` and
/// `context.Cause(ctx)` in one.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let ctx = Context::background().with_timeout(Duration::from_millis(100));
/// let err = ctx.sleep(Duration::from_secs(5)).await.unwrap_err();
///
/// assert!(err.is_deadline_exceeded());
/// assert!(err.to_string().starts_with("context deadline exceeded: 100ms budget set at "));
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Record>);

struct Record {
    origin: Origin,
    cause: Option<BoxError>,
}

/// What kind of end it was.
///
/// ```
/// use tokio_ctx::{Context, ErrorKind};
///
/// let ctx = Context::background().with_cancel();
/// ctx.cancel();
/// assert_eq!(ctx.err().unwrap().kind(), ErrorKind::Canceled);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A scope, a guard, a canceller or a token ended it. Go's `context.Canceled`.
    Canceled,
    /// Its deadline passed. Go's `context.DeadlineExceeded`.
    DeadlineExceeded,
}

/// Where and when an end came from: the context that ended by itself, not those that ended with it.
///
/// ```
/// use tokio_ctx::Context;
///
/// let ctx = Context::background().with_cancel();
/// ctx.cancel();
/// let err = ctx.err().unwrap();
/// let origin = err.origin();
/// assert!(origin.made_at().line() < origin.canceled_at().unwrap().line());
/// assert_eq!(origin.budget(), None);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub(crate) made_at: &'static Location<'static>,
    pub(crate) how: How,
    pub(crate) budget: Option<Duration>,
    pub(crate) ended_at: Instant,
}

/// By what a context ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Deadline,
    Canceled(&'static Location<'static>),
    GuardDropped,
    Token,
    /// By a context of another process, of which no more than the kind is known.
    #[cfg(feature = "tonic")]
    Peer(ErrorKind),
}

impl Error {
    pub(crate) fn new(origin: Origin, cause: Option<BoxError>) -> Error {
        Error(Arc::new(Record { origin, cause }))
    }

    /// What a peer said, at the line where that is made an error.
    #[cfg(feature = "tonic")]
    pub(crate) fn told_by_peer(
        kind: ErrorKind,
        made_at: &'static Location<'static>,
        cause: BoxError,
    ) -> Error {
        let (how, ended_at) = (How::Peer(kind), crate::sync::now());
        Error::new(Origin { made_at, how, budget: None, ended_at }, Some(cause))
    }

    /// What kind of end it was.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, ErrorKind};
    ///
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(ctx.err().unwrap().kind(), ErrorKind::DeadlineExceeded);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self.0.origin.how {
            How::Deadline => ErrorKind::DeadlineExceeded,
            How::Canceled(_) | How::GuardDropped | How::Token => ErrorKind::Canceled,
            #[cfg(feature = "tonic")]
            How::Peer(kind) => kind,
        }
    }

    /// Whether somebody cancelled it.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel();
    /// assert!(ctx.err().unwrap().is_canceled());
    /// ```
    pub fn is_canceled(&self) -> bool {
        self.kind() == ErrorKind::Canceled
    }

    /// Whether a deadline passed.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let ctx = tokio_ctx::Context::background().with_timeout(Duration::ZERO);
    /// assert!(ctx.err().unwrap().is_deadline_exceeded());
    /// ```
    pub fn is_deadline_exceeded(&self) -> bool {
        self.kind() == ErrorKind::DeadlineExceeded
    }

    /// The cause that was given with the end, if one was. Go's `context.Cause`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel_with("client hung up");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "client hung up");
    /// ```
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.cause.as_deref()
    }

    /// The cause, if it is an `E`, or the first `E` among what it came from.
    ///
    /// A cause that is itself an [`Error`] of this crate, say a group's first failure, is looked
    /// through along [`source`](std::error::Error::source). Go's counterpart is
    /// `errors.As(context.Cause(ctx), &e)`.
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_cancel();
    /// ctx.cancel_with(io::Error::from(io::ErrorKind::BrokenPipe));
    ///
    /// let err = ctx.err().unwrap();
    /// assert_eq!(err.cause_as::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    /// assert!(err.cause_as::<std::fmt::Error>().is_none());
    /// ```
    pub fn cause_as<E: StdError + 'static>(&self) -> Option<&E> {
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<E>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }

    /// Where the ended context was made, where it was cancelled, its time budget, and when it ended.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let ctx = tokio_ctx::Context::background().with_timeout(Duration::ZERO);
    /// let err = ctx.err().unwrap();
    /// assert_eq!(err.origin().budget(), Some(Duration::ZERO));
    /// assert!(err.origin().made_at().file().ends_with(".rs"));
    /// ```
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }
}

impl Origin {
    /// The line that made the context: its `with_…` or `merge` call.
    ///
    /// ```
    /// let scope = tokio_ctx::Context::background().with_cancel();
    /// let ctx = scope.clone();
    /// drop(scope);
    /// println!("made at {}", ctx.err().unwrap().origin().made_at());
    /// ```
    pub fn made_at(&self) -> &'static Location<'static> {
        self.made_at
    }

    /// The line that cancelled it: its `cancel` or `cancel_with` call.
    ///
    /// `None` for a deadline, for a scope (or guard) that was dropped, and for a
    /// [`CancellationToken`](tokio_util::sync::CancellationToken).
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel();
    /// let line = line!() - 1;
    /// assert_eq!(ctx.err().unwrap().origin().canceled_at().unwrap().line(), line);
    /// ```
    pub fn canceled_at(&self) -> Option<&'static Location<'static>> {
        match self.how {
            How::Canceled(place) => Some(place),
            _ => None,
        }
    }

    /// How long the context was given when it was made; `None` if it had no deadline of its own.
    ///
    /// For `with_deadline` it is the time that was left at that call; zero if none was.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let ctx = tokio_ctx::Context::background().with_timeout(Duration::from_secs(2));
    /// ctx.cancel();
    /// assert_eq!(ctx.err().unwrap().origin().budget(), Some(Duration::from_secs(2)));
    /// ```
    pub fn budget(&self) -> Option<Duration> {
        self.budget
    }

    /// When it ended: the deadline itself, or the moment it was cancelled.
    ///
    /// One case is dated later: the drop of the scope of a context that had no deadline, never had a
    /// child, and has no waiter. That end has stopped nothing yet, so it is dated by the first question
    /// (and costs no look at the clock if there is none).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(Some(ctx.err().unwrap().origin().ended_at()), ctx.deadline());
    /// ```
    pub fn ended_at(&self) -> Instant {
        self.ended_at
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { made_at, how, budget, .. } = self.0.origin;
        let made_at = Place(made_at);
        match (how, budget) {
            (How::Deadline, Some(Duration::ZERO)) => {
                write!(f, "context deadline exceeded: no time was left when it was set at {made_at}")?
            }
            (How::Deadline, budget) => {
                let budget = legible(budget.unwrap_or_default());
                write!(f, "context deadline exceeded: {budget:?} budget set at {made_at}")?
            }
            (How::Canceled(place), _) => write!(f, "context canceled at {}", Place(place))?,
            (How::GuardDropped, _) => {
                write!(f, "context canceled: scope dropped, context made at {made_at}")?
            }
            (How::Token, _) => {
                write!(f, "context canceled by the CancellationToken given at {made_at}")?
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::DeadlineExceeded), _) => {
                write!(f, "context deadline exceeded: told by a peer at {made_at}")?
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::Canceled), _) => {
                write!(f, "context canceled: told by a peer at {made_at}")?
            }
        }
        match &self.0.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

/// A location as compilers and editors take it: file and line.
pub(crate) struct Place(pub(crate) &'static Location<'static>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.file(), self.0.line())
    }
}

/// `with_deadline` measures its budget to the nanosecond; nobody wants to read that.
fn legible(budget: Duration) -> Duration {
    if budget < Duration::from_millis(1) {
        return budget;
    }
    let micros = (budget.as_nanos() + 500) / 1_000;
    u64::try_from(micros).map_or(budget, Duration::from_micros)
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind())
            .field("cause", &self.0.cause)
            .field("origin", &self.0.origin)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

/// A deadline becomes [`TimedOut`](io::ErrorKind::TimedOut), a cancel
/// [`Other`](io::ErrorKind::Other), with the [`Error`] inside.
///
/// Never `Interrupted`, which std retries, nor `ConnectionAborted`, which accept loops do.
///
/// ```
/// use std::{io, time::Duration};
///
/// fn read_all(ctx: &tokio_ctx::Context) -> io::Result<()> {
///     ctx.check()?;
///     Ok(())
/// }
///
/// let ctx = tokio_ctx::Context::background().with_timeout(Duration::ZERO);
/// assert_eq!(read_all(&ctx).unwrap_err().kind(), io::ErrorKind::TimedOut);
/// ```
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error.kind() {
            ErrorKind::DeadlineExceeded => io::ErrorKind::TimedOut,
            ErrorKind::Canceled => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
