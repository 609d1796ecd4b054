//! [`Context`]: derive, ask, wait.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::after_func::{AfterFunc, after_func};
use crate::done::{Done, DoneOwned};
use crate::error::{BoxError, Error, Place};
use crate::run::{Run, TryRun};
use crate::scope::CancelScope;
#[cfg(feature = "test-util")]
use crate::testing::Entry;
use crate::token::sync::now;
use crate::token::{Limit, Token};
use crate::value::Values;

/// Cancellation, a deadline and request-scoped values, for one piece of work and all it calls.
///
/// A context is derived from another and ends with it, or before: the `with_…` methods return a
/// [`CancelScope`], which is the new context and the right to cancel it. Pass it down by reference, as Go
/// does, or let it flow along with the task ([`scope`](Self::scope), [`current`](Self::current)). A
/// clone is the same context; it costs a reference count or two. The counterpart of Go's
/// `context.Context`.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let request = Context::background().with_timeout(Duration::from_millis(500));
/// let step = request.with_timeout(Duration::from_millis(50));
///
/// tokio::select! {
///     stopped = step.done() => println!("{stopped}"),
///     _ = tokio::time::sleep(Duration::from_secs(1)) => unreachable!(),
/// }
/// assert!(step.is_done());
/// assert!(!request.is_done());
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Context {
    token: Option<Arc<Token>>,
    values: Values,
    todo: bool,
}

// Derive.
impl Context {
    /// The root: never done, no deadline, no values. Go's `context.Background()`.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// static ROOT: Context = Context::background();
    /// assert!(!ROOT.is_done());
    /// ```
    pub const fn background() -> Context {
        Context { token: None, values: Values::NONE, todo: false }
    }

    /// The background, for where it is not clear yet which context to use; `Debug` and `Display` say so.
    /// Go's `context.TODO()`.
    ///
    /// ```
    /// assert_eq!(tokio_ctx::Context::todo().to_string(), "context todo");
    /// ```
    pub const fn todo() -> Context {
        Context { token: None, values: Values::NONE, todo: true }
    }

    /// A child that ends when it is canceled or its scope dropped, or with this context. Go's
    /// `context.WithCancel`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel();
    /// assert!(ctx.is_done());
    /// ```
    #[track_caller]
    pub fn with_cancel(&self) -> CancelScope {
        self.derive(Token::new(self.token(), None, Location::caller()))
    }

    /// A child that also ends at a point in time.
    ///
    /// The earlier of this deadline and the one that this context has counts, and tells the story. In
    /// the past: it has ended at birth. So far off that the clock cannot express it: no deadline of its
    /// own. Go's `context.WithDeadline`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    /// use tokio_ctx::Context;
    ///
    /// let at = Instant::now() + Duration::from_secs(3);
    /// let ctx = Context::background().with_deadline(at);
    /// assert_eq!(ctx.deadline(), Some(at));
    /// ```
    #[track_caller]
    pub fn with_deadline(&self, at: Instant) -> CancelScope {
        self.derive(Token::new(self.token(), until(at, None), Location::caller()))
    }

    /// A child that also ends when this much time has passed. Go's `context.WithTimeout`.
    ///
    /// Zero: it has ended at birth. `None`, [`Duration::MAX`], and whatever else the clock cannot express: no
    /// deadline of its own, so that an optional limit needs no branch. On Linux and macOS the clock stands still
    /// while the machine is suspended: [Traps](guide/traps/index.html#a-machine-that-sleeps).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(250));
    /// assert!(ctx.remaining().unwrap() <= Duration::from_millis(250));
    ///
    /// let limit: Option<Duration> = None; // Of a configuration.
    /// let step = ctx.with_timeout(limit);
    /// assert_eq!(step.deadline(), ctx.deadline());
    /// ```
    #[track_caller]
    pub fn with_timeout(&self, after: impl Into<Option<Duration>>) -> CancelScope {
        self.derive(Token::new(self.token(), budget(after.into(), None), Location::caller()))
    }

    /// [`with_deadline`](Self::with_deadline), with the cause that the error is to have if this
    /// deadline ends it. Go's `context.WithDeadlineCause`.
    ///
    /// ```
    /// use tokio::time::Instant;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_deadline_cause(Instant::now(), "shop closes");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "shop closes");
    /// ```
    #[track_caller]
    pub fn with_deadline_cause(&self, at: Instant, cause: impl Into<BoxError>) -> CancelScope {
        let limit = until(at, Some(cause.into()));
        self.derive(Token::new(self.token(), limit, Location::caller()))
    }

    /// [`with_timeout`](Self::with_timeout), with the cause that the error is to have if this timeout
    /// ends it. Go's `context.WithTimeoutCause`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout_cause(Duration::ZERO, "index too slow");
    /// assert!(ctx.err().unwrap().to_string().ends_with(": index too slow"));
    /// ```
    #[track_caller]
    pub fn with_timeout_cause(
        &self,
        after: impl Into<Option<Duration>>,
        cause: impl Into<BoxError>,
    ) -> CancelScope {
        let limit = budget(after.into(), Some(cause.into()));
        self.derive(Token::new(self.token(), limit, Location::caller()))
    }

    /// A child that is told to have been made at that line, for those whose own line says nothing.
    #[cfg(feature = "http")]
    pub(crate) fn child_made_at(
        &self,
        made_at: &'static Location<'static>,
        limit: Option<(Duration, BoxError)>,
    ) -> CancelScope {
        let limit = limit.and_then(|(after, cause)| budget(Some(after), Some(cause)));
        self.derive(Token::new(self.token(), limit, made_at))
    }

    /// A context that carries `value` as well, found by its type. Go's `context.WithValue`.
    ///
    /// It is the same context otherwise: it ends when this one does. A private newtype is a private
    /// key; a value of a type that is there already hides the older one. Values are for what a request
    /// carries across borders (its id, who it is for), not for parameters. [Traps](guide/traps/index.html) has
    /// more of what follows, and [A service that drains](guide/services/index.html) a middleware that sets a value.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// let ctx = Context::background().with_value(RequestId(7));
    /// assert_eq!(ctx.value::<RequestId>().unwrap().0, 7);
    ///
    /// // The type is the exact one: a literal is a `&'static str`, and no `String`.
    /// let ctx = ctx.with_value("alice");
    /// assert!(ctx.value::<String>().is_none());
    /// assert_eq!(ctx.value::<&str>(), Some(&"alice"));
    /// ```
    pub fn with_value<T: Send + Sync + 'static>(&self, value: T) -> Context {
        Context { token: self.token.clone(), values: self.values.with(value), todo: self.todo }
    }

    /// A context with the same values that never ends: for what must be finished even so. Go's
    /// `context.WithoutCancel`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn write_audit_log(_: &Context) {}
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value("alice").with_cancel();
    /// ctx.cancel();
    ///
    /// let cleanup = ctx.without_cancel().with_timeout(Duration::from_secs(5));
    /// assert!(!cleanup.is_done());
    /// assert_eq!(cleanup.value::<&str>(), Some(&"alice"));
    /// write_audit_log(&cleanup).await;
    /// # }
    /// ```
    pub fn without_cancel(&self) -> Context {
        Context { token: None, values: self.values.clone(), todo: self.todo }
    }

    fn derive(&self, token: Arc<Token>) -> CancelScope {
        Context::scope_of(token, self.values.clone(), self.todo)
    }

    pub(crate) fn scope_of(token: Arc<Token>, values: Values, todo: bool) -> CancelScope {
        CancelScope::new(Context { token: Some(token), values, todo })
    }

    /// [`with_value`](Self::with_value), in place.
    pub(crate) fn add_value<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values = self.values.with(value);
    }

    pub(crate) fn token(&self) -> Option<&Arc<Token>> {
        self.token.as_ref()
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    pub(crate) fn is_todo(&self) -> bool {
        self.todo
    }
}

/// The limit of a context that ends when this much time has passed.
fn budget(after: Option<Duration>, cause: Option<BoxError>) -> Option<Limit> {
    let after = after?;
    let now = now();
    limit(now.checked_add(after)?, now, after, cause)
}

/// The limit of a context that ends at that time.
fn until(at: Instant, cause: Option<BoxError>) -> Option<Limit> {
    let now = now();
    limit(at, now, at.saturating_duration_since(now), cause)
}

fn limit(at: Instant, now: Instant, budget: Duration, cause: Option<BoxError>) -> Option<Limit> {
    // Tokio's timer rounds up: what lies at the very end of time would overflow there.
    at.checked_add(Duration::from_secs(1))?;
    Some(Limit { at, now, budget, cause })
}

// Ask.
impl Context {
    /// When it will end at the latest: the earliest deadline on its path. Go's `ctx.Deadline()`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let parent = Context::background().with_timeout(Duration::from_secs(1));
    /// let child = parent.with_timeout(Duration::from_secs(60));
    /// assert_eq!(child.deadline(), parent.deadline());
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        self.token.as_ref()?.deadline()
    }

    /// The time left until the deadline, zero once it has passed; `None` if there is no deadline.
    ///
    /// A context that was cancelled before its deadline still has time left.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// assert_eq!(Context::background().remaining(), None);
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(ctx.remaining(), Some(Duration::ZERO));
    /// ```
    pub fn remaining(&self) -> Option<Duration> {
        Some(self.deadline()?.saturating_duration_since(now()))
    }

    /// Whether it has ended.
    ///
    /// A few atomic loads, never a lock; with a deadline, a look at the clock besides. tokio-util's
    /// `CancellationToken::is_cancelled`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let work = (0..).take_while(|_| !ctx.is_done());
    /// ctx.cancel();
    /// assert_eq!(work.count(), 0);
    /// ```
    #[inline]
    pub fn is_done(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_done())
    }

    /// Why it ended; `None` while it has not. Go's `ctx.Err()` and `context.Cause(ctx)`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// assert!(ctx.err().is_none());
    /// ctx.cancel_with("shutting down");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "shutting down");
    /// ```
    #[inline]
    pub fn err(&self) -> Option<Error> {
        let token = self.token.as_ref()?;
        token.is_done().then(|| token.error())
    }

    /// `Err` once it has ended: for loops that compute.
    ///
    /// ```
    /// use tokio_ctx::{Context, Error};
    ///
    /// fn sum(ctx: &Context, items: &[u64]) -> Result<u64, Error> {
    ///     let mut sum = 0;
    ///     for item in items {
    ///         ctx.check()?;
    ///         sum += item;
    ///     }
    ///     Ok(sum)
    /// }
    ///
    /// let ctx = Context::background().with_cancel();
    /// assert_eq!(sum(&ctx, &[1, 2, 3]).unwrap(), 6);
    /// ctx.cancel();
    /// assert!(sum(&ctx, &[1, 2, 3]).unwrap_err().is_canceled());
    /// ```
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err).
    #[inline]
    pub fn check(&self) -> Result<(), Error> {
        match self.err() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// The value of this type that was given nearest. Go's `ctx.Value(key)`.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// #[derive(Debug, PartialEq)]
    /// struct Tenant(&'static str);
    ///
    /// let ctx = Context::background().with_value(Tenant("blue")).with_value(Tenant("red"));
    /// let ctx = ctx.with_cancel();
    /// assert_eq!(ctx.value::<Tenant>(), Some(&Tenant("red")));
    /// ```
    #[inline]
    pub fn value<T: 'static>(&self) -> Option<&T> {
        self.values.get()
    }
}

// Wait.
impl Context {
    /// Resolves when it ends, to why: for `tokio::select!`. Go's `<-ctx.Done()`.
    ///
    /// Cancel-safe: it can be made, polled, dropped and made again at any rate, by any number of tasks,
    /// and leaves nothing behind. It never resolves for a context that never ends. tokio-util's
    /// `CancellationToken::cancelled`.
    ///
    /// # Panics
    ///
    /// When polled, if the context has a deadline and there is no Tokio runtime here, or one without a
    /// time driver.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::{sync::mpsc, time::timeout};
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(10));
    /// let (_jobs, mut queue) = mpsc::channel::<u32>(8);
    ///
    /// let stopped = loop {
    ///     tokio::select! {
    ///         stopped = ctx.done() => break stopped,
    ///         Some(job) = queue.recv() => println!("job {job}"),
    ///     }
    /// };
    /// assert!(stopped.is_deadline_exceeded());
    /// # }
    /// ```
    pub fn done(&self) -> Done<'_> {
        Done::new(self)
    }

    /// [`done`](Self::done), holding a clone of the context: for a task, or a struct.
    ///
    /// # Panics
    ///
    /// As [`done`](Self::done).
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let watcher = tokio::spawn(ctx.done_owned());
    /// ctx.cancel();
    /// assert!(watcher.await.unwrap().is_canceled());
    /// # }
    /// ```
    pub fn done_owned(&self) -> DoneOwned {
        DoneOwned::new(self.clone())
    }

    /// Runs a future until the context ends.
    ///
    /// It looks at the context before it polls the future for the first time: an ended context starts
    /// no work. After that a result that is ready wins over the end, so finished work is never thrown
    /// away. If the context ends first, the future is dropped before this returns: it is cancelled
    /// where it awaits, as with [`tokio::time::timeout`], so let it be one that may be. Dropped, this
    /// drops the future.
    ///
    /// A trap: the end that stops this may stop a neighbour first, and what it leaves behind, say a
    /// closed channel, is a result that is ready. Where that matters, [`check`](Self::check) after it.
    /// In here [`current`](Self::current) stays what it was; [`within`](Self::within) sets it.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first.
    ///
    /// # Panics
    ///
    /// As [`done`](Self::done), if the future does not resolve at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn query() -> u32 { 3 }
    /// # async fn runaway_query() { std::future::pending().await }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// let rows = ctx.run(query()).await?;
    /// assert_eq!(rows, 3);
    /// assert!(ctx.run(runaway_query()).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn run<F: Future>(&self, f: F) -> Run<'_, F> {
        Run::new(self, f)
    }

    /// [`run`](Self::run) for a future that can fail, whose error type can hold an [`Error`].
    ///
    /// # Errors
    ///
    /// The future's own, or the context's [`err`](Self::err), converted.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// use std::{io, time::Duration};
    /// use tokio::net::TcpStream;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// let connected: io::Result<_> = ctx.try_run(TcpStream::connect("127.0.0.1:9")).await;
    /// assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// # }
    /// ```
    pub fn try_run<F, T, E>(&self, f: F) -> TryRun<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        TryRun::new(self, f)
    }

    /// One step under a budget of its own: gives `f` a child with this timeout, which is also
    /// [`current`](Self::current) in there, and runs what it returns until that child ends.
    ///
    /// The clock starts at this call; the child ends with the step, whatever came of it. `None` as in
    /// [`with_timeout`](Self::with_timeout): no deadline of its own. It holds the child itself, so that it fits
    /// into `tokio::join!` and `tokio::select!`, where `with_timeout(d).run(f)` does not compile.
    ///
    /// # Errors
    ///
    /// The child's [`err`](Self::err), if it ended before the step did.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn recent_activity(_: &Context) -> Vec<String> { std::future::pending().await }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(500));
    ///
    /// let step = ctx.within(Duration::from_millis(80), async |ctx| recent_activity(&ctx).await);
    /// let activity = step.await.unwrap_or_default();
    ///
    /// assert!(activity.is_empty());
    /// assert!(!ctx.is_done());
    /// # }
    /// ```
    #[track_caller]
    pub fn within<T>(
        &self,
        after: impl Into<Option<Duration>>,
        f: impl AsyncFnOnce(Context) -> T,
    ) -> impl Future<Output = Result<T, Error>> {
        let ctx = self.with_timeout(after);
        async move {
            // Called only once the context has been looked at.
            ctx.run(ctx.scope(async { f(ctx.clone()).await })).await
        }
    }

    /// Sleeps, unless the context ends first.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, or in one without a time driver, as [`tokio::time::sleep`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// assert!(ctx.sleep(Duration::from_millis(30)).await.is_ok());
    /// assert!(ctx.sleep(Duration::from_millis(30)).await.is_err());
    /// # }
    /// ```
    #[track_caller]
    pub fn sleep(&self, d: Duration) -> Run<'_, tokio::time::Sleep> {
        self.run(tokio::time::sleep(d))
    }

    /// Spawns a task in which this context is [`current`](Self::current): [`tokio::spawn`] in
    /// [`scope`](Self::scope).
    ///
    /// The task is told of the end; it is not stopped by it. What should be is run bounded in there:
    /// `ctx.spawn(async { Context::current().run(work()).await })`.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value(RequestId(7));
    /// let id = ctx.spawn(async { Context::current().value::<RequestId>().map(|id| id.0) });
    /// assert_eq!(id.await.unwrap(), Some(7));
    /// # }
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, f: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        #[cfg(feature = "test-util")]
        let f = Entry::new(self, Location::caller()).held_by(f);
        tokio::spawn(self.scope(f))
    }

    /// Runs `f`, once, on a task of its own, when the context has ended; at once if it has already.
    /// Go's `context.AfterFunc`.
    ///
    /// [`AfterFunc::stop`] keeps it from running; dropping the handle changes nothing. In `f`,
    /// [`current`](Self::current) is this context [`without_cancel`](Self::without_cancel): its values
    /// are there, its end is not. Until the end, the task that watches for it keeps the context.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`]. A context with a deadline needs a time driver,
    /// without which the task panics.
    ///
    /// ```
    /// use tokio::sync::oneshot;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let (interrupt, interrupted) = oneshot::channel();
    /// ctx.after_func(|| async move { interrupt.send("stop the query").unwrap() });
    ///
    /// ctx.cancel();
    /// assert_eq!(interrupted.await.unwrap(), "stop the query");
    /// # }
    /// ```
    #[track_caller]
    pub fn after_func<F, Fut>(&self, f: F) -> AfterFunc
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        #[cfg(feature = "test-util")]
        let f = {
            let entry = Entry::new(self, Location::caller());
            move || entry.held_by(async move { f().await })
        };
        after_func(self, f)
    }
}

/// `context background`, `context todo`, or where it was made and how it stands, on one line.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(token) = &self.token else {
            return f.write_str(if self.todo { "context todo" } else { "context background" });
        };
        if let Some(error) = self.err() {
            return write!(f, "{error}");
        }
        write!(f, "context made at {}", Place(token.made_at()))?;
        match self.remaining() {
            Some(left) => write!(f, ", {left:?} left"),
            None => Ok(()),
        }
    }
}

/// One short line, which `#[tracing::instrument]` records: `Context(src/main.rs:12, 250ms left)`, and once it
/// has ended why: `Context(canceled at src/main.rs:88: client hung up)`.
///
/// `{:#?}` shows the fields, and of the values the types, never the values.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return self.fmt_brief(f);
        }
        let mut debug = f.debug_struct("Context");
        match &self.token {
            None => debug.field("root", &if self.todo { "todo" } else { "background" }),
            Some(token) => debug
                .field("made_at", &format_args!("{}", Place(token.made_at())))
                .field("budget", &token.budget())
                .field("remaining", &self.remaining())
                .field("err", &self.err()),
        };
        debug.field("values", &self.values.names()).finish()
    }
}

impl Context {
    fn fmt_brief(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 160;
        let Some(token) = &self.token else {
            return f.write_str(if self.todo { "Context(todo)" } else { "Context(background)" });
        };
        if let Some(error) = self.err() {
            // A cause may have many lines.
            let text = error.to_string();
            let text = text.strip_prefix("context ").unwrap_or(&text);
            let brief: String = text.chars().take_while(|c| !c.is_control()).take(LONGEST).collect();
            let rest = if brief.len() < text.len() { "…" } else { "" };
            return write!(f, "Context({brief}{rest})");
        }
        write!(f, "Context({}", Place(token.made_at()))?;
        if let Some(left) = self.remaining() {
            // Below a millisecond, all of it: it is not over yet.
            let nanos = if left.as_millis() > 0 { left.subsec_nanos() % 1_000_000 } else { 0 };
            write!(f, ", {:?} left", left - Duration::from_nanos(nanos.into()))?;
        }
        f.write_str(")")
    }
}
