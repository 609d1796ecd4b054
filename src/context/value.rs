//! The list of request-scoped values of a context, keyed by type. It is separate from the token.
//!
//! [`Context::with_value`](crate::Context::with_value) adds an entry to the front of the list, with one
//! allocation and without copying. A lookup visits only a few entries: after every [`STRIDE`] entries there is
//! an *index* of all values that are visible from there, which the entries in front of it share. A 64-bit
//! filter in each entry says which types can lie between the entry and its index, and a filter in each index
//! says which types it can contain, so most lookups of a missing type end early. A merged context starts with
//! an index of both lists.

use std::any::{Any, TypeId, type_name};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;

/// The maximum number of entries in front of an index.
const STRIDE: u8 = 8;

type Link = Arc<Entry<dyn Any + Send + Sync>>;

/// The values a context carries.
#[derive(Clone, Default)]
pub(crate) struct Values(Option<Link>);

struct Entry<V: ?Sized> {
    /// The next entry, if it is not in the index.
    next: Option<Link>,
    /// The nearest entry of each type behind the last entry of the list.
    index: Option<Arc<Index>>,
    /// The filter of the types in this entry and the next ones.
    types: u64,
    id: TypeId,
    name: fn() -> &'static str,
    /// The number of entries between this one and its index.
    depth: u8,
    value: V,
}

/// The nearest entry of each type.
#[derive(Default)]
struct Index {
    links: HashTable<Link>,
    /// The filter of the types in `links`.
    types: u64,
}

impl Index {
    #[inline]
    fn get(&self, id: TypeId) -> Option<&Link> {
        if self.types & bit(id) == 0 {
            return None;
        }
        self.links.find(hash(id), |link| link.id == id)
    }

    /// Adds an entry, unless the index contains an entry of its type.
    fn add(&mut self, link: &Link) {
        let id = link.id;
        let entry = self.links.entry(hash(id), |link| link.id == id, |link| hash(link.id));
        entry.or_insert_with(|| link.clone());
        self.types |= bit(id);
    }
}

/// The value of an entry that exists only to hold an index.
struct Merged;

impl Values {
    pub(crate) const NONE: Values = Values(None);

    pub(crate) fn with<T: Send + Sync + 'static>(&self, value: T) -> Values {
        match &self.0 {
            Some(link) if link.depth + 1 == STRIDE => {
                let mut index = Index::default();
                self.collect(&mut index);
                Values::indexed(index, value)
            }
            next => Values(Some(Arc::new(Entry {
                index: next.as_ref().and_then(|next| next.index.clone()),
                types: next.as_ref().map_or(0, |next| next.types) | bit(TypeId::of::<T>()),
                id: TypeId::of::<T>(),
                name: type_name::<T>,
                depth: next.as_ref().map_or(0, |next| next.depth + 1),
                next: next.clone(),
                value,
            }))),
        }
    }

    #[inline]
    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        let first = self.0.as_ref()?;
        let mut next = Some(first).filter(|first| first.types & bit(id) != 0);
        while let Some(link) = next {
            if link.id == id {
                return link.value.downcast_ref();
            }
            next = link.next.as_ref();
        }
        first.index.as_ref()?.get(id)?.value.downcast_ref()
    }

    /// Returns these values, and behind them those of `other`.
    pub(crate) fn or(&self, other: &Values) -> Values {
        match (&self.0, &other.0) {
            (_, None) => self.clone(),
            (None, _) => other.clone(),
            _ if self.ends_with(other) => self.clone(),
            (Some(_), Some(_)) => {
                let mut index = Index::default();
                self.collect(&mut index);
                other.collect(&mut index);
                Values::indexed(index, Merged)
            }
        }
    }

    /// Returns whether this list consists of `other` and further entries in front. Does not look behind an
    /// index.
    pub(crate) fn ends_with(&self, other: &Values) -> bool {
        let Some(sought) = &other.0 else { return true };
        let mut next = self.0.as_ref();
        while let Some(link) = next {
            if Arc::ptr_eq(link, sought) {
                return true;
            }
            next = link.next.as_ref();
        }
        false
    }

    /// Returns the names of the types, sorted.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut index = Index::default();
        self.collect(&mut index);
        let mut names: Vec<_> = index.links.iter().map(|link| (link.name)()).collect();
        names.sort_unstable();
        names
    }

    fn indexed<T: Send + Sync + 'static>(index: Index, value: T) -> Values {
        let id = TypeId::of::<T>();
        Values(Some(Arc::new(Entry {
            next: None,
            types: bit(id),
            index: Some(Arc::new(index)),
            id,
            name: type_name::<T>,
            depth: 0,
            value,
        })))
    }

    /// Adds all visible entries to `index`, except for types that it already contains.
    fn collect(&self, index: &mut Index) {
        let mut next = self.0.as_ref();
        while let Some(link) = next {
            if link.id != TypeId::of::<Merged>() {
                index.add(link);
            }
            next = link.next.as_ref();
        }
        let behind = self.0.as_ref().and_then(|first| first.index.as_ref());
        behind.iter().flat_map(|behind| &behind.links).for_each(|link| index.add(link));
    }
}

/// Frees a list entry by entry, so that a long list does not recurse.
///
/// If another thread drops the same entry at the same time, the last one to do so frees it. This may be the
/// plain `drop` in the loop, which is one nested call with a loop of its own.
impl<V: ?Sized> Drop for Entry<V> {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        let mut next = unhook(self, &mut pending);
        while let Some(mut link) = next.or_else(|| pending.pop()) {
            next = Arc::get_mut(&mut link).and_then(|entry| unhook(entry, &mut pending));
            drop(link);
        }
    }
}

fn unhook<V: ?Sized>(entry: &mut Entry<V>, pending: &mut Vec<Link>) -> Option<Link> {
    if let Some(index) = entry.index.take().and_then(Arc::into_inner) {
        pending.extend(index.links);
    }
    entry.next.take()
}

#[inline]
fn bit(id: TypeId) -> u64 {
    1 << (hash(id) >> 58)
}

/// Returns the hash that a `TypeId` contains.
#[inline]
fn hash(id: TypeId) -> u64 {
    let mut hasher = IdentityHasher::default();
    id.hash(&mut hasher);
    hasher.0
}

#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    // `TypeId` only calls `write_u64` today, but that may change.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::iter;

    use super::*;

    struct Type<const N: usize>(usize);

    macro_rules! with_types {
        ($values:ident, $($n:literal)*) => { $($values = $values.with(Type::<$n>($n));)* };
    }

    #[test]
    fn finds_every_type_across_indexes_and_misses_the_rest() {
        let mut values = Values::NONE;
        with_types!(values, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        macro_rules! check {
            ($($n:literal)*) => { $(assert_eq!(values.get::<Type<$n>>().unwrap().0, $n);)* };
        }
        check!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        assert!(values.get::<Type<20>>().is_none());
        assert!(values.get::<Merged>().is_none());
        assert_eq!(values.names().len(), 20);
    }

    #[test]
    fn the_nearest_wins_also_across_an_index() {
        let mut values = Values::NONE;
        for n in 0..1_000 {
            values = values.with(Type::<0>(n)).with(Type::<1>(n));
            assert_eq!(values.get::<Type<0>>().unwrap().0, n);
            assert_eq!(values.get::<Type<1>>().unwrap().0, n);
        }
    }

    #[test]
    fn a_lookup_visits_few_entries_of_a_long_list() {
        let mut values = Values::NONE;
        for n in 0..1_000 {
            values = values.with(Type::<0>(n));
            let visited = iter::successors(values.0.as_ref(), |link| link.next.as_ref()).count();
            assert!(visited <= STRIDE.into(), "{visited}");
        }
    }

    #[test]
    fn different_types_have_different_hashes_and_mostly_different_filters() {
        macro_rules! ids {
            ($($n:literal)*) => { [$(TypeId::of::<Type<$n>>()),*] };
        }
        let ids = ids!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        let hashes: HashSet<u64> = ids.into_iter().map(hash).collect();
        assert_eq!(hashes.len(), ids.len());
        let filters: HashSet<u64> = ids.into_iter().map(bit).collect();
        assert!(filters.len() > ids.len() / 2, "{}", filters.len());
    }

    #[test]
    fn every_bit_of_a_hash_counts_that_is_written_in_bytes() {
        let hash = |bytes: [u8; 16]| {
            let mut hasher = IdentityHasher::default();
            hasher.write(&bytes);
            hasher.finish()
        };
        for bit in 0..128 {
            let mut bytes = [0xff; 16];
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash(bytes), hash([0xff; 16]), "bit {bit}");
        }
    }

    #[test]
    fn a_merge_with_a_list_that_lies_behind_adds_nothing() {
        let left = Values::NONE.with(Type::<0>(1));
        let right = left.with(Type::<1>(1)).with(Type::<2>(1));
        let both = right.or(&left);
        assert!(Arc::ptr_eq(both.0.as_ref().unwrap(), right.0.as_ref().unwrap()));
    }

    #[test]
    fn a_merge_looks_left_first() {
        let left = Values::NONE.with(Type::<0>(1)).with(Type::<1>(1));
        let right = Values::NONE.with(Type::<1>(2)).with(Type::<2>(2));
        let both = left.or(&right).with(Type::<3>(3));
        assert_eq!(both.get::<Type<0>>().unwrap().0, 1);
        assert_eq!(both.get::<Type<1>>().unwrap().0, 1);
        assert_eq!(both.get::<Type<2>>().unwrap().0, 2);
        assert_eq!(both.names().len(), 4);
    }

    #[test]
    fn a_long_list_drops_on_a_small_stack() {
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        let run = thread.spawn(|| {
            let mut values = Values::NONE;
            for n in 0..100_000 {
                values = values.with(Type::<0>(n)).with(Type::<1>(n));
                if n % 100 == 0 {
                    values = values.or(&Values::NONE.with(Type::<2>(n)));
                }
            }
        });
        run.unwrap().join().unwrap();
    }
}
