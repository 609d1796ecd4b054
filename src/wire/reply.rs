//! The responses of the server's layer itself, in the protocol of the request.

use bytes::{Buf, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;

use super::envelope::{self, Envelopes};
use super::outcome::Outcome;
use super::timeout::{self, BadHeader};

/// The protocol of a response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Http,
    Grpc,
    /// gRPC-Web, whose trailers are part of the body. The body may be base64.
    GrpcWeb {
        base64: bool,
    },
    /// A unary call of Connect. An error is JSON, with an HTTP status of its own.
    Connect,
    /// A stream of Connect with this content type. An error is in the last frame of the body.
    ConnectStream(Box<HeaderValue>),
}

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

impl Reply {
    /// Returns the protocol of a request.
    pub(crate) fn to<A>(request: &Request<A>) -> Reply {
        Reply::of(request, request.headers().get(CONTENT_TYPE))
    }

    /// Returns the protocol of a request, whose content type has been looked up.
    pub(crate) fn of<A>(request: &Request<A>, content_type: Option<&HeaderValue>) -> Reply {
        let headers = request.headers();
        let content_type = content_type.map_or(&b""[..], HeaderValue::as_bytes);
        let is_post = *request.method() == Method::POST;
        match framed(content_type) {
            Some(Framed::Grpc) => Reply::Grpc,
            Some(Framed::GrpcWeb { base64 }) => Reply::GrpcWeb { base64 },
            Some(Framed::Connect) => Reply::ConnectStream(Box::new(headers[CONTENT_TYPE].clone())),
            None if is_post && is_unary_connect(content_type, headers) => Reply::Connect,
            None if *request.method() == Method::GET && is_connect_get(request.uri().query()) => {
                Reply::Connect
            }
            None => Reply::Http,
        }
    }

    /// Returns whether a client's call uses gRPC, whose errors are statuses.
    pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        matches!(framed(content_type), Some(Framed::Grpc | Framed::GrpcWeb { .. }))
    }

    /// Makes the response to a request that ended before its handler responded.
    pub(crate) fn ended(&self, outcome: Outcome) -> Response<Bytes> {
        self.response(outcome, outcome.text())
    }

    /// Like [`ended`](Self::ended), in place of the response with this head. Keeps the headers that a middleware has
    /// added, such as those of CORS, without which a browser hides the status.
    pub(crate) fn ended_with(&self, outcome: Outcome, mut head: Parts) -> Response<Bytes> {
        let (own, body) = self.ended(outcome).into_parts();
        for of_body in [CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING] {
            head.headers.remove(of_body);
        }
        head.headers.extend(own.headers);
        head.status = own.status;
        head.extensions.remove::<Outcome>();
        Response::from_parts(head, body)
    }

    pub(crate) fn bad_header(&self, bad: &BadHeader) -> Response<Bytes> {
        self.response(Outcome::BadHeader, &bad.to_string())
    }

    fn response(&self, outcome: Outcome, text: &str) -> Response<Bytes> {
        // gRPC and streams of Connect have a status of their own in addition to that of HTTP.
        let (status, content_type, body) = match self {
            Reply::Http => {
                (outcome.http(), from_static("text/plain; charset=utf-8"), format!("{text}\n").into())
            }
            Reply::Grpc => (StatusCode::OK, from_static("application/grpc"), Vec::new()),
            Reply::GrpcWeb { base64: false } => {
                (StatusCode::OK, from_static("application/grpc-web+proto"), Vec::new())
            }
            Reply::GrpcWeb { base64: true } => {
                (StatusCode::OK, from_static("application/grpc-web-text+proto"), Vec::new())
            }
            Reply::Connect => {
                let (_, status) = outcome.connect();
                (status, from_static("application/json"), connect_error(outcome, text).into())
            }
            Reply::ConnectStream(content_type) => {
                (StatusCode::OK, (**content_type).clone(), end_stream(outcome, text))
            }
        };
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        if let Reply::Grpc | Reply::GrpcWeb { .. } = self {
            // A response that consists of trailers only has them in its head.
            write_grpc(outcome, text, response.headers_mut());
        }
        response
    }

    /// Returns how a body with this head can report that it ended early.
    ///
    /// A response need not have the protocol of its request. A body of another type is aborted, and so is one with a
    /// content encoding.
    pub(crate) fn closing(&self, head: &HeaderMap) -> Closing {
        if *self == Reply::Http {
            return Closing::Break;
        }
        let content_type = head.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_plain = !head.contains_key(CONTENT_ENCODING);
        match (self, framed(content_type)) {
            (Reply::Grpc, Some(Framed::Grpc)) => Closing::Trailers,
            (Reply::GrpcWeb { .. }, Some(Framed::GrpcWeb { base64 })) if is_plain => {
                Closing::GrpcWeb { base64, envelopes: Box::new(Envelopes::new(base64)) }
            }
            (Reply::ConnectStream(_), Some(Framed::Connect)) if is_plain => {
                Closing::Connect(Box::new(Envelopes::new(false)))
            }
            _ => Closing::Break,
        }
    }
}

/// The framing that a content type denotes.
enum Framed {
    Grpc,
    GrpcWeb { base64: bool },
    Connect,
}

fn framed(content_type: &[u8]) -> Option<Framed> {
    match content_type.strip_prefix(b"application/")? {
        [b'g', b'r', b'p', b'c', rest @ ..] => match rest {
            [] | [b'+' | b';', ..] => Some(Framed::Grpc),
            _ => {
                let rest = rest.strip_prefix(b"-web")?;
                Some(Framed::GrpcWeb { base64: rest.starts_with(b"-text") })
            }
        },
        [b'c', b'o', b'n', b'n', b'e', b'c', b't', b'+', ..] => Some(Framed::Connect),
        _ => None,
    }
}

/// Clients of Connect send the version. If a proxy removes it, a timeout together with one of the two standard codecs
/// indicates Connect as well.
fn is_unary_connect(content_type: &[u8], headers: &HeaderMap) -> bool {
    let Some(codec) = content_type.strip_prefix(b"application/") else { return false };
    let end = codec.iter().position(|&byte| byte == b';').unwrap_or(codec.len());
    headers.contains_key(&CONNECT_VERSION)
        || (matches!(codec[..end].trim_ascii(), b"json" | b"proto")
            && headers.contains_key(&timeout::CONNECT))
}

/// Returns whether a `GET` is a call of Connect without side effects.
fn is_connect_get(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair == "connect=v1"))
}

fn from_static(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}

fn write_grpc(outcome: Outcome, text: &str, headers: &mut HeaderMap) {
    headers.insert(GRPC_STATUS.clone(), HeaderValue::from(u16::from(outcome.grpc())));
    if let Ok(text) = HeaderValue::try_from(text) {
        headers.insert(GRPC_MESSAGE.clone(), text);
    }
}

/// Returns the JSON of an error. Nothing has to be escaped, because the only variable part is the name of a header.
fn connect_error(outcome: Outcome, text: &str) -> String {
    let (code, _) = outcome.connect();
    format!(r#"{{"code":"{code}","message":"{text}"}}"#)
}

fn end_stream(outcome: Outcome, text: &str) -> Vec<u8> {
    let error = connect_error(outcome, text);
    envelope::frame(envelope::END_STREAM, &format!(r#"{{"error":{error}}}"#))
}

/// How a body reports that its request ended before the body did.
pub(crate) enum Closing {
    /// It cannot report that, and is aborted with an error.
    Break,
    Trailers,
    GrpcWeb {
        base64: bool,
        envelopes: Box<Envelopes>,
    },
    Connect(Box<Envelopes>),
}

/// How a body ends.
pub(crate) enum Last {
    Frame(Frame<Bytes>),
    /// The status has been sent already.
    Nothing,
    Broken,
}

impl Closing {
    /// Tracks where messages end, if that matters.
    pub(crate) fn follow<D: Buf + From<Bytes>>(&mut self, frame: Frame<D>) -> Frame<D> {
        let (Closing::GrpcWeb { envelopes, .. } | Closing::Connect(envelopes)) = self else {
            return frame;
        };
        frame.map_data(|mut data| {
            if data.chunk().len() == data.remaining() {
                envelopes.follow(data.chunk());
                return data;
            }
            let bytes = data.copy_to_bytes(data.remaining());
            envelopes.follow(&bytes);
            bytes.into()
        })
    }

    /// Returns how to end the body at this point.
    pub(crate) fn last(&self, outcome: Outcome) -> Last {
        let frame = match self {
            Closing::Break => return Last::Broken,
            Closing::Trailers => {
                let mut trailers = HeaderMap::new();
                write_grpc(outcome, outcome.text(), &mut trailers);
                return Last::Frame(Frame::trailers(trailers));
            }
            Closing::GrpcWeb { envelopes, .. } | Closing::Connect(envelopes) if envelopes.is_over() => {
                return Last::Nothing;
            }
            Closing::GrpcWeb { envelopes, .. } | Closing::Connect(envelopes)
                if !envelopes.is_between() =>
            {
                return Last::Broken;
            }
            Closing::GrpcWeb { base64, .. } => {
                let (code, text) = (outcome.grpc(), outcome.text());
                let trailers = format!("grpc-status: {code}\r\ngrpc-message: {text}\r\n");
                let frame = envelope::frame(envelope::TRAILERS, &trailers);
                if *base64 { envelope::to_base64(&frame) } else { frame }
            }
            Closing::Connect(_) => end_stream(outcome, outcome.text()),
        };
        Last::Frame(Frame::data(frame.into()))
    }
}
