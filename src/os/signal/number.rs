//! A [`Signal`] is a number; the platforms name theirs.

/// A signal, and the cause of a context that ended on it.
///
/// ```no_run
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::{Signal, until_termination};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = until_termination(&Context::background())?;
/// let stopped = ctx.done().await;
/// if let Some(signal) = stopped.cause_as::<Signal>() {
///     eprintln!("{signal}"); // SIGTERM received
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(pub(super) i32);

impl Signal {
    /// Its number: of the signal on Unix, of the console's control event on Windows.
    ///
    /// ```
    /// # #[cfg(unix)]
    /// assert_eq!(tokio_ctx::signal::Signal::TERM.number(), 15);
    /// ```
    pub const fn number(self) -> i32 {
        self.0
    }
}
