//! [`Context::shield`]: work that goes on although what waits for it leaves.

use std::future::Future;
use std::panic::{Location, resume_unwind};

use tokio::runtime::Handle;

use crate::context::Context;
use crate::context::refusal::checked;
use crate::context::run::Bound;
use crate::error::Error;

impl Context {
    /// Finishes a future in a task of its own, and waits for it until the context ends.
    ///
    /// For work that is of use to others as well, or costs more to throw away than to finish: a connection that is
    /// being made for a pool, an entry of a cache, a write that must not stop half-way. If the context ends, or this
    /// is dropped, the task goes on; its output is then dropped. In it, [`current`](Self::current) has this
    /// context's values and no end. A context that has ended starts no work, and a future that is never polled
    /// starts none either.
    ///
    /// # When not to use it
    ///
    /// For work that may hang: it has no budget, and nothing is left that waits for it. Give it one inside:
    /// `Context::current().within(limit, …)`, or a deadline that a [`Shutdown`](crate::Shutdown) knows. Under
    /// overload: each waiter that gives up leaves its work behind, and a retry starts it again;
    /// [`coalesce`](Self::coalesce) is for that. For tasks that are to be counted and waited for, spawn them in a
    /// [`Group`](crate::Group) or a [`Shutdown`](crate::Shutdown).
    ///
    /// Go's counterpart is a goroutine under `context.WithoutCancel`, with a channel; Python's is `asyncio.shield`.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended before the work was through.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run); outside a Tokio runtime; as the work, if it panics; and if the runtime of the task
    /// shuts down meanwhile.
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
    /// // The waiter gives up; the connection is made all the same, for the next one.
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
                    Err(_aborted) => panic!("what was shielded was aborted, as its runtime shut down"),
                },
            }
        }
    }
}
