//! The recipe for a pool with a real server: a query ends with its context at the server, and no connection returns to the
//! pool before that.

#![cfg(unix)]

#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../../tests/common/database.rs"]
mod database;

use std::sync::Arc;
use std::time::Duration;

use recipe_pool::Pool;
use recipe_tokio_postgres::{Error, committed};
use tokio::time::sleep;
use tokio_ctx::Context;
use tokio_postgres::{NoTls, Row};

use common::ms;
use database::Failure;
use database::postgres::Server;

#[derive(Clone)]
struct Pooled(Arc<Pool<NoTls>>);

fn text(rows: Vec<Row>) -> String {
    rows.first().map(|row| row.get(0)).unwrap_or_default()
}

fn failure(error: Error) -> Failure {
    Failure::new(&error, error.may_have_committed())
}

impl database::Database for Pooled {
    async fn open(server: &Server, connections: u32) -> Self {
        Pooled(Arc::new(Pool::new(server.address.parse().unwrap(), NoTls, connections as usize)))
    }

    async fn query(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = self
            .0
            .query(ctx, |client| Box::pin(async move { Ok(text(client.query(&sql, &[]).await?)) }));
        query.await.map_err(failure)
    }

    async fn panic(&self, ctx: &Context, sql: &str, after: Duration) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = self.0.query(ctx, move |client| {
            Box::pin(async move {
                tokio::select! {
                    rows = client.query(&sql, &[]) => Ok(text(rows?)),
                    () = sleep(after) => panic!("a query panics"),
                }
            })
        });
        query.await.map_err(failure)
    }

    async fn commit(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let transaction = self.0.transact(ctx, |client, commit| {
            Box::pin(async move {
                let transaction = client.transaction().await?;
                let rows = transaction.query(&sql, &[]).await?;
                committed(commit.send(transaction.commit()).await?)?;
                Ok(text(rows))
            })
        });
        transaction.await.map_err(failure)
    }
}

suite!(Pooled);

/// A query whose caller has left occupies a connection of the pool for at most the grace period.
#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_connection_is_replaced() {
    let Some(server) = Server::shared() else { return };
    let pool = Pool::new(server.address.parse().unwrap(), NoTls, 2);
    for _ in 0..20 {
        let ctx = Context::background().with_timeout(ms(20));
        let queries = (0..4).map(|_| {
            pool.query(&ctx, |client| {
                Box::pin(async move { Ok(client.execute("SELECT pg_sleep(3600)", &[]).await?) })
            })
        });
        drop(tokio::time::timeout(ms(10), futures::future::join_all(queries)).await);
    }
    let all_free = async {
        while pool.status() != (2, 2) {
            sleep(ms(1)).await;
        }
    };
    tokio::time::timeout(ms(60_000), all_free).await.unwrap();
}
