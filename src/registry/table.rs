//! The table of records: shards, of which each thread uses one.

use std::cell::Cell;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::list::List;
use super::name::Label;
use super::record::{Draft, Record};

/// The number of slots that a reader visits each time it holds a lock.
const BATCH: usize = 1024;

pub(crate) struct Table {
    shards: Box<[Shard]>,
    most: usize,
    left_out: AtomicU64,
    /// The lines of work that ended in a panic, if they are to be recorded.
    panicked: Option<Mutex<Vec<&'static Location<'static>>>>,
}

#[repr(align(128))]
#[derive(Default)]
struct Shard {
    len: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inserted: u64,
    list: List,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a number that no other thread has.
#[inline]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let number = |number: &Cell<usize>| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    };
    NUMBER.try_with(number).unwrap_or(0)
}

impl Table {
    /// Creates a table of at most `most` records.
    pub(crate) fn new(shards: usize, most: usize, records_panics: bool) -> Table {
        let shards = (0..shards.max(1)).map(|_| Shard::default()).collect();
        let panicked = records_panics.then(Mutex::default);
        Table { shards, most, left_out: AtomicU64::new(0), panicked }
    }

    /// Inserts a record; returns `None` if the table is full.
    pub(super) fn insert<N: Label + 'static>(&self, draft: Draft<N>) -> Option<Arc<Record>> {
        let shards = self.shards.len();
        let at = thread_number() % shards;
        let shard = &self.shards[at];
        // Only a shard with more than its share needs the lengths of the others.
        let is_full = shard.len.load(Ordering::Relaxed) >= self.most / shards && self.len() >= self.most;
        if is_full {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut state = locked(&shard.state);
        let record: Arc<Record> = Arc::new(Record::new(id(state.inserted, at, shards), draft));
        state.inserted += 1;
        state.list.push(record.clone());
        shard.len.store(state.list.len(), Ordering::Relaxed);
        Some(record)
    }

    pub(super) fn remove(&self, record: &Record) {
        let shard = &self.shards[shard_of(record.id, self.shards.len())];
        let mut state = locked(&shard.state);
        let removed = state.list.remove(record.id);
        shard.len.store(state.list.len(), Ordering::Relaxed);
        drop(state);
        drop(removed);
        if let Some(panicked) = self.panicked.as_ref().filter(|_| thread::panicking()) {
            locked(panicked).push(record.line);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len.load(Ordering::Relaxed)).sum()
    }

    /// Returns how many records were refused because the table was full.
    #[cfg(feature = "watch")]
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Calls `f` with each record, while no lock is held. Records that are inserted during the call are left out.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Arc<Record>)) {
        let mut batch = Vec::new();
        for (at, shard) in self.shards.iter().enumerate() {
            let end = id(locked(&shard.state).inserted, at, self.shards.len());
            let mut after = 0;
            loop {
                let last = locked(&shard.state).list.copy(after, end, BATCH, &mut batch);
                batch.drain(..).for_each(&mut f);
                let Some(last) = last else { break };
                after = last;
            }
        }
    }

    /// Returns the lines of work that ended in a panic.
    #[cfg(feature = "test-util")]
    pub(crate) fn panicked(&self) -> Vec<&'static Location<'static>> {
        self.panicked.as_ref().map(|panicked| locked(panicked).clone()).unwrap_or_default()
    }
}

/// Returns the number of the record that is inserted into a shard after `inserted` others. It is never zero.
fn id(inserted: u64, shard: usize, shards: usize) -> u64 {
    inserted * shards as u64 + shard as u64 + 1
}

fn shard_of(id: u64, shards: usize) -> usize {
    ((id - 1) % shards as u64) as usize
}
