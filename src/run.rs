//! Futures that are bounded by a context: what `run`, `try_run` and `bounded_by` return.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use pin_project_lite::pin_project;

use crate::done::Wait;
use crate::{Context, Error};

pin_project! {
    /// A future, until the context ends. Made by [`Context::run`] and
    /// [`FutureExt::bounded_by`](crate::FutureExt::bounded_by).
    ///
    /// # Panics
    ///
    /// When polled, if it has to wait, the context has a deadline, and there is no Tokio runtime here
    /// or one without a time driver, as [`tokio::time::sleep`] does.
    #[must_use = "futures do nothing unless polled"]
    pub struct Run<'a, F> {
        started: bool,
        // None: the context ended first.
        #[pin]
        future: Option<F>,
        #[pin]
        wait: Wait<&'a Context>,
    }
}

impl<'a, F> Run<'a, F> {
    pub(crate) fn new(ctx: &'a Context, future: F) -> Self {
        Run { started: false, future: Some(future), wait: Wait::new(ctx) }
    }
}

impl<F: Future> Future for Run<'_, F> {
    type Output = Result<F::Output, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if !*this.started {
            if let Some(error) = this.wait.ctx().err() {
                this.future.set(None);
                return Poll::Ready(Err(error));
            }
            *this.started = true;
        }
        if let Some(future) = this.future.as_mut().as_pin_mut() {
            if let Poll::Ready(output) = future.poll(cx) {
                return Poll::Ready(Ok(output));
            }
        }
        let error = ready!(this.wait.poll(cx));
        this.future.set(None);
        Poll::Ready(Err(error))
    }
}

impl<F> fmt::Debug for Run<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Run").field(self.wait.ctx()).finish()
    }
}

pin_project! {
    /// A fallible future, until the context ends. Made by [`Context::try_run`].
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
        f.debug_tuple("TryRun").field(self.run.wait.ctx()).finish()
    }
}
