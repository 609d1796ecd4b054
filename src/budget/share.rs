//! [`Context::with_share`] and [`Context::with_reserve`]: parts of the remaining time.

use std::time::Duration;

use crate::context::{CancelScope, Context};

/// # Panics
///
/// Panics if the share is negative or NaN.
#[track_caller]
pub(super) fn assert_share(share: f64) {
    assert!(share >= 0.0, "a share must be a number from 0 to 1, but was {share}");
}

/// Returns this share of the remaining time, unless it sets no limit.
pub(super) fn share_of_remaining(ctx: &Context, share: f64) -> Option<Duration> {
    ctx.remaining().filter(|_| share < 1.0).map(|left| left.mul_f64(share))
}

impl Context {
    /// Derives a child with a share of the remaining time: `with_share(0.7)` gets seven tenths of it.
    ///
    /// Use it for a step that may take long, but should leave time for another one: the first replica before the
    /// second, the cache before the database. A share of 1 or more is all of the remaining time. With a share of 0,
    /// the child has already ended when it is returned. If this context has no deadline, neither has the child. The
    /// error of the child names the line that called this method, and the time that the share amounted to.
    ///
    /// Do not use it for many steps in a row, because each would get less time than the one before. Go has no
    /// counterpart; there the share is computed from `ctx.Deadline()`.
    ///
    /// # Panics
    ///
    /// Panics if the share is negative or NaN.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// # async fn primary() -> u32 { std::future::pending().await }
    /// # async fn replica() -> u32 { 7 }
    /// async fn read(ctx: &Context) -> Result<u32, Error> {
    ///     match ctx.with_share(0.7).run(primary()).await {
    ///         Ok(row) => Ok(row),
    ///         Err(_slow) => ctx.run(replica()).await, // Three tenths are left for it.
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// assert_eq!(read(&ctx).await.unwrap(), 7);
    /// assert_eq!(ctx.remaining(), Some(Duration::from_millis(30)));
    /// # }
    /// ```
    #[track_caller]
    pub fn with_share(&self, share: f64) -> CancelScope {
        assert_share(share);
        self.with_timeout(share_of_remaining(self, share))
    }

    /// Derives a child whose deadline is earlier than this context's by `reserve`, the time needed by what follows:
    /// a fallback, or sending the response.
    ///
    /// If this context has no deadline, neither has the child. If less time than the reserve is left, the child has
    /// already ended when it is returned, with a [`NotEnoughTime`](crate::NotEnoughTime) as the cause. It says how
    /// much time was left, and which line set the budget.
    ///
    /// Do not use it for a cleanup that has to run after the end of *this* context; [`run_then`](Self::run_then) gives
    /// a cleanup time of its own. Go has no counterpart; there it is written
    /// `context.WithDeadline(ctx, deadline.Add(-reserve))`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn search() -> Vec<u32> { std::future::pending().await }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(500));
    ///
    /// // Leave time to send the results, even if the search is incomplete.
    /// let reserve = Duration::from_millis(50);
    /// let found = ctx.with_reserve(reserve).run(search()).await.unwrap_or_default();
    /// assert!(found.is_empty() && !ctx.is_done());
    ///
    /// // context deadline exceeded: no time was left when it was set at src/main.rs:13: not enough
    /// // time left: 2s required, 50ms left of the 500ms budget set at src/main.rs:4
    /// println!("{}", ctx.with_reserve(Duration::from_secs(2)).err().unwrap());
    /// # }
    /// ```
    #[track_caller]
    pub fn with_reserve(&self, reserve: Duration) -> CancelScope {
        let Some(deadline) = self.deadline() else { return self.with_cancel() };
        match self.require(reserve) {
            Ok(()) => match deadline.checked_sub(reserve) {
                Some(at) => self.with_deadline(at),
                // A time before the clock's first is in the past.
                None => self.with_timeout(Duration::ZERO),
            },
            Err(short) => self.with_timeout_cause(Duration::ZERO, short),
        }
    }
}
