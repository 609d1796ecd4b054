//! [`Context::with_idle`]: a limit on the time without progress.

use std::panic::Location;
use std::time::Duration;

use crate::context::{CancelScope, Context};
use crate::token::Token;
use crate::token::sync::now;

impl Context {
    /// A child that ends when no progress has been reported for this long, and at this context's deadline in any case.
    ///
    /// For what takes as long as it takes, but not without moving: a download, an import, a stream of rows. Progress
    /// is reported by [`progress`](Self::progress), for all idle limits above; and by itself where bytes or items go
    /// through something of a context at or below this one: a read or write of `Context::io`, an item of a stream that
    /// is [`bounded_by`](crate::StreamExt::bounded_by) or [`checked_by`](crate::StreamExt::checked_by) it, a
    /// frame of a body of `wire::ClientLayer` or `wire::ServerLayer`.
    ///
    /// It ends as a deadline does, with [`NoProgress`](crate::budget::NoProgress) as the cause, which says how many bytes
    /// had come. [`deadline`](Self::deadline) and [`remaining`](Self::remaining) leave it out, as it moves. A report
    /// reads no clock, so that its time is that of the next look: whatever asks whether the context has ended looks, and
    /// where something waits, so does a task of its runtime, eight times in the limit. Hence it never ends too early,
    /// and up to an eighth too late. `None`, and what is centuries off, is no limit; zero ends it at birth.
    ///
    /// # When not to use it
    ///
    /// Without a deadline around it, for a peer that is not trusted: a byte now and then keeps it alive for good. For a
    /// request and its answer, which have nothing to report in between: that is
    /// [`with_timeout`](Self::with_timeout). For peers that must prove to be alive: that takes a protocol's own
    /// keep-alive.
    ///
    /// Go's counterpart is `conn.SetReadDeadline` before each read, which is a timer each; others are reqwest's
    /// `read_timeout`, and `timeout` of `tokio::time` around each item.
    ///
    /// ```
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
    /// // Comes at ten bytes a second, and stalls after thirty: that is noticed within twelve.
    /// let mut page = Vec::new();
    /// let stalled = ctx.io(connection).read_to_end(&mut page).await.unwrap_err();
    ///
    /// // context deadline exceeded: no progress for 10s (budget set at src/main.rs:9), 300 B so far
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
        let token = Token::with_pulse(self.token(), limit, Location::caller());
        Context::scope_of(token, self.values().clone(), self.is_todo())
    }
}
