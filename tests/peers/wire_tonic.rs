//! tonic as client and server, over HTTP/2 on loopback.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
#[path = "../wire/mod.rs"]
mod wire;

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request as HttpRequest;
use http_body_util::Full;
use tokio_ctx::wire::{Budget, Inbound, Outbound, RequestEnd, ServerLayer, StatusExt};
use tokio_ctx::{Context, Error, ErrorKind};
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;

use common::{LONG, ended, ms};
use grpc::{SERVING, channel, client, health_request, serving, serving_under};
use wire::eventually;

/// Makes a call through a client that has no timer, and returns the HTTP status, the gRPC status, its message and the
/// duration.
async fn call_without_timer(
    at: SocketAddr,
    timeout: &str,
) -> (u16, Option<String>, Option<String>, Duration) {
    let client = wire::client::<Full<Bytes>>(wire::Version::Http2);
    let message: &'static [u8] = b"\0\0\0\0\x07\x0a\x05stuck";
    let request = HttpRequest::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::from(message))
        .unwrap();
    let start = std::time::Instant::now();
    let response = client.request(request).await.unwrap();
    let text = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_string());
    (response.status().as_u16(), text("grpc-status"), text("grpc-message"), start.elapsed())
}

#[tokio::test]
async fn the_deadline_is_reported_before_tonics_own_timer() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    for millis in [20, 37, 51, 64, 99, 100] {
        let (status, code, message, took) = call_without_timer(at, &format!("{millis}m")).await;
        assert_eq!((status, code.as_deref()), (200, Some("4")), "{millis} ms");
        assert_eq!(message.as_deref(), Some("deadline exceeded"));
        assert!(took >= ms(millis) * 7 / 8 - ms(1), "{took:?} of {millis} ms");
        // On a busy machine the deadline may pass before the handler starts.
        while let Ok(ctx) = contexts.try_recv() {
            assert_eq!(ended(&ctx).cause_as::<Budget>(), Some(&Budget::Caller));
        }
    }
}

#[tokio::test]
async fn a_handler_sees_the_callers_deadline() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let ctx = Context::background().with_timeout(LONG);
    let mut client = client(at, Outbound::new());
    ctx.scope(client.check(health_request("anything"))).await.unwrap();
    let seen = contexts.recv().await.unwrap();
    let (here, there) = (ctx.deadline().unwrap(), seen.deadline().unwrap());
    assert!(there <= here + ms(1000) && here <= there + ms(10_000));
    eventually("the call is over", || seen.is_done()).await;
    assert_eq!(ended(&seen).cause_as::<RequestEnd>(), Some(&RequestEnd::Answered));
}

#[tokio::test]
async fn the_callers_end_is_a_status_for_it_and_a_drop_for_the_server() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let ctx = Context::background().with_cancel();
    let call =
        ctx.spawn(async move { client(at, Outbound::new()).check(health_request("stuck")).await });
    let seen = contexts.recv().await.unwrap();
    ctx.cancel_with("enough");
    let status = call.await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Cancelled, "request canceled"));
    common::assert_same(&status.context_error().unwrap(), &ended(&ctx));
    eventually("the server observes the end", || seen.is_done()).await;
    assert_eq!(ended(&seen).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

#[tokio::test]
async fn the_callers_deadline_is_reported_whichever_timer_fires_first() {
    // The server has no layer. The timers are that of tonic's channel and that of the context.
    for (inbound, margin) in
        [(None, 0), (None, 40), (Some(Inbound::new()), 0), (Some(Inbound::new()), 40)]
    {
        let (at, _contexts) = serving(inbound).await;
        for _ in 0..5 {
            let ctx = Context::background().with_timeout(ms(80));
            let mut client = client(at, Outbound::new().margin(ms(margin)));
            let status = ctx.scope(client.check(health_request("stuck"))).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            assert_eq!(status.context_error().unwrap().kind(), ErrorKind::DeadlineExceeded);
        }
    }
}

#[tokio::test]
async fn a_context_that_has_ended_sends_no_call() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let ctx = Context::background().with_cancel();
    ctx.cancel();
    let status = ctx.scope(client(at, Outbound::new()).check(health_request(""))).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    assert!(contexts.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_ends_with_the_callers_context() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let ctx = Context::background().with_cancel();
    let mut client = client(at, Outbound::new());
    let mut stream = ctx.scope(client.watch(health_request(""))).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(SERVING));
    let seen = contexts.recv().await.unwrap();
    assert!(!seen.is_done());
    ctx.cancel();
    let status = stream.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    common::assert_same(&status.context_error().unwrap(), &ended(&ctx));
    eventually("the server observes the end", || seen.is_done()).await;
    assert_eq!(ended(&seen).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

#[tokio::test]
async fn a_stream_ends_with_the_servers_budget() {
    let (at, mut contexts) = serving(Some(Inbound::new().max_budget(ms(1000)))).await;
    let mut client = HealthClient::new(channel(at));
    let mut stream = client.watch(health_request("")).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(SERVING));
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "deadline exceeded"));
    let error = status.context_error().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("context deadline exceeded: reported by a peer at tests/peers/wire_tonic.rs:"),
        "{error}"
    );
    assert_eq!(ended(&contexts.recv().await.unwrap()).cause_as::<Budget>(), Some(&Budget::Maximum));
}

/// tonic's timer is outside of the layer, and drops its future, although the client has not left.
#[tokio::test]
async fn tonics_own_timer_is_not_reported_as_the_client() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stub, mut contexts) = grpc::stub();
    tokio::spawn(
        tonic::transport::Server::builder()
            .timeout(ms(200))
            .layer(ServerLayer::new(Context::background(), Inbound::new()))
            .add_service(stub)
            .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)),
    );
    let status = HealthClient::new(channel(at)).check(health_request("stuck")).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled, "tonic's own words");
    let seen = contexts.recv().await.unwrap();
    assert_eq!(ended(&seen).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
    assert!(!ended(&seen).to_string().contains("client"), "{}", ended(&seen));
}

#[tokio::test]
async fn a_service_that_stops_is_unavailable() {
    for name in ["stuck", "asleep"] {
        let service = Context::background().with_cancel();
        let layer = ServerLayer::new(service.clone(), Inbound::new());
        let (at, mut contexts) = serving_under(Some(layer)).await;
        let call =
            tokio::spawn(
                async move { HealthClient::new(channel(at)).check(health_request(name)).await },
            );
        contexts.recv().await.unwrap();
        service.cancel_with("secret");
        let status = call.await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "service stopping"), "{name}");
        // A cancel by the caller stays a cancel.
        assert!(status.context_error().is_none());
    }
}

#[tokio::test]
async fn a_status_from_a_handler_is_sent_without_its_origin() {
    let (at, _contexts) = serving(Some(Inbound::new())).await;
    let status = HealthClient::new(channel(at)).check(health_request("late")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "deadline exceeded"));
    assert!(!format!("{status:?}").contains(".rs"), "{status:?}");
    assert!(status.details().is_empty() && status.source().is_none());
}

#[tokio::test]
async fn calls_without_layers() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let mut client = HealthClient::new(channel(at));
    let ctx = Context::background().with_timeout(LONG);
    let request = ctx.to_request(health_request("anything")).unwrap();
    let answer = ctx.try_run(client.check(request)).await.unwrap();
    assert_eq!(answer.into_inner(), SERVING);
    assert!(contexts.recv().await.unwrap().deadline().is_some());

    let request = ctx.to_request(health_request("stuck")).unwrap();
    let call = ctx.try_run(client.check(request));
    let (status, seen) = tokio::join!(call, async {
        let seen = contexts.recv().await.unwrap();
        ctx.cancel();
        seen
    });
    let status: Status = status.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    eventually("the server observes the end", || seen.is_done()).await;
    assert!(ctx.to_request(health_request("anything")).is_err());
}

#[test]
fn a_status_converts_to_an_error_and_back() {
    let ctx = Context::background().with_cancel();
    ctx.cancel_with("secret reason");
    let status = Status::from(ended(&ctx));
    assert_eq!((status.code(), status.message()), (Code::Cancelled, "request canceled"));
    common::assert_same(&status.context_error().unwrap(), &ended(&ctx));
    // The error is found inside of other errors.
    let mut outer = Status::internal("database");
    outer.set_source(Arc::new(status));
    common::assert_same(&outer.context_error().unwrap(), &ended(&ctx));
    let headers = outer.into_http::<()>().headers().clone();
    assert!(!format!("{headers:?}").contains("secret"), "{headers:?}");

    let line = line!() + 1;
    let error: Error = Status::cancelled("they said so").context_error().unwrap();
    assert_eq!(error.origin().made_at().line(), line);
    assert!(error.is_canceled() && error.origin().canceled_at().is_none());
    assert_eq!(error.cause_as::<Status>().unwrap().message(), "they said so");
    for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::Ok, Code::Aborted] {
        assert!(Status::new(code, "context deadline exceeded").context_error().is_none());
    }
}
