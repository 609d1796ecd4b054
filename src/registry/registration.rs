//! A record's place in a table.

use std::sync::Arc;

#[cfg(feature = "watch")]
use super::hub::{self, Hub};
use super::name::Label;
#[cfg(all(feature = "tower", feature = "watch"))]
use super::record::Subject;
use super::record::{Draft, Record};
#[cfg(feature = "test-util")]
use super::table::Table;

/// Keeps a record in a table until it is dropped.
pub(crate) struct Registration {
    home: Home,
    record: Arc<Record>,
}

enum Home {
    #[cfg(feature = "watch")]
    Process(&'static Hub),
    #[cfg(feature = "test-util")]
    Test(Arc<Table>),
}

impl Registration {
    /// Registers with the watch of the process, if one is installed; otherwise `draft` is not called.
    #[cfg(feature = "watch")]
    #[inline]
    pub(crate) fn new<N: Label + 'static>(draft: impl FnOnce() -> Draft<N>) -> Option<Registration> {
        if hub::is_installed() { Registration::installed(draft()) } else { None }
    }

    #[cfg(feature = "watch")]
    #[cold]
    fn installed<N: Label + 'static>(draft: Draft<N>) -> Option<Registration> {
        let hub = hub::get()?;
        let record = hub.table.insert(draft)?;
        hub.observer.registered(&record);
        Some(Registration { home: Home::Process(hub), record })
    }

    /// Registers with the table of a test.
    #[cfg(feature = "test-util")]
    pub(crate) fn of_test<N: Label + 'static>(
        table: &Arc<Table>,
        draft: Draft<N>,
    ) -> Option<Registration> {
        let record = table.insert(draft)?;
        Some(Registration { home: Home::Test(table.clone()), record })
    }

    #[cfg(feature = "watch")]
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    #[cfg(all(feature = "tower", feature = "watch"))]
    pub(crate) fn subject(&self) -> Option<&Subject> {
        self.record.subject.as_ref()
    }

    /// Records that the work has ended, although its context may still be held.
    #[cfg(feature = "watch")]
    pub(crate) fn finish(&self) {
        finish(&self.record);
    }
}

/// Records that the work of a record has ended.
#[cfg(feature = "watch")]
pub(crate) fn finish(record: &Record) {
    if record.finish() {
        if let Some(hub) = hub::get() {
            hub.observer.work_ended(record);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        match &self.home {
            #[cfg(feature = "watch")]
            Home::Process(hub) => {
                hub.table.remove(&self.record);
                self.finish();
            }
            #[cfg(feature = "test-util")]
            Home::Test(table) => table.remove(&self.record),
        }
    }
}
