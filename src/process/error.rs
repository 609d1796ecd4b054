//! Why a process that was tied to a context did not simply exit.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use super::stop::Stopped;

/// A process did not start, or did not exit by itself: the context ended, or something failed.
///
/// Its `Display` is one line: the program (never its arguments), how the process exited, and why. Its
/// [`source`](StdError::source) is the context's [`Error`](crate::Error), or the `io::Error`. It converts
/// into an `io::Error`, with itself inside.
///
/// ```
/// use tokio::process::Command;
/// use tokio_ctx::process::CommandExt;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let ctx = Context::background().with_cancel();
/// ctx.cancel_with("not today");
///
/// let error = Command::new("make").bounded_by(&ctx).status().await.unwrap_err();
/// // make: not started: context canceled at src/main.rs:2: not today
/// println!("{error}");
/// assert!(error.status().is_none());
/// # }
/// ```
#[derive(Debug)]
pub struct Error(Box<Record>);

#[derive(Debug)]
struct Record {
    program: String,
    why: Why,
    status: Option<ExitStatus>,
    output: Option<Output>,
}

#[derive(Debug)]
pub(super) enum Why {
    /// The context had ended before.
    NotStarted(crate::Error),
    NoStart(io::Error),
    Stopped(Stopped),
    /// Nobody could wait for it to the end.
    Lost(Arc<io::Error>),
    /// Its output could not be read to the end.
    Unread(io::Error),
    /// Its output was held open by others, for so long.
    HeldOpen(Duration),
}

impl Error {
    pub(super) fn new(program: &str, why: Why, status: Option<ExitStatus>) -> Error {
        Error(Box::new(Record { program: program.to_owned(), why, status, output: None }))
    }

    pub(super) fn with_output(mut self, stdout: Vec<u8>, stderr: Vec<u8>) -> Error {
        self.0.output = self.0.status.map(|status| Output { status, stdout, stderr });
        self
    }

    /// The context's end, if that is why.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(30));
    /// let error = Command::new("sleep").arg("9").bounded_by(&ctx).status().await.unwrap_err();
    /// assert!(error.context().is_some_and(|ended| ended.is_deadline_exceeded()));
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn context(&self) -> Option<&crate::Error> {
        match &self.0.why {
            Why::NotStarted(why) | Why::Stopped(Stopped { why, .. }) => Some(why),
            Why::NoStart(_) | Why::Lost(_) | Why::Unread(_) | Why::HeldOpen(_) => None,
        }
    }

    /// How the process exited; `None` if it never started.
    ///
    /// One that was asked to stop may well have exited with 0.
    ///
    /// ```
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let mut none = Command::new("no-such-program");
    /// let error = none.bounded_by(&Context::background()).status().await.unwrap_err();
    /// assert!(error.status().is_none());
    /// assert!(error.to_string().starts_with("no-such-program: could not be started: "));
    /// # }
    /// ```
    pub fn status(&self) -> Option<ExitStatus> {
        self.0.status
    }

    /// Whether the process, or one of its group, was killed: it had not stopped when the grace period was
    /// over. Always so on Windows, where there is no asking.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(30));
    /// let error = Command::new("sleep").arg("9").bounded_by(&ctx).status().await.unwrap_err();
    /// assert!(!error.was_killed());
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn was_killed(&self) -> bool {
        matches!(self.0.why, Why::Stopped(Stopped { killed: true, .. }))
    }

    /// What was read of its output, if reading it was asked for and it had started.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(2));
    /// let mut slow = Command::new("sh");
    /// let slow = slow.args(["-c", "echo working >&2; exec sleep 9"]);
    /// let error = slow.bounded_by(&ctx).output().await.unwrap_err();
    /// assert_eq!(error.output().unwrap().stderr, b"working\n");
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn output(&self) -> Option<&Output> {
        self.0.output.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.program)?;
        if let Some(status) = self.0.status {
            write!(f, "{status}: ")?;
        }
        match &self.0.why {
            Why::NotStarted(ended) => write!(f, "not started: {ended}"),
            Why::NoStart(error) => write!(f, "could not be started: {error}"),
            Why::Stopped(Stopped { why, .. }) => write!(f, "{why}"),
            Why::Lost(error) => write!(f, "could not be waited for: {error}"),
            Why::Unread(error) => write!(f, "its output could not be read: {error}"),
            Why::HeldOpen(patience) => {
                write!(f, "its output was held open by others, {patience:?} after it had exited")
            }
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.why {
            Why::NotStarted(why) | Why::Stopped(Stopped { why, .. }) => Some(why),
            Why::NoStart(error) | Why::Unread(error) => Some(error),
            Why::Lost(error) => Some(&**error),
            Why::HeldOpen(_) => None,
        }
    }
}

/// A context's end becomes what [its error](crate::Error) becomes, an `io::Error` keeps its kind, and
/// output that was held open by others is [`TimedOut`](io::ErrorKind::TimedOut).
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error.0.why {
            Why::NotStarted(why) | Why::Stopped(Stopped { why, .. }) => {
                io::Error::from(why.clone()).kind()
            }
            Why::NoStart(error) | Why::Unread(error) => error.kind(),
            Why::Lost(error) => error.kind(),
            Why::HeldOpen(_) => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, error)
    }
}
