//! The causes with which a group ends its context.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::error::{Cause, Error, Place};

/// The cause of a context's end when a task of its [`Group`](super::Group) has failed or panicked.
///
/// It contains the text of the task's error, and the line that spawned the task. The error itself is returned
/// by [`join`](super::Group::join).
///
/// ```
/// use std::io;
/// use tokio_ctx::group::TaskFailed;
/// use tokio_ctx::{Context, Group};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (mut group, ctx) = Group::<(), io::Error>::new(&Context::background());
/// group.spawn(async { Err(io::Error::other("disk full")) });
/// let line = line!() - 1;
///
/// // context canceled at src/main.rs:6: task spawned at src/main.rs:6 failed: disk full
/// let stopped = ctx.done().await;
/// let failed = stopped.cause_as::<TaskFailed>().unwrap();
/// assert_eq!((failed.message(), failed.is_panic()), ("disk full", false));
/// assert_eq!(failed.spawned_at().line(), line);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TaskFailed {
    message: String,
    spawned_at: &'static Location<'static>,
    panicked: bool,
}

impl TaskFailed {
    pub(super) fn new(message: String, spawned_at: &'static Location<'static>) -> TaskFailed {
        TaskFailed { message, spawned_at, panicked: false }
    }

    pub(super) fn panicked(
        payload: &(dyn Any + Send),
        spawned_at: &'static Location<'static>,
    ) -> TaskFailed {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a payload that is not a string".to_owned());
        TaskFailed { message, spawned_at, panicked: true }
    }

    /// Returns the text of the task's error or panic. Errors are printed with `{:#}`, which with `anyhow`
    /// includes their sources.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the line that spawned the task.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.spawned_at
    }

    /// Returns whether the task panicked, rather than returned an error.
    ///
    /// ```
    /// use tokio_ctx::group::TaskFailed;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<(), Error>::new(&Context::background());
    /// group.spawn(async { panic!("out of paper") });
    /// let stopped = ctx.done().await;
    /// assert!(stopped.cause_as::<TaskFailed>().unwrap().is_panic());
    /// # }
    /// ```
    pub fn is_panic(&self) -> bool {
        self.panicked
    }
}

impl fmt::Display for TaskFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.panicked { "panicked" } else { "failed" };
        write!(f, "task spawned at {} {how}: {}", Place(self.spawned_at), self.message)
    }
}

impl StdError for TaskFailed {}

/// The cause of the error that `join` returns if tasks were aborted: the lines that spawned them, and the
/// original cause.
#[derive(Debug)]
pub(crate) struct Aborted {
    spawned_at: Vec<&'static Location<'static>>,
    cause: Option<Cause>,
}

impl Aborted {
    /// Returns the context's error, with these tasks added to its cause.
    pub(super) fn under(ended: &Error, spawned_at: Vec<&'static Location<'static>>) -> Error {
        if spawned_at.is_empty() {
            return ended.clone();
        }
        let aborted = Aborted { spawned_at, cause: ended.shared_cause().cloned() };
        Error::with_cause(*ended.origin(), Some(Arc::new(aborted)))
    }

    /// Returns the original cause, which is printed but not returned as the source.
    pub(super) fn held(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Prints `client hung up; aborted: 2 tasks spawned at src/main.rs:12, 1 at src/main.rs:20`.
impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cause) = &self.cause {
            write!(f, "{cause}; ")?;
        }
        let mut counted: Vec<(&'static Location<'static>, usize)> = Vec::new();
        for place in &self.spawned_at {
            match counted.iter_mut().find(|(known, _)| known == place) {
                Some((_, count)) => *count += 1,
                None => counted.push((place, 1)),
            }
        }
        for (nth, (place, count)) in counted.into_iter().enumerate() {
            let tasks = if count == 1 { "task" } else { "tasks" };
            match nth {
                0 => write!(f, "aborted: {count} {tasks} spawned at {}", Place(place))?,
                _ => write!(f, ", {count} at {}", Place(place))?,
            }
        }
        Ok(())
    }
}

impl StdError for Aborted {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.held()?.source()
    }
}
