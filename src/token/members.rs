//! The lists under a token's lock: what is to be woken, and what is to be closed, when the token ends.
//!
//! One waiter and one child sit in the token itself, so that the usual ones cost no allocation. More of them are kept
//! in [`Pages`].

use std::mem;
use std::sync::{Arc, Weak};
use std::task::Waker;

use super::deadline::{Bucket, Entry};
use super::work::Work;
use super::{Attachment, Token};
use crate::error::{Cause, Error};
use crate::pages::{IntoIter, Pages, Seat};

/// What a token's lock protects.
pub(super) struct Inner {
    pub(super) waiter: Option<Waker>,
    child: Option<Weak<Token>>,
    pub(super) more: Option<Box<More>>,
    /// Where its deadline is registered; the place in there is the token's `word`.
    pub(super) bucket: Option<Arc<Bucket>>,
}

/// What few tokens have.
#[derive(Default)]
pub(super) struct More {
    waiters: Pages<Waker>,
    children: Pages<Weak<Token>>,
    pub(super) attachments: Vec<Arc<dyn Attachment>>,
    /// Registrations with the timers of further runtimes.
    pub(super) entries: Vec<Entry>,
    /// The second parent of a merged token, and the place in its list.
    pub(super) second: Option<(Arc<Token>, Seat)>,
    /// The cause of the error, if its own deadline ends it.
    pub(super) expiry: Option<Cause>,
    /// The error of an end, where the token alone does not tell.
    pub(super) error: Option<Box<Error>>,
}

#[cfg(any(feature = "watch", all(test, tokio_ctx_loom)))]
impl Token {
    /// Returns the number of waiters.
    pub(crate) fn waiters(&self) -> usize {
        let inner = self.inner.lock();
        usize::from(inner.waiter.is_some()) + inner.more.as_ref().map_or(0, |more| more.waiters.len())
    }

    /// Copies handles on the linked children at `most` places from `from` on, and returns where to go on; none at the
    /// end. A child that is linked all the time is met once.
    pub(crate) fn children(&self, from: u32, most: u32, found: &mut Vec<Weak<Token>>) -> Option<u32> {
        let inner = self.inner.lock();
        if from == 0 {
            found.extend(inner.child.clone());
        }
        let children = &inner.more.as_ref()?.children;
        let until = from.saturating_add(most).min(children.end());
        found.extend((from..until).filter_map(|key| children.get(key).cloned()));
        (until < children.end()).then_some(until)
    }
}

impl More {
    /// Hands over what is to be done when the token ends, and returns the children that are to be closed.
    fn empty(&mut self, work: &mut Work) -> Option<Box<IntoIter<Weak<Token>>>> {
        // Mostly there is a waiter for each child.
        work.wake_all(mem::take(&mut self.waiters), self.children.len());
        for attachment in self.attachments.iter().cloned() {
            work.later(move |_| attachment.ended());
        }
        if !self.entries.is_empty() {
            let entries = mem::take(&mut self.entries);
            work.later(|_| drop(entries));
        }
        (!self.children.is_empty()).then(|| Box::new(mem::take(&mut self.children).into_iter()))
    }
}

impl Inner {
    pub(super) const EMPTY: Inner = Inner { waiter: None, child: None, more: None, bucket: None };

    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub(super) fn error(&self) -> Option<&Error> {
        self.more.as_ref()?.error.as_deref()
    }

    pub(super) fn insert_child(&mut self, child: Weak<Token>) -> Seat {
        Seat::insert(&mut self.child, || &mut self.more.get_or_insert_default().children, child)
    }

    pub(super) fn remove_child(&mut self, seat: Seat) -> Option<Weak<Token>> {
        seat.remove(&mut self.child, self.more.as_mut().map(|more| &mut more.children))
    }

    #[inline(always)]
    pub(super) fn remove_waiter(&mut self, seat: Seat) -> Option<Waker> {
        seat.remove(&mut self.waiter, self.more.as_mut().map(|more| &mut more.waiters))
    }

    /// Puts `waker` where a waiter's is, and returns that one; otherwise inserts it at a new seat.
    #[inline(always)]
    pub(super) fn register(&mut self, seat: &mut Seat, waker: Waker) -> Option<Waker> {
        let Inner { waiter, more, .. } = self;
        seat.insert_or_replace(waiter, || &mut more.get_or_insert_default().waiters, waker)
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiter.is_some() || self.more.as_ref().is_some_and(|more| !more.waiters.is_empty())
    }

    /// Takes the wakers out; the seats stay the waiters', which register again when they are polled.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        let more = self.more.iter_mut().flat_map(|more| more.waiters.iter_mut());
        let wakers = self.waiter.iter_mut().chain(more);
        wakers.map(|waker| mem::replace(waker, Waker::noop().clone())).collect()
    }

    /// Hands over all that is to be done when the token ends, and returns the children that are to be closed.
    pub(super) fn empty(&mut self, work: &mut Work) -> Children {
        if let Some(waker) = self.waiter.take() {
            work.wake(waker);
        }
        let more = self.more.as_mut().and_then(|more| more.empty(work));
        Children { first: self.child.take(), more }
    }
}

/// The children of a token that has ended, taken out of its list.
#[derive(Default)]
pub(super) struct Children {
    first: Option<Weak<Token>>,
    more: Option<Box<IntoIter<Weak<Token>>>>,
}

impl Children {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_none()
    }

    pub(super) fn next(&mut self) -> Option<Weak<Token>> {
        self.first.take().or_else(|| self.more.as_mut()?.next())
    }
}
