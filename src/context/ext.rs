//! `bounded_by` on futures, and the streams behind `StreamExt`.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use futures_core::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;

use super::context::Context;
use super::done::Wait;
use super::progress::Progress;
use super::refusal::Entry;
use super::run::Run;
use crate::error::Error;

/// Extension trait for futures that adds [`bounded_by`](FutureExt::bounded_by).
pub trait FutureExt: Future {
    /// Runs the future until the context ends. See [`Context::run`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::sync::oneshot;
    /// use tokio_ctx::{Context, FutureExt};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(20));
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

pin_project! {
    /// Stream for [`StreamExt::bounded_by`](crate::StreamExt::bounded_by), which ends when the context does.
    ///
    /// # Panics
    ///
    /// Panics when polled if it has to wait, the context has a deadline, and there is no Tokio runtime with a
    /// time driver.
    #[must_use = "streams do nothing unless polled"]
    pub struct Bounded<'a, S> {
        // `None` if the stream or the context has ended.
        #[pin]
        stream: Option<S>,
        ctx: &'a Context,
        // Created when the stream first has to wait. Boxed, so that the bounded stream is `Unpin` if the stream
        // is.
        wait: Option<Pin<Box<Wait<&'a Context>>>>,
        // Whether the wait was polled since the last item.
        waits: bool,
        // The state of the operation that waits for the next item.
        entry: Entry,
        // Each item is reported as progress.
        progress: Progress,
    }
}

impl<'a, S: Stream> Bounded<'a, S> {
    pub(crate) fn new(stream: S, ctx: &'a Context) -> Self {
        let progress = ctx.progress();
        Bounded { stream: Some(stream), ctx, wait: None, waits: false, entry: Entry::Fresh, progress }
    }

    /// Returns the next item, or, once, the error of the context if it has ended.
    ///
    /// When an item is returned, the waker of the task is removed from the context.
    fn poll_checked(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<S::Item, Error>>> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else {
            ready!(this.entry.poll_refused(cx));
            return Poll::Ready(None);
        };
        let ctx = *this.ctx;
        let next = match ctx.err() {
            Some(error) => {
                ready!(this.entry.poll_refused(cx));
                Some(Err(error))
            }
            None => match stream.poll_next(cx) {
                Poll::Ready(Some(item)) => {
                    this.progress.report();
                    Some(Ok(item))
                }
                Poll::Ready(None) => None,
                Poll::Pending => {
                    *this.waits = true;
                    let wait = this.wait.get_or_insert_with(|| Box::pin(Wait::new(ctx)));
                    let ended = wait.as_mut().poll(cx);
                    this.entry.record(&ended);
                    Some(Err(ready!(ended)))
                }
            },
        };
        *this.entry = Entry::Fresh;
        if !matches!(next, Some(Ok(_))) {
            this.stream.set(None);
            *this.wait = None;
        } else if mem::take(this.waits) {
            // Replaced in place, so that the next item does not allocate.
            this.wait.iter_mut().for_each(|wait| wait.set(Wait::new(ctx)));
        }
        Poll::Ready(next)
    }

    /// Returns the maximum number of items left. The minimum is zero, because the context can end at any time.
    fn at_most(&self) -> Option<usize> {
        self.stream.as_ref().map_or(Some(0), |stream| stream.size_hint().1)
    }
}

impl<S: Stream> Stream for Bounded<'_, S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<S::Item>> {
        self.poll_checked(cx).map(|next| next.and_then(Result::ok))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.at_most())
    }
}

impl<S: Stream> FusedStream for Bounded<'_, S> {
    fn is_terminated(&self) -> bool {
        self.stream.is_none()
    }
}

impl<S> fmt::Debug for Bounded<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bounded").field(self.ctx).finish()
    }
}

pin_project! {
    /// Stream for [`StreamExt::checked_by`](crate::StreamExt::checked_by), whose last item is the context's
    /// error.
    ///
    /// # Panics
    ///
    /// See [`Bounded`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Checked<'a, S> {
        #[pin]
        bounded: Bounded<'a, S>,
    }
}

pin_project! {
    /// Stream for [`StreamExt::try_bounded_by`](crate::StreamExt::try_bounded_by), whose last item is the
    /// context's error.
    ///
    /// # Panics
    ///
    /// See [`Bounded`].
    #[must_use = "streams do nothing unless polled"]
    pub struct TryBounded<'a, S> {
        #[pin]
        bounded: Bounded<'a, S>,
    }
}

impl<'a, S: Stream> Checked<'a, S> {
    pub(crate) fn new(stream: S, ctx: &'a Context) -> Self {
        Checked { bounded: Bounded::new(stream, ctx) }
    }
}

impl<'a, S: Stream> TryBounded<'a, S> {
    pub(crate) fn new(stream: S, ctx: &'a Context) -> Self {
        TryBounded { bounded: Bounded::new(stream, ctx) }
    }
}

impl<S: Stream> Stream for Checked<'_, S> {
    type Item = Result<S::Item, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.project().bounded.poll_checked(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        checked_size(&self.bounded)
    }
}

impl<S, T, E> Stream for TryBounded<'_, S>
where
    S: Stream<Item = Result<T, E>>,
    E: From<Error>,
{
    type Item = Result<T, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.project().bounded.poll_checked(cx).map(|next| next.map(|checked| checked?))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        checked_size(&self.bounded)
    }
}

/// Returns the size hint of a stream with the context's error as a possible additional item.
fn checked_size<S: Stream>(bounded: &Bounded<'_, S>) -> (usize, Option<usize>) {
    if bounded.is_terminated() {
        return (0, Some(0));
    }
    (0, bounded.at_most().and_then(|most| most.checked_add(1)))
}

impl<S: Stream> FusedStream for Checked<'_, S> {
    fn is_terminated(&self) -> bool {
        self.bounded.is_terminated()
    }
}

impl<S, T, E> FusedStream for TryBounded<'_, S>
where
    S: Stream<Item = Result<T, E>>,
    E: From<Error>,
{
    fn is_terminated(&self) -> bool {
        self.bounded.is_terminated()
    }
}

impl<S> fmt::Debug for Checked<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checked").field(self.bounded.ctx).finish()
    }
}

impl<S> fmt::Debug for TryBounded<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TryBounded").field(self.bounded.ctx).finish()
    }
}
