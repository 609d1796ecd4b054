//! The table of a test's context. Each method that starts work enters it there, and [`testing`](crate::testing)
//! reads what is left.

use std::fmt::Write as _;
use std::panic::Location;
use std::sync::Arc;

use super::context::Context;
use super::guard::CancelGuard;
use crate::error::Place;
use crate::registry::{Draft, Kind, Name, Registration, Table};

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

/// The work of a test: what is running, and what has panicked.
#[derive(Clone)]
pub(crate) struct Census(Arc<Table>);

impl Census {
    pub(crate) fn new() -> Census {
        Census(Arc::new(Table::new(1, usize::MAX, true)))
    }

    /// Returns a message with a line for each task that is left or has panicked.
    pub(crate) fn complaint(&self, nothing_is_held: bool) -> Option<String> {
        let mut left = Vec::new();
        self.0.for_each(|record| left.push((record.id, record.line)));
        left.sort_by_key(|(id, _)| *id);
        let mut text = String::new();
        for place in self.0.panicked() {
            let _ = write!(text, "\n  a task spawned at {} panicked", Place(place));
        }
        for (_, place) in &left {
            let _ = write!(text, "\n  a task spawned at {} is still there", Place(place));
        }
        if !nothing_is_held && left.is_empty() {
            text.push_str("\n  it, or one derived from it, is still held, by no task it has spawned");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// An entry in the table of a test, which is removed when this is dropped.
pub(crate) struct InTest {
    _entered: Option<Registration>,
    // Dropped last. Makes the test wait for the task even if the task holds no context.
    _test: Context,
}

impl InTest {
    /// Enters work that is started with this context, if that is a test's.
    pub(crate) fn new(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Option<InTest> {
        let member = ctx.value::<Member>()?;
        let label: Option<Name> = None;
        let draft = Draft { kind, line, started: None, label, subject: None, probe: None };
        Some(InTest {
            _entered: Registration::of_test(&member.census.0, draft),
            _test: ctx.without_cancel(),
        })
    }
}
