//! `bounded_by` and its like, for futures and streams that are at hand already.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use futures_core::stream::{FusedStream, Stream};
use pin_project_lite::pin_project;

use crate::done::Wait;
use crate::refusal::Entry;
use crate::run::Run;
use crate::workers::for_each_task;
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

/// Streams that end with a context, and a task for each of their items.
///
/// Beside the `StreamExt` of `futures` or `tokio_stream`, import both as `_`:
/// [names that clash](guide/traps/index.html#names-that-clash).
///
/// | the context ended | use |
/// |---|---|
/// | the stream just ends | [`bounded_by`](Self::bounded_by) |
/// | its last item says why | [`checked_by`](Self::checked_by) |
/// | the same, for a stream of results | [`try_bounded_by`](Self::try_bounded_by) |
pub trait StreamExt: Stream {
    /// Yields the stream's items until the context ends, then drops the stream and ends.
    ///
    /// The end is looked for before each item, so that a stream that always has one ready ends
    /// as well; no item is taken from the stream and then not given. Ask
    /// [`ctx.err()`](Context::err) afterwards whether it ran dry or was stopped. The Go counterpart is
    /// the "or-done" loop around `select { case <-ctx.Done(): … case v := <-c: … }`.
    ///
    /// A trap: the source is dropped when the end is *seen*, that is when this is next polled. And it
    /// borrows the context; where a stream must own it, say in a response that is streamed,
    /// `take_until(ctx.done_owned())` of `futures` does, which keeps its source until it is dropped.
    ///
    /// ```
    /// use futures::StreamExt as _;
    /// use tokio_ctx::{Context, StreamExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let mut numbers = futures::stream::iter(1..).bounded_by(&ctx);
    /// assert_eq!(numbers.next().await, Some(1));
    /// ctx.cancel();
    /// assert_eq!(numbers.next().await, None);
    /// # }
    /// ```
    fn bounded_by(self, ctx: &Context) -> Bounded<'_, Self>
    where
        Self: Sized,
    {
        Bounded::new(self, ctx)
    }

    /// [`bounded_by`](Self::bounded_by), with the reason as its last item if the context ended first.
    ///
    /// Each item comes as if behind a [`ctx.check()?`](Context::check). A stream that runs dry has no
    /// such item.
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures::TryStreamExt as _;
    /// use tokio::sync::mpsc;
    /// use tokio_ctx::{Context, StreamExt as _};
    /// use tokio_stream::wrappers::ReceiverStream;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// let (_prices, incoming) = mpsc::channel::<u32>(8); // nobody sends
    /// let mut incoming = ReceiverStream::new(incoming).checked_by(&ctx);
    ///
    /// let stopped = incoming.try_next().await.unwrap_err();
    /// assert!(stopped.is_deadline_exceeded());
    /// assert_eq!(incoming.try_next().await.unwrap(), None);
    /// # }
    /// ```
    fn checked_by(self, ctx: &Context) -> Checked<'_, Self>
    where
        Self: Sized,
    {
        Checked { bounded: Bounded::new(self, ctx) }
    }

    /// [`checked_by`](Self::checked_by) for a stream of results whose error type can hold an [`Error`],
    /// as [`Context::try_run`] is for futures.
    ///
    /// The stream's own errors are items like others: it goes on after them.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use futures::{StreamExt as _, TryStreamExt as _, stream};
    /// use tokio_ctx::{Context, StreamExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// let lines = stream::iter([Ok("a"), Ok("b")]).chain(stream::pending::<io::Result<_>>());
    ///
    /// let read: io::Result<Vec<_>> = lines.try_bounded_by(&ctx).try_collect().await;
    /// assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// # }
    /// ```
    fn try_bounded_by<T, E>(self, ctx: &Context) -> TryBounded<'_, Self>
    where
        Self: Stream<Item = Result<T, E>> + Sized,
        E: From<Error>,
    {
        TryBounded { bounded: Bounded::new(self, ctx) }
    }

    /// Runs a task for each item, at most `n` at once, until one fails: a pool of `n` workers.
    ///
    /// `work` is given the pool's context, a child of `ctx` which is also
    /// [`current`](Context::current) in the task, and the item; the future it returns runs in a task of
    /// its own. The stream is asked for an item only when a worker is free for it, so never more than
    /// `n` items are under way, and a slow pool holds up its source. It is read here, not in a task: it
    /// may borrow, and need not be `Send`. The first error ends the pool's context, with a
    /// [`TaskFailed`](crate::group::TaskFailed) as the cause; no further item is taken, and this resolves when all tasks have really ended. Dropped,
    /// this drops the stream and aborts the tasks.
    ///
    /// It is a [`Group`](crate::Group) with a [limit](crate::Group::limit), and has its
    /// [traps](crate::group): a worker sees the end, if it looks. A task that has ended is freed at once. Go's counterpart is `n`
    /// goroutines of an `errgroup` that range over a channel. Where nothing needs a task of its own,
    /// `try_for_each_concurrent` of `futures`, on a stream that is [`checked_by`](Self::checked_by) the
    /// context, does.
    ///
    /// # Errors
    ///
    /// The first task's error, by value. Without one, if the context ended before the stream did, that end,
    /// converted: then not every item has been worked on.
    ///
    /// # Panics
    ///
    /// If `n` is zero; outside a Tokio runtime, as [`tokio::spawn`]; and as the task that panicked, once
    /// all have ended.
    ///
    /// ```
    /// use std::io;
    /// use std::sync::Arc;
    /// use futures::stream;
    /// use tokio_ctx::{Context, StreamExt as _};
    ///
    /// struct Client;
    ///
    /// impl Client {
    ///     async fn fetch(&self, page: u32) -> io::Result<()> {
    ///         if page == 7 { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    ///     }
    /// }
    ///
    /// async fn crawl(ctx: Context, client: Arc<Client>) -> io::Result<()> {
    ///     let pages = stream::iter(1..);
    ///     let pool = pages.for_each_task(&ctx, 4, |ctx, page| {
    ///         let client = client.clone(); // One for each task.
    ///         async move { ctx.try_run(client.fetch(page)).await }
    ///     });
    ///     pool.await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let crawler = Context::background().spawn_with(|ctx| crawl(ctx, Arc::new(Client)));
    /// let failed = crawler.await.unwrap().unwrap_err();
    /// assert_eq!(failed.kind(), io::ErrorKind::ConnectionReset);
    /// # }
    /// ```
    #[track_caller]
    fn for_each_task<F, Fut, E>(
        self,
        ctx: &Context,
        n: usize,
        work: F,
    ) -> impl Future<Output = Result<(), E>>
    where
        Self: Sized,
        F: FnMut(Context, Self::Item) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: From<Error> + fmt::Display + Send + 'static,
    {
        for_each_task(self, ctx, n, work)
    }
}

impl<S: Stream> StreamExt for S {}

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
        // Each item is an operation of its own.
        entry: Entry,
    }
}

impl<'a, S: Stream> Bounded<'a, S> {
    fn new(stream: S, ctx: &'a Context) -> Self {
        Bounded { stream: Some(stream), ctx, wait: None, waits: false, entry: Entry::Fresh }
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
                Poll::Ready(next) => next.map(Ok),
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
