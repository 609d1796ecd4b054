//! What the server layer answers by itself: a status and a few words, of which none is about the inside.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::timeout::BadHeader;
use crate::error::{Error, ErrorKind};

/// In which protocol to answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Http,
    Grpc,
    /// gRPC-Web, whose trailers are part of the body: as base64 if so.
    GrpcWeb {
        base64: bool,
    },
}

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer in all protocols.
struct Answer {
    http: StatusCode,
    grpc: &'static str,
    text: String,
}

impl Reply {
    pub(crate) fn to(headers: &HeaderMap) -> Reply {
        let Some(content_type) = headers.get(CONTENT_TYPE) else { return Reply::Http };
        match content_type.as_bytes().strip_prefix(b"application/grpc") {
            Some([] | [b'+' | b';', ..]) => Reply::Grpc,
            Some(rest) if rest.starts_with(b"-web") => {
                Reply::GrpcWeb { base64: rest.starts_with(b"-web-text") }
            }
            _ => Reply::Http,
        }
    }

    /// The whole response, if the context ended before there was one.
    pub(crate) fn ended(self, error: &Error) -> Response<Bytes> {
        let mut response = self.response(Answer::to(error));
        if self != Reply::Http {
            // What is said of a call is said by its status.
            *response.status_mut() = StatusCode::OK;
        }
        response
    }

    pub(crate) fn bad_header(self, bad: &BadHeader) -> Response<Bytes> {
        const INVALID_ARGUMENT: &str = "3";
        self.response(Answer {
            http: StatusCode::BAD_REQUEST,
            grpc: INVALID_ARGUMENT,
            text: bad.to_string(),
        })
    }

    /// The trailers, if the context ended amidst the body; `None` where a body can't say so.
    pub(crate) fn trailers(self, error: &Error) -> Option<HeaderMap> {
        if self != Reply::Grpc {
            return None;
        }
        let mut trailers = HeaderMap::new();
        Answer::to(error).write_grpc(&mut trailers);
        Some(trailers)
    }

    fn response(self, answer: Answer) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let content_type = match self {
            Reply::Http => "text/plain; charset=utf-8",
            Reply::Grpc => "application/grpc",
            Reply::GrpcWeb { base64: false } => "application/grpc-web+proto",
            Reply::GrpcWeb { base64: true } => "application/grpc-web-text+proto",
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        *response.status_mut() = answer.http;
        if self == Reply::Http {
            *response.body_mut() = format!("{}\n", answer.text).into();
        } else {
            // Trailers alone: they stand in the head.
            answer.write_grpc(response.headers_mut());
        }
        response
    }
}

impl Answer {
    fn to(error: &Error) -> Answer {
        const DEADLINE_EXCEEDED: &str = "4";
        const UNAVAILABLE: &str = "14";
        match error.kind() {
            ErrorKind::DeadlineExceeded => Answer {
                http: StatusCode::GATEWAY_TIMEOUT,
                grpc: DEADLINE_EXCEEDED,
                text: "deadline exceeded".into(),
            },
            ErrorKind::Canceled => Answer {
                http: StatusCode::SERVICE_UNAVAILABLE,
                grpc: UNAVAILABLE,
                text: "service stopping".into(),
            },
        }
    }

    fn write_grpc(&self, headers: &mut HeaderMap) {
        headers.insert(GRPC_STATUS.clone(), HeaderValue::from_static(self.grpc));
        if let Ok(text) = HeaderValue::try_from(&self.text) {
            headers.insert(GRPC_MESSAGE.clone(), text);
        }
    }
}
