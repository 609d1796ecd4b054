//! `run` and its variants: futures that run until a context ends.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::context::Context;
use super::done::Wait;
use super::refusal::Entry;
use super::scope::CancelScope;
use crate::error::Error;

/// # Run
impl Context {
    /// Runs a future until the context ends.
    ///
    /// If the context ends first, the future is dropped before `run` returns, at the `.await` that it has
    /// reached, as with [`tokio::time::timeout`]. See [Cancel safety](https://docs.rs/tokio-ctx/latest/tokio_ctx/guide/cancel_safety/index.html).
    ///
    /// The context is checked before the future is polled for the first time, so a context that has ended
    /// starts no work. After that, a result that is ready takes precedence over the end, so the result of
    /// finished work is not discarded.
    ///
    /// `run` does not change the [`current`](Self::current) context of the future; [`within`](Self::within)
    /// does.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first. Note that other tasks may see the end before
    /// this one. If such a task stops and closes a channel that the future receives from, the future may resolve,
    /// for example to `None`, and `run` returns that. Where this matters, call [`check`](Self::check) afterward.
    ///
    /// # Panics
    ///
    /// Like [`done`](Self::done), if the future does not resolve on the first poll.
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
    ///
    /// [`tokio::time::timeout`]: https://docs.rs/tokio/1/tokio/time/fn.timeout.html
    pub fn run<F: Future>(&self, f: F) -> Run<'_, F> {
        Run::new(self, f)
    }

    /// Runs a fallible future until the context ends, and returns a single flat result.
    ///
    /// See [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// Returns the error of the future, or the context's [`err`](Self::err) if it ends first, converted into
    /// `E`.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
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

    /// Runs an async function with a timeout of its own.
    ///
    /// Derives a child with the timeout, which `f` receives as its argument and as the
    /// [`current`](Self::current) context, and runs `f` until the child ends. The timeout starts at this call.
    /// When `f` returns, the child ends. `None` sets no timeout, as in [`with_timeout`](Self::with_timeout).
    ///
    /// The future owns the child, and borrows only what `f` borrows. It can therefore be spawned, and used in
    /// `tokio::join!` and `tokio::select!`, where `with_timeout(d).run(f)` does not compile. For a fallible
    /// function, use [`try_within`](Self::try_within).
    ///
    /// # Errors
    ///
    /// Returns the child's [`err`](Self::err) if it ends before `f` returns.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
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
    pub fn within<T, D, F>(
        &self,
        after: D,
        f: F,
    ) -> impl Future<Output = Result<T, Error>> + use<T, D, F>
    where
        D: Into<Option<Duration>>,
        F: AsyncFnOnce(Context) -> T,
    {
        let ctx = self.with_timeout(after);
        async move {
            // `f` is only called if the context has not ended.
            ctx.run(ctx.scope(async { f(ctx.clone()).await })).await
        }
    }

    /// Runs a fallible async function with a timeout of its own, and returns a single flat result.
    ///
    /// See [`within`](Self::within). At the deadline, either `f` notices first and returns an error of its own,
    /// or it is stopped. With this method, both result in an `E`.
    ///
    /// # Errors
    ///
    /// Returns the error of `f`, or the child's [`err`](Self::err) if it ends before `f` returns, converted
    /// into `E`.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio::net::TcpStream;
    /// use tokio_ctx::Context;
    ///
    /// async fn greet(ctx: &Context, addr: &str) -> io::Result<()> {
    ///     let limit = Duration::from_millis(80);
    ///     let connection = ctx.try_within(limit, async |_| TcpStream::connect(addr).await).await?;
    ///     connection.set_nodelay(true)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(greet(&ctx, "127.0.0.1:9").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// # }
    /// ```
    #[track_caller]
    pub fn try_within<T, E, D, F>(
        &self,
        after: D,
        f: F,
    ) -> impl Future<Output = Result<T, E>> + use<T, E, D, F>
    where
        E: From<Error>,
        D: Into<Option<Duration>>,
        F: AsyncFnOnce(Context) -> Result<T, E>,
    {
        let step = self.within(after, f);
        async move { step.await? }
    }

    /// Sleeps for the given time, unless the context ends first.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first.
    ///
    /// # Panics
    ///
    /// Panics if there is no Tokio runtime with a time driver, like [`tokio::time::sleep`].
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
    ///
    /// [`tokio::time::sleep`]: https://docs.rs/tokio/1/tokio/time/fn.sleep.html
    #[track_caller]
    pub fn sleep(&self, d: Duration) -> Run<'_, tokio::time::Sleep> {
        self.run(tokio::time::sleep(d))
    }

    /// Like [`run`](Self::run), but the returned future owns a clone of the context, so that it can be spawned
    /// or stored.
    ///
    /// On a `CancelScope`, [`CancelScope::run_owned`] takes precedence, which takes the scope. Write
    /// `scope.context().run_owned(f)` to keep the scope.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let listening = tokio::spawn(ctx.context().run_owned(std::future::pending::<()>()));
    /// ctx.cancel();
    /// assert!(listening.await.unwrap().unwrap_err().is_canceled());
    /// # }
    /// ```
    pub fn run_owned<F: Future>(&self, f: F) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        Bound::new(self.clone(), f)
    }
}

impl CancelScope {
    /// Like [`Context::run`], but the returned future owns the scope, so that it can be spawned.
    ///
    /// The scope is dropped when the future resolves or is dropped, which ends the context.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Context::err) if it ends first.
    ///
    /// # Panics
    ///
    /// See [`Context::run`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn fetch(_url: &str) -> u32 { 200 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let request = Context::background();
    /// let limit = Duration::from_millis(80);
    /// let step = tokio::spawn(request.with_timeout(limit).run_owned(fetch("/news")));
    /// assert_eq!(step.await.unwrap().unwrap(), 200);
    /// # }
    /// ```
    pub fn run_owned<F: Future>(self, f: F) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        Bound::new(self, f)
    }
}

pin_project! {
    /// Runs a future until a borrowed or owned context ends.
    pub(crate) struct Bound<C: Borrow<Context>, F> {
        entry: Entry,
        // `None` once resolved. Dropped before the context, which may be a scope.
        #[pin]
        future: Option<F>,
        // `None` once resolved, so that no waker is kept.
        #[pin]
        wait: Option<Wait<C>>,
    }
}

impl<C: Borrow<Context>, F> Bound<C, F> {
    pub(crate) fn new(ctx: C, future: F) -> Self {
        Bound { entry: Entry::Fresh, future: Some(future), wait: Some(Wait::new(ctx)) }
    }

    /// Like [`new`](Self::new), for a context that the caller has just checked.
    pub(crate) fn begun(ctx: C, future: F) -> Self {
        Bound { entry: Entry::Begun, future: Some(future), wait: Some(Wait::new(ctx)) }
    }

    /// Returns the context, or `None` once resolved.
    pub(crate) fn ctx(&self) -> Option<&Context> {
        self.wait.as_ref().map(Wait::ctx)
    }
}

impl<C: Borrow<Context>, F> Bound<C, F> {
    /// Drops the future, but keeps the context.
    pub(crate) fn stop(self: Pin<&mut Self>) {
        self.project().future.set(None);
    }
}

impl<C: Borrow<Context>, F: Future> Bound<C, F> {
    /// Like [`poll`](Future::poll), but when it is ready, drops only the future and keeps the context.
    #[inline]
    pub(crate) fn poll_step(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<F::Output, Error>> {
        const OVER: &str = "polled again after it was ready";
        let mut this = self.project();
        let mut wait = this.wait.as_mut().as_pin_mut().expect(OVER);
        let output = match ready!(this.entry.poll(wait.ctx(), cx)) {
            Err(refused) => Err(refused),
            Ok(()) => match this.future.as_mut().as_pin_mut().expect(OVER).poll(cx) {
                Poll::Ready(output) => Ok(output),
                Poll::Pending => Err(ready!(wait.as_mut().poll(cx))),
            },
        };
        this.future.set(None);
        Poll::Ready(output)
    }
}

impl<C: Borrow<Context>, F: Future> Future for Bound<C, F> {
    type Output = Result<F::Output, Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let output = ready!(self.as_mut().poll_step(cx));
        self.project().wait.set(None);
        Poll::Ready(output)
    }
}

pin_project! {
    /// Future for [`Context::run`] and [`FutureExt::bounded_by`](crate::FutureExt::bounded_by), which runs
    /// another future until the context ends.
    ///
    /// # Panics
    ///
    /// Panics when polled if it has to wait, the context has a deadline, and there is no Tokio runtime with a
    /// time driver. Panics when polled again after it has resolved.
    #[must_use = "futures do nothing unless polled"]
    pub struct Run<'a, F> {
        #[pin]
        bound: Bound<&'a Context, F>,
    }
}

impl<'a, F> Run<'a, F> {
    pub(crate) fn new(ctx: &'a Context, future: F) -> Self {
        Run { bound: Bound::new(ctx, future) }
    }

    fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound.ctx() {
            Some(ctx) => f.debug_tuple(name).field(ctx).finish(),
            None => f.debug_tuple(name).finish_non_exhaustive(),
        }
    }
}

impl<F: Future> Future for Run<'_, F> {
    type Output = Result<F::Output, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        self.project().bound.poll(cx)
    }
}

impl<F> fmt::Debug for Run<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as("Run", f)
    }
}

pin_project! {
    /// Future for [`Context::try_run`], which runs a fallible future until the context ends.
    ///
    /// # Panics
    ///
    /// See [`Run`].
    #[must_use = "futures do nothing unless polled"]
    pub struct TryRun<'a, F, T, E> {
        #[pin]
        run: Run<'a, F>,
        output: PhantomData<fn() -> (T, E)>,
    }
}

impl<'a, F, T, E> TryRun<'a, F, T, E> {
    pub(crate) fn new(ctx: &'a Context, future: F) -> Self {
        TryRun { run: Run::new(ctx, future), output: PhantomData }
    }
}

impl<F, T, E> Future for TryRun<'_, F, T, E>
where
    F: Future<Output = Result<T, E>>,
    E: From<Error>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        self.project().run.poll(cx).map(|bounded| bounded?)
    }
}

impl<F, T, E> fmt::Debug for TryRun<'_, F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.run.fmt_as("TryRun", f)
    }
}
