//! Bodies are dropped when their context ends, even if nothing polls them, over real connections and in races with a
//! poll. Work that outlives its request ends with the service.

mod common;
mod wire;

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_ctx::wire::{
    ClientLayer, Inbound, Outbound, RequestBody, RequestEnd, ServerBody, ServerLayer,
};
use tokio_ctx::{BoxError, Context, Error, Shutdown};
use tower::{Layer, ServiceExt, service_fn};

use common::{Wakes, ended, ms, poll};
use wire::{
    ChannelBody, Version, assert_client_disconnected, channel_body, client, eventually, remote_server,
    serve,
};

/// A body that has a frame at every poll, or never. It reports its drop, and the error of the context at that time.
struct Holder {
    is_ready: bool,
    dropped: Option<oneshot::Sender<Option<Error>>>,
}

impl Holder {
    fn new(is_ready: bool) -> (Holder, oneshot::Receiver<Option<Error>>) {
        let (sender, receiver) = oneshot::channel();
        (Holder { is_ready, dropped: Some(sender) }, receiver)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.dropped.take().unwrap().send(Context::current().err()).ok();
    }
}

impl Body for Holder {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static CHUNK: [u8; 16 << 10] = [b'x'; 16 << 10];
        match self.is_ready {
            true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK))))),
            false => Poll::Pending,
        }
    }
}

fn layer(inbound: Inbound) -> ServerLayer {
    ServerLayer::new(Context::background(), inbound)
}

/// A server that responds with such a body to each request, and the reports of these bodies.
async fn holding(
    version: Version,
    layer: ServerLayer,
    is_ready: bool,
) -> (wire::Server, mpsc::UnboundedReceiver<(Context, oneshot::Receiver<Option<Error>>)>) {
    let (seen, bodies) = mpsc::unbounded_channel();
    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
        let (body, dropped) = Holder::new(is_ready);
        seen.send((Context::current(), dropped)).unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    (serve(version, layer.layer(service)).await, bodies)
}

/// A client that sends a request, and then reads nothing.
async fn ask_and_stop_reading(version: Version, at: SocketAddr) -> Box<dyn Send> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    match version {
        Version::Http1 => {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: server.test\r\n\r\n").await.unwrap();
            Box::new(stream)
        }
        Version::Http2 => {
            let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::get(format!("http://{at}/")).body(()).unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            // No capacity is released, so the window stays exhausted.
            let response = response.await.unwrap();
            Box::new((client, response, connection))
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_nothing_beyond_the_deadline() {
    for version in [Version::Http1, Version::Http2] {
        for is_ready in [true, false] {
            let layer = layer(Inbound::new().max_budget(ms(200)));
            let (server, mut bodies) = holding(version, layer, is_ready).await;
            let client = ask_and_stop_reading(version, server.at).await;
            let (ctx, mut dropped) = bodies.recv().await.unwrap();
            assert!(dropped.try_recv().is_err(), "{version:?}: the body is held until then");
            let end = dropped.await.unwrap().expect("the body is dropped after the end, in its context");
            assert!(end.is_deadline_exceeded() && ctx.is_done(), "{version:?}");
            let late = tokio::time::Instant::now() - ctx.deadline().unwrap();
            assert!(late < ms(1000), "{version:?}: {late:?}");
            drop(client);
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_nothing_after_the_service_stops() {
    for version in [Version::Http1, Version::Http2] {
        let service = Context::background().with_cancel();
        let layer = ServerLayer::new(service.clone(), Inbound::new());
        let (server, mut bodies) = holding(version, layer, true).await;
        let client = ask_and_stop_reading(version, server.at).await;
        let (_, mut dropped) = bodies.recv().await.unwrap();
        tokio::time::sleep(ms(50)).await;
        assert!(dropped.try_recv().is_err());
        service.cancel_with("maintenance");
        assert!(dropped.await.unwrap().unwrap().is_canceled(), "{version:?}");
        drop(client);
    }
}

/// Over HTTP/1 the connection is closed as well, because hyper polls the body when it is woken.
#[tokio::test]
async fn an_http1_connection_of_such_a_client_closes() {
    let (body, dropped) = Holder::new(true);
    let body = Arc::new(Mutex::new(Some(body)));
    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let service = layer(Inbound::new().max_budget(ms(300))).layer(service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = ask_and_stop_reading(Version::Http1, listener.local_addr().unwrap()).await;
    let (stream, _) = listener.accept().await.unwrap();
    let service = hyper_util::service::TowerToHyperService::new(service);
    let http = hyper::server::conn::http1::Builder::new();
    let served = tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
    dropped.await.unwrap();
    let served = tokio::time::timeout(ms(20_000), served).await.expect("it closes").unwrap();
    assert!(served.unwrap_err().is_user(), "broken off by the body's error");
    drop(client);
}

/// The last bodies are not polled, because the first ones have exhausted the window of the connection.
#[tokio::test]
async fn a_stream_without_a_window_holds_nothing_beyond_the_deadline() {
    let (server, mut bodies) =
        holding(Version::Http2, layer(Inbound::new().max_budget(ms(300))), true).await;
    let stream = TcpStream::connect(server.at).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut kept = Vec::new();
    for _ in 0..4 {
        let request = Request::get(format!("http://{}/", server.at)).body(()).unwrap();
        kept.push(client.send_request(request, true).unwrap().0.await.unwrap());
        tokio::time::sleep(ms(10)).await;
    }
    for _ in 0..4 {
        let (_, dropped) = bodies.recv().await.unwrap();
        assert!(dropped.await.unwrap().unwrap().is_deadline_exceeded());
    }
}

/// Over HTTP/1, hyper notices that a client has left when it reads the end of the stream after a complete request. A
/// second request, or a body that stops short or that the handler does not read, prevents that. If this test fails after
/// an update of hyper, hyper has changed: adapt the traps in the documentation of `wire`.
#[tokio::test]
async fn unread_bytes_hide_an_http1_client_that_has_left() {
    const GET: &str = "GET / HTTP/1.1\r\nhost: server.test\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nhost: server.test\r\ncontent-length: 4\r\n\r\n";
    const READ: &str = "POST /read HTTP/1.1\r\nhost: server.test\r\ncontent-length: 4\r\n\r\n";
    for (sent, is_hidden) in [
        (GET.to_string(), false),
        (format!("{GET}{GET}"), true),
        // hyper reads one chunk of a body ahead of the handler.
        (format!("{POST}body"), false),
        (format!("{POST}body{GET}"), true),
        (format!("{POST}bo"), true),
        (POST.replace('4', "1000000") + &"x".repeat(50_000), true),
        (format!("{READ}body"), false),
        (format!("{READ}body{GET}"), true),
    ] {
        let (seen, mut contexts) = mpsc::unbounded_channel();
        let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let seen = seen.clone();
            async move {
                if request.uri().path() == "/read" {
                    request.body_mut().collect().await.unwrap();
                }
                seen.send(Context::current()).unwrap();
                pending::<()>().await;
                drop(request);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let max = if is_hidden { ms(300) } else { common::LONG };
        let server = serve(Version::Http1, layer(Inbound::new().max_budget(max)).layer(service)).await;
        let mut stream = TcpStream::connect(server.at).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let ctx = contexts.recv().await.unwrap();
        drop(stream);
        let end = tokio::time::timeout(ms(20_000), ctx.done()).await.expect("it ends");
        if is_hidden {
            assert!(end.is_deadline_exceeded(), "{sent:?}: {end}");
        } else {
            assert_eq!(end.cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped), "{sent:?}: {end}");
        }
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_client_that_stops_reading() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(100)).cleanup(ms(2000));
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    let (server, mut bodies) = holding(Version::Http2, layer, true).await;
    let client = ask_and_stop_reading(Version::Http2, server.at).await;
    let (_, dropped) = bodies.recv().await.unwrap();
    shutdown.begin("over");
    let start = std::time::Instant::now();
    let report = shutdown.wait().await;
    dropped.await.unwrap();
    assert!(start.elapsed() < ms(1500), "it went with the hard end: {:?}", start.elapsed());
    assert_eq!(report.overdue().len(), 1, "{report}");
    drop(client);
}

/// The response is complete, but the message waits for a window, and the trailers wait for the message.
#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_client_that_takes_no_grpc_response() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(100)).cleanup(ms(2000));
    let service = service_fn(|_: Request<hyper::body::Incoming>| {
        let (send, body) = channel_body();
        send.send(Ok(Frame::data("hello".into()))).unwrap();
        send.send(Ok(Frame::trailers(http::HeaderMap::new()))).unwrap();
        let response = Response::builder().header("content-type", "application/grpc");
        std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
    });
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    let server = serve(Version::Http2, layer.layer(service)).await;
    let stream = TcpStream::connect(server.at).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (mut client, connection) =
        builder.initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/", server.at))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    shutdown.begin("over");
    let start = std::time::Instant::now();
    let report = shutdown.wait().await;
    assert!(start.elapsed() < ms(1500), "it went with the hard end: {:?}", start.elapsed());
    assert_eq!(report.overdue().len(), 1, "{report}");
    drop((client, response));
}

/// Whatever comes first, nothing is left that the shutdown would wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_end_races_with_a_complete_response() {
    for round in 0..1000 {
        let shutdown = Shutdown::new(&Context::background()).grace(common::HANG).cleanup(common::HANG);
        let handler = service_fn(|_: Request<()>| {
            let (send, body) = channel_body();
            send.send(Ok(Frame::data("hello".into()))).unwrap();
            send.send(Ok(Frame::trailers(http::HeaderMap::new()))).unwrap();
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let request = Request::post("/").header("content-type", "application/grpc").body(()).unwrap();
        let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
        let response = layer.layer(handler).oneshot(request).await.unwrap();
        let forcing = shutdown.clone();
        let forced = tokio::spawn(async move { forcing.force("now") });
        let read = tokio::spawn(async move {
            let mut body = response.into_body();
            match round % 3 {
                0 => {}
                1 => drop(body.frame().await.unwrap().unwrap()),
                _ => assert_eq!(body.collect().await.unwrap().to_bytes(), "hello"),
            }
        });
        let wait = tokio::time::timeout(common::HANG / 2, shutdown.wait());
        let _report = wait.await.expect("nothing is left");
        forced.await.unwrap();
        read.await.unwrap();
    }
}

// The client's side.

#[tokio::test]
async fn a_stream_that_is_held_ends_at_the_server() {
    for version in [Version::Http1, Version::Http2] {
        let (server, mut contexts) = remote_server(version).await;
        let client = ClientLayer::new(Outbound::new()).layer(client::<Empty<Bytes>>(version));
        for polled in [false, true] {
            let ctx = Context::background().with_cancel();
            let request =
                Request::get(format!("http://{}/stream", server.at)).body(Empty::new()).unwrap();
            let mut response = ctx.scope(client.clone().oneshot(request)).await.unwrap();
            if polled {
                response.frame().await.unwrap().unwrap();
                assert!(poll(pin!(response.frame()), Waker::noop()).is_pending());
            }
            let there = contexts.recv().await.unwrap();
            assert!(!there.is_done());
            ctx.cancel();
            assert_client_disconnected(&there).await;
            drop(response);
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_held_and_always_ready_ends_at_the_server() {
    for version in [Version::Http1, Version::Http2] {
        let (server, mut bodies) = holding(version, layer(Inbound::new()), true).await;
        let client = ClientLayer::new(Outbound::new()).layer(client::<Empty<Bytes>>(version));
        let ctx = Context::background().with_cancel();
        let request = Request::get(format!("http://{}/", server.at)).body(Empty::new()).unwrap();
        let mut response = ctx.scope(client.oneshot(request)).await.unwrap();
        response.frame().await.unwrap().unwrap();
        let (there, mut dropped) = bodies.recv().await.unwrap();
        tokio::time::sleep(ms(50)).await;
        assert!(dropped.try_recv().is_err());
        ctx.cancel();
        dropped.await.unwrap();
        assert_client_disconnected(&there).await;
        let error = loop {
            match response.frame().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(wire::context_error(error).is_canceled());
    }
}

/// A plain HTTP/2 server, which responds with a head, or not at all, and reports how each stream was reset.
async fn serve_resets(
    answers: bool,
) -> (SocketAddr, mpsc::UnboundedReceiver<h2::Reason>, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, reasons) = mpsc::unbounded_channel();
    let request_count = Arc::new(AtomicUsize::new(0));
    let counts = request_count.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((mut request, mut respond))) = connection.accept().await {
            let (sender, counts) = (sender.clone(), counts.clone());
            tokio::spawn(async move {
                let first = request.body_mut().data().await.unwrap().unwrap();
                request.body_mut().flow_control().release_capacity(first.len()).unwrap();
                counts.fetch_add(1, Ordering::SeqCst);
                let mut open = None;
                let reason = if answers {
                    let send = open.insert(respond.send_response(Response::new(()), false).unwrap());
                    std::future::poll_fn(|cx| send.poll_reset(cx)).await
                } else {
                    std::future::poll_fn(|cx| respond.poll_reset(cx)).await
                };
                sender.send(reason.unwrap()).unwrap();
            });
        }
    });
    (at, reasons, request_count)
}

/// Makes calls whose request body is still being sent.
async fn a_call_that_is_still_being_sent<B>(as_body: impl Fn(&Context, ChannelBody) -> B)
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    for answers in [false, true] {
        let (at, mut reasons, request_count) = serve_resets(answers).await;
        let client = ClientLayer::new(Outbound::new()).layer(client::<B>(Version::Http2));
        for round in 1..=3 {
            let ctx = Context::background().with_cancel();
            let (send, body) = channel_body();
            send.send(Ok(Frame::data("hello".into()))).unwrap();
            let request = Request::post(format!("http://{at}/")).body(as_body(&ctx, body)).unwrap();
            let call = tokio::spawn(ctx.scope(client.clone().oneshot(request)));
            eventually("it arrives", || request_count.load(Ordering::SeqCst) == round).await;
            let held = if answers { Ok(call.await.unwrap().unwrap()) } else { Err(call) };
            assert!(!send.is_closed());
            ctx.cancel();
            assert_eq!(reasons.recv().await.unwrap(), h2::Reason::CANCEL, "{answers}");
            assert!(send.is_closed(), "the body is gone");
            match held {
                Ok(mut response) => {
                    let error = response.frame().await.unwrap().unwrap_err();
                    assert!(wire::context_error(error).is_canceled());
                }
                Err(call) => {
                    let error = call.await.unwrap().unwrap_err();
                    assert!(wire::context_error(error).is_canceled());
                }
            }
        }
    }
}

#[tokio::test]
async fn an_open_request_fails_at_the_end_and_resets_its_stream() {
    a_call_that_is_still_being_sent(RequestBody::new).await;
    a_call_that_is_still_being_sent(|_, body| axum::body::Body::new(body)).await;
    a_call_that_is_still_being_sent(|_, body| tonic::body::Body::new(body)).await;
}

/// Complete bodies are sent, and report their size.
#[tokio::test]
async fn a_complete_request_is_sent_unchanged() {
    let ctx = Context::background().with_cancel();
    let bound = RequestBody::new(&ctx, http_body_util::Full::<Bytes>::from("whole"));
    assert_eq!(bound.size_hint().exact(), Some(5));
    ctx.cancel();
    assert_eq!(bound.collect().await.unwrap().to_bytes(), "whole");

    let ctx = Context::background().with_cancel();
    let (send, body) = channel_body();
    let mut bound = RequestBody::new(&ctx, body);
    for text in ["a", "b", "c"] {
        send.send(Ok(Frame::data(text.into()))).unwrap();
        assert_eq!(bound.frame().await.unwrap().unwrap().into_data().unwrap(), text);
    }
    send.send(Err("torn".into())).unwrap();
    assert_eq!(bound.frame().await.unwrap().unwrap_err().to_string(), "torn");
    assert!(bound.frame().await.is_none() && bound.is_end_stream());

    // A body that is always ready ends as well.
    let (body, mut dropped) = Holder::new(true);
    let mut bound = RequestBody::new(&ctx, body);
    for _ in 0..3 {
        bound.frame().await.unwrap().unwrap();
    }
    ctx.cancel_with("enough");
    let error = loop {
        if let Err(error) = bound.frame().await.unwrap() {
            break error;
        }
    };
    assert!(error.to_string().ends_with(": enough"), "{error}");
    assert!(dropped.try_recv().is_ok());
}

// In the process: races, panics, and ends without a runtime.

/// Returns the body of a response of a handler, whose service has the context `service`.
async fn answered<B>(service: &Context, body: B) -> ServerBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let body = Mutex::new(Some(body));
    let handler = service_fn(|_: Request<()>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let layer = ServerLayer::new(service.clone(), Inbound::new());
    layer.layer(handler).oneshot(Request::new(())).await.unwrap().into_body()
}

/// Another runtime, in which something waits for the same context, shuts down. This wakes all waits of the context. A body that is
/// not polled after that is dropped at the end nevertheless.
#[test]
fn a_body_is_dropped_although_another_runtime_has_shut_down() {
    for is_polled_again in [true, false] {
        let ctx = Context::background().with_timeout(common::LONG);
        let (other, here) = (common::current_thread(), common::current_thread());
        let _here = here.enter();
        let (body, mut dropped) = Holder::new(true);
        let mut bound = RequestBody::new(&ctx, body);
        let mut wait = Box::pin(ctx.done_owned());
        {
            let _other = other.enter();
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        }
        let mut poll_body = || {
            let polled = poll(pin!(bound.frame()), Waker::noop());
            assert!(matches!(polled, Poll::Ready(Some(Ok(_)))));
        };
        // Registered from the second frame on.
        poll_body();
        poll_body();
        drop(other);
        if is_polled_again {
            poll_body();
        }
        ctx.cancel();
        here.block_on(common::run_ready_tasks());
        assert!(dropped.try_recv().is_ok(), "is still held");
    }
}

#[test]
fn a_body_is_dropped_without_a_runtime() {
    let service = Context::background().with_cancel();
    let (body, mut dropped) = Holder::new(false);
    let held = futures::executor::block_on(answered(&service, body));
    assert!(dropped.try_recv().is_err());
    service.cancel();
    assert!(dropped.try_recv().unwrap().unwrap().is_canceled(), "dropped during the cancel");
    assert!(!held.is_end_stream(), "the reader has not seen the end yet");
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("on purpose");
        }
    }
}

impl Body for PanicsWhenDropped {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[test]
fn a_body_that_panics_when_dropped_affects_no_other() {
    let service = Context::background().with_cancel();
    let (body, mut dropped) = Holder::new(false);
    let (first, second) = futures::executor::block_on(async {
        (answered(&service, PanicsWhenDropped).await, answered(&service, body).await)
    });
    service.cancel();
    assert!(dropped.try_recv().unwrap().is_some());
    drop((first, second));
}

/// The drop happens in the thread that ends the context, and must not prevent the wake-up of the reader.
#[test]
fn the_reader_of_a_body_that_panics_when_dropped_is_woken() {
    let ctx = Context::background().with_cancel();
    let mut bound = RequestBody::new(&ctx, PanicsWhenDropped);
    let (wakes, waker) = Wakes::new();
    assert!(poll(pin!(bound.frame()), &waker).is_pending());
    ctx.cancel();
    assert_eq!(wakes.count(), 1);
    assert!(matches!(poll(pin!(bound.frame()), &waker), Poll::Ready(Some(Err(_)))));
}

/// A body that calls a function when it is asked for its size.
struct CallsAtItsSize<F>(F);

impl<F: Fn()> Body for CallsAtItsSize<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> http_body::SizeHint {
        (self.0)();
        http_body::SizeHint::default()
    }
}

/// While the size is read, the body is not in its slot.
#[test]
fn an_end_while_the_size_is_read_wakes_the_reader() {
    for panics in [false, true] {
        let ctx = Context::background().with_cancel();
        let canceler = ctx.canceler();
        let end = move || {
            canceler.cancel();
            assert!(!panics, "on purpose");
        };
        let mut bound = RequestBody::new(&ctx, CallsAtItsSize(end));
        let (wakes, waker) = Wakes::new();
        assert!(poll(pin!(bound.frame()), &waker).is_pending());
        let size = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bound.size_hint()));
        assert_eq!((size.is_err(), wakes.count()), (panics, 1));
        assert!(matches!(poll(pin!(bound.frame()), &waker), Poll::Ready(Some(Err(_)))));
    }
}

/// A body that panics when polled, by the layer if it is sized, or by the reader; or when it is asked for its size or its
/// end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panics {
    WhenPolled { is_sized: bool },
    AtItsSize,
    AtItsEnd,
}

impl Body for Panics {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("on purpose")
    }

    fn is_end_stream(&self) -> bool {
        if *self == Panics::AtItsEnd { panic!("on purpose") } else { false }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Panics::WhenPolled { is_sized: true } => http_body::SizeHint::with_exact(9),
            Panics::AtItsSize => panic!("on purpose"),
            _ => Default::default(),
        }
    }
}

#[tokio::test]
async fn a_body_that_panics_is_the_cause() {
    let polled = [true, false].map(|is_sized| Panics::WhenPolled { is_sized });
    for panics in polled.into_iter().chain([Panics::AtItsSize, Panics::AtItsEnd]) {
        let seen = Arc::new(Mutex::new(None));
        let slot = seen.clone();
        let handler = service_fn(move |_: Request<()>| {
            *slot.lock().unwrap() = Some(Context::current());
            async move { Ok::<_, Infallible>(Response::new(panics)) }
        });
        let layer = layer(Inbound::new().max_budget(common::LONG));
        let answer = tokio::spawn(async move {
            layer.layer(handler).oneshot(Request::new(())).await.unwrap().collect().await
        });
        assert!(answer.await.unwrap_err().is_panic());
        let end = ended(&seen.lock().unwrap().take().unwrap());
        assert_eq!(end.cause_as::<RequestEnd>(), Some(&RequestEnd::Panicked), "{panics:?}");
        assert_eq!(Context::current().deadline(), None, "nothing is left current");
    }
}

/// A transport that polled it again would otherwise send a part of the body as a complete response.
#[tokio::test]
async fn a_body_that_has_panicked_is_not_reported_as_complete() {
    let (send, body) = channel_body();
    let body = body.map_frame(|frame| if frame.is_trailers() { panic!("on purpose") } else { frame });
    let mut body = answered(&Context::background(), body).await;
    send.send(Ok(Frame::data("a".into()))).unwrap();
    body.frame().await.unwrap().unwrap();
    send.send(Ok(Frame::trailers(http::HeaderMap::new()))).unwrap();
    for _ in 0..2 {
        let frame = std::panic::AssertUnwindSafe(body.frame());
        assert!(futures::FutureExt::catch_unwind(frame).await.is_err());
    }
}

/// The first time that it has to wait, it needs a timer, and there is none.
#[test]
fn a_request_body_that_cannot_wait_is_not_reported_as_complete() {
    let ctx = Context::background().with_timeout(common::LONG);
    let (_send, body) = channel_body();
    let mut body = RequestBody::new(&ctx, body);
    for _ in 0..2 {
        common::panic_text(|| poll(pin!(body.frame()), Waker::noop()));
        assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
    }
}

/// The body ends its context while it is polled.
#[tokio::test]
async fn a_body_may_end_its_own_context() {
    for is_ready in [true, false] {
        let service = Context::background().with_cancel();
        let canceler = service.canceler();
        let frames = futures::stream::poll_fn(move |_| {
            canceler.cancel_with("enough");
            match is_ready {
                true => Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(Bytes::from("more"))))),
                false => Poll::Pending,
            }
        });
        let mut body = answered(&service, http_body_util::StreamBody::new(frames)).await;
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().ends_with(": enough"), "{error}");
        assert!(body.frame().await.is_none());
    }
}

/// The end races with a poll, with a drop, or with neither. The body is dropped once, and its reader is woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_races_polls_and_drops() {
    for round in 0..600 {
        let service = Context::background().with_cancel();
        let (body, dropped) = Holder::new(round % 4 == 0);
        let mut held = answered(&service, body).await;
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let ending = std::thread::spawn({
            let (barrier, canceler) = (barrier.clone(), service.canceler());
            move || {
                barrier.wait();
                canceler.cancel();
            }
        });
        let using = tokio::spawn(async move {
            tokio::task::block_in_place(|| barrier.wait());
            match round % 3 {
                0 => drop(held),
                // Reads until the body ends.
                1 => while let Some(Ok(_)) = held.frame().await {},
                _ => {
                    let _polled = poll(pin!(held.frame()), Waker::noop());
                    let _size = (held.size_hint(), held.is_end_stream());
                    pending::<()>().await;
                }
            }
        });
        tokio::time::timeout(common::HANG, dropped).await.expect("it goes").unwrap();
        ending.join().unwrap();
        if round % 3 != 2 {
            tokio::time::timeout(common::HANG, using).await.expect("it is woken").unwrap();
        } else {
            using.abort();
        }
    }
}

/// The size of a body is read, and the body is moved to another task, between two polls.
#[tokio::test]
async fn the_end_wakes_the_task_that_polled_last() {
    let service = Context::background().with_cancel();
    let (_send, body) = channel_body();
    let mut held = answered(&service, body).await;
    let tasks = [(); 2].map(|()| Wakes::new());
    for (_, waker) in &tasks {
        assert!(poll(pin!(held.frame()), waker).is_pending());
        assert!(!held.is_end_stream() && held.size_hint().exact().is_none());
    }
    assert_eq!(Arc::strong_count(&tasks[0].0), 2, "the first one's waker is gone");
    service.cancel();
    assert_eq!((tasks[0].0.count(), tasks[1].0.count()), (0, 1));
    assert!(held.frame().await.unwrap().is_err());
}

// Beyond the request.

#[tokio::test]
async fn work_beyond_a_request_ends_with_the_service() {
    struct Tenant(u8);
    for nested in [false, true] {
        for ends in [0, 1] {
            let services = [(); 2].map(|()| Context::background().with_cancel());
            let seen = Arc::new(Mutex::new(None));
            let slot = seen.clone();
            let handler = service_fn(move |_: Request<()>| {
                let ctx = Context::current().with_value(Tenant(7)).with_timeout(common::LONG).detach();
                *slot.lock().unwrap() = Some((ctx.clone(), ctx.beyond_request()));
                async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
            });
            let inner = ServerLayer::new(services[0].clone(), Inbound::new().max_budget(common::LONG));
            let outer = ServerLayer::new(services[1].clone(), Inbound::new().max_budget(common::LONG));
            if nested {
                outer.layer(inner.layer(handler)).oneshot(Request::new(())).await.unwrap();
            } else {
                inner.layer(handler).oneshot(Request::new(())).await.unwrap();
            }
            let (request, beyond) = seen.lock().unwrap().take().unwrap();
            assert_eq!(ended(&request).cause_as::<RequestEnd>(), Some(&RequestEnd::Answered));
            assert!(!beyond.is_done() && beyond.deadline().is_none());
            assert_eq!(beyond.value::<Tenant>().unwrap().0, 7);
            // A second call returns an equal context.
            assert!(!beyond.beyond_request().is_done());
            services[ends].cancel();
            assert_eq!(beyond.is_done(), nested || ends == 0, "{nested} {ends}");
        }
    }
    // Without a request, it is the same context.
    let ctx = Context::background().with_cancel();
    let same = ctx.beyond_request();
    ctx.cancel();
    assert!(same.is_done() && !Context::background().beyond_request().is_done());
}

/// An upgraded connection, such as a WebSocket, outlives its request, and ends with the service.
#[tokio::test]
async fn an_upgraded_connection_ends_with_the_shutdown() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(100));
    let (seen, mut contexts) = mpsc::unbounded_channel();
    let tracked = shutdown.clone();
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let ctx = Context::current();
        seen.send(ctx.clone()).unwrap();
        let socket = ctx.beyond_request();
        let upgrade = hyper::upgrade::on(&mut request);
        tracked.spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut byte = [0];
            // Sends each byte back.
            while let Ok(Ok(1..)) = socket.run(stream.read(&mut byte)).await {
                stream.write_all(&byte).await.unwrap();
            }
            stream.write_all(b"!").await.unwrap();
        });
        let upgraded = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        async move { Ok::<_, Infallible>(upgraded.body(Empty::<Bytes>::new()).unwrap()) }
    });
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new().max_budget(common::LONG));
    let service = layer.layer(service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(service);
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(stream), service).with_upgrades().await.unwrap();
    });
    let mut client = TcpStream::connect(at).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: server.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        received.push(client.read_u8().await.unwrap());
    }
    assert!(received.starts_with(b"HTTP/1.1 101"));
    let request = contexts.recv().await.unwrap();
    eventually("the request is over", || request.is_done()).await;
    for byte in *b"echo" {
        client.write_u8(byte).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), byte);
    }
    shutdown.begin("over");
    let report = shutdown.wait().await;
    assert_eq!(report.overdue().len(), 1, "the socket's task, which had the grace: {report}");
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

/// Counts the bodies that have not been dropped.
#[tokio::test]
async fn complete_bodies_release_what_they_hold() {
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    struct Counted<B>(B);
    impl<B> Drop for Counted<B> {
        fn drop(&mut self) {
            LEFT.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let service = Context::background().with_cancel();
    for round in 0..100 {
        LEFT.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(());
        let (send, body) = channel_body();
        let body = body.map_frame(move |frame| {
            let _kept = &counted;
            frame
        });
        let mut held = answered(&service, body).await;
        send.send(Ok(Frame::data("a".into()))).unwrap();
        held.frame().await.unwrap().unwrap();
        if round % 2 == 0 {
            drop(send);
            assert!(held.frame().await.is_none());
            assert_eq!(LEFT.load(Ordering::SeqCst), 0, "before it is dropped");
        }
        drop(held);
        assert_eq!(LEFT.load(Ordering::SeqCst), 0);
    }
}
