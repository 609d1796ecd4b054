//! Work that starts when a context ends: Go's `context.AfterFunc`.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::Context;
use crate::token::Token;

/// Stops an [`after_func`](Context::after_func). Dropping it changes nothing.
///
/// ```
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let ctx = Context::background().with_cancel();
/// let cleanup = ctx.after_func(|| async { unreachable!("stopped in time") });
/// assert!(cleanup.stop());
/// ctx.cancel();
/// # }
/// ```
pub struct AfterFunc {
    // A token of its own, which the function's start and `stop` race to end: whoever does has won.
    latch: Arc<Token>,
    watcher: AbortHandle,
}

impl AfterFunc {
    /// Keeps the function from running. True: it will never run, and this call made it so; false: it
    /// has started, on a task of its own, or was stopped before. Go's `stop`.
    ///
    /// It does not wait for a function that has started.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let cleanup = ctx.after_func(|| async {});
    /// assert!(cleanup.stop());
    /// assert!(!cleanup.stop());
    /// # }
    /// ```
    pub fn stop(&self) -> bool {
        let stopped = self.latch.trip();
        if stopped {
            self.watcher.abort();
        }
        stopped
    }
}

#[track_caller]
pub(crate) fn after_func<F, Fut>(ctx: &Context, f: F) -> AfterFunc
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let latch = Token::new(None, None, Location::caller());
    let start = latch.clone();
    // The context is not kept while `f` runs.
    let (done, cleanup) = (ctx.done_owned(), ctx.without_cancel());
    let watcher = tokio::spawn(async move {
        done.await;
        if start.trip() {
            cleanup.scope(async move { f().await }).await;
        }
    });
    AfterFunc { latch, watcher: watcher.abort_handle() }
}

impl fmt::Debug for AfterFunc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterFunc").field("over", &self.latch.ended()).finish()
    }
}
