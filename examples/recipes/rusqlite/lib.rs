//! A recipe to copy: SQLite queries that end with their context.
//!
//! SQLite runs on a thread, which a future cannot stop. On that thread the query's context is the current one, and SQLite
//! checks it: in the progress handler, after a number of steps, and in the busy handler, while it waits for a lock. In
//! addition, SQLite is interrupted, for long computations within one step.

use std::error::Error as StdError;
use std::fmt;
use std::future::pending;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{ErrorCode, InterruptHandle};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinError;
use tokio_ctx::query::{Connection, Stopped};
use tokio_ctx::{BoxError, Context};

/// The number of steps between two checks of the context, which take some ten microseconds.
const STEPS: i32 = 1_000;

/// A database in a file, with one connection, which is opened when it is needed. Callers use it one after the other.
pub struct Database {
    path: PathBuf,
    connection: Arc<Mutex<Option<rusqlite::Connection>>>,
}

/// Exclusive access to the connection. While a query runs, the connection is on the thread of the query.
pub struct Lent(OwnedMutexGuard<Option<rusqlite::Connection>>);

impl Connection for Lent {
    type Canceler = InterruptHandle;

    fn canceler(&self) -> InterruptHandle {
        self.0.as_ref().expect("it is there between two queries").get_interrupt_handle()
    }

    async fn cancel(interrupt: &mut InterruptHandle) -> Result<(), BoxError> {
        // It takes effect at once, and does nothing if no query is running.
        interrupt.interrupt();
        Ok(())
    }

    fn discard(mut self) {
        // Usually the thread has the connection, and closes it. The next caller opens another one.
        drop(self.0.take());
    }
}

impl Database {
    pub fn new(path: impl Into<PathBuf>) -> Database {
        Database { path: path.into(), connection: Arc::default() }
    }

    /// Runs `query` on a thread for blocking work, until `ctx` ends. Waiting for the connection and for a lock is
    /// included.
    ///
    /// A transaction that has not been committed by then is rolled back when it is dropped.
    pub async fn query<R, F>(&self, ctx: &Context, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&mut rusqlite::Connection) -> Result<R, Error> + Send + 'static,
    {
        let lent = ctx.try_run(self.lend()).await?;
        let outcome = ctx.query(lent, |lent| {
            Box::pin(async move {
                let connection = lent.0.take().expect("it is there between two queries");
                let on_thread = Context::current().spawn_blocking(|| on_thread(connection, query));
                match on_thread.await.map_err(JoinError::try_into_panic) {
                    Ok((connection, result)) => {
                        lent.0.replace(connection);
                        result
                    }
                    Err(Ok(payload)) => resume_unwind(payload),
                    // The runtime shut down before the function started, and drops this task as well.
                    Err(Err(_)) => pending().await,
                }
            })
        });
        outcome.await.into_result(is_cancel)
    }

    async fn lend(&self) -> Result<Lent, Error> {
        let mut connection = self.connection.clone().lock_owned().await;
        if connection.is_none() {
            let path = self.path.clone();
            let opened = tokio::task::spawn_blocking(|| open(path)).await.expect("it does not panic")?;
            *connection = Some(opened);
        }
        Ok(Lent(connection))
    }
}

/// Opens a connection whose queries check the current context.
pub fn open(path: PathBuf) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(path)?;
    connection.progress_handler(STEPS, Some(|| Context::current().is_done()));
    connection.busy_handler(Some(|tries| {
        let pause = Duration::from_millis(1 << tries.clamp(0, 5));
        Context::current().sleep_blocking(pause).is_ok()
    }))?;
    Ok(connection)
}

/// Runs a query unless the context ended while it waited for the thread. If the query panics, the connection is closed.
fn on_thread<R>(
    mut connection: rusqlite::Connection,
    query: impl FnOnce(&mut rusqlite::Connection) -> Result<R, Error>,
) -> (rusqlite::Connection, Result<R, Error>) {
    if let Err(ended) = Context::current().check() {
        return (connection, Err(ended.into()));
    }
    let result = query(&mut connection);
    (connection, result)
}

/// Returns whether SQLite was interrupted, or stopped waiting for a lock, which it does when the context has ended.
pub fn is_cancel(error: &Error) -> bool {
    let Error::Sqlite(error) = error else { return false };
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::OperationInterrupted | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// The error of a query.
#[derive(Debug)]
pub enum Error {
    /// The context ended while the query waited for the connection or for a thread.
    Context(tokio_ctx::Error),
    /// The context ended during or before the query. [`Stopped::kind`] returns how far the query had come.
    Stopped(Stopped),
    Sqlite(rusqlite::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Context(_) => f.write_str("no connection"),
            Error::Stopped(_) => f.write_str("stopped"),
            Error::Sqlite(_) => f.write_str("query failed"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Context(error) => Some(error),
            Error::Stopped(stopped) => Some(stopped),
            Error::Sqlite(error) => Some(error),
        }
    }
}

impl From<tokio_ctx::Error> for Error {
    fn from(error: tokio_ctx::Error) -> Error {
        Error::Context(error)
    }
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Error {
        Error::Stopped(stopped)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Sqlite(error)
    }
}
