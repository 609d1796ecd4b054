//! Queries that run elsewhere, at a database's server or on a thread, and end there with their context.
//!
//! A query's future that is dropped, by [`run`](Context::run), a timeout or a server that gives the request up, leaves the
//! server at work, and the connection in a state that its next user will meet. So a query has to be *canceled*, which
//! each driver does in its own way, *waited for*, and the connection kept from others until it is known to be idle.
//! [`Context::query`] does that, on every path:
//!
//! | what happens | what becomes of the query | of the connection |
//! |---|---|---|
//! | the context has ended before | it is not begun | it is returned |
//! | the query returns | | it is returned |
//! | the context ends | it is canceled, again and again, and waited for, for the [`grace`](Connection::grace) | it is returned once the query has returned, and no cancel is under way |
//! | it does not return within the grace | its future is dropped | [discarded](Connection::discard) |
//! | the caller drops the future | the same, as if the context had ended | dropped once the query has returned, which gives it back to its pool, or discarded |
//! | the query panics | it is canceled once | discarded; then the panic goes on |
//! | the runtime shuts down | its future is dropped | discarded |
//!
//! A driver is known by an implementation of [`Connection`], some twenty lines; `examples/recipes` has those for
//! `tokio-postgres`, `sqlx` and `rusqlite`, alone and through a pool, tested against real servers.
//!
//! # Traps
//!
//! - **The function owns what it uses**, as a task does: after a drop it goes on without its caller.
//! - **Waiting for a connection is a step of its own**, which counts against the same budget:
//!   `ctx.run(pool.get()).await`.
//! - **Several statements** share one call of [`Context::query`]; after the end, the cancels hit the one under way,
//!   whose error should leave the function. One that begins between two cancels may be faster than the next one.
//! - **What the function leaves on the connection** is there for its next user: a transaction that was begun by hand, say.
//!   The transactions of drivers undo themselves when they are dropped.
//! - **A shutdown does not wait** for a query whose caller has gone, unless the function holds a
//!   [`ticket`](crate::Shutdown::ticket). The end of the runtime discards its connection.
//! - **Only this connection's queries are on it.** A driver that lets several callers share a connection, and their
//!   queries queue there (`tokio-postgres`), cancels that of another. [`Context::query`] owns the connection; share
//!   it by a pool, or by an owned guard of a mutex.

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
mod outcome;
mod turns;
mod work;

pub use commit::Commit;
pub use connection::{Connection, QueryFuture};
pub use outcome::{Outcome, Stopped, StoppedKind};
use turns::Turns;
use work::Work;

/// # Database queries
impl Context {
    /// Runs a query on a connection. When the context ends first, cancels it and waits until it has really ended.
    ///
    /// `f` is called only if the context has not ended by the first poll. In it, [`current`](Self::current) is a child
    /// of this context, which ends when the returned future is dropped too. From its end on, a task of its own polls the
    /// query, cancels it and waits for it, also while this future is held and not polled. Until then there is no
    /// task. The [module](crate::query) has the table of all that can happen.
    ///
    /// A dropped future of a driver goes on at the server; let `f` await all that it begins. Go's
    /// `QueryContext` of `database/sql`, whose drivers do the same.
    ///
    /// # Panics
    ///
    /// As the query does, once it has been canceled. When polled after the end of the context, without a Tokio runtime
    /// that has a time driver, as [`tokio::time::sleep`]; the connection is then discarded. When polled again after it
    /// was ready.
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
    /// assert!(outcome.result.unwrap().is_err()); // The server's word that it has stopped.
    /// assert!(outcome.ended.unwrap().is_deadline_exceeded());
    ///
    /// let client = outcome.connection.unwrap(); // Free for the next query; but there is no time for one.
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

    /// [`query`](Self::query) for several statements that end with a commit, which is not canceled once it is
    /// sent.
    ///
    /// A commit that is canceled, or whose answer is not waited for, has happened or not. [`Commit::send`] begins it only
    /// while the context has not ended, and has its answer waited for, for the connection's
    /// [`grace`](Connection::grace); what has no answer by then says so,
    /// [`commit_sent`](Stopped::commit_sent).
    ///
    /// # Panics
    ///
    /// As [`query`](Self::query).
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

/// A query, and what is to be done with it if it is dropped.
struct Query<C: Connection, T: Send + 'static, F> {
    entry: Entry,
    place: &'static Location<'static>,
    stage: Stage<C, T, F>,
}

enum Stage<C: Connection, T, F> {
    /// Dropped as it is, the connection is given back: nothing has used it.
    Fresh {
        scope: CancelScope,
        connection: C,
        f: F,
    },
    Begun(Arc<Turns<C, T>>),
    Over,
}

/// Nothing in it is pinned but in boxes.
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
            this.stage = Stage::Begun(Turns::new(Work::begin(scope, connection, f), this.place));
        }
        let Stage::Begun(turns) = &this.stage else { panic!("polled again after it was ready") };
        let end = ready!(turns.poll(cx));
        this.stage = Stage::Over;
        Poll::Ready(end.unwrap_or_else(|payload| resume_unwind(payload)))
    }
}

/// What is under way is finished elsewhere: the query is canceled, and waited for.
impl<C: Connection, T: Send + 'static, F> Drop for Query<C, T, F> {
    fn drop(&mut self) {
        if let Stage::Begun(turns) = &self.stage {
            turns.abandon();
        }
    }
}
