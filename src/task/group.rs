//! [`Group`]: tasks that belong together. The first error ends the others, and nobody is left behind.
//!
//! Go's `errgroup`, Kotlin's coroutine scope, trio's nursery, on Tokio's [`JoinSet`].
//!
//! # When to use it
//!
//! | for | use |
//! |---|---|
//! | parts of one answer, which is worth nothing if one of them fails | [`Group::spawn`], [`Group::join`] |
//! | the same, but only so many at once | [`Group::limit`] |
//! | parts that succeed or fail each on its own | [`Group::keep_going`], [`Group::outcomes`] |
//! | whichever ends first, one by one | [`Group::next`] |
//! | an optional part beside critical ones | a task that returns `Ok` of its own result |
//! | a stream of jobs without end | [`for_each_task`](crate::StreamExt::for_each_task), which keeps nothing |
//! | a service's connections | [`Shutdown`](crate::Shutdown) |
//! | two or three futures that need no tasks | `tokio::try_join!` in [`Context::run`] |
//!
//! # What the tasks fail with
//!
//! Any error type `E` that converts from [`Error`]: `anyhow::Error`, an enum with `#[from] tokio_ctx::Error`,
//! `io::Error`, [`BoxError`], [`Error`] itself. [`join`](Group::join) returns the first failure by value, so
//! that `group.join().await?` fits a function that returns the same `E`; what ended the context from outside
//! arrives converted. The other tasks see the failure's text and line, as a [`TaskFailed`]. Tasks of which only
//! [`outcomes`](Group::outcomes) are asked may fail with any type that prints.
//!
//! # Traps
//!
//! - **The end is seen, not enforced.** A task learns of it from its context, which is
//!   [`current`](Context::current) in there, and has to look: `ctx.run(…)`, `ctx.check()?`,
//!   `ctx.done()`. One that never looks keeps [`join`](Group::join) waiting, as in Go. With
//!   [`grace`](Group::grace) it is aborted; `grace(Duration::ZERO)` stops every task at its next
//!   `await`, as trio and Kotlin do.
//! - **Nothing stops a task that does not await.** Neither an abort nor a drop of the group reaches one
//!   that computes, or blocks, before its next `await`; `join` waits for it all the same. Let it
//!   [`check`](Context::check), or put it on [`spawn_blocking`](tokio::task::spawn_blocking).
//! - **What a task spawns by itself is not of the group.** Neither `tokio::spawn` nor
//!   [`Context::spawn`] makes a member; both outlive the group.
//! - **An end from outside is no failure.** If the parent is canceled or a deadline passes, and every
//!   task returns `Ok` all the same, [`join`](Group::join) returns the values: finished work is not
//!   thrown away. So does Go. To know, ask the context. (A task that was aborted, or whose
//!   turn never came, has no value: then `join` fails.)
//! - **A group keeps every value** until it is joined: one that lives as long as its service does
//!   grows as long.
//! - Drop the future of [`join`](Group::join), say in a `select!` or a timeout, and the group is
//!   dropped. To bound a group in time, give it a context with a deadline.
//!
//! [`JoinSet`]: tokio::task::JoinSet

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, Location, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep_until;

use crate::context::enter::Entry;
use crate::context::refusal::checked;
use crate::context::{CancelScope, Canceler, Context, DoneOwned};
#[cfg(doc)]
use crate::error::BoxError;
use crate::error::{Error, Place};
use crate::registry::Kind;

mod failed;
mod outcome;

use failed::Aborted;
pub use failed::TaskFailed;
pub use outcome::{End, Outcome};

/// Tasks that belong together: the first error ends the others, and nobody is left behind.
///
/// [`new`](Self::new) gives the group and its context, which ends with the first task that fails or
/// panics, when [`join`](Self::join) is through, and when the group is dropped. A group that is dropped
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
/// let pages = group.join().await?; // in the order of the spawns
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
    tasks: JoinSet<Result<T, E>>,
    running: HashMap<Id, Member>,
    spawned: usize,
    // Those that were not taken, in the order in which they ended. Never locked: it makes the group `Sync`
    // for values that are not, as a `JoinSet` is.
    ended: Mutex<VecDeque<Ended<T, E>>>,
    common: Arc<Common>,
    grace: Option<Duration>,
    overdue: bool,
    // The end came before a task's turn.
    gave_up: bool,
    _entry: Entry,
}

/// Resolves when the grace of a group is over.
type GraceOver = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// What came of a task, and the how-manieth it was to be spawned.
type Ended<T, E> = (usize, Outcome<T, E>);

#[derive(Clone, Copy)]
struct Member {
    nth: usize,
    spawned_at: &'static Location<'static>,
}

/// What every task of a group has a hand on.
struct Common {
    canceler: Canceler,
    // The how-manieth task was the first to fail.
    first: OnceLock<usize>,
    keep_going: bool,
}

impl<T, E> Group<T, E> {
    /// A group, and its context: a child of `ctx`, which is [`current`](Context::current) in its tasks.
    ///
    /// The context ends with the first task that fails, with a [`TaskFailed`] as its cause. Go's
    /// `errgroup.WithContext`.
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
        let crew = Crew {
            ctx: scope,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            spawned: 0,
            ended: Mutex::default(),
            common: Arc::new(common),
            grace: None,
            overdue: false,
            gave_up: false,
            _entry: Entry::new(&ctx, Kind::Group, Location::caller()),
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
    E: fmt::Display + Send + 'static,
{
    /// Spawns a task, in which the group's context is [`current`](Context::current).
    ///
    /// It runs at once, joined or not, also if the context has ended: then it finds
    /// that out by itself, as in Go. The line of this call is remembered, and named if the task
    /// fails, panics or is aborted. Go's `Group.Go`.
    ///
    /// # The error's type
    ///
    /// In `async move { …?; Ok(()) }` the `?` converts into some error, and nothing says into which. It is inferred
    /// where `group.join().await?` is in a function of the same error, or `join`'s result is given a type. Otherwise
    /// the compiler says `type annotations needed`: name the error at the group, or at the `Ok`.
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
    /// let error: BoxError = group.join().await.unwrap_err(); // At once: the sleeper was canceled.
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
    E: fmt::Display + Send + 'static,
{
    /// Waits until fewer tasks run than the limit says, then spawns this one, as the `spawn` of a group
    /// without a limit. Returns whether the task was taken.
    ///
    /// It is not if the context ends before its turn: then it is dropped without having run, and
    /// [`join`](Self::join) fails, so that the values of some tasks are not taken for those of all. What went
    /// wrong is what `join` returns.
    ///
    /// Nothing is queued: a caller that spawns too fast is held up here. Dropped before it resolves, it drops
    /// the task, which then has never run. Go's `Group.Go` after `SetLimit`, which cannot give up.
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
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let (group, _ctx) = Group::<(), Error>::new(&ctx);
    /// let mut group = group.limit(1);
    ///
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await;
    /// group.spawn(async { Context::current().sleep(Duration::from_millis(60)).await }).await;
    /// // At 60 ms it was the second's turn; the third's does not come in time.
    /// assert!(!group.spawn(async { Ok(()) }).await);
    /// assert!(group.join().await.unwrap_err().is_deadline_exceeded());
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&mut self, task: F) -> impl Future<Output = bool> + use<'_, T, E, F>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let spawned_at = Location::caller();
        async move {
            let taken = self.turn().await;
            if taken {
                self.crew.start(task, spawned_at);
            }
            taken
        }
    }

    /// Spawns a task, unless as many run as may, or the context has ended. Go's `TryGo`.
    ///
    /// # Errors
    ///
    /// The task, which was not spawned. `group.context().is_done()` tells the two reasons apart.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
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
    ///     assert_eq!(task.await.unwrap(), "second"); // Here, then.
    /// }
    /// # }
    /// ```
    #[track_caller]
    pub fn try_spawn<F>(&mut self, task: F) -> Result<(), F>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.crew.collect();
        if self.crew.ctx.is_done() || self.crew.tasks.len() >= self.limit.0 {
            return Err(task);
        }
        self.crew.start(task, Location::caller());
        Ok(())
    }

    /// Resolves when another task may run, or none may any more; returns which.
    pub(crate) async fn turn(&mut self) -> bool {
        let ctx = self.crew.ctx.clone();
        let mut open = checked(&ctx).await.is_ok();
        while open && self.crew.tasks.len() >= self.limit.0 {
            match ctx.run(self.crew.next_to_end(&mut None)).await {
                Ok(ended) => self.crew.ended().extend(ended),
                Err(_ended) => open = false,
            }
        }
        // The end may have made room: what was stopped by it is a result that is ready.
        open = open && !ctx.is_done();
        if !open {
            self.give_up();
        }
        open
    }

    /// Spawns a task whose turn it is.
    pub(crate) fn spawn_in_turn<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.crew.start(task, spawned_at);
    }

    /// Frees the tasks that have ended, and their values, so that a group can live for ever; wakes when another
    /// has.
    pub(crate) fn poll_forget(&mut self, cx: &mut TaskContext<'_>) {
        let is_kept = |(_, outcome): &Ended<T, E>| !matches!(outcome.end, End::Done(_));
        while let Poll::Ready(Some(joined)) = self.crew.tasks.poll_join_next_with_id(cx) {
            let ended = self.crew.note(joined);
            self.crew.ended().push_back(ended);
        }
        self.crew.ended().retain(is_kept);
    }

    /// Takes note that the context's end kept a task from being spawned.
    pub(crate) fn give_up(&mut self) {
        self.crew.gave_up = true;
    }
}

impl<T, E, L> Group<T, E, L> {
    /// Keeps going when a task fails or panics: the context goes on, and the other tasks with it.
    ///
    /// [`outcomes`](Self::outcomes) then returns all that came of them; [`join`](Self::join) still returns
    /// the first error, but only when the last task has run its course. Go's `errgroup.Group` without
    /// `WithContext`.
    ///
    /// # Panics
    ///
    /// If a task was spawned already: whether its error is to end the others would be left open.
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
    /// [`join`](Self::join) and [`outcomes`](Self::outcomes) name the line that spawned it. The time
    /// runs from the [end](crate::Origin::ended_at) itself, and is kept while the group is waited for:
    /// in `join`, `outcomes`, `next`, or for a turn to spawn. Zero stops every task where it
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
    /// // context deadline exceeded: 100ms budget set at src/main.rs:6: aborted: 1 task spawned at src/main.rs:9
    /// let ended = group.join().await.unwrap_err();
    /// assert!(ended.is_deadline_exceeded());
    /// assert!(ended.to_string().ends_with(&format!(":{line}")));
    /// # }
    /// ```
    pub fn grace(mut self, after_the_end: Duration) -> Self {
        self.crew.grace = Some(after_the_end);
        // It runs from the end, which is dated only where that matters.
        if let Some(token) = self.crew.ctx.token() {
            token.date_ends();
        }
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

    /// Ends the group's context: for a task that finds that the others are not needed.
    ///
    /// What the others return then counts as always: an `Err` is a failure.
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
        self.crew.common.canceler.clone()
    }
}

impl<T, E, L> Group<T, E, L>
where
    T: Send + 'static,
    E: Send + 'static,
{
    /// Waits until every task has really ended, and returns their values, in the order of the spawns.
    ///
    /// Whatever a task does after the end, its clean-up included, is over when this resolves, and what
    /// it held is dropped. Then the context ends. Dropped, this drops the group. Go's `Group.Wait`.
    ///
    /// # Errors
    ///
    /// The first task's error, by value, if one failed; what others return once that has ended the context is
    /// dropped. Without one, the context's end, converted, if tasks had to be aborted after it (then it names
    /// their lines), or could not be spawned because of it.
    ///
    /// # Panics
    ///
    /// If a task panicked: goes on with that panic, once all have ended; of several, with that of the
    /// task that was spawned first. Outside a Tokio
    /// runtime, as [`tokio::time::sleep`], if there is a [`grace`](Self::grace) and the context has
    /// ended or has a deadline.
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
        let outcomes = self.crew.all().await;
        self.crew.sum_up(outcomes)
    }

    /// Waits until every task has really ended, and returns what came of each, in the order of the spawns.
    ///
    /// Panics are among the outcomes; none is resumed. Without [`keep_going`](Self::keep_going) the
    /// first error or panic still ends the context, and what the others make of that is among them. What
    /// [`next`](Self::next) returned is not returned again. Dropped, this drops the group.
    ///
    /// # Panics
    ///
    /// As [`join`](Self::join), without a time driver.
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
        let mut outcomes = self.crew.all().await;
        outcomes.sort_by_key(|(nth, _)| *nth);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Waits for the next task to end, and takes what came of it out of the group; `None` if no task is
    /// left.
    ///
    /// [`join`](Self::join) then returns the other values, or the first of the other errors. An error that was
    /// taken here is the caller's; if it has ended the context, `join` returns that end. A panic that was taken
    /// is not resumed. Cancel-safe: dropped, it takes nothing. Tokio's
    /// [`JoinSet::join_next`](tokio::task::JoinSet::join_next).
    ///
    /// # Panics
    ///
    /// As [`join`](Self::join), without a time driver.
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

impl<T: Send + 'static, E: Send + 'static> Crew<T, E> {
    fn start<F>(&mut self, task: F, spawned_at: &'static Location<'static>)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display,
    {
        // What has ended keeps its future's room until then.
        self.collect();
        let task = Entry::new(&self.ctx, Kind::Task, spawned_at).held_by(task);
        let task = self.ctx.scope(task);
        let member = Member { nth: self.spawned, spawned_at };
        let handle = self.tasks.spawn(Working { task, common: self.common.clone(), member });
        self.running.insert(handle.id(), member);
        self.spawned += 1;
        if self.overdue {
            handle.abort();
        }
    }

    /// Every outcome that was not taken, in the order in which they ended, once all tasks have.
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

    /// Takes note of all that have ended by now.
    fn collect(&mut self) {
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            let ended = self.note(joined);
            self.ended().push_back(ended);
        }
    }

    /// Waits for the next task to end, and keeps the grace meanwhile: with a wait that is the caller's, so that
    /// none outlives the call.
    fn next_to_end<'a>(
        &'a mut self,
        grace_over: &'a mut Option<GraceOver>,
    ) -> impl Future<Output = Option<Ended<T, E>>> + use<'a, T, E> {
        poll_fn(|cx| match self.tasks.poll_join_next_with_id(cx) {
            Poll::Ready(joined) => Poll::Ready(joined.map(|joined| self.note(joined))),
            Poll::Pending => {
                self.poll_grace(grace_over, cx);
                Poll::Pending
            }
        })
    }

    /// Aborts those that run once the grace is over; what joins them is woken when they are gone.
    fn poll_grace(&mut self, grace_over: &mut Option<GraceOver>, cx: &mut TaskContext<'_>) {
        let Some(grace) = self.grace.filter(|_| !self.overdue) else { return };
        let over = grace_over.get_or_insert_with(|| Box::pin(until_over(self.ctx.done_owned(), grace)));
        if over.as_mut().poll(cx).is_ready() {
            *grace_over = None;
            self.overdue = true;
            self.tasks.abort_all();
        }
    }

    fn note(&mut self, joined: Result<(Id, Result<T, E>), JoinError>) -> Ended<T, E> {
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Member { nth, spawned_at } =
            self.running.remove(&id).expect("every task of the set is noted when it is spawned");
        let end = match joined {
            Ok((_, Ok(value))) => End::Done(value),
            Ok((_, Err(error))) => End::Failed(error),
            Err(lost) => match lost.try_into_panic() {
                Ok(panic) => End::Panicked(panic),
                Err(_aborted) => {
                    // Not by the grace, or the context would have ended: by its runtime's end.
                    self.common.stop(spawned_at, || TaskFailed::new(LOST.to_owned(), spawned_at));
                    End::Aborted
                }
            },
        };
        (nth, Outcome { spawned_at, end })
    }

    fn sum_up(&self, outcomes: Vec<Ended<T, E>>) -> Result<Vec<T>, E>
    where
        E: From<Error>,
    {
        let (mut values, mut panics, mut aborted) = (Vec::new(), Vec::new(), Vec::new());
        let mut failure = None;
        for (nth, Outcome { spawned_at, end }) in outcomes {
            match end {
                End::Done(value) => values.push((nth, value)),
                // They are told apart by when they failed, which is not the order in which they were joined.
                End::Failed(error) if failure.is_none() || self.common.first.get() == Some(&nth) => {
                    failure = Some(error);
                }
                End::Failed(_) => {}
                End::Panicked(panic) => panics.push((nth, panic)),
                End::Aborted => aborted.push((nth, spawned_at)),
            }
        }
        if let Some((_, panic)) = panics.into_iter().min_by_key(|(nth, _)| *nth) {
            resume_unwind(panic);
        }
        match failure {
            Some(error) => Err(error),
            None if aborted.is_empty() && !self.gave_up && !self.has_failed() => Ok(in_order(values)),
            None => {
                let aborted = in_order(aborted);
                Err(E::from(Aborted::under(&self.end(&aborted), aborted)))
            }
        }
    }

    /// Whether a task's error has ended the context, also one that `next` has returned.
    fn has_failed(&self) -> bool {
        self.common.first.get().is_some() && !self.common.keep_going
    }

    /// Why the context has ended, or else now does: a group that keeps going has lost tasks.
    fn end(&self, aborted: &[&'static Location<'static>]) -> Error {
        if let Some(lost) = aborted.first() {
            self.ctx.cancel_at(lost, LOST.into());
        }
        self.ctx.err().expect("a task was lost, or refused because the context had ended")
    }
}

/// What is said of a task that was neither canceled nor failed.
const LOST: &str = "aborted, as its runtime shut down";

fn in_order<V>(mut numbered: Vec<(usize, V)>) -> Vec<V> {
    numbered.sort_by_key(|(nth, _)| *nth);
    numbered.into_iter().map(|(_, value)| value).collect()
}

async fn until_over(done: DoneOwned, grace: Duration) {
    let ended_at = done.await.origin().ended_at();
    // Tokio's timer rounds up: what lies at the very end of time would overflow there.
    match ended_at.checked_add(grace).filter(|at| at.checked_add(Duration::from_secs(1)).is_some()) {
        Some(over) => sleep_until(over).await,
        None => pending().await,
    }
}

impl Common {
    /// Takes note of a task's error, which ends the context if it is the first.
    fn fail(&self, error: &impl fmt::Display, member: Member) {
        if self.first.set(member.nth).is_ok() {
            self.stop(member.spawned_at, || TaskFailed::new(format!("{error:#}"), member.spawned_at));
        }
    }

    fn stop(&self, spawned_at: &'static Location<'static>, why: impl FnOnce() -> TaskFailed) {
        if !self.keep_going {
            self.canceler.cancel_at(spawned_at, why().into());
        }
    }
}

pin_project! {
    /// A task at its work, which ends the context when it fails or panics: whether it is waited for or not.
    struct Working<F> {
        #[pin]
        task: F,
        common: Arc<Common>,
        member: Member,
    }
}

impl<F, T, E> Future for Working<F>
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
        // Foreign code, as is the error's text.
        catch_unwind(AssertUnwindSafe(polled)).unwrap_or_else(|panic| {
            common.stop(member.spawned_at, || TaskFailed::panicked(&*panic, member.spawned_at));
            resume_unwind(panic)
        })
    }
}

/// What an error of this module holds and does not return as its source.
pub(crate) fn held_by<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    error.downcast_ref::<Aborted>()?.held()
}

/// As a `JoinHandle`: what tasks share with each other is theirs to keep safe.
impl<T, E, L> UnwindSafe for Group<T, E, L> {}
impl<T, E, L> RefUnwindSafe for Group<T, E, L> {}

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
