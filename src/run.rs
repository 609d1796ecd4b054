//! Futures that are bounded by a context: what `run`, `try_run` and `bounded_by` return.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use pin_project_lite::pin_project;

use crate::done::Wait;
use crate::refusal::Entry;
use crate::{CancelScope, Context, Error};

impl Context {
    /// [`run`](Self::run), holding a clone of the context: for a task, or a struct.
    ///
    /// That of a [`CancelScope`](CancelScope::run_owned) holds the scope; `scope.context().run_owned(f)` leaves
    /// it where it is.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
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
    /// [`Context::run`], holding the scope, which ends with the step, or when this is dropped: a bounded step that
    /// can be spawned.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Context::err), if it ended first.
    ///
    /// # Panics
    ///
    /// As [`Context::run`].
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
    /// A future, until the context ends, which is borrowed or owned.
    struct Bound<C: Borrow<Context>, F> {
        entry: Entry,
        // None: it is over. Dropped before the context, which may be a scope.
        #[pin]
        future: Option<F>,
        // None: it is over, and nothing waits here any more, however long this is kept.
        #[pin]
        wait: Option<Wait<C>>,
    }
}

impl<C: Borrow<Context>, F> Bound<C, F> {
    fn new(ctx: C, future: F) -> Self {
        Bound { entry: Entry::Fresh, future: Some(future), wait: Some(Wait::new(ctx)) }
    }

    fn ctx(&self) -> Option<&Context> {
        self.wait.as_ref().map(Wait::ctx)
    }
}

impl<C: Borrow<Context>, F: Future> Future for Bound<C, F> {
    type Output = Result<F::Output, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
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
        this.wait.set(None);
        Poll::Ready(output)
    }
}

pin_project! {
    /// A future, until the context ends. Made by [`Context::run`] and
    /// [`FutureExt::bounded_by`](crate::FutureExt::bounded_by).
    ///
    /// # Panics
    ///
    /// When polled, if it has to wait, the context has a deadline, and there is no Tokio runtime here
    /// or one without a time driver, as [`tokio::time::sleep`] does; and when polled again after it was ready.
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
    /// A fallible future, until the context ends. Made by [`Context::try_run`].
    ///
    /// # Panics
    ///
    /// As [`Run`].
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
