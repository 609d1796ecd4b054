//! [`Pages`]: a slab that frees the room it no longer needs.
//!
//! Items are stored in pages of a fixed size, and a page is freed when its last item is removed. The room that many
//! items needed is therefore not kept by one that stays.

use std::{iter, mem, vec};

use slab::Slab;

/// Items in a page.
const PAGE: usize = if cfg!(tokio_ctx_loom) { 2 } else { 256 };
/// The capacity that an empty page keeps, so that an item that is inserted and removed repeatedly allocates once.
const SPARE: usize = 16;

/// The key of an item in a list whose first item is stored apart from the pages. 0 is none, 1 is the first item, and keys
/// from 2 on are those in the pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u32);

impl Key {
    #[inline]
    pub(crate) fn insert<'a, T: 'a>(
        first: &mut Option<T>,
        pages: impl FnOnce() -> &'a mut Pages<T>,
        item: T,
    ) -> Key {
        if first.is_none() {
            *first = Some(item);
            return Key(1);
        }
        Key(pages().insert(item) + 2)
    }

    /// Replaces the item with this key, and returns it. If this is none, inserts the item, and becomes its key.
    #[inline(always)]
    pub(crate) fn insert_or_replace<'a, T: 'a>(
        &mut self,
        first: &mut Option<T>,
        pages: impl FnOnce() -> &'a mut Pages<T>,
        item: T,
    ) -> Option<T> {
        match self.0 {
            0 => *self = Key::insert(first, pages, item),
            1 => return first.replace(item),
            at => return pages().get_mut(at - 2).map(|present| mem::replace(present, item)),
        }
        None
    }

    #[inline]
    pub(crate) fn remove<T>(self, first: &mut Option<T>, pages: Option<&mut Pages<T>>) -> Option<T> {
        match self.0 {
            0 => None,
            1 => first.take(),
            at => pages?.remove(at - 2),
        }
    }
}

/// A slab in pages. A page is freed when it is empty.
pub(crate) struct Pages<T> {
    pages: Vec<Slab<T>>,
    /// The pages before the last one that are not full, each once. Some of them may have been removed since.
    roomy: Vec<u32>,
}

pub(crate) type IntoIter<T> = iter::Map<iter::Flatten<vec::IntoIter<Slab<T>>>, fn((usize, T)) -> T>;

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), roomy: Vec::new() }
    }
}

impl<T> Pages<T> {
    pub(crate) fn len(&self) -> usize {
        self.pages.iter().map(Slab::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.iter().all(Slab::is_empty)
    }

    pub(crate) fn insert(&mut self, item: T) -> u32 {
        let at = self.roomy_page();
        let page = &mut self.pages[at];
        let key = at * PAGE + page.insert(item);
        if page.len() == PAGE && self.roomy.last() == Some(&(at as u32)) {
            self.roomy.pop();
        }
        key as u32
    }

    /// Returns a page that is not full. A page is added only when no other has room, and then `roomy` contains no removed
    /// page any more.
    fn roomy_page(&mut self) -> usize {
        while let Some(&at) = self.roomy.last() {
            if (at as usize) < self.pages.len() {
                return at as usize;
            }
            self.roomy.pop();
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            assert!(self.pages.len() < u32::MAX as usize / PAGE, "at most 2^32 members");
            // If one page is full, the next one probably will be.
            let room = if self.pages.is_empty() { SPARE / 2 } else { PAGE };
            self.pages.push(Slab::with_capacity(room));
        }
        self.pages.len() - 1
    }

    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.pages.get_mut(key as usize / PAGE)?.get_mut(key as usize % PAGE)
    }

    /// Returns the items at up to `most` keys from `from` on, and the next key, or `None` at the end.
    #[cfg(any(feature = "watch", all(test, tokio_ctx_loom)))]
    pub(crate) fn range(&self, from: u32, most: u32) -> (impl Iterator<Item = &T>, Option<u32>) {
        let end = (self.pages.len() * PAGE) as u32;
        let until = from.saturating_add(most).min(end);
        let get = |key: u32| self.pages[key as usize / PAGE].get(key as usize % PAGE);
        ((from..until).filter_map(get), (until < end).then_some(until))
    }

    pub(crate) fn remove(&mut self, key: u32) -> Option<T> {
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

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flat_map(|page| page.iter_mut().map(|(_, item)| item))
    }

    pub(crate) fn into_iter(self) -> IntoIter<T> {
        self.pages.into_iter().flatten().map(|(_, item)| item)
    }
}
