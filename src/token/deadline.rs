//! Where a token's deadline is registered: in a [`Bucket`] of each runtime in which something waits on it.
//!
//! # Why no deadline is lost
//!
//! 1. A registration is entered in the bucket under the bucket's lock, which refuses once closed, and then noted
//!    in the token under the token's lock. The two are never held at once.
//! 2. A bucket closes once, and handles all that was entered before.
//! 3. A registration is noted in the token only if its bucket is open, a fact that is read under the token's
//!    lock. What handles a closed bucket notes the new place under the same lock, after `closed` was set: an old
//!    place is never noted over a new one. A place noted in a closed bucket counts as none.
//! 4. A runtime that shuts down fires all timers, and drops all tasks. Either wakes the waits, which register where
//!    they are polled next. No timer is set from where one fires.

use std::cell::RefCell;
use std::sync::Arc;

use super::members::Inner;
use super::{DISTURBED, ENDED, OCCUPIED, Token};
use crate::bucket::{self, Cache, Timed};
use crate::stamp::Stamp;
use crate::sync::{AtomicU64, Ordering, RuntimeId, thread_local};
use crate::trace::shielded;

pub(crate) type Entry = bucket::Entry<Token>;
pub(super) type Bucket = bucket::Bucket<Token>;

thread_local! {
    static CACHE: RefCell<Cache<Token>> = RefCell::default();
}

impl Timed for Token {
    fn deadline(&self) -> Stamp {
        self.deadline
    }

    fn is_waited_on(&self) -> bool {
        self.inner.lock().has_waiters()
    }

    fn expire(self: &Arc<Self>, now: Stamp) -> bool {
        self.end_if_due(now)
    }

    #[cold]
    fn wake_waiters(&self) {
        let Some(mut inner) = self.open() else { return };
        self.set(DISTURBED);
        let wakers = inner.take_wakers();
        drop(inner);
        wakers.into_iter().for_each(|waker| _ = shielded(|| waker.wake()));
    }

    /// Registers the deadline with the current runtime; true if the token has ended, perhaps because no time is left.
    #[track_caller]
    fn register_deadline(self: &Arc<Self>, here: RuntimeId) -> bool {
        let now = Stamp::now();
        let left = self.deadline.0.saturating_sub(now.0);
        if left == 0 {
            return self.end_if_due(now);
        }
        let mut entry = match Entry::new(self, left, here) {
            Ok(entry) => Some(entry),
            // The slot's time has come, by the timer's clock.
            Err(at) if at < self.deadline => return self.register_deadline(here),
            Err(at) => return self.end_if_due(at),
        };
        let Some(mut inner) = self.open() else { return true };
        self.store_entry(&mut inner, &mut entry);
        false
    }

    fn with_cache<R>(f: impl FnOnce(&RefCell<Cache<Self>>) -> R) -> Option<R> {
        CACHE.try_with(f).ok()
    }
}

impl Inner {
    /// Whether the deadline is registered with that runtime.
    #[inline]
    pub(super) fn is_timed_in(&self, here: RuntimeId) -> bool {
        let serves = |bucket: &Bucket| bucket.runtime() == here && !bucket.is_closed();
        let others = self.more.iter().flat_map(|more| &more.entries);
        self.bucket.as_deref().is_some_and(serves)
            || others.filter_map(|entry| entry.bucket.as_deref()).any(serves)
    }
}

impl Token {
    /// Enters the bucket where a first wait is likely to want its deadline, to be kept under the lock that the
    /// waiter takes anyway.
    #[inline]
    #[track_caller]
    pub(crate) fn enter_at_first(self: &Arc<Self>, here: Option<RuntimeId>) -> Option<Entry> {
        let is_first = self.owns_deadline() && !self.has(OCCUPIED | ENDED);
        Entry::new(self, self.clock, here.filter(|_| is_first)?).ok()
    }

    /// Stores where the deadline is registered, unless that is not needed.
    #[inline]
    pub(super) fn store_entry(&self, inner: &mut Inner, entry: &mut Option<Entry>) {
        let is_needed = |entry: &mut Entry| {
            entry.open_bucket().is_some_and(|bucket| !inner.is_timed_in(bucket.runtime()))
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
    pub(super) fn take_entry(word: &AtomicU64, inner: &mut Inner) -> Option<Entry> {
        let bucket = Some(inner.bucket.take()?);
        let key = word.load(Ordering::Relaxed) - 1;
        word.store(0, Ordering::Relaxed);
        Some(Entry { bucket, key: key as u32 })
    }

    /// Takes the registration out of a token that has no waiters left, if a timer should not outlive them.
    #[inline]
    pub(super) fn take_idle_entry(&self, inner: &mut Inner) -> Option<Entry> {
        let is_brief = inner.bucket.as_ref().is_some_and(|bucket| bucket.is_brief());
        let is_idle = is_brief && !inner.has_waiters();
        if is_idle { Token::take_entry(&self.word, inner) } else { None }
    }
}
