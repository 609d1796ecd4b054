//! The table of the process, and the observer of its records.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock, PoisonError, RwLock};
#[cfg(feature = "tower")]
use std::time::Duration;

use tokio::time::Instant;

use super::record::Record;
use super::table::Table;
use crate::error::Error;

static INSTALLED: AtomicBool = AtomicBool::new(false);
static HUB: OnceLock<Hub> = OnceLock::new();

pub(crate) struct Hub {
    pub(crate) table: Table,
    pub(crate) observer: &'static dyn Observer,
}

/// The interface that a module above implements. It is called while no lock is held, and must not panic.
pub(crate) trait Observer: Sync {
    /// A record has been registered.
    fn registered(&self, record: &Record);
    /// The work of a record has ended.
    fn work_ended(&self, record: &Record);
    /// A context has ended by itself. `created_at` is `None` if that is not known.
    fn ended(&self, error: &Error, created_at: Option<Instant>);
    /// The work of a context has been completed, and nothing holds the context. It is not ended.
    #[cfg(feature = "tower")]
    fn finished(&self, finished: Finished);
    /// An operation was refused, because its context had ended.
    fn refused(&self, error: &Error);
}

/// A context whose work has been completed.
#[cfg(feature = "tower")]
pub(crate) struct Finished {
    pub(crate) made_at: &'static Location<'static>,
    /// The type of the cause that it would have ended with.
    pub(crate) cause_type: &'static str,
    pub(crate) at: Instant,
    pub(crate) lived: Option<Duration>,
}

#[inline]
pub(super) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

pub(crate) fn get() -> Option<&'static Hub> {
    HUB.get()
}

/// Installs the hub, unless one is installed.
pub(crate) fn install(make: impl FnOnce() -> Hub) -> &'static Hub {
    let hub = HUB.get_or_init(make);
    INSTALLED.store(true, Ordering::Release);
    hub
}

/// The types of the causes that lines pass, by the addresses of the lines. Its size is bounded by the number of lines
/// in the program.
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

/// Returns the type of the causes that this line passes; in a generic function, the last one.
pub(crate) fn cause_name(line: &'static Location<'static>) -> Option<&'static str> {
    CAUSES.read().unwrap_or_else(PoisonError::into_inner).get(&address(line)).copied()
}

pub(crate) fn ended(error: &Error, created_at: Option<Instant>) {
    if let Some(hub) = get() {
        hub.observer.ended(error, created_at);
    }
}

#[cfg(feature = "tower")]
pub(crate) fn finished(finished: Finished) {
    if let Some(hub) = get() {
        hub.observer.finished(finished);
    }
}

#[cold]
pub(crate) fn refused(error: &Error) {
    if let Some(hub) = get() {
        hub.observer.refused(error);
    }
}
