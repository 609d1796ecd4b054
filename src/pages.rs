//! [`Pages`]: a slab that frees the memory it no longer needs.
//!
//! Items are stored in pages of a fixed size, and a page is freed when its last item is removed. One remaining item
//! therefore does not keep the memory of many removed ones.

use std::{iter, mem};

use slab::Slab;

/// Items in a page.
const PAGE: usize = if cfg!(tokio_ctx_loom) { 2 } else { 256 };
/// The capacity that an empty page keeps, so that an item that is inserted and removed repeatedly allocates once.
const SPARE: usize = 16;

/// The key of an item in a list whose first item is stored apart from the pages. 0 means no item, 1 is the first item,
/// and keys from 2 on are those in the pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u32);

impl Key {
    #[inline(always)]
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

    /// Replaces the item with this key, and returns the previous item. If the key is 0, inserts the item, and sets the
    /// key.
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

    /// Replaces each item, and returns the previous ones, with their keys.
    pub(crate) fn replace_all<T: Clone>(
        first: &mut Option<T>,
        pages: Option<&mut Pages<T>>,
        by: &T,
    ) -> Vec<(Key, T)> {
        let pages = pages.into_iter().flat_map(Pages::iter_mut);
        let all = first.iter_mut().map(|item| (Key(1), item)).chain(pages);
        all.map(|(key, item)| (key, mem::replace(item, by.clone()))).collect()
    }

    /// Swaps these items with those that have their keys and that `is_replaced` accepts.
    pub(crate) fn swap_all<T>(
        first: &mut Option<T>,
        mut pages: Option<&mut Pages<T>>,
        items: &mut [(Key, T)],
        is_replaced: impl Fn(&T) -> bool,
    ) {
        for (key, item) in items {
            let present = match key.0 {
                0 | 1 => first.as_mut(),
                at => pages.as_mut().and_then(|pages| pages.get_mut(at - 2)),
            };
            if let Some(present) = present.filter(|present| is_replaced(present)) {
                mem::swap(present, item);
            }
        }
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
    /// Stored here, so that a list of a few items is one allocation.
    first: Slab<T>,
    others: Vec<Slab<T>>,
    /// The pages that were full and are not any more, each once. Some of them may have been removed since.
    roomy: Vec<u32>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { first: Slab::new(), others: Vec::new(), roomy: Vec::new() }
    }
}

impl<T> Pages<T> {
    fn pages(&self) -> impl Iterator<Item = &Slab<T>> {
        iter::once(&self.first).chain(&self.others)
    }

    #[inline]
    fn page(&mut self, at: usize) -> Option<&mut Slab<T>> {
        if at == 0 { Some(&mut self.first) } else { self.others.get_mut(at - 1) }
    }

    pub(crate) fn len(&self) -> usize {
        self.pages().map(Slab::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages().all(Slab::is_empty)
    }

    #[inline]
    pub(crate) fn insert(&mut self, item: T) -> u32 {
        // Does not fill the page, which may be in `roomy`.
        if self.others.is_empty() && self.first.len() + 1 < self.first.capacity().min(PAGE) {
            return self.first.insert(item) as u32;
        }
        self.insert_into_roomy(item)
    }

    fn insert_into_roomy(&mut self, item: T) -> u32 {
        let at = self.roomy_page();
        let page = if at == 0 { &mut self.first } else { &mut self.others[at - 1] };
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
            if at as usize <= self.others.len() {
                return at as usize;
            }
            self.roomy.pop();
        }
        let last = self.others.last().unwrap_or(&self.first);
        if last.len() == PAGE {
            assert!(self.others.len() + 1 < u32::MAX as usize / PAGE, "at most 2^32 members");
            // If one page is full, the next one probably will be.
            self.others.push(Slab::with_capacity(PAGE));
        } else if last.capacity() == 0 {
            self.first = Slab::with_capacity(SPARE);
        }
        self.others.len()
    }

    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.page(key as usize / PAGE)?.get_mut(key as usize % PAGE)
    }

    /// Returns the items at up to `most` keys from `from` on, and the next key, or `None` at the end.
    #[cfg(any(feature = "watch", all(test, tokio_ctx_loom)))]
    pub(crate) fn range(&self, from: u32, most: u32) -> (impl Iterator<Item = &T>, Option<u32>) {
        let end = ((1 + self.others.len()) * PAGE) as u32;
        let until = from.saturating_add(most).min(end);
        let page = |at: usize| if at == 0 { &self.first } else { &self.others[at - 1] };
        let get = move |key: u32| page(key as usize / PAGE).get(key as usize % PAGE);
        ((from..until).filter_map(get), (until < end).then_some(until))
    }

    pub(crate) fn remove(&mut self, key: u32) -> Option<T> {
        let (at, last) = (key as usize / PAGE, self.others.len());
        let page = self.page(at)?;
        let item = page.try_remove(key as usize % PAGE)?;
        let (is_roomy, is_empty) = (page.len() == PAGE - 1, page.is_empty());
        if is_empty && page.capacity() > SPARE {
            *page = Slab::new();
        }
        if is_roomy {
            self.roomy.push(at as u32);
        }
        if is_empty && last > 0 {
            while self.others.last().is_some_and(Slab::is_empty) {
                self.others.pop();
            }
            if self.others.capacity() > 4 * self.others.len().max(4) {
                self.others.shrink_to_fit();
            }
        }
        Some(item)
    }

    /// Takes the first item whose key is at least `from`, and sets `from` to the next key. An empty item stays in its place.
    pub(crate) fn take_next(&mut self, from: &mut u32) -> Option<T>
    where
        T: Default,
    {
        loop {
            let (at, key) = (*from as usize / PAGE, *from as usize % PAGE);
            let page = self.page(at)?;
            *from = if key + 1 < page.capacity() { *from + 1 } else { ((at + 1) * PAGE) as u32 };
            if let Some(item) = page.get_mut(key) {
                return Some(mem::take(item));
            }
        }
    }

    /// Visits each item, with its key in a list whose first item is stored apart.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        let pages = iter::once(&mut self.first).chain(&mut self.others).enumerate();
        let key = |at: usize, key: usize| Key((at * PAGE + key) as u32 + 2);
        pages.flat_map(move |(at, page)| page.iter_mut().map(move |(nth, item)| (key(at, nth), item)))
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = T> {
        iter::once(self.first).chain(self.others).flatten().map(|(_, item)| item)
    }
}

#[cfg(test)]
#[cfg(not(tokio_ctx_loom))]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    /// Inserts and removes at random, first more, then less, until all are removed.
    #[test]
    fn agrees_with_a_map() {
        let (mut pages, mut map, mut keys) = (Pages::default(), HashMap::new(), Vec::new());
        let mut random = 1_u32;
        for step in 0..20_000_u32 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            if random % 16 < if step < 10_000 { 9 } else { 6 } || keys.is_empty() {
                let key = pages.insert(step);
                assert_eq!(map.insert(key, step), None, "the key {key} is used");
                keys.push(key);
            } else {
                let key = keys.swap_remove(random as usize % keys.len());
                assert_eq!(pages.remove(key), map.remove(&key));
                assert_eq!(pages.remove(key), None);
                assert_eq!(pages.get_mut(key), None);
            }
            assert_eq!(pages.len(), map.len());
            assert_eq!(pages.is_empty(), map.is_empty());
            for key in keys.iter().rev().take(3) {
                assert_eq!(pages.get_mut(*key), map.get_mut(key));
            }
            if step % 1_000 == 0 {
                let found: HashMap<_, _> =
                    pages.iter_mut().map(|(key, item)| (key.0 - 2, *item)).collect();
                assert_eq!(found, map);
                #[cfg(feature = "watch")]
                {
                    let mut expected: Vec<_> = map.values().copied().collect();
                    expected.sort_unstable();
                    assert_eq!(in_ranges(&pages), expected);
                }
            }
        }
        let mut left: Vec<_> = pages.into_iter().collect();
        left.sort_unstable();
        let mut expected: Vec<_> = map.into_values().collect();
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    /// All items, sorted, by ranges of 100 keys.
    #[cfg(feature = "watch")]
    fn in_ranges(pages: &Pages<u32>) -> Vec<u32> {
        let (mut found, mut from) = (Vec::new(), Some(0));
        while let Some(start) = from {
            let (items, next) = pages.range(start, 100);
            found.extend(items);
            assert!(next.is_none_or(|next| next == start + 100));
            from = next;
        }
        found.sort_unstable();
        found
    }

    /// All items are replaced. In the meantime, some are removed and some set again. The rest is put back where it was.
    #[test]
    fn replaced_items_are_put_back() {
        const TAKEN: usize = usize::MAX;
        let (mut first, mut pages) = (None, Pages::default());
        let count = 2 * PAGE + 10;
        let keys: Vec<_> = (0..count).map(|item| Key::insert(&mut first, || &mut pages, item)).collect();
        let mut taken = Key::replace_all(&mut first, Some(&mut pages), &TAKEN);
        assert_eq!(taken.len(), count);
        for (item, key) in keys.iter().enumerate() {
            match item % 3 {
                0 => assert_eq!(key.remove(&mut first, Some(&mut pages)), Some(TAKEN)),
                1 => {
                    let replaced = { *key }.insert_or_replace(&mut first, || &mut pages, item + count);
                    assert_eq!(replaced, Some(TAKEN));
                }
                _ => {}
            }
        }
        Key::swap_all(&mut first, Some(&mut pages), &mut taken, |item| *item == TAKEN);
        for (item, key) in keys.iter().enumerate() {
            let expected = [None, Some(item + count), Some(item)][item % 3];
            assert_eq!(key.remove(&mut first, Some(&mut pages)), expected);
        }
    }

    /// The place of the first item, which is stored apart, is reused as well.
    #[test]
    fn a_key_is_that_of_one_item() {
        let (mut first, mut pages) = (None, Pages::default());
        let mut keys: Vec<_> = (0..5).map(|item| Key::insert(&mut first, || &mut pages, item)).collect();
        for (item, key) in keys.iter_mut().enumerate() {
            assert_eq!(key.insert_or_replace(&mut first, || &mut pages, item + 10), Some(item));
        }
        let mut none = Key::default();
        assert_eq!(none.remove(&mut first, Some(&mut pages)), None);
        assert_eq!(none.insert_or_replace(&mut first, || &mut pages, 15), None);
        keys.push(none);
        for round in 0..2 {
            for (item, key) in keys.iter_mut().enumerate() {
                assert_eq!(key.remove(&mut first, Some(&mut pages)), Some(item + 10 + round));
                assert_eq!(key.remove(&mut first, Some(&mut pages)), None);
                *key = Key::insert(&mut first, || &mut pages, item + 11 + round);
            }
        }
        assert_eq!((pages.len(), first.is_some()), (5, true));
    }

    fn capacity<T>(pages: &Pages<T>) -> usize {
        pages.pages().map(Slab::capacity).sum()
    }

    /// All items but one are removed: the first, a middle or the last one remains, and both orders are tried.
    #[test]
    fn frees_the_room_of_items_that_are_gone() {
        const CROWD: usize = 100_000;
        for stays in [0, CROWD / 2, CROWD - 1] {
            for reversed in [false, true] {
                let mut pages = Pages::default();
                let mut keys: Vec<_> = (0..CROWD).map(|item| pages.insert(item)).collect();
                assert!(capacity(&pages) < CROWD + PAGE, "pages are filled before one is added");
                let (mut room, mut shrunk) = (pages.others.capacity(), 0);
                let key = keys.remove(stays);
                if reversed {
                    keys.reverse();
                }
                for key in keys {
                    pages.remove(key);
                    shrunk += usize::from(pages.others.capacity() < room);
                    room = pages.others.capacity();
                }
                // Each time by three quarters.
                assert!(shrunk <= 5, "{shrunk}");
                assert_eq!(pages.get_mut(key), Some(&mut stays.clone()));
                assert!(capacity(&pages) <= PAGE, "{}", capacity(&pages));
                assert!(pages.others.len() <= stays / PAGE);
                assert!(pages.others.capacity() <= 4 * pages.others.len().max(4));
                let next = pages.insert(CROWD);
                assert_ne!(next, key);
                assert_eq!(pages.remove(next), Some(CROWD));
            }
        }
    }

    /// Items reuse the places of removed items, on every page, before a page is added.
    #[test]
    fn uses_the_room_of_items_that_are_gone() {
        let mut pages = Pages::default();
        let keys: Vec<_> = (0..4 * PAGE).map(|item| pages.insert(item)).collect();
        for key in keys.iter().step_by(2) {
            pages.remove(*key);
        }
        for item in 0..2 * PAGE {
            pages.insert(item);
        }
        assert_eq!(pages.len(), 4 * PAGE);
        assert_eq!(pages.others.len(), 3);
    }

    /// The first page had room while there was another one, which has gone since.
    #[test]
    fn a_page_is_filled_once() {
        let mut pages = Pages::default();
        let mut keys: HashSet<_> = (0..PAGE + 1).map(|item| pages.insert(item)).collect();
        for key in [0, PAGE as u32] {
            pages.remove(key);
            keys.remove(&key);
        }
        for item in 0..2 * PAGE {
            assert!(keys.insert(pages.insert(item)));
        }
        assert_eq!(pages.len(), 3 * PAGE - 1);
        assert_eq!(pages.others.len(), 2);
    }

    /// An item that is taken is not taken again, and holes are skipped, also a page of them.
    #[test]
    fn takes_each_item_once() {
        let mut pages = Pages::default();
        let keys: Vec<_> = (1..=3 * PAGE + 1).map(|item| pages.insert(item)).collect();
        for key in keys.iter().filter(|&&key| key % 2 == 0 || key as usize / PAGE == 1) {
            pages.remove(*key);
        }
        let mut from = 0;
        let taken: Vec<_> = std::iter::from_fn(|| pages.take_next(&mut from)).collect();
        let odd = |page: usize| (page * PAGE + 2..=(page + 1) * PAGE).step_by(2);
        assert_eq!(taken, odd(0).chain(odd(2)).collect::<Vec<_>>());
        assert_eq!(pages.take_next(&mut from), None);
    }

    #[test]
    fn keeps_the_room_of_a_few_for_the_next() {
        let mut pages = Pages::default();
        let first = pages.insert(0);
        assert_eq!(capacity(&pages), SPARE, "a few need one allocation");
        pages.remove(first);
        for _ in 0..3 {
            let keys: Vec<_> = (0..SPARE).map(|item| pages.insert(item)).collect();
            for key in keys {
                pages.remove(key);
            }
            assert!(pages.is_empty());
            assert_eq!(capacity(&pages), SPARE);
        }
    }
}
