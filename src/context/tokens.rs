//! Conversions from and to tokio-util's [`CancellationToken`].
//!
//! [`CancellationToken`]: https://docs.rs/tokio-util/0.7/tokio_util/sync/struct.CancellationToken.html

use std::panic::Location;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::scope::CancelScope;
use crate::sync::require_runtime;
use crate::token::Token;

impl Context {
    /// Derives a child that also ends when a `CancellationToken` is canceled.
    ///
    /// When the token's `cancel` returns, the child has ended, with the kind
    /// [`Canceled`](crate::ErrorKind::Canceled). Only a second call of `cancel`, while the first one is running, may return
    /// earlier. The child never cancels the token. No task is spawned.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new();
    /// let ctx = Context::background().with_token(&shutdown);
    /// shutdown.cancel();
    /// assert!(ctx.err().unwrap().is_canceled());
    /// ```
    #[track_caller]
    pub fn with_token(&self, token: &CancellationToken) -> CancelScope {
        self.derive(Token::with_foreign(self.token(), token, Location::caller()))
    }

    /// Returns a `CancellationToken` that is canceled when this context ends.
    ///
    /// Canceling the token does not affect the context. If the context has a deadline, a task of the current runtime
    /// waits for the end, and keeps the context alive until then. Further calls in the same runtime share that task. If
    /// the last handle of a detached context is dropped before the context has ended, the token is canceled when the
    /// context's parent ends (for a merged context, the first parent).
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime with a time driver if the context has a deadline or an idle limit, and has not
    /// ended.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_cancel();
    /// let token = ctx.cancellation_token();
    /// ctx.cancel();
    /// assert!(token.is_cancelled());
    /// ```
    #[track_caller]
    pub fn cancellation_token(&self) -> CancellationToken {
        let Some(token) = self.token() else { return CancellationToken::new() };
        if self.is_done() {
            return cancelled();
        }
        // Comes first, because it panics outside of a runtime. Without a time driver, it panics here and not in the task.
        let runtime = token.needs_timer().then(|| {
            drop(sleep(Duration::ZERO));
            (Handle::current(), require_runtime())
        });
        let Some(bridge) = token.bridge() else { return cancelled() };
        let claimed = runtime.and_then(|(runtime, here)| Some((runtime, bridge.claim_task(here)?)));
        if let Some((runtime, claim)) = claimed {
            let done = self.done_owned();
            runtime.spawn(async move {
                let _claim = claim;
                done.await;
            });
        }
        bridge.outer.child_token()
    }
}

fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}
