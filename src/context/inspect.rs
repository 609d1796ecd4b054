//! Whether and why a context has ended, and how much time is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use crate::error::Error;
use crate::stamp::Stamp;
use crate::sync::now;
use crate::token::Token;

/// # Query
impl Context {
    /// Returns whether the context has ended. tokio-util's `CancellationToken::is_cancelled`.
    ///
    /// This takes a few atomic loads, never a lock. With a deadline, it also reads the clock.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let work = (0..).take_while(|_| !ctx.is_done());
    /// ctx.cancel();
    /// assert_eq!(work.count(), 0);
    /// ```
    #[inline]
    pub fn is_done(&self) -> bool {
        self.token().is_some_and(|token| token.is_done())
    }

    /// Returns the error that says why the context has ended, or `None` if it has not. Go's `ctx.Err()` and
    /// `context.Cause(ctx)`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// assert!(ctx.err().is_none());
    /// ctx.cancel_with("shutting down");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "shutting down");
    /// ```
    #[inline]
    pub fn err(&self) -> Option<Error> {
        self.token()?.err()
    }

    /// Like [`err`](Self::err), for code that has read the clock.
    #[inline]
    pub(crate) fn err_at(&self, now: Instant) -> Option<Error> {
        let token = self.token()?;
        token.is_done_at(Stamp::new(now)).then(|| token.error())
    }

    /// Returns an error if the context has ended. Call it in loops that compute.
    ///
    /// ```
    /// use tokio_ctx::{Context, Error};
    ///
    /// fn sum(ctx: &Context, items: &[u64]) -> Result<u64, Error> {
    ///     let mut sum = 0;
    ///     for item in items {
    ///         ctx.check()?;
    ///         sum += item;
    ///     }
    ///     Ok(sum)
    /// }
    ///
    /// let ctx = Context::background().with_cancel();
    /// assert_eq!(sum(&ctx, &[1, 2, 3]).unwrap(), 6);
    /// ctx.cancel();
    /// assert!(sum(&ctx, &[1, 2, 3]).unwrap_err().is_canceled());
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`err`](Self::err) once the context has ended.
    #[inline]
    pub fn check(&self) -> Result<(), Error> {
        match self.err() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Returns the deadline: the earliest one of this context and its ancestors. Go's `ctx.Deadline()`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let parent = Context::background().with_timeout(Duration::from_secs(1));
    /// let child = parent.with_timeout(Duration::from_secs(60));
    /// assert_eq!(child.deadline(), parent.deadline());
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        self.token()?.deadline()
    }

    /// Returns the time left until the deadline. `None` if there is no deadline, and zero once it has passed.
    ///
    /// For a context that was canceled before its deadline, this is still the time until the deadline.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// assert_eq!(Context::background().remaining(), None);
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(ctx.remaining(), Some(Duration::ZERO));
    /// ```
    pub fn remaining(&self) -> Option<Duration> {
        Some(self.deadline()?.saturating_duration_since(now()))
    }
}

impl Token {
    /// Like [`is_done`](Self::is_done), for callers that have read the clock.
    #[inline]
    pub(super) fn is_done_at(self: &Arc<Self>, now: Stamp) -> bool {
        let reads_clock = self.has_deadline() && !self.is_checked() && !self.ended();
        if reads_clock { self.is_done_by(now) } else { self.is_done() }
    }
}
