//! What the lock of a token protects: the wakers to call and the children to close when the token ends.
//!
//! The first waiter and the first child are stored in the token itself, so that most tokens need no other allocation.
//! Further ones are stored in [`Pages`].

use std::mem;
use std::sync::{Arc, Weak};
use std::task::Waker;

use super::deadline::{Bucket, Entry};
use super::{Attachment, Token};
use crate::error::{Cause, Error};
use crate::pages::{Key, Pages};
use crate::work::Work;

/// What the lock of a token protects.
///
/// First is the field that is not constant in a new token, and last the one that is not initialized completely. Otherwise, LLVM
/// sets all of it to 0 on the stack, and copies that by loads that overlap several stores, which processors do not forward: 8 ns
/// for each new token.
#[repr(C)]
pub(super) struct Inner {
    pub(super) more: Option<Box<More>>,
    child: Option<Weak<Token>>,
    children: Option<Box<Pages<Weak<Token>>>>,
    /// The bucket with which the deadline is registered. The key is the token's `key_or_end`.
    pub(super) bucket: Option<Arc<Bucket>>,
    pub(super) waiter: Option<Waker>,
}

/// What most tokens do not have.
#[derive(Default)]
pub(super) struct More {
    pub(super) waiters: Pages<Waker>,
    pub(super) attachments: Vec<Arc<dyn Attachment>>,
    /// Registrations of the deadline in further runtimes.
    pub(super) entries: Vec<Entry>,
    /// The second parent of a merged token, and the key in its list.
    pub(super) second: Option<(Arc<Token>, Key)>,
    /// The nearest ancestor with a check, or with two checked parents. Only some tokens store it.
    pub(super) stop: Option<Weak<Token>>,
    /// The cause of the error if the token's own deadline passes.
    pub(super) expiry: Option<Cause>,
    /// The error of the end, if it cannot be derived from the token alone.
    pub(super) error: Option<Box<Error>>,
}

#[cfg(any(feature = "watch", all(test, tokio_ctx_loom)))]
impl Token {
    /// Returns the number of waiters.
    pub(crate) fn waiters(&self) -> usize {
        let inner = self.inner.lock();
        usize::from(inner.waiter.is_some()) + inner.more.as_ref().map_or(0, |more| more.waiters.len())
    }

    /// Appends the linked children at up to `most` keys from `from` on, and returns the next key, or `None` at the end. A
    /// child that stays linked is returned once.
    pub(crate) fn children(&self, from: u32, most: u32, found: &mut Vec<Weak<Token>>) -> Option<u32> {
        let inner = self.inner.lock();
        found.extend(inner.child.iter().filter(|_| from == 0).cloned());
        let (some, next) = inner.children.as_ref()?.range(from, most);
        found.extend(some.cloned());
        next
    }
}

impl More {
    /// Moves what has to be done after the end to `work`.
    fn empty(&mut self, work: &mut Work) {
        work.wake_all(mem::take(&mut self.waiters));
        let attachments = self.attachments.clone().into_iter();
        attachments.for_each(|attachment| work.defer(move |_| attachment.ended()));
    }
}

impl Inner {
    #[inline(always)]
    pub(super) fn new(stop: Option<Arc<Token>>) -> Inner {
        let more =
            stop.map(|stop| Box::new(More { stop: Some(Arc::downgrade(&stop)), ..More::default() }));
        Inner { more, waiter: None, child: None, children: None, bucket: None }
    }

    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub(super) fn insert_child(&mut self, child: Weak<Token>) -> Key {
        Key::insert(&mut self.child, || self.children.get_or_insert_default(), child)
    }

    pub(super) fn remove_child(&mut self, key: Key) -> Option<Weak<Token>> {
        key.remove(&mut self.child, self.children.as_deref_mut())
    }

    #[inline(always)]
    pub(super) fn remove_waiter(&mut self, key: Key) -> Option<Waker> {
        key.remove(&mut self.waiter, self.more.as_mut().map(|more| &mut more.waiters))
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiter.is_some() || self.more.as_ref().is_some_and(|more| !more.waiters.is_empty())
    }

    /// Takes all wakers. The waiters keep their keys, and register again when they are polled.
    pub(super) fn take_wakers(&mut self) -> Vec<(Key, Waker)> {
        let pages = self.more.as_mut().map(|more| &mut more.waiters);
        Key::replace_all(&mut self.waiter, pages, &crate::bucket::TAKEN)
    }

    /// Puts wakers back whose waiters have not registered again.
    pub(super) fn put_back(&mut self, wakers: &mut [(Key, Waker)]) {
        let pages = self.more.as_mut().map(|more| &mut more.waiters);
        Key::swap_all(&mut self.waiter, pages, wakers, crate::bucket::is_taken);
    }

    /// Moves what has to be done after the end to `work`, and returns the children that have to be closed.
    #[inline]
    pub(super) fn empty(&mut self, work: &mut Work) -> Children {
        if let Some(waker) = self.waiter.take() {
            work.wake(waker);
        }
        self.more.iter_mut().for_each(|more| more.empty(work));
        let others = self.children.take().filter(|children| !children.is_empty());
        // Most children have one waiter.
        others.iter().for_each(|others| work.wakers.reserve(others.len()));
        Children { first: self.child.take(), others }
    }
}

/// The children of a token that has ended, removed from its list.
#[derive(Default)]
pub(super) struct Children {
    first: Option<Weak<Token>>,
    others: Option<Box<Pages<Weak<Token>>>>,
}

impl Children {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_none()
    }

    /// Takes the next child. `from` is 0 at first, and is set to the next key.
    pub(super) fn take_next(&mut self, from: &mut u32) -> Option<Weak<Token>> {
        self.first.take().or_else(|| self.others.as_mut()?.take_next(from))
    }
}
