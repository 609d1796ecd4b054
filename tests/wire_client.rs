//! The client's layer, and calls without it: what is sent, and how the server learns of the end.

mod common;
mod wire;

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_ctx::wire::{
    ClientBody, ClientLayer, DeadlineHeader, Inbound, Outbound, RequestBody, ServerLayer,
};
use tokio_ctx::{BoxError, Context};
use tower::{Layer, Service, ServiceExt, service_fn};

use common::{LONG, Wakes, ended, ms, poll};
use wire::{
    Version, assert_client_disconnected, channel_body, client, context_error, remote_server, serve,
};

fn request() -> Request<Empty<Bytes>> {
    Request::get("http://server.test/").body(Empty::new()).unwrap()
}

fn layer() -> ClientLayer {
    ClientLayer::new(Outbound::new())
}

/// A server that responds at once, and records the headers that it received.
fn record_headers(
    sent: Arc<Mutex<Vec<HeaderMap>>>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
> + Clone {
    service_fn(move |request: Request<Empty<Bytes>>| {
        sent.lock().unwrap().push(request.headers().clone());
        async { Ok(Response::new(Full::from("done"))) }
    })
}

#[tokio::test(start_paused = true)]
async fn a_call_sends_the_remaining_time_of_its_context() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let call = async |ctx: &Context, request: Request<_>, outbound: Outbound| {
        let service = ClientLayer::new(outbound).layer(record_headers(sent.clone()));
        let response = ctx.scope(async { service.oneshot(request).await }).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
        sent.lock().unwrap().pop().unwrap()
    };
    let ctx = Context::background().with_timeout(ms(300));
    let headers = call(&ctx, request(), Outbound::new()).await;
    assert_eq!(headers["grpc-timeout"], "300000u");
    assert!(headers["grpc-timeout"].is_sensitive(), "it fills no table of HTTP/2");
    let connect = Outbound::new().write([DeadlineHeader::Connect]).margin(ms(20));
    assert_eq!(call(&ctx, request(), connect).await["connect-timeout-ms"], "280");
    assert!(call(&ctx, request(), Outbound::new().write([])).await.is_empty());
    assert!(call(&Context::background(), request(), Outbound::new()).await.is_empty());

    // The context in the request precedes the current one.
    let nearer = ctx.with_timeout(ms(100));
    let mut own = request();
    own.extensions_mut().insert(nearer.clone());
    assert_eq!(call(&ctx, own, Outbound::new()).await["grpc-timeout"], "100000u");
}

#[tokio::test]
async fn an_ended_context_sends_nothing() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let ctx = Context::background().with_timeout(Duration::from_secs(60));
    let late = ClientLayer::new(Outbound::new().margin(Duration::from_secs(61)))
        .layer(record_headers(sent.clone()));
    let error = ctx.scope(async { late.oneshot(request()).await }).await.unwrap_err();
    assert!(context_error(error).is_deadline_exceeded());

    ctx.cancel_with("enough");
    let service = layer().layer(record_headers(sent.clone()));
    let error = ctx.scope(async { service.oneshot(request()).await }).await.unwrap_err();
    common::assert_same(&context_error(error), &ended(&ctx));
    assert!(sent.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_end_drops_the_call_and_is_its_error() {
    let drops = common::Drops::default();
    let ctx = Context::background().with_timeout(ms(50));
    let service = service_fn(|_: Request<Empty<Bytes>>| {
        let counted = drops.counted();
        async move {
            let _counted = counted;
            pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }
    });
    let mut call = pin!(ctx.scope(layer().layer(service).oneshot(request())));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    tokio::time::advance(ms(50)).await;
    let error = context_error(call.as_mut().await.unwrap_err());
    assert_eq!(drops.count(), 1, "before the call's own future is");
    common::assert_same(&error, &ended(&ctx));
}

#[tokio::test(start_paused = true)]
async fn the_end_aborts_a_body_and_drops_it() {
    let ctx = Context::background().with_cancel();
    let (send, body) = channel_body();
    let body = Mutex::new(Some(body));
    let service = service_fn(|_: Request<Empty<Bytes>>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let response = ctx.scope(layer().layer(service).oneshot(request())).await.unwrap();
    let mut body: ClientBody<_> = response.into_body();
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    assert!(!body.is_end_stream());
    ctx.cancel_with("enough");
    let error = context_error(body.frame().await.unwrap().unwrap_err());
    assert_eq!(error.cause().unwrap().to_string(), "enough");
    assert!(send.is_closed());
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

#[tokio::test]
async fn errors_of_the_call_and_of_the_body_are_unchanged() {
    let failing = service_fn(|_: Request<Empty<Bytes>>| async {
        Err::<Response<Full<Bytes>>, BoxError>("no route".into())
    });
    let error = layer().layer(failing).oneshot(request()).await.unwrap_err();
    assert_eq!(error.to_string(), "no route");

    let (send, body) = channel_body();
    send.send(Err("torn".into())).unwrap();
    let body = Mutex::new(Some(body));
    let service = service_fn(|_: Request<Empty<Bytes>>| {
        let body = body.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let response = layer().layer(service).oneshot(request()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap_err().to_string(), "torn");
}

/// A response that is held, and a body between two frames, keep no waker of the task that polled them.
#[tokio::test]
async fn a_response_that_is_held_keeps_no_waker() {
    for ctx in [Context::background().with_cancel(), Context::background().with_timeout(LONG)] {
        let (answer, receiver) = oneshot::channel();
        let receiver = Mutex::new(Some(receiver));
        let service = service_fn(|_: Request<Empty<Bytes>>| {
            let receiver = receiver.lock().unwrap().take().unwrap();
            async move { Ok::<_, Infallible>(Response::new(receiver.await.unwrap())) }
        });
        let (wakes, waker) = Wakes::new();
        let mut service = layer().layer(service);
        let mut call = pin!(ctx.sync_scope(|| service.call(request())));
        assert!(poll(call.as_mut(), &waker).is_pending());
        let (send, body) = channel_body();
        assert!(answer.send(body).is_ok());
        let Poll::Ready(Ok(response)) = poll(call.as_mut(), &waker) else { panic!("no response") };
        assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept by the response");

        let mut body = response.into_body();
        for last in [false, false, true] {
            assert!(poll(pin!(body.frame()), &waker).is_pending());
            assert!(Arc::strong_count(&wakes) > 3, "it does not wait");
            let frame = if last { Frame::trailers(HeaderMap::new()) } else { Frame::data("a".into()) };
            send.send(Ok(frame)).unwrap();
            assert!(matches!(poll(pin!(body.frame()), &waker), Poll::Ready(Some(Ok(_)))));
            assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept by a frame");
        }
        assert!(!ctx.is_done());
    }
}

// Over connections.

#[tokio::test]
async fn the_layer_around_the_client_of_hyper_util() {
    for version in [Version::Http1, Version::Http2] {
        let (server, mut contexts) = remote_server(version).await;
        let ctx = Context::background().with_timeout(common::LONG);
        // The same client for all calls: over HTTP/2 only the stream is reset, and the connection stays open.
        let client = layer().layer(client::<Empty<Bytes>>(version));
        let get = async |path| {
            let request =
                Request::get(format!("http://{}{path}", server.at)).body(Empty::new()).unwrap();
            ctx.scope(client.clone().oneshot(request)).await
        };
        let mut response = get("/stream").await.unwrap().into_body();
        assert!(response.frame().await.unwrap().is_ok());
        let streaming = contexts.recv().await.unwrap();
        let left = ctx.remaining().unwrap();
        assert!(streaming.remaining().unwrap() <= left + ms(1000));
        assert!(!streaming.is_done());

        let mut waiting = pin!(get("/wait"));
        let waited = tokio::select! {
            _ = waiting.as_mut() => unreachable!("no answer comes"),
            ctx = contexts.recv() => ctx.unwrap(),
        };
        assert!(!waited.is_done());

        ctx.cancel();
        assert!(context_error(waiting.await.unwrap_err()).is_canceled());
        assert!(context_error(response.frame().await.unwrap().unwrap_err()).is_canceled());
        assert_client_disconnected(&waited).await;
        assert_client_disconnected(&streaming).await;
    }
}

/// A plain HTTP/2 server, which reports the code with which each stream was reset.
async fn serve_resets() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<h2::Reason>, Arc<AtomicUsize>)
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, reasons) = mpsc::unbounded_channel();
    let request_count = Arc::new(AtomicUsize::new(0));
    let counts = request_count.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            counts.fetch_add(1, Ordering::SeqCst);
            let sender = sender.clone();
            tokio::spawn(async move {
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                sender.send(reason).unwrap();
            });
        }
    });
    (at, reasons, request_count)
}

#[tokio::test]
async fn an_end_resets_the_stream_and_keeps_the_connection() {
    let (at, mut reasons, request_count) = serve_resets().await;
    let client = layer().layer(client::<Empty<Bytes>>(Version::Http2));
    for round in 1..=3 {
        let ctx = Context::background().with_cancel();
        let request =
            Request::get(format!("http://{at}/")).extension(ctx.clone()).body(Empty::new()).unwrap();
        let call = tokio::spawn(client.clone().oneshot(request));
        // All calls use the only connection that is accepted.
        wire::eventually("the request arrives", || request_count.load(Ordering::SeqCst) == round).await;
        ctx.cancel();
        assert!(context_error(call.await.unwrap().unwrap_err()).is_canceled());
        assert_eq!(reasons.recv().await.unwrap(), h2::Reason::CANCEL);
    }
}

#[tokio::test]
async fn both_layers_carry_the_deadline_from_hop_to_hop() {
    // The first two of three services call the next one.
    let (seen, mut contexts) = mpsc::unbounded_channel();
    let mut next: Option<wire::Server> = None;
    for _ in 0..3 {
        let (seen, ask) = (seen.clone(), next.as_ref().map(|server| server.at));
        let onward = layer().layer(client::<Empty<Bytes>>(Version::Http2));
        let service = service_fn(move |_: Request<hyper::body::Incoming>| {
            let (seen, onward) = (seen.clone(), onward.clone());
            async move {
                seen.send(Context::current()).unwrap();
                let Some(at) = ask else { return pending().await };
                let request = Request::get(format!("http://{at}/")).body(Empty::new()).unwrap();
                let answer = onward.oneshot(request).await?;
                Ok::<_, BoxError>(Response::new(answer.into_body()))
            }
        });
        let layer = ServerLayer::new(Context::background(), Inbound::new());
        let before = next.replace(serve(Version::Http2, layer.layer(service)).await);
        // The services run as long as the test.
        std::mem::forget(before);
    }
    let edge = next.unwrap();
    let ctx = Context::background().with_timeout(common::LONG);
    let mut headers = HeaderMap::new();
    ctx.inject(&mut headers).unwrap();
    let call =
        tokio::spawn(edge.send("/", &[("grpc-timeout", headers["grpc-timeout"].to_str().unwrap())]));
    let mut hops = Vec::new();
    for _ in 0..3 {
        hops.push(contexts.recv().await.unwrap());
    }
    assert!(hops.iter().all(|hop| !hop.is_done() && hop.deadline().is_some()));
    call.abort();
    for hop in &hops {
        assert_client_disconnected(hop).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_a_body_is_progress_for_an_idle_limit() {
    let (frames, body) = channel_body();
    let body = Arc::new(Mutex::new(Some(body)));
    let service = service_fn(move |_: Request<Empty<Bytes>>| {
        let body = body.lock().unwrap().take().unwrap();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let ctx = Context::background().with_timeout(LONG).detach().with_idle(ms(800));
    let call = ctx.scope(async { layer().layer(service).oneshot(request()).await });
    let mut body = call.await.unwrap().into_body();
    let sender = async {
        for _ in 0..5 {
            tokio::time::sleep(ms(700)).await;
            frames.send(Ok(Frame::data(Bytes::from("1234")))).unwrap();
        }
        pending::<()>().await;
    };
    let reader = async {
        loop {
            match body.frame().await.expect("more is to come") {
                Ok(frame) => assert_eq!(frame.into_data().unwrap(), "1234"),
                Err(error) => return context_error(error),
            }
        }
    };
    let ended = tokio::select! { ended = reader => ended, () = sender => unreachable!() };
    let stalled = ended.cause_as::<tokio_ctx::budget::NoProgress>().expect("it stalls");
    assert_eq!((stalled.limit(), stalled.bytes()), (ms(800), Some(20)));
}

/// A request that waits for its connection is polled long after it was made.
#[tokio::test(start_paused = true)]
async fn the_first_frame_of_a_request_is_progress_as_well() {
    let ctx = Context::background().with_idle(ms(800));
    let (frames, body) = channel_body();
    let mut body = RequestBody::new(&ctx, body);
    for _ in 0..3 {
        frames.send(Ok(Frame::data(Bytes::from("1234")))).unwrap();
        tokio::time::sleep(ms(700)).await;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "1234");
    }
    assert!(body.frame().await.unwrap().is_err());
    let stalled = ended(&ctx);
    let stalled = stalled.cause_as::<tokio_ctx::budget::NoProgress>().expect("it stalls");
    assert_eq!(stalled.bytes(), Some(12));
}
