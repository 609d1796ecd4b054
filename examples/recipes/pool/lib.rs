//! A recipe, to be copied: a pool of connections, deadpool's, from which a connection goes back only if it is idle.
//!
//! deadpool takes back what is dropped. A connection whose query may still run is taken out of the pool instead,
//! and closed, which makes room for a new one.

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use recipe_tokio_postgres::{Canceler, Error, Link, Tls, is_cancel};
use tokio_ctx::query::{Commit, Connection, QueryFuture};
use tokio_ctx::{BoxError, Context};
use tokio_postgres::{Client, Config};

/// How deadpool opens a connection, and asks of one that comes back whether it is still open.
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

/// A connection that the pool lends.
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
        // Dropped, an `Object` would go back.
        drop(Object::take(self.0));
    }
}

/// The pool, and queries on it.
pub struct Pool<T: Tls>(managed::Pool<Manager<T>>);

impl<T: Tls> Pool<T> {
    pub fn new(config: Config, tls: T, size: usize) -> Pool<T> {
        let pool = managed::Pool::builder(Manager { config, tls }).max_size(size).build();
        Pool(pool.expect("only timeouts need a runtime, and there are none"))
    }

    /// How many connections there are, and how many of them are free.
    pub fn status(&self) -> (usize, usize) {
        let status = self.0.status();
        (status.size, status.available)
    }

    /// Runs a query, or several, until `ctx` ends; the wait for a connection counts.
    pub async fn query<R, F>(&self, ctx: &Context, query: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Client) -> QueryFuture<'a, Result<R, Error>> + Send + 'static,
    {
        let lent = self.lend(ctx).await?;
        ctx.query(lent, |lent| query(lent.0.client())).await.into_result(is_cancel)
    }

    /// [`query`](Self::query), with a commit.
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
