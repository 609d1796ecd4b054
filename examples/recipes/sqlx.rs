//! A recipe: a query of PostgreSQL, with sqlx, that ends with the context, at the server too.
//!
//! sqlx has no cancel token; what stops the server is `pg_cancel_backend`, over another connection of the pool,
//! called by [`Context::after_func`]. Keep one connection more in the pool than there are queries at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::{Error, Executor};
use tokio::sync::oneshot;
use tokio_ctx::Context;

/// Runs a query until `ctx` ends. Let it come to its end, rather than drop it.
pub async fn query(ctx: &Context, pool: &PgPool, sql: &str) -> Result<Vec<PgRow>, Error> {
    let mut connection = pool.acquire().await?;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
    let over = Arc::new(AtomicBool::new(false));
    let (done, cancels_done) = oneshot::channel::<()>();
    let stop = ctx.after_func({
        let (over, pool) = (over.clone(), pool.clone());
        move || async move {
            let _done = done;
            // Again and again: a cancel that comes between two of a query's steps is lost.
            while !over.load(Ordering::Acquire) {
                let cancel = sqlx::query("SELECT pg_cancel_backend($1)").bind(backend);
                // A server that can't be told is gone, and the query will say so.
                pool.execute(cancel).await.ok();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let result = connection.fetch_all(sql).await;
    over.store(true, Ordering::Release);
    if !stop.stop() {
        // Under way already: let it not hit the connection's next query.
        cancels_done.await.ok();
    }
    result
}

/// Whether it was a cancel that stopped the query.
pub fn is_canceled(error: &Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(QUERY_CANCELED))
}
