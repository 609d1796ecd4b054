//! The error of a process that is tied to a context.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use super::stop::Survived;
use crate::error::fmt_with_sources;

/// Error of a process that was not started, or did not exit by itself.
///
/// Its `Display` is one line: the program (never its arguments), how the process exited, and why. This line
/// includes the context's [`Error`](crate::Error) or the `io::Error`, so the [`source`](StdError::source) is
/// the source of *that* error, and a printed chain contains each message once. [`context`](Self::context)
/// returns the context's error. `Debug` prints the same line and the chain; `{:#?}` shows the fields. It
/// converts into an `io::Error` that contains it.
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
/// // make: not started: context canceled at src/main.rs:6: not today
/// println!("{error}");
/// assert!(error.status().is_none());
/// # }
/// ```
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
    /// The context had ended before the start.
    NotStarted(crate::error::Error),
    NoStart(io::Error),
    /// The context's end stopped the process.
    Stopped {
        ended: crate::error::Error,
        killed: bool,
    },
    /// The process is still running.
    Survived {
        ended: Option<crate::error::Error>,
        survived: Survived,
    },
    /// Waiting for the process failed.
    Lost(Arc<io::Error>),
    /// Reading its output failed.
    Unread(io::Error),
    /// Other processes held its output open for this long.
    HeldOpen(Duration),
    /// Other processes held its output open until the context ended.
    CutOff(crate::error::Error),
}

impl Error {
    pub(super) fn new(program: &str, why: Why, status: Option<ExitStatus>) -> Error {
        Error(Box::new(Record { program: program.to_owned(), why, status, output: None }))
    }

    pub(super) fn with_output(mut self, stdout: Vec<u8>, stderr: Vec<u8>) -> Error {
        self.0.output = self.0.status.map(|status| Output { status, stdout, stderr });
        self
    }

    /// Returns the context's error, if its end is the reason why the process was stopped or not started, or its
    /// output is incomplete.
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
    pub fn context(&self) -> Option<&crate::error::Error> {
        match &self.0.why {
            Why::NotStarted(ended) | Why::Stopped { ended, .. } | Why::CutOff(ended) => Some(ended),
            Why::Survived { ended, .. } => ended.as_ref(),
            Why::NoStart(_) | Why::Lost(_) | Why::Unread(_) | Why::HeldOpen(_) => None,
        }
    }

    /// Returns the exit status, or `None` if the process was not started or [is still
    /// running](Self::is_still_running).
    ///
    /// A process that was asked to stop may have exited with 0.
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

    /// Returns whether the process, or one of its group, was killed because it had not stopped within the grace
    /// period.
    ///
    /// On Windows, a process that was stopped has always been killed.
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
        matches!(self.0.why, Why::Stopped { killed: true, .. })
    }

    /// Returns whether the process, or one of its group, was still running when this error was returned,
    /// because it could not be signaled, or had not exited 5 seconds after it was killed.
    ///
    /// An ordinary user cannot signal a process that has changed its user (`sudo`, `su`, a service that drops
    /// its privileges). A process that hangs in the kernel, for example on a network file system, exits when
    /// the kernel lets it. If the process exits later, it is reaped in the background, as long as there is a
    /// runtime with an I/O driver.
    ///
    /// ```
    /// use tokio::process::Command;
    /// use tokio_ctx::process::{CommandExt, Error};
    /// use tokio_ctx::Context;
    ///
    /// async fn upgrade(ctx: &Context) -> Result<(), Error> {
    ///     match Command::new("sudo").args(["apt-get", "upgrade"]).bounded_by(ctx).status().await {
    ///         Err(error) if error.is_still_running() => {
    ///             // sudo: process 4711 is still running, it may not be signaled: Operation not permitted
    ///             // (os error 1): context deadline exceeded: 60s budget set at src/main.rs:20
    ///             eprintln!("{error}");
    ///             Err(error)
    ///         }
    ///         other => other.map(|_status| ()),
    ///     }
    /// }
    /// # let _ = upgrade;
    /// ```
    pub fn is_still_running(&self) -> bool {
        matches!(self.0.why, Why::Survived { .. })
    }

    /// Returns the output that was read, if it was to be read and the process had started.
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
            Why::Stopped { ended, .. } => write!(f, "{ended}"),
            Why::Survived { ended: Some(ended), survived } => write!(f, "{survived}: {ended}"),
            Why::Survived { ended: None, survived } => write!(f, "{survived}"),
            Why::Lost(error) => write!(f, "could not be waited for: {error}"),
            Why::Unread(error) => write!(f, "output could not be read: {error}"),
            Why::HeldOpen(patience) => {
                write!(f, "output still held open by other processes {patience:?} after it exited")
            }
            Why::CutOff(ended) => write!(f, "output still held open by other processes: {ended}"),
        }
    }
}

impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "process {id} is still running, ")?,
            None => f.write_str("a process of its group is still running, ")?,
        }
        match &self.refused {
            Some(refused) => write!(f, "it may not be signaled: {refused}"),
            None => write!(f, "{:?} after it was killed", Survived::PATIENCE),
        }
    }
}

/// Prints the line of `Display`, then the sources. `{:#?}` shows the fields.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt_with_sources(self, f);
        }
        f.debug_tuple("Error").field(&self.0).finish()
    }
}

impl Error {
    /// Returns the error that `Display` includes.
    pub(crate) fn held(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.why {
            Why::NotStarted(ended) | Why::Stopped { ended, .. } | Why::CutOff(ended) => Some(ended),
            Why::Survived { ended, .. } => ended.as_ref().map(|ended| ended as _),
            Why::NoStart(error) | Why::Unread(error) => Some(error),
            Why::Lost(error) => Some(&**error),
            Why::HeldOpen(_) => None,
        }
    }
}

/// `Display` includes the context's error or the `io::Error`, so the source is the source of that error.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.held()?.source()
    }
}

/// Converts with the kind of the context's [error](crate::Error) or of the `io::Error`. Output that was held
/// open has the kind [`TimedOut`](io::ErrorKind::TimedOut), and a process that could not be killed has the kind
/// `Other`.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error.0.why {
            Why::NotStarted(ended)
            | Why::Stopped { ended, .. }
            | Why::CutOff(ended)
            | Why::Survived { ended: Some(ended), .. } => io::Error::from(ended.clone()).kind(),
            Why::Survived { ended: None, .. } => io::ErrorKind::Other,
            Why::NoStart(error) | Why::Unread(error) => error.kind(),
            Why::Lost(error) => error.kind(),
            Why::HeldOpen(_) => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, error)
    }
}
