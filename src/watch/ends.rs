//! The description of an end: its kind, its line, the type of its cause, and the text of its cause if that is allowed.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::snapshot::{End, How, Line};
use crate::context::NotEnoughTime;
use crate::error::{self, Error, Origin};
#[cfg(feature = "http")]
use crate::finished::Budget;
use crate::finished::Finished;
#[cfg(feature = "tower")]
use crate::finished::RequestEnd;
use crate::registry::{Brief, cause_name};
use crate::task::group::TaskFailed;
use crate::task::shutdown::GraceOver;
use crate::token::Token;
use crate::trace::shielded;

/// The maximum number of characters of the text of a cause.
const LONGEST: usize = 300;

type Cause = dyn StdError + Send + Sync + 'static;

/// The description of an end. It does not keep the cause.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) how: How,
    pub(super) ended_at: Instant,
    origin: Origin,
    cause_type: Option<&'static str>,
    cause: Option<Arc<str>>,
}

impl Facts {
    pub(super) fn new(error: &Error, show_causes: bool) -> Facts {
        let origin = *error.origin();
        let cause = error.cause().filter(|_| show_causes).map(|cause| text_of(cause).into());
        Facts {
            how: how(error),
            ended_at: origin.ended_at(),
            origin,
            cause_type: cause_type(error),
            cause,
        }
    }

    /// Returns the end of a token, even if no query has noticed it yet, without the text of its cause.
    pub(super) fn of(token: &Arc<Token>) -> Option<Facts> {
        let error = shielded(|| token.unnoticed_error(Instant::now())).flatten()?;
        let facts = Facts::new(&error, false);
        shielded(|| drop(error));
        Some(facts)
    }

    pub(super) fn to_end(&self, now: Instant) -> End {
        let line = self.origin.canceled_at().unwrap_or(self.origin.made_at());
        End {
            how: self.how,
            line: Line(line),
            ago: now.saturating_duration_since(self.ended_at),
            text: Error::new(self.origin, None).to_string(),
            cause_type: self.cause_type,
            cause: self.cause.as_deref().map(str::to_owned),
        }
    }
}

/// Returns the kind of an end.
pub(super) fn how(error: &Error) -> How {
    let by_cause = error.cause().and_then(|cause| {
        #[cfg(feature = "tower")]
        if let Some(end) = cause.downcast_ref::<RequestEnd>() {
            return Some(match end {
                RequestEnd::Answered => How::Finished,
                RequestEnd::ClientLeft => How::ClientLeft,
                RequestEnd::Dropped => How::RequestDropped,
                RequestEnd::Failed | RequestEnd::Panicked => How::Failed,
            });
        }
        if cause.is::<Finished>() {
            Some(How::Finished)
        } else if cause.is::<GraceOver>() {
            Some(How::Shutdown)
        } else {
            cause.is::<TaskFailed>().then_some(How::Failed)
        }
    });
    by_cause.unwrap_or_else(|| match error.origin().how() {
        error::How::Deadline | error::How::Idle => How::Deadline,
        error::How::Canceled(_) => How::Canceled,
        error::How::GuardDropped => How::Dropped,
        error::How::Token => How::Token,
        #[cfg(feature = "tonic")]
        error::How::Peer(error::ErrorKind::DeadlineExceeded) => How::Deadline,
        #[cfg(feature = "tonic")]
        error::How::Peer(error::ErrorKind::Canceled) => How::Canceled,
    })
}

/// Returns the name of the cause's type, which is known from the type itself or from the line that passed it.
pub(super) fn cause_type(error: &Error) -> Option<&'static str> {
    fn is<E: StdError + 'static>(cause: &Cause) -> bool {
        cause.is::<E>()
    }
    macro_rules! known {
        ($cause:expr, $($name:literal: $type:ty),* $(,)?) => {
            $(if is::<$type>($cause) { return Some($name); })*
        };
    }
    let cause = error.cause()?;
    #[cfg(feature = "tower")]
    known!(cause, "RequestEnd": RequestEnd);
    #[cfg(feature = "http")]
    known!(cause, "Budget": Budget);
    known!(
        cause,
        "GraceOver": GraceOver,
        "TaskFailed": TaskFailed,
        "NotEnoughTime": NotEnoughTime,
        "NoProgress": crate::budget::NoProgress,
        "Finished": Finished,
        "tokio_ctx::Error": Error,
        "io::Error": io::Error,
        "fmt::Error": fmt::Error,
        "JoinError": tokio::task::JoinError,
        "Elapsed": tokio::time::error::Elapsed,
    );
    let origin = error.origin();
    Some(cause_name(origin.canceled_at().unwrap_or(origin.made_at())).unwrap_or("other"))
}

/// Returns the beginning of a cause's text, on one line.
fn text_of(cause: &Cause) -> String {
    let mut brief = Brief::new(LONGEST);
    // This calls foreign code. If it panics, the text that it has written is kept.
    shielded(|| write!(brief, "{cause}"));
    brief.text()
}
