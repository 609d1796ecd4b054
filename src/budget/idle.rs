//! [`Context::with_idle`]: a limit on the time without progress.

use std::panic::Location;
use std::time::Duration;

use crate::context::{CancelScope, Context};
use crate::sync::now;
use crate::token::Token;

impl Context {
    /// Derives a child that also ends when no progress has been reported for the given time.
    ///
    /// Use it for work that may take long as long as it makes progress: a download, an import, a stream of rows.
    /// [`progress`](Self::progress) returns the handle that reports progress, to the idle limits of this context and
    /// its ancestors. Bytes and items are reported automatically by `Context::io`, by streams that are
    /// [`bounded_by`](crate::StreamExt::bounded_by) or [`checked_by`](crate::StreamExt::checked_by) a context, and by
    /// the bodies of `wire::ClientLayer` and `wire::ServerLayer`.
    ///
    /// When the limit is exceeded, the child ends with `DeadlineExceeded`, and
    /// [`NoProgress`](crate::budget::NoProgress) as the cause, which includes the number of bytes so far.
    /// [`deadline`](Self::deadline) and [`remaining`](Self::remaining) do not include the limit, because it moves. The
    /// deadline of this context still applies.
    ///
    /// A report does not read the clock, which keeps it cheap. The limit is checked by each query such as
    /// [`is_done`](Self::is_done), and, while something waits for the context, eight times per limit by a task of the
    /// runtime. The child therefore never ends too early, and at most an eighth of the limit too late. `None`, and a
    /// time that is too long for the clock, set no limit. With a limit of zero, the child has already ended when it is
    /// returned.
    ///
    /// # When not to use it
    ///
    /// - As the only limit for untrusted peers: one byte now and then keeps the context alive. Set a deadline as well.
    /// - For a request and its response, with no progress in between; use [`with_timeout`](Self::with_timeout).
    /// - To detect dead peers; use the keep-alive of the protocol.
    ///
    /// Go's counterpart is `conn.SetReadDeadline` before each read. Similar are reqwest's `read_timeout`, and
    /// `tokio::time::timeout` around each item.
    ///
    #[cfg_attr(feature = "io", doc = "```")]
    #[cfg_attr(not(feature = "io"), doc = "```ignore")]
    /// use std::time::Duration;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::NoProgress;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # let (connection, mut server) = tokio::io::duplex(64);
    /// # tokio::spawn(async move {
    /// #     for _ in 0..30 {
    /// #         tokio::time::sleep(Duration::from_secs(1)).await;
    /// #         server.write_all(b"0123456789").await.unwrap();
    /// #     }
    /// #     std::future::pending::<()>().await;
    /// # });
    /// let budget = Context::background().with_timeout(Duration::from_secs(600));
    /// let ctx = budget.with_idle(Duration::from_secs(10));
    ///
    /// // The server sends ten bytes a second, and stalls after thirty seconds. The read fails some
    /// // ten seconds later.
    /// let mut page = Vec::new();
    /// let stalled = ctx.io(connection).read_to_end(&mut page).await.unwrap_err();
    ///
    /// // context deadline exceeded: no progress for 10s (budget set at src/main.rs:7), 300 B so far
    /// println!("{stalled}");
    /// assert!(ctx.err().unwrap().cause_as::<NoProgress>().is_some());
    /// assert!(!budget.is_done());
    /// # }
    /// ```
    #[track_caller]
    pub fn with_idle(&self, limit: impl Into<Option<Duration>>) -> CancelScope {
        let Some(limit) = limit.into().filter(|limit| now().checked_add(*limit).is_some()) else {
            return self.with_cancel();
        };
        self.derive(Token::with_idle_limit(self.token(), limit, Location::caller()))
    }
}
