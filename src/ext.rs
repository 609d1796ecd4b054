//! `bounded_by`, for futures and streams that are at hand already.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use futures_core::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;

use crate::done::Wait;
use crate::run::Run;
use crate::{Context, Error};

/// [`bounded_by`](FutureExt::bounded_by) for every future.
pub trait FutureExt: Future {
    /// Runs the future until the context ends: [`Context::run`], written behind the future.
    ///
    /// A context that has ended already does not poll it at all; a result that is ready wins over an
    /// end; ended, the future is dropped before this resolves. What that means for a future half-way
    /// through its work is the future's own to say, as with [`tokio::time::timeout`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::sync::oneshot;
    /// use tokio_ctx::{Context, FutureExt};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (ctx, _guard) = Context::background().with_timeout(Duration::from_millis(20));
    /// let (_tx, rx) = oneshot::channel::<u32>();
    /// assert!(rx.bounded_by(&ctx).await.unwrap_err().is_deadline_exceeded());
    /// # }
    /// ```
    fn bounded_by(self, ctx: &Context) -> Run<'_, Self>
    where
        Self: Sized,
    {
        ctx.run(self)
    }
}

impl<F: Future> FutureExt for F {}

/// [`bounded_by`](StreamExt::bounded_by) for every stream.
pub trait StreamExt: Stream {
    /// Yields the stream's items until the context ends, then drops the stream and ends.
    ///
    /// The end is looked for before each item, so that a stream that always has one ready ends
    /// as well; no item is taken from the stream and then not given. Ask
    /// [`ctx.err()`](Context::err) afterwards whether it ran dry or was stopped. The Go counterpart is
    /// the "or-done" loop around `select { case <-ctx.Done(): … case v := <-c: … }`.
    ///
    /// ```
    /// use futures::StreamExt as _;
    /// use tokio_ctx::{Context, StreamExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (ctx, guard) = Context::background().with_cancel();
    /// let mut numbers = futures::stream::iter(1..).bounded_by(&ctx);
    /// assert_eq!(numbers.next().await, Some(1));
    /// guard.cancel();
    /// assert_eq!(numbers.next().await, None);
    /// # }
    /// ```
    fn bounded_by(self, ctx: &Context) -> Bounded<'_, Self>
    where
        Self: Sized,
    {
        Bounded { stream: Some(self), wait: Box::pin(Wait::new(ctx)) }
    }
}

impl<S: Stream> StreamExt for S {}

pin_project! {
    /// A stream, until the context ends. Made by [`StreamExt::bounded_by`].
    ///
    /// # Panics
    ///
    /// When polled, if the context has a deadline and there is no Tokio runtime here, or one without a
    /// time driver, as [`tokio::time::sleep`] does.
    #[must_use = "streams do nothing unless polled"]
    pub struct Bounded<'a, S> {
        // None: it ran dry, or the context ended.
        #[pin]
        stream: Option<S>,
        // Boxed, so that it takes no pinning to ask a bounded stream for its next item.
        wait: Pin<Box<Wait<&'a Context>>>,
    }
}

impl<S: Stream> Stream for Bounded<'_, S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<S::Item>> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let next = match this.wait.as_mut().poll(cx) {
            Poll::Ready(Error { .. }) => None,
            Poll::Pending => ready!(stream.poll_next(cx)),
        };
        if next.is_none() {
            this.stream.set(None);
        }
        Poll::Ready(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The context may end it before the next item.
        (0, self.stream.as_ref().map_or(Some(0), |stream| stream.size_hint().1))
    }
}

impl<S: Stream> FusedStream for Bounded<'_, S> {
    fn is_terminated(&self) -> bool {
        self.stream.is_none()
    }
}

impl<S> fmt::Debug for Bounded<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bounded").field(self.wait.ctx()).finish()
    }
}
