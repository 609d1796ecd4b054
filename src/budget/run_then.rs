//! [`Context::run_then`]: what was begun and not finished is cleaned up after, in time of its own.
//!
//! The clean-up is a task: what awaits this future mostly ends with the same context, and is dropped at the very
//! moment at which the clean-up begins. And it starts from a drop, if there is a runtime, which is why that is
//! looked up before the work begins.

use std::future::Future;
use std::panic::{Location, resume_unwind};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::context::refusal::checked;
use crate::context::run::Bound;
use crate::error::Error;

impl Context {
    /// Runs a future until the context ends, and if it was begun and not finished, cleans up after it, in time of the
    /// clean-up's own.
    ///
    /// As [`run`](Self::run); but when `f` is dropped half-way, `cleanup` is called with a context that has this one's
    /// values, not its end, and `grace` as its budget. It runs in a task, in which that context is
    /// [`current`](Self::current), until it is through or the grace is over; then it is dropped where it awaits. This
    /// future resolves to the context's error when the clean-up is through.
    ///
    /// The clean-up runs also if this future is dropped before it is ready, which is what happens when the same
    /// context bounds its caller, and if `f` panics. It does not run if `f` has finished, whatever its result: what
    /// failed by itself cleans up itself. Nor if the context had ended before, since then nothing was begun; nor
    /// if the grace is zero.
    ///
    /// # When not to use it
    ///
    /// For what `Drop` does as well: closing, unlocking, giving back to a pool. For what must happen although the
    /// process dies: a lease or a transaction is for that. Many tasks at once are a [`Group`](crate::Group), with
    /// its [`grace`](crate::Group::grace), and a service's last work belongs to a [`Shutdown`](crate::Shutdown), which
    /// waits for it. [`after_func`](Self::after_func) runs after each end, whatever became of the work.
    ///
    /// Go's counterpart is a `defer` with `context.WithTimeout(context.WithoutCancel(ctx), grace)`; trio's is
    /// `move_on_after(grace, shield=True)` in a `finally`.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first. What becomes of the clean-up is the clean-up's to tell;
    /// that it ran out of its grace is an event of the feature `tracing`.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run); outside a Tokio runtime, before `f` is polled; and as the clean-up, if it panics.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # static ABORTED: AtomicU32 = AtomicU32::new(0);
    /// # async fn send_parts(_id: u32) -> u64 { std::future::pending().await }
    /// # async fn abort_upload(_ctx: &Context, id: u32) { ABORTED.store(id, Ordering::Relaxed) }
    /// async fn upload(ctx: &Context, id: u32) -> Result<u64, Error> {
    ///     let grace = Duration::from_secs(5);
    ///     ctx.run_then(send_parts(id), grace, move |ctx| async move { abort_upload(&ctx, id).await }).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1));
    /// assert!(upload(&ctx, 7).await.unwrap_err().is_deadline_exceeded());
    /// # assert_eq!(ABORTED.load(Ordering::Relaxed), 7);
    /// # }
    /// ```
    #[track_caller]
    pub fn run_then<F, C, Fut>(
        &self,
        f: F,
        grace: Duration,
        cleanup: C,
    ) -> impl Future<Output = Result<F::Output, Error>> + use<'_, F, C, Fut>
    where
        F: Future,
        C: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let called_at = Location::caller();
        async move {
            checked(self).await?;
            let runtime = Handle::current();
            let mut armed = Armed { ctx: self, runtime, grace, called_at, cleanup: Some(cleanup) };
            let ended = match Bound::begun(self, f).await {
                Ok(output) => {
                    armed.cleanup = None;
                    return Ok(output);
                }
                Err(ended) => ended,
            };
            if let Some(task) = armed.start() {
                let lost = task.await.err();
                // Otherwise it is through, or aborted, as its runtime shut down.
                if let Some(panic) = lost.and_then(|lost| lost.try_into_panic().ok()) {
                    resume_unwind(panic);
                }
            }
            Err(ended)
        }
    }
}

/// Starts the clean-up, if only by being dropped.
struct Armed<'a, C: FnOnce(Context) -> Fut + Send + 'static, Fut: Future<Output = ()> + Send + 'static> {
    ctx: &'a Context,
    runtime: Handle,
    grace: Duration,
    called_at: &'static Location<'static>,
    cleanup: Option<C>,
}

impl<C, Fut> Armed<'_, C, Fut>
where
    C: FnOnce(Context) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    /// Spawns it; none if that has been done, or is not to be.
    fn start(&mut self) -> Option<JoinHandle<()>> {
        let cleanup = self.cleanup.take()?;
        let free = self.ctx.without_cancel();
        let scope = free.limited_at(self.called_at, Some(self.grace));
        let bounded = async move {
            // An end by the grace is the clean-up's to see.
            let _over = scope.run(scope.scope(async { cleanup(scope.clone()).await })).await;
        };
        Some(free.spawn_on(&self.runtime, self.called_at, bounded))
    }
}

impl<C, Fut> Drop for Armed<'_, C, Fut>
where
    C: FnOnce(Context) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn drop(&mut self) {
        let _detached = self.start();
    }
}
