//! [`Context::retry`]: attempts and delays under one budget.
//!
//! The future is a state machine, so that a first attempt that succeeds costs one child context, one reading of the
//! clock, and no other allocation. The context is checked before each attempt, and bounds each attempt and each delay.
//! A delay starts only if it and the attempt after it fit into the remaining time.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::{Sleep, sleep};

use super::history::History;
use super::retry_error::{GaveUp, RetryError};
use super::share::{assert_share, share_of_remaining};
use crate::context::refusal::Entry;
use crate::context::run::Bound;
use crate::context::{CancelScope, Context, NotEnoughTime};
use crate::error::Error;
use crate::sync::now;

/// How late a timer may fire. After a delay, at least this much time has to be left.
const TIMER: Duration = Duration::from_millis(1);

/// # Budgets
impl Context {
    /// Calls `f` until it succeeds. All attempts and delays share this context's deadline.
    ///
    /// `f` receives the context of the attempt, and the number of the attempt, starting at 1. Each attempt has a
    /// context of its own, a child of this one, which is also its [`current`](Self::current) context. `delays` are
    /// the times between attempts. Any iterator of durations works, including the policies of `backon` and
    /// `tokio-retry`; jitter is up to the policy. With `n` delays, there are at most `n + 1` attempts.
    ///
    /// - When the context ends, the attempt or the delay in progress is dropped, as by [`run`](Self::run). No attempt
    ///   starts after the end.
    /// - If the next delay and the attempt after it do not fit into the remaining time, the retry gives up at once,
    ///   while there is still time for something else. [`least`](Retry::least) says how much time an attempt needs.
    /// - [`when`](Retry::when) says which errors are retried, [`retry_after`](Retry::retry_after) extends a delay,
    ///   and [`permit`](Retry::permit) consults a retry budget that many calls share.
    /// - [`attempt_timeout`](Retry::attempt_timeout) and [`attempt_share`](Retry::attempt_share) limit each attempt.
    ///
    /// The error type has to implement `From<Error>`, for attempts that are stopped by the end of their context.
    /// Nothing runs in the background: dropping the future drops the attempt.
    ///
    /// # When not to use it
    ///
    /// - For operations that are not idempotent, unless the server accepts an idempotency key. The server may have
    ///   carried out an attempt whose response was never received.
    /// - For errors that are caused by overload, without a [`permit`](Retry::permit).
    /// - At more than one level of a call tree: three attempts on each of three levels are 27 calls.
    ///
    /// Go's counterpart is `cenkalti/backoff`. Similar are gRPC's retry policies, whose `grpc-retry-pushback-ms`
    /// corresponds to [`retry_after`](Retry::retry_after), and the `Retry` of Polly and of resilience4j, where a
    /// total timeout is a second policy around it.
    ///
    /// # Errors
    ///
    /// Returns a [`RetryError`] with the error of the last attempt, the time that each attempt took, and the reason
    /// that there was no further attempt.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run), and [`sleep`](Self::sleep) if there is a delay.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use backon::{BackoffBuilder, ExponentialBuilder};
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::RetryError;
    ///
    /// # async fn get(attempt: u32) -> io::Result<u32> {
    /// #     if attempt < 3 { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(200) }
    /// # }
    /// async fn page(ctx: &Context, url: &str) -> io::Result<u32> {
    ///     let delays = ExponentialBuilder::default()
    ///         .with_min_delay(Duration::from_millis(10))
    ///         .with_jitter();
    ///     let page = ctx
    ///         .retry(delays.build(), |_ctx, attempt| async move { get(attempt).await })
    ///         .when(|error| error.kind() != io::ErrorKind::NotFound)
    ///         .attempt_timeout(Duration::from_millis(300));
    ///     page.await.map_err(RetryError::into_error)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1));
    /// assert_eq!(page(&ctx, "/news").await.unwrap(), 200);
    /// # }
    /// ```
    ///
    /// With a policy of `tokio-retry`, in a spawned task; the closure clones what it captures for each attempt:
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    /// use tokio_retry::strategy::{ExponentialBackoff, jitter};
    ///
    /// # struct Client;
    /// # impl Client { async fn ping(&self, _: &Context) -> Result<u32, Error> { Ok(7) } }
    /// async fn ping(ctx: Context, client: Arc<Client>) -> Result<u32, Error> {
    ///     let delays = ExponentialBackoff::from_millis(2).factor(50).map(jitter).take(5);
    ///     let pong = ctx.retry(delays, |ctx, _| {
    ///         let client = client.clone();
    ///         async move { client.ping(&ctx).await }
    ///     });
    ///     Ok(pong.await?)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let pinger = Context::background().spawn_with(|ctx| ping(ctx, Arc::new(Client)));
    /// assert_eq!(pinger.await.unwrap().unwrap(), 7);
    /// # }
    /// ```
    #[track_caller]
    #[expect(
        clippy::type_complexity,
        reason = "function pointers are the defaults of the three closures"
    )]
    pub fn retry<D, F, Fut, T, E>(
        &self,
        delays: D,
        f: F,
    ) -> Retry<'_, D::IntoIter, F, Fut, E, fn(&E) -> bool, fn(&E) -> Option<Duration>, fn() -> bool>
    where
        D: IntoIterator<Item = Duration>,
        F: FnMut(Context, u32) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        Retry {
            ctx: self,
            f,
            policy: Policy {
                delays: delays.into_iter(),
                limit: Limit::None,
                least: Duration::ZERO,
                learns: false,
                called_at: Location::caller(),
                when: |_| true,
                retry_after: |_| None,
                permit: || true,
            },
            last: None,
            history: History::default(),
            phase: Phase::Between { entry: Entry::Fresh },
        }
    }
}

pin_project! {
    /// A future that makes attempts until one succeeds. Returned by [`Context::retry`].
    ///
    /// # Panics
    ///
    /// See [`Run`](crate::Run). Panics when polled after it was ready.
    #[must_use = "futures do nothing unless polled"]
    pub struct Retry<'a, D, F, Fut, E, W, A, P> {
        ctx: &'a Context,
        f: F,
        policy: Policy<D, W, A, P>,
        // The error of the last attempt that returned one, or that exceeded its own limit.
        last: Option<E>,
        history: History,
        #[pin]
        phase: Phase<'a, Fut>,
    }
}

/// The rules set by the caller.
struct Policy<D, W, A, P> {
    delays: D,
    limit: Limit,
    least: Duration,
    /// Whether an attempt needs at least the time of the fastest one so far.
    learns: bool,
    called_at: &'static Location<'static>,
    when: W,
    retry_after: A,
    permit: P,
}

/// The limit of each attempt.
#[derive(Clone, Copy)]
enum Limit {
    None,
    Timeout(Duration),
    Share(f64),
}

pin_project! {
    #[project = PhaseProj]
    enum Phase<'a, Fut> {
        // The next attempt is about to start.
        Between { entry: Entry },
        Attempt { #[pin] attempt: InScope<Fut> },
        Delay { #[pin] delay: Bound<&'a Context, Sleep> },
        // A delay of zero. Attempts that keep failing at once must not starve other tasks.
        Yield,
        Over,
    }
}

pin_project! {
    // An attempt, polled and dropped with its context as the current one. Its first poll happens where it is created,
    // within the same `enter` as the call of `f`.
    struct InScope<Fut> {
        #[pin]
        bound: Bound<CancelScope, Fut>,
    }

    impl<Fut> PinnedDrop for InScope<Fut> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(current) = this.bound.ctx().cloned() {
                current.enter(|| this.bound.stop());
            }
        }
    }
}

impl<'a, Fut: Future> Phase<'a, Fut> {
    /// Polls the attempt in progress. Its context must be the current one.
    #[inline]
    fn poll_attempt(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<Fut::Output, Error>> {
        match self.project() {
            PhaseProj::Attempt { attempt } => attempt.project().bound.poll_step(cx),
            _ => unreachable!("no attempt in progress"),
        }
    }
}

impl<'a, D, F, Fut, E, W, A, P> Retry<'a, D, F, Fut, E, W, A, P> {
    /// Retries only errors for which `when` returns true. By default, all errors are retried.
    ///
    /// `when` is not called once the context has ended. An attempt that exceeds its own limit fails with the error
    /// of the attempt's context, converted into `E`.
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::GaveUp;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background();
    /// let lookup = ctx
    ///     .retry([std::time::Duration::ZERO; 3], |_, _| async {
    ///         Err::<(), io::Error>(io::ErrorKind::NotFound.into())
    ///     })
    ///     .when(|error| error.kind() != io::ErrorKind::NotFound);
    /// let failed = lookup.await.unwrap_err();
    /// assert_eq!(failed.attempts(), 1);
    /// assert!(matches!(failed.why(), GaveUp::NotWorthIt));
    /// # }
    /// ```
    pub fn when<N: FnMut(&E) -> bool>(self, when: N) -> Retry<'a, D, F, Fut, E, N, A, P> {
        self.with_functions(|_, retry_after, permit| (when, retry_after, permit))
    }

    /// Extends a delay to the time that the error asks for, such as a server's `Retry-After`. It never shortens a
    /// delay.
    ///
    /// If the extended delay does not fit into the remaining time, the retry gives up at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    /// use tokio_ctx::{Context, Error};
    ///
    /// #[derive(Debug)]
    /// enum Refused {
    ///     Busy(Option<Duration>),
    ///     Stopped(Error),
    /// }
    /// # impl From<Error> for Refused { fn from(stopped: Error) -> Self { Refused::Stopped(stopped) } }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (begun, ctx) = (Instant::now(), Context::background());
    /// let call = ctx
    ///     .retry([Duration::from_millis(50); 3], |_, attempt| async move {
    ///         match attempt {
    ///             1 => Err(Refused::Busy(Some(Duration::from_secs(2)))),
    ///             _ => Ok(attempt),
    ///         }
    ///     })
    ///     .retry_after(|error| match error {
    ///         Refused::Busy(after) => *after,
    ///         Refused::Stopped(_) => None,
    ///     });
    /// assert_eq!(call.await.unwrap(), 2);
    /// assert_eq!(begun.elapsed().as_secs(), 2);
    /// # }
    /// ```
    pub fn retry_after<N>(self, retry_after: N) -> Retry<'a, D, F, Fut, E, W, N, P>
    where
        N: FnMut(&E) -> Option<Duration>,
    {
        self.with_functions(|when, _, permit| (when, retry_after, permit))
    }

    /// Calls `permit` before each attempt except the first, and gives up if it returns false.
    ///
    /// Use it with a retry budget that many calls share, so that retries do not multiply the load of an outage, such
    /// as `tower::retry::budget::TpsBudget`: each successful call deposits to it, and each retry withdraws from it.
    /// `permit` is called last, when nothing else prevents the attempt.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::{GaveUp, RetryError};
    /// use tower::retry::budget::{Budget, TpsBudget};
    ///
    /// async fn call(ctx: &Context, budget: &TpsBudget) -> Result<(), RetryError<io::Error>> {
    ///     let call = ctx
    ///         .retry([Duration::from_millis(10); 3], |_, _| async {
    ///             Err(io::Error::other("overloaded"))
    ///         })
    ///         .permit(|| budget.withdraw());
    ///     let done = call.await?;
    ///     budget.deposit(); // Ten successful calls allow one retry.
    ///     Ok(done)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let budget = TpsBudget::new(Duration::from_secs(10), 0, 0.1);
    /// let failed = call(&Context::background(), &budget).await.unwrap_err();
    /// assert_eq!(failed.attempts(), 1);
    /// assert!(matches!(failed.why(), GaveUp::NotPermitted));
    /// # }
    /// ```
    pub fn permit<N: FnMut() -> bool>(self, permit: N) -> Retry<'a, D, F, Fut, E, W, A, N> {
        self.with_functions(|when, retry_after, _| (when, retry_after, permit))
    }

    /// Limits the time of each attempt. With `None`, only the context limits it.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1));
    /// let stuck_once = ctx
    ///     .retry([Duration::from_millis(10); 3], |_, attempt| async move {
    ///         if attempt == 1 { std::future::pending().await } else { Ok::<_, io::Error>(attempt) }
    ///     })
    ///     .attempt_timeout(Duration::from_millis(200));
    /// assert_eq!(stuck_once.await.unwrap(), 2);
    /// # }
    /// ```
    pub fn attempt_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.policy.limit = limit.into().map_or(Limit::None, Limit::Timeout);
        self
    }

    /// Limits each attempt to a share of the time that remains when it starts, so that an attempt that hangs leaves
    /// time for others. Without a deadline, there is no limit. See [`with_share`](Context::with_share).
    ///
    /// # Panics
    ///
    /// Panics if the share is negative or NaN.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1));
    /// let limits = ctx
    ///     .retry([Duration::ZERO; 2], |ctx, attempt| async move {
    ///         println!("attempt {attempt} has {:?}", ctx.remaining()); // 500 ms, 250 ms, 125 ms
    ///         std::future::pending::<io::Result<()>>().await
    ///     })
    ///     .attempt_share(0.5);
    /// assert_eq!(limits.await.unwrap_err().attempts(), 3);
    /// assert!(!ctx.is_done());
    /// # }
    /// ```
    #[track_caller]
    pub fn attempt_share(mut self, share: f64) -> Self {
        assert_share(share);
        self.policy.limit = Limit::Share(share);
        self
    }

    /// Starts no attempt, including the first, with less remaining time than this.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::GaveUp;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let build = ctx
    ///     .retry([], |_, _| async { Ok::<_, io::Error>("never called") })
    ///     .least(Duration::from_secs(2));
    /// let failed = build.await.unwrap_err();
    /// assert!(matches!(failed.why(), GaveUp::NotEnoughTime(_)));
    /// assert_eq!(failed.attempts(), 0);
    /// # }
    /// ```
    pub fn least(mut self, least: Duration) -> Self {
        self.policy.least = least;
        self
    }

    /// Starts no further attempt with less remaining time than the fastest failed attempt took.
    ///
    /// Use it for work that takes about as long when it fails as when it succeeds. If attempts vary, it may skip one
    /// that would have been fast enough. Attempts that exceeded their own limit do not count.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let call = ctx
    ///     .retry([Duration::from_millis(5); 9], |ctx, _| async move {
    ///         ctx.sleep(Duration::from_millis(40)).await?;
    ///         Err::<(), _>(io::Error::other("503"))
    ///     })
    ///     .least_learned();
    /// assert_eq!(call.await.unwrap_err().attempts(), 2); // 40, 5 and 40 ms are gone; 15 ms are left.
    /// # }
    /// ```
    pub fn least_learned(mut self) -> Self {
        self.policy.learns = true;
        self
    }

    /// Replaces functions of the policy by others of another type.
    fn with_functions<W2, A2, P2>(
        self,
        replace: impl FnOnce(W, A, P) -> (W2, A2, P2),
    ) -> Retry<'a, D, F, Fut, E, W2, A2, P2> {
        let Retry { ctx, f, policy, last, history, phase } = self;
        let Policy { delays, limit, least, learns, called_at, when, retry_after, permit } = policy;
        let (when, retry_after, permit) = replace(when, retry_after, permit);
        let policy = Policy { delays, limit, least, learns, called_at, when, retry_after, permit };
        Retry { ctx, f, policy, last, history, phase }
    }
}

impl<D, W, A, P> Policy<D, W, A, P> {
    /// Returns the time that has to be left for an attempt.
    fn needs(&self, history: &History) -> Duration {
        if self.learns { self.least.max(history.fastest()) } else { self.least }
    }

    /// Derives the context of an attempt.
    fn derive(&self, ctx: &Context) -> CancelScope {
        let after = match self.limit {
            Limit::None => None,
            Limit::Timeout(after) => Some(after),
            Limit::Share(share) => share_of_remaining(ctx, share),
        };
        ctx.limited_at(self.called_at, after)
    }

    /// Records an attempt that failed with an error of its own, or was ended by its context. Returns the delay before the
    /// next attempt, or why there is none.
    fn after_failure<E>(
        &mut self,
        ctx: &Context,
        failed: Result<E, Error>,
        last: &mut Option<E>,
        history: &mut History,
    ) -> Result<Duration, GaveUp>
    where
        D: Iterator<Item = Duration>,
        E: From<Error>,
        W: FnMut(&E) -> bool,
        A: FnMut(&E) -> Option<Duration>,
        P: FnMut() -> bool,
    {
        history.record_failure(now(), failed.is_ok());
        if let Some(ended) = ctx.err() {
            *last = failed.ok().or_else(|| last.take());
            return Err(GaveUp::Ended(ended));
        }
        let error = &*last.insert(failed.unwrap_or_else(E::from));
        if !(self.when)(error) {
            return Err(GaveUp::NotWorthIt);
        }
        let delay = self.delays.next().ok_or(GaveUp::NoDelayLeft)?;
        let delay = (self.retry_after)(error).map_or(delay, |after| after.max(delay));
        let needs = self.needs(history);
        let needs = if delay.is_zero() { needs } else { delay.saturating_add(needs.max(TIMER)) };
        require(ctx, needs)?;
        if (self.permit)() { Ok(delay) } else { Err(GaveUp::NotPermitted) }
    }
}

fn require(ctx: &Context, least: Duration) -> Result<(), GaveUp> {
    if least.is_zero() {
        return Ok(());
    }
    ctx.require(least).map_err(|short: NotEnoughTime| match short.context_error() {
        Some(ended) => GaveUp::Ended(ended.clone()),
        None => GaveUp::NotEnoughTime(short),
    })
}

impl<D, F, Fut, T, E, W, A, P> Future for Retry<'_, D, F, Fut, E, W, A, P>
where
    D: Iterator<Item = Duration>,
    F: FnMut(Context, u32) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: From<Error>,
    W: FnMut(&E) -> bool,
    A: FnMut(&E) -> Option<Duration>,
    P: FnMut() -> bool,
{
    type Output = Result<T, RetryError<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ctx: &Context = this.ctx;
        let why = loop {
            let attempted = match this.phase.as_mut().project() {
                PhaseProj::Between { entry } => {
                    let begins_at = now();
                    if let Err(ended) = ready!(entry.poll_with(ctx.err_at(begins_at), cx)) {
                        break GaveUp::Ended(ended);
                    }
                    if let Err(why) = require(ctx, this.policy.needs(this.history)) {
                        break why;
                    }
                    let number = this.history.start_attempt(begins_at);
                    let scope = this.policy.derive(ctx);
                    let (f, phase) = (&mut *this.f, &mut this.phase);
                    scope.context().clone().enter(|| {
                        let attempt = f(scope.context().clone(), number);
                        phase.set(Phase::Attempt {
                            attempt: InScope { bound: Bound::begun(scope, attempt) },
                        });
                        phase.as_mut().poll_attempt(cx)
                    })
                }
                PhaseProj::Attempt { attempt } => {
                    let current = attempt.bound.ctx().cloned().unwrap_or_default();
                    current.enter(|| this.phase.as_mut().poll_attempt(cx))
                }
                PhaseProj::Delay { delay } => {
                    let slept = ready!(delay.poll(cx));
                    this.phase.set(Phase::Between { entry: Entry::Fresh });
                    match slept {
                        Ok(()) => continue,
                        Err(ended) => break GaveUp::Ended(ended),
                    }
                }
                PhaseProj::Yield => {
                    ready!(poll_proceed(cx)).made_progress();
                    this.phase.set(Phase::Between { entry: Entry::Fresh });
                    continue;
                }
                PhaseProj::Over => panic!("polled again after it was ready"),
            };
            let output = ready!(attempted);
            // Drops the attempt and its context before the caller's closures are called.
            this.phase.set(Phase::Over);
            let failed = match output {
                Ok(Ok(value)) => return Poll::Ready(Ok(value)),
                Ok(Err(error)) => Ok(error),
                Err(ended) => Err(ended),
            };
            match this.policy.after_failure(ctx, failed, this.last, this.history) {
                Ok(Duration::ZERO) => this.phase.set(Phase::Yield),
                Ok(delay) => this.phase.set(Phase::Delay { delay: Bound::new(ctx, sleep(delay)) }),
                Err(why) => break why,
            }
        };
        this.phase.set(Phase::Over);
        this.history.record_delay(now());
        let (last, history) = (this.last.take(), std::mem::take(this.history));
        Poll::Ready(Err(RetryError::new(last, why, history, this.policy.called_at)))
    }
}

impl<D, F, Fut, E, W, A, P> fmt::Debug for Retry<'_, D, F, Fut, E, W, A, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("context", self.ctx).field("history", &self.history).finish()
    }
}
