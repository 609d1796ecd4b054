//! The outcome of a query: its result, or why there is none, and the connection if it can be used again.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BoxError, Error, fmt_with_sources};

/// The outcome of a query. Returned by [`Context::query`](crate::Context::query) and
/// [`Context::transact`](crate::Context::transact).
///
/// | | `result` | `connection` | `ended` |
/// |---|---|---|---|
/// | the query returned before the end | `Ok` | `Some` | `None` |
/// | it returned after the end | `Ok`: usually the driver's error for a canceled query, or a value if the query was faster than the cancel | `Some` | `Some` |
/// | the context had ended before it began | `Err`, [`NotBegun`](StoppedKind::NotBegun) | `Some` | `Some` |
/// | it did not end in time | `Err`, [`Unknown`](StoppedKind::Unknown) | `None` | `Some` |
///
/// The connection is also `None` if the query has returned, but a cancel could still affect the next query.
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
#[must_use = "the query may not have ended"]
pub struct Outcome<C, T> {
    /// The value that the query returned, or why there is none.
    pub result: Result<T, Stopped>,
    /// The connection, which can be used again, or dropped, which returns it to its pool. `None` if it was
    /// [discarded](super::Connection::discard).
    pub connection: Option<C>,
    /// The context's error, if it had ended when the query returned.
    pub ended: Option<Error>,
    /// Whether a [`Commit`](super::Commit) was sent, with or without a response.
    pub commit_sent: bool,
}

impl<C, T> Outcome<C, T> {
    pub(super) fn not_begun(connection: C, ended: Error) -> Self {
        let result = Err(Stopped::not_begun(ended.clone()));
        Outcome { result, connection: Some(connection), ended: Some(ended), commit_sent: false }
    }
}

impl<C, T, E> Outcome<C, Result<T, E>> {
    /// Converts the outcome into one flat result, and drops the connection, which returns it to its pool.
    ///
    /// `is_cancel` returns whether an error is the driver's error for a canceled query. If the context has ended, such an
    /// error is converted into a [`Stopped`]. Other errors are returned as they are. A value that was faster than the
    /// cancel is returned.
    ///
    /// # Errors
    ///
    /// Returns the query's own error, or the [`Stopped`], converted into `X`.
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

/// The progress that a query without a result had made. Returned by [`Stopped::kind`].
///
/// ```
/// use tokio_ctx::query::{Stopped, StoppedKind};
///
/// fn advice(stopped: &Stopped) -> &'static str {
///     match stopped.kind() {
///         StoppedKind::NotBegun => "nothing was sent to the database",
///         StoppedKind::Canceled => "the database has stopped the query",
///         _ => "check before you try again",
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoppedKind {
    /// The context had already ended. Nothing was sent.
    NotBegun,
    /// The query was canceled, and has ended. The statement in progress had no effect, and a transaction was rolled back.
    /// Earlier commits remain.
    Canceled,
    /// The query has not ended in time. Its effect is unknown.
    Unknown,
}

/// Why a query has no result: its context ended.
///
/// [`kind`](Self::kind) returns how far the query had progressed, and therefore whether it can safely be repeated.
/// [`Error::find`] finds the context's error. In a function that returns an [`Error`], `?` converts it.
///
/// ```
/// use tokio_ctx::query::{Stopped, StoppedKind};
///
/// /// Returns whether the transfer can be repeated without sending the money twice.
/// fn is_safe_to_repeat(stopped: &Stopped) -> bool {
///     stopped.kind() != StoppedKind::Unknown
/// }
/// ```
#[derive(Clone)]
pub struct Stopped {
    ended: Error,
    why: Why,
    commit_sent: bool,
    /// Set in the cause of an error that already contains the context's error.
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

    /// Makes the error of a query that has not ended. `is_commit` is true if it is a commit without a response.
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

    /// Returns how far the query had progressed.
    pub fn kind(&self) -> StoppedKind {
        match self.why {
            Why::NotBegun => StoppedKind::NotBegun,
            Why::Canceled => StoppedKind::Canceled,
            Why::Unknown { .. } => StoppedKind::Unknown,
        }
    }

    /// Returns whether a [`Commit`](super::Commit) was sent, so that it may have taken effect.
    ///
    /// If not, the server rolls the transaction back, at the latest when it notices that the connection is closed. This
    /// says nothing about statements outside of a transaction.
    ///
    /// ```
    /// use tokio_ctx::query::Stopped;
    ///
    /// /// Returns the message for the customer.
    /// fn answer(stopped: &Stopped) -> &'static str {
    ///     if stopped.commit_sent() { "we are looking into it" } else { "please try again" }
    /// }
    /// ```
    pub fn commit_sent(&self) -> bool {
        self.commit_sent
    }

    /// Returns the context's error.
    pub fn context_error(&self) -> &Error {
        &self.ended
    }

    /// Returns the error of the last attempt to cancel the query, if it failed.
    pub fn cancel_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        match &self.why {
            Why::Unknown { cancel, .. } => cancel.as_deref(),
            _ => None,
        }
    }
}

/// For example, `query canceled: context deadline exceeded: 2s budget set at src/main.rs:8`.
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

/// The line of `Display`, followed by the sources of the context's cause. `{:#?}` shows the fields.
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

/// `Display` includes the context's error, so the chain continues with the source of that.
impl StdError for Stopped {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.ended.source()
    }
}

/// Converts it into the context's error. If the effect of the query is unknown, the [`Stopped`] becomes the cause of that
/// error, and contains the previous cause.
impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Error {
        if stopped.kind() != StoppedKind::Unknown {
            return stopped.ended;
        }
        Error::new(*stopped.ended.origin(), Some(Box::new(Stopped { is_cause: true, ..stopped })))
    }
}

/// Converts it as the [`Error`] of the same end: [`TimedOut`](io::ErrorKind::TimedOut), or the kind of a cancel.
impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> io::Error {
        Error::from(stopped).into()
    }
}

/// Converts it as the [`Error`] of the same end.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum_core::response::IntoResponse for Stopped {
    fn into_response(self) -> axum_core::response::Response {
        Error::from(self).into_response()
    }
}

/// Converts it as the [`Error`] of the same end.
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl From<Stopped> for tonic::Status {
    fn from(stopped: Stopped) -> tonic::Status {
        Error::from(stopped).into()
    }
}
