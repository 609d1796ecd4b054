//! [`Shutdown`]: graceful shutdown of a service. It stops taking work, cancels the work that is left after a grace
//! period, and reports which work did not end in time.
//!
//! # The phases
//!
//! | phase | begins | what happens |
//! |---|---|---|
//! | running | with [`Shutdown::new`] | |
//! | soft | with [`begin`](Shutdown::begin), or when the parent context ends, for example on a signal | [`soft`](Shutdown::soft) ends: accept loops, consumers and schedulers stop taking work |
//! | hard | after the [`grace`](Shutdown::grace) period, or with [`force`](Shutdown::force) | [`hard`](Shutdown::hard) ends: the remaining work is canceled, and cleans up |
//! | abort | after the [`cleanup`](Shutdown::cleanup) time | tasks of [`spawn`](Shutdown::spawn) are aborted where they await |
//! | report | when all work has ended, or after another `cleanup` time | [`wait`](Shutdown::wait) returns the [`Report`] |
//!
//! Each phase ends early when no work is left. `wait` therefore takes at most the grace period plus twice the
//! cleanup time after the shutdown has begun. Choose them so that this is less than what the service manager
//! allows (`docker stop`: 10 s; Kubernetes: 30 s; systemd: 90 s).
//!
//! # When to use it
//!
//! Use one shutdown per program, in `main`. For the parts of a request or a job use a [`Group`], which has
//! results and errors. Work takes part in a shutdown as a task of [`spawn`](Shutdown::spawn), as a future that
//! other code runs ([`track`](Shutdown::track)), or by holding a [`ticket`](Shutdown::ticket).
//!
//! | | `Shutdown` | [tokio-graceful-shutdown] 0.19 | tokio-util's [`TaskTracker`] 0.7 |
//! |---|---|---|---|
//! | separate signals for *stop taking work* and *stop* | yes, two contexts | one signal, which tasks await | no: it only waits; use a `CancellationToken` with it |
//! | reports why and where it began | yes | errors of subsystems | no |
//! | grace period | yes, then a cancel, then an abort | yes, then an abort | no: `timeout` around `wait` |
//! | reports work that did not end | by name and line | by name, in the log | a count |
//! | futures that other code runs, and threads | any future, tickets | its own tasks | any future, tokens |
//! | partial shutdown | a context derived from `hard` and a [`Group`] | nested subsystems | a separate tracker |
//! | a failure begins the shutdown | if the task calls [`begin`](Shutdown::begin) | automatically, panics too | no |
//! | signals | any context that ends on a signal | `catch_signals` | no |
//! | errors of the work | in `JoinHandle`s | collected in one error | in `JoinHandle`s |
//! | can be used again | no | no | yes, `reopen` |
//!
//! [`ServerLayer::with_shutdown`]: ../wire/struct.ServerLayer.html#method.with_shutdown
//! [A service that drains]: ../guide/services/index.html
//! [tokio-graceful-shutdown]: https://docs.rs/tokio-graceful-shutdown
//! [`TaskTracker`]: https://docs.rs/tokio-util/latest/tokio_util/task/struct.TaskTracker.html
//! [`Group`]: crate::Group
//!
//! # On a signal
//!
//! The module [`signal`](../signal/index.html) (feature `signal`) has a context that ends on a signal. A
//! complete `main`:
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
//!     Ok(shutdown.wait().await.into_result()?) // An error if some work did not end in time.
//! }
//! ```
//!
//! [A service that drains] shows complete programs with axum and tonic.
//!
//! A second signal ends the process immediately, in any phase. This can be turned off, in order to call
//! [`force`](Shutdown::force) on the second signal instead.
//!
//! # When a part fails
//!
//! A task that panics or returns an error does not begin the shutdown by itself. For an essential part of the service,
//! spawn a second task that begins the shutdown when the part ends for any reason:
//!
//! ```
//! use std::io;
//! use tokio::task::JoinHandle;
//! use tokio_ctx::{Context, Shutdown};
//!
//! async fn must_run(shutdown: Shutdown, part: JoinHandle<io::Result<()>>) {
//!     match part.await {
//!         Ok(Ok(())) => shutdown.begin("an essential part has ended"),
//!         Ok(Err(failed)) => shutdown.begin(failed),
//!         Err(panicked) => shutdown.begin(panicked),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let shutdown = Shutdown::new(&Context::background());
//! let consumer = async { Err(io::ErrorKind::BrokenPipe.into()) };
//! let consumer = shutdown.named("consumer").spawn(consumer);
//! shutdown.spawn(must_run(shutdown.clone(), consumer));
//!
//! let report = shutdown.wait().await;
//! assert!(report.why().cause_as::<io::Error>().is_some());
//! # }
//! ```
//!
//! # Traps
//!
//! - **[`wait`](Shutdown::wait) has to be awaited.** It drives the phases; without it, the grace period never ends. It
//!   should be the last thing that `main` awaits.
//! - **Spawn or track accept loops too.** Otherwise `wait` may find no work and return before the loop has noticed the
//!   shutdown, and will not wait for work that the loop spawns after that.
//! - **Idle connections**, which wait for their next request, count as work, and take up the entire grace period unless
//!   they observe [`soft`](Shutdown::soft) while waiting: `shutdown.soft().run(read_request()).await`.
//! - **Tasks have to observe the context.** Until the abort phase, a task is not stopped. `hard` is the
//!   [current](Context::current) context of a task of `spawn`; use `ctx.run(work)`.
//! - **Servers that spawn tasks themselves** (axum's `serve`, tonic) end when all their connections have ended. If they
//!   are aborted, those connections continue. [`ServerLayer::with_shutdown`] makes each request part of the shutdown, so
//!   that it is canceled in time and named in the report. See [A service that drains].
//! - **Calling `wait` in a task of the same shutdown** excludes that task from the wait, but not other tasks that
//!   await it, nor a ticket that it holds. Those keep it waiting until the grace period and the cleanup time are over.
//! - **Threads and `spawn_blocking` cannot be aborted.** With a [`ticket`](Shutdown::ticket), the shutdown waits for them
//!   and reports them. They should [`check`](Context::check) the context. A runtime waits for its blocking tasks when it
//!   is dropped. If the report names such a task, exit the process, or use `Runtime::shutdown_background`.

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
use tokio::time::Instant;

use super::sleep::sleep_until;
use crate::context::registered::{Polling, Registered};
use crate::context::{CancelScope, Context};
use crate::error::{BoxError, Error, Place, fmt_with_sources};
use crate::finished::Finished;
use crate::registry::{self, Kind};

#[cfg(feature = "watch")]
pub(crate) mod probe;

/// Returns the probe through which a watch reads the shutdown.
fn probe(soft: &Context, hard: &Context, work: &Arc<Work>) -> Option<registry::Probe> {
    let _ = (soft, hard, work);
    #[cfg(feature = "watch")]
    return probe::Probe::of(soft, hard, work);
    #[cfg(not(feature = "watch"))]
    None
}

const GRACE: Duration = Duration::from_secs(8);
const CLEANUP: Duration = Duration::from_secs(1);

/// Graceful shutdown of a service: stops taking work, waits for a grace period, cancels, and reports.
///
/// This is a handle; clones refer to the same shutdown. When the last one is dropped, both contexts end. See
/// the [module](crate::shutdown) for the phases and the traps.
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
/// // In a program, this happens on a signal, or when an essential part fails.
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
    // Separate from the scopes, so that work keeps the list alive, but not the contexts.
    work: Arc<Work>,
    _registered: Registered,
}

impl Shutdown {
    /// Creates a shutdown that begins when `ctx` ends, or with [`begin`](Self::begin).
    ///
    /// Both its contexts have the values of `ctx`. The soft context also has its deadline. By default, the
    /// [`grace`](Self::grace) period is 8 seconds and the [`cleanup`](Self::cleanup) time is 1 second, so that
    /// a shutdown takes at most 10 seconds, the default of `docker stop`.
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
        // The grace period and the cleanup time start at the ends of these contexts.
        [&soft, &hard]
            .into_iter()
            .filter_map(|scope| scope.token())
            .for_each(|token| token.record_end_time());
        let (made_at, work) = (Location::caller(), Arc::default());
        let probe = || (None, probe(&soft, &hard, &work));
        let registered = Registered::probed(&hard, Kind::Shutdown, made_at, probe);
        Shutdown {
            common: Arc::new(Common { soft, hard, made_at, work, _registered: registered }),
            name: None,
        }
    }

    /// Sets how long work may continue after the shutdown has begun, before it is canceled.
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

    /// Sets how long canceled work may clean up before it is aborted, and how long to wait for aborted work
    /// after that.
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

    /// Returns a handle of the same shutdown whose work is named in the report. Names can be nested.
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
        let name = nested_name(self.name.as_deref(), &name);
        Shutdown { common: self.common.clone(), name: Some(name) }
    }

    /// Returns the context that ends when the shutdown begins. Code that takes new work should observe it.
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

    /// Returns a future that resolves when the shutdown begins. Servers take it as their signal to stop
    /// accepting.
    ///
    /// It can be passed to axum's [`with_graceful_shutdown`] and tonic's `serve_with_shutdown`, and used with
    /// hyper's `graceful_shutdown` in a `select!`. It waits for the end of [`soft`](Self::soft).
    ///
    /// # Panics
    ///
    /// The future panics when polled, like [`Context::done`], if the parent context has a deadline and there is
    /// no Tokio runtime with a time driver.
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

    /// Returns the context that ends when work in progress has to stop. Derive the contexts of requests and
    /// jobs from it.
    ///
    /// It is the [`current`](Context::current) context of the tasks of [`spawn`](Self::spawn). When the grace
    /// period is over, the cause of its end is [`GraceOver`], which contains the reason why the shutdown began.
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

    /// Begins the shutdown, with a cause.
    ///
    /// If the shutdown has already begun, this has no effect, and does not shorten the grace period. To end the
    /// grace period early, for example on a second Ctrl-C, use [`force`](Self::force). It can be called from
    /// any thread.
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

    /// Cancels all work immediately: ends both contexts, without a grace period. It can be called from any
    /// thread.
    ///
    /// ```no_run
    /// use tokio::signal::ctrl_c;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let handle = shutdown.clone();
    /// tokio::spawn(async move {
    ///     ctrl_c().await.expect("a handler");
    ///     handle.begin("Ctrl-C");
    ///     ctrl_c().await.expect("a handler");
    ///     handle.force("second Ctrl-C");
    /// });
    /// println!("{}", shutdown.wait().await);
    /// # }
    /// ```
    #[track_caller]
    pub fn force(&self, cause: impl Into<BoxError>) {
        let caller = Location::caller();
        self.common.end_hard(registry::boxed(caller, cause), caller);
    }

    /// Spawns a task that the shutdown waits for, with [`hard`](Self::hard) as its
    /// [`current`](Context::current) context.
    ///
    /// The task is spawned in every phase. Its result, including a panic, is returned by the handle, as with
    /// [`tokio::spawn`]. It does not appear in the report, and does not [begin the
    /// shutdown](crate::shutdown#when-a-part-fails). The handle can be dropped.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`].
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
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
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

    /// Wraps a future so that the shutdown waits until it resolves or is dropped. tokio-util's
    /// `TaskTracker::track_future`.
    ///
    /// The future has to be polled by the caller. The shutdown waits for it from this call on, even if it is
    /// never polled.
    ///
    /// ```
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # async fn respond() -> &'static str { "hello" }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// // In a middleware: the shutdown waits for the response, and cancels it when `hard` ends.
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

    /// Returns a ticket: the shutdown waits until it is dropped. tokio-util's `TaskTracker::token`.
    ///
    /// Use it for work that is not a future, such as a thread or `spawn_blocking`.
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
        let registered = Registered::named(&self.common.hard, kind, spawned_at, name);
        self.add(Name::Given(self.name.clone()), spawned_at, registered)
    }

    /// Returns a ticket with a label below the shutdown's name. The label is formatted only for the report.
    #[cfg(feature = "tower")]
    pub(crate) fn labeled_ticket(
        &self,
        label: impl fmt::Display + Send + 'static,
        spawned_at: &'static Location<'static>,
    ) -> Ticket {
        // The request registers by itself.
        let registered = Registered::in_test(&self.common.hard, Kind::Request, spawned_at);
        self.add(Name::Labeled(self.name.clone(), Box::new(label)), spawned_at, registered)
    }

    fn add(&self, name: Name, spawned_at: &'static Location<'static>, registered: Registered) -> Ticket {
        let work = self.common.work.clone();
        Ticket { id: work.add(name, spawned_at), work, registered }
    }

    /// Waits until the shutdown begins, drives it through its phases, and returns the report.
    ///
    /// When this returns, both contexts have ended, and so has all work that could be stopped.
    ///
    /// When called within a task of the same shutdown, or a future that it tracks, this does not wait for that
    /// task, which would be waiting for itself, nor for other tasks that call `wait`. A call from outside waits
    /// for all of them. A [`ticket`](Self::ticket) that the calling task holds, or another task that awaits the
    /// calling one, cannot be detected. They delay the return until the grace period and the cleanup time are
    /// over.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. It can be dropped and called again, and called from several tasks.
    ///
    /// # Panics
    ///
    /// Panics if there is no Tokio runtime with a time driver, like [`tokio::time::sleep`].
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
    /// shutdown.named("poll").spawn(std::future::pending::<()>()); // Ignores its context.
    ///
    /// shutdown.begin("SIGTERM");
    /// let report = shutdown.wait().await;
    /// assert_eq!(report.overdue().len(), 1);
    /// assert_eq!(report.overdue()[0].name(), Some("poll"));
    /// assert_eq!(report.overdue()[0].fate(), Fate::Aborted);
    /// # }
    /// ```
    ///
    /// [`tokio::time::sleep`]: https://docs.rs/tokio/1/tokio/time/fn.sleep.html
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

    /// Waits for canceled work, and aborts it after the cleanup time. Returns whether all work has ended.
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
    /// Records the running work as overdue, and then ends the hard context. The order matters, because the work
    /// may end immediately. A second call waits until the first one has canceled all work.
    fn end_hard(&self, cause: BoxError, place: &'static Location<'static>) {
        if !self.hard.is_done() {
            self.work.record_overdue();
        }
        self.hard.cancel_at(place, cause);
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

// A panic cannot leave them in an inconsistent state, because no foreign code runs under a lock.
impl UnwindSafe for Shutdown {}
impl RefUnwindSafe for Shutdown {}
impl UnwindSafe for Ticket {}
impl RefUnwindSafe for Ticket {}

/// The work in progress.
#[derive(Default)]
struct Work {
    list: Mutex<List>,
    /// Notified when no work is left, or only work that waits for the shutdown itself.
    emptied: Notify,
}

struct List {
    next: u64,
    // In the order in which the work was added.
    running: BTreeMap<u64, Running>,
    /// The number of entries in `running` that call `wait` themselves.
    waiting: usize,
    /// A `wait` has returned. Only other calls of `wait`, and work that follows them, are left.
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
    /// The number of calls of `wait` in this work.
    waits: usize,
}

/// A name, possibly with a label that is formatted only when needed.
enum Name {
    Given(Option<Arc<str>>),
    #[cfg(feature = "tower")]
    Labeled(Option<Arc<str>>, Box<dyn fmt::Display + Send>),
}

impl Name {
    fn to_text(&self) -> Option<Arc<str>> {
        match self {
            Name::Given(name) => name.clone(),
            #[cfg(feature = "tower")]
            Name::Labeled(name, label) => Some(nested_name(name.as_deref(), label)),
        }
    }
}

fn nested_name(above: Option<&str>, name: &dyn fmt::Display) -> Arc<str> {
    match above {
        Some(above) => format!("{above}/{name}").into(),
        None => name.to_string().into(),
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: Name, spawned_at: &'static Location<'static>) -> u64 {
        let mut list = self.lock();
        let id = list.next;
        list.next += 1;
        list.running.insert(id, Running { name, spawned_at, abort: None, waits: 0 });
        id
    }

    fn remove(&self, id: u64) {
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

    /// Stores the abort handle of a task, which may have ended already.
    fn attach(&self, id: u64, handle: AbortHandle) {
        let mut list = self.lock();
        if list.aborting {
            drop(list);
            handle.abort();
        } else if let Some(running) = list.running.get_mut(&id) {
            running.abort = Some(handle);
        }
    }

    /// Records the running work as overdue.
    fn record_overdue(&self) {
        self.lock().record_overdue();
    }

    /// Aborts the tasks that are still running.
    fn abort(&self) {
        let mut list = self.lock();
        list.record_overdue();
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

    /// Marks a wait as over, and returns the work that had not ended in time, with its current fate.
    ///
    /// The list is read once. A task that was also calling `wait` at that time, and has continued since, is not
    /// overdue.
    fn conclude(&self, ended: bool) -> Vec<Overdue> {
        let mut list = self.lock();
        list.over = true;
        if !ended {
            list.record_overdue();
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
    /// Returns whether no work is left. For a wait inside of the work, calls of `wait` do not count.
    fn has_ended(&self, inside: bool) -> bool {
        if inside { self.over || self.running.len() == self.waiting } else { self.running.is_empty() }
    }

    /// Records the running work as overdue, except for work that waits for the shutdown itself.
    fn record_overdue(&mut self) {
        for (id, running) in self.running.iter().filter(|(_, running)| running.waits == 0) {
            self.overdue.entry(*id).or_insert_with(|| {
                let (name, spawned_at) = (running.name.to_text(), running.spawned_at);
                Overdue { name, spawned_at, fate: Fate::Canceled }
            });
        }
    }
}

thread_local! {
    /// The work that this thread is polling: the address of its list, and its ID.
    static AT_WORK: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Marks the work of a ticket as being polled by this thread, until dropped.
pub(crate) struct AtWork<'a> {
    _polling: Polling<'a>,
}

impl AtWork<'_> {
    fn new(ticket: &Ticket) -> AtWork<'_> {
        let frame = (address(&ticket.work), ticket.id);
        let _no_thread_local = AT_WORK.try_with(|frames| frames.borrow_mut().push(frame));
        AtWork { _polling: ticket.registered.polling() }
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
    /// The work that contains this call: usually none, and more than one entry if tracked futures are nested.
    within: Vec<u64>,
}

impl<'a> Waiter<'a> {
    /// Creates the waiter of the task that is being polled.
    fn here(work: &'a Arc<Work>) -> Waiter<'a> {
        let frames = |frames: &RefCell<Vec<(usize, u64)>>| {
            let ours = |frame: &&(usize, u64)| frame.0 == address(work);
            frames.borrow().iter().filter(ours).map(|frame| frame.1).collect()
        };
        let waiter = Waiter { work, within: AT_WORK.try_with(frames).unwrap_or_default() };
        waiter.count(|waits| *waits += 1);
        waiter
    }

    /// Changes the number of waits of the work that contains this call.
    fn count(&self, change: impl Fn(&mut usize)) {
        if !self.is_inside() {
            return;
        }
        let mut list = self.work.lock();
        let List { running, waiting, .. } = &mut *list;
        for id in &self.within {
            let Some(running) = running.get_mut(id) else { continue };
            *waiting -= usize::from(running.waits > 0);
            change(&mut running.waits);
            *waiting += usize::from(running.waits > 0);
        }
        let emptied = list.has_ended(true);
        drop(list);
        if emptied {
            self.work.emptied.notify_waiters();
        }
    }

    fn is_inside(&self) -> bool {
        !self.within.is_empty()
    }

    /// Waits until the work has ended, `ctx` ends, or the given time. Returns whether the work has ended.
    async fn work_ends_by(&self, ctx: Option<&Context>, at: Option<Instant>) -> bool {
        let has_ended = || self.work.lock().has_ended(self.is_inside());
        let mut emptied = pin!(async {
            loop {
                // Created before the check, so that no notification is missed.
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
        let mut over = pin!(sleep_until(at));
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
    /// Future for [`Shutdown::track`], which a shutdown waits for.
    ///
    /// # Panics
    ///
    /// Panics when polled again after it has resolved.
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
        // Dropped before the ticket, so that everything it owns is gone when the shutdown continues.
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

/// A [`Shutdown`] waits until all tickets are dropped. Returned by [`Shutdown::ticket`].
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
    registered: Registered,
}

impl Ticket {
    /// Returns a guard to hold while the work is polled, so that a `wait` inside does not wait for it.
    pub(crate) fn at_work(&self) -> AtWork<'_> {
        AtWork::new(self)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.work.remove(self.id);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.id).finish()
    }
}

/// The cause of the hard context's end when the grace period is over.
///
/// Its `Display` includes the reason why the shutdown began, and [`cause_as`](Error::cause_as) finds that
/// reason, too.
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
    /// Returns the length of the grace period.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Returns why the shutdown began: the error of the soft context.
    pub fn why(&self) -> &Error {
        &self.why
    }
}

impl fmt::Display for GraceOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grace period of {:?} is over: {}", self.grace, self.why)
    }
}

impl StdError for GraceOver {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.why.source()
    }
}

/// Report of a shutdown: why it began, how long it took, and which work did not end in time.
///
/// Its [`Display`](fmt::Display) is one line, suitable for a log.
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
#[must_use = "the report names the work that did not end in time"]
pub struct Report {
    why: Error,
    took: Duration,
    overdue: Vec<Overdue>,
}

impl Report {
    /// Returns whether all work ended by itself, within the grace period.
    pub fn is_clean(&self) -> bool {
        self.overdue.is_empty()
    }

    /// Returns why the shutdown began: the error of the soft context.
    pub fn why(&self) -> &Error {
        &self.why
    }

    /// Returns how long the shutdown took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the work that was still running when the hard context ended, in the order in which it was
    /// started.
    pub fn overdue(&self) -> &[Overdue] {
        &self.overdue
    }

    /// Converts the report into a result that `main` can return.
    ///
    /// # Errors
    ///
    /// Returns the report unless it [is clean](Self::is_clean).
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

/// Prints the line of `Display`, then the sources of the cause. `{:#?}` shows the fields.
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

/// What happened to work that did not end in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// It ended within the cleanup time, after it had been canceled.
    Canceled,
    /// It was aborted.
    Aborted,
    /// It is still running, because it is not a task of [`Shutdown::spawn`], or never awaits.
    Running,
}

impl Overdue {
    /// Returns the [name](Shutdown::named), if there is one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the line that spawned or tracked the work.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.spawned_at
    }

    /// Returns what happened to the work.
    pub fn fate(&self) -> Fate {
        self.fate
    }
}

/// Prints a line such as `http/GET /slow (spawned at src/main.rs:12): aborted`.
impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, fate) = (Place(self.spawned_at()), self.fate);
        match self.name().filter(|name| !name.is_empty()) {
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
