//! A recipe to copy: a pool of connections with deadpool, to which a connection returns only if it is idle.
//!
//! A connection that is dropped returns to the pool. If its query may still run, it is removed from the pool and closed
//! instead, so that the pool can open a new one.

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use recipe_tokio_postgres::{Canceler, Error, Link, Tls, is_cancel};
use tokio_ctx::query::{Commit, Connection, QueryFuture};
use tokio_ctx::{BoxError, Context};
use tokio_postgres::{Client, Config};

/// Opens connections for deadpool, and checks whether a returned connection is still open.
pub struct Manager<T> {
    config: Config,
    tls: T,
}

impl<T: Tls> managed::Manager for Manager<T> {
    type Type = Link<T>;
    type Error = BoxError;

    async fn create(&self) -> Result<Link<T>, BoxError> {
        Link::connect(&self.config, self.tls.clone()).await
    }

    async fn recycle(&self, link: &mut Link<T>, _: &Metrics) -> RecycleResult<BoxError> {
        if link.is_closed() { Err(RecycleError::message("closed")) } else { Ok(()) }
    }
}

/// A connection of the pool.
pub struct Lent<T: Tls>(Object<Manager<T>>);

impl<T: Tls> Connection for Lent<T> {
    type Canceler = Canceler<T>;

    fn canceler(&self) -> Canceler<T> {
        Link::canceler(&self.0)
    }

    async fn cancel(canceler: &mut Canceler<T>) -> Result<(), BoxError> {
        canceler.cancel().await
    }

    fn discard(self) {
        // Dropping the `Object` would return it to the pool.
        drop(Object::take(self.0));
    }
}

/// Runs queries on the connections of a pool.
pub struct Pool<T: Tls>(managed::Pool<Manager<T>>);

impl<T: Tls> Pool<T> {
    pub fn new(config: Config, tls: T, size: usize) -> Pool<T> {
        let pool = managed::Pool::builder(Manager { config, tls }).max_size(size).build();
        Pool(pool.expect("only timeouts need a runtime, and there are none"))
    }

    /// Returns the number of connections, and how many of them are idle.
    pub fn status(&self) -> (usize, usize) {
        let status = self.0.status();
        (status.size, status.available)
    }

    /// Runs one or more statements until `ctx` ends. Waiting for a connection is included.
    pub async fn query<R, F>(&self, ctx: &Context, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Client) -> QueryFuture<'a, Result<R, Error>> + Send + 'static,
    {
        let lent = self.lend(ctx).await?;
        ctx.query(lent, |lent| query(lent.0.client())).await.into_result(is_cancel)
    }

    /// Like [`query`](Self::query), with a commit.
    pub async fn transact<R, F>(&self, ctx: &Context, transaction: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Client, &'a Commit) -> QueryFuture<'a, Result<R, Error>>
            + Send
            + 'static,
    {
        let lent = self.lend(ctx).await?;
        ctx.transact(lent, |lent, commit| transaction(lent.0.client(), commit))
            .await
            .into_result(is_cancel)
    }

    async fn lend(&self, ctx: &Context) -> Result<Lent<T>, Error> {
        match ctx.run(self.0.get()).await? {
            Ok(object) => Ok(Lent(object)),
            Err(PoolError::Backend(error)) => Err(Error::Connect(error)),
            Err(error) => Err(Error::Connect(error.to_string().into())),
        }
    }
}
