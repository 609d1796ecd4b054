//! `spawn` and its variants: tasks that run with a context.

use std::future::Future;
use std::panic::Location;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::context::Context;
use super::registered::Registered;
use crate::error::Error;
use crate::registry::Kind;

/// # Spawn
impl Context {
    /// Spawns a task with this context as its [`current`](Self::current) context.
    ///
    /// The task is not stopped when the context ends, but can observe it. To stop the task, use
    /// [`spawn_bounded`](Self::spawn_bounded); to pass the context to it, use [`spawn_with`](Self::spawn_with).
    /// Like [`tokio::spawn`], this returns a `JoinHandle`, and dropping the handle leaves the task running.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value(RequestId(7));
    /// let id = ctx.spawn(async { Context::current().value::<RequestId>().map(|id| id.0) });
    /// assert_eq!(id.await.unwrap(), Some(7));
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn spawn<F>(&self, f: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&Handle::current(), Location::caller(), f)
    }

    /// Like [`spawn`](Self::spawn), on the given runtime, and with `spawned_at` as the line that spawned the task.
    pub(crate) fn spawn_on<F>(
        &self,
        runtime: &Handle,
        spawned_at: &'static Location<'static>,
        f: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let f = Registered::new(self, Kind::Task, spawned_at).held_by(f);
        runtime.spawn(self.scope(f))
    }

    /// Spawns a task that runs until the context ends.
    ///
    /// When the context ends, the future is dropped where it awaits, as in [`run`](Self::run), and the task
    /// returns the context's error. If the context has already ended, the future is never polled. This context
    /// is the task's [`current`](Self::current) context.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`]. The task panics under the conditions of
    /// [`done`](Self::done).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn refresh_cache() {}
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let refresher = ctx.spawn_bounded(async {
    ///     loop {
    ///         refresh_cache().await;
    ///         tokio::time::sleep(Duration::from_secs(60)).await;
    ///     }
    /// });
    ///
    /// ctx.cancel_with("shutting down");
    /// assert!(refresher.await.unwrap().unwrap_err().is_canceled());
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn spawn_bounded<F>(&self, f: F) -> JoinHandle<Result<F::Output, Error>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn(self.run_owned(f))
    }

    /// Spawns a task and passes this context to it.
    ///
    /// `f` is called immediately with a clone of this context, and the future that it returns is spawned. As
    /// with [`spawn`](Self::spawn), the context is also the task's [`current`](Self::current) context, and its
    /// end does not stop the task.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::spawn`].
    ///
    /// ```
    /// use tokio::sync::mpsc;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let (jobs, mut queue) = mpsc::channel::<u32>(8);
    /// let worker = ctx.spawn_with(|ctx| async move {
    ///     let mut done = 0;
    ///     while let Ok(Some(_job)) = ctx.run(queue.recv()).await {
    ///         done += 1;
    ///     }
    ///     done // The task is not stopped, so it can clean up here.
    /// });
    ///
    /// jobs.send(7).await.unwrap();
    /// tokio::task::yield_now().await;
    /// ctx.cancel();
    /// assert_eq!(worker.await.unwrap(), 1);
    /// # }
    /// ```
    ///
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    #[track_caller]
    pub fn spawn_with<F, Fut>(&self, f: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future + Send + 'static,
        Fut::Output: Send + 'static,
    {
        self.spawn(f(self.clone()))
    }
}
