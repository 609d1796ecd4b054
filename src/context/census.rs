//! The tasks that were spawned with a test's context. Each method that spawns a task enters it here, and
//! [`testing`](crate::testing) reads which tasks are left.

use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use slab::Slab;

use super::context::Context;
use super::guard::CancelGuard;
use crate::error::Place;

/// The value that marks a test's context, and all contexts derived from it.
pub(crate) struct Member {
    census: Census,
    _held: CancelGuard,
}

impl Member {
    pub(crate) fn new(census: Census, held: CancelGuard) -> Member {
        Member { census, _held: held }
    }
}

/// The tasks of a test: those that are running, and those that have panicked.
#[derive(Clone, Default)]
pub(crate) struct Census(Arc<Mutex<Tasks>>);

#[derive(Default)]
struct Tasks {
    alive: Slab<&'static Location<'static>>,
    panicked: Vec<&'static Location<'static>>,
}

impl Census {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a message with a line for each task that is left or has panicked.
    pub(crate) fn complaint(&self, nothing_is_held: bool) -> Option<String> {
        let tasks = self.tasks();
        let mut text = String::new();
        for place in &tasks.panicked {
            let _ = write!(text, "\n  a task spawned at {} panicked", Place(place));
        }
        for (_, place) in &tasks.alive {
            let _ = write!(text, "\n  a task spawned at {} is still there", Place(place));
        }
        if !nothing_is_held && tasks.alive.is_empty() {
            text.push_str("\n  it, or one derived from it, is still held, by no task it has spawned");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The entry of a task in the census for as long as it runs; nothing, if the context is not a test's.
pub(crate) struct Entry {
    _entered: Option<Entered>,
}

struct Entered {
    census: Census,
    key: usize,
    // Dropped last. Makes the test wait for the task even if the task holds no context.
    _test: Context,
}

impl Entry {
    /// Enters a task that is spawned with this context, if that is a test's.
    pub(crate) fn new(ctx: &Context, spawned_at: &'static Location<'static>) -> Entry {
        let enter = |member: &Member| {
            let census = member.census.clone();
            let key = census.tasks().alive.insert(spawned_at);
            Entered { census, key, _test: ctx.without_cancel() }
        };
        Entry { _entered: ctx.value().map(enter) }
    }

    /// Runs the task, and holds its entry until it has ended or is dropped.
    pub(crate) async fn held_by<F: Future>(self, task: F) -> F::Output {
        let _entry = self;
        task.await
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut tasks = self.census.tasks();
        let spawned_at = tasks.alive.remove(self.key);
        if thread::panicking() {
            tasks.panicked.push(spawned_at);
        }
    }
}
