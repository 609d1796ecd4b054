//! A context for a test, which ends with the test and fails it if a task is left running.
//!
//! [`scope`] combines Go's `t.Context()` and `goleak`. Tasks that were started with the test's context have to
//! end soon after the context. Otherwise the test fails, and the message names the lines that spawned them.
//!
//! ```
//! use std::time::Duration;
//! use tokio::sync::mpsc;
//! use tokio_ctx::{Context, testing};
//!
//! /// Sends a tick every second, until the context ends.
//! fn ticker(ctx: &Context) -> mpsc::Receiver<u32> {
//!     let (ticks, received) = mpsc::channel(1);
//!     let ticking = ctx.clone();
//!     ctx.spawn(async move {
//!         let mut tick = 0;
//!         while ticking.sleep(Duration::from_secs(1)).await.is_ok() {
//!             tick += 1;
//!             // Without `run`, a slow receiver would keep this task from ending.
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
//! - **Only tasks that hold the context**, or one derived from it, are detected.
//!   (`Handle::current().metrics().num_alive_tasks()` counts all tasks of a runtime.)
//! - **A paused clock advances** whenever all tasks are idle, even if they wait for a socket or a child
//!   process. The 5 seconds are then over immediately. Do not pause the clock in a test that waits for real
//!   events.

use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use crate::context::test_work::{TestMember, TestWork};
use crate::context::{CancelScope, Context};
use crate::error::Place;
use crate::finished::Finished;

/// The time that tasks have to end after the context.
const TIME_TO_END: Duration = Duration::from_secs(5);

/// Runs the body of a test with a context, ends the context, and checks that no task is left.
///
/// The context ends when the body returns, with the cause `the test is over`, or when the body panics. Returns
/// what the body returns.
///
/// # Panics
///
/// Panics if a task that was started with this context, or one derived from it, is still running 5 seconds after the
/// end, by the clock of the runtime; if such a context is still held; and if such a task has panicked. The message
/// names the lines of the calls that started the tasks: [`Context::spawn`] and its variants,
/// [`Context::spawn_blocking`], [`Context::after_func`], [`Context::with_cancel_when`], a [`Group`](crate::Group),
/// [`for_each_task`](crate::StreamExt::for_each_task), child processes, and the work of a
/// [`Shutdown`](crate::Shutdown). If the body panics, only that panic is reported.
///
/// Panics if there is no Tokio runtime with a time driver.
///
/// ```should_panic
/// use tokio_ctx::testing;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// testing::scope(async |test| {
///     // Ignores its context: a task spawned at src/main.rs:5 is still running.
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
        let work = scope.end();
        // The tasks that are left after the timeout are reported below.
        let _left = tokio::time::timeout(TIME_TO_END, gone.done()).await;
        if let Some(failures) = work.failures(gone.is_done()) {
            panic!("the test's context, made at {}:{failures}", Place(begun_at));
        }
        output
    }
}

struct Scope {
    ctx: CancelScope,
    work: TestWork,
}

impl Scope {
    /// Returns a scope, and a context that ends when the scope's context and all contexts derived from it have
    /// been dropped.
    fn new() -> (Scope, Context) {
        let (gone, held) = Context::background().with_cancel().split();
        let work = TestWork::new();
        let member = TestMember::new(work.clone(), held);
        let ctx = Context::background().with_value(member).with_cancel();
        (Scope { ctx, work }, gone)
    }

    fn end(self) -> TestWork {
        self.ctx.cancel_with(Finished("the test is over"));
        self.work
    }
}
