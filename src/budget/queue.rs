//! Queues inside a process: an item carries its context, and is skipped when its time is up before it is started.

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
    /// Puts an item together with this context, to go through a channel: see [`Queue`](crate::budget::Queue).
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

/// An item on its way through a queue, and the context that it is for. Made by [`Context::carry`].
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
    /// The context.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// The item.
    pub fn item(&self) -> &T {
        &self.item
    }

    /// Both, by value.
    pub fn into_parts(self) -> (Context, T) {
        (self.ctx, self.item)
    }
}

/// The receiving end of a channel of [`Carried`] items, which skips those whose time is up.
///
/// Under overload a queue grows until each item waits longer than its caller does. What is taken from it then is work
/// for nobody, and all the time goes there. This looks at each item as it is taken: one whose context has ended, or
/// has less time left than [`least`](Self::least), is skipped, counted ([`skipped`](Self::skipped)), and handed to
/// [`on_skip`](Self::on_skip), which can tell its caller. So the time goes to what can still be answered.
///
/// It is made of either receiver of `tokio::sync::mpsc`, and is a stream. [`for_each_task`](Self::for_each_task) is the
/// pool that works it off.
///
/// # When not to use it
///
/// For items that must be done although nothing waits any more, such as events of a log: those carry no deadline. In place
/// of a bound: a queue that is never full only moves the waiting, and takes memory; let it hold what is worked off in
/// the time that callers have. Between processes: there the deadline goes along in a header.
///
/// Go's counterpart is a loop that looks at each job's `ctx.Err()`; others are CoDel for queues of requests, and
/// gRPC's servers, which drop a call whose deadline has passed before its handler runs.
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
/// async fn render(ctx: &Context, sender: &mpsc::Sender<Carried<Job>>, page: u32) -> Result<u32, Error> {
///     let (reply, replied) = oneshot::channel();
///     let _closed = ctx.run(sender.send(ctx.carry(Job { page, reply }))).await?;
///     ctx.run(replied).await?.expect("the pool replies")
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (sender, receiver) = mpsc::channel(64);
/// let queue = Queue::from(receiver)
///     .least(Duration::from_millis(20)) // What it takes to render a page.
///     .on_skip(|job, why| {
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
/// assert_eq!(skipped.get(), 2); // With 10 ms left.
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

/// How many items a [`Queue`] has skipped, also once that has gone into its pool. Made by [`Queue::skipped`].
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
    /// So many, up to now.
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

    /// Skips items with less time left than this: what it takes to work one off.
    ///
    /// Without it an item is started whose time is up before it is through; under lasting overload that is each of them, as
    /// each has waited for almost all the time it had.
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

    /// Calls this with each item that is skipped, and why: the time left, or the end of its context.
    ///
    /// It runs where the queue is read, and should be quick. The example of [`Queue`] replies to the caller.
    pub fn on_skip(mut self, on_skip: impl FnMut(Carried<T>, NotEnoughTime) + Send + 'static) -> Self {
        self.on_skip = Some(Box::new(on_skip));
        self
    }

    /// A handle on the count of items that are skipped.
    pub fn skipped(&self) -> Skipped {
        self.skipped.clone()
    }

    /// The next item that there is time for; `None` once all senders are gone and the channel is empty.
    ///
    /// Cancel-safe: dropped before it is ready, it has taken nothing but items to skip. What it returns
    /// is to be started at once; time goes on.
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

    /// [`recv`](Self::recv), polled.
    pub fn poll_recv(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Carried<T>>> {
        loop {
            // Each takes a unit of the task's cooperative budget, so that a crowd that is skipped lets others run.
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

    /// Works the queue off: a task for each item, at most `n` at once.
    ///
    /// As [`StreamExt::for_each_task`](crate::StreamExt::for_each_task), whose name it takes: an item is taken only when
    /// a worker is free for it, and its time is looked at then. `work` is given the item and its context, which ends with
    /// the pool's as well, and is [`current`](Context::current) in the task. Items are independent of each other, so
    /// that what becomes of one is the task's to tell its caller, and ends nothing else.
    ///
    /// When `ctx` ends, no further item is taken, and what is left in the channel is dropped. Dropped, this aborts the
    /// tasks.
    ///
    /// # Errors
    ///
    /// The end of `ctx`, if that came before all senders were gone.
    ///
    /// # Panics
    ///
    /// If `n` is zero; outside a Tokio runtime; and as a task that panicked, once all have ended.
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
    /// let pool = Queue::from(receiver).for_each_task(&Context::background(), 4, |ctx, job| async move {
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

/// Nothing in it is pinned: the items are the channel's.
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
