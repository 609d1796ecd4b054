//! Why a context ended, and where.
//!
//! An [`Error`] is a plain value: where, when and how a context ended, and a shared reference to the cause, if
//! there is one. It contains no context, so keeping an error, or using it as the cause of another context,
//! keeps no tree alive.
//!
//! An error can be the cause of the next one, so a loop can build a chain of any length. Printing and freeing a
//! chain does not recurse: `Display` and `source` iterate over the errors, and [`release`] defers nested drops.

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

/// The type of causes, for [`cancel_with`](crate::CancelScope::cancel_with) and the `with_…_cause` methods.
///
/// Every error type converts into it, and so do `&str` and `String`.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A cause, which is shared by all clones of an error.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// The error of a context that has ended: why, where and when. Go's `ctx.Err()` and `context.Cause(ctx)` in
/// one.
///
/// It is returned by [`Context::err`](crate::Context::err), `check`, `done`, `run` and others. A context that
/// ended with its parent has the error of its parent. Clones share the cause.
///
/// Its [`Display`](fmt::Display) is one line. It begins with Go's words, `context canceled` or
/// `context deadline exceeded`, followed by the location and the [`cause`](Self::cause). Because it includes
/// the cause, the [`source`](std::error::Error::source) is the source of the cause, so that `anyhow`'s `{:#}`,
/// and other code that prints a chain, prints each message once. To get the cause itself, use
/// [`cause_as`](Self::cause_as). [`Debug`](fmt::Debug), which is what `main` prints, is the same line followed
/// by the sources.
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

/// How a context ended: canceled, or at its deadline.
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
    /// Canceled by a scope, a guard, a canceler or a `CancellationToken`. Go's `context.Canceled`.
    Canceled,
    /// The deadline has passed, or an [idle limit](crate::Context::with_idle). Go's `context.DeadlineExceeded`.
    DeadlineExceeded,
}

/// Where and when a context ended. For a context that ended with an ancestor, this describes the ancestor.
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

/// What ended a context.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Deadline,
    Canceled(&'static Location<'static>),
    GuardDropped,
    Token,
    /// A limit on the time without progress, of which the cause tells.
    Idle,
    /// A context of another process, of which only the kind is known.
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

    /// Returns the cause, to be shared with another error.
    pub(crate) fn shared_cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// Creates an error for an end that a peer has reported, with the line of the conversion.
    #[cfg(feature = "tonic")]
    pub(crate) fn from_peer(
        kind: ErrorKind,
        made_at: &'static Location<'static>,
        ended_at: Instant,
        cause: BoxError,
    ) -> Error {
        let how = How::Peer(kind);
        Error::new(Origin::new(made_at, how, NO_BUDGET, Stamp::new(ended_at)), Some(cause))
    }

    /// Returns how the context ended.
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
            How::Deadline | How::Idle => ErrorKind::DeadlineExceeded,
            How::Canceled(_) | How::GuardDropped | How::Token => ErrorKind::Canceled,
            #[cfg(feature = "tonic")]
            How::Peer(kind) => kind,
        }
    }

    /// Returns whether the context was canceled.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel();
    /// assert!(ctx.err().unwrap().is_canceled());
    /// ```
    pub fn is_canceled(&self) -> bool {
        self.kind() == ErrorKind::Canceled
    }

    /// Returns whether a deadline has passed.
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

    /// Returns the cause that the context was canceled with, or that was set for its deadline. Go's
    /// `context.Cause`.
    ///
    /// [`cause_as`](Self::cause_as) returns it with its own type.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel_with("client hung up");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "client hung up");
    /// ```
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Returns where the context was derived, where it was canceled, its timeout, and when it ended.
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

    /// Returns the line that derived the context, with a `with_…` method or `merge`.
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

    /// Returns the line that canceled the context, with `cancel` or `cancel_with`.
    ///
    /// `None` for a deadline, for a scope or guard that was dropped, and for a
    /// [`CancellationToken`](https://docs.rs/tokio-util/0.7/tokio_util/sync/struct.CancellationToken.html).
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

    /// Returns the timeout that the context was derived with, or `None` if it had no deadline of its own.
    ///
    /// For `with_deadline`, this is the time until the deadline at that call, or zero if it had passed.
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

    /// Returns when the context ended: the deadline, or the time when it was canceled.
    ///
    /// For an idle limit, this is the time at which it was exceeded. To save reading the clock, the time of a
    /// cancellation is only recorded if it matters: if the context, or one derived from it, has a deadline, or if
    /// there is a cause. Otherwise this is the time when the error was first queried, which then does not change.
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
            (How::Idle, _) => f.write_str("context deadline exceeded"),
            (How::Canceled(place), _) => write!(f, "context canceled at {}", Place(place)),
            (How::GuardDropped, _) => {
                write!(f, "context canceled: scope dropped, context made at {made_at}")
            }
            (How::Token, _) => {
                write!(f, "context canceled by the CancellationToken given at {made_at}")
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::DeadlineExceeded), _) => {
                write!(f, "context deadline exceeded: reported by a peer at {made_at}")
            }
            #[cfg(feature = "tonic")]
            (How::Peer(ErrorKind::Canceled), _) => {
                write!(f, "context canceled: reported by a peer at {made_at}")
            }
        }
    }

    /// Returns the cause, if it is an error of another context.
    fn ended_by(&self) -> Option<&Error> {
        self.cause()?.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error = self;
        error.fmt_end(f)?;
        // A loop, because the chain may be long.
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

/// Prints a location as file and line.
pub(crate) struct Place(pub(crate) &'static Location<'static>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.file(), self.0.line())
    }
}

/// Rounds a time to microseconds for printing, unless it is shorter than a millisecond.
fn legible(budget: Duration) -> Duration {
    if budget < Duration::from_millis(1) {
        return budget;
    }
    let micros = (budget.as_nanos() + 500) / 1_000;
    u64::try_from(micros).map_or(budget, Duration::from_micros)
}

/// Prints the line of `Display`, then the sources of the cause. `{:#?}` shows the fields.
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

/// Prints an error for `main`: its line, then its sources.
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

/// Returns the errors from `first` on, following `next`. Ends at a cycle.
pub(crate) fn chain<'a>(
    first: Option<&'a (dyn StdError + 'static)>,
    next: impl Fn(&'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)>,
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // Brent's algorithm: each error is compared with an earlier one, which is moved forward at growing
    // intervals.
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

/// Returns whether two references are to the same error. The type matters, because an error and its first field
/// may have the same address.
#[allow(ambiguous_wide_pointer_comparisons, reason = "a cycle may be detected one round later")]
fn is_same(a: &(dyn StdError + 'static), b: &(dyn StdError + 'static)) -> bool {
    std::ptr::eq(a, b)
}

impl StdError for Error {
    /// Returns the source of the cause, because `Display` includes the cause itself. See
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
    /// The causes whose drop is deferred until the drop of another one returns; `None` while no cause is being
    /// dropped.
    ///
    /// It is emptied by the call that has filled it, and has no destructor, so that it can be used until the
    /// thread ends.
    static WAITING: Cell<Option<ManuallyDrop<Vec<Cause>>>> = const { Cell::new(None) };
}

/// Drops a cause, and then, one after the other, the causes of the errors that were dropped with it. A chain of
/// any length therefore needs no more stack than one link, whatever types lie in between.
fn release(cause: Cause) {
    if let Some(mut waiting) = WAITING.take() {
        waiting.push(cause);
        WAITING.set(Some(waiting));
        return;
    }
    WAITING.set(Some(ManuallyDrop::default()));
    let (mut next, mut panicked) = (Some(cause), None);
    while let Some(cause) = next {
        // Foreign code. The deferred causes are dropped even if it panics.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(cause))) {
            match panicked {
                None => panicked = Some(panic),
                // Dropping the payload may panic again.
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

/// A cause is shared and therefore never modified.
impl UnwindSafe for Error {}
impl RefUnwindSafe for Error {}

/// Converts into an `io::Error` that contains the [`Error`]. Its kind is [`TimedOut`](io::ErrorKind::TimedOut)
/// for a deadline, and [`Other`](io::ErrorKind::Other) otherwise.
///
/// The kind is never `Interrupted`, because the standard library retries that, nor `ConnectionAborted`, because
/// accept loops do.
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
