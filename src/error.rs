//! Why a context ended, and where.
//!
//! An [`Error`] is a plain value: where, when and how a context ended, and a shared handle on the cause if
//! there is one. It holds no context: keeping an error, or giving it to another context as its cause,
//! keeps no tree alive.
//!
//! An error may be the cause of the next, and a loop makes a chain of any length of them. Neither to print nor to
//! free it recurses: `Display` and `source` go from error to error in a loop, and [`release`] lets the drops that
//! a drop leads to wait for it.

use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, Location, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::stamp::Stamp;

/// A cause, as [`cancel_with`](crate::CancelScope::cancel_with) and the `_cause` constructors take it.
///
/// Any error converts into one, and so do `&str` and `String`.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A cause, shared by all clones of an error.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a context ended: what [`Context::err`](crate::Context::err), `check`, `done` and `run` answer.
///
/// Its [`Display`](fmt::Display) begins with Go's words, `context canceled` or `context deadline
/// exceeded`, and goes on with where and why, on one line, the [`cause`](Self::cause) included. Its
/// [`source`](std::error::Error::source) is therefore the cause's own source, so that `anyhow`'s `{:#}`, or
/// any printed chain, says each thing once; a loop over `source` does not meet the cause, for which
/// [`cause_as`](Self::cause_as) looks. [`Debug`](fmt::Debug), as `main` prints it, is the same line and what
/// the cause came from. A clone shares the cause. A context that ended with its parent has its parent's
/// error. Go's counterpart is `ctx.Err()` and `context.Cause(ctx)` in one.
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
pub struct Error {
    origin: Origin,
    cause: Option<Cause>,
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
    /// A scope, a guard, a canceler or a token ended it. Go's `context.Canceled`.
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
#[derive(Clone, Copy)]
pub struct Origin {
    made_at: &'static Location<'static>,
    how: How,
    /// In nanoseconds.
    budget: u64,
    ended_at: Stamp,
}

/// In the place of a budget.
pub(crate) const NO_BUDGET: u64 = u64::MAX;

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
    #[inline]
    pub(crate) fn new(origin: Origin, cause: Option<BoxError>) -> Error {
        Error::with_cause(origin, cause.map(Arc::from))
    }

    #[inline]
    pub(crate) fn with_cause(origin: Origin, cause: Option<Cause>) -> Error {
        Error { origin, cause }
    }

    /// The cause, for another error to share.
    pub(crate) fn shared_cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// What a peer said, at the line where that is made an error.
    #[cfg(feature = "tonic")]
    pub(crate) fn told_by_peer(
        kind: ErrorKind,
        made_at: &'static Location<'static>,
        ended_at: Instant,
        cause: BoxError,
    ) -> Error {
        let how = How::Peer(kind);
        Error::new(Origin::new(made_at, how, NO_BUDGET, Stamp::new(ended_at)), Some(cause))
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
        match self.origin.how {
            How::Deadline => ErrorKind::DeadlineExceeded,
            How::Canceled(_) | How::GuardDropped | How::Token => ErrorKind::Canceled,
            #[cfg(feature = "tonic")]
            How::Peer(kind) => kind,
        }
    }

    /// Whether it was canceled.
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
    /// [`cause_as`](Self::cause_as) asks for it by its type.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel_with("client hung up");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "client hung up");
    /// ```
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Where the ended context was made, where it was canceled, its time budget, and when it ended.
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
        &self.origin
    }
}

impl Origin {
    #[inline]
    pub(crate) fn new(
        made_at: &'static Location<'static>,
        how: How,
        budget: u64,
        ended_at: Stamp,
    ) -> Origin {
        Origin { made_at, how, budget, ended_at }
    }

    #[cfg(feature = "watch")]
    pub(crate) fn how(&self) -> How {
        self.how
    }

    /// [`ended_at`](Self::ended_at), in one word.
    pub(crate) fn stamp(&self) -> Stamp {
        self.ended_at
    }

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

    /// The line that canceled it: its `cancel` or `cancel_with` call.
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
        (self.budget != NO_BUDGET).then(|| Duration::from_nanos(self.budget))
    }

    /// When it ended: the deadline itself, or the time of the cancel.
    ///
    /// A cancel is dated if its end can be compared with another: if the context has a deadline, or one was
    /// derived below it, and where a cause is given. Otherwise it reads no clock, and this is the time of the
    /// first question, the same from then on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(Some(ctx.err().unwrap().origin().ended_at()), ctx.deadline());
    /// ```
    pub fn ended_at(&self) -> Instant {
        self.ended_at.instant()
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Origin");
        fields.field("made_at", &self.made_at).field("how", &self.how);
        fields.field("budget", &self.budget()).field("ended_at", &self.ended_at()).finish()
    }
}

impl Error {
    /// Prints the line without the cause.
    fn fmt_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made_at = Place(self.origin.made_at);
        match (self.origin.how, self.origin.budget()) {
            (How::Deadline, Some(Duration::ZERO)) => {
                write!(f, "context deadline exceeded: no time was left when it was set at {made_at}")
            }
            (How::Deadline, budget) => {
                let budget = legible(budget.unwrap_or_default());
                write!(f, "context deadline exceeded: {budget:?} budget set at {made_at}")
            }
            (How::Canceled(place), _) => write!(f, "context canceled at {}", Place(place)),
            (How::GuardDropped, _) => {
                write!(f, "context canceled: scope dropped, context made at {made_at}")
            }
            (How::Token, _) => {
                write!(f, "context canceled by the CancellationToken given at {made_at}")
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::DeadlineExceeded), _) => {
                write!(f, "context deadline exceeded: told by a peer at {made_at}")
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::Canceled), _) => {
                write!(f, "context canceled: told by a peer at {made_at}")
            }
        }
    }

    /// The cause, if it is an error of a context itself.
    fn ended_by(&self) -> Option<&Error> {
        self.cause()?.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error = self;
        error.fmt_end(f)?;
        // A loop, as such causes may be many.
        while let Some(cause) = error.ended_by() {
            f.write_str(": ")?;
            cause.fmt_end(f)?;
            error = cause;
        }
        match error.cause() {
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

/// The line of `Display`, then what the cause came from; `{:#?}` shows the fields.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt_with_sources(self, f);
        }
        let mut fields = f.debug_struct("Error");
        fields.field("kind", &self.kind());
        match self.ended_by() {
            Some(cause) => fields.field("cause", &format_args!("{cause}")),
            None => fields.field("cause", &self.cause),
        };
        fields.field("origin", &self.origin).finish()
    }
}

/// Prints an error as `main` is to return it: its line, then its sources.
pub(crate) fn fmt_with_sources(
    error: &(dyn StdError + 'static),
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "{error}")?;
    for (nth, source) in chain(error.source(), |error| error.source()).enumerate() {
        let heading = if nth == 0 { "\n\nCaused by:" } else { "" };
        write!(f, "{heading}\n    {source}")?;
    }
    Ok(())
}

/// The errors from `first` on, as `next` leads from one to the other; one that leads back ends it.
pub(crate) fn chain<'a>(
    first: Option<&'a (dyn StdError + 'static)>,
    next: impl Fn(&'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)>,
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // Brent's: every error is compared with one that is left behind ever farther.
    let (mut mark, mut steps, mut stride) = (first, 0_u64, 1_u64);
    std::iter::successors(first, move |error| {
        let following = next(*error)?;
        if mark.is_some_and(|mark| is_same(mark, following)) {
            return None;
        }
        steps += 1;
        if steps == stride {
            (mark, steps, stride) = (Some(following), 0, stride * 2);
        }
        Some(following)
    })
}

/// Whether it is the same error: at one address there may be an error and the first of its fields.
#[allow(ambiguous_wide_pointer_comparisons, reason = "a loop that is seen one turn later ends as well")]
fn is_same(a: &(dyn StdError + 'static), b: &(dyn StdError + 'static)) -> bool {
    std::ptr::eq(a, b)
}

impl StdError for Error {
    /// What the cause came from: the cause itself is in the line that `Display` prints. See
    /// [`cause`](Error::cause) and [`cause_as`](Error::cause_as).
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let mut error = self;
        while let Some(cause) = error.ended_by() {
            error = cause;
        }
        error.cause()?.source()
    }
}

impl Drop for Error {
    #[inline]
    fn drop(&mut self) {
        if let Some(cause) = self.cause.take() {
            release(cause);
        }
    }
}

thread_local! {
    /// The causes that wait for the drop of another to return; `None` while none is dropped here.
    ///
    /// Emptied by the call that has filled it, and without a destructor of its own, so that it is there to the end
    /// of the thread.
    static WAITING: Cell<Option<ManuallyDrop<Vec<Cause>>>> = const { Cell::new(None) };
}

/// Drops a cause, and then, one after the other, the causes of the errors that were dropped with it, whatever
/// lies between: so that a chain of any length takes no more stack than one of its links.
fn release(cause: Cause) {
    if let Some(mut waiting) = WAITING.take() {
        waiting.push(cause);
        WAITING.set(Some(waiting));
        return;
    }
    WAITING.set(Some(ManuallyDrop::default()));
    let (mut next, mut panicked) = (Some(cause), None);
    while let Some(cause) = next {
        // Foreign code. What waits behind it is freed all the same, as the other fields of a value are.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(cause))) {
            match panicked {
                None => panicked = Some(panic),
                // Its own drop may panic again.
                Some(_) => mem::forget(panic),
            }
        }
        let mut waiting = WAITING.take().unwrap_or_default();
        next = waiting.pop();
        WAITING.set(Some(waiting));
    }
    WAITING.take().map(ManuallyDrop::into_inner);
    if let Some(panic) = panicked.filter(|_| !thread::panicking()) {
        resume_unwind(panic);
    }
}

/// A cause is shared, and so never changed.
impl UnwindSafe for Error {}
impl RefUnwindSafe for Error {}

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
