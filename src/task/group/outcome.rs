//! The outcomes of a group's tasks.

use std::any::Any;
use std::panic::Location;

/// The outcome of a task of a [`Group`](super::Group), and the line that spawned it.
///
/// Returned by [`Group::outcomes`](super::Group::outcomes) and [`Group::next`](super::Group::next).
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
    /// How the task ended.
    pub end: End<T, E>,
}

/// How a task ended.
///
/// ```
/// use tokio_ctx::group::End;
///
/// fn describe(end: &End<u32, tokio_ctx::Error>) -> String {
///     match end {
///         End::Done(value) => format!("{value}"),
///         End::Failed(error) => format!("failed: {error}"),
///         End::Panicked(_) => "panicked".to_owned(),
///         End::Aborted => "aborted".to_owned(),
///     }
/// }
/// assert_eq!(describe(&End::Done(3)), "3");
/// ```
#[derive(Debug)]
pub enum End<T, E> {
    /// It returned `Ok` with this value.
    Done(T),
    /// It returned `Err` with this error.
    Failed(E),
    /// It panicked with this payload.
    Panicked(Box<dyn Any + Send>),
    /// It was aborted, because the grace period was over or the runtime was shut down.
    Aborted,
}

impl<T, E> Outcome<T, E> {
    /// Returns the value, if the task returned one.
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
