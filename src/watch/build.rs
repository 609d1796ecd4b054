//! The installation of a watch, and its handle.

use std::error::Error as StdError;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::OnceLock;

use super::collect::Collector;
use super::metrics;
use super::snapshot::Snapshot;
use super::stats::Stats;
use crate::registry::{self, Hub, Table};

/// The number of shards, which is higher than the number of threads that usually spawn at the same time.
const SHARDS: usize = 32;
const MAX_ENTRIES: usize = 100_000;

/// Installs a watch with the settings of [`Watch::builder`], or returns the one that is installed.
///
/// From then on, contexts and tasks are registered, and the times of ends are recorded, until the process exits. Contexts
/// that were derived and tasks that were spawned before are not tracked, so call this at the start of `main`.
///
/// ```
/// let watch = tokio_ctx::watch::install();
/// println!("{}", watch.snapshot());
/// ```
pub fn install() -> Watch {
    Builder::new().installed()
}

/// The settings of a watch. Created by [`Watch::builder`].
#[derive(Clone, Debug)]
#[must_use = "a watch has no effect until it is installed"]
pub struct Builder {
    max_entries: usize,
    show_causes: bool,
}

impl Builder {
    fn new() -> Builder {
        Builder { max_entries: MAX_ENTRIES, show_causes: false }
    }

    /// Sets the maximum number of registered entries, and of contexts in a snapshot: 100,000 by default. Those above it
    /// are left out, and counted in [`Totals::unregistered`] and [`Totals::unseen`].
    ///
    /// [`Totals::unregistered`]: super::Totals::unregistered
    /// [`Totals::unseen`]: super::Totals::unseen
    pub fn max_entries(mut self, most: usize) -> Self {
        self.max_entries = most;
        self
    }

    /// Sets whether the texts of causes are shown: false by default, because they may contain user data. The kind of an
    /// end, its line and the type of its cause are always shown. Values are never shown.
    pub fn show_causes(mut self, show: bool) -> Self {
        self.show_causes = show;
        self
    }

    /// Installs the watch, until the process exits.
    ///
    /// # Errors
    ///
    /// Returns an error, and changes nothing, if a watch is already installed. [`install`] returns that watch.
    ///
    /// ```
    /// use tokio_ctx::watch::Watch;
    ///
    /// let watch = Watch::builder().max_entries(10_000).show_causes(true).install()?;
    /// assert!(Watch::builder().install().is_err());
    /// # Ok::<(), tokio_ctx::watch::AlreadyInstalled>(())
    /// ```
    pub fn install(self) -> Result<Watch, AlreadyInstalled> {
        let mut is_new = false;
        let watch = self.installed_if_first(&mut is_new);
        if is_new { Ok(watch) } else { Err(AlreadyInstalled(())) }
    }

    fn installed(self) -> Watch {
        self.installed_if_first(&mut false)
    }

    fn installed_if_first(self, is_new: &mut bool) -> Watch {
        static STATS: OnceLock<Stats> = OnceLock::new();
        let Builder { max_entries, show_causes } = self;
        let stats = STATS.get_or_init(|| {
            *is_new = true;
            Stats::new(max_entries, show_causes)
        });
        let table = || Table::new(SHARDS, stats.max_entries, false);
        let watch = Watch { hub: registry::install(|| Hub { table: table(), observer: stats }), stats };
        if *is_new {
            // The recorder may ask for the watch.
            metrics::describe();
        }
        watch
    }
}

/// The error of [`Builder::install`] if a watch is already installed.
#[derive(Clone, Copy, Debug)]
pub struct AlreadyInstalled(());

impl fmt::Display for AlreadyInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watch is already installed: `watch::install()` returns it")
    }
}

impl StdError for AlreadyInstalled {}

/// A handle to the watch of this process. All handles are equivalent.
///
/// Dropping a handle has no effect.
#[derive(Clone, Copy)]
pub struct Watch {
    pub(super) hub: &'static Hub,
    pub(super) stats: &'static Stats,
}

impl Watch {
    /// Returns the default settings, to change them.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Takes a snapshot of everything that is running.
    ///
    /// This polls no future, stops nothing, and holds one lock at a time, for about a thousand steps. It runs in the calling
    /// thread, and takes about a second for a million contexts. In a task of a program with that many contexts, call it
    /// in [`spawn_blocking`](tokio::task::spawn_blocking).
    pub fn snapshot(&self) -> Snapshot {
        Collector::snapshot(self.hub, self.stats)
    }
}

impl UnwindSafe for Watch {}
impl RefUnwindSafe for Watch {}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("registered", &self.hub.table.len()).finish_non_exhaustive()
    }
}
