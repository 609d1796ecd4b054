//! [`Context::coalesce`]: shares one piece of work between the callers that need it.
//!
//! # Concurrency
//!
//! One lock protects the map of the work in progress. A caller joins existing work, or inserts new work, in one
//! critical section. It leaves in another, and the last caller to leave also removes the work from the map there, so
//! that no caller can join work that is about to be canceled. Finished work is removed before its output is sent, so
//! that later calls start new work. The work runs in a task. Spawning it, canceling it and cloning its output all
//! happen outside of the lock. The only foreign code that runs under the lock is the key's `Hash` and `Eq`; if they
//! panic, the map is unchanged.

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
    /// Shares work between concurrent calls with the same key: one call does the work, and all get its output.
    ///
    /// If no work is in progress for the key, `f` runs in a task, with a context that has the values of this one, but
    /// not its end. Otherwise the call joins the work in progress, and `f` is dropped. Each caller waits under
    /// its own context, and can leave at any time; the work continues for the others, even if the first caller
    /// leaves. The work is canceled when the last caller has left, or at the latest of their deadlines, depending on
    /// the [`Coalescer`]. This is not a cache: a call after the work has finished starts it again.
    ///
    /// # When not to use it
    ///
    /// - If the output depends on the caller. The work runs with the values of the first caller, such as its user;
    ///   put everything the output depends on into the key.
    /// - For work with side effects: two callers that each make a payment want two payments.
    /// - Inside the work of the same key, directly or by way of another key. The work would wait for itself, and never end.
    /// - If the output must not be older than the call. A caller that joins receives the output of work that was
    ///   started before its call.
    ///
    /// Go's counterpart is `golang.org/x/sync/singleflight`, where the work runs with the context of the first caller.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends before the work has finished.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run). Panics outside of a Tokio runtime, and in each caller whose context has not ended if the
    /// work panics or the runtime of its task shuts down.
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
    /// // The first caller leaves halfway. The second still gets the page.
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
            let (mut caller, new) = shared.join(self, key);
            if let Some(leader) = new {
                leader.start(self, &runtime, called_at, f);
            }
            let output = Bound::begun(self, caller.output()).await?;
            // The work may have been stopped at the deadline of this caller, before its wait noticed that.
            let lost = "coalesced work panicked, or was aborted by the shutdown of its runtime";
            output.ok_or_else(|| self.err().expect(lost))
        }
    }
}

/// The work in progress of [`Context::coalesce`], by key. Clones share it.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::budget::Coalescer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // The output is cloned for each caller, so an error that is not `Clone` goes into an `Arc`.
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
    /// Whether work continues after all callers have left, until the latest of their deadlines.
    outlives_callers: bool,
}

struct Map<K, T> {
    in_progress: HashMap<K, Flight<T>>,
    /// The number of flights started so far. It numbers them, to distinguish successive flights of the same key.
    started: u64,
}

/// A piece of work in progress.
struct Flight<T> {
    number: u64,
    callers: usize,
    /// The latest deadline of all callers so far; `None` if one of them has no deadline.
    latest: Option<Instant>,
    output: watch::Receiver<Option<T>>,
    canceler: Canceler,
}

impl<K, T> Coalescer<K, T> {
    /// Creates a `Coalescer` that cancels work when its last caller has left.
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
        Coalescer::with_mode(false)
    }

    /// Creates a `Coalescer` that continues work until the latest deadline of its callers, even if all of them have
    /// left, so that a later call can join it.
    ///
    /// The limit moves with each caller that joins, so the [`deadline`](Context::deadline) of the work's context does
    /// not include it. If one of the callers has no deadline, there is no limit.
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
    /// // The build continues, and this call joins it.
    /// let joined = ctx.coalesce(&work, "index", |_| async { unreachable!("in progress already") });
    /// assert_eq!(joined.await.unwrap(), 7);
    /// # }
    /// ```
    pub fn until_latest_deadline() -> Self {
        Coalescer::with_mode(true)
    }

    fn with_mode(outlives_callers: bool) -> Self {
        let map = Mutex::new(Map { in_progress: HashMap::new(), started: 0 });
        Coalescer { shared: Arc::new(Shared { map, outlives_callers }) }
    }

    /// Returns the number of keys with work in progress.
    pub fn len(&self) -> usize {
        self.shared.map().in_progress.len()
    }

    /// Returns whether no work is in progress.
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
    /// Adds a caller to the work in progress for the key. If there is none, inserts new work, and also returns the
    /// `Leader` that has to start it.
    fn join(self: &Arc<Self>, ctx: &Context, key: K) -> (Caller<K, T>, Option<Leader<K, T>>) {
        let deadline = ctx.deadline();
        if let Some(joined) = self.map().join(self, &key, deadline) {
            return (joined.with_key(key), None);
        }
        // Derived outside of the lock, because deriving may call a subscriber.
        let scope = ctx.without_cancel().with_cancel();
        let (sender, output) = watch::channel(None);
        let canceler = scope.canceler();
        let flight =
            Flight { number: 0, callers: 1, latest: deadline, output: output.clone(), canceler };
        let (inserted, leaders) = (key.clone(), key.clone());
        let mut map = self.map();
        // Another call may have inserted work in the meantime.
        if let Some(joined) = map.join(self, &key, deadline) {
            drop(map);
            return (joined.with_key(key), None);
        }
        map.started += 1;
        let number = map.started;
        map.in_progress.insert(inserted, Flight { number, ..flight });
        drop(map);
        let leader = Leader { slot: Slot { shared: self.clone(), key: leaders, number }, scope, sender };
        (Joined { shared: self.clone(), number, output }.with_key(key), Some(leader))
    }
}

impl<K: Hash + Eq, T> Map<K, T> {
    fn join(
        &mut self,
        shared: &Arc<Shared<K, T>>,
        key: &K,
        deadline: Option<Instant>,
    ) -> Option<Joined<K, T>> {
        let flight = self.in_progress.get_mut(key)?;
        flight.callers += 1;
        flight.latest = flight.latest.zip(deadline).map(|(one, other)| one.max(other));
        Some(Joined { shared: shared.clone(), number: flight.number, output: flight.output.clone() })
    }
}

/// A [`Caller`] without its key, which is moved in after the lock is released.
struct Joined<K, T> {
    shared: Arc<Shared<K, T>>,
    number: u64,
    output: watch::Receiver<Option<T>>,
}

impl<K: Hash + Eq, T> Joined<K, T> {
    fn with_key(self, key: K) -> Caller<K, T> {
        let Joined { shared, number, output } = self;
        Caller { slot: Slot { shared, key, number }, output }
    }
}

/// Identifies a flight in the map.
struct Slot<K, T> {
    shared: Arc<Shared<K, T>>,
    key: K,
    number: u64,
}

impl<K: Hash + Eq, T> Slot<K, T> {
    /// Removes the flight from the map if it is still there and `should_remove` returns true. Returns it, so that the
    /// caller drops it outside of the lock.
    fn remove_if(&self, should_remove: impl FnOnce(&mut Flight<T>) -> bool) -> Option<(K, Flight<T>)> {
        let mut map = self.shared.map();
        let flight = map.in_progress.get_mut(&self.key).filter(|flight| flight.number == self.number)?;
        if should_remove(flight) { map.in_progress.remove_entry(&self.key) } else { None }
    }

    fn latest(&self) -> Option<Instant> {
        let map = self.shared.map();
        map.in_progress.get(&self.key).filter(|flight| flight.number == self.number)?.latest
    }
}

/// A caller that waits for the work. Dropping it leaves.
struct Caller<K: Hash + Eq, T> {
    slot: Slot<K, T>,
    output: watch::Receiver<Option<T>>,
}

impl<K: Hash + Eq, T: Clone> Caller<K, T> {
    /// Waits for the output of the work. Returns `None` if the work was dropped before it finished.
    async fn output(&mut self) -> Option<T> {
        self.output.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl<K: Hash + Eq, T> Drop for Caller<K, T> {
    fn drop(&mut self) {
        let outlives_callers = self.slot.shared.outlives_callers;
        let removed = self.slot.remove_if(|flight| {
            flight.callers -= 1;
            flight.callers == 0 && !outlives_callers
        });
        if let Some((_key, flight)) = removed {
            flight.canceler.cancel_with("the last of its callers has left");
        }
    }
}

/// Runs the work and sends its output. Dropping it removes the flight from the map, and closes the channel.
struct Leader<K: Hash + Eq, T> {
    slot: Slot<K, T>,
    scope: CancelScope,
    sender: watch::Sender<Option<T>>,
}

impl<K, T> Leader<K, T>
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
                self.run_to_end(work, called_at).await
            };
            if let Some(output) = work {
                drop(self.slot.remove_if(|_| true));
                self.sender.send_replace(Some(output));
            }
        });
    }

    /// Resolves to the output of the work, or to `None` if the last caller has left or the latest deadline has passed.
    async fn run_to_end(
        &self,
        work: impl Future<Output = Result<T, Error>>,
        called_at: &'static Location<'static>,
    ) -> Option<T> {
        if !self.slot.shared.outlives_callers {
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

    /// Resolves when the latest deadline has passed, after removing the flight, so that no further caller joins.
    async fn deadline(&self) {
        loop {
            match self.slot.latest() {
                Some(latest) => sleep_until(latest).await,
                // One caller has no deadline, so there is no limit any more.
                None => pending().await,
            }
            let now = Instant::now();
            if self.slot.remove_if(|flight| flight.latest.is_some_and(|latest| latest <= now)).is_some()
            {
                return;
            }
        }
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        drop(self.slot.remove_if(|_| true));
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
        f.debug_struct("Coalescer").field("in_progress", &self.len()).finish_non_exhaustive()
    }
}

/// Like a `JoinHandle`: unwind safety of the output is up to its callers.
impl<K, T> UnwindSafe for Coalescer<K, T> {}
impl<K, T> RefUnwindSafe for Coalescer<K, T> {}
