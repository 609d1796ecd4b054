//! A recipe to copy: PostgreSQL queries with tokio-postgres that end with their context, on the server as well.
//!
//! [`Link`] is a connection that can be canceled. [`Lent`] gives one caller at a time access to it. The recipe `pool` has
//! several connections.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio_ctx::query::{Commit, Connection, QueryFuture, Stopped};
use tokio_ctx::{BoxError, Context};
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{CancelToken, Client, Config};

/// The TLS of connections, such as `MakeRustlsConnect` or `NoTls`.
pub trait Tls
where
    Self: MakeTlsConnect<
            TcpStream,
            Stream: Send + 'static,
            TlsConnect: TlsConnect<TcpStream, Future: Send> + Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
}

impl<T> Tls for T where
    T: MakeTlsConnect<
            TcpStream,
            Stream: Send + 'static,
            TlsConnect: TlsConnect<TcpStream, Future: Send> + Send,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// A connection to one server, which is closed when dropped.
pub struct Link<T> {
    client: Client,
    connection: JoinHandle<()>,
    canceler: Canceler<T>,
}

/// Cancels the query of a connection, over a separate connection to the same server, with the same TLS.
#[derive(Clone)]
pub struct Canceler<T> {
    token: CancelToken,
    server: SocketAddr,
    host: String,
    tls: T,
}

impl<T: Tls> Link<T> {
    /// Connects to the only host of `config`, over TCP.
    pub async fn connect(config: &Config, mut tls: T) -> Result<Link<T>, BoxError> {
        let ([Host::Tcp(host)], [port]) = (config.get_hosts(), config.get_ports()) else {
            return Err("one TCP host and one port".into());
        };
        // The server ends a query within a second after its connection was closed.
        let options = config.get_options().unwrap_or_default();
        let mut config = config.clone();
        config.options(format!("{options} -c client_connection_check_interval=1s"));
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let server = stream.peer_addr()?;
        let connector = tls.make_tls_connect(host).map_err(Into::into)?;
        let (client, connection) = config.connect_raw(stream, connector).await?;
        let canceler = Canceler { token: client.cancel_token(), server, host: host.clone(), tls };
        // The queries return the errors of the connection.
        let connection = tokio::spawn(async { drop(connection.await) });
        Ok(Link { client, connection, canceler })
    }
}

impl<T> Link<T> {
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl<T: Clone> Link<T> {
    pub fn canceler(&self) -> Canceler<T> {
        self.canceler.clone()
    }
}

impl<T> Drop for Link<T> {
    fn drop(&mut self) {
        // This closes the socket. A dropped client would wait for the response to its query.
        self.connection.abort();
    }
}

impl<T: Tls> Canceler<T> {
    /// Like `cancel_query` of the token, but waits until the server has acted on it.
    pub async fn cancel(&mut self) -> Result<(), BoxError> {
        // Nothing has been sent to a server that cannot be reached. The query returns that error.
        let Ok(stream) = TcpStream::connect(self.server).await else { return Ok(()) };
        let stream = stream.into_std()?;
        let mut until_closed = TcpStream::from_std(stream.try_clone()?)?;
        let connector = self.tls.make_tls_connect(&self.host).map_err(Into::into)?;
        self.token.cancel_query_raw(TcpStream::from_std(stream)?, connector).await?;
        // The server signals the backend, and then closes this connection.
        loop {
            match until_closed.read(&mut [0; 512]).await {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                read => read?,
            };
        }
    }
}

/// One connection, which is opened when it is needed. Callers use it one after the other.
pub struct Database<T> {
    config: Config,
    tls: T,
    link: Arc<Mutex<Option<Link<T>>>>,
}

/// Exclusive access to the connection: no query of another caller is on it meanwhile.
pub struct Lent<T>(OwnedMutexGuard<Option<Link<T>>>);

impl<T> Deref for Lent<T> {
    type Target = Link<T>;

    fn deref(&self) -> &Link<T> {
        self.0.as_ref().expect("it is there until it is discarded")
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut Link<T> {
        self.0.as_mut().expect("it is there until it is discarded")
    }
}

impl<T: Tls> Connection for Lent<T> {
    type Canceler = Canceler<T>;

    fn canceler(&self) -> Canceler<T> {
        Link::canceler(self)
    }

    async fn cancel(canceler: &mut Canceler<T>) -> Result<(), BoxError> {
        canceler.cancel().await
    }

    fn discard(mut self) {
        *self.0 = None;
    }
}

impl<T: Tls> Database<T> {
    pub fn new(config: Config, tls: T) -> Database<T> {
        Database { config, tls, link: Arc::default() }
    }

    /// Runs one or more statements until `ctx` ends. Waiting for the connection is included.
    pub async fn query<R, F>(&self, ctx: &Context, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Client) -> QueryFuture<'a, Result<R, Error>> + Send + 'static,
    {
        let lent = ctx.try_run(self.lend()).await?;
        ctx.query(lent, |lent| query(lent.client())).await.into_result(is_cancel)
    }

    /// Like [`query`](Self::query), with a commit: `committed(commit.send(transaction.commit()).await?)`.
    pub async fn transact<R, F>(&self, ctx: &Context, transaction: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Client, &'a Commit) -> QueryFuture<'a, Result<R, Error>>
            + Send
            + 'static,
    {
        let lent = ctx.try_run(self.lend()).await?;
        ctx.transact(lent, |lent, commit| transaction(lent.client(), commit))
            .await
            .into_result(is_cancel)
    }

    /// Waits for access to the connection.
    async fn lend(&self) -> Result<Lent<T>, Error> {
        let mut link = self.link.clone().lock_owned().await;
        if link.as_ref().is_none_or(Link::is_closed) {
            *link = Some(Link::connect(&self.config, self.tls.clone()).await.map_err(Error::Connect)?);
        }
        Ok(Lent(link))
    }
}

/// Interprets the response to a commit. An error that is not about the transaction leaves it unknown whether the commit
/// took effect.
pub fn committed(answer: Result<(), tokio_postgres::Error>) -> Result<(), Error> {
    answer.map_err(|error| match error.code().map(SqlState::code) {
        Some(code) if !leaves_outcome_unknown(code) => Error::Postgres(error),
        _ => Error::CommitUnknown(error),
    })
}

/// Returns whether the server is shutting down, the connection is lost, or the server itself does not know.
fn leaves_outcome_unknown(code: &str) -> bool {
    code.starts_with("57P") || code.starts_with("08") || code == "40003"
}

/// Returns whether this is the server's error for a canceled query.
pub fn is_cancel(error: &Error) -> bool {
    matches!(error, Error::Postgres(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
}

/// The error of a query.
#[derive(Debug)]
pub enum Error {
    /// The context ended while the query waited for a connection, or before the commit.
    Context(tokio_ctx::Error),
    /// The context ended during or before the query. [`Stopped::kind`] returns how far the query had come.
    Stopped(Stopped),
    Connect(BoxError),
    Postgres(tokio_postgres::Error),
    /// The connection was lost before the response to the commit, which may have taken effect.
    CommitUnknown(tokio_postgres::Error),
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
            Error::Connect(_) => f.write_str("cannot connect"),
            Error::Postgres(_) => f.write_str("query failed"),
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
            Error::Connect(error) => Some(&**error),
            Error::Postgres(error) | Error::CommitUnknown(error) => Some(error),
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

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        Error::Postgres(error)
    }
}
