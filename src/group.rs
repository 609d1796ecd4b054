//! [`Group`]: tasks that belong together. The first error ends the others, and nobody is left behind.
//!
//! Go's `errgroup`, Kotlin's coroutine scope, trio's nursery, on Tokio's [`JoinSet`].
//!
//! # When to use it
//!
//! | for | use |
//! |---|---|
//! | parts of one answer, which is worth nothing if one of them fails | [`Group::spawn`], [`Group::wait`] |
//! | the same, but only so many at once | [`Group::limit`] |
//! | parts that succeed or fail each on its own | [`Group::keep_going`], [`Group::outcomes`] |
//! | whichever ends first, one by one | [`Group::next`] |
//! | an optional part beside critical ones | a task that returns `Ok` of its own result |
//! | a stream of jobs without end | [`for_each_task`](crate::StreamExt::for_each_task), which keeps nothing |
//! | a service's connections | [`Shutdown`](crate::Shutdown) |
//! | two or three futures that need no tasks | `tokio::try_join!` in [`Context::run`] |
//!
//! # Traps
//!
//! - **The end is told, not enforced.** A task learns of it from its context, which is
//!   [`current`](Context::current) in there, and has to look: `ctx.run(…)`, `ctx.check()?`,
//!   `ctx.done()`. One that never looks keeps [`wait`](Group::wait) waiting, as in Go. With
//!   [`grace`](Group::grace) it is aborted; `grace(Duration::ZERO)` stops every task at its next
//!   `await`, as trio and Kotlin do.
//! - **Nothing stops a task that does not await.** Neither an abort nor a drop of the group reaches one
//!   that computes, or blocks, before its next `await`; `wait` waits for it all the same. Let it
//!   [`check`](Context::check), or put it on [`spawn_blocking`](tokio::task::spawn_blocking).
//! - **What a task spawns by itself is not of the group.** Neither `tokio::spawn` nor
//!   [`Context::spawn`] makes a member; both outlive the group.
//! - **An end from outside is no failure.** If the parent is cancelled or a deadline passes, and every
//!   task returns `Ok` all the same, [`wait`](Group::wait) gives the values: finished work is not
//!   thrown away. So does Go. Whoever must know asks the context. (A task that was aborted, or whose
//!   turn never came, has no value to give: then `wait` fails.)
//! - **A group keeps every value** until it is waited for: one that lives as long as its service does
//!   grows as long.
//! - Drop the future of [`wait`](Group::wait), say in a `select!` or a timeout, and the group is
//!   dropped. To bound a group in time, give it a context with a deadline.
//!
//! [`JoinSet`]: tokio::task::JoinSet

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep_until;

use crate::error::{BoxError, Place};
use crate::{CancelScope, Canceller, Context, DoneOwned, Error};

pub mod fault;
mod outcome;

use fault::AsError;
pub use fault::{Failure, Fault, TaskPanicked};
pub use outcome::{End, GroupError, Outcome, TrySpawnError};

/// Tasks that belong together: the first error ends the others, and nobody is left behind.
///
/// [`new`](Self::new) gives the group and its context, which ends with the first task that fails or
/// panics, when [`wait`](Self::wait) is through, and when the group is dropped. A group that is dropped
/// cancels its tasks and aborts them: each ends at its next `await`. Its counterparts are Go's
/// `errgroup.Group`, whose `WithContext` is `new`, and Tokio's [`JoinSet`], which it is built on. See
/// the [module](crate::group) for when to use it, and for its traps.
///
/// ```
/// use std::io;
/// use std::time::Duration;
/// use tokio_ctx::{Context, Group};
///
/// # #[derive(Debug)] struct Page(String);
/// async fn search(kind: &'static str, query: &str) -> io::Result<Page> {
///     let ctx = Context::current(); // the group's
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
/// let pages = group.wait().await?; // in the order of the spawns
///
/// assert_eq!(pages.len(), 3);
/// assert_eq!(pages[0].0, "web result for \"golang\"");
/// # Ok(())
/// # }
/// ```
#[must_use = "a group that is dropped cancels and aborts its tasks"]
pub struct Group<T, E, L = Unlimited> {
    crew: Crew<T, E>,
    limit: L,
}

/// The limit of a [`Group`] that has none: [`spawn`](Group#method.spawn) starts the task at once.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited(());

/// The limit of a [`Group`] that has one: [`spawn`](Group#method.spawn-1) waits its turn.
#[derive(Clone, Copy, Debug)]
pub struct Limited(usize);

/// The tasks of a group, running and ended.
struct Crew<T, E> {
    // Before the tasks: a group that is dropped tells them before it aborts them.
    ctx: CancelScope,
    tasks: JoinSet<Result<T, Failure<E>>>,
    running: HashMap<Id, Member>,
    spawned: usize,
    // Those nobody has taken, in the order in which they ended. Never locked: it makes the group `Sync`
    // for values that are not, as a `JoinSet` is.
    ended: Mutex<VecDeque<Ended<T, E>>>,
    common: Arc<Common<E>>,
    grace: Option<Duration>,
    grace_over: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    overdue: bool,
    // The end came before somebody's turn.
    gave_up: bool,
}

/// What came of a task, and the how-manieth it was to be spawned.
type Ended<T, E> = (usize, Outcome<T, E>);

#[derive(Clone, Copy)]
struct Member {
    nth: usize,
    spawned_at: &'static Location<'static>,
}

/// What every task of a group has a hand on.
struct Common<E> {
    canceller: Canceller,
    first: OnceLock<Failure<E>>,
    as_error: AsError<E>,
    keep_going: bool,
}

impl<T, E> Group<T, E> {
    /// A group, and its context: a child of `ctx`, which is [`current`](Context::current) in its tasks.
    ///
    /// The context ends with the first task that fails, with that error as its cause:
    /// [`cause_as::<E>()`](Error::cause_as) finds it. `Kind` is inferred, see [`Fault`]. Go's
    /// `errgroup.WithContext`.
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<(), io::Error>::new(&Context::background());
    /// group.spawn(async { Err(io::ErrorKind::BrokenPipe.into()) });
    ///
    /// let stopped = ctx.done().await;
    /// assert_eq!(stopped.cause_as::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    /// # }
    /// ```
    #[track_caller]
    pub fn new<Kind>(ctx: &Context) -> (Group<T, E>, Context)
    where
        E: Fault<Kind>,
    {
        let scope = ctx.with_cancel();
        let common = Common {
            canceller: scope.canceller(),
            first: OnceLock::new(),
            as_error: E::as_error,
            keep_going: false,
        };
        let ctx = scope.clone();
        let crew = Crew {
            ctx: scope,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            spawned: 0,
            ended: Mutex::default(),
            common: Arc::new(common),
            grace: None,
            grace_over: None,
            overdue: false,
            gave_up: false,
        };
        (Group { crew, limit: Unlimited(()) }, ctx)
    }

    /// At most `n` tasks at once from now on: [`spawn`](Group#method.spawn-1) then waits its turn, and
    /// [`try_spawn`](Group::try_spawn) says no instead. Go's `SetLimit`.
    ///
    /// Tasks that run already count.
    ///
    /// # Panics
    ///
    /// If `n` is zero: no task could ever run.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # async fn thumbnail(_image: u32) -> Result<(), tokio_ctx::Error> { Ok(()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::BoxError> {
    /// let (group, _ctx) = Group::new(&Context::background());
    /// let mut group = group.limit(4);
    /// for image in 0..20 {
    ///     if group.spawn(thumbnail(image)).await.is_err() {
    ///         break; // it has ended: `wait` says why
    ///     }
    /// }
    /// group.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn limit(self, n: usize) -> Group<T, E, Limited> {
        assert!(
            n > 0,
            "a group's limit is how many tasks may run at once, which cannot be 0; use at least 1"
        );
        Group { crew: self.crew, limit: Limited(n) }
    }
}

impl<T, E> Group<T, E>
where
    T: Send + 'static,
    E: Send + Sync + 'static,
{
    /// Spawns a task, in which the group's context is [`current`](Context::current).
    ///
    /// It runs at once, whether anybody waits or not, also if the context has ended: then it finds
    /// that out by itself, as in Go. The line of this call is remembered, and told of a task that
    /// fails, panics or is aborted. Go's `Group.Go`.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
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
    /// let failed = group.wait().await.unwrap_err(); // at once: the sleeper was told
    /// let error: &BoxError = failed.error().unwrap();
    /// assert_eq!(error.to_string(), "the disk is full");
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.crew.start(task, Location::caller());
    }
}

impl<T, E> Group<T, E, Limited>
where
    T: Send + 'static,
    E: Send + Sync + 'static,
{
    /// Waits until fewer tasks run than the limit says, then spawns this one, as the `spawn` of a group
    /// without a limit.
    ///
    /// Nothing is queued: who spawns too fast is held up here. Dropped before it resolves, it drops the
    /// task, which then has never run. Go's `Group.Go` after `SetLimit`, which cannot give up.
    ///
    /// # Errors
    ///
    /// Why the context ended, if that is before the task's turn; the task is dropped then. So that
    /// nobody takes the values of some tasks for those of all, [`wait`](Self::wait) fails as well.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`]; if the context has a deadline, as
    /// [`Context::done`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Error> {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let (group, _ctx) = Group::<(), Error>::new(&ctx);
    /// let mut group = group.limit(1);
    ///
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await?;
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await?;
    /// // At 60 ms it was the second's turn; the third's does not come in time.
    /// assert!(group.spawn(async { Ok(()) }).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F) -> impl Future<Output = Result<(), Error>> + use<'_, T, E, F>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let spawned_at = Location::caller();
        async move {
            self.turn().await?;
            self.crew.start(task, spawned_at);
            Ok(())
        }
    }

    /// Spawns a task unless as many run as may, or the context has ended. Go's `TryGo`.
    ///
    /// # Errors
    ///
    /// [`Full`](TrySpawnError::Full) or [`Ended`](TrySpawnError::Ended), with the task.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::group::TrySpawnError;
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (group, ctx) = Group::new(&Context::background());
    /// let mut group = group.limit(1);
    /// assert!(group.try_spawn(async { Ok::<_, Error>("first") }).is_ok());
    /// match group.try_spawn(async { Ok("second") }) {
    ///     Err(TrySpawnError::Full(_)) => println!("busy, come back later"),
    ///     other => unreachable!("{other:?}"),
    /// }
    /// # }
    /// ```
    #[track_caller]
    pub fn try_spawn<F>(&mut self, task: F) -> Result<(), TrySpawnError<F>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        if let Err(why) = self.crew.ctx.check() {
            return Err(TrySpawnError::Ended(task, why));
        }
        self.crew.collect();
        if self.crew.tasks.len() >= self.limit.0 {
            return Err(TrySpawnError::Full(task));
        }
        self.crew.start(task, Location::caller());
        Ok(())
    }

    /// Resolves when another task may run; fails when none may any more.
    pub(crate) async fn turn(&mut self) -> Result<(), Error> {
        let ctx = self.crew.ctx.clone();
        let mut stopped = Ok(());
        while stopped.is_ok() && self.crew.tasks.len() >= self.limit.0 {
            let ended = ctx.run(self.crew.next_to_end()).await;
            stopped = ended.map(|ended| self.crew.ended().extend(ended));
        }
        // The end may have made room: what was stopped by it is a result that is ready.
        stopped.and_then(|()| ctx.check()).inspect_err(|_| self.give_up())
    }

    /// Spawns a task whose turn it is.
    pub(crate) fn spawn_in_turn<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.crew.start(task, spawned_at);
    }

    /// Forgets the values of tasks that have ended, so that a group can live for ever.
    pub(crate) fn forget_values(&mut self) {
        self.crew.ended().retain(|(_, outcome)| !matches!(outcome.end, End::Done(_)));
    }

    /// Takes note that the context's end kept a task from being spawned.
    pub(crate) fn give_up(&mut self) {
        self.crew.gave_up = true;
    }
}

impl<T, E, L> Group<T, E, L> {
    /// Keeps going when a task fails or panics: the others are not told, and the context goes on.
    ///
    /// [`outcomes`](Self::outcomes) then gives all that came of them; [`wait`](Self::wait) still gives
    /// the first error, but only when the last task has run its course. Go's `errgroup.Group` without
    /// `WithContext`.
    ///
    /// # Panics
    ///
    /// If a task was spawned already: nobody could say whether its error is to end the others.
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
        match Arc::get_mut(&mut self.crew.common).filter(|_| self.crew.spawned == 0) {
            Some(common) => common.keep_going = true,
            None => panic!("a group can be told to keep going only before its first task is spawned"),
        }
        self
    }

    /// Aborts the tasks that still run this long after the context's end.
    ///
    /// Until then they may clean up. An aborted task is dropped at its `await`, and
    /// [`wait`](Self::wait) and [`outcomes`](Self::outcomes) name the line that spawned it. The time
    /// runs from the [end](crate::Origin::ended_at) itself, and is kept while somebody waits for the
    /// group: in `wait`, `outcomes`, `next`, or for a turn to spawn. Zero stops every task where it
    /// awaits, as trio and Kotlin do; without this call, tasks have all the time they take, as in Go.
    ///
    /// Waiting then needs a time driver.
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
    /// group.spawn(std::future::pending()); // does not look at its context
    /// let line = line!() - 1;
    ///
    /// // context deadline exceeded: 100ms budget set at src/main.rs:6; aborted: 1 task spawned at src/main.rs:9
    /// let failed = group.wait().await.unwrap_err();
    /// assert_eq!(failed.aborted()[0].line(), line);
    /// assert!(failed.context_error().unwrap().is_deadline_exceeded());
    /// # }
    /// ```
    pub fn grace(mut self, after_the_end: Duration) -> Self {
        self.crew.grace = Some(after_the_end);
        self.crew.grace_over = None;
        self
    }

    /// The group's context.
    ///
    /// ```
    /// use tokio_ctx::{Context, Error, Group};
    ///
    /// let (group, ctx) = Group::<(), Error>::new(&Context::background());
    /// drop(group);
    /// assert!(ctx.is_done());
    /// ```
    pub fn context(&self) -> &Context {
        &self.crew.ctx
    }

    /// Ends the group's context when told to: for whoever finds that the others are not needed.
    ///
    /// What the others return then counts as ever: an `Err` is a failure.
    ///
    /// ```
    /// use tokio_ctx::{Context, Group};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (mut group, ctx) = Group::<_, tokio_ctx::Error>::new(&Context::background());
    /// let enough = group.canceller();
    /// group.spawn(async move { Ok(enough.cancel_with("found it")) });
    /// group.spawn(async move { Ok({ ctx.done().await; }) });
    /// assert_eq!(group.wait().await.unwrap().len(), 2);
    /// # }
    /// ```
    pub fn canceller(&self) -> Canceller {
        self.crew.common.canceller.clone()
    }
}

impl<T, E, L> Group<T, E, L>
where
    T: Send + 'static,
    E: Send + Sync + 'static,
{
    /// Waits until every task has really ended, and gives their values, in the order of the spawns.
    ///
    /// Whatever a task does after the end, its clean-up included, is over when this resolves, and what
    /// it held is dropped. Then the context ends. Dropped, this drops the group. Go's `Group.Wait`.
    ///
    /// # Errors
    ///
    /// The first task's error, if one failed; what others return once that has ended the context is
    /// not told. Without one, the context's end, if tasks had to be aborted after it, or could not be
    /// spawned because of it. See [`GroupError`].
    ///
    /// # Panics
    ///
    /// If a task panicked: goes on with that panic, once all have ended; of several, with that of the
    /// task that was spawned first. Outside a Tokio
    /// runtime, as [`tokio::time::sleep`], if there is a [`grace`](Self::grace) and the context has
    /// ended or has a deadline.
    ///
    /// ```
    /// use tokio_ctx::{BoxError, Context, Group};
    ///
    /// # async fn load(part: &'static str) -> Result<usize, BoxError> { Ok(part.len()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let (mut group, _ctx) = Group::new(&Context::background());
    /// group.spawn(load("header"));
    /// group.spawn(load("body"));
    /// let [header, body] = group.wait().await?[..] else { unreachable!("two values of two tasks") };
    /// assert_eq!((header, body), (6, 4));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(mut self) -> Result<Vec<T>, GroupError<E>> {
        let outcomes = self.crew.all().await;
        self.crew.sum_up(outcomes)
    }

    /// Waits until every task has really ended, and gives what came of each, in the order of the spawns.
    ///
    /// Panics are among the outcomes; none is resumed. Without [`keep_going`](Self::keep_going) the
    /// first error or panic still ends the context, and what the others make of that is told here. What
    /// [`next`](Self::next) gave is not given again. Dropped, this drops the group.
    ///
    /// # Panics
    ///
    /// As [`wait`](Self::wait), without a time driver.
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
        self.crew.all().await.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Waits for the next task to end, and takes what came of it out of the group; `None` if no task is
    /// left.
    ///
    /// [`wait`](Self::wait) then gives the other values, and still the first error; a panic that was
    /// taken is not resumed. Cancel-safe: dropped, it takes nothing. Tokio's
    /// [`JoinSet::join_next`](tokio::task::JoinSet::join_next).
    ///
    /// # Panics
    ///
    /// As [`wait`](Self::wait), without a time driver.
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
    /// drop(group); // the others are not needed
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Outcome<T, E>> {
        self.crew.take().await.map(|(_, outcome)| outcome)
    }
}

impl<T: Send + 'static, E: Send + Sync + 'static> Crew<T, E> {
    fn start<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        #[cfg(feature = "test-util")]
        let task = crate::testing::Entry::new(&self.ctx, spawned_at).held_by(task);
        let task = self.ctx.scope(task);
        let handle = self.tasks.spawn(Working { task, common: self.common.clone(), spawned_at });
        self.running.insert(handle.id(), Member { nth: self.spawned, spawned_at });
        self.spawned += 1;
        if self.overdue {
            handle.abort();
        }
    }

    /// Every outcome that nobody has taken, in the order of the spawns, once all tasks have ended.
    async fn all(&mut self) -> Vec<Ended<T, E>> {
        while let Some(ended) = self.next_to_end().await {
            self.ended().push_back(ended);
        }
        let mut outcomes = Vec::from(std::mem::take(self.ended()));
        outcomes.sort_by_key(|(nth, _)| *nth);
        outcomes
    }

    fn ended(&mut self) -> &mut VecDeque<Ended<T, E>> {
        self.ended.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&mut self) -> Option<Ended<T, E>> {
        match self.ended().pop_front() {
            Some(ended) => Some(ended),
            None => self.next_to_end().await,
        }
    }

    /// Takes note of all that have ended by now.
    fn collect(&mut self) {
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            let ended = self.note(joined);
            self.ended().push_back(ended);
        }
    }

    fn next_to_end(&mut self) -> impl Future<Output = Option<Ended<T, E>>> {
        poll_fn(|cx| match self.tasks.poll_join_next_with_id(cx) {
            Poll::Ready(joined) => Poll::Ready(joined.map(|joined| self.note(joined))),
            Poll::Pending => {
                self.poll_grace(cx);
                Poll::Pending
            }
        })
    }

    /// Aborts those that run once the grace is over; whoever joins them is woken when they are gone.
    fn poll_grace(&mut self, cx: &mut TaskContext<'_>) {
        let Some(grace) = self.grace.filter(|_| !self.overdue) else { return };
        let over =
            self.grace_over.get_or_insert_with(|| Box::pin(grace_over(self.ctx.done_owned(), grace)));
        if over.as_mut().poll(cx).is_ready() {
            self.grace_over = None;
            self.overdue = true;
            self.tasks.abort_all();
        }
    }

    fn note(&mut self, joined: Result<(Id, Result<T, Failure<E>>), JoinError>) -> Ended<T, E> {
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Member { nth, spawned_at } =
            self.running.remove(&id).expect("every task of the set is noted when it is spawned");
        let end = match joined {
            Ok((_, Ok(value))) => End::Done(value),
            Ok((_, Err(failure))) => End::Failed(failure),
            Err(lost) => match lost.try_into_panic() {
                Ok(panic) => End::Panicked(panic),
                Err(_aborted) => {
                    // Not by the grace, or the context would have ended: by its runtime's end.
                    self.common.stop("a task was aborted: its runtime shut down", spawned_at);
                    End::Aborted
                }
            },
        };
        (nth, Outcome { spawned_at, end })
    }

    fn sum_up(&self, outcomes: Vec<Ended<T, E>>) -> Result<Vec<T>, GroupError<E>> {
        let (mut values, mut aborted) = (Vec::with_capacity(outcomes.len()), Vec::new());
        for (_, Outcome { spawned_at, end }) in outcomes {
            match end {
                End::Done(value) => values.push(value),
                End::Failed(_) => {}
                End::Panicked(panic) => resume_unwind(panic),
                End::Aborted => aborted.push(spawned_at),
            }
        }
        let failure = self.common.first.get().cloned();
        if failure.is_none() && aborted.is_empty() && !self.gave_up {
            return Ok(values);
        }
        Err(GroupError { failure, stopped: self.ctx.err(), aborted })
    }
}

async fn grace_over(done: DoneOwned, grace: Duration) {
    let ended_at = done.await.origin().ended_at();
    // Tokio's timer rounds up: what lies at the very end of time would overflow there.
    match ended_at.checked_add(grace).filter(|at| at.checked_add(Duration::from_secs(1)).is_some()) {
        Some(over) => sleep_until(over).await,
        None => pending().await,
    }
}

impl<E: Send + Sync + 'static> Common<E> {
    /// Takes note of a task's error, which ends the context if it is the first.
    fn fail(&self, error: E, spawned_at: &'static Location<'static>) -> Failure<E> {
        let failure = Failure::new(error, self.as_error, spawned_at);
        if self.first.set(failure.clone()).is_ok() {
            self.stop(failure.clone(), spawned_at);
        }
        failure
    }

    fn stop(&self, why: impl Into<BoxError>, spawned_at: &'static Location<'static>) {
        if !self.keep_going {
            self.canceller.cancel_at(spawned_at, why.into());
        }
    }
}

pin_project! {
    /// A task at its work, which tells the others when it fails or panics: whether anybody waits or not.
    struct Working<F, E> {
        #[pin]
        task: F,
        common: Arc<Common<E>>,
        spawned_at: &'static Location<'static>,
    }
}

impl<F, T, E> Future for Working<F, E>
where
    F: Future<Output = Result<T, E>>,
    E: Send + Sync + 'static,
{
    type Output = Result<T, Failure<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match catch_unwind(AssertUnwindSafe(|| this.task.poll(cx))) {
            Ok(polled) => {
                polled.map(|output| output.map_err(|error| this.common.fail(error, this.spawned_at)))
            }
            Err(panic) => {
                this.common.stop(TaskPanicked::new(&*panic, this.spawned_at), this.spawned_at);
                resume_unwind(panic)
            }
        }
    }
}

impl<T, E, L: fmt::Debug> fmt::Debug for Group<T, E, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("context", &self.crew.ctx)
            .field("running", &Running(&self.crew.running))
            .field("limit", &self.limit)
            .field("grace", &self.crew.grace)
            .finish()
    }
}

/// The lines that spawned those that run, in the order in which they did.
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
