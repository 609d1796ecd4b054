//! Forwarded requests with real peers: tonic's clients over a slow connection, tonic's buffered channel after a refusal,
//! and the propagators of OpenTelemetry.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
#[path = "../wire/mod.rs"]
mod wire;

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::client::pool::cache;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry::baggage::BaggageExt;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::BaggagePropagator;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_ctx::wire::{
    ClientBody, ClientLayer, DeadlineHeader, Inbound, Outbound, ServerLayer, Travel, get_with, set_with,
};
use tokio_ctx::{BoxError, Context};
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;
use tower::reconnect::Reconnect;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use common::{LONG, ms};
use grpc::{SERVING, channel, finishing, health_request, serving};
use wire::{Version, eventually, serve};

// The time when a request is sent.

/// A connection of hyper as a service.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn connect(at: SocketAddr, after: Duration) -> Result<Connection, BoxError> {
    tokio::time::sleep(after).await;
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(Connection(send))
}

type Channel = BoxCloneService<Request<Body>, Response<ClientBody<Incoming>>, Status>;

type Client = Pin<Box<dyn Future<Output = Result<(), tonic::Status>> + Send>>;

/// Calls once for each name, with the context `ctx`, over a channel that takes `after` to connect.
fn check_all(
    ctx: &Context,
    at: SocketAddr,
    after: Duration,
    outbound: Outbound,
    names: &[&'static str],
) -> Client {
    let (upper, lower) = ClientLayer::new(outbound).split();
    let connect = service_fn(move |_: ()| {
        let lower = lower.clone();
        Box::pin(async move { Ok::<_, BoxError>(lower.layer(connect(at, after).await?)) })
    });
    // The types are named, so that the calls can be spawned.
    let channel: Channel = ServiceBuilder::new()
        .layer(BoxCloneService::layer())
        .map_err(Status::from_error)
        .layer(upper)
        .buffer(16)
        .service(Reconnect::new(connect, ()));
    let origin = Uri::try_from(format!("http://{at}")).unwrap();
    let calls: Vec<_> = names
        .iter()
        .map(|name| {
            let mut client = HealthClient::with_origin(channel.clone(), origin.clone());
            let name = *name;
            ctx.spawn(async move { client.check(health_request(name)).await })
        })
        .collect();
    Box::pin(async {
        for call in calls {
            assert_eq!(call.await.unwrap()?.into_inner(), SERVING);
        }
        Ok(())
    })
}

/// A server that reports the timeouts that it received.
async fn serve_timeouts() -> (SocketAddr, mpsc::UnboundedReceiver<Duration>) {
    let (sender, timeouts) = mpsc::unbounded_channel();
    let (at, _contexts) = serving(None).await;
    let behind = wire::client::<Incoming>(Version::Http2);
    let service = service_fn(move |mut request: Request<Incoming>| {
        sender.send(DeadlineHeader::Grpc.read(request.headers()).unwrap().unwrap()).unwrap();
        let path = request.uri().path_and_query().unwrap().clone();
        *request.uri_mut() = format!("http://{at}{path}").parse().unwrap();
        behind.request(request)
    });
    let server = serve(Version::Http2, service).await;
    let at = server.at;
    // The server runs as long as the test.
    std::mem::forget((server, _contexts));
    (at, timeouts)
}

#[tokio::test]
async fn the_time_that_connecting_takes_is_subtracted_for_each_call() {
    let (at, mut timeouts) = serve_timeouts().await;
    let ctx = Context::background().with_timeout(LONG);
    check_all(&ctx, at, ms(700), Outbound::new(), &["a", "b", "c"]).await.unwrap();
    for _ in 0..3 {
        let timeout = timeouts.recv().await.unwrap();
        assert!(timeout <= LONG - ms(700), "{timeout:?} of {LONG:?}");
    }
}

#[tokio::test]
async fn a_call_that_waits_for_a_connection_ends_with_its_context() {
    let (at, mut timeouts) = serve_timeouts().await;
    let ctx = Context::background().with_timeout(ms(100));
    let status = check_all(&ctx, at, ms(300), Outbound::new(), &["a"]).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    tokio::time::sleep(ms(400)).await;
    assert!(timeouts.try_recv().is_err());

    // The context has not ended, but not more than the margin remains. The error is a gRPC status.
    let ctx = Context::background().with_timeout(LONG);
    let status =
        check_all(&ctx, at, ms(200), Outbound::new().margin(LONG - ms(100)), &["a"]).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(timeouts.try_recv().is_err());
}

/// An HTTP/1 connection of hyper as a service.
struct Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>);

impl Service<Request<Empty<Bytes>>> for Http1 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// With the pool of hyper-util, the layer is applied to each connection, and the time of waiting for one is subtracted.
#[tokio::test]
async fn the_time_that_a_call_waits_in_a_pool_is_subtracted() {
    let (sender, mut timeouts) = mpsc::unbounded_channel();
    let remote_server = service_fn(move |request: Request<Incoming>| {
        sender.send(DeadlineHeader::Grpc.read(request.headers()).unwrap().unwrap()).unwrap();
        std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::from("done"))))
    });
    let server = serve(Version::Http1, remote_server).await;
    let (upper, lower) = ClientLayer::new(Outbound::new()).split();
    let connects = Arc::new(AtomicUsize::new(0));
    let counts = connects.clone();
    let connect = service_fn(move |at: SocketAddr| {
        counts.fetch_add(1, Ordering::SeqCst);
        let lower = lower.clone();
        Box::pin(async move {
            tokio::time::sleep(ms(700)).await;
            let stream = TokioIo::new(TcpStream::connect(at).await?);
            let (send, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            Ok::<_, BoxError>(lower.layer(Http1(send)))
        })
    });
    let (at, pool) = (server.at, cache::builder().build(connect));
    let client = upper.layer(service_fn(move |request: Request<Empty<Bytes>>| {
        let pool = pool.clone();
        async move { pool.oneshot(at).await?.ready().await?.call(request).await }
    }));
    let ctx = Context::background().with_timeout(LONG);
    for _ in 0..3 {
        let mut request = Request::new(Empty::new());
        request.headers_mut().insert("host", "server.test".parse().unwrap());
        let answer = ctx.scope(client.clone().oneshot(request)).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
        let timeout = timeouts.recv().await.unwrap();
        assert!(timeout <= LONG - ms(700), "{timeout:?} of {LONG:?}");
    }
    assert_eq!(connects.load(Ordering::SeqCst), 1, "the connection is kept");
}

// Readiness that is released.

#[tokio::test]
async fn a_refused_call_that_is_held_blocks_no_other() {
    let (at, _contexts) = serving(Some(Inbound::new())).await;
    let channel = Endpoint::from_shared(format!("http://{at}")).unwrap().buffer_size(1).connect_lazy();
    let service = ClientLayer::new(Outbound::new()).layer(channel);
    let over = Context::background().with_timeout(Duration::ZERO);

    let mut kept = service.clone();
    let refused =
        Request::post(format!("http://{at}/")).extension(over.clone()).body(Body::empty()).unwrap();
    let call = kept.ready().await.unwrap().call(refused);
    let mut client = HealthClient::new(service.clone());
    let answer = Context::background()
        .within(LONG, async |_| client.check(health_request("")).await)
        .await
        .unwrap();
    assert_eq!(answer.unwrap().into_inner(), SERVING);
    assert!(call.await.is_err());

    // The same with tonic's client, which keeps the service that it made ready.
    let mut refused = HealthClient::new(service);
    assert!(over.scope(refused.check(health_request(""))).await.is_err());
    let answer = Context::background()
        .within(LONG, async |_| client.check(health_request("")).await)
        .await
        .unwrap();
    assert_eq!(answer.unwrap().into_inner(), SERVING);
}

// Handlers that finish without their client.

#[tokio::test]
async fn handlers_of_tonic_finish_after_the_caller_has_left() {
    let (at, mut contexts) = finishing(Inbound::new().max_budget(ms(1_500))).await;
    let mut client = HealthClient::new(channel(at));
    assert_eq!(client.check(health_request("")).await.unwrap().into_inner(), SERVING);
    let answered = contexts.recv().await.unwrap();
    eventually("the answer ends it", || answered.is_done()).await;

    let call = tokio::spawn(async move { client.check(health_request("stuck")).await.map(drop) });
    let ctx = contexts.recv().await.unwrap();
    call.abort();
    assert!(call.await.is_err_and(|gone| gone.is_cancelled()));
    // The handler ends at its deadline, although the stream was reset long before.
    assert!(ctx.done().await.is_deadline_exceeded());

    // A caller that stays receives the status.
    let status = HealthClient::new(channel(at)).check(health_request("late")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // A stream continues as long as it has a reader.
    let mut client = HealthClient::new(channel(at));
    let mut stream = client.watch(health_request("")).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(SERVING));
    contexts.recv().await.unwrap();
    let ctx = contexts.recv().await.unwrap();
    assert!(!ctx.is_done());
    drop((stream, client));
    eventually("the end of the body ends it", || ctx.is_done()).await;
}

// OpenTelemetry.

struct UserId(String);

impl Travel for UserId {
    const NAME: &'static str = "userId";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        Some(UserId(text.into()))
    }
}

fn outbound() -> Outbound {
    Outbound::new().carry_in_baggage::<UserId>()
}

fn inbound() -> Inbound {
    Inbound::new().carry_in_baggage::<UserId>()
}

const ODD: &str = "Ada = 1, \"Ü\"; 100%\\";

#[test]
fn the_extractor_of_opentelemetry_reads_the_baggage_of_both() {
    let ctx = Context::background().with_value(UserId(ODD.into()));
    let propagator = BaggagePropagator::new();
    let telemetry = opentelemetry::Context::new().with_baggage([
        opentelemetry::KeyValue::new("region", "eu west"),
        opentelemetry::KeyValue::new("userid", "x"),
    ]);
    let mut headers = HeaderMap::new();
    propagator.inject_context(&telemetry, &mut HeaderInjector(&mut headers));
    ctx.inject_with(&mut headers, &outbound()).unwrap();
    assert_eq!(headers.get_all("baggage").iter().count(), 1);

    let there = propagator.extract(&HeaderExtractor(&headers));
    let value = |key: &str| there.baggage().get(key).map(ToString::to_string);
    assert_eq!(value("region").as_deref(), Some("eu west"));
    assert_eq!(value("userid").as_deref(), Some("x"));
    assert_eq!(value("userId").as_deref(), Some(ODD));
    let there = Context::background().extract(&headers, &inbound()).unwrap();
    assert_eq!(there.value::<UserId>().unwrap().0, ODD);
}

#[test]
fn baggage_of_opentelemetry_is_read_here() {
    let telemetry =
        opentelemetry::Context::new().with_baggage([opentelemetry::KeyValue::new("userId", ODD)]);
    let mut headers = HeaderMap::new();
    BaggagePropagator::new().inject_context(&telemetry, &mut HeaderInjector(&mut headers));
    let there = Context::background().extract(&headers, &inbound()).unwrap();
    assert_eq!(there.value::<UserId>().unwrap().0, ODD);
}

/// The carriers of OpenTelemetry are adapted by one closure for each direction.
#[test]
fn injectors_and_extractors_are_carriers() {
    fn inject(ctx: &Context, injector: &mut dyn Injector) {
        let mut carrier = set_with(|key, value| {
            injector.set(key, value.to_owned());
            Ok(())
        });
        ctx.inject_with(&mut carrier, &outbound()).unwrap();
    }
    fn extract(extractor: &dyn Extractor) -> tokio_ctx::CancelScope {
        Context::background().extract(&get_with(|key| extractor.get(key)), &inbound()).unwrap()
    }
    let ctx = Context::background().with_timeout(LONG).with_value(UserId(ODD.into()));
    let mut map = HashMap::new();
    inject(&ctx, &mut map);
    let mut headers = HeaderMap::new();
    inject(&ctx, &mut HeaderInjector(&mut headers));
    for there in [extract(&map), extract(&HeaderExtractor(&headers))] {
        assert!(there.remaining().unwrap() <= LONG);
        assert_eq!(there.value::<UserId>().unwrap().0, ODD);
    }
}

// An edge.

/// The headers of an untrusted client are not forwarded, with servers and clients on sockets.
#[tokio::test]
async fn an_edge_forwards_only_its_own_headers() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let behind = serve(
        Version::Http1,
        service_fn(move |request: Request<Incoming>| {
            sender.send(request.headers().clone()).unwrap();
            std::future::ready(Ok::<_, BoxError>(Response::new(
                http_body_util::Empty::<bytes::Bytes>::new(),
            )))
        }),
    )
    .await;
    let at = behind.at;
    let onward = ClientLayer::new(outbound().sanitize()).layer(wire::client::<Incoming>(Version::Http1));
    let passed = Arc::new(AtomicBool::new(false));
    let forwarded = passed.clone();
    let proxy = service_fn(move |mut request: Request<Incoming>| {
        *request.uri_mut() = format!("http://{at}/").parse().unwrap();
        forwarded.store(true, Ordering::SeqCst);
        onward.clone().oneshot(request)
    });
    let edge = Inbound::new().untrusted().max_budget(LONG);
    let edge = serve(Version::Http1, ServerLayer::new(Context::background(), edge).layer(proxy)).await;
    let untrusted = [
        ("grpc-timeout", "1n"),
        ("connect-timeout-ms", "1"),
        ("x-envoy-upstream-rq-timeout-ms", "0"),
        ("baggage", "userId=eve"),
        ("x-request-id", "7"),
    ];
    assert_eq!(edge.send("/", &untrusted).await.unwrap().status, 200);
    eventually("it is passed on", || passed.load(Ordering::SeqCst)).await;
    let headers = received.recv().await.unwrap();
    assert_eq!(headers["x-request-id"], "7");
    for name in ["connect-timeout-ms", "x-envoy-upstream-rq-timeout-ms", "baggage"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let left = DeadlineHeader::Grpc.read(&headers).unwrap().unwrap();
    assert!(left > ms(1_000) && left <= LONG);
}
