//! [`Group`]: tasks that belong together. When one fails, the others are canceled.
//!
//! It corresponds to Go's `errgroup`, Kotlin's coroutine scope and trio's nursery, and is built on Tokio's
//! [`JoinSet`].
//!
//! # When to use it
//!
//! | for | use |
//! |---|---|
//! | parts of one result, which is of no use if one of them fails | [`Group::spawn`], [`Group::join`] |
//! | the same, with a limit on the number of tasks | [`Group::limit`] |
//! | parts that succeed or fail independently | [`Group::keep_going`], [`Group::outcomes`] |
//! | results in the order in which they arrive | [`Group::next`] |
//! | an optional part | a task that returns `Ok` with the result of that part |
//! | an endless stream of jobs | [`for_each_task`](crate::StreamExt::for_each_task), which stores no results |
//! | the connections of a service | [`Shutdown`](crate::Shutdown) |
//! | a few futures that do not need tasks | `tokio::try_join!` in [`Context::run`] |
//!
//! # The error type
//!
//! Tasks can fail with any error type `E` that converts from [`Error`]: `anyhow::Error`, an enum with
//! `#[from] tokio_ctx::Error`, `io::Error`, [`BoxError`], or [`Error`] itself. [`join`](Group::join) returns
//! the first error by value, so `group.join().await?` works in a function that returns the same `E`. If the
//! context ends for another reason, its error is converted. The context's error that the other tasks see has a
//! [`TaskFailed`] as its cause, with the text and the line of the task that failed. With
//! [`outcomes`](Group::outcomes) alone, `E` only needs to implement `Display`.
//!
//! # Traps
//!
//! - **Tasks have to observe the context.** The group's context is the [`current`](Context::current) context of
//!   its tasks. A task stops if it uses `ctx.run(…)`, `ctx.check()?` or `ctx.done()`. A task that uses
//!   none of them keeps [`join`](Group::join) waiting, as in Go. [`grace`](Group::grace) aborts such tasks after a time;
//!   `grace(Duration::ZERO)` stops every task at its next `.await`, as trio and Kotlin do.
//! - **A task that does not await cannot be stopped**, neither by aborting it nor by dropping the group. `join`
//!   waits for it. Call [`check`](Context::check) in such a task, or move the work to
//!   [`spawn_blocking`](Context::spawn_blocking).
//! - **Tasks that a task spawns are not part of the group**, neither with `tokio::spawn` nor with
//!   [`Context::spawn`]. They outlive the group.
//! - **An end from outside is not a failure in itself.** If the parent is canceled or a deadline passes, and
//!   every task returns `Ok` nevertheless, [`join`](Group::join) returns the values, as in Go. Query the
//!   context to find out. (If a task was aborted, or not spawned because the context had ended, `join` fails.)
//! - **A group stores every value** until it is joined, so a group that lives as long as its service keeps
//!   growing.
//! - **Dropping the future of [`join`](Group::join)**, for example in a `select!` or a timeout, drops the
//!   group. To limit the time of a group, give it a context with a deadline.
//!
//! [`JoinSet`]: https://docs.rs/tokio/1/tokio/task/struct.JoinSet.html

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, Location, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::{Id, JoinError, JoinSet};

use super::sleep::sleep_until;
use crate::context::refusal::checked;
use crate::context::registered::Registered;
use crate::context::{CancelScope, Canceler, Context, DoneOwned};
#[cfg(doc)]
use crate::error::BoxError;
use crate::error::{Error, Place};
use crate::registry::Kind;
use crate::trace::shielded;

mod failed;
mod outcome;

use failed::Aborted;
pub use failed::TaskFailed;
pub use outcome::{End, Outcome};

/// A group of tasks that belong together. When one fails, the others are canceled. Go's `errgroup.Group`.
///
/// [`new`](Self::new) returns the group and its context. The context is canceled when a task fails or panics,
/// when [`join`](Self::join) has finished, and when the group is dropped. Dropping a group cancels its tasks
/// and also aborts them, so that each stops at its next `.await`. See the [module](crate::group) for when to
/// use a group, and for its traps.
///
/// ```
/// use std::io;
/// use std::time::Duration;
/// use tokio_ctx::{Context, Group};
///
/// # #[derive(Debug)] struct Page(String);
/// async fn search(kind: &'static str, query: &str) -> io::Result<Page> {
///     let ctx = Context::current(); // The group's context.
///     ctx.sleep(Duration::from_millis(20)).await?;
///     Ok(Page(format!("{kind} result for {query:?}")))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> io::Result<()> {
/// let request = Context::background().with_timeout(Duration::from_millis(80));
///
/// let (mut group, _ctx) = Group::new(&request);
/// for kind in ["web", "image", "video"] {
///     group.spawn(search(kind, "golang"));
/// }
/// let pages = group.join().await?; // In the order of the `spawn` calls.
///
/// assert_eq!(pages.len(), 3);
/// assert_eq!(pages[0].0, "web result for \"golang\"");
/// # Ok(())
/// # }
/// ```
#[must_use = "a group that is dropped cancels and aborts its tasks"]
pub struct Group<T, E, L = Unlimited> {
    inner: Inner<T, E>,
    limit: L,
}

/// Type parameter of a [`Group`] without a limit, whose [`spawn`](Group#method.spawn) spawns the task
/// immediately.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited(());

/// Type parameter of a [`Group`] with a limit, whose [`spawn`](Group#method.spawn-1) waits until the limit
/// allows another task.
#[derive(Clone, Copy, Debug)]
pub struct Limited(usize);

/// The tasks of a group, running and finished.
struct Inner<T, E> {
    // Dropped before the tasks, so that they are canceled before they are aborted.
    ctx: CancelScope,
    tasks: JoinSet<Result<T, E>>,
    running: HashMap<Id, Member>,
    spawned: usize,
    // The finished tasks whose outcome was not taken, in the order in which they finished. The mutex is never
    // locked: it makes the group `Sync` for values that are not, as a `JoinSet` is.
    ended: Mutex<VecDeque<Ended<T, E>>>,
    common: Arc<Common>,
    grace: Option<Duration>,
    overdue: bool,
    // A task was not spawned because the context had ended.
    is_incomplete: bool,
    _registered: Registered,
}

/// Resolves when the grace period of a group is over.
type GraceOver = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The position of a task in the order of spawning, and its outcome.
type Ended<T, E> = (usize, Outcome<T, E>);

#[derive(Clone, Copy)]
struct Member {
    nth: usize,
    spawned_at: &'static Location<'static>,
}

/// The state that the tasks of a group share.
struct Common {
    canceler: Canceler,
    // The position of the task that failed first.
    first: OnceLock<usize>,
    keep_going: bool,
}

impl<T, E> Group<T, E> {
    /// Creates a group, and returns it with its context, a child of `ctx`. Go's `errgroup.WithContext`.
    ///
    /// The context is the [`current`](Context::current) context of the group's tasks. When a task fails, the
    /// context is canceled with a [`TaskFailed`] as its cause.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # async fn load(_part: &str) -> anyhow::Result<String> { Ok(String::new()) }
    /// async fn page(request: &Context) -> anyhow::Result<String> {
    ///     let (mut group, _ctx) = Group::new(request);
    ///     group.spawn(load("header"));
    ///     group.spawn(load("body"));
    ///     Ok(group.join().await?.concat())
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() { page(&Context::background()).await.unwrap(); }
    /// ```
    #[track_caller]
    pub fn new(ctx: &Context) -> (Group<T, E>, Context) {
        let scope = ctx.with_cancel();
        let common = Common { canceler: scope.canceler(), first: OnceLock::new(), keep_going: false };
        let ctx = scope.clone();
        let inner = Inner {
            ctx: scope,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            spawned: 0,
            ended: Mutex::default(),
            common: Arc::new(common),
            grace: None,
            overdue: false,
            is_incomplete: false,
            _registered: Registered::new(&ctx, Kind::Group, Location::caller()),
        };
        (Group { inner, limit: Unlimited(()) }, ctx)
    }

    /// Limits the number of tasks that run at the same time to `n`. Go's `SetLimit`.
    ///
    /// [`spawn`](Group#method.spawn-1) is then async and waits until another task may run, and
    /// [`try_spawn`](Group::try_spawn) returns an error instead of waiting. Tasks that are already running
    /// count.
    ///
    /// # Panics
    ///
    /// Panics if `n` is zero.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # async fn thumbnail(_image: u32) -> Result<(), tokio_ctx::Error> { Ok(()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let (group, _ctx) = Group::new(&Context::background());
    /// let mut group = group.limit(4);
    /// for image in 0..20 {
    ///     if !group.spawn(thumbnail(image)).await {
    ///         break; // The context has ended: `join` says why.
    ///     }
    /// }
    /// group.join().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn limit(self, n: usize) -> Group<T, E, Limited> {
        assert!(n > 0, "the limit of a group must be at least 1");
        Group { inner: self.inner, limit: Limited(n) }
    }
}

impl<T, E> Group<T, E>
where
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    /// Spawns a task with the group's context as its [`current`](Context::current) context. Go's `Group.Go`.
    ///
    /// The task starts running immediately, even if the context has already ended; it then has to notice by
    /// itself, as in Go. Errors name the line of this call if the task fails, panics or is aborted.
    ///
    /// # The error type
    ///
    /// In `async move { …?; Ok(()) }`, nothing determines the type that `?` converts into. It is inferred if
    /// `group.join().await?` is in a function that returns this error, or if the result of `join` has a type
    /// annotation. Otherwise the compiler reports `type annotations needed`. Name the error type at the group,
    /// or at the `Ok`:
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::{Context, Group};
    ///
    /// # async fn save() -> io::Result<()> { Ok(()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<_, io::Error>::new(&Context::background());
    /// group.spawn(async move {
    ///     ctx.run(save()).await??; // `tokio_ctx::Error` converts into `io::Error`.
    ///     Ok(())
    /// });
    /// assert!(group.join().await.is_ok());
    ///
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(async move {
    ///     save().await?;
    ///     Ok::<_, io::Error>(())
    /// });
    /// assert!(group.join().await.is_ok());
    /// # }
    /// ```
    ///
    /// ```compile_fail,E0282
    /// # use tokio_ctx::{Context, Group};
    /// # async fn save() -> std::io::Result<()> { Ok(()) }
    /// # async fn all() {
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(async move {
    ///     save().await?;
    ///     Ok(())
    /// });
    /// assert!(group.join().await.is_ok());
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{BoxError, Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::new(&Context::background());
    /// group.spawn(async move { Ok(ctx.sleep(Duration::from_secs(60)).await?) });
    /// group.spawn(async { Err("the disk is full")? });
    ///
    /// // Returns at once, because the sleeping task is canceled.
    /// let error: BoxError = group.join().await.unwrap_err();
    /// assert_eq!(error.to_string(), "the disk is full");
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.inner.start(task, Location::caller());
    }
}

impl<T, E> Group<T, E, Limited>
where
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    /// Waits until the limit allows another task, then spawns it. Returns whether the task was spawned. Go's
    /// `Group.Go` after `SetLimit`.
    ///
    /// If the context ends first, the task is dropped without having run, and this returns false.
    /// [`join`](Self::join) then returns an error, because the values are incomplete.
    ///
    /// Tasks are not queued, so a caller that spawns faster than tasks finish waits here. Dropping the future
    /// before it resolves drops the task, which then has not run.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`], and like [`Context::done`] if the context has
    /// a deadline.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let (group, _ctx) = Group::<(), Error>::new(&ctx);
    /// let mut group = group.limit(1);
    ///
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await;
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await;
    /// // The second task starts at 60 ms. The third one would start at 120 ms, which is too late.
    /// assert!(!group.spawn(async { Ok(()) }).await);
    /// assert!(group.join().await.unwrap_err().is_deadline_exceeded());
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F) -> impl Future<Output = bool> + use<'_, T, E, F>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let spawned_at = Location::caller();
        async move {
            let taken = self.wait_for_slot().await;
            if taken {
                self.inner.start(task, spawned_at);
            }
            taken
        }
    }

    /// Spawns a task, unless the limit has been reached or the context has ended. Go's `TryGo`.
    ///
    /// # Errors
    ///
    /// Returns the task if it was not spawned. `group.context().is_done()` distinguishes the two reasons.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (group, _ctx) = Group::<_, Error>::new(&Context::background());
    /// let mut group = group.limit(1);
    /// assert!(group.try_spawn(async { Ok("first") }).is_ok());
    /// if let Err(task) = group.try_spawn(async { Ok("second") }) {
    ///     assert_eq!(task.await.unwrap(), "second"); // Runs it here instead.
    /// }
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn try_spawn<F>(&mut self, task: F) -> Result<(), F>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.inner.collect();
        if self.inner.ctx.is_done() || self.inner.tasks.len() >= self.limit.0 {
            return Err(task);
        }
        self.inner.start(task, Location::caller());
        Ok(())
    }

    /// Waits until the limit allows another task. Returns false if the context ends first.
    pub(crate) async fn wait_for_slot(&mut self) -> bool {
        let ctx = self.inner.ctx.clone();
        let mut open = checked(&ctx).await.is_ok();
        while open && self.inner.tasks.len() >= self.limit.0 {
            match ctx.run(self.inner.next_to_end(&mut None)).await {
                Ok(ended) => self.inner.ended().extend(ended),
                Err(_ended) => open = false,
            }
        }
        // The end itself may have made room, because it stops tasks.
        open = open && !ctx.is_done();
        if !open {
            self.mark_incomplete();
        }
        open
    }

    /// Spawns a task after `wait_for_slot` has returned true.
    pub(crate) fn spawn_in_slot<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.inner.start(task, spawned_at);
    }

    /// Frees the finished tasks and their values, so that a group can run forever. Registers to be woken when
    /// another task finishes.
    pub(crate) fn poll_forget(&mut self, cx: &mut TaskContext<'_>) {
        let is_kept = |(_, outcome): &Ended<T, E>| !matches!(outcome.end, End::Done(_));
        while let Poll::Ready(Some(joined)) = self.inner.tasks.poll_join_next_with_id(cx) {
            let ended = self.inner.record(joined);
            self.inner.ended().push_back(ended);
        }
        self.inner.ended().retain(is_kept);
    }

    /// Records that a task was not spawned because the context had ended.
    pub(crate) fn mark_incomplete(&mut self) {
        self.inner.is_incomplete = true;
    }
}

impl<T, E, L> Group<T, E, L> {
    /// Does not cancel the other tasks when a task fails or panics. Go's `errgroup.Group` without
    /// `WithContext`.
    ///
    /// [`outcomes`](Self::outcomes) then returns the outcome of each task. [`join`](Self::join) still returns
    /// the first error, but only after all tasks have finished.
    ///
    /// # Panics
    ///
    /// Panics if a task has already been spawned.
    ///
    /// ```
    /// use tokio_ctx::group::End;
    /// use tokio_ctx::{Context, Group};
    ///
    /// # async fn ping(host: &'static str) -> std::io::Result<u32> {
    /// #     if host == "b" { Err(std::io::ErrorKind::ConnectionRefused.into()) } else { Ok(3) }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let hosts = ["a", "b", "c"];
    /// let (group, _ctx) = Group::new(&Context::background());
    /// let mut group = group.keep_going();
    /// for host in hosts {
    ///     group.spawn(ping(host));
    /// }
    /// let outcomes = group.outcomes().await;
    /// let down: Vec<_> = hosts.iter().zip(&outcomes)
    ///     .filter(|(_, outcome)| !matches!(outcome.end, End::Done(_)))
    ///     .map(|(host, _)| host)
    ///     .collect();
    /// assert_eq!(down, [&"b"]);
    /// # }
    /// ```
    #[track_caller]
    pub fn keep_going(mut self) -> Self {
        match Arc::get_mut(&mut self.inner.common).filter(|_| self.inner.spawned == 0) {
            Some(common) => common.keep_going = true,
            None => panic!("`keep_going` must be called before the first task is spawned"),
        }
        self
    }

    /// Sets how long tasks may run after the context has ended. After that, they are aborted.
    ///
    /// Tasks can clean up during this time. An aborted task is dropped where it awaits, and
    /// [`join`](Self::join) and [`outcomes`](Self::outcomes) name the line that spawned it. The time starts
    /// when the context [ended](crate::Origin::ended_at). Tasks are only aborted while the group is being
    /// awaited, in `join`, `outcomes`, `next`, or a `spawn` that waits. With zero, every task stops where it
    /// awaits, as in trio and Kotlin. Without this call, tasks are never aborted, as in Go.
    ///
    /// Waiting then needs a runtime with a time driver.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let (group, _ctx) = Group::<(), Error>::new(&ctx);
    /// let mut group = group.grace(Duration::from_millis(50));
    /// group.spawn(std::future::pending()); // Ignores its context.
    /// let line = line!() - 1;
    ///
    /// // context deadline exceeded: 100ms budget set at src/main.rs:4: aborted: 1 task spawned at
    /// // src/main.rs:7
    /// let ended = group.join().await.unwrap_err();
    /// assert!(ended.is_deadline_exceeded());
    /// assert!(ended.to_string().ends_with(&format!(":{line}")));
    /// # }
    /// ```
    pub fn grace(mut self, after_the_end: Duration) -> Self {
        self.inner.grace = Some(after_the_end);
        // The time starts at the end, whose time is only recorded on request.
        if let Some(token) = self.inner.ctx.token() {
            token.record_end_time();
        }
        self
    }

    /// Returns the group's context.
    ///
    /// ```
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// let (group, ctx) = Group::<(), Error>::new(&Context::background());
    /// drop(group);
    /// assert!(ctx.is_done());
    /// ```
    pub fn context(&self) -> &Context {
        &self.inner.ctx
    }

    /// Returns a handle that can cancel the group's context, for example when a task finds that the others are
    /// not needed.
    ///
    /// An `Err` that a task returns after that still counts as a failure.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<_, tokio_ctx::Error>::new(&Context::background());
    /// let enough = group.canceler();
    /// group.spawn(async move { Ok(enough.cancel_with("found it")) });
    /// group.spawn(async move { Ok({ ctx.done().await; }) });
    /// assert_eq!(group.join().await.unwrap().len(), 2);
    /// # }
    /// ```
    pub fn canceler(&self) -> Canceler {
        self.inner.common.canceler.clone()
    }
}

impl<T, E, L> Group<T, E, L>
where
    T: Send + 'static,
    E: Send + 'static,
{
    /// Waits until all tasks have finished, and returns their values in the order in which they were spawned.
    /// Go's `Group.Wait`.
    ///
    /// When this returns, all tasks have finished, including their cleanup, and everything they owned has been
    /// dropped. The context then ends. Dropping the returned future drops the group.
    ///
    /// # Errors
    ///
    /// Returns the error of the first task that failed. Errors that other tasks return afterward are dropped.
    /// If no task failed, returns the context's error, converted, if tasks were aborted (the error then names
    /// their lines), or were not spawned because the context had ended.
    ///
    /// # Panics
    ///
    /// Resumes the panic of a task after all tasks have finished; if several panicked, that of the task that
    /// was spawned first. Panics without a Tokio time driver if there is a [`grace`](Self::grace), and the
    /// context has ended or has a deadline.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// #[derive(Debug)]
    /// enum PageError {
    ///     NotFound(&'static str),
    ///     Ended(tokio_ctx::Error),
    /// }
    /// # impl std::fmt::Display for PageError {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
    /// # }
    ///
    /// impl From<tokio_ctx::Error> for PageError {
    ///     fn from(error: tokio_ctx::Error) -> Self {
    ///         PageError::Ended(error)
    ///     }
    /// }
    ///
    /// # async fn load(part: &'static str) -> Result<usize, PageError> {
    /// #     if part == "body" { Err(PageError::NotFound(part)) } else { Ok(part.len()) }
    /// # }
    /// async fn page(request: &Context) -> Result<usize, PageError> {
    ///     let (mut group, _ctx) = Group::new(request);
    ///     group.spawn(load("header"));
    ///     group.spawn(load("body"));
    ///     Ok(group.join().await?.into_iter().sum())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// match page(&Context::background()).await {
    ///     Err(PageError::NotFound(part)) => println!("404: {part}"),
    ///     Err(PageError::Ended(why)) => println!("503: {why}"),
    ///     Ok(size) => println!("{size} bytes"),
    /// }
    /// # assert!(matches!(page(&Context::background()).await, Err(PageError::NotFound("body"))));
    /// # }
    /// ```
    pub async fn join(mut self) -> Result<Vec<T>, E>
    where
        E: From<Error>,
    {
        let outcomes = self.inner.all().await;
        self.inner.collect_results(outcomes)
    }

    /// Waits until all tasks have finished, and returns the outcome of each in the order in which they were
    /// spawned.
    ///
    /// Panics are returned as outcomes and not resumed. Without [`keep_going`](Self::keep_going), the first
    /// error or panic still cancels the context. Outcomes that [`next`](Self::next) has returned are not
    /// included. Dropping the returned future drops the group.
    ///
    /// # Panics
    ///
    /// Panics without a time driver, like [`join`](Self::join).
    ///
    /// ```
    /// use tokio_ctx::group::End;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (group, _ctx) = Group::<_, Error>::new(&Context::background());
    /// let mut group = group.keep_going();
    /// group.spawn(async { Ok(1) });
    /// group.spawn(async { panic!("no") });
    /// let outcomes = group.outcomes().await;
    /// assert!(matches!(outcomes[0].end, End::Done(1)));
    /// assert!(matches!(outcomes[1].end, End::Panicked(_)));
    /// # }
    /// ```
    pub async fn outcomes(mut self) -> Vec<Outcome<T, E>> {
        let mut outcomes = self.inner.all().await;
        outcomes.sort_by_key(|(nth, _)| *nth);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Waits for the next task to finish, and returns its outcome. Returns `None` if no task is left. Tokio's
    /// [`JoinSet::join_next`].
    ///
    /// [`join`](Self::join) then returns the remaining values, or the first of the remaining errors. If an
    /// error that was returned here has canceled the context, `join` returns the context's error. A panic that
    /// was returned here is not resumed.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. If it is dropped, no outcome is lost.
    ///
    /// # Panics
    ///
    /// Panics without a time driver, like [`join`](Self::join).
    ///
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::group::End;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<_, Error>::new(&Context::background());
    /// for delay in [30, 10, 20] {
    ///     let ctx = ctx.clone();
    ///     group.spawn(async move { ctx.sleep(Duration::from_millis(delay)).await.map(|()| delay) });
    /// }
    /// let first = group.next().await.unwrap();
    /// assert!(matches!(first.end, End::Done(10)));
    /// drop(group); // The others are not needed.
    /// # }
    /// ```
    ///
    /// [`JoinSet::join_next`]: https://docs.rs/tokio/1/tokio/task/struct.JoinSet.html#method.join_next
    pub async fn next(&mut self) -> Option<Outcome<T, E>> {
        self.inner.take().await.map(|(_, outcome)| outcome)
    }
}

impl<T: Send + 'static, E: Send + 'static> Inner<T, E> {
    fn start<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display,
    {
        // Frees the futures of finished tasks.
        self.collect();
        let task = Registered::new(&self.ctx, Kind::Task, spawned_at).held_by(task);
        let task = self.ctx.scope(task);
        let member = Member { nth: self.spawned, spawned_at };
        let handle = self.tasks.spawn(MemberTask { task, common: self.common.clone(), member });
        self.running.insert(handle.id(), member);
        self.spawned += 1;
        if self.overdue {
            handle.abort();
        }
    }

    /// Waits for all tasks, and returns the outcomes that were not taken, in the order in which they finished.
    async fn all(&mut self) -> Vec<Ended<T, E>> {
        let mut grace_over = None;
        while let Some(ended) = self.next_to_end(&mut grace_over).await {
            self.ended().push_back(ended);
        }
        Vec::from(std::mem::take(self.ended()))
    }

    fn ended(&mut self) -> &mut VecDeque<Ended<T, E>> {
        self.ended.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&mut self) -> Option<Ended<T, E>> {
        match self.ended().pop_front() {
            Some(ended) => Some(ended),
            None => self.next_to_end(&mut None).await,
        }
    }

    /// Collects all tasks that have finished by now.
    fn collect(&mut self) {
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            let ended = self.record(joined);
            self.ended().push_back(ended);
        }
    }

    /// Waits for the next task to finish, and aborts tasks when the grace period is over. The caller owns the
    /// wait for the grace period, so that it does not outlive the call.
    fn next_to_end<'a>(
        &'a mut self,
        grace_over: &'a mut Option<GraceOver>,
    ) -> impl Future<Output = Option<Ended<T, E>>> + use<'a, T, E> {
        poll_fn(|cx| match self.tasks.poll_join_next_with_id(cx) {
            Poll::Ready(joined) => Poll::Ready(joined.map(|joined| self.record(joined))),
            Poll::Pending => {
                self.poll_grace(grace_over, cx);
                Poll::Pending
            }
        })
    }

    /// Aborts the running tasks when the grace period is over. `JoinSet` wakes the caller when they have
    /// finished.
    fn poll_grace(&mut self, grace_over: &mut Option<GraceOver>, cx: &mut TaskContext<'_>) {
        let Some(grace) = self.grace.filter(|_| !self.overdue) else { return };
        let over =
            grace_over.get_or_insert_with(|| Box::pin(until_grace_over(self.ctx.done_owned(), grace)));
        if over.as_mut().poll(cx).is_ready() {
            *grace_over = None;
            self.overdue = true;
            self.tasks.abort_all();
        }
    }

    fn record(&mut self, joined: Result<(Id, Result<T, E>), JoinError>) -> Ended<T, E> {
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Member { nth, spawned_at } =
            self.running.remove(&id).expect("every task of the set is recorded when it is spawned");
        let end = match joined {
            Ok((_, Ok(value))) => End::Done(value),
            Ok((_, Err(error))) => End::Failed(error),
            Err(lost) => match lost.try_into_panic() {
                Ok(panic) => End::Panicked(panic),
                Err(_aborted) => {
                    // Unless the grace period is over, the runtime has shut down.
                    self.common.stop(spawned_at, || TaskFailed::new(LOST.to_owned(), spawned_at));
                    End::Aborted
                }
            },
        };
        (nth, Outcome { spawned_at, end })
    }

    fn collect_results(&self, outcomes: Vec<Ended<T, E>>) -> Result<Vec<T>, E>
    where
        E: From<Error>,
    {
        let (mut values, mut panics, mut aborted) = (Vec::new(), Vec::new(), Vec::new());
        let mut failure = None;
        for (nth, Outcome { spawned_at, end }) in outcomes {
            match end {
                End::Done(value) => values.push((nth, value)),
                // The first one to fail is not necessarily the first one to be joined.
                End::Failed(error) if failure.is_none() || self.common.first.get() == Some(&nth) => {
                    failure = Some(error);
                }
                End::Failed(_) => {}
                End::Panicked(panic) => panics.push((nth, panic)),
                End::Aborted => aborted.push((nth, spawned_at)),
            }
        }
        let mut panics = in_order(panics).into_iter();
        if let Some(panic) = panics.next() {
            // The other payloads may panic when they are dropped.
            panics.for_each(|panic| _ = shielded(|| drop(panic)));
            resume_unwind(panic);
        }
        match failure {
            Some(error) => Err(error),
            None if aborted.is_empty() && !self.is_incomplete && !self.has_failed() => {
                Ok(in_order(values))
            }
            None => {
                let aborted = in_order(aborted);
                Err(E::from(Aborted::under(&self.end(&aborted), aborted)))
            }
        }
    }

    /// Returns whether the error of a task has ended the context, including errors that `next` has returned.
    fn has_failed(&self) -> bool {
        self.common.first.get().is_some() && !self.common.keep_going
    }

    /// Returns the context's error. A group that keeps going, and has lost tasks, cancels its context here.
    fn end(&self, aborted: &[&'static Location<'static>]) -> Error {
        if let Some(lost) = aborted.first() {
            self.ctx.cancel_at(lost, LOST.into());
        }
        self.ctx.err().expect("a task was lost, or refused because the context had ended")
    }
}

/// The message for a task that was lost although it was not canceled and did not fail.
const LOST: &str = "aborted, as its runtime shut down";

fn in_order<V>(mut numbered: Vec<(usize, V)>) -> Vec<V> {
    numbered.sort_by_key(|(nth, _)| *nth);
    numbered.into_iter().map(|(_, value)| value).collect()
}

async fn until_grace_over(done: DoneOwned, grace: Duration) {
    let ended_at = done.await.origin().ended_at();
    sleep_until(ended_at.checked_add(grace)).await;
}

impl Common {
    /// Records the error of a task. The first one ends the context.
    fn fail(&self, error: &impl fmt::Display, member: Member) {
        if self.first.set(member.nth).is_ok() {
            self.stop(member.spawned_at, || {
                // `format!` would panic if the error's `Display` fails.
                let mut text = String::new();
                let _failed = write!(text, "{error:#}");
                TaskFailed::new(text, member.spawned_at)
            });
        }
    }

    fn stop(&self, spawned_at: &'static Location<'static>, why: impl FnOnce() -> TaskFailed) {
        if !self.keep_going {
            self.canceler.cancel_at(spawned_at, why().into());
        }
    }
}

pin_project! {
    /// A task, which ends the context when it fails or panics, even if nothing awaits the group.
    struct MemberTask<F> {
        #[pin]
        task: F,
        common: Arc<Common>,
        member: Member,
    }
}

impl<F, T, E> Future for MemberTask<F>
where
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (common, member) = (this.common, *this.member);
        let polled = || {
            this.task.poll(cx).map_err(|error| {
                common.fail(&error, member);
                error
            })
        };
        // The task, and the `Display` of its error, are foreign code.
        catch_unwind(AssertUnwindSafe(polled)).unwrap_or_else(|panic| {
            common.stop(member.spawned_at, || TaskFailed::panicked(&*panic, member.spawned_at));
            resume_unwind(panic)
        })
    }
}

/// Returns the error that an error of this module contains but does not return as its source.
pub(crate) fn held_by<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    error.downcast_ref::<Aborted>()?.held()
}

/// Like `JoinHandle`: tasks themselves are responsible for the state that they share.
impl<T, E, L> UnwindSafe for Group<T, E, L> {}
impl<T, E, L> RefUnwindSafe for Group<T, E, L> {}

impl<T, E, L: fmt::Debug> fmt::Debug for Group<T, E, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("context", &self.inner.ctx)
            .field("running", &Running(&self.inner.running))
            .field("limit", &self.limit)
            .field("grace", &self.inner.grace)
            .finish()
    }
}

/// Prints the lines that spawned the running tasks, in the order of spawning.
struct Running<'a>(&'a HashMap<Id, Member>);

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut members: Vec<Member> = self.0.values().copied().collect();
        members.sort_by_key(|member| member.nth);
        f.debug_list()
            .entries(
                members.iter().map(|member| format_args!("{}", Place(member.spawned_at)).to_string()),
            )
            .finish()
    }
}
