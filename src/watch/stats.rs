//! The contexts that ended in the last minutes, counted by line, and the last few pieces of work that were late.
//!
//! Counting an end takes one lock, of the shard of its thread. The keys are lines and types of the program, so their
//! number is bounded. If a table is full nevertheless, new keys are not counted.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::ends::{Facts, cause_type, how};
use super::metrics;
use super::snapshot::{How, Kind, Late, LateClass, Lately, Line};
use crate::error::Error;
#[cfg(feature = "tower")]
use crate::registry::Finished;
use crate::registry::{Observer, Record, thread_number};
use crate::token::Token;
use crate::trace::shielded;

const SHARDS: usize = 16;
/// The maximum number of keys in a shard.
const KEYS: usize = 4096;
/// How long a generation of recent counts lasts.
const GENERATION: Duration = Duration::from_secs(60);
/// The bounds of the classes of lateness. One more class has no bound.
pub(super) const CLASSES: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];
/// The number of entries that are kept of each class.
const RING: usize = 8;

pub(super) struct Stats {
    pub(super) max_entries: usize,
    pub(super) show_causes: bool,
    pub(super) overstayed: AtomicU64,
    ended: [Mutex<HashMap<Key, Count, BuildHasherDefault<Addresses>>>; SHARDS],
    late: [Mutex<Class>; CLASSES.len() + 1],
}

#[derive(Clone, Copy)]
struct Key {
    how: How,
    line: Line,
    cause_type: Option<&'static str>,
}

/// Keys are compared by the addresses of their static strings, which is fast. A string with two addresses has two
/// counts, which a snapshot adds up.
impl Key {
    fn addresses(&self) -> (How, usize, usize) {
        let cause_type = self.cause_type.map_or(0, |name| name.as_ptr().addr());
        (self.how, std::ptr::from_ref(self.line.location()).addr(), cause_type)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.addresses() == other.addresses()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (how, line, cause_type) = self.addresses();
        state.write_usize(line);
        state.write_usize(cause_type);
        state.write_usize(how as usize);
    }
}

/// A hash function for addresses. Input from outside cannot choose them.
#[derive(Default)]
struct Addresses(u64);

impl Hasher for Addresses {
    fn write_usize(&mut self, value: usize) {
        self.0 = (self.0 ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Clone)]
struct Count {
    total: u64,
    /// The counts of this generation and of the previous one.
    recent: [Recent; 2],
    since: Instant,
    last: Instant,
}

#[derive(Clone, Copy, Default)]
struct Recent {
    count: u64,
    aged: u32,
    lived: Duration,
    longest: Duration,
}

impl Recent {
    fn add(&mut self, other: Recent) {
        self.count += other.count;
        self.aged += other.aged;
        self.lived = self.lived.saturating_add(other.lived);
        self.longest = self.longest.max(other.longest);
    }
}

impl Count {
    fn new(now: Instant) -> Count {
        Count { total: 0, recent: [Recent::default(); 2], since: now, last: now }
    }

    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= GENERATION {
            let before = if age < 2 * GENERATION { self.recent[0] } else { Recent::default() };
            self.recent = [Recent::default(), before];
            self.since = now;
        }
    }

    fn add(&mut self, now: Instant, lived: Option<Duration>) {
        self.rotate(now);
        self.total += 1;
        self.last = self.last.max(now);
        self.recent[0].add(Recent {
            count: 1,
            aged: u32::from(lived.is_some()),
            lived: lived.unwrap_or_default(),
            longest: lived.unwrap_or_default(),
        });
    }
}

#[derive(Default)]
struct Class {
    count: u64,
    /// A ring buffer: the next entry is stored at `count` modulo its length.
    last: Vec<Left>,
}

/// A piece of work that ended late.
struct Left {
    kind: Kind,
    line: Line,
    name: Option<Arc<str>>,
    how: How,
    late: Duration,
    at: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stats {
    pub(super) fn new(max_entries: usize, show_causes: bool) -> Stats {
        Stats {
            max_entries,
            show_causes,
            overstayed: AtomicU64::new(0),
            ended: Default::default(),
            late: Default::default(),
        }
    }

    fn count(&self, key: Key, now: Instant, lived: Option<Duration>) {
        let mut counts = locked(&self.ended[thread_number() % SHARDS]);
        if counts.len() < KEYS || counts.contains_key(&key) {
            counts.entry(key).or_insert_with(|| Count::new(now)).add(now, lived);
        }
    }

    /// Returns the contexts that ended in the last minutes, the most frequent first.
    pub(super) fn lately(&self) -> Vec<Lately> {
        let now = Instant::now();
        let mut all: HashMap<(How, Line, Option<&'static str>), Count> = HashMap::new();
        for shard in &self.ended {
            for (key, count) in &mut *locked(shard) {
                count.rotate(now);
                let key = (key.how, key.line, key.cause_type);
                let sum = all.entry(key).or_insert_with(|| Count { total: 0, ..count.clone() });
                if sum.total == 0 {
                    *sum = count.clone();
                    continue;
                }
                sum.total += count.total;
                sum.last = sum.last.max(count.last);
                sum.recent.iter_mut().zip(count.recent).for_each(|(sum, recent)| sum.add(recent));
            }
        }
        let recent = |((how, line, cause_type), count): ((How, Line, Option<&'static str>), Count)| {
            let mut sum = count.recent[0];
            sum.add(count.recent[1]);
            (sum.count > 0).then(|| Lately {
                how,
                line,
                cause_type,
                count: sum.count,
                total: count.total,
                mean_lived: (sum.aged > 0).then(|| sum.lived / sum.aged),
                max_lived: (sum.aged > 0).then_some(sum.longest),
                last_ago: now.saturating_duration_since(count.last),
            })
        };
        let mut lately: Vec<Lately> = all.into_iter().filter_map(recent).collect();
        lately.sort_by(|a, b| b.count.cmp(&a.count).then(a.line.cmp(&b.line)).then(a.how.cmp(&b.how)));
        lately
    }

    /// Returns the work that ended late, by class.
    pub(super) fn late(&self) -> Vec<LateClass> {
        let now = Instant::now();
        let bounds = CLASSES.iter().copied().map(Some).chain([None]);
        let class = |(up_to, class): (Option<Duration>, &Mutex<Class>)| {
            let class = locked(class);
            let mut last: Vec<&Left> = class.last.iter().collect();
            last.sort_by_key(|left| std::cmp::Reverse(left.at));
            let late = |left: &Left| Late {
                kind: left.kind,
                line: left.line,
                name: left.name.as_deref().map(str::to_owned),
                how: left.how,
                late: left.late,
                ago: now.saturating_duration_since(left.at),
            };
            LateClass { up_to, count: class.count, last: last.into_iter().map(late).collect() }
        };
        bounds.zip(&self.late).map(class).collect()
    }
}

impl Observer for Stats {
    fn registered(&self, record: &Record) {
        let is_counted = metrics::registered(record.kind, Line(record.line));
        record.is_counted.store(is_counted, Ordering::Relaxed);
    }

    fn work_ended(&self, record: &Record) {
        if record.is_counted.load(Ordering::Relaxed) {
            metrics::work_ended(record.kind, Line(record.line));
        }
        if !record.kind.is_work() {
            return;
        }
        let token = record.subject.as_ref().and_then(Token::of_subject);
        let Some(token) = token else { return };
        let facts = Facts::of(&token);
        shielded(|| drop(token));
        // Work that ends with its own context is the normal case, and would hide the others.
        let Some(facts) = facts.filter(|facts| facts.how != How::Finished) else { return };
        let now = Instant::now();
        let late = now.saturating_duration_since(facts.ended_at);
        let class = CLASSES.iter().position(|bound| late <= *bound).unwrap_or(CLASSES.len());
        let name = record.name().map(Arc::from);
        let (kind, line, how) = (record.kind, Line(record.line), facts.how);
        metrics::late(how, late);
        let left = Left { kind, line, name, how, late, at: now };
        let mut class = locked(&self.late[class]);
        let at = usize::try_from(class.count).unwrap_or(0) % RING;
        class.count += 1;
        let replaced = match class.last.get_mut(at) {
            Some(place) => Some(std::mem::replace(place, left)),
            None => {
                class.last.push(left);
                None
            }
        };
        drop(class);
        drop(replaced);
    }

    fn ended(&self, error: &Error, created_at: Option<Instant>) {
        let line = Line(error.origin().made_at());
        let key = Key { how: how(error), line, cause_type: cause_type(error) };
        let ended_at = error.origin().ended_at();
        self.count(key, ended_at, created_at.map(|at| ended_at.saturating_duration_since(at)));
        metrics::ended(key.how, line);
    }

    #[cfg(feature = "tower")]
    fn finished(&self, finished: Finished) {
        let Finished { made_at, cause_type, at, lived } = finished;
        let key = Key { how: How::Finished, line: Line(made_at), cause_type: Some(cause_type) };
        self.count(key, at, lived);
        metrics::ended(How::Finished, key.line);
    }

    fn refused(&self, error: &Error) {
        let line = Line(error.origin().made_at());
        self.count(Key { how: How::Refused, line, cause_type: None }, Instant::now(), None);
        metrics::ended(How::Refused, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_counts_for_one_more_generation() {
        let begun = Instant::now();
        let mut count = Count::new(begun);
        count.add(begun, None);
        count.rotate(begun + GENERATION);
        assert_eq!((count.recent[0].count, count.recent[1].count), (0, 1));
        count.rotate(begun + 2 * GENERATION);
        assert_eq!((count.recent[0].count, count.recent[1].count), (0, 0));
        assert_eq!(count.total, 1);
    }
}
