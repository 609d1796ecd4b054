//! The borders to code that speaks tokio-util's [`CancellationToken`].

use std::panic::Location;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::scope::CancelScope;
use crate::token::Token;

impl Context {
    /// A child that also ends when `token` is canceled, as [`Canceled`](crate::ErrorKind::Canceled).
    ///
    /// It never cancels the token. When the token's `cancel` returns, the context has ended; no task is needed.
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
        let token = Token::with_foreign(self.token(), token, Location::caller());
        Context::scope_of(token, self.values().clone(), self.is_todo())
    }

    /// A token that is canceled when this context ends; canceling it does not touch the context.
    ///
    /// If the context goes without having ended, its scope detached and its handles dropped, the token
    /// is its parent's from then on (of a merged context: of the first). If the context has a deadline, a
    /// task of the current runtime waits for it, and keeps the context until then.
    ///
    /// # Panics
    ///
    /// If the context has a deadline and has not ended: outside a Tokio runtime, as [`tokio::spawn`].
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
        // Before anything is promised: panics where there is none.
        let runtime = token.needs_timer().then(Handle::current);
        let Some(outer) = token.bridge() else { return cancelled() };
        if let Some((runtime, watch)) = runtime.zip(token.watch()) {
            let done = self.done_owned();
            runtime.spawn(async move {
                let _watch = watch;
                done.await;
            });
        }
        outer.child_token()
    }
}

fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}
