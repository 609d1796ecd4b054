//! Snapshots of the watch of this process, which all tests of a suite share.

use std::thread;
use std::time::{Duration, Instant};

use tokio_ctx::watch::{self, Entry, Snapshot};

pub fn snapshot() -> Snapshot {
    watch::install().snapshot()
}

pub fn entry<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Entry> {
    snapshot.entries.iter().find(|entry| entry.name.as_deref() == Some(name))
}

/// Waits, because the snapshot of another test may hold the context for a short time.
#[track_caller]
pub fn is_gone(name: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while entry(&snapshot(), name).is_some() {
        assert!(Instant::now() < until, "{name} is still registered");
        thread::yield_now();
    }
}
