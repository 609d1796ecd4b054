//! A recipe: a query of PostgreSQL, with tokio-postgres, that ends with the context, at the server too.
//!
//! To drop the query would leave the server at work, and the connection waiting for it. What stops the server is its
//! cancel token, fired by [`Context::after_func`]; the query then returns, with [`is_canceled`], and the
//! connection is free for the next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_ctx::{BoxError, Context};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Client, Error, NoTls, Row};

/// Runs a query of the server at this address until `ctx` ends. Let it come to its end, rather than drop it.
pub async fn query(
    ctx: &Context,
    client: &Client,
    server: SocketAddr,
    sql: &str,
) -> Result<Vec<Row>, Error> {
    let token = client.cancel_token();
    let over = Arc::new(AtomicBool::new(false));
    let (done, cancels_done) = oneshot::channel::<()>();
    let stop = ctx.after_func({
        let over = over.clone();
        move || async move {
            let _done = done;
            // Again and again: a cancel that comes between two of a query's steps is lost.
            while !over.load(Ordering::Acquire) {
                // A server that can't be told is gone, and the query will say so.
                cancel(&token, server).await.ok();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let result = client.query(sql, &[]).await;
    over.store(true, Ordering::Release);
    if !stop.stop() {
        // Under way already: let it not hit the connection's next query.
        cancels_done.await.ok();
    }
    result
}

/// As `token.cancel_query`, which returns before the server has acted on it.
async fn cancel(token: &CancelToken, server: SocketAddr) -> Result<(), BoxError> {
    let mut stream = TcpStream::connect(server).await?;
    token.cancel_query_raw(&mut stream, NoTls).await?;
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}

/// Whether it was a cancel that stopped the query.
pub fn is_canceled(error: &Error) -> bool {
    error.code() == Some(&SqlState::QUERY_CANCELED)
}
