//! The list under a token's lock: what is to be woken, and what is to be closed, when the token ends.
//!
//! One member sits in the token itself, so that the usual one costs no allocation. More of them are kept in
//! [`Pages`], which give a page back as soon as it is empty: the room that a crowd needed is not kept by a
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

pub(crate) enum Member {
    Waiter(Waker),
    Child(Weak<Token>),
}

/// A place in a list of members: 0 none, 1 the one in the token, from 2 on those in the pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seat(pub(super) u32);

/// What a token's lock protects.
#[derive(Default)]
pub(super) struct Inner {
    first: Option<Member>,
    pub(super) more: Option<Box<More>>,
    /// Where its deadline is registered; the place in there is the token's `word`.
    pub(super) bucket: Option<Arc<Bucket>>,
}

/// What few tokens have.
#[derive(Default)]
pub(super) struct More {
    members: Pages<Member>,
    /// How many of these are waiters.
    waiters: u32,
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
}

impl More {
    /// Hands over what is to be canceled or deregistered when the token ends.
    pub(super) fn hand_over(&mut self, work: &mut Work) {
        work.chores.extend(self.bridge.take().map(|bridge| Chore::Cancel(bridge.outer)));
        work.chores.extend(self.foreign.take().map(Chore::Deregister));
        work.chores.extend(self.entries.drain(..).map(Chore::Leave));
    }
}

impl Inner {
    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Whether there is nothing in it.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.first.is_none() && self.more.is_none() && self.bucket.is_none()
    }

    pub(super) fn error(&self) -> Option<&Error> {
        self.more.as_ref()?.error.as_deref()
    }

    #[inline]
    pub(super) fn insert(&mut self, member: Member) -> Seat {
        if self.first.is_none() {
            self.first = Some(member);
            return Seat(1);
        }
        let more = self.more();
        more.waiters += u32::from(matches!(member, Member::Waiter(_)));
        Seat(more.members.insert(member) + 2)
    }

    #[inline]
    pub(super) fn remove(&mut self, seat: Seat) -> Option<Member> {
        match seat.0 {
            0 => None,
            1 => self.first.take(),
            at => {
                let more = self.more.as_mut()?;
                let member = more.members.remove(at - 2)?;
                more.waiters -= u32::from(matches!(member, Member::Waiter(_)));
                Some(member)
            }
        }
    }

    /// Puts `waker` where a waiter's is, and returns that one; otherwise inserts it at a new seat.
    #[inline]
    pub(super) fn register(&mut self, seat: &mut Seat, waker: Waker) -> Option<Waker> {
        let member = match seat.0 {
            0 => None,
            1 => self.first.as_mut(),
            at => self.more.as_mut().and_then(|more| more.members.get_mut(at - 2)),
        };
        if let Some(Member::Waiter(present)) = member {
            return Some(mem::replace(present, waker));
        }
        *seat = self.insert(Member::Waiter(waker));
        None
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.first.iter_mut().chain(self.more.iter_mut().flat_map(|more| more.members.iter_mut()))
    }

    pub(super) fn has_waiters(&self) -> bool {
        matches!(self.first, Some(Member::Waiter(_)))
            || self.more.as_ref().is_some_and(|more| more.waiters > 0)
    }

    /// Takes the wakers out; the seats stay the waiters', which register again when they are polled.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        let take = |member: &mut Member| match member {
            Member::Waiter(waker) => Some(mem::replace(waker, Waker::noop().clone())),
            Member::Child(_) => None,
        };
        self.iter_mut().filter_map(take).collect()
    }

    /// Takes a lone waker out to be called, else all members.
    #[inline]
    pub(super) fn take_members(&mut self, work: &mut Work) -> Option<Members> {
        let more = self.more.as_mut().map(|more| &mut more.members).filter(|pages| !pages.is_empty());
        let more = more.map(|pages| Box::new(mem::take(pages).into_iter()));
        match (self.first.take(), more) {
            (None, None) => None,
            (Some(Member::Waiter(waker)), None) => {
                work.wake(waker);
                None
            }
            (first, more) => Some(Members { first, more }),
        }
    }

    #[cfg(all(test, tokio_ctx_loom))]
    pub(super) fn census(&mut self) -> usize {
        self.iter_mut().count()
    }
}

/// The members of a token that has ended, taken out of its list.
pub(super) struct Members {
    first: Option<Member>,
    more: Option<Box<IntoIter<Member>>>,
}

impl Members {
    #[inline]
    pub(super) fn next(&mut self) -> Option<Member> {
        self.first.take().or_else(|| self.more.as_mut()?.next())
    }
}

/// A slab in pages, each of which is freed when it is empty.
pub(super) struct Pages<T> {
    pages: Vec<Slab<T>>,
    /// Pages that are not full, each once; some may have been removed since.
    roomy: Vec<u32>,
}

pub(super) type IntoIter<T> = iter::Map<iter::Flatten<vec::IntoIter<Slab<T>>>, fn((usize, T)) -> T>;

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), roomy: Vec::new() }
    }
}

impl<T> Pages<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.pages.iter().all(Slab::is_empty)
    }

    pub(super) fn insert(&mut self, item: T) -> u32 {
        let at = self.roomy_page();
        let page = &mut self.pages[at as usize];
        let key = page.insert(item);
        if page.len() == PAGE {
            self.roomy.pop();
        }
        at * PAGE as u32 + key as u32
    }

    /// The page on top of `roomy`. A page is only added when there is no other with room, so that no number of
    /// a removed page is left in `roomy` by then.
    fn roomy_page(&mut self) -> u32 {
        while let Some(&at) = self.roomy.last() {
            if (at as usize) < self.pages.len() {
                return at;
            }
            self.roomy.pop();
        }
        let at = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        assert!(at < u32::MAX / PAGE as u32, "at most 2^32 members");
        self.pages.push(Slab::new());
        self.roomy.push(at);
        at
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.pages.get_mut(key as usize / PAGE)?.get_mut(key as usize % PAGE)
    }

    pub(super) fn remove(&mut self, key: u32) -> Option<T> {
        let at = key as usize / PAGE;
        let page = self.pages.get_mut(at)?;
        let item = page.try_remove(key as usize % PAGE)?;
        if page.len() == PAGE - 1 {
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
