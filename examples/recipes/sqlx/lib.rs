//! A recipe to copy: PostgreSQL queries with sqlx and its pool that end with their context, on the server as well.
//!
//! sqlx has no cancel token. The query is canceled by `pg_cancel_backend`, over a separate connection, because the pool may
//! be full of queries that have to be canceled. That connection uses the options of the pool, including TLS.

use std::error::Error as StdError;
use std::fmt;

use sqlx::ConnectOptions as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, Postgres};
use tokio_ctx::query::{Commit, Connection, Outcome, QueryFuture, Stopped};
use tokio_ctx::{BoxError, Context};

/// A connection of the pool.
pub struct Lent {
    connection: PoolConnection<Postgres>,
    canceler: Canceler,
}

/// Cancels the query of one backend of the server.
pub struct Canceler {
    options: PgConnectOptions,
    // `None` while it is being requested.
    backend: Option<Backend>,
    connection: Option<PgConnection>,
}

/// A process of the server. It is identified by its start time as well, because process numbers are reused.
type Backend = (i32, String);

const THIS_BACKEND: &str =
    "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";

const CANCEL: &str =
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";

impl Canceler {
    fn of(options: PgConnectOptions, backend: Option<Backend>) -> Canceler {
        Canceler { options, backend, connection: None }
    }
}

impl Connection for Lent {
    type Canceler = Canceler;

    fn canceler(&self) -> Canceler {
        Canceler::of(self.canceler.options.clone(), self.canceler.backend.clone())
    }

    async fn cancel(canceler: &mut Canceler) -> Result<(), BoxError> {
        let Some((pid, started)) = &canceler.backend else { return Ok(()) };
        let mut connection = match canceler.connection.take() {
            Some(connection) => connection,
            // Nothing has been sent to a server that cannot be reached.
            None => match canceler.options.connect().await {
                Ok(connection) => connection,
                Err(_) => return Ok(()),
            },
        };
        sqlx::query(CANCEL).bind(pid).bind(started).execute(&mut connection).await?;
        canceler.connection = Some(connection);
        Ok(())
    }

    fn discard(self) {
        // Removed from the pool, which may open another one, and closed.
        drop(self.connection.detach());
    }
}

/// Returns options for the pool, with which the server ends a query within a second after its connection was closed.
pub fn options(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("client_connection_check_interval", "1s")])
}

/// Runs one or more statements until `ctx` ends. Waiting for a connection is included.
pub async fn query<R, F>(ctx: &Context, pool: &PgPool, query: F) -> Result<R, Error>
where
    R: Send + 'static,
    F: for<'a> FnOnce(&'a mut PgConnection) -> QueryFuture<'a, Result<R, Error>> + Send + 'static,
{
    let lent = lend(ctx, pool).await?;
    ctx.query(lent, |lent| query(&mut lent.connection)).await.into_result(is_cancel)
}

/// Like [`query`], with a commit: `committed(commit.send(transaction.commit()).await?)`.
pub async fn transact<R, F>(ctx: &Context, pool: &PgPool, transaction: F) -> Result<R, Error>
where
    R: Send + 'static,
    F: for<'a> FnOnce(&'a mut PgConnection, &'a Commit) -> QueryFuture<'a, Result<R, Error>>
        + Send
        + 'static,
{
    let lent = lend(ctx, pool).await?;
    ctx.transact(lent, |lent, commit| transaction(&mut lent.connection, commit))
        .await
        .into_result(is_cancel)
}

/// Gets a connection, and finds out its backend.
async fn lend(ctx: &Context, pool: &PgPool) -> Result<Lent, Error> {
    let connection = ctx.run(pool.acquire()).await??;
    let canceler = Canceler::of((*pool.connect_options()).clone(), None);
    let query = ctx.query(Lent { connection, canceler }, |lent| {
        Box::pin(sqlx::query_as(THIS_BACKEND).fetch_one(&mut *lent.connection))
    });
    let Outcome { result, connection, ended, .. } = query.await;
    let backend = Some(result??);
    match (connection, ended) {
        (Some(mut lent), None) => {
            lent.canceler.backend = backend;
            Ok(lent)
        }
        (_, ended) => Err(ended.map_or_else(|| sqlx::Error::PoolClosed.into(), Error::Context)),
    }
}

/// Interprets the response to a commit. An error that is not about the transaction leaves it unknown whether the commit
/// took effect.
pub fn committed(answer: Result<(), sqlx::Error>) -> Result<(), Error> {
    answer.map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some(code) if !leaves_outcome_unknown(code) => Error::Sqlx(error),
            _ => Error::CommitUnknown(error),
        }
    })
}

/// Returns whether the server is shutting down, the connection is lost, or the server itself does not know.
fn leaves_outcome_unknown(code: &str) -> bool {
    code.starts_with("57P") || code.starts_with("08") || code == "40003"
}

/// Returns whether this is the server's error for a canceled query.
pub fn is_cancel(error: &Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    let Error::Sqlx(error) = error else { return false };
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(QUERY_CANCELED))
}

/// The error of a query.
#[derive(Debug)]
pub enum Error {
    /// The context ended while the query waited for a connection, or before the commit.
    Context(tokio_ctx::Error),
    /// The context ended during or before the query. [`Stopped::kind`] returns how far the query had come.
    Stopped(Stopped),
    Sqlx(sqlx::Error),
    /// The connection was lost before the response to the commit, which may have taken effect.
    CommitUnknown(sqlx::Error),
}

impl Error {
    /// Returns whether it is unknown if the commit took effect.
    pub fn may_have_committed(&self) -> bool {
        match self {
            Error::Stopped(stopped) => stopped.commit_sent(),
            Error::CommitUnknown(_) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Context(_) => f.write_str("no connection, or no commit"),
            Error::Stopped(_) => f.write_str("stopped"),
            Error::Sqlx(_) => f.write_str("query failed"),
            Error::CommitUnknown(_) => {
                f.write_str("connection lost during the commit, which may have taken effect")
            }
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Context(error) => Some(error),
            Error::Stopped(stopped) => Some(stopped),
            Error::Sqlx(error) | Error::CommitUnknown(error) => Some(error),
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

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Error {
        Error::Sqlx(error)
    }
}
