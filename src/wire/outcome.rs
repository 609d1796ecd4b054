//! The mapping from the kind and the cause of an end to the status of each protocol.

use http::StatusCode;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::finished::RequestEnd;
use crate::task::shutdown::GraceOver;

/// Why a request was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The deadline passed.
    Late,
    /// The service is shutting down: another instance may serve the same call.
    Stopping,
    /// The client has left, or the request was dropped: only logs and metrics see this status.
    Left,
    /// The handler canceled a part of its work.
    Canceled,
    /// A header is malformed.
    BadHeader,
}

impl Outcome {
    /// Returns the outcome for an error that a handler or a call has returned.
    ///
    /// The service is shutting down if the context that serves the current request has ended, or if the cause is that of
    /// a [`Shutdown`](crate::Shutdown).
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

    /// Returns the outcome for the end of a request's own context, which is canceled only by the end of the service.
    pub(crate) fn of_request(error: &Error) -> Outcome {
        match Outcome::of(error) {
            Outcome::Canceled => Outcome::Stopping,
            outcome => outcome,
        }
    }

    /// Returns the text for the client, without any detail of this process.
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

    /// Returns the code of gRPC.
    pub(crate) fn grpc(self) -> u8 {
        match self {
            Outcome::Left | Outcome::Canceled => 1,
            Outcome::BadHeader => 3,
            Outcome::Late => 4,
            Outcome::Stopping => 14,
        }
    }

    /// Returns the code of Connect, and the HTTP status that its specification assigns to it.
    pub(crate) fn connect(self) -> (&'static str, StatusCode) {
        match self {
            Outcome::Left | Outcome::Canceled => ("canceled", client_closed_request()),
            Outcome::BadHeader => ("invalid_argument", self.http()),
            Outcome::Late => ("deadline_exceeded", self.http()),
            Outcome::Stopping => ("unavailable", self.http()),
        }
    }
}

/// Returns the status 499 of nginx, which Connect and gRPC gateways use as well.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}
