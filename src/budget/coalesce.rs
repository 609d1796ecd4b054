//! [`Context::coalesce`]: callers that want the same share one piece of work.
//!
//! # Concurrency
//!
//! One lock over the map of what is under way. A caller joins a piece of work, or begins one, in one step under it,
//! and leaves under it; the last to leave takes the work out of the map in the same step, so that nothing joins work
//! that is about to be ended. Work that is through is taken out before its output is sent: what comes later begins
//! anew. The work is a task; it is spawned, ended, and its output cloned, outside of the lock. Under the lock runs no
//! foreign code but the key's `Hash` and `Eq`: should they panic, the map is as it was.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::hash::Hash;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::context::refusal::checked;
use crate::context::run::Bound;
use crate::context::{CancelScope, Canceler, Context};
use crate::error::Error;

impl Context {
    /// Shares one piece of work among all that want the same: of several calls with one key, one does the work, and all
    /// have its output.
    ///
    /// If nothing is under way for the key, `f` is called, in a task, with a context that has this one's values, not
    /// its end; otherwise this joins what is under way, and `f` is dropped. Each caller waits under its own context
    /// and may leave at any time, the first one as well: the work belongs to all of them. It ends when the last
    /// has left, or at the latest of their deadlines, as the [`Coalescer`] says. What comes after it is through
    /// begins anew: this is no cache.
    ///
    /// # When not to use it
    ///
    /// For what is done for one caller in particular: the work has the values of the one that came first, its user and
    /// its permissions among them; put into the key what the output depends on. For work that changes something: two
    /// callers that pay want two payments. If an answer must not be older than the question: a caller that joins has
    /// the answer to a question that was asked before.
    ///
    /// Go's counterpart is `golang.org/x/sync/singleflight`, where the work runs under the context of the first caller.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended before the work was through.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run); outside a Tokio runtime; and if the work panics, or the runtime of its task shuts down,
    /// in each of its callers.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Coalescer;
    ///
    /// # async fn fetch(_: &Context, id: u64) -> Arc<str> {
    /// #     tokio::time::sleep(Duration::from_millis(100)).await;
    /// #     format!("page {id}").into()
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let pages: Coalescer<u64, Arc<str>> = Coalescer::new();
    /// let get = |ctx: Context| {
    ///     let pages = &pages;
    ///     async move { ctx.coalesce(pages, 7, |ctx| async move { fetch(&ctx, 7).await }).await }
    /// };
    ///
    /// let hurried = Context::background().with_timeout(Duration::from_millis(50));
    /// let patient = Context::background().with_timeout(Duration::from_millis(150));
    /// // The first leaves half-way, and the second has the page all the same.
    /// let (left, page) = tokio::join!(get(hurried.clone()), get(patient.clone()));
    /// assert!(left.unwrap_err().is_deadline_exceeded());
    /// assert_eq!(&*page.unwrap(), "page 7");
    /// # }
    /// ```
    #[track_caller]
    pub fn coalesce<K, T, F, Fut>(
        &self,
        work: &Coalescer<K, T>,
        key: K,
        f: F,
    ) -> impl Future<Output = Result<T, Error>> + use<'_, K, T, F, Fut>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (shared, called_at) = (work.shared.clone(), Location::caller());
        async move {
            checked(self).await?;
            let runtime = Handle::current();
            let (seat, new) = shared.join(self, key);
            if let Some(lead) = new {
                lead.start(self, &runtime, called_at, f);
            }
            let mut seat = seat;
            let output = Bound::begun(self, seat.output()).await?;
            Ok(output.expect("coalesced work panicked, or was lost as its runtime shut down"))
        }
    }
}

/// What is under way for [`Context::coalesce`], by its key. A clone is the same one.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::budget::Coalescer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // What can fail shares its error in an `Arc`, as the output is cloned for each caller.
/// let loads: Coalescer<&str, Result<u32, std::sync::Arc<std::io::Error>>> = Coalescer::new();
/// let ctx = Context::background();
/// let loaded = ctx.coalesce(&loads, "ada", |_| async { Ok(36) });
/// assert_eq!(loaded.await.unwrap().unwrap(), 36);
/// assert!(loads.is_empty());
/// # }
/// ```
pub struct Coalescer<K, T> {
    shared: Arc<Shared<K, T>>,
}

struct Shared<K, T> {
    map: Mutex<Map<K, T>>,
    /// Whether work goes on when all have left, until the latest of their deadlines.
    outlives: bool,
}

struct Map<K, T> {
    under_way: HashMap<K, Flight<T>>,
    /// How many have been begun: each has a number, so that one that follows under the same key is told apart.
    begun: u64,
}

/// A piece of work.
struct Flight<T> {
    number: u64,
    callers: usize,
    /// The latest deadline of those that have called; `None`: one of them has none.
    latest: Option<Instant>,
    output: watch::Receiver<Option<T>>,
    canceler: Canceler,
}

impl<K, T> Coalescer<K, T> {
    /// One whose work ends when the last of its callers has left.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Coalescer;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let work: Coalescer<u32, ()> = Coalescer::new();
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// ctx.coalesce(&work, 1, |_| std::future::pending()).await.unwrap_err();
    /// assert!(work.is_empty());
    /// # }
    /// ```
    pub fn new() -> Self {
        Coalescer::outliving(false)
    }

    /// One whose work goes on although all callers have left, until the latest of their deadlines: what was asked for
    /// once is likely to be asked for again, and finds it under way.
    ///
    /// The deadline moves with each caller that joins, so that [`deadline`](Context::deadline) in the work knows
    /// nothing of it. With a caller that has none the work has no limit but its own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::Coalescer;
    ///
    /// # async fn build_index() -> u32 { tokio::time::sleep(Duration::from_millis(80)).await; 7 }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let work = Coalescer::until_latest_deadline();
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let impatient = ctx.coalesce(&work, "index", |_| build_index());
    /// assert!(tokio::time::timeout(Duration::from_millis(50), impatient).await.is_err());
    ///
    /// // 30 ms later it is there.
    /// let joined = ctx.coalesce(&work, "index", |_| async { unreachable!("it is under way") });
    /// assert_eq!(joined.await.unwrap(), 7);
    /// # }
    /// ```
    pub fn until_latest_deadline() -> Self {
        Coalescer::outliving(true)
    }

    fn outliving(outlives: bool) -> Self {
        let map = Mutex::new(Map { under_way: HashMap::new(), begun: 0 });
        Coalescer { shared: Arc::new(Shared { map, outlives }) }
    }

    /// How many pieces of work are under way.
    pub fn len(&self) -> usize {
        self.shared.map().under_way.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, T> Shared<K, T> {
    fn map(&self) -> MutexGuard<'_, Map<K, T>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, T> Shared<K, T> {
    /// Enters a caller with the work under way for that key. If there is none, with one that is to be started.
    fn join(self: &Arc<Self>, ctx: &Context, key: K) -> (Seat<K, T>, Option<Lead<K, T>>) {
        let deadline = ctx.deadline();
        if let Some(seat) = self.map().join(self, &key, deadline) {
            return (seat.with_key(key), None);
        }
        // Made outside of the lock: to derive may call a subscriber.
        let scope = ctx.without_cancel().with_cancel();
        let (sender, output) = watch::channel(None);
        let canceler = scope.canceler();
        let flight =
            Flight { number: 0, callers: 1, latest: deadline, output: output.clone(), canceler };
        let (inserted, place) = (key.clone(), key.clone());
        let mut map = self.map();
        // Another one may have been quicker.
        if let Some(seat) = map.join(self, &key, deadline) {
            drop(map);
            return (seat.with_key(key), None);
        }
        map.begun += 1;
        let number = map.begun;
        map.under_way.insert(inserted, Flight { number, ..flight });
        drop(map);
        let lead = Lead { place: Place { shared: self.clone(), key: place, number }, scope, sender };
        (Joined { shared: self.clone(), number, output }.with_key(key), Some(lead))
    }
}

impl<K: Hash + Eq, T> Map<K, T> {
    fn join(
        &mut self,
        shared: &Arc<Shared<K, T>>,
        key: &K,
        deadline: Option<Instant>,
    ) -> Option<Joined<K, T>> {
        let flight = self.under_way.get_mut(key)?;
        flight.callers += 1;
        flight.latest = flight.latest.zip(deadline).map(|(one, other)| one.max(other));
        Some(Joined { shared: shared.clone(), number: flight.number, output: flight.output.clone() })
    }
}

/// A seat, but for the key.
struct Joined<K, T> {
    shared: Arc<Shared<K, T>>,
    number: u64,
    output: watch::Receiver<Option<T>>,
}

impl<K: Hash + Eq, T> Joined<K, T> {
    fn with_key(self, key: K) -> Seat<K, T> {
        let Joined { shared, number, output } = self;
        Seat { place: Place { shared, key, number }, output }
    }
}

/// Where a piece of work is in the map.
struct Place<K, T> {
    shared: Arc<Shared<K, T>>,
    key: K,
    number: u64,
}

impl<K: Hash + Eq, T> Place<K, T> {
    /// Takes the work out of the map, if it is there and `is_over` says so. What it returns is to be dropped outside
    /// of the lock, which this is.
    fn remove_if(&self, is_over: impl FnOnce(&mut Flight<T>) -> bool) -> Option<(K, Flight<T>)> {
        let mut map = self.shared.map();
        let flight = map.under_way.get_mut(&self.key).filter(|flight| flight.number == self.number)?;
        if is_over(flight) { map.under_way.remove_entry(&self.key) } else { None }
    }

    fn latest(&self) -> Option<Instant> {
        let map = self.shared.map();
        map.under_way.get(&self.key).filter(|flight| flight.number == self.number)?.latest
    }
}

/// A caller's part in a piece of work. Dropped, the caller has left.
struct Seat<K: Hash + Eq, T> {
    place: Place<K, T>,
    output: watch::Receiver<Option<T>>,
}

impl<K: Hash + Eq, T: Clone> Seat<K, T> {
    /// What comes of the work; `None` if it is lost.
    async fn output(&mut self) -> Option<T> {
        self.output.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl<K: Hash + Eq, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        let outlives = self.place.shared.outlives;
        let left = self.place.remove_if(|flight| {
            flight.callers -= 1;
            flight.callers == 0 && !outlives
        });
        if let Some((_key, flight)) = left {
            flight.canceler.cancel_with("the last of its callers has left");
        }
    }
}

/// The work itself. Dropped, it is out of the map, and if nothing was sent, lost.
struct Lead<K: Hash + Eq, T> {
    place: Place<K, T>,
    scope: CancelScope,
    sender: watch::Sender<Option<T>>,
}

impl<K, T> Lead<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    fn start<F, Fut>(self, ctx: &Context, runtime: &Handle, called_at: &'static Location<'static>, f: F)
    where
        F: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        ctx.without_cancel().spawn_on(runtime, called_at, async move {
            let work = {
                let ctx = self.scope.context();
                let work = pin!(ctx.run(ctx.scope(async { f(ctx.clone()).await })));
                self.until_over(work, called_at).await
            };
            if let Some(output) = work {
                drop(self.place.remove_if(|_| true));
                self.sender.send_replace(Some(output));
            }
        });
    }

    /// Resolves to the work's output; to none if the last caller has left, or the latest deadline has passed.
    async fn until_over(
        &self,
        work: impl Future<Output = Result<T, Error>>,
        called_at: &'static Location<'static>,
    ) -> Option<T> {
        if !self.place.shared.outlives {
            return work.await.ok();
        }
        let (mut work, mut deadline) = (pin!(work), pin!(self.deadline()));
        let first = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(output.ok()),
            Poll::Pending => deadline.as_mut().poll(cx).map(|()| None),
        });
        let output = first.await;
        if output.is_none() {
            self.scope.cancel_at(called_at, "the latest deadline of its callers has passed".into());
        }
        output
    }

    /// Resolves when the latest deadline has passed; then nothing joins any more.
    async fn deadline(&self) {
        loop {
            match self.place.latest() {
                Some(latest) => sleep_until(latest).await,
                // A caller without a deadline: none that comes later changes that.
                None => pending().await,
            }
            let now = Instant::now();
            if self.place.remove_if(|flight| flight.latest.is_some_and(|latest| latest <= now)).is_some()
            {
                return;
            }
        }
    }
}

impl<K: Hash + Eq, T> Drop for Lead<K, T> {
    fn drop(&mut self) {
        drop(self.place.remove_if(|_| true));
    }
}

impl<K, T> Clone for Coalescer<K, T> {
    fn clone(&self) -> Self {
        Coalescer { shared: self.shared.clone() }
    }
}

impl<K, T> Default for Coalescer<K, T> {
    fn default() -> Self {
        Coalescer::new()
    }
}

impl<K, T> fmt::Debug for Coalescer<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalescer").field("under_way", &self.len()).finish_non_exhaustive()
    }
}

/// As a `JoinHandle`: what is shared is the callers' to keep safe.
impl<K, T> UnwindSafe for Coalescer<K, T> {}
impl<K, T> RefUnwindSafe for Coalescer<K, T> {}
