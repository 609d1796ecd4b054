//! Deadlines, many to a timer.
//!
//! A wait on a deadline registers its token in a [`Bucket`]: the deadlines of one runtime that lie in the same
//! slot, whose width is a quarter, or less, of the time left, share one Tokio timer at the slot's start. When
//! it fires, what is still there moves to a narrower slot, until it is due; most waits are gone long before. The
//! last slot's timer is set to the deadline itself, so that Tokio's own rounding is all the delay there is.
//!
//! A thread finds the bucket of a slot in a small cache of its own, so that workers share no lock; a bucket that
//! has been displaced there serves its members all the same. An emptied bucket keeps its timer, which fires once
//! and finds nothing. It keeps none once no cache knows it, so that threads that come and go leave none behind; nor
//! on a paused clock, as a timer left behind would move a test's time.
//!
//! # Why no deadline is lost
//!
//! 1. A registration is entered in the bucket under the bucket's lock, which refuses once closed, and then noted
//!    in the token under the token's lock. The two are never held at once.
//! 2. A bucket closes once: it sets `closed`, then takes out what is registered. What was entered before is in
//!    there, and gets handled; what comes later is refused, and enters another bucket.
//! 3. A registration is noted in the token only if its bucket is open, a fact that is read under the token's
//!    lock. What handles a closed bucket notes the new place under the same lock, after `closed` was set: an old
//!    place is never noted over a new one. A place noted in a closed bucket counts as none.
//! 4. A runtime that shuts down fires all timers, and drops all tasks. Either wakes the waits, which register where
//!    they are polled next. No timer is set from where one fires.

use std::mem;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use tokio::task::yield_now;

use super::members::Inner;
use super::{ENDED, OCCUPIED, Token};
use crate::pages::Pages;
use crate::stamp::Stamp;
use crate::sync::{
    AtomicBool, AtomicU64, Mutex, Ordering, RuntimeId, Timer, is_paused, runtime, spawn, thread_local,
};
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

/// The deadlines of one runtime in one slot.
pub(crate) struct Bucket {
    runtime: RuntimeId,
    /// Of its slot.
    key: u64,
    at: Stamp,
    /// Whether it closes as soon as it is empty: its clock is paused, or no cache knows it any more.
    is_brief: AtomicBool,
    closed: AtomicBool,
    list: Mutex<List>,
}

/// A place in a bucket. It is left when this is dropped, which takes the bucket's lock.
#[must_use]
pub(crate) struct Entry {
    bucket: Option<Arc<Bucket>>,
    key: u32,
}

impl Entry {
    fn open_bucket(&self) -> Option<&Bucket> {
        self.bucket.as_deref().filter(|bucket| !bucket.is_closed())
    }
}

impl Drop for Entry {
    #[inline]
    fn drop(&mut self) {
        if let Some(bucket) = self.bucket.take() {
            bucket.remove(Some(self.key));
        }
    }
}

struct List {
    entries: Pages<Weak<Token>>,
    timer: Option<Timer>,
}

/// Deadlines that share a timer.
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
struct CachedBucket(Arc<Bucket>);

// Loom drops what is a thread's own after the thread has ended, when it can take no lock.
#[cfg(not(tokio_ctx_loom))]
impl Drop for CachedBucket {
    fn drop(&mut self) {
        self.0.is_brief.store(true, Ordering::Release);
        self.0.remove(None);
    }
}

type Cache = Vec<(RuntimeId, Vec<Option<CachedBucket>>)>;

thread_local! {
    static CACHE: std::cell::RefCell<Cache> = std::cell::RefCell::default();
}

/// Gives `f` the place in this thread's cache where the slot's bucket may be; not when the thread is ending.
fn cached<R>(here: RuntimeId, slot: &Slot, f: impl FnOnce(&mut Option<CachedBucket>) -> R) -> Option<R> {
    let find = |cache: &std::cell::RefCell<Cache>| {
        let mut cache = cache.borrow_mut();
        let known = cache.iter().position(|(runtime, _)| *runtime == here);
        let at = known.unwrap_or_else(|| {
            cache.truncate(RUNTIMES - 1);
            cache.insert(0, (here, (0..SLOTS).map(|_| None).collect()));
            0
        });
        f(&mut cache[at].1[slot.place()])
    };
    CACHE.try_with(find).ok()
}

impl Bucket {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Enters a token; none if the bucket has closed.
    fn insert(self: &Arc<Self>, token: &Arc<Token>) -> Option<Entry> {
        let mut list = self.list.lock();
        if self.is_closed() {
            return None;
        }
        let key = list.entries.insert(Arc::downgrade(token));
        Some(Entry { bucket: Some(self.clone()), key })
    }

    /// Takes an entry out, and closes what is not to stay empty.
    #[inline]
    fn remove(&self, key: Option<u32>) {
        if self.is_closed() {
            return;
        }
        let mut list = self.list.lock();
        key.map(|key| list.entries.remove(key));
        if self.is_brief.load(Ordering::Acquire) && list.entries.is_empty() {
            self.closed.store(true, Ordering::Release);
            let timer = list.timer.take();
            drop(list);
            drop(timer);
        }
    }

    /// Makes a bucket for a slot, with its first token in it. `None`: its time has come meanwhile.
    #[track_caller]
    fn start(runtime: RuntimeId, slot: &Slot, token: &Arc<Token>) -> Option<Entry> {
        let mut timer = Timer::new(slot.at.instant());
        let list = List { entries: Pages::default(), timer: None };
        let bucket = Arc::new(Bucket {
            runtime,
            key: slot.key,
            at: slot.at,
            is_brief: AtomicBool::new(is_paused()),
            closed: AtomicBool::new(false),
            list: Mutex::new(list),
        });
        let entry = bucket.insert(token)?;
        if !timer.start(&Waker::from(bucket.clone())) {
            bucket.close();
            return None;
        }
        let mut list = bucket.list.lock();
        if !bucket.is_closed() {
            list.timer = Some(timer);
        }
        drop(list);
        Some(entry)
    }

    /// Closes it, and returns what was in it.
    fn close(&self) -> Pages<Weak<Token>> {
        let mut list = self.list.lock();
        self.closed.store(true, Ordering::Release);
        let (entries, timer) = (mem::take(&mut list.entries), list.timer.take());
        drop(list);
        drop(timer);
        entries
    }
}

/// The timer has fired: what is due ends here and now. A task moves the rest, and a crowd: the time driver, which
/// this runs in, has other timers to fire, and may be shutting down.
impl Wake for Bucket {
    fn wake(self: Arc<Self>) {
        shielded(|| self.fire());
    }
}

impl Bucket {
    fn fire(&self) {
        let mut moving = Moving { runtime: self.runtime, tokens: self.close().into_iter().collect() };
        let now = Stamp::now();
        if now < self.at || runtime() != Some(self.runtime) {
            return;
        }
        if moving.tokens.len() <= BATCH {
            let stays = |token: Arc<Token>| match token.deadline <= now {
                true => !token.end_if_due(now),
                false => token.is_waited_on(),
            };
            moving.tokens.retain(|token| token.upgrade().is_some_and(stays));
        }
        if !moving.tokens.is_empty() {
            spawn(moving.run());
        }
    }
}

/// What was in a bucket that has fired. What has not been moved when this is dropped, as the runtime shuts down,
/// is woken to register where it is polled next.
struct Moving {
    runtime: RuntimeId,
    tokens: Vec<Weak<Token>>,
}

impl Moving {
    /// Moves each to the slot that the time left puts it in.
    async fn run(mut self) {
        let mut moved = 0;
        while let Some(token) = self.tokens.pop() {
            if let Some(token) = token.upgrade().filter(Token::is_waited_on) {
                token.register_deadline(self.runtime);
            }
            moved += 1;
            if moved % BATCH == 0 {
                yield_now().await;
            }
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.tokens.drain(..).filter_map(|token| token.upgrade()).for_each(|token| token.wake_waiters());
    }
}

impl Inner {
    /// Whether the deadline is registered with that runtime.
    #[inline]
    pub(super) fn is_timed_in(&self, here: RuntimeId) -> bool {
        let serves = |bucket: &Bucket| bucket.runtime == here && !bucket.is_closed();
        self.bucket.as_deref().is_some_and(serves)
            || self.more.as_ref().is_some_and(|more| {
                more.entries.iter().any(|entry| entry.bucket.as_deref().is_some_and(serves))
            })
    }
}

impl Token {
    /// Registers its deadline with the current runtime, which is `here`, by the time left; true if the token has
    /// ended, perhaps because none is left.
    ///
    /// # Panics
    ///
    /// Outside a runtime, or in one without a time driver, as `tokio::time::sleep`.
    #[track_caller]
    pub(crate) fn register_deadline(self: &Arc<Self>, here: RuntimeId) -> bool {
        let now = Stamp::now();
        let left = self.deadline.0.saturating_sub(now.0);
        if left == 0 {
            return self.end_if_due(now);
        }
        let slot = Slot::new(self.deadline, left);
        let mut entry = self.enter(here, &slot);
        if entry.is_none() {
            // The slot's time has come, by the timer's clock.
            return match slot.at < self.deadline {
                true => self.register_deadline(here),
                false => self.end_if_due(self.deadline),
            };
        }
        let Some(mut inner) = self.open() else { return true };
        self.store_entry(&mut inner, &mut entry);
        false
    }

    /// Enters the bucket where a first wait is likely to want its deadline, to be kept under the lock that the
    /// waiter takes anyway.
    #[inline]
    #[track_caller]
    pub(crate) fn enter_at_first(self: &Arc<Self>, here: Option<RuntimeId>) -> Option<Entry> {
        let is_first = self.owns_deadline() && !self.has(OCCUPIED | ENDED);
        self.enter(here.filter(|_| is_first)?, &Slot::new(self.deadline, self.clock))
    }

    /// Enters the bucket of a slot; `None` if its time has come.
    #[track_caller]
    fn enter(self: &Arc<Self>, here: RuntimeId, slot: &Slot) -> Option<Entry> {
        let present = cached(here, slot, |place| {
            let CachedBucket(bucket) = place.as_ref()?;
            let fits = bucket.key == slot.key && bucket.at <= self.deadline;
            if fits { bucket.insert(self) } else { None }
        });
        present.flatten().or_else(|| {
            let entry = Bucket::start(here, slot, self)?;
            let bucket = CachedBucket(entry.bucket.clone()?);
            let displaced = cached(here, slot, |place| place.replace(bucket));
            drop(displaced);
            Some(entry)
        })
    }

    /// Whether a waiter is there that a timer is to wake. What waits later finds the bucket closed.
    fn is_waited_on(self: &Arc<Self>) -> bool {
        self.inner.lock().has_waiters()
    }

    /// Stores where the deadline is registered, unless that is not needed.
    #[inline]
    pub(super) fn store_entry(&self, inner: &mut Inner, entry: &mut Option<Entry>) {
        let is_needed = |entry: &mut Entry| {
            entry.open_bucket().is_some_and(|bucket| !inner.is_timed_in(bucket.runtime))
        };
        let Some(mut entry) = entry.take_if(is_needed) else { return };
        if inner.bucket.as_ref().is_none_or(|present| present.is_closed()) {
            inner.bucket = entry.bucket.take();
            self.word.store(u64::from(entry.key) + 1, Ordering::Relaxed);
        } else {
            let entries = &mut inner.more().entries;
            entries.retain(|entry| entry.open_bucket().is_some());
            entries.push(entry);
        }
    }

    /// Takes the registration out of a token that ends.
    #[inline]
    pub(super) fn take_entry(word: &AtomicU64, inner: &mut Inner) -> Option<Entry> {
        let bucket = inner.bucket.take()?;
        let key = word.load(Ordering::Relaxed) - 1;
        word.store(0, Ordering::Relaxed);
        Some(Entry { bucket: Some(bucket), key: key as u32 })
    }

    /// The registration of a token that has no waiters left, if a timer should not outlive them.
    #[inline]
    pub(super) fn take_idle_entry(&self, inner: &mut Inner) -> Option<Entry> {
        let is_brief = |bucket: &Arc<Bucket>| bucket.is_brief.load(Ordering::Acquire);
        if inner.bucket.as_ref().is_some_and(is_brief) && !inner.has_waiters() {
            Token::take_entry(&self.word, inner)
        } else {
            None
        }
    }
}
