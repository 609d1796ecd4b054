//! `bounded_by` and its like, for futures and streams that are at hand already.

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
    /// A stream, until the context ends. Made by [`StreamExt::bounded_by`].
    ///
    /// # Panics
    ///
    /// When polled, if it has to wait, the context has a deadline, and there is no Tokio runtime here,
    /// or one without a time driver, as [`tokio::time::sleep`] does.
    #[must_use = "streams do nothing unless polled"]
    pub struct Bounded<'a, S> {
        // None: it ran dry, or the context ended.
        #[pin]
        stream: Option<S>,
        ctx: &'a Context,
        // Made when it first has to wait, and boxed, so that it takes no pinning to ask a bounded stream for
        // its next item.
        wait: Option<Pin<Box<Wait<&'a Context>>>>,
        // Whether the wait is for an item that is still to come.
        waits: bool,
        // Each item is an operation of its own,
        entry: Entry,
        // and progress.
        progress: Progress,
    }
}

impl<'a, S: Stream> Bounded<'a, S> {
    pub(crate) fn new(stream: S, ctx: &'a Context) -> Self {
        let progress = ctx.progress();
        Bounded { stream: Some(stream), ctx, wait: None, waits: false, entry: Entry::Fresh, progress }
    }

    /// The next item, or, once, why there is none because the context ended.
    ///
    /// An item that has come takes its task's waker along: the stream may be kept for as long as it likes.
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
                    this.entry.note(&ended);
                    Some(Err(ready!(ended)))
                }
            },
        };
        *this.entry = Entry::Fresh;
        if !matches!(next, Some(Ok(_))) {
            this.stream.set(None);
            *this.wait = None;
        } else if mem::take(this.waits) {
            // In its place, so that the next item allocates nothing.
            this.wait.iter_mut().for_each(|wait| wait.set(Wait::new(ctx)));
        }
        Poll::Ready(next)
    }

    /// How many items are left at most: the context may end it before the next.
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
    /// A stream, until the context ends, with the reason as its last item. Made by
    /// [`StreamExt::checked_by`].
    ///
    /// # Panics
    ///
    /// As [`Bounded`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Checked<'a, S> {
        #[pin]
        bounded: Bounded<'a, S>,
    }
}

pin_project! {
    /// A stream of results, until the context ends, with the reason as its last item. Made by
    /// [`StreamExt::try_bounded_by`].
    ///
    /// # Panics
    ///
    /// As [`Bounded`].
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

/// One more than the stream's own at most: the reason takes the place of an item, or of its end.
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
