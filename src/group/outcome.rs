//! How tasks ended: one by one, and what a group makes of them all.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::Location;

use crate::Error;
use crate::error::Place;
use crate::group::fault::Failure;

/// How one task of a [`Group`](super::Group) ended, and the line that spawned it.
///
/// Made by [`Group::outcomes`](super::Group::outcomes) and [`Group::next`](super::Group::next).
///
/// ```
/// use tokio_ctx::{Context, Error, Group};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (mut group, _ctx) = Group::<_, Error>::new(&Context::background());
/// group.spawn(async { Ok(3) });
/// let outcome = group.next().await.unwrap();
/// assert_eq!(outcome.spawned_at.line(), line!() - 2);
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<T, E> {
    /// The line that spawned the task.
    pub spawned_at: &'static Location<'static>,
    /// What came of it.
    pub end: End<T, E>,
}

/// What came of a task.
///
/// ```
/// use tokio_ctx::group::End;
///
/// fn describe<E>(end: &End<u32, E>) -> String {
///     match end {
///         End::Done(value) => format!("{value}"),
///         End::Failed(failure) => format!("failed: {failure}"),
///         End::Panicked(_) => "panicked".to_owned(),
///         End::Aborted => "had to be aborted".to_owned(),
///     }
/// }
/// assert_eq!(describe(&End::<_, tokio_ctx::Error>::Done(3)), "3");
/// ```
#[derive(Debug)]
pub enum End<T, E> {
    /// It returned `Ok`, with this value.
    Done(T),
    /// It returned `Err`.
    Failed(Failure<E>),
    /// It panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
    /// It was aborted where it awaited: its grace was over, or its runtime shut down.
    Aborted,
}

impl<T, E> Outcome<T, E> {
    /// The value, if the task came to one.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (group, _ctx) = Group::new(&Context::background());
    /// let mut group = group.keep_going();
    /// for text in ["1", "two", "3"] {
    ///     group.spawn(async move { text.parse::<u32>() });
    /// }
    /// let outcomes = group.outcomes().await;
    /// let numbers: Vec<u32> = outcomes.into_iter().filter_map(|outcome| outcome.value()).collect();
    /// assert_eq!(numbers, [1, 3]);
    /// # }
    /// ```
    pub fn value(self) -> Option<T> {
        match self.end {
            End::Done(value) => Some(value),
            End::Failed(_) | End::Panicked(_) | End::Aborted => None,
        }
    }
}

/// Why [`Group::wait`](super::Group::wait) has not got a value of every task.
///
/// Either a task failed: then [`failure`](Self::failure) is the first that did. Or none did, but the
/// context ended, and tasks had to be aborted, could not be spawned, or a stream was not read to its end.
/// It reads like the answer, on one line; its [`source`](StdError::source) is the task's own error, or
/// the context's. With `?` it converts into boxed errors, `anyhow::Error` and [`io::Error`].
///
/// ```
/// use tokio_ctx::{BoxError, Context, Group};
///
/// async fn total(texts: &[&'static str]) -> Result<u32, BoxError> {
///     let (mut group, _ctx) = Group::new(&Context::background());
///     for text in texts.iter().copied() {
///         group.spawn(async move { text.parse::<u32>() });
///     }
///     Ok(group.wait().await?.into_iter().sum())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert_eq!(total(&["1", "2"]).await.unwrap(), 3);
/// // task spawned at src/main.rs:6 failed: invalid digit found in string
/// let failed = total(&["1", "two"]).await.unwrap_err();
/// assert!(failed.to_string().ends_with(" failed: invalid digit found in string"));
/// # }
/// ```
pub struct GroupError<E> {
    pub(super) failure: Option<Failure<E>>,
    pub(super) stopped: Option<Error>,
    pub(super) aborted: Vec<&'static Location<'static>>,
}

impl<E> GroupError<E> {
    /// The first task's error, with the line that spawned it; `None` if no task returned one.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(async { "nine".parse::<u32>() });
    /// let failed = group.wait().await.unwrap_err();
    /// let failure = failed.failure().unwrap();
    /// assert!(failed.to_string().contains(&failure.to_string()));
    /// # }
    /// ```
    pub fn failure(&self) -> Option<&Failure<E>> {
        self.failure.as_ref()
    }

    /// The first task's error; `None` if no task returned one.
    ///
    /// ```
    /// use std::num::ParseIntError;
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(async { "nine".parse::<u32>() });
    /// match group.wait().await {
    ///     Ok(numbers) => println!("{numbers:?}"),
    ///     Err(failed) => match failed.error() {
    ///         Some(error) => println!("not a number: {error}"),
    ///         None => println!("not in time: {failed}"),
    ///     },
    /// }
    /// # }
    /// ```
    pub fn error(&self) -> Option<&E> {
        self.failure.as_deref()
    }

    /// Why the group's context ended, if it has. Its cause is the [`failure`](Self::failure), unless
    /// something else ended it before.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(20));
    /// let (mut group, _ctx) = Group::<(), Error>::new(&ctx);
    /// group.spawn(async { Context::current().sleep(Duration::from_secs(1)).await });
    /// let failed = group.wait().await.unwrap_err();
    /// assert!(failed.context_error().unwrap().is_deadline_exceeded());
    /// # }
    /// ```
    pub fn context_error(&self) -> Option<&Error> {
        self.stopped.as_ref()
    }

    /// The lines that spawned the tasks that had to be aborted, in the order in which they did.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let (group, _ctx) = Group::<(), Error>::new(&ctx);
    /// let mut group = group.grace(Duration::ZERO);
    /// group.spawn(std::future::pending());
    /// ctx.cancel();
    /// for line in group.wait().await.unwrap_err().aborted() {
    ///     println!("did not end by itself: {line}");
    /// }
    /// # }
    /// ```
    pub fn aborted(&self) -> &[&'static Location<'static>] {
        &self.aborted
    }
}

impl<E> fmt::Display for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.failure, &self.stopped) {
            (Some(failure), _) => {
                write!(f, "task spawned at {} failed: {failure}", Place(failure.spawned_at()))?
            }
            (None, Some(stopped)) => write!(f, "{stopped}")?,
            (None, None) => f.write_str("a runtime shut down under its tasks")?,
        }
        fmt_aborted(&self.aborted, f)
    }
}

/// `; aborted: 2 tasks spawned at src/main.rs:12, 1 at src/main.rs:20`.
fn fmt_aborted(aborted: &[&'static Location<'static>], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut counted: Vec<(&'static Location<'static>, usize)> = Vec::new();
    for place in aborted {
        match counted.iter_mut().find(|(known, _)| known == place) {
            Some((_, count)) => *count += 1,
            None => counted.push((place, 1)),
        }
    }
    for (nth, (place, count)) in counted.into_iter().enumerate() {
        let tasks = if count == 1 { "task" } else { "tasks" };
        match nth {
            0 => write!(f, "; aborted: {count} {tasks} spawned at {}", Place(place))?,
            _ => write!(f, ", {count} at {}", Place(place))?,
        }
    }
    Ok(())
}

impl<E> fmt::Debug for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupError")
            .field("failure", &self.failure)
            .field("context_error", &self.stopped)
            .field("aborted", &self.aborted)
            .finish()
    }
}

impl<E> StdError for GroupError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match (&self.failure, &self.stopped) {
            (Some(failure), _) => Some(failure.error()),
            (None, stopped) => stopped.as_ref().map(|stopped| stopped as _),
        }
    }
}

/// Of the kind of the task's own [`io::Error`] if it is one, else as an [`Error`] converts, with the
/// [`GroupError`] inside.
impl<E: Send + Sync + 'static> From<GroupError<E>> for io::Error {
    fn from(failed: GroupError<E>) -> io::Error {
        let own = failed.source().and_then(|source| source.downcast_ref::<io::Error>());
        let kind = match (own, &failed.failure, &failed.stopped) {
            (Some(own), ..) => own.kind(),
            (None, None, Some(stopped)) => io::Error::from(stopped.clone()).kind(),
            (None, ..) => io::ErrorKind::Other,
        };
        io::Error::new(kind, failed)
    }
}

/// Why [`try_spawn`](super::Group::try_spawn) has not spawned a task, and the task.
///
/// ```
/// use std::future::ready;
/// use tokio_ctx::group::TrySpawnError;
/// use tokio_ctx::{Context, Error, Group};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (group, _ctx) = Group::<_, Error>::new(&Context::background());
/// let mut group = group.limit(8);
/// if let Err(TrySpawnError::Full(task)) = group.try_spawn(ready(Ok(3))) {
///     let _here_then = task.await;
/// }
/// # }
/// ```
pub enum TrySpawnError<F> {
    /// As many run as may at once.
    Full(F),
    /// The group's context has ended.
    Ended(F, Error),
}

impl<F> TrySpawnError<F> {
    /// The task that was not spawned.
    ///
    /// ```
    /// use tokio_ctx::group::TrySpawnError;
    ///
    /// assert_eq!(TrySpawnError::Full("a task").into_inner(), "a task");
    /// ```
    pub fn into_inner(self) -> F {
        match self {
            TrySpawnError::Full(task) | TrySpawnError::Ended(task, _) => task,
        }
    }
}

impl<F> fmt::Display for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrySpawnError::Full(_) => {
                f.write_str("the group is full: as many tasks run as its limit allows")
            }
            TrySpawnError::Ended(_, why) => write!(f, "the group's context has ended: {why}"),
        }
    }
}

impl<F> fmt::Debug for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrySpawnError::Full(_) => f.write_str("Full(..)"),
            TrySpawnError::Ended(_, why) => f.debug_tuple("Ended").field(&"..").field(why).finish(),
        }
    }
}

impl<F> StdError for TrySpawnError<F> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            TrySpawnError::Full(_) => None,
            TrySpawnError::Ended(_, why) => Some(why),
        }
    }
}
