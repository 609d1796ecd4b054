//! Extension trait for streams: end with a context, or process each item in a task.

use std::fmt;
use std::future::Future;

use futures_core::stream::Stream;

use super::pool::for_each_task;
use crate::context::{Bounded, Checked, Context, TryBounded};
use crate::error::Error;

/// Extension trait for streams: end with a context, or process each item in a task.
///
/// To use it together with the `StreamExt` of `futures` or `tokio_stream`, import both as `_`: see
/// [names that clash](guide/traps/index.html#names-that-clash).
///
/// | when the context ends | use |
/// |---|---|
/// | the stream ends | [`bounded_by`](Self::bounded_by) |
/// | the stream returns the error as its last item | [`checked_by`](Self::checked_by) |
/// | the same, for a stream of results | [`try_bounded_by`](Self::try_bounded_by) |
///
/// Each item that comes through one of these is progress for the [idle limits](Context::with_idle) of the context.
pub trait StreamExt: Stream {
    /// Yields the stream's items until the context ends, then drops the stream and ends.
    ///
    /// The context is checked before each item, so a stream that always has an item ready ends as well. No item
    /// is taken from the stream and then lost. To find out whether the stream has ended or was stopped, call
    /// [`ctx.err()`](Context::err) afterward. In Go, this is the or-done loop around
    /// `select { case <-ctx.Done(): … case v := <-c: … }`.
    ///
    /// The source is dropped when the stream is next polled after the end. The stream borrows the context. If
    /// it has to own it, for example in a streamed response, use `take_until(ctx.done_owned())` of `futures`,
    /// which keeps the source until it is dropped.
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

    /// Yields the stream's items until the context ends, and then the context's error as the last item.
    ///
    /// If the stream ends first, there is no such item. See [`bounded_by`](Self::bounded_by).
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
    /// let (_prices, incoming) = mpsc::channel::<u32>(8); // Nothing is sent.
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
        Checked::new(self, ctx)
    }

    /// Yields the results of a stream until the context ends, and then the context's error as the last item.
    ///
    /// This is [`checked_by`](Self::checked_by) for a stream of results, with the context's error converted
    /// into the error type of the stream. The stream continues after errors of its own.
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
        TryBounded::new(self, ctx)
    }

    /// Runs a task for each item, at most `n` at the same time, until one fails. Go's `n` goroutines of an
    /// `errgroup` that range over a channel.
    ///
    /// `work` is called with a child of `ctx`, which is also the [`current`](Context::current) context of the
    /// task, and with the item. The future that it returns is spawned. The stream is polled for an item only
    /// when the limit allows another task, so slow tasks apply backpressure to the source. The stream is polled
    /// by the caller and not in a task, so it may borrow, and need not be `Send`.
    ///
    /// The first error cancels the context of the tasks, with a [`TaskFailed`](crate::group::TaskFailed) as the
    /// cause. No further item is then taken. The returned future resolves when all tasks have finished.
    /// Dropping it drops the stream and aborts the tasks.
    ///
    /// This uses a [`Group`](crate::Group) with a [limit](crate::Group::limit), and has the same
    /// [traps](crate::group): tasks have to observe their context. Finished tasks are freed immediately. If no
    /// tasks are needed, use `try_for_each_concurrent` of `futures` on a stream that is
    /// [`checked_by`](Self::checked_by) the context.
    ///
    /// # Errors
    ///
    /// Returns the error of the first task that failed. If no task failed, but the context ended before the
    /// stream, returns the context's error, converted. Not all items have been processed then.
    ///
    /// # Panics
    ///
    /// Panics if `n` is zero, and outside of a Tokio runtime. Resumes the panic of a task after all tasks have
    /// finished.
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
