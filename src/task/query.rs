//! Queries that run at a database server or on another thread, and are canceled there when their context ends.
//!
//! If the future of a query is dropped, for example by [`run`](Context::run) or by a timeout, the server continues to
//! work on the query, and the next user of the connection has to wait for it, or receives its response. Therefore the
//! query has to be *canceled*, which each driver does in its own way, and *waited for*. Until then, the connection must
//! not be used for anything else. [`Context::query`] does all of that:
//!
//! | what happens | the query | the connection |
//! |---|---|---|
//! | the context has already ended | is not started | is returned |
//! | the query returns | | is returned |
//! | the context ends | is canceled repeatedly, and waited for, for the [`grace`](Connection::grace) period | is returned when the query has returned and no cancel is in progress |
//! | the query does not return within the grace period | is dropped | is [discarded](Connection::discard) |
//! | the caller drops the future | is canceled, as if the context had ended | is dropped when the query has returned, which puts it back into its pool, or is discarded |
//! | the query panics | is canceled once | is discarded; then the panic is resumed |
//! | the runtime shuts down | is dropped | is discarded |
//!
//! For each driver, implement [`Connection`], which takes some twenty lines. `examples/recipes` contains implementations
//! for `tokio-postgres`, `sqlx` and `rusqlite`, with and without a pool, which are tested against real servers.
//!
//! # Traps
//!
//! - **The function owns what it uses**, like a task, because it continues after the caller has dropped the future.
//! - **Waiting for a connection is a separate step**, within the same deadline: `ctx.run(pool.get()).await`.
//! - **Several statements** in one function are canceled one at a time. A cancel affects the statement in progress, and
//!   its error should end the function. A statement that begins between two cancels may complete before the second one.
//! - **State that the function leaves on the connection**, such as a transaction that was begun by hand, is still there
//!   for the next user. The transaction types of drivers roll back when they are dropped.
//! - **A shutdown does not wait** for a query whose caller has dropped the future, unless the function holds a
//!   [`ticket`](crate::Shutdown::ticket). When the runtime shuts down, the connection is discarded.
//! - **No other queries may run on the connection.** Some drivers (`tokio-postgres`) allow several callers to share a
//!   connection, and would cancel the query of another caller. [`Context::query`] owns the connection. To share it, use
//!   a pool, or the owned guard of a mutex.

use std::future::Future;
use std::mem;
use std::panic::{Location, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use crate::context::refusal::Entry;
use crate::context::{CancelScope, Context};

mod commit;
mod connection;
mod handoff;
mod outcome;
mod work;

pub use commit::Commit;
pub use connection::{Connection, QueryFuture};
use handoff::Handoff;
pub use outcome::{Outcome, Stopped, StoppedKind};
use work::Work;

/// # Database queries
impl Context {
    /// Runs a query on a connection. If the context ends first, cancels the query and waits until it has ended.
    ///
    /// `f` is not called if the context has ended before the first poll. Inside of `f`, [`current`](Self::current) is a
    /// child of this context, which ends as well when the returned future is dropped. When it ends, a new task cancels
    /// the query and waits for it, even if this future is not polled. Before that, there is no task. The
    /// [module](crate::query) lists all cases.
    ///
    /// `f` should await every future that it makes, because a query whose future is dropped continues at the server. Go's
    /// `QueryContext` of `database/sql`.
    ///
    /// # Panics
    ///
    /// Panics if the query panics, after it was canceled. Panics when polled after the end of the context without a
    /// Tokio time driver, as [`tokio::time::sleep`] does; the connection is then discarded. Panics when polled again after
    /// it was ready.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tokio::sync::Notify;
    /// use tokio_ctx::query::{Connection, StoppedKind};
    /// use tokio_ctx::{BoxError, Context, Error};
    ///
    /// /// A server that computes until it is canceled.
    /// #[derive(Default)]
    /// struct Client {
    ///     cancel: Arc<Notify>,
    /// }
    ///
    /// impl Client {
    ///     async fn query(&mut self, sql: &str) -> Result<u32, &'static str> {
    ///         if sql == "SELECT 3" {
    ///             return Ok(3);
    ///         }
    ///         self.cancel.notified().await;
    ///         Err("canceling statement due to user request")
    ///     }
    /// }
    ///
    /// impl Connection for Client {
    ///     type Canceler = Arc<Notify>;
    ///
    ///     fn canceler(&self) -> Arc<Notify> {
    ///         self.cancel.clone()
    ///     }
    ///
    ///     async fn cancel(cancel: &mut Arc<Notify>) -> Result<(), BoxError> {
    ///         cancel.notify_waiters();
    ///         Ok(())
    ///     }
    ///
    ///     fn discard(self) {} // Dropped, it is closed.
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(2));
    /// let outcome = ctx.query(Client::default(), |client| Box::pin(client.query("SELECT 3"))).await;
    /// assert_eq!(outcome.result.unwrap(), Ok(3));
    ///
    /// let client = outcome.connection.unwrap();
    /// let outcome = ctx.query(client, |client| Box::pin(client.query("SELECT forever()"))).await;
    /// assert!(outcome.result.unwrap().is_err()); // The server has stopped the query.
    /// assert!(outcome.ended.unwrap().is_deadline_exceeded());
    ///
    /// let client = outcome.connection.unwrap(); // It can be used again, but no time remains.
    /// let outcome = ctx.query(client, |client| Box::pin(client.query("SELECT 3"))).await;
    /// assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::NotBegun);
    /// # }
    /// ```
    #[track_caller]
    pub fn query<C, T, F>(
        &self,
        connection: C,
        f: F,
    ) -> impl Future<Output = Outcome<C, T>> + Send + use<C, T, F>
    where
        C: Connection,
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut C) -> QueryFuture<'a, T> + Send + 'static,
    {
        self.transact(connection, |connection, _commit| f(connection))
    }

    /// Like [`query`](Self::query), for statements that end with a commit, which is not canceled after it was sent.
    ///
    /// If a commit were canceled, or its response not awaited, it would be unknown whether it took effect.
    /// [`Commit::send`] sends it only if the context has not ended, and the response is then awaited for at most the
    /// [`grace`](Connection::grace) period. If there is no response by then, [`commit_sent`](Stopped::commit_sent) is true.
    ///
    /// # Panics
    ///
    /// See [`query`](Self::query).
    ///
    /// ```
    /// use tokio_ctx::{Context, BoxError};
    /// # use tokio_ctx::query::Connection;
    /// # struct Client;
    /// # struct Transaction<'a>(&'a mut Client);
    /// # impl Client { async fn transaction(&mut self) -> Result<Transaction<'_>, BoxError> { Ok(Transaction(self)) } }
    /// # impl Transaction<'_> {
    /// #     async fn execute(&self, _: &str) -> Result<u64, BoxError> { Ok(1) }
    /// #     async fn commit(self) -> Result<(), BoxError> { Ok(()) }
    /// # }
    /// # impl Connection for Client {
    /// #     type Canceler = ();
    /// #     fn canceler(&self) {}
    /// #     async fn cancel(_: &mut ()) -> Result<(), BoxError> { Ok(()) }
    /// #     fn discard(self) {}
    /// # }
    /// # fn is_cancel(_: &BoxError) -> bool { false }
    ///
    /// async fn transfer(ctx: &Context, client: Client) -> Result<(), BoxError> {
    ///     let outcome = ctx.transact(client, |client, commit| {
    ///         Box::pin(async move {
    ///             let transaction = client.transaction().await?;
    ///             transaction.execute("UPDATE accounts SET balance = balance - 10 WHERE id = 1").await?;
    ///             transaction.execute("UPDATE accounts SET balance = balance + 10 WHERE id = 2").await?;
    ///             commit.send(transaction.commit()).await?
    ///         })
    ///     });
    ///     outcome.await.into_result(is_cancel)
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() { transfer(&Context::background(), Client).await.unwrap(); }
    /// ```
    #[track_caller]
    pub fn transact<C, T, F>(
        &self,
        connection: C,
        f: F,
    ) -> impl Future<Output = Outcome<C, T>> + Send + use<C, T, F>
    where
        C: Connection,
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut C, &'a Commit) -> QueryFuture<'a, T> + Send + 'static,
    {
        Query {
            entry: Entry::Fresh,
            place: Location::caller(),
            stage: Stage::Fresh { scope: self.with_cancel(), connection, f },
        }
    }
}

/// Future for the outcome of a query.
struct Query<C: Connection, T: Send + 'static, F> {
    entry: Entry,
    place: &'static Location<'static>,
    stage: Stage<C, T, F>,
}

enum Stage<C: Connection, T, F> {
    /// Not started. Dropping the connection returns it to its pool.
    Fresh {
        scope: CancelScope,
        connection: C,
        f: F,
    },
    Begun(Arc<Handoff<C, T>>),
    Over,
}

/// Everything that is pinned is in a box.
impl<C: Connection, T: Send + 'static, F> Unpin for Query<C, T, F> {}

impl<C, T, F> Future for Query<C, T, F>
where
    C: Connection,
    T: Send + 'static,
    F: for<'a> FnOnce(&'a mut C, &'a Commit) -> QueryFuture<'a, T> + Send + 'static,
{
    type Output = Outcome<C, T>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Outcome<C, T>> {
        let this = self.get_mut();
        if let Stage::Fresh { scope, .. } = &this.stage {
            let entered = ready!(this.entry.poll(scope, cx));
            let Stage::Fresh { scope, connection, f } = mem::replace(&mut this.stage, Stage::Over)
            else {
                unreachable!("it was fresh above");
            };
            if let Err(ended) = entered {
                return Poll::Ready(Outcome::not_begun(connection, ended));
            }
            this.stage = Stage::Begun(Handoff::new(Work::begin(scope, connection, f), this.place));
        }
        let Stage::Begun(handoff) = &this.stage else { panic!("polled again after it was ready") };
        let end = ready!(handoff.poll(cx));
        this.stage = Stage::Over;
        Poll::Ready(end.unwrap_or_else(|payload| resume_unwind(payload)))
    }
}

/// A query in progress is canceled and waited for in a task.
impl<C: Connection, T: Send + 'static, F> Drop for Query<C, T, F> {
    fn drop(&mut self) {
        if let Stage::Begun(handoff) = &self.stage {
            handoff.cancel();
        }
    }
}
