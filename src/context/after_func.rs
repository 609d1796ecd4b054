//! Work that starts when a context ends: Go's `context.AfterFunc`.

use std::fmt;
use std::future::Future;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};

use tokio::task::AbortHandle;

use super::context::Context;
use super::enter::Entry;
use crate::registry::Kind;
use crate::token::Token;
use crate::token::sync::{AtomicBool, Ordering};

impl Context {
    /// Runs `f`, once, on a task of its own, when the context has ended; at once if it has already.
    /// Go's `context.AfterFunc`.
    ///
    /// [`AfterFunc::stop`] keeps it from running; dropping the handle changes nothing. In `f`,
    /// [`current`](Self::current) is this context [`without_cancel`](Self::without_cancel): its values
    /// are there, its end is not. Until the end, the task that watches for it keeps the context.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`]. A context with a deadline needs a time driver,
    /// without which the task panics.
    ///
    /// ```
    /// use tokio::sync::oneshot;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let (interrupt, interrupted) = oneshot::channel();
    /// ctx.after_func(|| async move { interrupt.send("stop the query").unwrap() });
    ///
    /// ctx.cancel();
    /// assert_eq!(interrupted.await.unwrap(), "stop the query");
    /// # }
    /// ```
    #[track_caller]
    pub fn after_func<F, Fut>(&self, f: F) -> AfterFunc
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let entry = Entry::new(self, Kind::AfterFunc, Location::caller());
        after_func(self, move || entry.held_by(async move { f().await }))
    }
}

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
    // Swapped to true once, by the function's start or by `stop`: the one that finds it false has won.
    claimed: Arc<AtomicBool>,
    watcher: Option<(Weak<Token>, AbortHandle)>,
}

impl AfterFunc {
    /// Keeps the function from running. True: it will never run, and this call made it so. False: the context
    /// has ended, so that the function has run, runs, or is about to; or it was stopped before. Go's `stop`.
    ///
    /// It does not wait for the function.
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
        let Some((ctx, watcher)) = &self.watcher else {
            return !self.claimed.swap(true, Ordering::AcqRel);
        };
        // The task keeps the context until the end.
        let ended = ctx.upgrade().is_none_or(|ctx| ctx.is_done());
        let stopped = !ended && !self.claimed.swap(true, Ordering::AcqRel);
        if stopped {
            watcher.abort();
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
    let claimed = Arc::new(AtomicBool::new(false));
    // For a context that can never end no task waits.
    let Some(token) = ctx.token().map(Arc::downgrade) else {
        return AfterFunc { claimed, watcher: None };
    };
    let (done, start) = (ctx.done_owned(), claimed.clone());
    let cleanup = ctx.without_cancel();
    let task = tokio::spawn(async move {
        done.await;
        if !start.swap(true, Ordering::AcqRel) {
            cleanup.scope(async move { f().await }).await;
        }
    });
    AfterFunc { claimed, watcher: Some((token, task.abort_handle())) }
}

impl fmt::Debug for AfterFunc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterFunc").field("over", &self.claimed.load(Ordering::Acquire)).finish()
    }
}

impl UnwindSafe for AfterFunc {}
impl RefUnwindSafe for AfterFunc {}
