//! The status that callers receive in their protocol: plain HTTP, gRPC, gRPC-Web and Connect, before and during the
//! response, from the layer and from a handler that returns the context's error. These tests run in the process. Those
//! with real clients are in `peers/wire_node.rs` and `peers/wire_python.rs`.

mod common;
mod wire;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Mutex;

use axum::body::Body as AxumBody;
use axum::response::IntoResponse;
use bytes::{Buf, Bytes};
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio_ctx::wire::{Inbound, RequestEnd, ServerBody, ServerLayer};
use tokio_ctx::{BoxError, Context, Error, Shutdown};
use tower::{Layer, ServiceExt, service_fn};

use common::{LONG, ms};
use wire::{ChannelBody, channel_body};

fn request(method: Method, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// Makes a request as the clients of a protocol send it.
fn call_of(protocol: &str) -> Request<()> {
    let post = |headers: &[(&str, &str)]| request(Method::POST, "/s/M", headers);
    match protocol {
        "http" => post(&[("content-type", "application/json")]),
        "grpc" => post(&[("content-type", "application/grpc+proto")]),
        "grpc-web" => post(&[("content-type", "application/grpc-web+proto")]),
        "grpc-web-text" => post(&[("content-type", "application/grpc-web-text")]),
        "connect" => post(&[("content-type", "application/json"), ("connect-protocol-version", "1")]),
        "connect by its timeout" => {
            post(&[("content-type", "application/proto"), ("connect-timeout-ms", "60000")])
        }
        "connect with parameters" => {
            post(&[("content-type", "application/json; charset=utf-8"), ("connect-timeout-ms", "60000")])
        }
        "connect get" => request(Method::GET, "/s/M?encoding=json&connect=v1&message=%7B%7D", &[]),
        "connect stream" => post(&[("content-type", "application/connect+json")]),
        _ => unreachable!("{protocol}"),
    }
}

const CONNECT_UNARY: [&str; 4] =
    ["connect", "connect by its timeout", "connect with parameters", "connect get"];

async fn serve<B, F>(
    layer: ServerLayer,
    request: Request<()>,
    handler: impl Fn(Request<()>) -> F,
) -> Response<ServerBody<B>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    F: Future<Output = Response<B>>,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    layer.layer(service).oneshot(request).await.unwrap()
}

/// Reads a response: HTTP status, content type, `grpc-status`, body.
async fn read_response<B>(response: Response<B>) -> (u16, String, Option<String>, Bytes)
where
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let text = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, kind, grpc) =
        (response.status().as_u16(), text("content-type").unwrap_or_default(), text("grpc-status"));
    (status, kind, grpc, response.into_body().collect().await.unwrap().to_bytes())
}

fn connect_error(code: &str, text: &str) -> String {
    format!(r#"{{"code":"{code}","message":"{text}"}}"#)
}

fn end_stream(code: &str, text: &str) -> Vec<u8> {
    frame(2, format!(r#"{{"error":{}}}"#, connect_error(code, text)).as_bytes())
}

fn frame(flags: u8, text: &[u8]) -> Vec<u8> {
    [&[flags], &u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}

/// How a request ends without a response of its handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Deadline,
    Service,
    Shutdown,
}

/// The expected status in each protocol, and the text.
fn expected(by: By) -> (u16, &'static str, &'static str, &'static str) {
    match by {
        By::Deadline => (504, "4", "deadline_exceeded", "deadline exceeded"),
        By::Service | By::Shutdown => (503, "14", "unavailable", "service stopping"),
    }
}

/// Calls a handler whose requests end in this way, 50 ms after they arrived.
async fn ended_by<B, F>(
    by: By,
    request: Request<()>,
    handler: impl Fn(Request<()>) -> F,
) -> Response<ServerBody<B>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    F: Future<Output = Response<B>>,
{
    let service = Context::background().with_cancel();
    let shutdown = Shutdown::new(&Context::background()).grace(ms(50));
    let layer = match by {
        By::Deadline => ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(50))),
        By::Service => ServerLayer::new(service.clone(), Inbound::new()),
        By::Shutdown => ServerLayer::with_shutdown(&shutdown, Inbound::new()),
    };
    let canceler = service.canceler();
    tokio::spawn(async move {
        let _service = service;
        match by {
            By::Deadline => pending().await,
            By::Service => {
                tokio::time::sleep(ms(50)).await;
                canceler.cancel_with("secret maintenance");
                pending::<()>().await;
            }
            By::Shutdown => {
                shutdown.begin("secret deployment");
                let _report = shutdown.wait().await;
            }
        }
    });
    serve(layer, request, handler).await
}

const ALL: [By; 3] = [By::Deadline, By::Service, By::Shutdown];

/// Compares a complete response with that of the protocol.
async fn assert_reported<B>(by: By, protocol: &str, response: Response<B>)
where
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (http, grpc, code, text) = expected(by);
    let (status, kind, grpc_status, body) = read_response(response).await;
    let what = format!("{by:?} {protocol}");
    match protocol {
        "http" => {
            assert_eq!((status, &*kind), (http, "text/plain; charset=utf-8"), "{what}");
            assert_eq!(body, format!("{text}\n"), "{what}");
        }
        "grpc" | "grpc-web" | "grpc-web-text" => {
            assert_eq!((status, grpc_status.as_deref()), (200, Some(grpc)), "{what}");
            assert!(kind.starts_with(&format!("application/{protocol}")), "{what}: {kind}");
            assert!(body.is_empty(), "{what}");
        }
        "connect stream" => {
            assert_eq!((status, &*kind), (200, "application/connect+json"), "{what}");
            assert_eq!(body, end_stream(code, text), "{what}");
        }
        _ => {
            assert_eq!((status, &*kind), (http, "application/json"), "{what}");
            assert_eq!(body, connect_error(code, text), "{what}");
        }
    }
}

const PROTOCOLS: [&str; 9] = [
    "http",
    "grpc",
    "grpc-web",
    "grpc-web-text",
    "connect",
    "connect by its timeout",
    "connect with parameters",
    "connect get",
    "connect stream",
];

#[tokio::test(start_paused = true)]
async fn an_end_before_the_response_is_reported_in_each_protocol() {
    for by in ALL {
        for protocol in PROTOCOLS {
            let stuck = async |_| pending::<Response<Full<Bytes>>>().await;
            assert_reported(by, protocol, ended_by(by, call_of(protocol), stuck).await).await;
        }
    }
}

/// A handler of axum that returns the context's error with `?`.
#[tokio::test(start_paused = true)]
async fn a_handler_that_returns_the_error_reports_the_same_status() {
    for by in ALL {
        for protocol in PROTOCOLS {
            let passing = async |_| -> Response<AxumBody> {
                let ended: Error = Context::current().sleep(LONG).await.unwrap_err();
                ended.into_response()
            };
            assert_reported(by, protocol, ended_by(by, call_of(protocol), passing).await).await;
        }
    }
    // A limit of the handler itself, which ends before the layer's, is reported in the same way.
    for protocol in PROTOCOLS {
        let late = async |_| -> Response<AxumBody> {
            let ended = Context::current().with_timeout(ms(10)).sleep(LONG).await.unwrap_err();
            ended.into_response()
        };
        let response = ended_by(By::Service, call_of(protocol), late).await;
        assert_reported(By::Deadline, protocol, response).await;
    }
}

#[tokio::test]
async fn a_cancel_by_the_handler_is_not_the_end_of_the_service() {
    let canceled = async |_| -> Response<AxumBody> {
        let ctx = Context::current().with_cancel();
        ctx.cancel_with("secret");
        ctx.err().unwrap().into_response()
    };
    let layer = || ServerLayer::new(Context::background().with_cancel().detach(), Inbound::new());
    let respond =
        |protocol| async move { read_response(serve(layer(), call_of(protocol), canceled).await).await };
    let (status, _, _, body) = respond("http").await;
    assert_eq!((status, &*body), (503, &b"request canceled\n"[..]));
    assert_eq!(respond("grpc").await.2.as_deref(), Some("1"));
    let (status, _, _, body) = respond("connect").await;
    assert_eq!((status, body), (499, connect_error("canceled", "request canceled").into()));

    // Neither is a dropped request, whose error a task may return.
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(RequestEnd::Dropped);
    assert_eq!(ctx.err().unwrap().into_response().status(), 499);
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(RequestEnd::ClientLeft);
    assert_eq!(ctx.err().unwrap().into_response().status(), 499);
}

#[tokio::test]
async fn a_bad_header_is_reported_in_each_protocol() {
    let unserved = async |_| -> Response<Full<Bytes>> { unreachable!("not served") };
    let text = "bad header grpc-timeout: expected 1 to 8 digits and a unit: H, M, S, m, u or n";
    for protocol in PROTOCOLS {
        let mut request = call_of(protocol);
        request.headers_mut().insert("grpc-timeout", "soon".parse().unwrap());
        let layer = ServerLayer::new(Context::background(), Inbound::new().strict());
        let (status, kind, grpc, body) = read_response(serve(layer, request, unserved).await).await;
        match protocol {
            "http" => assert_eq!((status, body), (400, format!("{text}\n").into())),
            "grpc" | "grpc-web" | "grpc-web-text" => {
                assert_eq!((status, grpc.as_deref()), (200, Some("3")));
            }
            "connect stream" => {
                assert_eq!((status, body), (200, end_stream("invalid_argument", text).into()));
            }
            _ => {
                assert_eq!((status, &*kind), (400, "application/json"));
                assert_eq!(body, connect_error("invalid_argument", text));
            }
        }
    }
}

#[tokio::test]
async fn not_every_json_request_is_connect() {
    let layer = || ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(0)));
    let unserved = async |_| -> Response<Full<Bytes>> { unreachable!("not served") };
    for request in [
        request(Method::POST, "/", &[("content-type", "text/plain"), ("connect-timeout-ms", "1")]),
        request(Method::POST, "/", &[("content-type", "application/xml"), ("connect-timeout-ms", "1")]),
        request(Method::POST, "/?connect=v1", &[("content-type", "application/json")]),
        request(Method::GET, "/?connect=v10&xconnect=v1", &[]),
        request(Method::GET, "/", &[("connect-timeout-ms", "1")]),
        request(Method::POST, "/", &[("content-type", "application/connection")]),
        request(Method::POST, "/", &[("content-type", "application/grpcx")]),
    ] {
        let (_, kind, _, body) = read_response(serve(layer(), request, unserved).await).await;
        assert_eq!((&*kind, &*body), ("text/plain; charset=utf-8", &b"deadline exceeded\n"[..]));
    }
}

// During the response.

type Sender = tokio::sync::mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// Makes a stream that ends in this way, with the head of its protocol and the headers `more`.
async fn streaming(by: By, protocol: &str, more: &[(&str, &str)]) -> (Sender, ServerBody<ChannelBody>) {
    let call = call_of(protocol);
    let content_type = call.headers()["content-type"].clone();
    let (send, body) = channel_body();
    let body = Mutex::new(Some(body));
    let response = ended_by(by, call, async |_| {
        let mut response = Response::new(body.lock().unwrap().take().unwrap());
        response.headers_mut().insert("content-type", content_type.clone());
        for (name, value) in more {
            let name: http::HeaderName = name.parse().unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    });
    (send, response.await.into_body())
}

fn base64(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits: Vec<bool> =
        text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    bits.resize(bits.len().div_ceil(6) * 6, false);
    let digit = |bits: &[bool]| bits.iter().fold(0, |sum, &bit| sum << 1 | usize::from(bit));
    let mut digits: Vec<u8> = bits.chunks(6).map(|bits| DIGITS[digit(bits)]).collect();
    digits.resize(digits.len().div_ceil(4) * 4, b'=');
    digits
}

/// The frame that contains the status in each protocol.
fn closing(by: By, protocol: &str) -> Vec<u8> {
    let (_, grpc, code, text) = expected(by);
    let trailers = frame(0x80, format!("grpc-status: {grpc}\r\ngrpc-message: {text}\r\n").as_bytes());
    match protocol {
        "grpc-web" => trailers,
        "grpc-web-text" => base64(&trailers),
        _ => end_stream(code, text),
    }
}

const IN_BODY: [&str; 3] = ["grpc-web", "grpc-web-text", "connect stream"];

#[tokio::test(start_paused = true)]
async fn an_end_during_a_stream_is_its_last_frame() {
    for by in ALL {
        for protocol in IN_BODY {
            for cuts in [1, 3, 1000] {
                let (send, mut body) = streaming(by, protocol, &[]).await;
                let mut message = frame(0, b"hello");
                if protocol == "grpc-web-text" {
                    message = base64(&message);
                }
                for cut in message.chunks(cuts) {
                    send.send(Ok(Frame::data(Bytes::copy_from_slice(cut)))).unwrap();
                    assert!(body.frame().await.unwrap().unwrap().is_data());
                }
                let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(last, closing(by, protocol), "{by:?} {protocol}");
                assert!(body.is_end_stream() && body.frame().await.is_none());
                assert!(send.is_closed());
            }
            // The same without a message before it.
            let (_send, mut body) = streaming(by, protocol, &[]).await;
            let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(last, closing(by, protocol), "{by:?} {protocol}");
        }
        let (_send, mut body) = streaming(by, "grpc", &[]).await;
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], expected(by).1);
        assert_eq!(trailers["grpc-message"], expected(by).3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_contain_a_status_is_aborted() {
    for protocol in IN_BODY {
        // In the middle of a message.
        let (send, mut body) = streaming(By::Deadline, protocol, &[]).await;
        let cut = if protocol == "grpc-web-text" { &b"AAAA"[..] } else { &b"\0\0\0"[..] };
        send.send(Ok(Frame::data(Bytes::from_static(cut)))).unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(body.frame().await.unwrap().is_err(), "{protocol}");
        // With a content encoding, or with a known length.
        for more in [("content-encoding", "gzip"), ("content-length", "100")] {
            let (_send, mut body) = streaming(By::Deadline, protocol, &[more]).await;
            assert!(body.frame().await.unwrap().is_err(), "{protocol} {more:?}");
        }
        // With a response in another protocol.
        let (_send, mut body) =
            streaming(By::Deadline, protocol, &[("content-type", "text/plain")]).await;
        assert!(body.frame().await.unwrap().is_err(), "{protocol}");
    }
    // With a body of a known length, for which hyper writes the header.
    struct Sized(ChannelBody);
    impl Body for Sized {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(100)
        }
    }
    for protocol in ["grpc", "grpc-web", "connect stream"] {
        let (_send, body) = channel_body();
        let body = Mutex::new(Some(Sized(body)));
        let call = call_of(protocol);
        let content_type = call.headers()["content-type"].clone();
        let response = ended_by(By::Deadline, call, async |_| {
            let response = Response::builder().header("content-type", content_type.clone());
            response.body(body.lock().unwrap().take().unwrap()).unwrap()
        });
        let mut body = response.await.into_body();
        assert_eq!(body.size_hint().exact(), Some(100));
        assert!(body.frame().await.unwrap().is_err(), "{protocol}");
    }
    // A unary call of Connect has no frames.
    for protocol in &CONNECT_UNARY[..3] {
        let (_send, mut body) = streaming(By::Deadline, protocol, &[]).await;
        assert!(body.frame().await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_sent_its_status_sends_no_other() {
    for protocol in IN_BODY {
        let (send, mut body) = streaming(By::Deadline, protocol, &[]).await;
        let mut last = if protocol == "connect stream" {
            frame(2, b"{}")
        } else {
            frame(0x80, b"grpc-status: 0\r\n")
        };
        if protocol == "grpc-web-text" {
            last = base64(&last);
        }
        send.send(Ok(Frame::data(last.into()))).unwrap();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(body.frame().await.is_none(), "{protocol}");
    }
}

/// Data in two chunks.
struct Pieces(bytes::buf::Chain<Bytes, Bytes>);

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }
    fn chunk(&self) -> &[u8] {
        self.0.chunk()
    }
    fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Pieces(bytes.chain(Bytes::new()))
    }
}

#[tokio::test(start_paused = true)]
async fn frames_in_pieces_are_tracked() {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(receive);
    let body = Mutex::new(Some(http_body_util::StreamBody::new(stream)));
    let service = service_fn(|_: Request<()>| {
        let body = body.lock().unwrap().take().unwrap();
        async {
            let response = Response::builder().header("content-type", "application/connect+json");
            Ok::<_, Infallible>(response.body(body).unwrap())
        }
    });
    let layer = ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(50)));
    let response = layer.layer(service).oneshot(call_of("connect stream")).await.unwrap();
    let mut body = response.into_body();
    let (head, tail) = (Bytes::from(frame(0, b"hello")), Bytes::from(frame(0, b"world")));
    let pieces = Pieces(head.slice(..7).chain(Bytes::from([&head[7..], &tail].concat())));
    send.send(Ok::<_, Infallible>(Frame::data(pieces))).unwrap();
    let mut first = body.frame().await.unwrap().unwrap().into_data().unwrap_or_else(|_| panic!());
    assert_eq!(first.copy_to_bytes(first.remaining()), [head, tail].concat());
    let mut last = body.frame().await.unwrap().unwrap().into_data().unwrap_or_else(|_| panic!());
    let last = last.copy_to_bytes(last.remaining());
    assert_eq!(last, closing(By::Deadline, "connect stream"));
}

// A request may be dropped for other reasons than a client that has left.

#[tokio::test(start_paused = true)]
async fn a_timer_outside_of_the_layer_is_not_reported_as_the_client() {
    let seen = Mutex::new(None);
    let handler = service_fn(|_: Request<()>| {
        *seen.lock().unwrap() = Some(Context::current());
        pending::<Result<Response<Full<Bytes>>, BoxError>>()
    });
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let timeout = tower::timeout::Timeout::new(layer.layer(handler), ms(50));
    assert!(timeout.oneshot(Request::new(())).await.is_err());
    let end = common::ended(&seen.lock().unwrap().take().unwrap());
    assert_eq!(end.cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
    assert!(end.to_string().ends_with(": request dropped"), "{end}");
}

/// Without the headers of CORS, a browser hides the status.
#[tokio::test(start_paused = true)]
async fn the_headers_of_a_middleware_are_kept() {
    for protocol in PROTOCOLS {
        let passing = async |_| -> Response<AxumBody> {
            let ended = Context::current().with_timeout(ms(10)).sleep(LONG).await.unwrap_err();
            let mut response = ended.into_response();
            for (name, value) in [
                ("access-control-allow-origin", "*"),
                ("content-length", "7"),
                ("content-encoding", "gzip"),
                ("grpc-status", "0"),
            ] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        };
        let layer = ServerLayer::new(Context::background(), Inbound::new());
        let response = serve(layer, call_of(protocol), passing).await;
        assert_eq!(response.headers()["access-control-allow-origin"], "*", "{protocol}");
        if protocol != "http" {
            assert!(!response.headers().contains_key("content-encoding"), "{protocol}");
            assert!(!response.headers().contains_key("content-length"), "{protocol}");
            if protocol.starts_with("grpc") {
                assert_reported(By::Deadline, protocol, response).await;
            }
        }
    }
}
