//! A recipe: a query of SQLite, embedded, that ends with the context.
//!
//! SQLite runs on a thread of its own that no future can stop; what stops it is its interrupt handle, fired by
//! [`Context::after_func`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, InterruptHandle};
use tokio_ctx::Context;

/// Runs `query` on a thread for blocking work, until `ctx` ends: then SQLite itself stops, with
/// [`is_interrupt`].
///
/// Dropped before it resolves, the query goes on until the context ends.
pub async fn query<T: Send + 'static>(
    ctx: &Context,
    connection: impl FnOnce() -> Result<Connection, Error> + Send + 'static,
    query: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let ctx = ctx.clone();
    let run = move || {
        let connection = connection()?;
        let interrupt = Interrupt(connection.get_interrupt_handle());
        let over = Arc::new(AtomicBool::new(false));
        let stop = ctx.after_func({
            let over = over.clone();
            // Again and again: an interrupt that comes between two statements is lost.
            move || async move {
                while !over.load(Ordering::Acquire) {
                    interrupt.0.interrupt();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let result = query(&connection);
        over.store(true, Ordering::Release);
        stop.stop();
        result
    };
    tokio::task::spawn_blocking(run).await.expect("a query does not panic")
}

/// Also interrupts when it is dropped: a runtime that shuts down would wait for the query for ever.
struct Interrupt(InterruptHandle);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

/// Whether it was the context that stopped the query.
pub fn is_interrupt(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)
}
