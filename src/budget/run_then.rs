//! [`Context::run_then`]: runs a cleanup with time of its own after work that was stopped.
//!
//! The cleanup runs in a task, because the caller usually ends with the same context, and is dropped just when the
//! cleanup starts. The task is then spawned by a destructor, possibly outside of the runtime, so the runtime's handle
//! is taken before the work starts.

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
    /// Runs a future until the context ends, then a cleanup if the future has not finished.
    ///
    /// This is like [`run`](Self::run), but if `f` is dropped before it has finished, `cleanup` runs in a task. It
    /// receives a context with the values of this one and a timeout of `grace`, which is also the
    /// [`current`](Self::current) context of the task. When that timeout expires, the cleanup is dropped at its
    /// `.await`. The returned future resolves when the cleanup has ended.
    ///
    /// The cleanup also runs if `f` panics, and if the returned future is dropped, which happens when the same context
    /// bounds its caller. It does not run if `f` has finished (whatever the result), if the context had ended before
    /// `f` was started, or if `grace` is zero.
    ///
    /// # When not to use it
    ///
    /// - For anything a `Drop` implementation can do: close, unlock, return to a pool.
    /// - For anything that has to happen even if the process dies; use a lease or a transaction.
    /// - For many tasks: a [`Group`](crate::Group) has a [`grace`](crate::Group::grace), and a
    ///   [`Shutdown`](crate::Shutdown) waits for the last work of a service.
    ///
    /// [`after_func`](Self::after_func) runs a function after the end whether or not the work has finished. Go's
    /// counterpart is a `defer` with `context.WithTimeout(context.WithoutCancel(ctx), grace)`; trio's is
    /// `move_on_after(grace, shield=True)` in a `finally`.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first. The cleanup handles its own errors. If its timeout
    /// expires, the feature `tracing` emits an event.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run). Panics outside of a Tokio runtime, before `f` is polled, and if the cleanup panics.
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
    ///     let cleanup = move |ctx| async move { abort_upload(&ctx, id).await };
    ///     ctx.run_then(send_parts(id), grace, cleanup).await
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
                // If there is no panic, the task has finished, or was aborted by the shutdown of its runtime.
                if let Some(panic) = lost.and_then(|lost| lost.try_into_panic().ok()) {
                    resume_unwind(panic);
                }
            }
            Err(ended)
        }
    }
}

/// Starts the cleanup when it is dropped, unless it was disarmed.
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
    /// Spawns the cleanup. Returns `None` if it was spawned before, or disarmed.
    fn start(&mut self) -> Option<JoinHandle<()>> {
        let cleanup = self.cleanup.take()?;
        let free = self.ctx.without_cancel();
        let scope = free.limited_at(self.called_at, Some(self.grace));
        let bounded = async move {
            // The cleanup sees the end of its timeout itself.
            let _ended = scope.run(scope.scope(async { cleanup(scope.clone()).await })).await;
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
