//! Tasks of a context: one that has it as the current one, one that is stopped at the end, and one that is handed it.

use std::future::Future;
use std::panic::Location;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::context::Context;
use super::enter::Entry;
use crate::error::Error;
use crate::registry::Kind;

impl Context {
    /// Spawns a task in which this context is [`current`](Self::current): [`tokio::spawn`] in
    /// [`scope`](Self::scope).
    ///
    /// The task sees the end; it is not stopped by it. [`spawn_bounded`](Self::spawn_bounded) stops its task,
    /// and [`spawn_with`](Self::spawn_with) hands it the context.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
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
    #[track_caller]
    pub fn spawn<F>(&self, f: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&Handle::current(), Location::caller(), f)
    }

    /// [`spawn`](Self::spawn) on that runtime, in the name of another line.
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
        let f = Entry::new(self, Kind::Task, spawned_at).held_by(f);
        runtime.spawn(self.scope(f))
    }

    /// Spawns a task that runs until the context ends: [`spawn`](Self::spawn) of [`run`](Self::run).
    ///
    /// At the end the future is dropped where it awaits, as by [`run`](Self::run), and the task resolves to
    /// the context's error. If the context has ended already, the future is never polled. In it, this context is
    /// [`current`](Self::current).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`]. The task panics as [`done`](Self::done) does.
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
    #[track_caller]
    pub fn spawn_bounded<F>(&self, f: F) -> JoinHandle<Result<F::Output, Error>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn(self.run_owned(f))
    }

    /// Spawns a task and hands it this context, so that nothing has to be cloned by hand.
    ///
    /// `f` is called here, before the task is spawned; what it returns is the task. As with
    /// [`spawn`](Self::spawn) the context is [`current`](Self::current) in there, and its end does not stop the
    /// task. The task owns a plain context: it sees the end, and cannot make it.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::spawn`].
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
    ///     done // Flush, say goodbye: the end is seen, not enforced.
    /// });
    ///
    /// jobs.send(7).await.unwrap();
    /// tokio::task::yield_now().await;
    /// ctx.cancel();
    /// assert_eq!(worker.await.unwrap(), 1);
    /// # }
    /// ```
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
