//! What came of a query: its result, whether the connection may be used again, and why there is no result.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BoxError, Error, fmt_with_sources};

/// What came of a query. Made by [`Context::query`](crate::Context::query) and
/// [`Context::transact`](crate::Context::transact).
///
/// | | `result` | `connection` | `ended` |
/// |---|---|---|---|
/// | the query returned before the end | `Ok` | `Some` | `None` |
/// | it returned after the end | `Ok`: as a rule the error of a canceled query, or its value if it was faster | `Some` | `Some` |
/// | the context had ended before it began | `Err`, [`NotBegun`](StoppedKind::NotBegun) | `Some` | `Some` |
/// | it did not end in time | `Err`, [`Unknown`](StoppedKind::Unknown) | `None` | `Some` |
///
/// The connection is also `None` if the query returned while a cancel could still hit the next one.
///
/// ```
/// # use tokio_ctx::query::{Outcome, Stopped, StoppedKind};
/// fn report<C>(outcome: Outcome<C, u64>) {
///     match &outcome.result {
///         Ok(rows) => println!("{rows} rows"),
///         Err(stopped) if stopped.kind() == StoppedKind::NotBegun => println!("nothing happened: {stopped}"),
///         Err(stopped) => println!("it may have taken effect: {stopped}"),
///     }
///     if outcome.connection.is_none() {
///         println!("the connection has been closed");
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "it may say that the query is not known to have ended"]
pub struct Outcome<C, T> {
    /// What the query returned, or why it did not.
    pub result: Result<T, Stopped>,
    /// The connection, which may be used again, or given back by dropping it. `None`: it has been
    /// [discarded](super::Connection::discard).
    pub connection: Option<C>,
    /// How the context ended, if it had when the query returned.
    pub ended: Option<Error>,
    /// Whether a [`Commit`](super::Commit) has been sent, answered or not.
    pub commit_sent: bool,
}

impl<C, T> Outcome<C, T> {
    pub(super) fn not_begun(connection: C, ended: Error) -> Self {
        let result = Err(Stopped::not_begun(ended.clone()));
        Outcome { result, connection: Some(connection), ended: Some(ended), commit_sent: false }
    }
}

impl<C, T, E> Outcome<C, Result<T, E>> {
    /// One flat result, giving the connection back by dropping it.
    ///
    /// `is_cancel` tells whether an error is the one with which the driver returns from a query that is canceled.
    /// After the context's end it becomes a [`Stopped`]; any other error, and one that comes before the end, stays
    /// what it is. A value that was faster than the cancel is returned.
    ///
    /// # Errors
    ///
    /// The query's own, or the [`Stopped`], converted.
    ///
    /// ```
    /// use tokio_ctx::BoxError;
    /// use tokio_ctx::query::Outcome;
    ///
    /// # #[derive(Debug)] struct DriverError { code: &'static str }
    /// # impl std::fmt::Display for DriverError {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.code) }
    /// # }
    /// # impl std::error::Error for DriverError {}
    /// fn rows<C>(outcome: Outcome<C, Result<u64, DriverError>>) -> Result<u64, BoxError> {
    ///     outcome.into_result(|error| error.code == "57014")
    /// }
    /// ```
    pub fn into_result<X>(self, is_cancel: impl FnOnce(&E) -> bool) -> Result<T, X>
    where
        X: From<E> + From<Stopped>,
    {
        match (self.result?, self.ended) {
            (Err(error), Some(ended)) if is_cancel(&error) => {
                Err(Stopped::canceled(ended, self.commit_sent).into())
            }
            (result, _) => Ok(result?),
        }
    }
}

/// How far a query had come that did not return. Made by [`Stopped::kind`].
///
/// ```
/// use tokio_ctx::query::{Stopped, StoppedKind};
///
/// fn advice(stopped: &Stopped) -> &'static str {
///     match stopped.kind() {
///         StoppedKind::NotBegun => "nothing was asked of the database",
///         StoppedKind::Canceled => "the database has stopped",
///         _ => "look before you try again",
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoppedKind {
    /// The context had ended before. Nothing has been sent.
    NotBegun,
    /// It was canceled, and has ended. The statement under way did nothing, and a transaction is undone; what was
    /// committed before stays.
    Canceled,
    /// It has not ended in time. What it did, or still does, is not known.
    Unknown,
}

/// Why a query has no result: its context ended.
///
/// [`kind`](Self::kind) says how far the query had come, and so whether it may be made again.
/// [`Error::find`] finds the context's error in it. `?` converts it where a function returns an [`Error`].
///
/// ```
/// use tokio_ctx::query::{Stopped, StoppedKind};
///
/// /// Whether the transfer can be made again without the money being sent twice.
/// fn is_safe_to_repeat(stopped: &Stopped) -> bool {
///     stopped.kind() != StoppedKind::Unknown
/// }
/// ```
#[derive(Clone)]
pub struct Stopped {
    ended: Error,
    why: Why,
    commit_sent: bool,
    /// The cause of an error that has the context's end already.
    is_cause: bool,
}

#[derive(Clone)]
enum Why {
    NotBegun,
    Canceled,
    Unknown { grace: Duration, is_commit: bool, cancel: Option<Arc<dyn StdError + Send + Sync>> },
}

impl Stopped {
    pub(super) fn not_begun(ended: Error) -> Stopped {
        Stopped { ended, why: Why::NotBegun, commit_sent: false, is_cause: false }
    }

    fn canceled(ended: Error, commit_sent: bool) -> Stopped {
        Stopped { ended, why: Why::Canceled, commit_sent, is_cause: false }
    }

    /// One that has not ended. `is_commit`: it is a commit that has no answer.
    pub(super) fn unknown(
        ended: Error,
        grace: Duration,
        commit_sent: bool,
        is_commit: bool,
        cancel: Option<BoxError>,
    ) -> Stopped {
        let cancel = cancel.map(Arc::from);
        Stopped { ended, why: Why::Unknown { grace, is_commit, cancel }, commit_sent, is_cause: false }
    }

    /// How far the query had come.
    pub fn kind(&self) -> StoppedKind {
        match self.why {
            Why::NotBegun => StoppedKind::NotBegun,
            Why::Canceled => StoppedKind::Canceled,
            Why::Unknown { .. } => StoppedKind::Unknown,
        }
    }

    /// Whether a [`Commit`](super::Commit) had been sent: it may have happened.
    ///
    /// A transaction that was not committed by then is undone by the server, at the latest when it finds the connection
    /// closed. `false` says nothing of statements that commit by themselves.
    ///
    /// ```
    /// use tokio_ctx::query::Stopped;
    ///
    /// /// What the customer is told.
    /// fn answer(stopped: &Stopped) -> &'static str {
    ///     if stopped.commit_sent() { "we are looking into it" } else { "please try again" }
    /// }
    /// ```
    pub fn commit_sent(&self) -> bool {
        self.commit_sent
    }

    /// The context's error.
    pub fn context_error(&self) -> &Error {
        &self.ended
    }

    /// Why the last attempt to cancel the query failed, if it did.
    pub fn cancel_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.why {
            Why::Unknown { cancel, .. } => cancel.as_deref(),
            _ => None,
        }
    }
}

/// `query canceled: context deadline exceeded: 2s budget set at src/main.rs:8`, or how far else it had come.
impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::NotBegun => f.write_str("query not begun")?,
            Why::Canceled if self.commit_sent => f.write_str("query canceled after a commit")?,
            Why::Canceled => f.write_str("query canceled")?,
            Why::Unknown { grace, is_commit: true, .. } => {
                write!(f, "commit not answered within {grace:?}, it may have happened")?;
            }
            Why::Unknown { grace, .. } => {
                write!(f, "query not known to have ended {grace:?} after its context")?;
            }
        }
        if let Some(cancel) = self.cancel_error() {
            write!(f, " (cancel failed: {cancel})")?;
        }
        if self.is_cause { Ok(()) } else { write!(f, ": {}", self.ended) }
    }
}

/// The line of `Display`, then what the context's cause came from; `{:#?}` shows the fields.
impl fmt::Debug for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt_with_sources(self, f);
        }
        f.debug_struct("Stopped")
            .field("kind", &self.kind())
            .field("commit_sent", &self.commit_sent())
            .field("cancel_error", &self.cancel_error())
            .field("context_error", &self.ended)
            .finish()
    }
}

/// `Display` includes the context's error, so that the chain goes on with that one's source.
impl StdError for Stopped {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.ended.source()
    }
}

/// The context's error. That of a query which may have taken effect has the [`Stopped`] as its cause, which holds what
/// was the cause before.
impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Error {
        if stopped.kind() != StoppedKind::Unknown {
            return stopped.ended;
        }
        Error::new(*stopped.ended.origin(), Some(Box::new(Stopped { is_cause: true, ..stopped })))
    }
}

/// As the [`Error`] of the same end: [`TimedOut`](io::ErrorKind::TimedOut), or what a cancel becomes.
impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> io::Error {
        Error::from(stopped).into()
    }
}

/// As the [`Error`] of the same end.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum_core::response::IntoResponse for Stopped {
    fn into_response(self) -> axum_core::response::Response {
        Error::from(self).into_response()
    }
}

/// As the [`Error`] of the same end.
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl From<Stopped> for tonic::Status {
    fn from(stopped: Stopped) -> tonic::Status {
        Error::from(stopped).into()
    }
}
