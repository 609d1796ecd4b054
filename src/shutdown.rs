//! [`Shutdown`]: how a service ends. First it takes no more work, then, after a grace period, what is
//! left is cancelled, and in the end it says who did not end.
//!
//! # The phases
//!
//! | phase | begins | what is told |
//! |---|---|---|
//! | running | [`Shutdown::new`] | nobody |
//! | soft | [`begin`](Shutdown::begin), or the end of the context it was made of, say of a signal | [`soft`](Shutdown::soft) ends: accept loops, consumers and schedulers take no more work |
//! | hard | the [`grace`](Shutdown::grace) after that, or [`force`](Shutdown::force) | [`hard`](Shutdown::hard) ends: what is under way is cancelled, and cleans up |
//! | abort | the [`cleanup`](Shutdown::cleanup) time after that | tasks of [`spawn`](Shutdown::spawn) are aborted where they await |
//! | report | all work has ended, or does not, the `cleanup` time after that | [`wait`](Shutdown::wait) returns the [`Report`] |
//!
//! Each phase is over as soon as no work is left. `wait` thus takes the grace and twice the clean-up
//! time at most, from the begin on: let that be less than what the service's supervisor allows (Docker's
//! `stop`: 10 s; Kubernetes: 30 s; systemd: 90 s).
//!
//! # When to use it
//!
//! Once per program, in `main`. For parts of one request, or of one job, there is [`Group`], which has
//! results and errors; this has neither. What does the work under way is a task made by
//! [`spawn`](Shutdown::spawn), any future that somebody else runs ([`track`](Shutdown::track)), or
//! whatever holds a [`ticket`](Shutdown::ticket). Beside its peers:
//!
//! | | `Shutdown` | [tokio-graceful-shutdown] 0.19 | tokio-util's [`TaskTracker`] 0.7 |
//! |---|---|---|---|
//! | *stop taking work* and *stop* told apart | yes, two contexts | one request, which tasks await | no: it only waits; a `CancellationToken` beside it is one |
//! | says why, and where it began | yes | errors of subsystems | no |
//! | grace period | yes, then a cancel, then an abort | yes, then an abort | no: `timeout` around `wait` |
//! | names who did not end | by name and line | by name, in the log | no: a count |
//! | work that others run, and threads | any future, tickets | tasks of its own | any future, tokens |
//! | a part shut down by itself | a context below `hard` and a [`Group`] | nested subsystems | a tracker of its own |
//! | a failure begins the shutdown | the task calls [`begin`](Shutdown::begin) with it | by itself, panics too | no |
//! | signals | any context that ends on them | `catch_signals` | no |
//! | returns the errors of the work | `JoinHandle`, as Tokio | collected in an error | `JoinHandle`, as Tokio |
//! | wait again after more work | no, a shutdown is final | no | yes, `reopen` |
//!
//! [tokio-graceful-shutdown]: https://docs.rs/tokio-graceful-shutdown
//! [`TaskTracker`]: https://docs.rs/tokio-util/latest/tokio_util/task/struct.TaskTracker.html
//! [`Group`]: crate::Group
//!
//! # On a signal
//!
//! The feature `signal` has the context to make it of, in the module [`signal`](../signal/index.html). All of a
//! `main`:
//!
#![cfg_attr(feature = "signal", doc = "```no_run")]
#![cfg_attr(not(feature = "signal"), doc = "```ignore")]
//! use tokio::net::TcpListener;
//! use tokio_ctx::signal::until_termination;
//! use tokio_ctx::{BoxError, Context, Shutdown};
//!
//! # async fn accept(_: TcpListener, _: Shutdown) {}
//! #[tokio::main]
//! async fn main() -> Result<(), BoxError> {
//!     let ctx = until_termination(&Context::background())?;
//!     let shutdown = Shutdown::new(&ctx);
//!
//!     let listener = TcpListener::bind("127.0.0.1:8080").await?;
//!     shutdown.named("accept").spawn(accept(listener, shutdown.clone()));
//!
//!     Ok(shutdown.wait().await.into_result()?) // an error if somebody did not end in time
//! }
//! ```
//!
//! A second signal then ends the process at once, in whatever phase. To have it [`force`](Shutdown::force)
//! instead, turn that off there.
//!
//! # When a part fails
//!
//! A part without which the service is none begins the shutdown itself, and somebody does for it if it
//! panics:
//!
//! ```
//! use std::io;
//! use tokio::task::JoinHandle;
//! use tokio_ctx::{Context, Shutdown};
//!
//! async fn must_run(shutdown: Shutdown, part: JoinHandle<io::Result<()>>) {
//!     match part.await {
//!         Ok(Ok(())) => shutdown.begin("a part that must run has ended"),
//!         Ok(Err(failed)) => shutdown.begin(failed),
//!         Err(panicked) => shutdown.begin(panicked),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let shutdown = Shutdown::new(&Context::background());
//! let consumer = shutdown.named("consumer").spawn(async { Err(io::ErrorKind::BrokenPipe.into()) });
//! shutdown.spawn(must_run(shutdown.clone(), consumer));
//!
//! let report = shutdown.wait().await;
//! assert!(report.why().cause_as::<io::Error>().is_some());
//! # }
//! ```
//!
//! # Traps
//!
//! - **Somebody must [`wait`](Shutdown::wait).** It is what keeps the time: without it the grace never
//!   ends. Let it be the last thing that `main` awaits.
//! - **Who takes work is work.** Spawn or track the accept loop as well; else `wait` may find nothing to
//!   wait for before the loop has noticed, and what it spawns then is not waited for.
//! - **A connection that waits for its next request** is work, and takes all the grace unless it looks at
//!   [`soft`](Shutdown::soft) there: `shutdown.soft().run(read_request()).await`.
//! - **A task is told, not stopped**, until the abort. Work that should be cut off by the hard end looks
//!   at [`Context::current`], which is `hard` in there, or is run by it: `ctx.run(work)`.
//! - **Servers that spawn by themselves** (axum's `serve`, tonic) end when all their connections have.
//!   Aborted, they leave those connections behind. Bound each request by `hard` in a middleware and
//!   [`track`](Shutdown::track) it there: it is cut off in time, and named in the report.
//! - **Threads and `spawn_blocking` cannot be aborted.** With a [`ticket`](Shutdown::ticket) they are
//!   waited for and reported; let them [`check`](Context::check) the context. A runtime waits for its
//!   blocking tasks when it is dropped: after a report that names some, end the process, or use
//!   `Runtime::shutdown_background`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::error::{BoxError, Place};
use crate::{CancelScope, Context, Error};

const GRACE: Duration = Duration::from_secs(8);
const CLEANUP: Duration = Duration::from_secs(1);

/// How a service ends: no more work, then a grace period, then a cancel, then a report.
///
/// A handle: clones are the same shutdown, and can go to whoever takes or does work. When the last is
/// dropped, both contexts end. See the [module](crate::shutdown) for the phases and the traps.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::{Context, Shutdown};
///
/// # async fn next_job() -> u32 { tokio::time::sleep(Duration::from_millis(30)).await; 7 }
/// # async fn work_on(_job: u32) {}
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let shutdown = Shutdown::new(&Context::background()).grace(Duration::from_secs(5));
///
/// let service = shutdown.clone();
/// shutdown.named("consumer").spawn(async move {
///     while let Ok(job) = service.soft().run(next_job()).await {
///         service.named(format!("job {job}")).spawn(work_on(job));
///     }
/// });
///
/// // In a program: when a signal comes, or a critical part fails.
/// # tokio::time::sleep(Duration::from_millis(100)).await;
/// shutdown.begin("new version deployed");
/// let report = shutdown.wait().await;
/// assert!(report.is_clean(), "{report}");
/// # }
/// ```
#[derive(Clone)]
pub struct Shutdown {
    common: Arc<Common>,
    name: Option<Arc<str>>,
}

struct Common {
    soft: CancelScope,
    hard: CancelScope,
    made_at: &'static Location<'static>,
    // Apart from the scopes: who is at work keeps the list, and nobody from ending.
    work: Arc<Work>,
}

impl Shutdown {
    /// A shutdown that begins when it is told to, or when `ctx` ends.
    ///
    /// Both its contexts have the values of `ctx`, and the soft one its deadline; the hard one outlives
    /// it by the grace. It is given 8 seconds of [`grace`](Self::grace), and twice one of
    /// [`cleanup`](Self::cleanup), unless told otherwise: the ten that Docker gives a container.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let until_signal = Context::background().with_cancel();
    /// let shutdown = Shutdown::new(&until_signal);
    /// until_signal.cancel_with("SIGTERM");
    /// assert!(shutdown.soft().is_done());
    /// assert!(!shutdown.hard().is_done());
    /// # }
    /// ```
    #[track_caller]
    pub fn new(ctx: &Context) -> Shutdown {
        let hard = ctx.without_cancel().with_cancel();
        let soft = ctx.merge(&hard);
        let (made_at, work) = (Location::caller(), Arc::default());
        Shutdown { common: Arc::new(Common { soft, hard, made_at, work }), name: None }
    }

    /// How long work may go on after the begin before it is cancelled.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// let shutdown = Shutdown::new(&Context::background()).grace(Duration::from_secs(25));
    /// # drop(shutdown);
    /// ```
    pub fn grace(self, after_the_begin: Duration) -> Self {
        self.common.work.lock().grace = after_the_begin;
        self
    }

    /// How long cancelled work may clean up before it is aborted, and then until it is given up.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// let shutdown = Shutdown::new(&Context::background()).cleanup(Duration::from_millis(200));
    /// # drop(shutdown);
    /// ```
    pub fn cleanup(self, after_the_cancel: Duration) -> Self {
        self.common.work.lock().cleanup = after_the_cancel;
        self
    }

    /// A handle of the same shutdown whose work has a name in the report, below the name it has.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let http = shutdown.named("http");
    /// http.named("GET /slow").spawn(std::future::pending::<()>());
    ///
    /// shutdown.begin("over");
    /// let report = shutdown.wait().await;
    /// assert_eq!(report.overdue()[0].name(), Some("http/GET /slow"));
    /// # }
    /// ```
    pub fn named<'a>(&self, name: impl Into<Cow<'a, str>>) -> Shutdown {
        let name = name.into();
        let name = match &self.name {
            Some(above) => format!("{above}/{name}").into(),
            None => name.into(),
        };
        Shutdown { common: self.common.clone(), name: Some(name) }
    }

    /// Ends when no more work is to be taken: for accept loops, consumers, schedulers.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// // As axum's `with_graceful_shutdown` wants to be told.
    /// let signal = shutdown.soft().done_owned();
    /// shutdown.begin("over");
    /// signal.await;
    /// # }
    /// ```
    pub fn soft(&self) -> &Context {
        &self.common.soft
    }

    /// Ends when work that is under way is to stop: for requests and jobs. It is
    /// [`current`](Context::current) in the tasks of [`spawn`](Self::spawn).
    ///
    /// Its cause, when the grace is over, is [`GraceOver`], and behind that whatever began the shutdown.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// let shutdown = Shutdown::new(&Context::background());
    /// let request = shutdown.hard().with_cancel();
    /// shutdown.force("power is failing");
    /// assert_eq!(request.err().unwrap().cause().unwrap().to_string(), "power is failing");
    /// ```
    pub fn hard(&self) -> &Context {
        &self.common.hard
    }

    /// Begins the shutdown, and says why; once it has begun, does nothing. From any thread.
    ///
    /// Two that call it at once, say two parts that failed, thus do not cut short the grace. To do
    /// that, for instance at a second Ctrl-C, [`force`](Self::force).
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// let shutdown = Shutdown::new(&Context::background());
    /// shutdown.begin(io::Error::other("lost the database"));
    /// assert!(shutdown.soft().err().unwrap().cause_as::<io::Error>().is_some());
    /// ```
    #[track_caller]
    pub fn begin(&self, cause: impl Into<BoxError>) {
        self.common.soft.cancel_with(cause);
    }

    /// Ends the hard context, and the soft one with it, without any more grace. From any thread.
    ///
    /// ```no_run
    /// use tokio::signal::ctrl_c;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let told = shutdown.clone();
    /// tokio::spawn(async move {
    ///     ctrl_c().await.expect("a handler");
    ///     told.begin("Ctrl-C");
    ///     ctrl_c().await.expect("a handler");
    ///     told.force("second Ctrl-C");
    /// });
    /// println!("{}", shutdown.wait().await);
    /// # }
    /// ```
    #[track_caller]
    pub fn force(&self, cause: impl Into<BoxError>) {
        self.common.end_hard(cause.into(), Location::caller());
    }

    /// Spawns a task that the shutdown waits for, in which [`hard`](Self::hard) is
    /// [`current`](Context::current).
    ///
    /// It is spawned whatever the phase. The handle may be dropped; an error or a panic is told by the
    /// handle, as with [`tokio::spawn`], and not by the report, nor does it
    /// [begin the shutdown](crate::shutdown#when-a-part-fails).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// shutdown.spawn(async {
    ///     let why = Context::current().done().await;
    ///     println!("stopped: {why}");
    /// });
    /// shutdown.force("over");
    /// assert_eq!(shutdown.wait().await.overdue().len(), 1);
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let tracked = self.track(task);
        let id = tracked.id();
        let handle = tokio::spawn(self.common.hard.scope(tracked));
        self.common.work.attach(id, handle.abort_handle());
        handle
    }

    /// A future that the shutdown waits for, until it resolves or is dropped; whoever has it runs it.
    ///
    /// It counts from this call on, polled or not. tokio-util's `TaskTracker::track_future`.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # async fn respond() -> &'static str { "hello" }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// // In a middleware: waited for, and cut off by the hard end.
    /// let response = shutdown.hard().run(shutdown.track(respond())).await?;
    /// assert_eq!(response, "hello");
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Tracked<F> {
        Tracked { future: Some(future), ticket: Some(self.ticket()) }
    }

    /// Something to hold while at work, where no future is: in a thread, or in `spawn_blocking`.
    ///
    /// tokio-util's `TaskTracker::token`.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let (ticket, ctx) = (shutdown.named("index").ticket(), shutdown.hard().clone());
    /// let thread = std::thread::spawn(move || {
    ///     let _ticket = ticket;
    ///     (0..1_000_u64).take_while(|_| ctx.check().is_ok()).sum::<u64>()
    /// });
    /// shutdown.begin("over");
    /// assert!(shutdown.wait().await.is_clean());
    /// assert_eq!(thread.join().unwrap(), 499_500);
    /// # }
    /// ```
    #[track_caller]
    pub fn ticket(&self) -> Ticket {
        let spawned_at = Location::caller();
        let task = Task { name: self.name.clone(), spawned_at };
        Ticket {
            id: self.common.work.enter(task),
            work: self.common.work.clone(),
            #[cfg(feature = "test-util")]
            _entry: crate::testing::Entry::new(&self.common.hard, spawned_at),
        }
    }

    /// Waits for the begin, takes the shutdown through its phases, and reports.
    ///
    /// When it returns, both contexts have ended, and all work has that could be made to. Cancel-safe:
    /// dropped and called again, and called by several, it goes on from where the shutdown is.
    ///
    /// # Panics
    ///
    /// Without a Tokio runtime that has a time driver, as [`tokio::time::sleep`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::shutdown::Fate;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background()).grace(Duration::from_secs(5));
    /// shutdown.named("flush").spawn(tokio::time::sleep(Duration::from_secs(3)));
    /// shutdown.named("poll").spawn(std::future::pending::<()>()); // does not look at its context
    ///
    /// shutdown.begin("SIGTERM");
    /// let report = shutdown.wait().await;
    /// assert_eq!(report.overdue().len(), 1);
    /// assert_eq!(report.overdue()[0].name(), Some("poll"));
    /// assert_eq!(report.overdue()[0].fate(), Fate::Aborted);
    /// # }
    /// ```
    pub async fn wait(&self) -> Report {
        let Common { soft, hard, work, .. } = &*self.common;
        let why = soft.done().await;
        let (began, grace) = (why.origin().ended_at(), work.lock().grace);
        if !work.ends_by(hard, began.checked_add(grace)).await {
            let cause = Box::new(GraceOver { grace, why: why.clone() });
            self.common.end_hard(cause, self.common.made_at);
            self.clean_up().await;
        }
        self.common.hard.cancel_at(self.common.made_at, "the shutdown is over".into());
        let overdue = work.overdue();
        Report { why, took: Instant::now().saturating_duration_since(began), overdue }
    }

    /// From the hard end on.
    async fn clean_up(&self) {
        let Common { hard, work, .. } = &*self.common;
        let (canceled, cleanup) = (hard.done().await.origin().ended_at(), work.lock().cleanup);
        let bounded = Context::background();
        if !work.ends_by(&bounded, canceled.checked_add(cleanup)).await {
            work.abort();
            work.ends_by(&bounded, Instant::now().checked_add(cleanup)).await;
        }
    }
}

impl Common {
    /// Notes who is at work, and then ends the hard context: once they are told, they may be gone.
    fn end_hard(&self, cause: BoxError, place: &'static Location<'static>) {
        if !self.hard.is_done() {
            self.work.mark();
            self.hard.cancel_at(place, cause);
        }
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.common.work.lock().running.len();
        f.debug_struct("Shutdown")
            .field("name", &self.name)
            .field("soft", &self.common.soft)
            .field("hard", &self.common.hard)
            .field("running", &running)
            .finish()
    }
}

/// The work that is under way.
#[derive(Default)]
struct Work {
    list: Mutex<List>,
    emptied: Notify,
}

struct List {
    next: u64,
    // In the order in which they came.
    running: BTreeMap<u64, (Task, Option<AbortHandle>)>,
    overdue: BTreeMap<u64, Overdue>,
    aborting: bool,
    grace: Duration,
    cleanup: Duration,
}

impl Default for List {
    fn default() -> Self {
        List {
            next: 0,
            running: BTreeMap::new(),
            overdue: BTreeMap::new(),
            aborting: false,
            grace: GRACE,
            cleanup: CLEANUP,
        }
    }
}

#[derive(Clone, Debug)]
struct Task {
    name: Option<Arc<str>>,
    spawned_at: &'static Location<'static>,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, task: Task) -> u64 {
        let mut list = self.lock();
        let id = list.next;
        list.next += 1;
        list.running.insert(id, (task, None));
        id
    }

    fn leave(&self, id: u64) {
        let mut list = self.lock();
        let left = list.running.remove(&id);
        let empty = list.running.is_empty();
        drop(list);
        drop(left);
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// Says how to abort a task, which may be over by now.
    fn attach(&self, id: u64, handle: AbortHandle) {
        let mut list = self.lock();
        if list.aborting {
            drop(list);
            handle.abort();
        } else if let Some((_, abort)) = list.running.get_mut(&id) {
            *abort = Some(handle);
        }
    }

    /// Waits until nobody is at work, but no longer than until `ctx` ends or that time; says if nobody is.
    async fn ends_by(&self, ctx: &Context, at: Option<Instant>) -> bool {
        let ctx = match at {
            Some(at) => ctx.with_deadline(at),
            None => ctx.with_cancel(),
        };
        let emptied = async {
            loop {
                // Before the look: a notified hears of whoever leaves from its making on.
                let notified = self.emptied.notified();
                if self.lock().running.is_empty() {
                    return;
                }
                notified.await;
            }
        };
        ctx.run(emptied).await.is_ok() || self.lock().running.is_empty()
    }

    /// Takes those at work down as overdue.
    fn mark(&self) {
        let mut list = self.lock();
        let List { running, overdue, .. } = &mut *list;
        for (id, (task, _)) in running {
            let task = task.clone();
            overdue.entry(*id).or_insert(Overdue { task, fate: Fate::Canceled });
        }
    }

    /// Aborts those at work that can be.
    fn abort(&self) {
        self.mark();
        let mut list = self.lock();
        list.aborting = true;
        let List { running, overdue, .. } = &mut *list;
        let mut handles = Vec::new();
        for (id, (_, abort)) in running {
            if let (Some(overdue), Some(handle)) = (overdue.get_mut(id), abort.take()) {
                overdue.fate = Fate::Aborted;
                handles.push(handle);
            }
        }
        drop(list);
        for handle in handles {
            handle.abort();
        }
    }

    /// Who had not ended in time, and what has become of them by now.
    fn overdue(&self) -> Vec<Overdue> {
        self.mark();
        let list = self.lock();
        let by_now = |(id, overdue): (&u64, &Overdue)| {
            let task = overdue.task.clone();
            let fate = if list.running.contains_key(id) { Fate::Running } else { overdue.fate };
            Overdue { task, fate }
        };
        list.overdue.iter().map(by_now).collect()
    }
}

pin_project! {
    /// A future that a [`Shutdown`] waits for. Made by [`Shutdown::track`].
    ///
    /// # Panics
    ///
    /// If it is polled again after it has resolved.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let tracked = shutdown.track(async { 3 });
    /// assert_eq!(tracked.await, 3);
    /// # }
    /// ```
    #[must_use = "futures do nothing unless polled"]
    pub struct Tracked<F> {
        // Before the ticket: what it held is gone when the ticket is.
        #[pin]
        future: Option<F>,
        ticket: Option<Ticket>,
    }
}

impl<F> Tracked<F> {
    fn id(&self) -> u64 {
        self.ticket.as_ref().map_or(u64::MAX, |ticket| ticket.id)
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let future =
            this.future.as_mut().as_pin_mut().expect("a tracked future was polled after it resolved");
        let output = ready!(future.poll(cx));
        this.future.set(None);
        *this.ticket = None;
        Poll::Ready(output)
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracked").field(&self.ticket).finish()
    }
}

/// Something to hold while at work: a [`Shutdown`] waits until it is dropped. Made by
/// [`Shutdown::ticket`].
///
/// ```
/// use tokio_ctx::{Context, Shutdown};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let shutdown = Shutdown::new(&Context::background());
/// let ticket = shutdown.named("backup").ticket();
/// let backup = tokio::task::spawn_blocking(move || {
///     let _ticket = ticket;
///     // … copies files …
/// });
/// shutdown.begin("over");
/// assert!(shutdown.wait().await.is_clean());
/// # backup.await.unwrap();
/// # }
/// ```
#[must_use = "a ticket that is dropped is not waited for"]
pub struct Ticket {
    id: u64,
    work: Arc<Work>,
    #[cfg(feature = "test-util")]
    _entry: crate::testing::Entry,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.work.leave(self.id);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.id).finish()
    }
}

/// Why the hard context ended: the time that work had to end by itself was over.
///
/// Its [`source`](StdError::source) is why the shutdown began.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::shutdown::GraceOver;
/// use tokio_ctx::{Context, Shutdown};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let shutdown = Shutdown::new(&Context::background()).grace(Duration::from_secs(5));
/// let request = shutdown.spawn(async { Context::current().done().await });
/// shutdown.begin("SIGTERM");
/// shutdown.wait().await;
///
/// let stopped = request.await.unwrap();
/// assert_eq!(stopped.cause_as::<GraceOver>().unwrap().grace(), Duration::from_secs(5));
/// assert!(stopped.to_string().ends_with(": SIGTERM"));
/// # }
/// ```
#[derive(Debug)]
pub struct GraceOver {
    grace: Duration,
    why: Error,
}

impl GraceOver {
    /// How long it was.
    pub fn grace(&self) -> Duration {
        self.grace
    }
}

impl fmt::Display for GraceOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grace of {:?} is over: {}", self.grace, self.why)
    }
}

impl StdError for GraceOver {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.why)
    }
}

/// How a shutdown went: why it began, how long it took, and who had not ended in time.
///
/// Its [`Display`](fmt::Display) is for the log, on one line.
///
/// ```
/// use tokio_ctx::{Context, Shutdown};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let shutdown = Shutdown::new(&Context::background());
/// shutdown.begin("SIGTERM");
/// let report = shutdown.wait().await;
/// // shut down in 0 ms, context canceled at src/main.rs:4: SIGTERM; all work ended in time
/// println!("{report}");
/// assert_eq!(report.why().cause().unwrap().to_string(), "SIGTERM");
/// assert_eq!(report.took().as_millis(), 0);
/// assert!(report.is_clean());
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it says who did not end"]
pub struct Report {
    why: Error,
    took: Duration,
    overdue: Vec<Overdue>,
}

impl Report {
    /// Whether all work ended by itself, within the grace.
    pub fn is_clean(&self) -> bool {
        self.overdue.is_empty()
    }

    /// Why the shutdown began: the soft context's error.
    pub fn why(&self) -> &Error {
        &self.why
    }

    /// How long it took, from the begin on.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Who was still at work when the hard context ended, in the order in which they had begun.
    pub fn overdue(&self) -> &[Overdue] {
        &self.overdue
    }

    /// An error unless it [is clean](Self::is_clean): for `main` to return.
    ///
    /// # Errors
    ///
    /// The report itself.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::BoxError> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// shutdown.begin("nothing to do");
    /// shutdown.wait().await.into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_result(self) -> Result<(), Report> {
        if self.is_clean() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shut down in {} ms, {}", self.took.as_millis(), self.why)?;
        match self.overdue.len() {
            0 => f.write_str("; all work ended in time"),
            1 => f.write_str("; 1 did not end in time: "),
            many => write!(f, "; {many} did not end in time: "),
        }?;
        for (nth, overdue) in self.overdue.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}{overdue}")?;
        }
        Ok(())
    }
}

impl StdError for Report {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.why)
    }
}

/// Work that had not ended when the hard context did.
///
/// ```
/// use tokio_ctx::shutdown::Fate;
/// use tokio_ctx::{Context, Shutdown};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let shutdown = Shutdown::new(&Context::background());
/// let _never_dropped = shutdown.named("export").ticket();
/// let line = line!() - 1;
/// shutdown.force("power is failing");
///
/// let report = shutdown.wait().await;
/// let export = &report.overdue()[0];
/// assert_eq!((export.name(), export.fate()), (Some("export"), Fate::Running));
/// assert_eq!(export.spawned_at().line(), line);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Overdue {
    task: Task,
    fate: Fate,
}

/// What became of work that had not ended in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// It ended when its context did, within the clean-up time.
    Canceled,
    /// It did not, and was aborted.
    Aborted,
    /// It could not be aborted: it is no task of [`Shutdown::spawn`], or never awaits. It still runs.
    Running,
}

impl Overdue {
    /// The name that it was [given](Shutdown::named).
    pub fn name(&self) -> Option<&str> {
        self.task.name.as_deref()
    }

    /// The line that spawned or tracked it.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.task.spawned_at
    }

    /// What became of it.
    pub fn fate(&self) -> Fate {
        self.fate
    }
}

/// `http/GET /slow (spawned at src/main.rs:12): aborted`.
impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, fate) = (Place(self.spawned_at()), self.fate);
        match self.name() {
            Some(name) => write!(f, "{name} (spawned at {place}): {fate}"),
            None => write!(f, "work spawned at {place}: {fate}"),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::Canceled => "ended when canceled",
            Fate::Aborted => "aborted",
            Fate::Running => "still running",
        })
    }
}
