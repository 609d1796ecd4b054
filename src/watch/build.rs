//! Installing a watch, and the handle on it.

use std::error::Error as StdError;
use std::fmt;
use std::sync::OnceLock;

use super::metrics;
use super::picture::Picture;
use super::snapshot::Snapshot;
use super::stats::Stats;
use crate::registry::{self, Hub, Table};

/// As many shards as threads are likely to spawn at once.
const SHARDS: usize = 32;
const MAX_ENTRIES: usize = 100_000;

/// Installs a watch with the settings of [`Watch::builder`], or returns the one that is installed.
///
/// From then on contexts and tasks are registered and ends are dated, for the rest of the process. What was derived or
/// spawned before is not tracked, so call it first thing in `main`.
///
/// ```
/// let watch = tokio_ctx::watch::install();
/// println!("{}", watch.snapshot());
/// ```
pub fn install() -> Watch {
    Builder::new().installed()
}

/// How a watch is to be installed. Made by [`Watch::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is watched until `install`"]
pub struct Builder {
    max_entries: usize,
    show_causes: bool,
}

impl Builder {
    fn new() -> Builder {
        Builder { max_entries: MAX_ENTRIES, show_causes: false }
    }

    /// How many pieces of work and roots are registered at most, and how many contexts a picture looks at: 100,000
    /// by default. What is over that is left out, and counted: [`Totals::unregistered`] and
    /// [`Totals::unseen`].
    ///
    /// [`Totals::unregistered`]: super::Totals::unregistered
    /// [`Totals::unseen`]: super::Totals::unseen
    pub fn max_entries(mut self, most: usize) -> Self {
        self.max_entries = most;
        self
    }

    /// Whether the texts of causes are shown. They may hold what users sent, so they are not unless this allows it; the
    /// kind of an end, its line and the type of its cause are shown in any case. Values are never shown.
    pub fn show_causes(mut self, show: bool) -> Self {
        self.show_causes = show;
        self
    }

    /// Installs the watch, for the rest of the process.
    ///
    /// # Errors
    ///
    /// If one is installed already: then nothing has changed. [`install`] returns that one.
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
        let watch = self.installed_noting(&mut is_new);
        if is_new { Ok(watch) } else { Err(AlreadyInstalled(())) }
    }

    fn installed(self) -> Watch {
        self.installed_noting(&mut false)
    }

    fn installed_noting(self, is_new: &mut bool) -> Watch {
        static STATS: OnceLock<Stats> = OnceLock::new();
        let Builder { max_entries, show_causes } = self;
        let stats = STATS.get_or_init(|| {
            *is_new = true;
            metrics::describe();
            Stats::new(max_entries, show_causes)
        });
        let table = || Table::new(SHARDS, stats.max_entries, false);
        Watch { hub: registry::install(|| Hub { table: table(), observer: stats }), stats }
    }
}

/// A watch is installed already.
#[derive(Clone, Copy, Debug)]
pub struct AlreadyInstalled(());

impl fmt::Display for AlreadyInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watch is installed already: `watch::install()` returns it")
    }
}

impl StdError for AlreadyInstalled {}

/// The watch of this process: a handle, whose clones are the same.
///
/// Dropping it changes nothing.
#[derive(Clone, Copy)]
pub struct Watch {
    pub(super) hub: &'static Hub,
    pub(super) stats: &'static Stats,
}

impl Watch {
    /// A watch with settings of its own.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Takes a picture of what is running.
    ///
    /// It polls no future, stops nothing, and holds one lock at a time for at most a thousand steps. It takes about a
    /// second for a million contexts, in the thread that calls it; from a task, use
    /// [`spawn_blocking`](tokio::task::spawn_blocking) where there may be so many.
    pub fn snapshot(&self) -> Snapshot {
        Picture::take(self.hub, self.stats)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("registered", &self.hub.table.len()).finish_non_exhaustive()
    }
}
