//! What a stream does with a context: it ends with it, or has each item worked off in a task.

use std::fmt;
use std::future::Future;

use futures_core::stream::Stream;

use super::pool::for_each_task;
use crate::context::{Bounded, Checked, Context, TryBounded};
use crate::error::Error;

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
///
/// Each item that comes through one of these is progress for the [idle limits](Context::with_idle) of the context.
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
        Checked::new(self, ctx)
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
        TryBounded::new(self, ctx)
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
