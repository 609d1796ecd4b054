//! The borders to code that speaks tokio-util's [`CancellationToken`].

use std::panic::Location;
use std::task::Waker;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::token::{Seat, Token};
use crate::{CancelGuard, Context};

impl Context {
    /// A child that also ends when `token` is cancelled, as [`Canceled`](crate::ErrorKind::Canceled).
    ///
    /// It never cancels the token. Asking such a context, or one below it, asks the token, which takes
    /// that one's mutex; no task is needed.
    ///
    /// ```
    /// use tokio_ctx::Context;
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let shutdown = CancellationToken::new();
    /// let (ctx, _guard) = Context::background().with_token(&shutdown);
    /// shutdown.cancel();
    /// assert!(ctx.err().unwrap().is_canceled());
    /// ```
    #[track_caller]
    pub fn with_token(&self, token: &CancellationToken) -> (Context, CancelGuard) {
        let token = Token::foreign(self.token(), token.clone(), Location::caller());
        Context::with_guard(token, self.values().clone(), self.is_todo())
    }

    /// A token that is cancelled when this context ends; cancelling it does not touch the context.
    ///
    /// From the first call on the context is kept until it ends, so that the token is cancelled even if
    /// it is all that is left. If the context has a deadline, or was made
    /// [`with_token`](Self::with_token), a task of the current runtime watches for the end.
    ///
    /// # Panics
    ///
    /// If the context has a deadline, or was made `with_token`, and has not ended: outside a Tokio
    /// runtime, as [`tokio::spawn`].
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// let (ctx, guard) = Context::background().with_cancel();
    /// let token = ctx.cancellation_token();
    /// guard.cancel();
    /// assert!(token.is_cancelled());
    /// ```
    #[track_caller]
    pub fn cancellation_token(&self) -> CancellationToken {
        let Some(token) = self.token() else { return CancellationToken::new() };
        if self.is_done() {
            let outer = CancellationToken::new();
            outer.cancel();
            return outer;
        }
        // Only a task sees a deadline pass, or a foreign token cancelled, while nobody asks.
        let watched = token.deadline().is_some() || token.is_foreign();
        let runtime = watched.then(Handle::current);
        let (bridge, built) = token.bridge();
        match runtime {
            _ if !built => {}
            Some(runtime) => {
                let (ctx, outer) = (self.clone(), bridge.outer.clone());
                runtime.spawn(async move {
                    ctx.done_owned().await;
                    outer.cancel();
                });
            }
            None => {
                let waker = Waker::from(bridge.clone());
                if !(token.link() && token.join(&mut Seat::default(), waker)) {
                    bridge.outer.cancel();
                }
            }
        }
        bridge.outer.child_token()
    }
}
