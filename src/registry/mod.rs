//! The registered work: one record for each piece of work, and for certain contexts.
//!
//! This module is at the bottom, since the engine and all methods that spawn register here. The modules that read it,
//! `watch` and `testing`, are above. There is one table for the process, once a watch is installed, and one for the
//! context of each test.
//!
//! The obvious table is one list under one lock, which each spawn in each thread takes. All spawns would contend for
//! that lock. Here a table has shards, and each thread uses one of them. The lock of a shard is held to insert or remove
//! one record, and by a reader to copy about a thousand handles. While it is held, no other lock is taken, and no
//! foreign code runs. A reader is therefore weakly consistent: each record that is in the table from the start of the
//! read until its end is visited once.

#[cfg(feature = "watch")]
mod hub;
mod kind;
#[cfg(any(feature = "test-util", feature = "watch"))]
mod list;
mod name;
#[cfg(any(feature = "test-util", feature = "watch"))]
mod record;
#[cfg(any(feature = "test-util", feature = "watch"))]
mod registration;
#[cfg(any(feature = "test-util", feature = "watch"))]
mod table;

use std::panic::Location;

#[cfg(all(feature = "tower", feature = "watch"))]
pub(crate) use hub::{Finished, finished};
#[cfg(feature = "watch")]
pub(crate) use hub::{Hub, Observer, cause_name, ended, install, refused};
pub use kind::Kind;
#[cfg(feature = "watch")]
pub(crate) use kind::named;
#[cfg(feature = "tower")]
pub(crate) use name::Label;
#[cfg(feature = "watch")]
pub(crate) use name::brief;
pub(crate) use name::{Brief, Name, Probe};
#[cfg(any(feature = "test-util", feature = "watch"))]
pub(crate) use record::Draft;
#[cfg(feature = "watch")]
pub(crate) use record::{ActivePoll, Record, Subject};
#[cfg(any(feature = "test-util", feature = "watch"))]
pub(crate) use registration::Registration;
#[cfg(all(feature = "tower", feature = "watch"))]
pub(crate) use registration::finish;
#[cfg(any(feature = "test-util", feature = "watch"))]
pub(crate) use table::Table;
#[cfg(feature = "watch")]
pub(crate) use table::thread_number;

use crate::error::BoxError;

/// Returns whether a watch is installed: one relaxed load. Contexts that are made or end before another thread sees the
/// installation are not registered.
#[inline]
pub(crate) fn is_installed() -> bool {
    #[cfg(feature = "watch")]
    return hub::is_installed();
    #[cfg(not(feature = "watch"))]
    false
}

/// Boxes a cause that was passed by this line. While a watch is installed, also records its type, which a box does not
/// show.
#[inline]
pub(crate) fn boxed<C: Into<BoxError>>(line: &'static Location<'static>, cause: C) -> BoxError {
    let _ = line;
    #[cfg(feature = "watch")]
    if is_installed() {
        hub::name_cause(line, std::any::type_name::<C>());
    }
    cause.into()
}
