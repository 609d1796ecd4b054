//! The records of one shard, in the order of their insertion.
//!
//! A slab would be simpler, but it frees slots only at its end, so that one remaining record keeps the memory of all
//! earlier ones. Here a record is found by its number, so that slots can be moved. Slots are stored in pages. A page
//! that is half empty is compacted, and two neighbors that fit into half a page are merged. The memory is therefore
//! proportional to the number of records, whichever of them are removed, and each step moves at most one page.

use std::sync::Arc;

use super::record::Record;

/// The number of slots in a page.
const PAGE: usize = 1024;
/// A page with at most this many slots is not compacted.
const SPARE: usize = 16;

#[derive(Default)]
pub(super) struct List {
    pages: Vec<Page>,
    len: usize,
}

/// Slots in the order of their numbers. The last slot contains a record. A page has no slots only if it is the only
/// page.
#[derive(Default)]
struct Page {
    slots: Vec<(u64, Option<Arc<Record>>)>,
    live: usize,
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a record, whose number is above all others.
    pub(super) fn push(&mut self, record: Arc<Record>) {
        if self.pages.last().is_none_or(|page| page.slots.len() == PAGE) {
            self.pages.push(Page::default());
        }
        let at = self.pages.len() - 1;
        self.pages[at].slots.push((record.id, Some(record)));
        self.pages[at].live += 1;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Arc<Record>> {
        let at = self.page_of(id);
        let page = self.pages.get_mut(at)?;
        let record = page.remove(id)?;
        self.len -= 1;
        let is_empty = page.slots.is_empty() && self.pages.len() > 1;
        let page = &mut self.pages[at];
        if is_empty || page.is_sparse() {
            page.compact();
            self.merge(at + 1);
            self.merge(at);
            if self.pages.capacity() > 4 * self.pages.len().max(SPARE) {
                self.pages.shrink_to(2 * self.pages.len());
            }
        }
        Some(record)
    }

    /// Copies the records after number `after` and below `end`, and visits at most `most` slots. Returns the number of
    /// the last visited slot, or `None` at the end.
    pub(super) fn copy(
        &self,
        after: u64,
        end: u64,
        most: usize,
        into: &mut Vec<Arc<Record>>,
    ) -> Option<u64> {
        let slots = self.pages.iter().skip(self.page_of(after)).flat_map(|page| &page.slots);
        let slots = slots.skip_while(|(id, _)| *id <= after).take_while(|(id, _)| *id < end);
        let mut last = None;
        for (id, record) in slots.take(most) {
            into.extend(record.clone());
            last = Some(*id);
        }
        last
    }

    /// Returns the page that a number belongs to, if there is one.
    fn page_of(&self, id: u64) -> usize {
        let last = self.pages.len().saturating_sub(1);
        if self.pages.get(last).is_some_and(|page| page.first() <= id) {
            return last;
        }
        self.pages.partition_point(|page| page.first() <= id).saturating_sub(1)
    }

    /// Moves the slots of a page to the page before it, if there is room.
    fn merge(&mut self, at: usize) {
        let Some([before, page]) = at.checked_sub(1).and_then(|before| self.pages.get_mut(before..=at))
        else {
            return;
        };
        let fits = before.slots.len() + page.slots.len() <= PAGE / 2;
        if fits || before.slots.is_empty() || page.slots.is_empty() {
            let Page { slots, live } = self.pages.remove(at);
            let before = &mut self.pages[at - 1];
            before.slots.extend(slots);
            before.live += live;
        }
    }
}

impl Page {
    /// Returns a number that is at most that of each slot, and greater than those of the previous page.
    fn first(&self) -> u64 {
        self.slots.first().map_or(u64::MAX, |(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Record>> {
        let at = match self.slots.last() {
            Some((last, _)) if *last == id => self.slots.len() - 1,
            _ => self.slots.binary_search_by_key(&id, |(id, _)| *id).ok()?,
        };
        let record = self.slots[at].1.take()?;
        self.live -= 1;
        while let Some((_, None)) = self.slots.last() {
            self.slots.pop();
        }
        Some(record)
    }

    fn is_sparse(&self) -> bool {
        let is_loose = self.slots.len() > SPARE && 2 * self.live < self.slots.len();
        is_loose || self.slots.capacity() > 4 * self.slots.len().max(SPARE)
    }

    fn compact(&mut self) {
        self.slots.retain(|(_, record)| record.is_some());
        if self.slots.capacity() > 4 * self.slots.len().max(SPARE) {
            self.slots.shrink_to(2 * self.slots.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::super::kind::Kind;
    use super::super::name::Name;
    use super::super::record::Draft;
    use super::*;

    const CROWD: u64 = 100_000;

    fn record(id: u64) -> Arc<Record> {
        let label: Option<Name> = None;
        let line = Location::caller();
        Arc::new(Record::new(
            id,
            Draft { kind: Kind::Task, line, started: None, label, subject: None, probe: None },
        ))
    }

    fn crowd() -> List {
        let mut list = List::default();
        (1..=CROWD).for_each(|id| list.push(record(id)));
        list
    }

    fn numbers(list: &List) -> Vec<u64> {
        let (mut found, mut after) = (Vec::new(), 0);
        while let Some(last) = list.copy(after, u64::MAX, 100, &mut found) {
            after = last;
        }
        found.iter().map(|record| record.id).collect()
    }

    fn room(list: &List) -> usize {
        list.pages.capacity() + list.pages.iter().map(|page| page.slots.capacity()).sum::<usize>()
    }

    /// Removes records in this order, except for those whose numbers `stays` accepts, and asserts that memory is freed.
    #[track_caller]
    fn frees_memory(order: impl Iterator<Item = u64>, stays: impl Fn(u64) -> bool) {
        let mut list = crowd();
        for id in order.filter(|id| !stays(*id)) {
            assert_eq!(list.remove(id).expect("it is there").id, id);
        }
        let left: Vec<u64> = (1..=CROWD).filter(|id| stays(*id)).collect();
        assert_eq!((list.len(), numbers(&list)), (left.len(), left.clone()));
        let most = 8 * left.len() + 8 * SPARE;
        assert!(room(&list) <= most, "{} slots for {} records", room(&list), left.len());
        // The remaining records can still be found, and the list still accepts others.
        list.push(record(CROWD + 1));
        left.iter().for_each(|id| assert!(list.remove(*id).is_some() && list.remove(*id).is_none()));
        assert_eq!(numbers(&list), [CROWD + 1]);
    }

    fn shuffled() -> impl Iterator<Item = u64> {
        // Coprime to the number of records, so that each number is returned once.
        (0..CROWD).map(|at| (at * 60_013) % CROWD + 1)
    }

    #[test]
    fn memory_is_freed_in_any_order_of_removal() {
        for every in [CROWD + 1, CROWD, 10_007, 1_000, 256, 3] {
            let stays = |id: u64| id % every == 0;
            frees_memory(1..=CROWD, stays);
            frees_memory((1..=CROWD).rev(), stays);
            frees_memory(shuffled(), stays);
        }
        frees_memory(1..=CROWD, |id| id == 1);
        frees_memory((1..=CROWD).rev(), |id| id == CROWD);
        frees_memory(shuffled(), |id| !(10..=CROWD - 10).contains(&id));
    }

    #[test]
    fn a_reader_visits_each_record_once_while_slots_move() {
        let mut list = crowd();
        let (mut found, mut after, mut removed) = (Vec::new(), 0, shuffled().filter(|id| id % 16 != 0));
        while let Some(last) = list.copy(after, CROWD + 1, 64, &mut found) {
            after = last;
            removed.by_ref().take(200).for_each(|id| drop(list.remove(id)));
            list.push(record(list.pages.last().unwrap().slots.last().unwrap().0 + CROWD));
        }
        let visited: Vec<u64> = found.iter().map(|record| record.id).collect();
        assert!(visited.is_sorted_by(|a, b| a < b) && visited.iter().all(|id| *id <= CROWD));
        assert_eq!(visited.iter().filter(|id| **id % 16 == 0).count() as u64, CROWD / 16);
    }

    #[test]
    fn repeated_insertion_and_removal_needs_few_slots() {
        let mut list = List::default();
        for id in 1..=CROWD {
            list.push(record(id));
            // A hundred records are in the list at a time.
            let oldest = id.saturating_sub(100);
            assert_eq!(list.remove(oldest).is_some(), oldest > 0);
            assert!(room(&list) <= 1_024, "{} slots", room(&list));
        }
    }
}
