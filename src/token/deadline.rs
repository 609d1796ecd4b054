//! The registration of a token's deadline, with a [`Bucket`] of each runtime in which something waits on the token.
//!
//! # Why no deadline is lost
//!
//! 1. A token is inserted into the bucket under the bucket's lock. A closed bucket refuses it. Then the registration is
//!    stored in the token under the token's lock. The two locks are never held at once.
//! 2. A bucket closes once, and handles all tokens that were inserted before.
//! 3. A registration is stored in the token only if its bucket is open, which is checked under the token's lock. When a
//!    closed bucket moves a token, it stores the new registration under the same lock, after the bucket was closed. An
//!    old registration can therefore never replace a newer one. A registration with a closed bucket counts as none.
//! 4. A runtime that shuts down fires all timers and drops all tasks. Both wake the waits, and each wait registers again
//!    in the runtime where it is polled next. Until then, its waker stays registered for the end. No timer is created while
//!    another one fires.

use std::cell::RefCell;
use std::mem;
use std::sync::Arc;
use std::task::Waker;

use super::members::{Inner, More};
use super::{ENDED, OCCUPIED, Token, WAKERS_TAKEN};
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

    fn expire(self: &Arc<Self>, now: Stamp) {
        self.end_if_due(now);
    }

    fn wake_waiters(&self) {
        let Some(mut inner) = self.lock_unless_ended() else { return };
        self.set(WAKERS_TAKEN);
        let mut wakers = inner.take_wakers();
        drop(inner);
        let wake = |(_, waker): &_| _ = shielded(|| Waker::wake_by_ref(waker));
        wakers.iter().for_each(wake);
        match self.lock_unless_ended() {
            // A wait that is not polled any more stays registered for the end.
            Some(mut inner) => inner.put_back(&mut wakers),
            None => wakers.iter().for_each(wake),
        }
    }

    /// Registers the deadline in the current runtime. Returns true if the token has ended, or if no time is left.
    #[track_caller]
    fn register_deadline(self: &Arc<Self>, here: RuntimeId) -> bool {
        let now = Stamp::now();
        let left = self.deadline.0.saturating_sub(now.0);
        if left == 0 {
            return self.end_if_due(now);
        }
        // The time of the slot may have come in the meantime. The next slot is narrower.
        let Some(entry) = Entry::new(self, left, here) else { return self.register_deadline(here) };
        let mut entry = Some(entry);
        let Some(mut inner) = self.lock_unless_ended() else { return true };
        self.store_entry(&mut inner, &mut entry);
        false
    }

    fn with_cache<R>(f: impl FnOnce(&RefCell<Cache<Self>>) -> R) -> Option<R> {
        CACHE.try_with(f).ok()
    }
}

impl Inner {
    /// Returns whether the deadline is registered with such a bucket. There are further ones only if there is a first.
    #[inline]
    fn has_bucket(&self, is: impl Fn(&Bucket) -> bool) -> bool {
        let further =
            |more: &More| more.entries.iter().any(|entry| entry.bucket.as_deref().is_some_and(&is));
        self.bucket.as_ref().is_some_and(|first| is(first) || self.more.as_deref().is_some_and(further))
    }

    /// Returns whether the deadline is registered in the given runtime.
    #[inline]
    pub(super) fn is_timed_in(&self, here: RuntimeId) -> bool {
        self.has_bucket(|bucket| bucket.runtime() == here && !bucket.is_closed())
    }
}

impl Token {
    /// Inserts a token that nothing has waited on into a bucket. The caller stores the registration under the lock that it
    /// takes anyway to register its waker.
    #[inline]
    #[track_caller]
    pub(crate) fn enter_bucket(self: &Arc<Self>, here: Option<RuntimeId>) -> Option<Entry> {
        let is_first = self.owns_deadline() && !self.has(OCCUPIED | ENDED);
        Entry::new(self, self.clock, here.filter(|_| is_first)?)
    }

    /// Stores a registration, unless the deadline is already registered in its runtime.
    #[inline]
    pub(super) fn store_entry(&self, inner: &mut Inner, entry: &mut Option<Entry>) {
        let is_needed = |entry: &mut Entry| {
            entry.open_bucket().is_some_and(|bucket| !inner.is_timed_in(bucket.runtime()))
        };
        let Some(mut entry) = entry.take_if(is_needed) else { return };
        if inner.bucket.as_ref().is_none_or(|present| present.is_closed()) {
            inner.bucket = entry.bucket.take();
            self.key_or_end.store(u64::from(entry.key) + 1, Ordering::Relaxed);
        } else {
            let entries = &mut inner.more().entries;
            entries.retain(|entry| entry.open_bucket().is_some());
            entries.push(entry);
        }
    }

    /// Removes all registrations from the token.
    pub(super) fn take_entries(
        key_or_end: &AtomicU64,
        inner: &mut Inner,
    ) -> Option<(Entry, Vec<Entry>)> {
        let bucket = Some(inner.bucket.take()?);
        let key = key_or_end.load(Ordering::Relaxed) - 1;
        key_or_end.store(0, Ordering::Relaxed);
        let further = inner.more.as_mut().map(|more| mem::take(&mut more.entries));
        Some((Entry { bucket, key: key as u32 }, further.unwrap_or_default()))
    }

    /// Removes the registrations from a token without waiters, if a bucket should close as soon as it is empty.
    #[inline]
    pub(super) fn take_entries_if_idle(&self, inner: &mut Inner) -> Option<(Entry, Vec<Entry>)> {
        let is_idle = inner.has_bucket(Bucket::closes_when_empty) && !inner.has_waiters();
        if is_idle { Token::take_entries(&self.key_or_end, inner) } else { None }
    }
}
