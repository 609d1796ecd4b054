//! [`Progress`]: reports progress to the idle limits of a context.
//!
//! It is not part of the module `budget`, because modules of lower layers report progress, too.

use std::fmt;
use std::sync::Arc;

use super::context::Context;
use super::idle_limit::IdleLimit;

/// # Progress
impl Context {
    /// Returns a handle that reports progress to the [idle limits](Self::with_idle) of this context and its ancestors.
    ///
    /// Without an idle limit, a report has no effect, so code can report progress without knowing whether there is one.
    /// Keep the handle instead of creating one for each report: creating it visits the ancestors, and a report is only
    /// one store per limit.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_idle(Duration::from_secs(1));
    /// let progress = ctx.progress();
    /// for _row in 0..100 {
    ///     ctx.sleep(Duration::from_millis(500)).await.unwrap();
    ///     progress.report();
    /// }
    /// # }
    /// ```
    pub fn progress(&self) -> Progress {
        Progress { idle_limits: self.token().map_or_else(Vec::new, |token| token.idle_limits()).into() }
    }
}

/// Reports progress to the idle limits of a context. Returned by [`Context::progress`].
///
/// It can be cloned and used on any thread, and does not keep the context alive.
///
/// ```
/// use tokio_ctx::Context;
///
/// // Without an idle limit, this has no effect.
/// Context::background().progress().report_bytes(512);
/// ```
#[derive(Clone, Default)]
pub struct Progress {
    idle_limits: Box<[Arc<IdleLimit>]>,
}

impl Progress {
    /// Reports progress. This is one relaxed store per limit, without reading the clock or touching a timer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_idle(Duration::from_secs(10));
    /// let progress = ctx.progress();
    /// let sum: u64 = (0..1_000_u64).inspect(|_| progress.report()).sum();
    /// assert_eq!((sum, ctx.is_done()), (499_500, false));
    /// ```
    #[inline]
    pub fn report(&self) {
        self.idle_limits.iter().for_each(|idle_limit| idle_limit.report());
    }

    /// Reports progress, and adds to the number of bytes that the error of an idle limit includes.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::budget::NoProgress;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_idle(Duration::from_secs(10));
    /// for chunk in [&b"hello "[..], b"world"] {
    ///     ctx.progress().report_bytes(chunk.len() as u64);
    /// }
    /// let stalled = ctx.done().await;
    /// assert_eq!(stalled.cause_as::<NoProgress>().unwrap().bytes(), Some(11));
    /// # }
    /// ```
    #[inline]
    pub fn report_bytes(&self, bytes: u64) {
        self.idle_limits.iter().for_each(|idle_limit| idle_limit.report_bytes(bytes));
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("limits", &self.idle_limits.len()).finish()
    }
}
