//! Deadlines, many to a timer.
//!
//! The deadlines of one runtime that lie in the same slot, whose width is a quarter, or less, of the time left, are in one
//! [`Bucket`], and share one Tokio timer at the slot's start. When it fires, what is still there moves to a narrower
//! slot, until it is due; most is gone long before. The last slot's timer is set to the deadline itself, so that Tokio's
//! own rounding is all the delay there is.
//!
//! A thread finds the bucket of a slot in a small cache of its own, so that workers share no lock; a bucket that
//! has been displaced there serves its members all the same. An emptied bucket keeps its timer, which fires once
//! and finds nothing. It keeps none once no cache knows it, so that threads that come and go leave none behind; nor
//! on a paused clock, as a timer left behind would move a test's time.
//!
//! A bucket closes once: it sets `closed`, then takes out what is registered. What was entered before is in there, and
//! gets handled; what comes later is refused, and enters another bucket. No other lock is held with a bucket's.

use std::cell::RefCell;
use std::mem;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use tokio::task::yield_now;

use crate::pages::Pages;
use crate::stamp::Stamp;
use crate::sync::{AtomicBool, Mutex, Ordering, RuntimeId, Timer, is_paused, runtime, spawn};
use crate::trace::shielded;

/// Slots are narrower than the time left by this power of two.
const FRACTION: u32 = 2;
/// Slots narrower than this many nanoseconds, as a power of two, are the last; about a millisecond.
const FINEST: u32 = 20;
/// So many buckets a thread remembers for one runtime: sixteen for each width, which has at most five at a time.
const SLOTS: usize = 512;
/// So many runtimes a thread remembers.
const RUNTIMES: usize = 4;
/// So many are handled at once; where the timer fires, more are left to a task.
const BATCH: usize = 1024;

/// Something with a deadline, which is registered for as long as something waits for it.
pub(crate) trait Timed: Send + Sync + Sized + 'static {
    fn deadline(&self) -> Stamp;

    /// Whether a waiter is there that a timer is to wake. What waits later finds the bucket closed.
    fn is_waited_on(&self) -> bool;

    /// Called when the deadline has passed; false if there is still something to be done then.
    fn expire(self: &Arc<Self>, now: Stamp) -> bool;

    /// Registers it with the current runtime, which is `here`, by the time left; true if no time is left.
    ///
    /// # Panics
    ///
    /// Outside a runtime, or in one without a time driver, as `tokio::time::sleep`.
    #[track_caller]
    fn register_deadline(self: &Arc<Self>, here: RuntimeId) -> bool;

    /// Wakes what waits, to register where it is polled next.
    fn wake_waiters(&self);

    /// Calls `f` with this thread's cache; not when the thread is ending.
    fn with_cache<R>(f: impl FnOnce(&RefCell<Cache<Self>>) -> R) -> Option<R>;
}

/// The deadlines of one runtime in one slot.
pub(crate) struct Bucket<T: Timed> {
    runtime: RuntimeId,
    slot: Slot,
    /// Whether it closes as soon as it is empty: its clock is paused, or no cache knows it any more.
    is_brief: AtomicBool,
    closed: AtomicBool,
    list: Mutex<List<T>>,
}

struct List<T> {
    entries: Pages<Weak<T>>,
    timer: Option<Timer>,
}

/// A place in a bucket. It is left when this is dropped, which takes the bucket's lock.
#[must_use]
pub(crate) struct Entry<T: Timed> {
    pub(crate) bucket: Option<Arc<Bucket<T>>>,
    pub(crate) key: u32,
}

impl<T: Timed> Entry<T> {
    /// Enters the bucket of the deadline's slot. The error is the slot's time, if that has come.
    ///
    /// # Panics
    ///
    /// Outside a runtime, or in one without a time driver, as `tokio::time::sleep`.
    #[track_caller]
    pub(crate) fn new(item: &Arc<T>, left: u64, here: RuntimeId) -> Result<Entry<T>, Stamp> {
        let slot = Slot::new(item.deadline(), left);
        let present = cached(here, slot, |place| {
            let CachedBucket(bucket) = place.as_ref()?;
            let fits = bucket.slot.key == slot.key && bucket.slot.at <= item.deadline();
            if fits { bucket.insert(item) } else { None }
        });
        if let Some(entry) = present.flatten() {
            return Ok(entry);
        }
        let (bucket, entry) = Bucket::start(here, slot, item).ok_or(slot.at)?;
        let displaced = cached(here, slot, |place| place.replace(CachedBucket(bucket)));
        drop(displaced);
        Ok(entry)
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
            // The first to come sets the time. What is due after it moves once more, what is due before it has a
            // bucket of its own.
            return Slot { key: Slot::key(0, deadline.0 >> (FINEST - 1)), at: deadline };
        }
        let index = deadline.0 >> shift;
        Slot { key: Slot::key(shift, index), at: Stamp(index << shift) }
    }

    fn key(shift: u32, index: u64) -> u64 {
        (u64::from(shift) << 58) | (index & ((1 << 58) - 1))
    }

    /// Its place in a cache.
    fn place(&self) -> usize {
        let (shift, index) = (self.key >> 58, self.key);
        (((shift % 32) << 4) | (index & 15)) as usize
    }
}

/// A slot's bucket in a cache. One that is displaced, or whose thread ends, is not left behind with its timer.
pub(crate) struct CachedBucket<T: Timed>(Arc<Bucket<T>>);

impl<T: Timed> Drop for CachedBucket<T> {
    fn drop(&mut self) {
        // Loom drops what is a thread's own after the thread has ended, when it can take no lock.
        if cfg!(not(tokio_ctx_loom)) {
            self.0.is_brief.store(true, Ordering::Release);
            self.0.remove(None);
        }
    }
}

/// The buckets that a thread remembers.
pub(crate) type Cache<T> = Vec<(RuntimeId, Vec<Option<CachedBucket<T>>>)>;

/// Gives `f` the place in this thread's cache where the slot's bucket may be; not when the thread is ending.
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
    pub(crate) fn is_brief(&self) -> bool {
        self.is_brief.load(Ordering::Acquire)
    }

    /// Makes a bucket for a slot, with its first member. `None`: its time has come meanwhile.
    #[track_caller]
    fn start(runtime: RuntimeId, slot: Slot, item: &Arc<T>) -> Option<(Arc<Self>, Entry<T>)> {
        let mut timer = Timer::new(slot.at.instant());
        let bucket = Arc::new(Bucket {
            runtime,
            slot,
            is_brief: AtomicBool::new(is_paused()),
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

    /// Enters a member; none if the bucket has closed.
    fn insert(self: &Arc<Self>, item: &Arc<T>) -> Option<Entry<T>> {
        let mut list = self.list.lock();
        if self.is_closed() {
            return None;
        }
        let key = list.entries.insert(Arc::downgrade(item));
        Some(Entry { bucket: Some(self.clone()), key })
    }

    /// Takes a member out, and closes what is not to stay empty.
    #[inline]
    fn remove(&self, key: Option<u32>) {
        if self.is_closed() {
            return;
        }
        let mut list = self.list.lock();
        key.map(|key| list.entries.remove(key));
        if self.is_brief() && list.entries.is_empty() {
            self.closed.store(true, Ordering::Release);
            let timer = list.timer.take();
            drop(list);
            drop(timer);
        }
    }

    /// Closes it, and returns what was in it.
    fn close(&self) -> Pages<Weak<T>> {
        let mut list = self.list.lock();
        self.closed.store(true, Ordering::Release);
        let (entries, timer) = (mem::take(&mut list.entries), list.timer.take());
        drop(list);
        drop(timer);
        entries
    }

    /// The timer has fired: what is due ends here and now. A task moves the rest, and a crowd: the time driver, which
    /// this runs in, has other timers to fire, and may be shutting down.
    fn fire(&self) {
        let mut moving = Moving { runtime: self.runtime, items: self.close().into_iter().collect() };
        let now = Stamp::now();
        if now < self.slot.at || runtime() != Some(self.runtime) {
            return;
        }
        if moving.items.len() <= BATCH {
            let stays = |item: Arc<T>| match item.deadline() <= now {
                true => !item.expire(now),
                false => item.is_waited_on(),
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

/// What was in a bucket that has fired. What has not been moved when this is dropped, as the runtime shuts down,
/// is woken to register where it is polled next.
struct Moving<T: Timed> {
    runtime: RuntimeId,
    items: Vec<Weak<T>>,
}

impl<T: Timed> Moving<T> {
    /// Moves each to the slot that the time left puts it in.
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

#[cfg(all(test, not(tokio_ctx_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Widths of slots, as powers of two; that of the last slots is `FINEST - 1`.
    const WIDTHS: std::ops::Range<u32> = FINEST - 1..FINEST + 12;

    /// The slot at that place among those of its width.
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

    /// So many that are in use at a time do not displace each other.
    #[test]
    fn sixteen_slots_of_each_width_have_places_of_their_own() {
        let slots = || WIDTHS.flat_map(|width| (1000..1016).map(move |index| slot(width, index)));
        let places: HashSet<_> = slots().map(|slot| slot.place()).collect();
        assert_eq!(places.len(), slots().count());
        assert!(places.into_iter().all(|place| place < SLOTS));
    }
}
