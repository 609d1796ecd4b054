//! What a caller is told of an end: from its kind and its cause to the status of each protocol, in one place.

use http::StatusCode;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::finished::RequestEnd;
use crate::task::shutdown::GraceOver;

/// What came of a request that was not served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The time is over.
    Late,
    /// The service is stopping: another instance may serve the same call.
    Stopping,
    /// The client has left, or the request was dropped: what is said is read by logs and metrics alone.
    Left,
    /// The code that serves the request has canceled a part of it.
    Canceled,
    /// A header says what it may not.
    BadHeader,
}

impl Outcome {
    /// What an error says that the code of a handler, or of a call, returns.
    ///
    /// That the service is stopping, its context says: the one that serves the current request. A job that no
    /// request is behind knows it by the cause that a [`Shutdown`](crate::Shutdown) gives.
    pub(crate) fn of(error: &Error) -> Outcome {
        match error.kind() {
            ErrorKind::DeadlineExceeded => Outcome::Late,
            ErrorKind::Canceled if error.cause_as::<RequestEnd>().is_some() => Outcome::Left,
            ErrorKind::Canceled
                if error.cause_as::<GraceOver>().is_some() || Context::current().is_service_over() =>
            {
                Outcome::Stopping
            }
            ErrorKind::Canceled => Outcome::Canceled,
        }
    }

    /// What the end of a request's own context says: what cancels that is the service's end.
    pub(crate) fn of_request(error: &Error) -> Outcome {
        match Outcome::of(error) {
            Outcome::Canceled => Outcome::Stopping,
            outcome => outcome,
        }
    }

    /// A few words, of which none is about the inside.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Outcome::Late => "deadline exceeded",
            Outcome::Stopping => "service stopping",
            Outcome::Left | Outcome::Canceled => "request canceled",
            Outcome::BadHeader => "bad header",
        }
    }

    pub(crate) fn http(self) -> StatusCode {
        match self {
            Outcome::Late => StatusCode::GATEWAY_TIMEOUT,
            Outcome::Stopping | Outcome::Canceled => StatusCode::SERVICE_UNAVAILABLE,
            Outcome::Left => client_closed_request(),
            Outcome::BadHeader => StatusCode::BAD_REQUEST,
        }
    }

    /// The code of gRPC.
    pub(crate) fn grpc(self) -> u8 {
        match self {
            Outcome::Left | Outcome::Canceled => 1,
            Outcome::BadHeader => 3,
            Outcome::Late => 4,
            Outcome::Stopping => 14,
        }
    }

    /// The code of Connect, and the HTTP status that its specification has for it.
    pub(crate) fn connect(self) -> (&'static str, StatusCode) {
        match self {
            Outcome::Left | Outcome::Canceled => ("canceled", client_closed_request()),
            Outcome::BadHeader => ("invalid_argument", self.http()),
            Outcome::Late => ("deadline_exceeded", self.http()),
            Outcome::Stopping => ("unavailable", self.http()),
        }
    }
}

/// Nginx's, which Connect and gRPC's gateways have taken over.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}
