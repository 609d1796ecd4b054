//! Forwarded requests: which of two contexts applies, the time of sending, readiness that is released, the rules of a
//! route, and handlers that finish without their client.

mod common;
mod wire;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use tokio::sync::mpsc;
use tokio_ctx::wire::{
    Budget, ClientLayer, DeadlineHeader, FinishLayer, Inbound, Outbound, RequestEnd, ServerLayer, Travel,
};
use tokio_ctx::{BoxError, Context, Shutdown};
use tower::{Layer, Service, ServiceExt, service_fn};

use common::{LONG, ended, ms, poll};
use wire::{Version, channel_body, context_error, eventually, serve};

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn request() -> Request<Empty<Bytes>> {
    Request::get("http://server.test/").body(Empty::new()).unwrap()
}

/// A server that sends the headers that it received to `sent`.
fn record_headers(
    sent: Arc<Mutex<Vec<HeaderMap>>>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Future<Output = Answer> + Send,
> + Clone
+ Send {
    service_fn(move |request: Request<Empty<Bytes>>| {
        sent.lock().unwrap().push(request.headers().clone());
        ready(Ok(Response::new(Full::from("done"))))
    })
}

struct Tenant(&'static str);

impl Travel for Tenant {
    const NAME: &'static str = "x-tenant";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        (text == "blue").then_some(Tenant("blue"))
    }
}

struct User(u64);

impl Travel for User {
    const NAME: &'static str = "user";
    fn encode(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }
    fn decode(text: &str) -> Option<Self> {
        text.parse().ok().map(User)
    }
}

// The nearer of two contexts.

/// A reverse proxy forwards the request that it received, with its extensions.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_forwarded_within_less_time_sends_that_time() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let outbound = Outbound::new().carry::<Tenant>().carry_in_baggage::<User>();
    let upstream = ClientLayer::new(outbound).layer(record_headers(sent.clone()));
    let proxy = service_fn(move |mut request: Request<Empty<Bytes>>| {
        let upstream = upstream.clone();
        async move {
            // A value in the extensions, as a middleware sets it, and one in the current context.
            let ctx = request.extensions().get::<Context>().unwrap().with_value(Tenant("blue"));
            request.extensions_mut().insert(ctx);
            let ctx = Context::current().with_value(User(7));
            ctx.scope(async {
                Context::current().within(ms(100), async |_| upstream.oneshot(request).await).await
            })
            .await?
        }
    });
    let inbound = Inbound::new().max_budget(ms(5_000));
    let edge = ServerLayer::new(Context::background(), inbound).layer(proxy);
    edge.oneshot(request()).await.unwrap();
    let headers = sent.lock().unwrap().pop().unwrap();
    assert_eq!(headers["grpc-timeout"], "100000u");
    assert_eq!(
        (&headers["x-tenant"], &headers["baggage"]),
        (&"blue".parse().unwrap(), &"user=7".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_nearer_context_ends_the_call() {
    let stuck = service_fn(|_: Request<Empty<Bytes>>| pending::<Answer>());
    let client = ClientLayer::new(Outbound::new()).layer(stuck);
    let outer = Context::background().with_timeout(LONG);
    let part = outer.with_cancel();
    let mut own = request();
    own.extensions_mut().insert(outer.clone());
    let mut call = pin!(part.scope(client.oneshot(own)));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    part.cancel_with("enough");
    let error = context_error(call.await.unwrap_err());
    assert_eq!(error.cause().unwrap().to_string(), "enough");
}

#[tokio::test(start_paused = true)]
async fn an_unrelated_context_is_limited_by_the_current_deadline() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let call = async |current: &Context, own: &Context| {
        let client =
            ClientLayer::new(Outbound::new().carry::<Tenant>()).layer(record_headers(sent.clone()));
        let mut request = request();
        request.extensions_mut().insert(own.clone());
        current.scope(async { client.oneshot(request).await }).await.unwrap();
        sent.lock().unwrap().pop().unwrap()
    };
    let current = Context::background().with_timeout(ms(100)).with_value(Tenant("current"));
    let own = Context::background().with_timeout(ms(300));
    let headers = call(&current, &own).await;
    assert_eq!(headers["grpc-timeout"], "100000u");
    assert!(!headers.contains_key("x-tenant"), "its own values alone");
    assert_eq!(call(&own, &current).await["grpc-timeout"], "100000u");
    assert_eq!(call(&current, &Context::background()).await["grpc-timeout"], "100000u");
    assert_eq!(call(&Context::background(), &own).await["grpc-timeout"], "300000u");
    // A cancel of the current context does not affect an unrelated one.
    let canceled = Context::background().with_cancel();
    canceled.cancel();
    assert_eq!(call(&canceled, &own).await["grpc-timeout"], "300000u");
}

#[tokio::test(start_paused = true)]
async fn a_nested_layer_applies_the_context_between_the_layers() {
    let inner = ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(3_000)));
    let handler = service_fn(|_: Request<Empty<Bytes>>| {
        let left = format!("{:?}", Context::current().remaining().unwrap());
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(left))))
    });
    let inner = inner.layer(handler);
    let between = service_fn(move |request: Request<Empty<Bytes>>| {
        let inner = inner.clone();
        async move {
            Context::current().within(ms(100), async |_| inner.oneshot(request).await).await.unwrap()
        }
    });
    let outer = ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(5_000)));
    let answer = outer.layer(between).oneshot(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "100ms");
}

// The time when a request is sent.

/// The two halves of the layer around a service that waits before it forwards the request.
fn waiting<S>(
    outbound: Outbound,
    wait: Duration,
    connection: S,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<tokio_ctx::wire::ClientBody<Full<Bytes>>>,
    Error = BoxError,
    Future: Send,
> + Clone
where
    S: Service<Request<Empty<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let (upper, lower) = ClientLayer::new(outbound).split();
    let connection = lower.layer(connection);
    upper.layer(service_fn(move |request: Request<Empty<Bytes>>| {
        let connection = connection.clone();
        // In another task, as with a buffer, there is no current context.
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            connection.oneshot(request).await
        });
        async { task.await.unwrap() }
    }))
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_request_waits_is_subtracted() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let outbound =
        Outbound::new().write([DeadlineHeader::Grpc, DeadlineHeader::Connect]).carry::<Tenant>();
    let client = waiting(outbound, ms(300), record_headers(sent.clone()));
    let ctx = Context::background().with_timeout(ms(600)).with_value(Tenant("blue"));
    // A shorter timeout in the request is kept, a longer one is replaced.
    for (given, expected) in [(None, "300000u"), (Some("200m"), "200000u"), (Some("400m"), "300000u")] {
        let ctx = ctx.without_cancel().with_timeout(ms(600));
        let mut request = request();
        given.map(|given| request.headers_mut().insert("grpc-timeout", given.parse().unwrap()));
        let answer = ctx.scope(client.clone().oneshot(request)).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
        let headers = sent.lock().unwrap().pop().unwrap();
        assert_eq!(headers["grpc-timeout"], expected);
        assert_eq!(headers["connect-timeout-ms"], "300");
        assert_eq!(headers["x-tenant"], "blue");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_too_long_is_not_sent() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let client = waiting(Outbound::new(), ms(700), record_headers(sent.clone()));
    let ctx = Context::background().with_timeout(ms(600));
    let error = context_error(ctx.scope(client.oneshot(request())).await.unwrap_err());
    common::assert_same(&error, &ended(&ctx));
    tokio::time::sleep(ms(200)).await;
    assert!(sent.lock().unwrap().is_empty());

    // The same applies if less than the margin remains, although the context has not ended.
    let client = waiting(Outbound::new().margin(ms(400)), ms(300), record_headers(sent.clone()));
    let ctx = Context::background().with_timeout(ms(600));
    let error = context_error(ctx.scope(client.oneshot(request())).await.unwrap_err());
    assert!(error.is_deadline_exceeded() && !ctx.is_done());
    assert!(sent.lock().unwrap().is_empty());

    // A request whose context has already ended is not forwarded at all.
    let (upper, lower) = ClientLayer::new(Outbound::new()).split();
    let called = AtomicUsize::new(0);
    let client = upper.layer(service_fn(|request| {
        called.fetch_add(1, Ordering::SeqCst);
        lower.layer(record_headers(sent.clone())).oneshot(request)
    }));
    ctx.cancel();
    assert!(ctx.scope(client.oneshot(request())).await.is_err());
    assert_eq!(called.load(Ordering::SeqCst), 0);
}

/// Each attempt sends the time that remains then.
#[tokio::test(start_paused = true)]
async fn a_retry_outside_of_the_layer_sends_the_time_that_remains_then() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let client = ClientLayer::new(Outbound::new()).layer(record_headers(sent.clone()));
    let ctx = Context::background().with_timeout(ms(600));
    ctx.scope(async {
        let first = request();
        let second = first.clone();
        client.clone().oneshot(first).await.unwrap();
        tokio::time::sleep(ms(150)).await;
        client.oneshot(second).await.unwrap();
    })
    .await;
    let timeouts: Vec<_> =
        sent.lock().unwrap().iter().map(|sent| sent["grpc-timeout"].clone()).collect();
    assert_eq!(timeouts, ["600000u", "450000u"]);
}

// Readiness that is released.

/// A service with a limited number of shared permits. A clone takes one when it becomes ready.
struct Limited {
    free: Arc<AtomicUsize>,
    reserved: bool,
}

impl Limited {
    fn new() -> (Limited, Arc<AtomicUsize>) {
        let free = Arc::new(AtomicUsize::new(1));
        (Limited { free: free.clone(), reserved: false }, free)
    }
}

impl Clone for Limited {
    fn clone(&self) -> Self {
        Limited { free: self.free.clone(), reserved: false }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.free.fetch_add(self.reserved.into(), Ordering::SeqCst);
    }
}

impl<A> Service<Request<A>> for Limited {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        if !self.reserved {
            let taken =
                self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1));
            if taken.is_err() {
                return Poll::Pending;
            }
            self.reserved = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<A>) -> Self::Future {
        assert!(std::mem::take(&mut self.reserved), "called without being ready");
        self.free.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::from("done"))))
    }
}

/// A call is refused, and its service and its future are held. Other clones can still become ready, and so can this
/// one.
async fn assert_releases<S, A>(
    service: S,
    free: Arc<AtomicUsize>,
    refused: Request<A>,
    taken: Request<A>,
) where
    S: Service<Request<A>, Future: Send> + Clone,
    S::Error: Into<BoxError>,
{
    let mut kept = service.clone();
    let mut other = service;
    assert!(poll(pin!(kept.ready()), Waker::noop()).is_ready());
    assert_eq!(free.load(Ordering::SeqCst), 0);
    let call = kept.call(refused);
    assert_eq!(free.load(Ordering::SeqCst), 1, "the place of a call that is not made");
    assert!(poll(pin!(other.ready()), Waker::noop()).is_ready());
    drop(other);
    drop(call.await);
    // It can be used again.
    assert!(poll(pin!(kept.ready()), Waker::noop()).is_ready());
    assert!(kept.call(taken).await.is_ok());
    assert_eq!(free.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_call_releases_its_readiness() {
    let over = Context::background().with_timeout(Duration::ZERO);
    let late = || {
        let mut request = request();
        request.extensions_mut().insert(over.clone());
        request
    };
    let of_headers = |headers: &[(&'static str, &str)]| {
        let mut request = request();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        request
    };
    let (limited, free) = Limited::new();
    let client = ClientLayer::new(Outbound::new());
    assert_releases(client.layer(limited), free, late(), request()).await;

    let (limited, free) = Limited::new();
    let (upper, _) = ClientLayer::new(Outbound::new()).split();
    assert_releases(upper.layer(limited), free, late(), request()).await;

    let (limited, free) = Limited::new();
    let server = ServerLayer::new(Context::background(), Inbound::new().strict());
    assert_releases(server.layer(limited), free, of_headers(&[("grpc-timeout", "junk")]), request())
        .await;

    let (limited, free) = Limited::new();
    let server = ServerLayer::new(Context::background(), Inbound::new().min_budget(ms(50)));
    let short = of_headers(&[("grpc-timeout", "1m")]);
    assert_releases(server.layer(limited), free, short, request()).await;

    let (limited, free) = Limited::new();
    assert_releases(FinishLayer::new().layer(limited), free, late(), request()).await;
}

// The rules of a route.

fn routed(called: Arc<AtomicUsize>) -> axum::Router {
    let left = move |ctx: Context| {
        called.fetch_add(1, Ordering::SeqCst);
        ready(format!("{:?}", ctx.remaining()))
    };
    let usual = Inbound::new().max_budget(ms(5_000));
    let layer = ServerLayer::new(Context::background(), usual.clone())
        .route("/events", usual.clone().unlimited())
        .route("/upload/{name}", usual.clone().max_budget(ms(600_000)))
        .route("/report", usual.clone().min_budget(ms(200)))
        .route("/files/*", usual.clone().max_budget(ms(60_000)));
    axum::Router::new()
        .route("/events", axum::routing::get(left.clone()))
        .route("/upload/{name}", axum::routing::get(left.clone()))
        .route("/report", axum::routing::get(left.clone()))
        .route("/files/{*path}", axum::routing::get(left.clone()))
        .route("/other", axum::routing::get(left))
        .layer(layer)
}

async fn get(app: axum::Router, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app.oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_route_may_have_more_time_than_the_server() {
    let app = routed(Arc::default());
    for (path, left) in [
        ("/other", "Some(5s)"),
        ("/events", "None"),
        ("/upload/a", "Some(600s)"),
        ("/upload/b?x=1", "Some(600s)"),
        ("/files/a/b", "Some(60s)"),
        ("/report", "Some(5s)"),
    ] {
        assert_eq!(get(app.clone(), path, &[]).await.2, left, "{path}");
    }
    // The caller's timeout still applies.
    assert_eq!(get(app.clone(), "/events", &[("connect-timeout-ms", "250")]).await.2, "Some(250ms)");
    assert_eq!(get(app, "/nothing", &[]).await.0, 404);
}

/// Outside of the router, where no route has been matched yet, the same routes match.
#[tokio::test(start_paused = true)]
async fn routes_match_outside_of_a_router_as_well() {
    let usual = Inbound::new().max_budget(ms(5_000));
    let layer = ServerLayer::new(Context::background(), usual.clone())
        .route("/upload/{name}", usual.clone().max_budget(ms(600_000)))
        .route("/upload/*", usual.clone().max_budget(ms(1)));
    let left = async |ctx: Context| format!("{:?}", ctx.remaining().unwrap());
    let app = layer.layer(axum::Router::new().fallback(left));
    for (path, left) in [("/upload/a", "600s"), ("/upload/a/b", "1ms"), ("/other", "5s")] {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), left, "{path}");
    }
}

/// An event stream continues beyond the maximum of other routes.
#[tokio::test(start_paused = true)]
async fn a_stream_of_an_unlimited_route_continues() {
    let usual = Inbound::new().max_budget(ms(50));
    let layer =
        ServerLayer::new(Context::background(), usual.clone()).route("/events", usual.unlimited());
    let (send, body) = channel_body();
    let body = Arc::new(Mutex::new(Some(body)));
    let service = layer.layer(service_fn(move |_: Request<Empty<Bytes>>| {
        ready(Ok::<_, Infallible>(Response::new(body.lock().unwrap().take().unwrap())))
    }));
    let events = Request::get("/events").body(Empty::<Bytes>::new()).unwrap();
    let mut body = service.oneshot(events).await.unwrap().into_body();
    for _ in 0..10 {
        tokio::time::sleep(ms(100)).await;
        send.send(Ok(Frame::data("event".into()))).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_refuses_a_request_with_too_little_time() {
    let called = Arc::new(AtomicUsize::new(0));
    let app = routed(called.clone());
    let start = tokio::time::Instant::now();
    for (headers, status, message) in [
        (&[("connect-timeout-ms", "199")][..], 504, "deadline exceeded\n"),
        (&[("grpc-timeout", "0n")], 504, "deadline exceeded\n"),
    ] {
        let (code, _, text) = get(app.clone(), "/report", headers).await;
        assert_eq!((code, text.as_str()), (status, message));
    }
    // The gRPC status is sent at once.
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "150m")];
    let (code, headers, _) = get(app.clone(), "/report", &grpc).await;
    assert_eq!((code, &headers["grpc-status"]), (200, &"4".parse().unwrap()));
    assert_eq!(called.load(Ordering::SeqCst), 0, "nothing was begun");
    assert_eq!(start.elapsed(), Duration::ZERO);

    assert_eq!(get(app.clone(), "/report", &[("connect-timeout-ms", "200")]).await.2, "Some(200ms)");
    assert_eq!(get(app, "/other", &[("connect-timeout-ms", "1")]).await.2, "Some(1ms)");
    assert_eq!(called.load(Ordering::SeqCst), 2);
}

#[test]
fn debug_shows_the_rules_of_routes() {
    let layer = ServerLayer::new(Context::background(), Inbound::new())
        .route("/events", Inbound::new().unlimited());
    assert!(format!("{layer:?}").contains("/events"));
}

// Handlers that finish without their client.

struct Handler {
    started: mpsc::UnboundedReceiver<Context>,
    go_on: Arc<tokio::sync::Notify>,
    finished: mpsc::UnboundedReceiver<Context>,
}

/// A handler that waits for a signal, inside of a [`FinishLayer`] and a server's layer.
fn finishing(
    server: ServerLayer,
    finish: FinishLayer,
) -> (
    impl Service<
        Request<hyper::body::Incoming>,
        Response = Response<impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    Handler,
) {
    let (starts, started) = mpsc::unbounded_channel();
    let (finishes, finished) = mpsc::unbounded_channel();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let resumed = go_on.clone();
    let handler = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (starts, finishes, resumed) = (starts.clone(), finishes.clone(), resumed.clone());
        async move {
            let ctx = request.extensions().get::<Context>().unwrap().clone();
            starts.send(ctx.clone()).unwrap();
            resumed.notified().await;
            assert!(!Context::current().is_done());
            finishes.send(ctx).unwrap();
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("paid")))
        }
    });
    (server.layer(finish.layer(handler)), Handler { started, go_on, finished })
}

#[tokio::test]
async fn a_handler_finishes_after_its_client_has_left() {
    for version in [Version::Http1, Version::Http2] {
        let service = Context::background().with_cancel();
        let server = ServerLayer::new(service.clone(), Inbound::new().max_budget(LONG));
        let (service, mut handler) = finishing(server, FinishLayer::new());
        let server = serve(version, service).await;

        // A client that stays receives the response.
        handler.go_on.notify_one();
        let answer = server.get("/").await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.collect().await.unwrap(), "paid");
        let (ctx, same) =
            (handler.started.recv().await.unwrap(), handler.finished.recv().await.unwrap());
        assert!(ctx.deadline().is_some());
        eventually("its context ends with the answer", || ctx.is_done() && same.is_done()).await;

        // The server does not wait for the handler of a client that has left.
        let call = tokio::spawn(server.get("/"));
        let ctx = handler.started.recv().await.unwrap();
        call.abort();
        assert!(call.await.is_err_and(|gone| gone.is_cancelled()));
        // The connection is closed, another one is served, and the handler is still running.
        let other = tokio::spawn(server.get("/"));
        handler.started.recv().await.unwrap();
        assert!(!ctx.is_done(), "{:?}", ctx.err());
        handler.go_on.notify_one();
        assert_eq!(handler.finished.recv().await.unwrap().deadline(), ctx.deadline());
        eventually("it has nobody to answer", || ctx.is_done()).await;
        handler.go_on.notify_one();
        assert_eq!(other.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_finishing_handler_ends_at_its_deadline_and_with_the_service() {
    let drops = common::Drops::default();
    let stuck = {
        let drops = drops.clone();
        service_fn(move |_: Request<Empty<Bytes>>| {
            let counted = drops.counted();
            async move {
                let _counted = counted;
                pending::<Answer>().await
            }
        })
    };
    let service = Context::background().with_cancel();
    let server = ServerLayer::new(service.clone(), Inbound::new().max_budget(ms(50)))
        .route("/unlimited", Inbound::new());
    let app = server.layer(FinishLayer::new().layer(stuck));

    // A client that stays receives the status.
    let answer = app.clone().oneshot(request()).await.unwrap();
    assert_eq!(answer.status(), 504);
    tokio::task::yield_now().await;
    assert_eq!(drops.count(), 1);

    // If the client leaves, the handler continues until its deadline.
    let mut call = Box::pin(app.clone().oneshot(request()));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    drop(call);
    tokio::time::sleep(ms(40)).await;
    assert_eq!(drops.count(), 1);
    tokio::time::sleep(ms(20)).await;
    assert_eq!(drops.count(), 2);

    // Or it continues until the service ends.
    let unlimited = Request::get("/unlimited").body(Empty::<Bytes>::new()).unwrap();
    let mut call = Box::pin(app.oneshot(unlimited));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    drop(call);
    tokio::time::sleep(LONG).await;
    assert_eq!(drops.count(), 2);
    service.cancel();
    tokio::task::yield_now().await;
    assert_eq!(drops.count(), 3);
}

#[tokio::test]
async fn a_shutdown_waits_for_a_finishing_handler() {
    let shutdown = Shutdown::new(&Context::background()).grace(LONG);
    let http = shutdown.named("http");
    let server = ServerLayer::with_shutdown(&http, Inbound::new());
    let (service, mut handler) = finishing(server, FinishLayer::with_shutdown(&http));
    let server = serve(Version::Http1, service).await;
    let call = tokio::spawn(server.get("/"));
    let ctx = handler.started.recv().await.unwrap();
    call.abort();
    assert!(call.await.is_err_and(|gone| gone.is_cancelled()));
    shutdown.begin("over");
    let mut wait = pin!(shutdown.wait());
    // The server notices that the client has left. The shutdown still waits for the handler.
    for _ in 0..100 {
        assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(!ctx.is_done());
    handler.go_on.notify_one();
    assert!(wait.await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_reports_a_handler_that_does_not_finish() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(50)).cleanup(ms(50));
    let http = shutdown.named("http");
    let stuck = service_fn(|_: Request<Empty<Bytes>>| pending::<Answer>());
    let server = ServerLayer::with_shutdown(&http, Inbound::new());
    let app = server.layer(FinishLayer::with_shutdown(&http).layer(stuck));
    let pay = Request::post("/pay").body(Empty::<Bytes>::new()).unwrap();
    let mut call = Box::pin(app.oneshot(pay));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    drop(call);
    shutdown.begin("over");
    let report = shutdown.wait().await;
    let names: Vec<_> = report.overdue().iter().filter_map(|overdue| overdue.name()).collect();
    assert_eq!(names, ["http/POST /pay"]);
}

#[tokio::test]
async fn a_panic_of_a_finishing_handler_reaches_the_connection() {
    let seen = Arc::new(Mutex::new(None));
    let slot = seen.clone();
    let panics = service_fn(move |_: Request<Empty<Bytes>>| {
        *slot.lock().unwrap() = Some(Context::current());
        async { if true { panic!("half done") } else { Answer::Ok(Response::new(Full::default())) } }
    });
    let app = FinishLayer::new().layer(panics);
    let panic = tokio::spawn(app.oneshot(request())).await.unwrap_err().into_panic();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "half done");
    let ctx = seen.lock().unwrap().take().unwrap();
    assert_eq!(ended(&ctx).cause_as(), Some(&RequestEnd::Panicked));
}

#[tokio::test]
async fn an_error_of_a_finishing_handler_is_the_cause() {
    for with_finish in [false, true] {
        let seen = Arc::new(Mutex::new(None));
        let slot = seen.clone();
        let fails = service_fn(move |_: Request<Empty<Bytes>>| {
            *slot.lock().unwrap() = Some(Context::current());
            ready(Err::<Response<Full<Bytes>>, _>(std::io::Error::other("half done")))
        });
        let answer = match with_finish {
            true => FinishLayer::new().layer(fails).oneshot(request()).await.map(drop),
            false => {
                let server = ServerLayer::new(Context::background(), Inbound::new());
                server.layer(fails).oneshot(request()).await.map(drop)
            }
        };
        assert_eq!(answer.unwrap_err().to_string(), "half done");
        let ctx = seen.lock().unwrap().take().unwrap();
        assert_eq!(ended(&ctx).cause_as(), Some(&RequestEnd::Failed), "{with_finish}");
    }
}

/// When a shutdown completes, no context of its handlers is left that has not ended.
#[tokio::test]
async fn the_context_of_a_finishing_handler_that_panics_ends_before_its_shutdown() {
    struct Sees(Arc<Mutex<Option<Context>>>, Mutex<Option<bool>>);
    impl std::task::Wake for Sees {
        fn wake(self: Arc<Self>) {
            let is_done = self.0.lock().unwrap().as_ref().map(|ctx| ctx.is_done());
            self.1.lock().unwrap().get_or_insert(is_done.expect("the handler has started"));
        }
    }
    let slot = Arc::new(Mutex::new(None));
    let sees = Arc::new(Sees(slot.clone(), Mutex::default()));
    let panics = service_fn(move |_: Request<Empty<Bytes>>| {
        *slot.lock().unwrap() = Some(Context::current());
        async { if true { panic!("half done") } else { Answer::Ok(Response::new(Full::default())) } }
    });
    let shutdown = Shutdown::new(&Context::background()).grace(LONG);
    let mut call = Box::pin(FinishLayer::with_shutdown(&shutdown).layer(panics).oneshot(request()));
    assert!(poll(call.as_mut(), Waker::noop()).is_pending());
    shutdown.begin("over");
    let mut wait = pin!(shutdown.wait());
    assert!(poll(wait.as_mut(), &Waker::from(sees.clone())).is_pending());
    drop(call);
    common::run_ready_tasks().await;
    assert!(wait.await.is_clean());
    assert_eq!(*sees.1.lock().unwrap(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_finishing_handler_has_its_context_and_ends_it() {
    let (send, body) = channel_body();
    let body = Arc::new(Mutex::new(Some(body)));
    let seen = Arc::new(Mutex::new(None));
    let slot = seen.clone();
    let handler = service_fn(move |_: Request<Empty<Bytes>>| {
        *slot.lock().unwrap() = Some(Context::current());
        ready(Ok::<_, Infallible>(Response::new(body.lock().unwrap().take().unwrap())))
    });
    let server = ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(5_000)));
    let answer = server.layer(FinishLayer::new().layer(handler)).oneshot(request()).await.unwrap();
    let ctx = seen.lock().unwrap().take().unwrap();
    let mut body = answer.into_body();
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    assert!(!ctx.is_done());
    drop(send);
    assert!(body.frame().await.is_none());
    assert_eq!(ended(&ctx).cause_as(), Some(&RequestEnd::Answered));
}

#[tokio::test]
async fn an_ended_request_does_not_start_a_handler() {
    let called = Arc::new(AtomicUsize::new(0));
    let counts = called.clone();
    let app = FinishLayer::new().layer(service_fn(move |_: Request<Empty<Bytes>>| {
        counts.fetch_add(1, Ordering::SeqCst);
        ready(Answer::Ok(Response::new(Full::default())))
    }));
    let ctx = Context::background().with_timeout_cause(Duration::ZERO, Budget::Caller);
    let answer = ctx.scope(app.oneshot(request())).await.unwrap();
    assert_eq!((answer.status().as_u16(), called.load(Ordering::SeqCst)), (504, 0));
}

/// A transport does not poll a body that it does not send, nor a body whose announced length it has sent.
#[tokio::test]
async fn a_finishing_handler_whose_response_was_sent_completely_has_been_answered() {
    for (method, status, length, frames) in [
        ("GET", 200, Some("1"), 1),
        ("HEAD", 200, None, 0),
        ("GET", 204, None, 0),
        ("GET", 304, None, 0),
    ] {
        let (send, body) = channel_body();
        send.send(Ok(Frame::data("a".into()))).unwrap();
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        let response = Arc::new(Mutex::new(Some(response.body(body).unwrap())));
        let seen = Arc::new(Mutex::new(None));
        let note = seen.clone();
        let handler = service_fn(move |_: Request<Empty<Bytes>>| {
            *note.lock().unwrap() = Some(Context::current());
            ready(Ok::<_, Infallible>(response.lock().unwrap().take().unwrap()))
        });
        let request = Request::builder().method(method).body(Empty::new()).unwrap();
        let mut answer = FinishLayer::new().layer(handler).oneshot(request).await.unwrap();
        for _ in 0..frames {
            answer.frame().await.unwrap().unwrap();
        }
        drop(answer);
        let ctx = seen.lock().unwrap().take().unwrap();
        assert_eq!(ended(&ctx).cause_as(), Some(&RequestEnd::Answered), "{method} {status}");
    }
}

/// Such as the one of another protocol, which the proxy's own outbound does not write.
#[tokio::test(start_paused = true)]
async fn a_longer_deadline_in_a_forwarded_request_is_lowered() {
    let five = "5000";
    for (name, sent, told) in [
        ("connect-timeout-ms", five, "100"),
        ("x-envoy-expected-rq-timeout-ms", five, "100"),
        ("x-envoy-upstream-rq-timeout-ms", five, "100"),
        ("connect-timeout-ms", "50", "50"),
        ("x-budget-ms", five, five),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(name, sent.parse().unwrap());
        let mut map = std::collections::HashMap::from([(name.to_string(), sent.to_string())]);
        let ctx = Context::background().with_timeout(ms(100));
        ctx.inject(&mut headers).unwrap();
        ctx.inject(&mut map).unwrap();
        assert_eq!((&headers[name], &*map[name]), (&told.parse().unwrap(), told), "{name}");
        assert_eq!(headers["grpc-timeout"], "100000u");

        // A time that the header cannot express is not sent.
        let late = Context::background().with_timeout(Duration::from_micros(100));
        assert_eq!(late.inject(&mut headers).is_err(), name != "x-budget-ms", "{name}");
        assert_eq!(&headers[name], told);
    }
    // The deadline applies only on this side.
    let mut headers = HeaderMap::new();
    headers.insert("connect-timeout-ms", five.parse().unwrap());
    let ctx = Context::background().with_timeout(ms(100));
    ctx.inject_with(&mut headers, &Outbound::new().write([])).unwrap();
    assert_eq!(headers["connect-timeout-ms"], five);
}
