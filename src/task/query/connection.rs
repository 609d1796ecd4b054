//! [`Connection`]: what a driver has to say so that its queries can be canceled.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::error::BoxError;

/// A connection whose queries run elsewhere, at a server or on a thread, and go on there when their future is dropped.
///
/// Implement it for a type of your own around the driver's connection, or around what a pool lends. It says how a
/// query is canceled, and how the connection is kept from its next user. [`Context::query`] and
/// [`Context::transact`] do the rest.
///
/// Whatever the query's future leaves at work when it returns, such as a future of the driver's that it dropped in a
/// `select!` or a timeout of its own, is the connection's to know: nothing here can see it.
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
/// /// What the pool lends; dropped, it goes back.
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
///         drop(self.0.take()); // Out of the pool, and closed.
///     }
/// }
/// # fn main() {}
/// ```
///
/// [`Context::query`]: crate::Context::query
/// [`Context::transact`]: crate::Context::transact
pub trait Connection: Send + 'static {
    /// What cancels a query of this connection while the query has the connection itself.
    type Canceler: Send + 'static;

    /// The canceler, made before each query.
    fn canceler(&self) -> Self::Canceler;

    /// Cancels the query that is under way; called again, after a pause, for as long as the query has not ended.
    ///
    /// It must hit no query but this connection's, and returns when it can hit nothing any more: once the server has
    /// acted on it, not once it is sent. The connection's next user would else be canceled instead. To cancel when
    /// there is nothing to cancel must do nothing.
    ///
    /// [`Context::current`](crate::Context::current) has the query's values in there, and no end. It is polled
    /// without a cooperative budget. It is dropped at the end of the [`grace`](Self::grace).
    ///
    /// # Errors
    ///
    /// If the cancel may still act later: then the connection is discarded after the query. A cancel that has surely
    /// not been sent, as the server could not be reached, is `Ok`, and is tried again. A panic counts as an error,
    /// and there is no further attempt.
    fn cancel(canceler: &mut Self::Canceler) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Keeps the connection from any further use: closes it, takes it out of its pool, or has it wait until it is
    /// known to be idle.
    ///
    /// Called for a connection whose query may still run. Must not block. A panic in here is caught.
    fn discard(self);

    /// How long a query may take to end after its context has; 5 seconds unless implemented.
    ///
    /// The attempts to cancel it, and the wait for a commit's answer, are part of it. Zero gives up at once.
    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// A query's future, which has the connection for as long as it lives: what the function returns that
/// [`Context::query`](crate::Context::query) takes. `Box::pin(async move { … })` makes one.
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
