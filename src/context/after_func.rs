//! `after_func`: an async function that runs when a context has ended.

use std::fmt;
use std::future::Future;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Weak};

use tokio::task::AbortHandle;

use super::context::Context;
use super::registered::Registered;
use crate::registry::Kind;
use crate::sync::{AtomicBool, Ordering};
use crate::token::Token;

impl Context {
    /// Calls `f` on a task of its own when the context has ended. Go's `context.AfterFunc`.
    ///
    /// `f` is called once, and immediately if the context has already ended. Dropping the handle has no effect;
    /// [`AfterFunc::stop`] prevents the call. In `f`, the [`current`](Self::current) context has the same values,
    /// but never ends, as if derived by [`without_cancel`](Self::without_cancel). The task keeps this
    /// context alive until the context ends.
    ///
    /// Nothing waits for the function. If the runtime shuts down first, the function is dropped where it awaits,
    /// or is not called. To make a [`Shutdown`](crate::Shutdown) wait for it, move a
    /// [`ticket`](crate::Shutdown::ticket) into it, and drop the ticket at its end.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`]. If the context has a deadline and the runtime
    /// has no time driver, the task panics.
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
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn after_func<F, Fut>(&self, f: F) -> AfterFunc
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let registered = Registered::new(self, Kind::AfterFunc, Location::caller());
        after_func(self, move || registered.held_by(async move { f().await }))
    }
}

/// Handle of an [`after_func`](Context::after_func), which can stop it. Dropping the handle has no effect.
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
    // Set to true by the start of the function or by `stop`, whichever comes first.
    claimed: Arc<AtomicBool>,
    watcher: Option<(Weak<Token>, AbortHandle)>,
}

impl AfterFunc {
    /// Prevents the function from running, and returns whether this call did so. Go's `stop`.
    ///
    /// Returns false if the context has ended, in which case the function has run, is running, or is about to
    /// run; and if it was stopped before. Does not wait for the function.
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
        // The task keeps the context alive until it ends.
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
    // A context that never ends needs no task.
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
