//! [`Bucket`]s: many deadlines that share one Tokio timer.
//!
//! Time is divided into slots, whose width is at most a quarter of the time left until the deadline. All deadlines of
//! one runtime in the same slot are in one bucket, with a timer at the start of the slot. When the timer fires, the
//! deadlines that are still in the bucket move to narrower slots. Most deadlines are removed long before that. The
//! timer of the narrowest slot is set to the deadline itself, so the only delay is Tokio's own rounding.
//!
//! Each thread has a small cache of buckets, so that worker threads do not share a lock. A bucket that is evicted from
//! the cache still serves its members. An empty bucket usually keeps its timer, which fires once and finds nothing. There
//! are two exceptions, in which a bucket closes as soon as it is empty: it is in no cache any more, because threads that
//! come and go must not leave timers behind; or the clock is paused, because a leftover timer would advance the time of a
//! test.
//!
//! A bucket closes once. It sets `closed`, and then removes its members. A member that was inserted before that is
//! handled. A member that is inserted later is refused, and is inserted into another bucket. No other lock is held
//! together with that of a bucket.

use std::cell::RefCell;
use std::mem;
use std::sync::{Arc, LazyLock, Weak};
use std::task::{Wake, Waker};

use tokio::task::yield_now;

use crate::pages::Pages;
use crate::stamp::Stamp;
use crate::sync::{AtomicBool, Mutex, Ordering, RuntimeId, Timer, is_paused, runtime, spawn};
use crate::trace::shielded;

/// The width of a slot is the time left, divided by this power of two.
const FRACTION: u32 = 2;
/// Slots narrower than this power of two in nanoseconds, about a millisecond, are the narrowest.
const FINEST: u32 = 20;
/// The size of a thread's cache for one runtime: sixteen buckets for each width, of which at most five are in use.
const SLOTS: usize = 512;
/// The number of runtimes in a thread's cache.
const RUNTIMES: usize = 4;
/// The number of members that are handled at once. If a bucket has more when its timer fires, a task handles them.
const BATCH: usize = 1024;

/// An object with a deadline, which is registered while something waits on it.
pub(crate) trait Timed: Send + Sync + Sized + 'static {
    fn deadline(&self) -> Stamp;

    /// Returns whether something waits on it. A wait that begins later finds the bucket closed.
    fn is_waited_on(&self) -> bool;

    /// Called when the deadline has passed.
    fn expire(self: &Arc<Self>, now: Stamp);

    /// Registers it in the current runtime, which is `here`. Returns true if it has ended, or if no time is left.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime, or in one without a time driver, as `tokio::time::sleep` does.
    #[track_caller]
    fn register_deadline(self: &Arc<Self>, here: RuntimeId) -> bool;

    /// Wakes the waiters, which register again where they are polled next.
    fn wake_waiters(&self);

    /// Calls `f` with the cache of this thread. Returns `None` if the thread is ending.
    fn with_cache<R>(f: impl FnOnce(&RefCell<Cache<Self>>) -> R) -> Option<R>;
}

/// Stands for a waker that [`Timed::wake_waiters`] has taken. Unlike [`Waker::noop`], it has an address of its own.
pub(crate) static TAKEN: LazyLock<Waker> = LazyLock::new(|| Waker::from(Arc::new(Taken { _own: 0 })));

pub(crate) fn is_taken(waker: &Waker) -> bool {
    waker.data() == TAKEN.data()
}

struct Taken {
    // Without a size, it could have the address of another allocation.
    _own: u8,
}

impl Wake for Taken {
    fn wake(self: Arc<Self>) {}
}

/// The deadlines of one runtime in one slot.
pub(crate) struct Bucket<T: Timed> {
    runtime: RuntimeId,
    slot: Slot,
    /// Whether it closes as soon as it is empty.
    closes_when_empty: AtomicBool,
    closed: AtomicBool,
    list: Mutex<List<T>>,
}

struct List<T> {
    entries: Pages<Weak<T>>,
    timer: Option<Timer>,
}

/// The registration with a bucket. Removed when this is dropped, which takes the lock of the bucket.
#[must_use]
pub(crate) struct Entry<T: Timed> {
    pub(crate) bucket: Option<Arc<Bucket<T>>>,
    pub(crate) key: u32,
}

impl<T: Timed> Entry<T> {
    /// Inserts an object into the bucket of its slot. Returns `None` if the time of the slot has passed.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime, or in one without a time driver, as `tokio::time::sleep` does.
    #[track_caller]
    pub(crate) fn new(item: &Arc<T>, left: u64, here: RuntimeId) -> Option<Entry<T>> {
        let slot = Slot::new(item.deadline(), left);
        let present = cached(here, slot, |place| {
            let CachedBucket(bucket) = place.as_ref()?;
            let fits = bucket.slot.key == slot.key && bucket.slot.at <= item.deadline();
            if fits { bucket.insert(item) } else { None }
        });
        if let Some(entry) = present.flatten() {
            return Some(entry);
        }
        let (bucket, entry) = Bucket::start(here, slot, item)?;
        let displaced = cached(here, slot, |place| place.replace(CachedBucket(bucket)));
        drop(displaced);
        Some(entry)
    }

    pub(crate) fn open_bucket(&self) -> Option<&Bucket<T>> {
        self.bucket.as_deref().filter(|bucket| !bucket.is_closed())
    }
}

impl<T: Timed> Drop for Entry<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(bucket) = self.bucket.take() {
            bucket.remove(Some(self.key));
        }
    }
}

/// Deadlines that share a timer.
#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    at: Stamp,
}

impl Slot {
    fn new(deadline: Stamp, left: u64) -> Slot {
        let shift = (left >> FRACTION).max(1).ilog2();
        if shift < FINEST {
            // The first member sets the time. Members with a later deadline move once more. One with an earlier deadline
            // gets another bucket.
            return Slot { key: Slot::key(0, deadline.0 >> (FINEST - 1)), at: deadline };
        }
        let index = deadline.0 >> shift;
        Slot { key: Slot::key(shift, index), at: Stamp(index << shift) }
    }

    fn key(shift: u32, index: u64) -> u64 {
        (u64::from(shift) << 58) | index
    }

    /// Returns the index in the cache.
    fn place(&self) -> usize {
        let (shift, index) = (self.key >> 58, self.key);
        (((shift % 32) << 4) | (index & 15)) as usize
    }
}

/// A bucket in a cache. When it is evicted, or its thread ends, it closes as soon as it is empty.
pub(crate) struct CachedBucket<T: Timed>(Arc<Bucket<T>>);

impl<T: Timed> Drop for CachedBucket<T> {
    fn drop(&mut self) {
        // Loom drops thread-local values after the thread has ended, when it can no longer lock.
        if cfg!(not(tokio_ctx_loom)) {
            self.0.closes_when_empty.store(true, Ordering::Release);
            self.0.remove(None);
        }
    }
}

/// The cache of one thread.
pub(crate) type Cache<T> = Vec<(RuntimeId, Vec<Option<CachedBucket<T>>>)>;

/// Calls `f` with the place of the slot in the cache of this thread. Returns `None` if the thread is ending.
fn cached<T: Timed, R>(
    here: RuntimeId,
    slot: Slot,
    f: impl FnOnce(&mut Option<CachedBucket<T>>) -> R,
) -> Option<R> {
    T::with_cache(|cache| {
        let mut cache = cache.borrow_mut();
        let known = cache.iter().position(|(runtime, _)| *runtime == here);
        let at = known.unwrap_or_else(|| {
            cache.truncate(RUNTIMES - 1);
            cache.insert(0, (here, (0..SLOTS).map(|_| None).collect()));
            0
        });
        f(&mut cache[at].1[slot.place()])
    })
}

impl<T: Timed> Bucket<T> {
    pub(crate) fn runtime(&self) -> RuntimeId {
        self.runtime
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether it closes as soon as it is empty.
    pub(crate) fn closes_when_empty(&self) -> bool {
        self.closes_when_empty.load(Ordering::Acquire)
    }

    /// Creates a bucket for a slot, with its first member. Returns `None` if the time of the slot has passed in the
    /// meantime.
    #[track_caller]
    fn start(runtime: RuntimeId, slot: Slot, item: &Arc<T>) -> Option<(Arc<Self>, Entry<T>)> {
        let mut timer = Timer::new(slot.at.instant());
        let bucket = Arc::new(Bucket {
            runtime,
            slot,
            closes_when_empty: AtomicBool::new(is_paused()),
            closed: AtomicBool::new(false),
            list: Mutex::new(List { entries: Pages::default(), timer: None }),
        });
        let entry = bucket.insert(item)?;
        if !timer.start(&Waker::from(bucket.clone())) {
            bucket.close();
            return None;
        }
        let mut list = bucket.list.lock();
        if !bucket.is_closed() {
            list.timer = Some(timer);
        }
        drop(list);
        Some((bucket, entry))
    }

    /// Inserts a member. Returns `None` if the bucket is closed.
    fn insert(self: &Arc<Self>, item: &Arc<T>) -> Option<Entry<T>> {
        let mut list = self.list.lock();
        if self.is_closed() {
            return None;
        }
        let key = list.entries.insert(Arc::downgrade(item));
        Some(Entry { bucket: Some(self.clone()), key })
    }

    /// Removes a member, and closes the bucket if it is empty and closes in that case.
    #[inline]
    fn remove(&self, key: Option<u32>) {
        if self.is_closed() {
            return;
        }
        let mut list = self.list.lock();
        key.map(|key| list.entries.remove(key));
        if self.closes_when_empty() && list.entries.is_empty() {
            self.closed.store(true, Ordering::Release);
            let timer = list.timer.take();
            drop(list);
            drop(timer);
        }
    }

    /// Closes the bucket, and returns its members.
    fn close(&self) -> Pages<Weak<T>> {
        let mut list = self.list.lock();
        self.closed.store(true, Ordering::Release);
        let (entries, timer) = (mem::take(&mut list.entries), list.timer.take());
        drop(list);
        drop(timer);
        entries
    }

    /// Called when the timer fires. Members whose deadline has passed end now. A task moves the others to narrower slots,
    /// and handles all of them if there are many, because this runs in the time driver, which has other timers to fire,
    /// and which may be shutting down.
    fn fire(&self) {
        let mut moving = Moving { runtime: self.runtime, items: self.close().into_iter().collect() };
        if runtime() != Some(self.runtime) {
            return;
        }
        let now = Stamp::now();
        if moving.items.len() <= BATCH {
            let stays = |item: Arc<T>| {
                let is_due = item.deadline() <= now;
                if is_due {
                    item.expire(now);
                }
                !is_due && item.is_waited_on()
            };
            moving.items.retain(|item| item.upgrade().is_some_and(stays));
        }
        if !moving.items.is_empty() {
            spawn(moving.run());
        }
    }
}

impl<T: Timed> Wake for Bucket<T> {
    fn wake(self: Arc<Self>) {
        shielded(|| self.fire());
    }
}

/// The members of a bucket whose timer has fired. If the runtime shuts down, this is dropped, and wakes those that have
/// not been moved, so that they register again where they are polled next.
struct Moving<T: Timed> {
    runtime: RuntimeId,
    items: Vec<Weak<T>>,
}

impl<T: Timed> Moving<T> {
    /// Registers each member again, with a narrower slot.
    async fn run(mut self) {
        let mut moved = 0;
        while let Some(item) = self.items.pop() {
            if let Some(item) = item.upgrade().filter(|item| item.is_waited_on()) {
                item.register_deadline(self.runtime);
            }
            moved += 1;
            if moved % BATCH == 0 {
                yield_now().await;
            }
        }
    }
}

impl<T: Timed> Drop for Moving<T> {
    fn drop(&mut self) {
        self.items.drain(..).filter_map(|item| item.upgrade()).for_each(|item| item.wake_waiters());
    }
}

#[cfg(test)]
#[cfg(not(tokio_ctx_loom))]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::runtime::Builder;

    use super::*;

    /// An object that something always waits on. Registering it again does nothing.
    #[derive(Default)]
    struct Item {
        registered: AtomicUsize,
    }

    std::thread_local! {
        static CACHE: RefCell<Cache<Item>> = RefCell::default();
    }

    impl Timed for Item {
        fn deadline(&self) -> Stamp {
            Stamp(1 << 60)
        }

        fn is_waited_on(&self) -> bool {
            true
        }

        fn expire(self: &Arc<Self>, _: Stamp) {}

        fn register_deadline(self: &Arc<Self>, _: RuntimeId) -> bool {
            self.registered.fetch_add(1, Relaxed);
            false
        }

        fn wake_waiters(&self) {
            panic!("it has been moved");
        }

        fn with_cache<R>(f: impl FnOnce(&RefCell<Cache<Self>>) -> R) -> Option<R> {
            CACHE.try_with(f).ok()
        }
    }

    fn runtimes() -> impl Iterator<Item = tokio::runtime::Runtime> {
        std::iter::repeat_with(|| Builder::new_current_thread().build().unwrap())
    }

    /// Widths of slots, as powers of two; that of the last slots is `FINEST - 1`.
    const WIDTHS: std::ops::Range<u32> = FINEST - 1..FINEST + 12;

    /// Returns the slot with this index among those of its width.
    fn slot(width: u32, index: u64) -> Slot {
        let left = if width < FINEST { 1 } else { 4 << width };
        Slot::new(Stamp(index << width), left)
    }

    #[test]
    fn a_timer_fires_in_the_last_quarter_of_the_time_left_and_never_late() {
        const NOW: u64 = 1 << 50;
        for left in (0..62).flat_map(|power| [1 << power, (1 << power) + 1, (2 << power) - 1]) {
            let at = Slot::new(Stamp(NOW + left), left).at.0;
            assert!(at <= NOW + left && at >= NOW + left - left / 4, "{left}: {at}");
        }
    }

    #[test]
    fn few_slots_share_all_deadlines() {
        const NOW: u64 = 1 << 50;
        for width in FINEST..FINEST + 20 {
            let lefts = (4 << width..8 << width).step_by(1 << (width - 8));
            let slots: HashSet<_> =
                lefts.map(|left: u64| Slot::new(Stamp(NOW + left), left)).map(|slot| slot.key).collect();
            assert!(slots.len() <= 5, "{}", slots.len());
        }
    }

    #[test]
    fn deadlines_have_one_slot_if_they_have_one_time() {
        let slots = || WIDTHS.flat_map(|width| (1000..1100).map(move |index| slot(width, index)));
        let keys: HashSet<_> = slots().map(|slot| slot.key).collect();
        assert_eq!(keys.len(), slots().count());
        for width in WIDTHS {
            let left = if width < FINEST { 1 } else { 4 << width };
            let last = Slot::new(Stamp((1001 << width) - 1), left);
            assert_eq!(last.key, slot(width, 1000).key);
        }
    }

    /// Sixteen slots of each width do not evict each other from the cache.
    #[test]
    fn sixteen_slots_of_each_width_have_places_of_their_own() {
        let slots = || WIDTHS.flat_map(|width| (1000..1016).map(move |index| slot(width, index)));
        let places: HashSet<_> = slots().map(|slot| slot.place()).collect();
        assert_eq!(places.len(), slots().count());
        assert!(places.into_iter().all(|place| place < SLOTS));
    }

    /// A thread that works in many runtimes keeps the caches of the last ones.
    #[test]
    fn the_cache_is_limited_to_the_last_runtimes() {
        let runtimes: Vec<_> = runtimes().take(3 * RUNTIMES).collect();
        let sizes = runtimes.iter().map(|runtime| {
            cached::<Item, _>(runtime.handle().id(), slot(FINEST, 0), |place| assert!(place.is_none()));
            CACHE.with_borrow(Vec::len)
        });
        let expected = (1..=runtimes.len()).map(|size| size.min(RUNTIMES));
        assert!(sizes.eq(expected));
        let ids = CACHE.with_borrow(|cache| cache.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let last = runtimes.iter().rev().take(RUNTIMES).map(|runtime| runtime.handle().id());
        assert!(ids.into_iter().eq(last));
    }

    /// The task that moves many members lets others run after each batch, and only then.
    #[test]
    fn moving_yields_after_each_batch() {
        let runtime = runtimes().next().unwrap();
        let item = Arc::new(Item::default());
        let items = (0..=3 * BATCH).map(|_| Arc::downgrade(&item)).collect();
        let moving = Moving { runtime: runtime.handle().id(), items };
        let seen = runtime.block_on(async {
            let moving = tokio::spawn(moving.run());
            let mut seen = Vec::new();
            while !moving.is_finished() {
                yield_now().await;
                seen.push(item.registered.load(Relaxed));
            }
            seen
        });
        assert_eq!(seen, [BATCH, 2 * BATCH, 3 * BATCH, 3 * BATCH + 1]);
    }
}
