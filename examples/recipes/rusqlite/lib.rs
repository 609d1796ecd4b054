//! A recipe, to be copied: queries of SQLite, embedded, that end with their context.
//!
//! SQLite runs on a thread that no future can stop. There the query's context is the current one, and SQLite asks it:
//! in its progress handler, every so many steps, and in its busy handler, while it waits for another's lock. The
//! interrupt besides is for what takes long within one step.

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

/// How many steps SQLite takes between two looks at the context: some ten microseconds.
const STEPS: i32 = 1_000;

/// A database in a file, and one connection that callers take turns with; opened when it is needed.
pub struct Database {
    path: PathBuf,
    connection: Arc<Mutex<Option<rusqlite::Connection>>>,
}

/// The turn of one caller. While a query runs, the connection is on the thread where that is.
pub struct Lent(OwnedMutexGuard<Option<rusqlite::Connection>>);

impl Connection for Lent {
    type Canceler = InterruptHandle;

    fn canceler(&self) -> InterruptHandle {
        self.0.as_ref().expect("it is there between two queries").get_interrupt_handle()
    }

    async fn cancel(interrupt: &mut InterruptHandle) -> Result<(), BoxError> {
        // It acts at once, and with no query under way does nothing.
        interrupt.interrupt();
        Ok(())
    }

    fn discard(mut self) {
        // As a rule the thread has it, and closes it there; the next caller opens another one.
        drop(self.0.take());
    }
}

impl Database {
    pub fn new(path: impl Into<PathBuf>) -> Database {
        Database { path: path.into(), connection: Arc::default() }
    }

    /// Runs `query` on a thread for blocking work, until `ctx` ends; the wait for the connection counts, and so does
    /// that for a lock.
    ///
    /// A transaction that is not committed by then is rolled back by its drop.
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
                    // Before its turn came, the runtime shut down, with which this goes as well.
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

/// Opens a connection whose queries ask the current context.
pub fn open(path: PathBuf) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(path)?;
    connection.progress_handler(STEPS, Some(|| Context::current().is_done()));
    connection.busy_handler(Some(|tries| {
        let pause = Duration::from_millis(1 << tries.clamp(0, 5));
        Context::current().sleep_blocking(pause).is_ok()
    }))?;
    Ok(connection)
}

/// Runs a query, unless the context has ended while it waited for the thread. With a query that panics, the connection
/// is closed.
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

/// Whether SQLite has stopped, or has given up the wait for a lock, as it does when the context has ended.
pub fn is_cancel(error: &Error) -> bool {
    let Error::Sqlite(error) = error else { return false };
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::OperationInterrupted | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// What a query fails with.
#[derive(Debug)]
pub enum Error {
    /// The context ended while the connection, or a thread, was waited for.
    Context(tokio_ctx::Error),
    /// It ended during the query, or at once; [`Stopped::kind`] says what came of that.
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
