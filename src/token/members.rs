//! The lists under a token's lock: what is to be woken, and what is to be closed, when the token ends.
//!
//! One waiter and one child sit in the token itself, so that the usual ones cost no allocation. More of them are kept
//! in [`Pages`], which give a page back as soon as it is empty: the room that a crowd needed is not kept by a
//! member that stays.

use std::mem;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::{iter, vec};

use slab::Slab;

use super::Token;
use super::deadline::{Bucket, Entry};
use super::interop::{Bridge, Foreign};
use super::work::{Chore, Work};
use crate::error::{Cause, Error};

/// Members in a page.
const PAGE: usize = if cfg!(tokio_ctx_loom) { 2 } else { 256 };
/// An empty page keeps room for so many, so that a member that comes and goes allocates once.
const SPARE: usize = 16;

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
    pub(super) bridge: Option<Bridge>,
    /// Registrations with the timers of further runtimes.
    pub(super) entries: Vec<Entry>,
    /// The second parent of a merged token, and the place in its list.
    pub(super) second: Option<(Arc<Token>, Seat)>,
    /// The cause of the error, if its own deadline ends it.
    pub(super) expiry: Option<Cause>,
    /// The error of an end, where the token alone does not tell.
    pub(super) error: Option<Box<Error>>,
    pub(super) foreign: Option<Foreign>,
    /// Under what a watch knows it.
    #[cfg(feature = "watch")]
    pub(super) registered: Vec<crate::registry::Registration>,
}

#[cfg(feature = "watch")]
impl Inner {
    pub(super) fn waiters(&self) -> usize {
        usize::from(self.waiter.is_some()) + self.more.as_ref().map_or(0, |more| more.waiters.len())
    }

    /// Copies handles on the children at `most` places from `from` on, and returns where to go on.
    pub(super) fn children(&self, from: u32, most: u32, found: &mut Vec<Weak<Token>>) -> Option<u32> {
        if from == 0 {
            found.extend(self.child.clone());
        }
        let children = &self.more.as_ref()?.children;
        let until = from.saturating_add(most).min(children.end());
        found.extend((from..until).filter_map(|key| children.get(key).cloned()));
        (until < children.end()).then_some(until)
    }
}

impl More {
    /// Hands over what is to be woken, canceled or deregistered when the token ends.
    fn hand_over(&mut self, work: &mut Work) {
        work.wake_all(mem::take(&mut self.waiters));
        work.chores.extend(self.bridge.take().map(|bridge| Chore::Cancel(bridge.outer)));
        work.chores.extend(self.foreign.take().map(Chore::Deregister));
        work.chores.extend(self.entries.drain(..).map(Chore::Leave));
    }
}

impl Inner {
    pub(super) const EMPTY: Inner = Inner { waiter: None, child: None, more: None, bucket: None };

    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Whether there is nothing in it, but perhaps one waiter.
    #[inline]
    pub(super) fn is_simple(&self) -> bool {
        self.child.is_none() && self.more.is_none() && self.bucket.is_none()
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
    pub(super) fn empty(&mut self, work: &mut Work) -> Option<Children> {
        if let Some(waker) = self.waiter.take() {
            work.wake(waker);
        }
        let more = self.more.as_mut().and_then(|more| {
            more.hand_over(work);
            // Mostly there is a waiter for each.
            work.reserve(more.children.len());
            (!more.children.is_empty()).then(|| Box::new(mem::take(&mut more.children).into_iter()))
        });
        let first = self.child.take();
        (first.is_some() || more.is_some()).then_some(Children { first, more })
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
pub(super) struct Children {
    first: Option<Weak<Token>>,
    more: Option<Box<IntoIter<Weak<Token>>>>,
}

impl Children {
    #[inline]
    pub(super) fn next(&mut self) -> Option<Weak<Token>> {
        self.first.take().or_else(|| self.more.as_mut()?.next())
    }
}

/// A slab in pages, each of which is freed when it is empty.
pub(super) struct Pages<T> {
    pages: Vec<Slab<T>>,
    /// Pages before the last that are not full, each once; some may have been removed since.
    roomy: Vec<u32>,
}

pub(super) type IntoIter<T> = iter::Map<iter::Flatten<vec::IntoIter<Slab<T>>>, fn((usize, T)) -> T>;

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), roomy: Vec::new() }
    }
}

impl<T> Pages<T> {
    pub(super) fn len(&self) -> usize {
        self.pages.iter().map(Slab::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.iter().all(Slab::is_empty)
    }

    pub(super) fn insert(&mut self, item: T) -> u32 {
        let at = self.roomy_page();
        let page = &mut self.pages[at];
        let key = at * PAGE + page.insert(item);
        if page.len() == PAGE && self.roomy.last() == Some(&(at as u32)) {
            self.roomy.pop();
        }
        key as u32
    }

    /// A page is only added when there is no other with room, so that no number of a removed page is left in
    /// `roomy` by then.
    fn roomy_page(&mut self) -> usize {
        while let Some(&at) = self.roomy.last() {
            if (at as usize) < self.pages.len() {
                return at as usize;
            }
            self.roomy.pop();
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            assert!(self.pages.len() < u32::MAX as usize / PAGE, "at most 2^32 members");
            // Where one page is full, the next will be.
            let room = if self.pages.is_empty() { SPARE / 2 } else { PAGE };
            self.pages.push(Slab::with_capacity(room));
        }
        self.pages.len() - 1
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.pages.get_mut(key as usize / PAGE)?.get_mut(key as usize % PAGE)
    }

    #[cfg(feature = "watch")]
    fn get(&self, key: u32) -> Option<&T> {
        self.pages.get(key as usize / PAGE)?.get(key as usize % PAGE)
    }

    /// Above all keys.
    #[cfg(feature = "watch")]
    fn end(&self) -> u32 {
        (self.pages.len() * PAGE) as u32
    }

    pub(super) fn remove(&mut self, key: u32) -> Option<T> {
        let (at, last) = (key as usize / PAGE, self.pages.len().saturating_sub(1));
        let page = self.pages.get_mut(at)?;
        let item = page.try_remove(key as usize % PAGE)?;
        if page.len() == PAGE - 1 && at < last {
            self.roomy.push(at as u32);
        }
        if page.is_empty() && page.capacity() > SPARE {
            *page = Slab::new();
        }
        while self.pages.len() > 1 && self.pages.last().is_some_and(Slab::is_empty) {
            self.pages.pop();
        }
        if self.pages.capacity() > 4 * self.pages.len().max(4) {
            self.pages.shrink_to(2 * self.pages.len());
        }
        Some(item)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flat_map(|page| page.iter_mut().map(|(_, item)| item))
    }

    pub(super) fn into_iter(self) -> IntoIter<T> {
        self.pages.into_iter().flatten().map(|(_, item)| item)
    }
}
