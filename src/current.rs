//! The context of the task at hand.

use std::future::Future;

use crate::Context;

tokio::task_local! {
    static CURRENT: Context;
}

impl Context {
    /// The task's context: the one of the innermost [`scope`](Self::scope), [`sync_scope`],
    /// [`spawn`](Self::spawn), [`within`](Self::within) or `instrument` around; the background outside.
    ///
    /// A task that is started with [`tokio::spawn`] begins without one: `current()` is the background there, and
    /// nothing says so. [`Context::spawn`] takes the context along. Go has no counterpart: there a context is
    /// always passed.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// fn log_line(text: &str) -> String {
    ///     match Context::current().value::<RequestId>() {
    ///         Some(id) => format!("[{}] {text}", id.0),
    ///         None => text.to_string(),
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value(RequestId(7));
    /// assert_eq!(ctx.scope(async { log_line("hello") }).await, "[7] hello");
    /// assert_eq!(log_line("hello"), "hello");
    /// # }
    /// ```
    ///
    /// [`sync_scope`]: Self::sync_scope
    pub fn current() -> Context {
        CURRENT.try_with(Context::clone).unwrap_or_default()
    }

    /// Runs a future with this context as [`current`](Self::current), whenever it is polled.
    ///
    /// It is not bounded by the context: nest [`run`](Self::run) for that. Scopes nest; outside, the
    /// outer one is current again.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// ctx.cancel();
    /// let seen = ctx.scope(async { Context::current().is_done() }).await;
    /// assert!(seen);
    /// # }
    /// ```
    pub fn scope<F: Future>(&self, f: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), f)
    }

    /// Calls a function with this context as [`current`](Self::current).
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_value(42_u8);
    /// let found = ctx.sync_scope(|| Context::current().value::<u8>().copied());
    /// assert_eq!(found, Some(42));
    /// ```
    pub fn sync_scope<R>(&self, f: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self.clone(), f)
    }

    /// Runs a future bounded by this context, with it as [`current`](Self::current), and in a span.
    ///
    /// [`run`](Self::run) in [`scope`](Self::scope), with the span entered whenever it is polled. If the
    /// span has a field `deadline_ms`, the time left is recorded there, in milliseconds.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tracing::{field, info_span};
    ///
    /// # async fn load_profile(_id: u32) -> String { "ada".into() }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(80));
    /// let span = info_span!("profile", id = 7, deadline_ms = field::Empty);
    /// let profile = ctx.instrument(span, load_profile(7)).await?;
    /// assert_eq!(profile, "ada");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    pub fn instrument<F: Future>(
        &self,
        span: tracing::Span,
        f: F,
    ) -> impl Future<Output = Result<F::Output, crate::Error>> {
        use tracing::Instrument;

        if let Some(left) = self.remaining().filter(|_| !span.is_disabled()) {
            span.record("deadline_ms", left.as_secs_f64() * 1e3);
        }
        self.scope(self.run(f)).instrument(span)
    }
}
