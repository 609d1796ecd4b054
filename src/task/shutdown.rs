//! [`Shutdown`]: how a service ends. First it takes no more work, then, after a grace period, what is
//! left is canceled, and in the end it says who did not end.
//!
//! # The phases
//!
//! | phase | begins | what is told |
//! |---|---|---|
//! | running | [`Shutdown::new`] | nobody |
//! | soft | [`begin`](Shutdown::begin), or the end of the context it was made of, say of a signal | [`soft`](Shutdown::soft) ends: accept loops, consumers and schedulers take no more work |
//! | hard | the [`grace`](Shutdown::grace) after that, or [`force`](Shutdown::force) | [`hard`](Shutdown::hard) ends: what is under way is canceled, and cleans up |
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
//! [`ServerLayer::with_shutdown`]: ../wire/struct.ServerLayer.html#method.with_shutdown
//! [A service that drains]: ../guide/services/index.html
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
//! [A service that drains] has the same with a server of axum or tonic, to the last line.
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
//!   Aborted, they leave those connections behind. [`ServerLayer::with_shutdown`] makes each request part
//!   of the shutdown: it is cut off in time, and named in the report. [A service that drains] has all of it.
//! - **A wait in a task of the same shutdown** leaves that task out, and no other: a task that awaits that
//!   one, and a ticket in its own hand, keep it waiting until the grace and the clean-up are over.
//! - **Threads and `spawn_blocking` cannot be aborted.** With a [`ticket`](Shutdown::ticket) they are
//!   waited for and reported; let them [`check`](Context::check) the context. A runtime waits for its
//!   blocking tasks when it is dropped: after a report that names some, end the process, or use
//!   `Runtime::shutdown_background`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until};

use crate::context::enter::{Entry, Polling};
use crate::context::{CancelScope, Context};
use crate::error::{BoxError, Error, Place, fmt_with_sources};
use crate::finished::Finished;
use crate::registry::{self, Kind};

#[cfg(feature = "watch")]
pub(crate) mod probe;

/// What a watch asks.
fn probe(soft: &Context, hard: &Context, work: &Arc<Work>) -> Option<registry::Probe> {
    let _ = (soft, hard, work);
    #[cfg(feature = "watch")]
    return probe::Probe::of(soft, hard, work);
    #[cfg(not(feature = "watch"))]
    None
}

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
    _entry: Entry,
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
        // The grace and the clean-up run from the two ends.
        [&soft, &hard].into_iter().filter_map(|scope| scope.token()).for_each(|token| token.date_ends());
        let (made_at, work) = (Location::caller(), Arc::default());
        let probe = || (None, probe(&soft, &hard, &work));
        let entry = Entry::probed(&hard, Kind::Shutdown, made_at, probe);
        Shutdown { common: Arc::new(Common { soft, hard, made_at, work, _entry: entry }), name: None }
    }

    /// How long work may go on after the begin before it is canceled.
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

    /// How long canceled work may clean up before it is aborted, and then until it is given up.
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
        let name = below(self.name.as_deref(), &name);
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
    /// let consumer = shutdown.soft().run(std::future::pending::<()>());
    /// shutdown.begin("over");
    /// assert!(consumer.await.is_err());
    /// # }
    /// ```
    pub fn soft(&self) -> &Context {
        &self.common.soft
    }

    /// Resolves when the shutdown has begun: the signal to stop accepting, in the form that servers take.
    ///
    /// That is axum's [`with_graceful_shutdown`], tonic's `serve_with_shutdown` and `hyper`'s
    /// `graceful_shutdown` behind a `select!`. It is [`soft`](Self::soft)'s end, holds nothing else of
    /// the shutdown, and can be made and dropped at any time.
    ///
    /// # Panics
    ///
    /// When polled, as [`Context::done`], if the context that the shutdown was made of has a deadline and there
    /// is no Tokio runtime with a time driver.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tokio::net::TcpListener;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::BoxError> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let app: Router = Router::new().route("/", get("hello"));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    ///
    /// let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    /// shutdown.named("http").spawn(server.into_future());
    /// # shutdown.begin("over");
    /// shutdown.wait().await.into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`with_graceful_shutdown`]: https://docs.rs/axum/0.8/axum/serve/struct.Serve.html#method.with_graceful_shutdown
    pub fn begun(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let soft_end = self.common.soft.done_owned();
        async move {
            soft_end.await;
        }
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
        let caller = Location::caller();
        self.common.end_hard(registry::boxed(caller, cause), caller);
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
        let ticket = self.ticket_for(Kind::Task, Location::caller());
        let tracked = Tracked { future: Some(task), ticket: Some(ticket) };
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
        let ticket = self.ticket_for(Kind::Tracked, Location::caller());
        Tracked { future: Some(future), ticket: Some(ticket) }
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
        self.ticket_for(Kind::Ticket, Location::caller())
    }

    fn ticket_for(&self, kind: Kind, spawned_at: &'static Location<'static>) -> Ticket {
        let name = || self.name.clone().map(|name| Box::new(name) as registry::Name);
        let entry = Entry::named(&self.common.hard, kind, spawned_at, name);
        self.enter(Name::Given(self.name.clone()), spawned_at, entry)
    }

    /// A ticket for work that has a label of its own below the shutdown's name, written out only in a report.
    #[cfg(feature = "tower")]
    pub(crate) fn labeled_ticket(
        &self,
        label: impl fmt::Display + Send + 'static,
        spawned_at: &'static Location<'static>,
    ) -> Ticket {
        // The request registers by itself.
        let entry = Entry::in_test(&self.common.hard, Kind::Request, spawned_at);
        self.enter(Name::Labeled(self.name.clone(), Box::new(label)), spawned_at, entry)
    }

    fn enter(&self, name: Name, spawned_at: &'static Location<'static>, entry: Entry) -> Ticket {
        let work = self.common.work.clone();
        Ticket { id: work.enter(name, spawned_at), work, entry }
    }

    /// Waits for the begin, takes the shutdown through its phases, and reports.
    ///
    /// When it returns, both contexts have ended, and all work has that could be made to. Cancel-safe:
    /// dropped and called again, and called by several, it goes on from where the shutdown is.
    ///
    /// **In a task of the same shutdown**, or in a future that it tracks, it leaves that task out, which
    /// would otherwise wait for itself, and with it the others that wait in there; a wait outside includes
    /// them. What it cannot see is a [`ticket`](Self::ticket) that its caller holds, and a task that awaits
    /// this one: those it waits for until the grace and the clean-up are over.
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
        let Common { soft, hard, work, made_at, .. } = &*self.common;
        let waiter = Waiter::here(work);
        let why = soft.done().await;
        let (began, grace) = (why.origin().ended_at(), work.lock().grace);
        let mut ended = waiter.work_ends_by(Some(hard), began.checked_add(grace)).await;
        if !ended {
            let cause = Box::new(GraceOver { grace, why: why.clone() });
            self.common.end_hard(cause, made_at);
            ended = self.clean_up(&waiter).await;
        }
        let overdue = work.conclude(ended);
        hard.cancel_at(made_at, Box::new(Finished("the shutdown is over")));
        Report { why, took: Instant::now().saturating_duration_since(began), overdue }
    }

    /// From the hard end on; returns whether all work has ended.
    async fn clean_up(&self, waiter: &Waiter<'_>) -> bool {
        let Common { hard, work, .. } = &*self.common;
        let (canceled, cleanup) = (hard.done().await.origin().ended_at(), work.lock().cleanup);
        if waiter.work_ends_by(None, canceled.checked_add(cleanup)).await {
            return true;
        }
        work.abort();
        waiter.work_ends_by(None, Instant::now().checked_add(cleanup)).await
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

// What can be caught of a panic leaves them consistent: locks are held over no foreign code.
impl UnwindSafe for Shutdown {}
impl RefUnwindSafe for Shutdown {}
impl UnwindSafe for Ticket {}
impl RefUnwindSafe for Ticket {}

/// The work that is under way.
#[derive(Default)]
struct Work {
    list: Mutex<List>,
    /// Nothing is at work any more, or nothing but what waits for the rest.
    emptied: Notify,
}

struct List {
    next: u64,
    // In the order in which they came.
    running: BTreeMap<u64, Running>,
    /// How many of the running ones wait for the shutdown themselves.
    waiting: usize,
    /// A wait has come to its end: what is left are others like it, and what they do afterwards.
    over: bool,
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
            waiting: 0,
            over: false,
            overdue: BTreeMap::new(),
            aborting: false,
            grace: GRACE,
            cleanup: CLEANUP,
        }
    }
}

struct Running {
    name: Name,
    spawned_at: &'static Location<'static>,
    abort: Option<AbortHandle>,
    /// How many calls of `wait` are under way in it.
    waits: usize,
}

/// A name, and perhaps a label below it, which costs nothing until it is written.
enum Name {
    Given(Option<Arc<str>>),
    #[cfg(feature = "tower")]
    Labeled(Option<Arc<str>>, Box<dyn fmt::Display + Send>),
}

impl Name {
    fn written(&self) -> Option<Arc<str>> {
        match self {
            Name::Given(name) => name.clone(),
            #[cfg(feature = "tower")]
            Name::Labeled(name, label) => Some(below(name.as_deref(), label)),
        }
    }
}

fn below(above: Option<&str>, name: &dyn fmt::Display) -> Arc<str> {
    match above {
        Some(above) => format!("{above}/{name}").into(),
        None => name.to_string().into(),
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, name: Name, spawned_at: &'static Location<'static>) -> u64 {
        let mut list = self.lock();
        let id = list.next;
        list.next += 1;
        list.running.insert(id, Running { name, spawned_at, abort: None, waits: 0 });
        id
    }

    fn leave(&self, id: u64) {
        let mut list = self.lock();
        let left = list.running.remove(&id);
        list.waiting -= usize::from(left.as_ref().is_some_and(|left| left.waits > 0));
        let emptied = list.has_ended(true);
        drop(list);
        drop(left);
        if emptied {
            self.emptied.notify_waiters();
        }
    }

    /// Keeps the handle that aborts a task, which may be over by now.
    fn attach(&self, id: u64, handle: AbortHandle) {
        let mut list = self.lock();
        if list.aborting {
            drop(list);
            handle.abort();
        } else if let Some(running) = list.running.get_mut(&id) {
            running.abort = Some(handle);
        }
    }

    /// Takes those at work down as overdue.
    fn mark(&self) {
        self.lock().mark();
    }

    /// Aborts those at work that can be.
    fn abort(&self) {
        let mut list = self.lock();
        list.mark();
        list.aborting = true;
        let List { running, overdue, .. } = &mut *list;
        let mut handles = Vec::new();
        for (id, running) in running.iter_mut().filter(|(_, running)| running.waits == 0) {
            if let (Some(overdue), Some(handle)) = (overdue.get_mut(id), running.abort.take()) {
                overdue.fate = Fate::Aborted;
                handles.push(handle);
            }
        }
        drop(list);
        for handle in handles {
            handle.abort();
        }
    }

    /// Notes that a wait is over; returns what had not ended in time, and what has become of it by now.
    ///
    /// What ends it is one look at the list: a task that waited as well then, and runs on since, is not late.
    fn conclude(&self, ended: bool) -> Vec<Overdue> {
        let mut list = self.lock();
        list.over = true;
        if !ended {
            list.mark();
        }
        let by_now = |(id, overdue): (&u64, &Overdue)| {
            let fate = if list.running.contains_key(id) { Fate::Running } else { overdue.fate };
            Overdue { fate, ..overdue.clone() }
        };
        let overdue = list.overdue.iter().map(by_now).collect();
        drop(list);
        self.emptied.notify_waiters();
        overdue
    }
}

impl List {
    /// Whether no work is left; for a wait that is part of the work, none but such waits.
    fn has_ended(&self, inside: bool) -> bool {
        if inside { self.over || self.running.len() == self.waiting } else { self.running.is_empty() }
    }

    /// What waits for the rest is not late, as the rest is.
    fn mark(&mut self) {
        for (id, running) in self.running.iter().filter(|(_, running)| running.waits == 0) {
            self.overdue.entry(*id).or_insert_with(|| {
                let (name, spawned_at) = (running.name.written(), running.spawned_at);
                Overdue { name, spawned_at, fate: Fate::Canceled }
            });
        }
    }
}

thread_local! {
    /// What this thread is polling: the work that has the list of that address, by its id.
    static AT_WORK: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Says that a ticket's work is being polled, until it is dropped.
pub(crate) struct AtWork<'a> {
    _polling: Polling<'a>,
}

impl AtWork<'_> {
    fn new(ticket: &Ticket) -> AtWork<'_> {
        let frame = (address(&ticket.work), ticket.id);
        let _no_thread_local = AT_WORK.try_with(|frames| frames.borrow_mut().push(frame));
        AtWork { _polling: ticket.entry.polling() }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let _no_thread_local = AT_WORK.try_with(|frames| frames.borrow_mut().pop());
    }
}

fn address(work: &Arc<Work>) -> usize {
    Arc::as_ptr(work).addr()
}

/// A call of [`Shutdown::wait`], which may be part of the work that it waits for.
struct Waiter<'a> {
    work: &'a Work,
    /// The work that it is part of: mostly none, and more than one if tracked futures nest.
    within: Vec<u64>,
}

impl<'a> Waiter<'a> {
    /// For the task that is being polled.
    fn here(work: &'a Arc<Work>) -> Waiter<'a> {
        let frames = |frames: &RefCell<Vec<(usize, u64)>>| {
            let ours = |frame: &&(usize, u64)| frame.0 == address(work);
            frames.borrow().iter().filter(ours).map(|frame| frame.1).collect()
        };
        let waiter = Waiter { work, within: AT_WORK.try_with(frames).unwrap_or_default() };
        waiter.count(|waits| *waits += 1);
        waiter
    }

    /// Changes the count of waits of all that it is part of.
    fn count(&self, change: impl Fn(&mut usize)) {
        if !self.is_inside() {
            return;
        }
        let mut list = self.work.lock();
        for id in &self.within {
            if let Some(running) = list.running.get_mut(id) {
                change(&mut running.waits);
            }
        }
        list.waiting = list.running.values().filter(|running| running.waits > 0).count();
        let emptied = list.has_ended(true);
        drop(list);
        if emptied {
            self.work.emptied.notify_waiters();
        }
    }

    fn is_inside(&self) -> bool {
        !self.within.is_empty()
    }

    /// Waits until the work has ended, but no longer than until `ctx` ends or that time; returns whether it has.
    async fn work_ends_by(&self, ctx: Option<&Context>, at: Option<Instant>) -> bool {
        let has_ended = || self.work.lock().has_ended(self.is_inside());
        let mut emptied = pin!(async {
            loop {
                // Before the look: it hears of all that leaves from its making on.
                let notified = self.work.emptied.notified();
                if has_ended() {
                    return;
                }
                notified.await;
            }
        });
        let mut ctx_end = pin!(async {
            match ctx {
                Some(ctx) => drop(ctx.done().await),
                None => pending().await,
            }
        });
        // Tokio's timer rounds up: what lies at the very end of time would overflow there.
        let at = at.filter(|at| at.checked_add(Duration::from_secs(1)).is_some());
        let mut over = pin!(async {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        });
        poll_fn(|cx| {
            if emptied.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            if ctx_end.as_mut().poll(cx).is_ready() || over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(has_ended());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.count(|waits| *waits -= 1);
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
        let at_work = this.ticket.as_ref().map(Ticket::at_work);
        let output = ready!(future.poll(cx));
        drop(at_work);
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
    entry: Entry,
}

impl Ticket {
    /// To be held while its work is polled: a wait in there leaves it out.
    pub(crate) fn at_work(&self) -> AtWork<'_> {
        AtWork::new(self)
    }
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
/// It prints why the shutdown began, and [`cause_as`](Error::cause_as) looks there as well.
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

    /// Why the shutdown began: the soft context's error.
    pub fn why(&self) -> &Error {
        &self.why
    }
}

impl fmt::Display for GraceOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grace of {:?} is over: {}", self.grace, self.why)
    }
}

impl StdError for GraceOver {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.why.source()
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
#[derive(Clone)]
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

/// The line of `Display`, then what its cause came from; `{:#?}` shows the fields.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt_with_sources(self, f);
        }
        f.debug_struct("Report")
            .field("why", &self.why)
            .field("took", &self.took)
            .field("overdue", &self.overdue)
            .finish()
    }
}

impl StdError for Report {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.why.source()
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
    name: Option<Arc<str>>,
    spawned_at: &'static Location<'static>,
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
        self.name.as_deref()
    }

    /// The line that spawned or tracked it.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.spawned_at
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
