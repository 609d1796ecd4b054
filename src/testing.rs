//! A context for a test: it ends with the test, and fails it if something is left.
//!
//! [`scope`] is Go's `t.Context()` and `goleak` in one. Whatever was started under the test's context must
//! be through soon after that has ended: work that cannot be stopped fails the test that left it behind, by
//! the line that spawned it.
//!
//! ```
//! use std::time::Duration;
//! use tokio::sync::mpsc;
//! use tokio_ctx::{Context, testing};
//!
//! /// Sends a tick now and then, until its context ends.
//! fn ticker(ctx: &Context) -> mpsc::Receiver<u32> {
//!     let (ticks, received) = mpsc::channel(1);
//!     let ticking = ctx.clone();
//!     ctx.spawn(async move {
//!         let mut tick = 0;
//!         while ticking.sleep(Duration::from_secs(1)).await.is_ok() {
//!             tick += 1;
//!             // Without `run` a receiver that is slow would keep it from ending.
//!             let _ = ticking.run(ticks.send(tick)).await;
//!         }
//!     });
//!     received
//! }
//!
//! // In a test: #[tokio::test(start_paused = true)]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn main() {
//!     testing::scope(async |test| {
//!         let mut ticks = ticker(test);
//!         assert_eq!(ticks.recv().await, Some(1));
//!         assert_eq!(ticks.recv().await, Some(2));
//!     })
//!     .await;
//! }
//! ```
//!
//! # Traps
//!
//! - **What counts** is what holds the context or one derived from it: a task that was given none is not
//!   seen. (`Handle::current().metrics().num_alive_tasks()` counts all of a runtime's.)
//! - **A paused clock runs ahead** whenever all tasks are idle, also if they wait for a socket or a child
//!   process: then those 5 seconds are over at once. Pause it only where nothing real is waited for.

use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use crate::context::census::{Census, Member};
use crate::context::{CancelScope, Context};
use crate::error::Place;
use crate::finished::Finished;

/// How long what was started may take to end after the context has.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a test's body with a context of its own, ends that, and waits until nothing is left of it.
///
/// The context ends when the body has returned, with the cause `the test is over`; if the body panics, when
/// it unwinds. What the body returns is given.
///
/// # Panics
///
/// If, 5 seconds after the end (of the runtime's clock, which may be a paused one), a task is left that was
/// started in this context or one derived from it, or if anybody still holds such a context; and if such a
/// task has panicked. The message names the lines that started the tasks: those of [`Context::spawn`],
/// [`Context::spawn_blocking`], [`Context::after_func`] and [`Context::with_cancel_when`], of a
/// [`Group`](crate::Group) and of [`for_each_task`](crate::StreamExt::for_each_task), of child processes, and
/// whatever a [`Shutdown`](crate::Shutdown) waits for. If the body has panicked, its panic is all there is.
///
/// Outside a Tokio runtime, or in one without a time driver.
///
/// ```should_panic
/// use tokio_ctx::testing;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// testing::scope(async |test| {
///     // It never looks at its context: a task spawned at src/main.rs:7 is still there.
///     test.spawn(std::future::pending::<()>());
/// })
/// .await;
/// # }
/// ```
#[track_caller]
pub fn scope<T>(body: impl AsyncFnOnce(&Context) -> T) -> impl Future<Output = T> {
    let begun_at = Location::caller();
    async move {
        let (scope, gone) = Scope::new();
        let output = body(&scope.ctx).await;
        let census = scope.end();
        // What is still there when time is up is told below.
        let _left = tokio::time::timeout(PATIENCE, gone.done()).await;
        if let Some(complaint) = census.complaint(gone.is_done()) {
            panic!("the test's context, made at {}:{complaint}", Place(begun_at));
        }
        output
    }
}

struct Scope {
    ctx: CancelScope,
    census: Census,
}

impl Scope {
    /// One, and a context that ends when nobody holds the scope's context, or one derived from it.
    fn new() -> (Scope, Context) {
        let (gone, held) = Context::background().with_cancel().split();
        let census = Census::new();
        let member = Member::new(census.clone(), held);
        let ctx = Context::background().with_value(member).with_cancel();
        (Scope { ctx, census }, gone)
    }

    fn end(self) -> Census {
        self.ctx.cancel_with(Finished("the test is over"));
        self.census
    }
}
