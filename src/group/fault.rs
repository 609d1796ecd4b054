//! What a task may fail with, and the failure that a group shares: with the others, as the cause of
//! their end, and with whoever waits.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use crate::error::Place;

/// What the tasks of a [`Group`](super::Group) may fail with: any error type, `anyhow::Error` and
/// [`BoxError`](crate::BoxError) included.
///
/// Implemented for all that implement [`std::error::Error`], and for all that give one by [`AsRef`], as
/// boxed errors do. `Kind` tells the two apart and is inferred; only of a type that is both, such as
/// `Arc<dyn Error + Send + Sync>`, it must be said: `Group::<T, E>::new::<Boxed>(&ctx)`.
///
/// ```
/// use tokio_ctx::group::Fault;
///
/// fn fits<E: Fault<Kind>, Kind>() {}
///
/// fits::<std::io::Error, _>();
/// fits::<tokio_ctx::Error, _>();
/// fits::<tokio_ctx::BoxError, _>();
/// fits::<anyhow::Error, _>();
/// ```
#[diagnostic::on_unimplemented(
    message = "a task of a group cannot fail with `{Self}`",
    label = "this is no error type that can be sent and shared between threads",
    note = "use a type that implements `std::error::Error + Send + Sync + 'static`, `anyhow::Error`, or \
            `Box<dyn std::error::Error + Send + Sync>`, into which `?` turns texts as well"
)]
pub trait Fault<Kind>: Send + Sync + 'static {
    #[doc(hidden)]
    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static);
}

/// The kind of [`Fault`] that is an error itself.
///
/// ```
/// use tokio_ctx::group::Fault;
/// use tokio_ctx::group::fault::Plain;
///
/// fn fits<E: Fault<Plain>>() {}
/// fits::<std::num::ParseIntError>();
/// ```
#[derive(Debug)]
pub enum Plain {}

/// The kind of [`Fault`] that has an error inside.
///
/// ```
/// use tokio_ctx::group::Fault;
/// use tokio_ctx::group::fault::Boxed;
///
/// fn fits<E: Fault<Boxed>>() {}
/// fits::<tokio_ctx::BoxError>();
/// ```
#[derive(Debug)]
pub enum Boxed {}

impl<E: StdError + Send + Sync + 'static> Fault<Plain> for E {
    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }
}

impl<E> Fault<Boxed> for E
where
    E: AsRef<dyn StdError + Send + Sync + 'static> + Send + Sync + 'static,
{
    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.as_ref()
    }
}

/// How a group looks at its tasks' errors as errors: [`Fault::as_error`].
pub(super) type AsError<E> = fn(&E) -> &(dyn StdError + Send + Sync + 'static);

/// An error that a task returned, and the line that spawned the task.
///
/// It dereferences to the error, and reads like it. The first failure of a [`Group`](super::Group) is
/// shared between [`wait`](super::Group::wait) and the context, whose cause it is; an `E` need not be
/// `Clone` for that. As [any cause](crate::CancelScope::cancel_with), an error that holds the group's
/// own context is never freed.
///
/// ```
/// use std::io;
/// use tokio_ctx::{Context, Group};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (mut group, _ctx) = Group::new(&Context::background());
/// group.spawn(async { Err::<(), _>(io::Error::other("disk full")) });
/// let line = line!() - 1;
///
/// let failed = group.wait().await.unwrap_err();
/// let failure = failed.failure().unwrap();
/// assert_eq!(failure.kind(), io::ErrorKind::Other);
/// assert_eq!(failure.to_string(), "disk full");
/// assert_eq!(failure.spawned_at().line(), line);
/// # }
/// ```
pub struct Failure<E>(Arc<Failed<E>>);

struct Failed<E> {
    error: E,
    as_error: AsError<E>,
    spawned_at: &'static Location<'static>,
}

impl<E> Failure<E> {
    pub(super) fn new(
        error: E,
        as_error: AsError<E>,
        spawned_at: &'static Location<'static>,
    ) -> Failure<E> {
        Failure(Arc::new(Failed { error, as_error, spawned_at }))
    }

    /// The line that spawned the task.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(async { "x".parse::<u32>() });
    /// let failed = group.wait().await.unwrap_err();
    /// assert_eq!(failed.failure().unwrap().spawned_at().line(), line!() - 2);
    /// # }
    /// ```
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.0.spawned_at
    }

    /// The error itself, unless somebody else has a share in it.
    ///
    /// A failure that ended its group's context is shared for as long as anybody has that context; one
    /// of a group that [keeps going](super::Group::keep_going) is not, once the group is over.
    ///
    /// # Errors
    ///
    /// This failure again, if it is shared.
    ///
    /// ```
    /// use std::num::ParseIntError;
    /// use tokio_ctx::group::End;
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (group, _ctx) = Group::new(&Context::background());
    /// let mut group = group.keep_going();
    /// group.spawn(async { "x".parse::<u32>() });
    /// for outcome in group.outcomes().await {
    ///     if let End::Failed(failure) = outcome.end {
    ///         let _owned: ParseIntError = failure.try_into_inner().unwrap();
    ///     }
    /// }
    /// # }
    /// ```
    pub fn try_into_inner(self) -> Result<E, Failure<E>> {
        Arc::try_unwrap(self.0).map(|failed| failed.error).map_err(Failure)
    }

    pub(super) fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        (self.0.as_error)(&self.0.error)
    }
}

impl<E> Clone for Failure<E> {
    fn clone(&self) -> Self {
        Failure(self.0.clone())
    }
}

impl<E> Deref for Failure<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.0.error
    }
}

impl<E> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.error(), f)
    }
}

impl<E> fmt::Debug for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("error", &self.error())
            .field("spawned_at", &format_args!("{}", Place(self.0.spawned_at)))
            .finish()
    }
}

impl<E> StdError for Failure<E> {
    /// The task's own error, so that [`cause_as`](crate::Error::cause_as) finds it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.error())
    }
}

/// The cause of the end of a context whose [`Group`](super::Group) had a task that panicked.
///
/// ```
/// use tokio_ctx::group::TaskPanicked;
/// use tokio_ctx::{Context, Group};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (mut group, ctx) = Group::<(), tokio_ctx::Error>::new(&Context::background());
/// group.spawn(async { panic!("out of paper") });
/// let stopped = ctx.done().await;
/// assert_eq!(stopped.cause_as::<TaskPanicked>().unwrap().message(), "out of paper");
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TaskPanicked {
    message: String,
    spawned_at: &'static Location<'static>,
}

impl TaskPanicked {
    pub(super) fn new(
        payload: &(dyn Any + Send),
        spawned_at: &'static Location<'static>,
    ) -> TaskPanicked {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "something that is no text".to_owned());
        TaskPanicked { message, spawned_at }
    }

    /// What it said; that it said something else than a text, if so.
    ///
    /// ```
    /// use tokio_ctx::group::TaskPanicked;
    ///
    /// fn log(stopped: &tokio_ctx::Error) {
    ///     if let Some(panicked) = stopped.cause_as::<TaskPanicked>() {
    ///         println!("{} panicked: {}", panicked.spawned_at(), panicked.message());
    ///     }
    /// }
    /// # let ctx = tokio_ctx::Context::background().with_cancel();
    /// # ctx.cancel();
    /// # log(&ctx.err().unwrap());
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The line that spawned the task.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.spawned_at
    }
}

impl fmt::Display for TaskPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task spawned at {} panicked: {}", Place(self.spawned_at), self.message)
    }
}

impl StdError for TaskPanicked {}
