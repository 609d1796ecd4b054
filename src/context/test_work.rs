//! The work that is started with the context of a test. Each method that starts work registers it here, and
//! [`testing`](crate::testing) reports the work that is left.

use std::fmt::Write as _;
use std::panic::Location;
use std::sync::Arc;

use super::context::Context;
use super::guard::CancelGuard;
use crate::error::Place;
use crate::registry::{Draft, Kind, Name, Registration, Table};

/// The value that marks a test's context, and all contexts derived from it.
pub(crate) struct TestMember {
    work: TestWork,
    _held: CancelGuard,
}

impl TestMember {
    pub(crate) fn new(work: TestWork, held: CancelGuard) -> TestMember {
        TestMember { work, _held: held }
    }
}

/// The work of a test: what is running, and what has panicked.
#[derive(Clone)]
pub(crate) struct TestWork(Arc<Table>);

impl TestWork {
    pub(crate) fn new() -> TestWork {
        TestWork(Arc::new(Table::new(1, usize::MAX, true)))
    }

    /// Returns a message with a line for each task that is left or has panicked.
    pub(crate) fn failures(&self, nothing_is_held: bool) -> Option<String> {
        let mut left = Vec::new();
        self.0.for_each(|record| left.push((record.id, record.line)));
        left.sort_by_key(|(id, _)| *id);
        let mut text = String::new();
        for place in self.0.panicked() {
            let _ = write!(text, "\n  a task spawned at {} panicked", Place(place));
        }
        for (_, place) in &left {
            let _ = write!(text, "\n  a task spawned at {} is still running", Place(place));
        }
        if !nothing_is_held && left.is_empty() {
            text.push_str("\n  the context, or one derived from it, is still held, but not by a task that it spawned");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The registration of a piece of work with a test, until it is dropped.
pub(crate) struct InTest {
    _registration: Option<Registration>,
    // Dropped last. Makes the test wait for the task even if the task holds no context.
    _test: Context,
}

impl InTest {
    /// Registers work that is started with this context, if it belongs to a test.
    pub(crate) fn new(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Option<InTest> {
        let member = ctx.value::<TestMember>()?;
        let label: Option<Name> = None;
        let draft = Draft { kind, line, started: None, label, subject: None, probe: None };
        Some(InTest {
            _registration: Registration::of_test(&member.work.0, draft),
            _test: ctx.without_cancel(),
        })
    }
}
