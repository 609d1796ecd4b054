//! The recipe for sqlx with a real server: a query ends with its context at the server.

#![cfg(unix)]

#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../../tests/common/database.rs"]
mod database;

use std::time::Duration;

use recipe_sqlx::{Error, committed};
use sqlx::Connection;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use sqlx::{Executor, Row};
use tokio::time::sleep;
use tokio_ctx::Context;

use database::Failure;
use database::postgres::Server;

#[derive(Clone)]
struct Sqlx(PgPool);

fn text(row: Option<PgRow>) -> String {
    row.map(|row| row.get(0)).unwrap_or_default()
}

fn failure(error: Error) -> Failure {
    Failure::new(&error, error.may_have_committed())
}

impl database::Database for Sqlx {
    async fn open(server: &Server, connections: u32) -> Self {
        let options = recipe_sqlx::options(server.url().parse().unwrap());
        Sqlx(PgPoolOptions::new().max_connections(connections).connect_with(options).await.unwrap())
    }

    async fn query(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = recipe_sqlx::query(ctx, &self.0, |connection| {
            Box::pin(async move { Ok(text(connection.fetch_optional(&*sql).await?)) })
        });
        query.await.map_err(failure)
    }

    async fn panic(&self, ctx: &Context, sql: &str, after: Duration) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = recipe_sqlx::query(ctx, &self.0, move |connection| {
            Box::pin(async move {
                tokio::select! {
                    row = connection.fetch_optional(&*sql) => Ok(text(row?)),
                    () = sleep(after) => panic!("a query panics"),
                }
            })
        });
        query.await.map_err(failure)
    }

    async fn commit(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let transaction = recipe_sqlx::transact(ctx, &self.0, |connection, commit| {
            Box::pin(async move {
                let mut transaction = connection.begin().await?;
                let row = transaction.fetch_optional(&*sql).await?;
                committed(commit.send(transaction.commit()).await?)?;
                Ok(text(row))
            })
        });
        transaction.await.map_err(failure)
    }
}

suite!(Sqlx);
