//! [`Context::shield`]: work that continues when its caller leaves.

use std::future::Future;
use std::panic::{Location, resume_unwind};

use tokio::runtime::Handle;

use crate::context::Context;
use crate::context::refusal::checked;
use crate::context::run::Bound;
use crate::error::Error;

impl Context {
    /// Runs a future to completion in a task, and waits for its output until the context ends.
    ///
    /// If the context ends, or the returned future is dropped, the task continues, and its output is dropped. Use it
    /// for work whose result is useful to other callers too, or that must not stop halfway: a new connection for a
    /// pool, an entry of a cache. The task's [`current`](Self::current) context has the values of this one, and never
    /// ends. The task is spawned on the first poll, unless the context has ended.
    ///
    /// # When not to use it
    ///
    /// - For work that may hang, because nothing limits it. Set a limit inside the task, with
    ///   `Context::current().within(limit, …)`.
    /// - Under overload: each caller that gives up leaves its work running, and a retry starts it again. Use
    ///   [`coalesce`](Self::coalesce).
    /// - For tasks that have to be waited for. Spawn them in a [`Group`](crate::Group) or a
    ///   [`Shutdown`](crate::Shutdown).
    ///
    /// Go's counterpart is a goroutine with `context.WithoutCancel` and a channel; Python's is `asyncio.shield`.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends before the work has finished.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run). Panics outside of a Tokio runtime, if the work panics, and if the runtime of the task
    /// shuts down while something waits for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # use tokio::sync::mpsc;
    /// # struct Connection;
    /// # async fn connect() -> Connection {
    /// #     tokio::time::sleep(Duration::from_millis(300)).await;
    /// #     Connection
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (give_back, mut idle) = mpsc::channel(8);
    /// let request = Context::background().with_timeout(Duration::from_millis(100));
    ///
    /// // The request times out. The connection is still established, for the next request.
    /// let waited = request.shield(async move {
    ///     let connection = connect().await;
    ///     give_back.send(connection).await.is_ok()
    /// });
    /// assert!(waited.await.unwrap_err().is_deadline_exceeded());
    /// assert!(idle.recv().await.is_some());
    /// # }
    /// ```
    #[track_caller]
    pub fn shield<F>(&self, f: F) -> impl Future<Output = Result<F::Output, Error>> + use<'_, F>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let spawned_at = Location::caller();
        async move {
            checked(self).await?;
            let task = self.without_cancel().spawn_on(&Handle::current(), spawned_at, f);
            match Bound::begun(self, task).await? {
                Ok(output) => Ok(output),
                Err(lost) => match lost.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_aborted) => panic!("shielded work was aborted by the shutdown of its runtime"),
                },
            }
        }
    }
}
