//! [`Connection`]: the interface between a query and the database driver.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::error::BoxError;

/// A connection whose queries run at a server or on another thread, where they continue if their future is dropped.
///
/// Implement it for a wrapper around the driver's connection, or around the connection of a pool. It defines how a query
/// is canceled, and how a connection is prevented from being used again. [`Context::query`] and [`Context::transact`] do
/// the rest.
///
/// If the function of a query drops a future of the driver, for example in a `select!`, and then returns, a query may
/// still run on the connection. That cannot be detected here.
///
/// ```
/// # #[derive(Clone)] struct Token;
/// # impl Token { async fn cancel_query(&self) -> Result<(), std::io::Error> { Ok(()) } }
/// # struct Client;
/// # impl Client { fn cancel_token(&self) -> Token { Token } }
/// # struct Pooled(Client);
/// # impl Pooled { fn take(self) -> Client { self.0 } }
/// # impl std::ops::Deref for Pooled { type Target = Client; fn deref(&self) -> &Client { &self.0 } }
/// use tokio_ctx::BoxError;
/// use tokio_ctx::query::Connection;
///
/// /// A connection of a pool, which is returned to the pool when dropped.
/// struct Lent(Pooled);
///
/// impl Connection for Lent {
///     type Canceler = Token;
///
///     fn canceler(&self) -> Token {
///         self.0.cancel_token()
///     }
///
///     async fn cancel(token: &mut Token) -> Result<(), BoxError> {
///         Ok(token.cancel_query().await?)
///     }
///
///     fn discard(self) {
///         drop(self.0.take()); // Removed from the pool, and closed.
///     }
/// }
/// # fn main() {}
/// ```
///
/// [`Context::query`]: crate::Context::query
/// [`Context::transact`]: crate::Context::transact
pub trait Connection: Send + 'static {
    /// A handle that can cancel a query of this connection while the query borrows the connection.
    type Canceler: Send + 'static;

    /// Makes the canceler, before each query.
    fn canceler(&self) -> Self::Canceler;

    /// Cancels the query in progress. It is called again, after a pause, until the query has ended.
    ///
    /// It must affect no query of another connection. It must not return before the server has processed the cancel,
    /// which could otherwise affect the next query. It must do nothing if there is no query to cancel.
    ///
    /// In this function, [`Context::current`](crate::Context::current) has the values of the query, and does not end. The
    /// future is polled without a cooperative budget, and dropped at the end of the [`grace`](Self::grace) period.
    ///
    /// # Errors
    ///
    /// Returns an error if the cancel may still take effect later. The connection is then discarded after the query. If
    /// the cancel has certainly not been sent, because the server could not be reached, return `Ok`; it is tried again.
    /// A panic counts as an error, and there is no further attempt.
    fn cancel(canceler: &mut Self::Canceler) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Prevents any further use of the connection: closes it, removes it from its pool, or waits elsewhere until it is
    /// idle.
    ///
    /// It is called for a connection whose query may still run. It must not block. A panic is caught.
    fn discard(self);

    /// Returns how long a query may take to end after its context has ended. The default is 5 seconds.
    ///
    /// This includes the attempts to cancel it, and the wait for the response to a commit. If it is zero, nothing is
    /// waited for.
    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// The future of a query, which borrows the connection. The function that is passed to
/// [`Context::query`](crate::Context::query) returns it, as `Box::pin(async move { … })`.
///
/// ```
/// use tokio_ctx::query::QueryFuture;
///
/// # struct Client;
/// # impl Client { async fn query(&mut self, _: &str) -> Vec<u32> { vec![] } }
/// fn all_orders(client: &mut Client) -> QueryFuture<'_, Vec<u32>> {
///     Box::pin(client.query("SELECT id FROM orders"))
/// }
/// ```
pub type QueryFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
