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
use crate::pages::{IntoIter, Pages};

/// A place in a list: 0 none, 1 the one in the token, from 2 on those in the pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seat(pub(super) u32);

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

#[cfg(feature = "watch")]
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
        work.wake_all(mem::take(&mut self.waiters));
        for attachment in self.attachments.iter().cloned() {
            work.later(move |_| attachment.ended());
        }
        if !self.entries.is_empty() {
            let entries = mem::take(&mut self.entries);
            work.later(|_| drop(entries));
        }
        // Mostly there is a waiter for each.
        work.reserve(self.children.len());
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

    #[inline]
    pub(super) fn insert_child(&mut self, child: Weak<Token>) -> Seat {
        insert(&mut self.child, || &mut self.more.get_or_insert_default().children, child)
    }

    pub(super) fn remove_child(&mut self, seat: Seat) -> Option<Weak<Token>> {
        remove(&mut self.child, self.more.as_mut().map(|more| &mut more.children), seat)
    }

    #[inline(always)]
    pub(super) fn remove_waiter(&mut self, seat: Seat) -> Option<Waker> {
        remove(&mut self.waiter, self.more.as_mut().map(|more| &mut more.waiters), seat)
    }

    /// Puts `waker` where a waiter's is, and returns that one; otherwise inserts it at a new seat.
    #[inline(always)]
    pub(super) fn register(&mut self, seat: &mut Seat, waker: Waker) -> Option<Waker> {
        let present = match seat.0 {
            0 => None,
            1 => self.waiter.as_mut(),
            at => self.more.as_mut().and_then(|more| more.waiters.get_mut(at - 2)),
        };
        if let Some(present) = present {
            return Some(mem::replace(present, waker));
        }
        *seat = insert(&mut self.waiter, || &mut self.more.get_or_insert_default().waiters, waker);
        None
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
    #[inline]
    pub(super) fn empty(&mut self, work: &mut Work) -> Children {
        if let Some(waker) = self.waiter.take() {
            work.wake(waker);
        }
        let more = self.more.as_mut().and_then(|more| more.empty(work));
        Children { first: self.child.take(), more }
    }

    #[cfg(all(test, tokio_ctx_loom))]
    pub(super) fn census(&mut self) -> usize {
        let more = self.more.as_ref().map_or(0, |more| more.waiters.len() + more.children.len());
        more + usize::from(self.waiter.is_some()) + usize::from(self.child.is_some())
    }
}

#[inline]
fn insert<'a, T: 'a>(
    first: &mut Option<T>,
    pages: impl FnOnce() -> &'a mut Pages<T>,
    member: T,
) -> Seat {
    if first.is_none() {
        *first = Some(member);
        return Seat(1);
    }
    Seat(pages().insert(member) + 2)
}

#[inline]
fn remove<T>(first: &mut Option<T>, pages: Option<&mut Pages<T>>, seat: Seat) -> Option<T> {
    match seat.0 {
        0 => None,
        1 => first.take(),
        at => pages?.remove(at - 2),
    }
}

/// The children of a token that has ended, taken out of its list.
#[derive(Default)]
pub(super) struct Children {
    first: Option<Weak<Token>>,
    more: Option<Box<IntoIter<Weak<Token>>>>,
}

impl Children {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_none()
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<Weak<Token>> {
        self.first.take().or_else(|| self.more.as_mut()?.next())
    }
}
