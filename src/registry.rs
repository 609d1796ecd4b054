//! What is registered to be watched: one record for each piece of work, and for each context that is a landmark.
//!
//! It lies on the ground floor, since the engine and all that spawns register here; the rooms that read it, `watch` and
//! `testing`, lie above. There is one table for the process, once a watch is installed, and one for each test's context.
//!
//! The obvious table is one list under one lock, which every spawn of every thread then takes: such a one had to be
//! switched off in production elsewhere. Here a table has shards, and a thread keeps to its own. A shard's lock is held
//! to enter or take out one record, and by a reader to copy a thousand handles; nothing else is locked while it is held,
//! and nothing foreign runs. What is read is therefore weakly consistent: no record that is there from before the reading
//! to after it is missed, or met twice.

use std::any::Any;
use std::fmt;
use std::panic::Location;

use crate::error::BoxError;

/// Whether a watch is installed: one relaxed load. What is born or ends before another thread sees it is not registered.
#[inline]
pub(crate) fn is_installed() -> bool {
    #[cfg(feature = "watch")]
    return hub::INSTALLED.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(feature = "watch"))]
    false
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "watch", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
#[non_exhaustive]
pub enum Kind {
    /// `root`: a context derived from the background.
    Root,
    /// `context`: a context that is waited on below a registered one, or above one.
    Context,
    /// `named`: a context that was given a name.
    Named,
    /// `request`: a request of [`ServerLayer`](../wire/struct.ServerLayer.html), or, once it is over, its context.
    Request,
    /// `group`: a [`Group`](crate::Group).
    Group,
    /// `shutdown`: a [`Shutdown`](crate::Shutdown): its hard context.
    Shutdown,
    /// `task`: a task of a spawn of this crate.
    Task,
    /// `tracked`: a future of [`Shutdown::track`](crate::Shutdown::track).
    Tracked,
    /// `ticket`: a ticket of [`Shutdown::ticket`](crate::Shutdown::ticket).
    Ticket,
    /// `blocking`: a function of [`Context::spawn_blocking`](crate::Context::spawn_blocking).
    Blocking,
    /// `after_func`: a function of [`Context::after_func`](crate::Context::after_func), waiting or running.
    AfterFunc,
    /// `process`: a child process.
    Process,
}

impl Kind {
    #[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
    /// Its name in JSON and in the text.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::Context => "context",
            Kind::Named => "named",
            Kind::Request => "request",
            Kind::Group => "group",
            Kind::Shutdown => "shutdown",
            Kind::Task => "task",
            Kind::Tracked => "tracked",
            Kind::Ticket => "ticket",
            Kind::Blocking => "blocking",
            Kind::AfterFunc => "after_func",
            Kind::Process => "process",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name, which costs nothing until it is written. It is never foreign code.
pub(crate) type Name = Box<dyn fmt::Display + Send + Sync>;

/// What an upper room knows of a record, for a room above that.
pub(crate) type Probe = Box<dyn Any + Send + Sync>;

/// What is shown of a name: so many characters of it.
#[cfg(feature = "watch")]
pub(crate) fn brief(name: &dyn fmt::Display) -> String {
    use fmt::Write as _;

    const LONGEST: usize = 120;
    let mut brief = Brief::new(LONGEST);
    let _cut = write!(brief, "{name}");
    brief.text()
}

/// Takes so many characters, none of them a control character, and then no more.
#[cfg(feature = "watch")]
pub(crate) struct Brief {
    text: String,
    room: usize,
    is_cut: bool,
}

#[cfg(feature = "watch")]
impl Brief {
    pub(crate) fn new(room: usize) -> Brief {
        Brief { text: String::new(), room, is_cut: false }
    }

    pub(crate) fn text(mut self) -> String {
        if self.is_cut {
            self.text.push('…');
        }
        self.text
    }
}

#[cfg(feature = "watch")]
impl fmt::Write for Brief {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if self.room == 0 {
                self.is_cut = true;
                // What prints need not go on.
                return Err(fmt::Error);
            }
            self.room -= 1;
            self.text.push(if is_plain(char) { char } else { ' ' });
        }
        Ok(())
    }
}

/// Neither a control character, nor one that changes the direction or the lines of what stands around it.
#[cfg(feature = "watch")]
fn is_plain(char: char) -> bool {
    !(char.is_control()
        || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
}

/// Boxes a cause that this line gives, and notes its type while a watch is installed: a box does not show it.
#[inline]
pub(crate) fn boxed<C: Into<BoxError>>(line: &'static Location<'static>, cause: C) -> BoxError {
    let _ = line;
    #[cfg(feature = "watch")]
    if is_installed() {
        hub::name_cause(line, std::any::type_name::<C>());
    }
    cause.into()
}

#[cfg(any(feature = "test-util", feature = "watch"))]
mod table {
    use std::any::Any;
    use std::cell::Cell;
    use std::panic::Location;
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
    use std::thread;
    #[cfg(feature = "watch")]
    use std::time::Duration;

    use slab::Slab;
    use tokio::time::Instant;

    use super::{Kind, Name, Probe};

    impl Kind {
        /// Whether there is work to be waited for.
        pub(crate) fn is_work(self) -> bool {
            !matches!(self, Kind::Root | Kind::Context | Kind::Named | Kind::Group | Kind::Shutdown)
        }

        /// Whether its record stands for its context itself, rather than for something that runs in it.
        #[cfg(feature = "watch")]
        pub(crate) fn is_context(self) -> bool {
            self == Kind::Request || self == Kind::Process || !self.is_work()
        }
    }

    /// A context, of which nothing is known here but that it may have gone.
    pub(crate) type Subject = Weak<dyn Any + Send + Sync>;

    /// One piece of work, or one context.
    #[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "a test asks for the line alone"))]
    pub(crate) struct Record {
        pub(crate) id: u64,
        pub(crate) kind: Kind,
        pub(crate) line: &'static Location<'static>,
        pub(crate) born: Instant,
        pub(crate) name: Option<Name>,
        pub(crate) subject: Option<Subject>,
        pub(crate) probe: Option<Probe>,
        /// The work is over, and the context is merely held.
        over: AtomicBool,
        /// When its last poll began, in nanoseconds since the epoch, doubled; 1 more while inside. 0: never.
        polled: AtomicU64,
        /// How often its overstay has been reported.
        pub(crate) reports: AtomicU32,
    }

    /// What a record is to say.
    pub(crate) struct Draft {
        pub(crate) kind: Kind,
        pub(crate) line: &'static Location<'static>,
        pub(crate) name: Option<Name>,
        pub(crate) subject: Option<Subject>,
        pub(crate) probe: Option<Probe>,
    }

    #[cfg(feature = "watch")]
    fn since_epoch() -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;

        // The system's clock, also where a test moves another.
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        // Not zero, which is never.
        let since = EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64;
        (since << 1).max(2)
    }

    #[cfg(feature = "watch")]
    impl Record {
        /// Says that it is being polled, until this is dropped.
        pub(crate) fn enter(&self) -> Inside<'_> {
            let begun = since_epoch();
            self.polled.store(begun | 1, Ordering::Relaxed);
            Inside(self, begun)
        }

        /// How long ago its last poll began, and whether it is inside.
        pub(crate) fn last_poll(&self) -> Option<(Duration, bool)> {
            let polled = self.polled.load(Ordering::Relaxed);
            let ago = since_epoch().saturating_sub(polled) >> 1;
            (polled != 0).then(|| (Duration::from_nanos(ago), polled & 1 != 0))
        }

        /// Notes that the work is over, and only its context is still held; false if it was.
        pub(crate) fn finish(&self) -> bool {
            !self.over.swap(true, Ordering::Relaxed)
        }

        pub(crate) fn is_over(&self) -> bool {
            self.over.load(Ordering::Relaxed)
        }
    }

    /// A poll that is under way.
    #[cfg(feature = "watch")]
    pub(crate) struct Inside<'a>(&'a Record, u64);

    #[cfg(feature = "watch")]
    impl Drop for Inside<'_> {
        fn drop(&mut self) {
            // When it returns is not worth another reading of the clock.
            self.0.polled.store(self.1, Ordering::Relaxed);
        }
    }

    /// So many records a reader copies for each hold of a lock.
    const BATCH: usize = 1024;

    pub(crate) struct Table {
        shards: Box<[Shard]>,
        most: usize,
        left_out: AtomicU64,
        /// The lines of those that went in a panic, where that is asked for.
        panicked: Option<Mutex<Vec<&'static Location<'static>>>>,
    }

    #[repr(align(128))]
    #[derive(Default)]
    struct Shard {
        len: AtomicUsize,
        list: Mutex<List>,
    }

    #[derive(Default)]
    struct List {
        next: u64,
        records: Slab<Arc<Record>>,
    }

    fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number of this thread's own.
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
        /// A table of at most so many records.
        pub(crate) fn new(shards: usize, most: usize, notes_panics: bool) -> Table {
            let shards = (0..shards.max(1)).map(|_| Shard::default()).collect();
            let panicked = notes_panics.then(Mutex::default);
            Table { shards, most, left_out: AtomicU64::new(0), panicked }
        }

        /// Enters a record, and returns its place; none if the table is full.
        fn enter(&self, draft: Draft) -> Option<(usize, usize, Arc<Record>)> {
            let at = thread_number() % self.shards.len();
            let shard = &self.shards[at];
            // A shard that has no more than its share needs not look at the others.
            let is_full = shard.len.load(Ordering::Relaxed) >= self.most / self.shards.len()
                && self.len() >= self.most;
            if is_full {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            let Draft { kind, line, name, subject, probe } = draft;
            let born = Instant::now();
            let mut list = locked(&shard.list);
            let id = list.next * self.shards.len() as u64 + at as u64 + 1;
            list.next += 1;
            let record = Arc::new(Record {
                id,
                kind,
                line,
                born,
                name,
                subject,
                probe,
                over: AtomicBool::new(false),
                polled: AtomicU64::new(0),
                reports: AtomicU32::new(0),
            });
            let key = list.records.insert(record.clone());
            shard.len.store(list.records.len(), Ordering::Relaxed);
            Some((at, key, record))
        }

        fn leave(&self, at: usize, key: usize) {
            let shard = &self.shards[at];
            let mut list = locked(&shard.list);
            let record = list.records.remove(key);
            shard.len.store(list.records.len(), Ordering::Relaxed);
            // The room that a crowd needed goes with it.
            if list.records.is_empty() && list.records.capacity() > BATCH {
                list.records = Slab::new();
            }
            drop(list);
            if let Some(panicked) = self.panicked.as_ref().filter(|_| thread::panicking()) {
                locked(panicked).push(record.line);
            }
        }

        pub(crate) fn len(&self) -> usize {
            self.shards.iter().map(|shard| shard.len.load(Ordering::Relaxed)).sum()
        }

        /// How many were refused, as it was full.
        #[cfg(feature = "watch")]
        pub(crate) fn left_out(&self) -> u64 {
            self.left_out.load(Ordering::Relaxed)
        }

        /// Gives `f` each record, outside of the locks.
        pub(crate) fn for_each(&self, mut f: impl FnMut(Arc<Record>)) {
            let mut batch = Vec::new();
            for shard in &self.shards {
                let mut from = 0;
                loop {
                    let list = locked(&shard.list);
                    let end = list.records.capacity().min(from + BATCH);
                    batch.extend((from..end).filter_map(|key| list.records.get(key).cloned()));
                    let is_last = end >= list.records.capacity();
                    drop(list);
                    batch.drain(..).for_each(&mut f);
                    from = end;
                    if is_last {
                        break;
                    }
                }
            }
        }

        /// The lines of those that went in a panic.
        #[cfg(feature = "test-util")]
        pub(crate) fn panicked(&self) -> Vec<&'static Location<'static>> {
            self.panicked.as_ref().map(|panicked| locked(panicked).clone()).unwrap_or_default()
        }
    }

    /// A record's place in a table, until this is dropped.
    pub(crate) struct Registration {
        home: Home,
        at: usize,
        key: usize,
        #[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
        record: Arc<Record>,
    }

    enum Home {
        #[cfg(feature = "watch")]
        Process(&'static super::hub::Hub),
        #[cfg(feature = "test-util")]
        Test(Arc<Table>),
    }

    impl Registration {
        /// Registers with the process's watch, if one is installed; otherwise `draft` is not called.
        #[cfg(feature = "watch")]
        #[inline]
        pub(crate) fn new(draft: impl FnOnce() -> Draft) -> Option<Registration> {
            if super::is_installed() { Registration::installed(draft()) } else { None }
        }

        #[cfg(feature = "watch")]
        #[cold]
        fn installed(draft: Draft) -> Option<Registration> {
            let hub = super::hub::get()?;
            let (at, key, record) = hub.table.enter(draft)?;
            hub.observer.entered(&record);
            Some(Registration { home: Home::Process(hub), at, key, record })
        }

        /// Registers with a test's table.
        #[cfg(feature = "test-util")]
        pub(crate) fn of_test(table: &Arc<Table>, draft: Draft) -> Option<Registration> {
            let (at, key, record) = table.enter(draft)?;
            Some(Registration { home: Home::Test(table.clone()), at, key, record })
        }

        #[cfg(feature = "watch")]
        pub(crate) fn record(&self) -> &Arc<Record> {
            &self.record
        }

        /// Says that the work is over, although its context may still be held.
        #[cfg(feature = "watch")]
        pub(crate) fn finish(&self) {
            finish(&self.record);
        }
    }

    /// Says that a record's work is over.
    #[cfg(feature = "watch")]
    pub(crate) fn finish(record: &Arc<Record>) {
        if record.finish() {
            if let Some(hub) = super::hub::get() {
                hub.observer.left(record);
            }
        }
    }

    impl Drop for Registration {
        fn drop(&mut self) {
            match &self.home {
                #[cfg(feature = "watch")]
                Home::Process(hub) => {
                    hub.table.leave(self.at, self.key);
                    self.finish();
                }
                #[cfg(feature = "test-util")]
                Home::Test(table) => table.leave(self.at, self.key),
            }
        }
    }
}

#[cfg(any(feature = "test-util", feature = "watch"))]
pub(crate) use table::*;

/// The table of the process, and the observer of what enters and leaves it.
#[cfg(feature = "watch")]
mod hub {
    use std::collections::HashMap;
    use std::panic::Location;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{LazyLock, OnceLock, PoisonError, RwLock};

    use tokio::time::Instant;

    use super::{Record, Table};
    use crate::error::Error;

    pub(super) static INSTALLED: AtomicBool = AtomicBool::new(false);
    static HUB: OnceLock<Hub> = OnceLock::new();

    pub(crate) struct Hub {
        pub(crate) table: Table,
        pub(crate) observer: &'static dyn Observer,
    }

    /// What the room above is called with, outside of all locks. It must not panic.
    pub(crate) trait Observer: Sync {
        /// A record has been entered.
        fn entered(&self, record: &Record);
        /// A record has gone, or its work is over.
        fn left(&self, record: &Record);
        /// A context has ended by itself; `born`: if that is known.
        fn ended(&self, error: &Error, born: Option<Instant>);
        /// An operation was not begun.
        fn refused(&self, error: &Error);
    }

    pub(crate) fn get() -> Option<&'static Hub> {
        HUB.get()
    }

    /// Installs it, unless one is installed.
    pub(crate) fn install(make: impl FnOnce() -> Hub) -> &'static Hub {
        let hub = HUB.get_or_init(make);
        INSTALLED.store(true, Ordering::Release);
        hub
    }

    /// The types of the causes that lines give, by the addresses of the lines: there are as many as the program's text has.
    static CAUSES: LazyLock<RwLock<HashMap<usize, &'static str>>> = LazyLock::new(RwLock::default);

    fn address(line: &'static Location<'static>) -> usize {
        std::ptr::from_ref(line).addr()
    }

    #[cold]
    pub(super) fn name_cause(line: &'static Location<'static>, name: &'static str) {
        if cause_name(line) != Some(name) {
            CAUSES.write().unwrap_or_else(PoisonError::into_inner).insert(address(line), name);
        }
    }

    /// The type of the causes that this line gives; of a generic function, that of the last one.
    pub(crate) fn cause_name(line: &'static Location<'static>) -> Option<&'static str> {
        CAUSES.read().unwrap_or_else(PoisonError::into_inner).get(&address(line)).copied()
    }

    pub(crate) fn ended(error: &Error, born: Option<Instant>) {
        if let Some(hub) = get() {
            hub.observer.ended(error, born);
        }
    }

    #[cold]
    pub(crate) fn refused(error: &Error) {
        if let Some(hub) = get() {
            hub.observer.refused(error);
        }
    }
}

#[cfg(feature = "watch")]
pub(crate) use hub::{Hub, Observer, cause_name, ended, install, refused};
