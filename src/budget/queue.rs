//! [`Queue`]: a channel whose items carry their context, and which skips overdue items.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use futures_core::stream::Stream;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};

use crate::context::{Context, NotEnoughTime};
use crate::error::Error;
use crate::task::StreamExt;

impl Context {
    /// Pairs an item with this context, to send it through a channel to a [`Queue`](crate::budget::Queue).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1));
    /// let carried = ctx.carry("resize 7.jpg");
    /// assert_eq!(carried.context().deadline(), ctx.deadline());
    /// ```
    pub fn carry<T>(&self, item: T) -> Carried<T> {
        Carried { ctx: self.clone(), item }
    }
}

/// An item and its context. Returned by [`Context::carry`].
///
/// ```
/// use tokio_ctx::Context;
///
/// let (ctx, job) = Context::background().with_value("alice").carry(7).into_parts();
/// assert_eq!((ctx.value::<&str>(), job), (Some(&"alice"), 7));
/// ```
#[derive(Clone, Debug)]
pub struct Carried<T> {
    ctx: Context,
    item: T,
}

impl<T> Carried<T> {
    /// Returns the context.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Returns the item.
    pub fn item(&self) -> &T {
        &self.item
    }

    /// Splits the pair into the context and the item.
    pub fn into_parts(self) -> (Context, T) {
        (self.ctx, self.item)
    }
}

/// The receiving end of a channel of [`Carried`] items, which skips overdue items.
///
/// Under overload, a queue grows until its items wait longer than their callers do. From then on, all work is done for
/// callers that have left. A `Queue` checks each item when it is received. If the item's context has ended, or has less
/// remaining time than [`least`](Self::least), the item is skipped, counted by [`skipped`](Self::skipped), and passed to
/// [`on_skip`](Self::on_skip), which can reply to the caller. The workers' time goes to items that can still be
/// answered.
///
/// A `Queue` is created from either receiver of `tokio::sync::mpsc`, and is a `Stream`.
/// [`for_each_task`](Self::for_each_task) processes the items with a pool of tasks.
///
/// # When not to use it
///
/// - For items that have to be processed in any case, such as log events. Send those without a deadline.
/// - Instead of a bounded channel. An unbounded queue takes memory; a channel should hold no more items than can be
///   processed in the time that callers have.
/// - Between processes. Send the deadline in a header instead.
///
/// Go's counterpart is a loop that checks the `ctx.Err()` of each job. Similar are CoDel for request queues, and gRPC
/// servers, which drop a call whose deadline has passed before its handler runs.
///
/// ```
/// use std::time::Duration;
/// use tokio::sync::{mpsc, oneshot};
/// use tokio_ctx::budget::{Carried, Queue};
/// use tokio_ctx::{Context, Error};
///
/// struct Job {
///     page: u32,
///     reply: oneshot::Sender<Result<u32, Error>>,
/// }
///
/// type Jobs = mpsc::Sender<Carried<Job>>;
///
/// async fn render(ctx: &Context, sender: &Jobs, page: u32) -> Result<u32, Error> {
///     let (reply, replied) = oneshot::channel();
///     let _closed = ctx.run(sender.send(ctx.carry(Job { page, reply }))).await?;
///     ctx.run(replied).await?.expect("the pool replies")
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (sender, receiver) = mpsc::channel(64);
/// let queue = Queue::from(receiver)
///     .least(Duration::from_millis(20)) // The time to render a page.
///     .on_skip(|job: Carried<Job>, why| {
///         let _left = job.into_parts().1.reply.send(Err(why.into()));
///     });
/// let skipped = queue.skipped();
/// let pool = Context::background().spawn_with(|ctx| async move {
///     let work = |ctx: Context, job: Job| async move {
///         let rendered = ctx.sleep(Duration::from_millis(20)).await;
///         let _left = job.reply.send(rendered.map(|()| job.page));
///     };
///     queue.for_each_task(&ctx, 1, work).await
/// });
///
/// let ctx = Context::background().with_timeout(Duration::from_millis(50));
/// let pages = futures::future::join_all((1..=4).map(|page| render(&ctx, &sender, page)));
/// let pages = pages.await.into_iter().filter_map(Result::ok);
/// assert_eq!(pages.collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(skipped.get(), 2); // Only 10 ms were left for pages 3 and 4.
/// # drop(sender);
/// # pool.await.unwrap().unwrap();
/// # }
/// ```
pub struct Queue<T> {
    source: Source<T>,
    least: Duration,
    on_skip: Option<OnSkip<T>>,
    skipped: Skipped,
}

type OnSkip<T> = Box<dyn FnMut(Carried<T>, NotEnoughTime) + Send>;

enum Source<T> {
    Bounded(Receiver<Carried<T>>),
    Unbounded(UnboundedReceiver<Carried<T>>),
}

/// Counts the items that a [`Queue`] has skipped. Returned by [`Queue::skipped`].
///
/// The counter can be read while the queue is used elsewhere. Clones share the count.
///
/// ```
/// use tokio::sync::mpsc;
/// use tokio_ctx::budget::Queue;
///
/// let (_sender, receiver) = mpsc::channel(8);
/// let skipped = Queue::<u32>::from(receiver).skipped();
/// assert_eq!(skipped.get(), 0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Skipped(Arc<AtomicU64>);

impl Skipped {
    /// Returns the number of items that were skipped so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T> From<Receiver<Carried<T>>> for Queue<T> {
    fn from(receiver: Receiver<Carried<T>>) -> Self {
        Queue::new(Source::Bounded(receiver))
    }
}

impl<T> From<UnboundedReceiver<Carried<T>>> for Queue<T> {
    fn from(receiver: UnboundedReceiver<Carried<T>>) -> Self {
        Queue::new(Source::Unbounded(receiver))
    }
}

impl<T> Queue<T> {
    fn new(source: Source<T>) -> Self {
        Queue { source, least: Duration::ZERO, on_skip: None, skipped: Skipped::default() }
    }

    /// Skips items with less remaining time than `least`, the time that it takes to process one.
    ///
    /// Without it, items are started that cannot finish in time. Under sustained overload that is true of all items,
    /// because each has waited for almost all of its time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::sync::mpsc;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Queue;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (sender, receiver) = mpsc::unbounded_channel();
    /// let mut queue = Queue::from(receiver).least(Duration::from_millis(200));
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// sender.send(ctx.carry("late")).unwrap();
    /// sender.send(Context::background().carry("in time")).unwrap();
    /// assert_eq!(*queue.recv().await.unwrap().item(), "in time");
    /// # }
    /// ```
    pub fn least(mut self, least: Duration) -> Self {
        self.least = least;
        self
    }

    /// Calls `on_skip` with each item that is skipped, and the reason.
    ///
    /// The task that reads the queue calls it, so it should be fast. The example of [`Queue`] replies to the caller.
    pub fn on_skip(mut self, on_skip: impl FnMut(Carried<T>, NotEnoughTime) + Send + 'static) -> Self {
        self.on_skip = Some(Box::new(on_skip));
        self
    }

    /// Returns the counter of skipped items.
    pub fn skipped(&self) -> Skipped {
        self.skipped.clone()
    }

    /// Receives the next item that has enough time left. Returns `None` once all senders are dropped and the channel is
    /// empty.
    ///
    /// This method is cancel-safe: if its future is dropped before it is ready, only overdue items have been received.
    ///
    /// ```
    /// use tokio::sync::mpsc;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Queue;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (sender, receiver) = mpsc::channel(8);
    /// let ctx = Context::background().with_cancel();
    /// sender.send(ctx.carry(1)).await.unwrap();
    /// sender.send(Context::background().carry(2)).await.unwrap();
    /// ctx.cancel_with("client left");
    /// drop(sender);
    ///
    /// let mut queue = Queue::from(receiver);
    /// assert_eq!(*queue.recv().await.unwrap().item(), 2);
    /// assert!(queue.recv().await.is_none());
    /// assert_eq!(queue.skipped().get(), 1);
    /// # }
    /// ```
    pub async fn recv(&mut self) -> Option<Carried<T>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Polls for the next item; see [`recv`](Self::recv).
    pub fn poll_recv(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Carried<T>>> {
        loop {
            // Each receive uses a unit of the task's cooperative budget, so that skipping many items in a row yields.
            let next = match &mut self.source {
                Source::Bounded(receiver) => receiver.poll_recv(cx),
                Source::Unbounded(receiver) => receiver.poll_recv(cx),
            };
            let Some(carried) = ready!(next) else { return Poll::Ready(None) };
            let Err(short) = carried.ctx.require(self.least) else { return Poll::Ready(Some(carried)) };
            self.skipped.0.fetch_add(1, Ordering::Relaxed);
            if let Some(on_skip) = &mut self.on_skip {
                on_skip(carried, short);
            }
        }
    }

    /// Runs a task for each item, at most `n` at a time.
    ///
    /// Like [`StreamExt::for_each_task`](crate::StreamExt::for_each_task), it receives an item only when a task can be
    /// started for it, so overdue items are skipped as late as possible. `work` receives the item and its context. That
    /// context also ends with `ctx`, and is the [`current`](Context::current) context of the task. Tasks are
    /// independent: each reports its result to its caller, and a failure does not stop the others.
    ///
    /// When `ctx` ends, no further items are received, and those in the channel are dropped. When the returned future is
    /// dropped, the tasks are aborted.
    ///
    /// # Errors
    ///
    /// Returns the error of `ctx` if it ends before all senders are dropped.
    ///
    /// # Panics
    ///
    /// Panics if `n` is zero, or outside of a Tokio runtime. If a task panics, the panic is resumed after all tasks have
    /// ended.
    ///
    /// ```
    /// use tokio::sync::mpsc;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Queue;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (sender, receiver) = mpsc::channel(8);
    /// sender.send(Context::background().with_value("alice").carry(7)).await.unwrap();
    /// drop(sender);
    /// let ctx = Context::background();
    /// let pool = Queue::from(receiver).for_each_task(&ctx, 4, |ctx, job| async move {
    ///     println!("job {job} for {:?}", ctx.value::<&str>());
    /// });
    /// pool.await.unwrap();
    /// # }
    /// ```
    #[track_caller]
    pub fn for_each_task<F, Fut>(
        self,
        ctx: &Context,
        n: usize,
        mut work: F,
    ) -> impl Future<Output = Result<(), Error>> + use<'_, T, F, Fut>
    where
        F: FnMut(Context, T) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        StreamExt::for_each_task(self, ctx, n, move |pool, carried| {
            let Carried { ctx, item } = carried;
            let scope = ctx.merge(&pool);
            let task = scope.scope(work(scope.clone(), item));
            async move {
                task.await;
                drop(scope);
                Ok::<(), Error>(())
            }
        })
    }
}

/// No field is pinned, whatever `T` is: the items are stored in the channel.
impl<T> Unpin for Queue<T> {}

impl<T> Stream for Queue<T> {
    type Item = Carried<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Carried<T>>> {
        self.poll_recv(cx)
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("least", &self.least)
            .field("skipped", &self.skipped.get())
            .finish_non_exhaustive()
    }
}
