//! The type [`Signal`], a number. The platform modules define the names.

/// A signal. It is the cause of a context that ended on a signal.
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
    /// Returns the number of the signal on Unix, or of the console control event on Windows.
    ///
    /// ```
    /// # #[cfg(unix)]
    /// assert_eq!(tokio_ctx::signal::Signal::TERM.number(), 15);
    /// ```
    pub const fn number(self) -> i32 {
        self.0
    }
}
