//! Why a process that was tied to a context did not simply exit.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use super::stop::Survived;

/// A process did not start, or did not exit by itself: the context ended, or something failed.
///
/// Its `Display` is one line: the program (never its arguments), how the process exited, and why. As that line
/// includes the context's [`Error`](crate::Error) or the `io::Error`, the [`source`](StdError::source) is *its*
/// source: a printed chain says nothing twice. [`context`](Self::context) returns the context's error.
/// `Debug` is the same line and the chain, and `{:#?}` shows the fields. It converts into an `io::Error`, with
/// itself inside.
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
    /// The context's end stopped it.
    Stopped {
        ended: crate::Error,
        killed: bool,
    },
    /// It is still running, after the context's end if that is why it was to stop.
    Survived {
        ended: Option<crate::Error>,
        survived: Survived,
    },
    /// It could not be waited for.
    Lost(Arc<io::Error>),
    /// Its output could not be read to the end.
    Unread(io::Error),
    /// Its output was held open by other processes for this long.
    HeldOpen(Duration),
    /// Its output was held open by other processes until the context ended.
    CutOff(crate::Error),
}

impl Error {
    pub(super) fn new(program: &str, why: Why, status: Option<ExitStatus>) -> Error {
        Error(Box::new(Record { program: program.to_owned(), why, status, output: None }))
    }

    pub(super) fn with_output(mut self, stdout: Vec<u8>, stderr: Vec<u8>) -> Error {
        self.0.output = self.0.status.map(|status| Output { status, stdout, stderr });
        self
    }

    /// The context's end, if that is why the process was stopped, was not started, or its output cut off.
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
            Why::NotStarted(ended) | Why::Stopped { ended, .. } | Why::CutOff(ended) => Some(ended),
            Why::Survived { ended, .. } => ended.as_ref(),
            Why::NoStart(_) | Why::Lost(_) | Why::Unread(_) | Why::HeldOpen(_) => None,
        }
    }

    /// How the process exited; `None` if it never started, or [is still running](Self::is_still_running).
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

    /// Whether the process, or one of its group, was killed after the context's end: it had not stopped when
    /// the grace period was over. Always so on Windows, where there is no asking.
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

    /// Whether the process, or one of its group, was still running when the wait for it was given up: it may
    /// not be signaled, or had not exited 5 seconds after it was killed.
    ///
    /// A process that has changed its user (`sudo`, `su`, a service that drops its privileges) may not be
    /// signaled by an ordinary user. One that hangs in the kernel, on a network file system for example, exits
    /// when that lets it go. Should it exit later, it is reaped in the background, while a runtime with an I/O
    /// driver is there to do so.
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
    ///             // (os error 1): context deadline exceeded: 60s budget set at src/main.rs:9
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
            Why::Stopped { ended, .. } => write!(f, "{ended}"),
            Why::Survived { ended: Some(ended), survived } => write!(f, "{survived}: {ended}"),
            Why::Survived { ended: None, survived } => write!(f, "{survived}"),
            Why::Lost(error) => write!(f, "could not be waited for: {error}"),
            Why::Unread(error) => write!(f, "its output could not be read: {error}"),
            Why::HeldOpen(patience) => {
                write!(f, "its output was held open by others, {patience:?} after it had exited")
            }
            Why::CutOff(ended) => write!(f, "its output was still held open by others: {ended}"),
        }
    }
}

impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "process {id} is still running, ")?,
            None => f.write_str("one of its group is still running, ")?,
        }
        match &self.refused {
            Some(refused) => write!(f, "it may not be signaled: {refused}"),
            None => write!(f, "{:?} after it was killed", Survived::PATIENCE),
        }
    }
}

/// One line and the chain, as it is shown when `main` returns it; `{:#?}` shows the fields.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return f.debug_tuple("Error").field(&self.0).finish();
        }
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// `Display` includes the error that this one is about, so that the chain goes on with that one's source.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.why {
            Why::NotStarted(ended) | Why::Stopped { ended, .. } | Why::CutOff(ended) => ended.source(),
            Why::Survived { ended, .. } => ended.as_ref()?.source(),
            Why::NoStart(error) | Why::Unread(error) => error.source(),
            Why::Lost(error) => error.source(),
            Why::HeldOpen(_) => None,
        }
    }
}

/// A context's end becomes what [its error](crate::Error) becomes, an `io::Error` keeps its kind, output that
/// was held open by others is [`TimedOut`](io::ErrorKind::TimedOut), and a process that could not be killed
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
