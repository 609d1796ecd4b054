//! gRPC and Connect for JavaScript as peers of the layers: grpc-js as client and server, and connect-node as a client with
//! each of its protocols, over HTTP/1.1 and HTTP/2.
//!
//! `.ci/node-peers` installs these packages. Without them, the tests are skipped, and print that.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
mod peer;
#[path = "../wire/mod.rs"]
mod wire;

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_ctx::Context;
use tokio_ctx::wire::{Inbound, Outbound, RequestEnd, ServerLayer};
use tonic::Code;
use tower::{Layer, service_fn};

use common::{LONG, ended, ms};
use grpc::{chat, client, health_request, serving, serving_under};
use peer::Peer;
use wire::{Server, Version, channel_body, eventually, serve};

impl Peer {
    /// Returns `None` if the packages are not installed.
    fn start(arguments: &[&str]) -> Option<Peer> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let packages = root.join("target/node-peers/node_modules");
        if !packages.join("@connectrpc/connect-node").exists() {
            eprintln!("skipped: no grpc-js and connect-node; .ci/node-peers installs them");
            return None;
        }
        let script = root.join("tests/peers/peer.cjs");
        Some(Peer::spawn(Command::new("node").env("NODE_PATH", packages).arg(script).args(arguments)))
    }

    async fn assert_outcome(&mut self, code: &str, details: &str, what: &str) {
        let (status, _, text) = self.outcome().await;
        assert_eq!((&*status, &*text), (code, details), "{what}");
    }
}

// grpc-js as a client.

#[tokio::test]
async fn the_clients_deadline_arrives_and_is_its_status() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let port = at.port().to_string();
    let Some(mut peer) = Peer::start(&["call", &port, "stuck", "2000"]) else { return };
    let ctx = contexts.recv().await.unwrap();
    assert!(ctx.remaining().unwrap() <= ms(2000), "{ctx:?}");
    let (code, seconds, _) = peer.outcome().await;
    assert_eq!(code, "DEADLINE_EXCEEDED");
    assert!(seconds < 2.5, "{seconds}");
    eventually("the context ends", || ctx.is_done()).await;
}

#[tokio::test]
async fn the_servers_deadline_is_the_clients_status() {
    let (at, _contexts) = serving(Some(Inbound::new().max_budget(ms(300)))).await;
    let port = at.port().to_string();
    let Some(mut peer) = Peer::start(&["call", &port, "stuck", "0"]) else { return };
    peer.assert_outcome("DEADLINE_EXCEEDED", "deadline exceeded", "stuck").await;
    let mut peer = Peer::start(&["watch", &port, "0"]).unwrap();
    assert_eq!(peer.read_words().await, ["message"]);
    peer.assert_outcome("DEADLINE_EXCEEDED", "deadline exceeded", "during a stream").await;
}

#[tokio::test]
async fn a_service_that_stops_is_unavailable_for_the_client() {
    for name in ["stuck", "asleep", "watch"] {
        let service = Context::background().with_cancel();
        let layer = ServerLayer::new(service.clone(), Inbound::new());
        let (at, mut contexts) = serving_under(Some(layer)).await;
        let port = at.port().to_string();
        let call =
            if name == "watch" { vec!["watch", &port, "0"] } else { vec!["call", &port, name, "0"] };
        let Some(mut peer) = Peer::start(&call) else { return };
        contexts.recv().await.unwrap();
        if name == "watch" {
            assert_eq!(peer.read_words().await, ["message"]);
        }
        service.cancel_with("secret");
        peer.assert_outcome("UNAVAILABLE", "service stopping", name).await;
    }
}

#[tokio::test]
async fn a_cancel_of_the_client_ends_the_handler() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let port = at.port().to_string();
    let Some(mut peer) = Peer::start(&["cancel", &port, "stuck"]) else { return };
    let ctx = contexts.recv().await.unwrap();
    assert!(ctx.deadline().is_none() && !ctx.is_done());
    peer.stdin.write_all(b"now\n").await.unwrap();
    assert_eq!(peer.outcome().await.0, "CANCELLED");
    eventually("the context ends", || ctx.is_done()).await;
    assert_eq!(ended(&ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

// grpc-js as a server.

async fn peer_server() -> Option<(Peer, std::net::SocketAddr)> {
    let mut peer = Peer::start(&["server"])?;
    let port: u16 = peer.read_words().await[1].parse().unwrap();
    Some((peer, (std::net::Ipv4Addr::LOCALHOST, port).into()))
}

#[tokio::test]
async fn the_clients_deadline_and_end_arrive_at_the_server() {
    let Some((mut peer, at)) = peer_server().await else { return };
    let mut health = client(at, Outbound::new());
    let ctx = Context::background().with_timeout(Duration::from_secs(20));
    let call = ctx.spawn({
        let mut health = health.clone();
        async move { health.check(health_request("stuck")).await }
    });
    let remaining: f64 = peer.read_words().await[1].parse().unwrap();
    assert!((10.0..=20.0).contains(&remaining), "{remaining}");
    ctx.cancel();
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Cancelled);
    assert_eq!(peer.read_words().await, ["ended"]);

    // A stream that is held without being polled.
    let ctx = Context::background().with_cancel();
    let mut stream = ctx.scope(health.watch(health_request(""))).await.unwrap().into_inner();
    assert_eq!(peer.read_words().await, ["remaining", "none"]);
    assert!(stream.message().await.unwrap().is_some());
    ctx.cancel();
    assert_eq!(peer.read_words().await, ["ended"]);
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn the_clients_end_resets_an_open_request() {
    let Some((mut peer, at)) = peer_server().await else { return };
    for held in [true, false] {
        let ctx = Context::background().with_cancel();
        let (send, mut replies) = ctx.scope(chat(at)).await.unwrap();
        assert_eq!(peer.read_words().await, ["remaining", "none"]);
        ctx.cancel();
        if !held {
            assert_eq!(replies.message().await.unwrap_err().code(), Code::Cancelled);
        }
        assert_eq!(peer.read_words().await, ["ended"]);
        drop((send, replies));
    }
}

// connect-node as a client.

/// The protocols of connect-node, each with a version of HTTP.
const CONNECT: [(&str, &str); 7] = [
    ("connect", "1.1"),
    ("connect", "2"),
    ("connect-json", "1.1"),
    ("connect-get", "1.1"),
    ("grpc-web", "1.1"),
    ("grpc-web", "2"),
    ("grpc", "2"),
];

/// A server of all these protocols. `Check` never responds, or returns its context's error. `Watch` sends one message.
async fn serve_all_protocols(
    layer: ServerLayer,
    passes: bool,
) -> (Server, mpsc::UnboundedReceiver<Context>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let (ctx, seen) = (Context::current(), seen.clone());
        async move {
            let (request, body) = request.into_parts();
            body.collect().await.unwrap();
            seen.send(ctx.clone()).unwrap();
            if !request.uri.path().ends_with("/Watch") {
                let slept = ctx.sleep(if passes { LONG } else { Duration::MAX }).await;
                if !passes {
                    std::future::pending::<()>().await;
                }
                return Ok(slept.unwrap_err().into_response());
            }
            let kind = request.headers["content-type"].clone();
            let message: &[u8] = match kind.as_bytes().ends_with(b"json") {
                true => b"\0\0\0\0\x0c{\"status\":1}",
                false => b"\0\0\0\0\x02\x08\x01",
            };
            let (send, body) = channel_body();
            send.send(Ok(Frame::data(Bytes::from_static(message)))).unwrap();
            ctx.after_func(|| async move { drop(send) });
            let response = Response::builder().header("content-type", kind);
            Ok::<_, Infallible>(response.body(Body::new(body)).unwrap())
        }
    });
    (serve(Version::Http1, layer.layer(service)).await, contexts)
}

impl Peer {
    async fn connect(&mut self, (protocol, http): (&str, &str), server: &Server, name: &str, ms: u32) {
        let line = format!("{protocol} {http} {} {name} {ms}\n", server.at.port());
        self.stdin.write_all(line.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_late_call_is_deadline_exceeded_in_each_protocol() {
    let layer = ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(300)));
    let (server, _contexts) = serve_all_protocols(layer, false).await;
    let Some(mut peer) = Peer::start(&["connect"]) else { return };
    for how in CONNECT {
        for name in ["stuck", "stream"] {
            peer.connect(how, &server, name, 0).await;
            if name == "stream" {
                assert_eq!(peer.read_words().await, ["message"], "{how:?}");
            }
            let what = format!("{how:?} {name}");
            peer.assert_outcome("DeadlineExceeded", "deadline exceeded", &what).await;
        }
    }
}

#[tokio::test]
async fn a_service_that_stops_is_unavailable_in_each_protocol() {
    let Some(mut peer) = Peer::start(&["connect"]) else { return };
    for how in CONNECT {
        for (name, passes) in [("stuck", false), ("asleep", true), ("stream", false)] {
            let service = Context::background().with_cancel();
            let layer = ServerLayer::new(service.clone(), Inbound::new());
            let (server, mut contexts) = serve_all_protocols(layer, passes).await;
            peer.connect(how, &server, name, 0).await;
            contexts.recv().await.unwrap();
            if name == "stream" {
                assert_eq!(peer.read_words().await, ["message"], "{how:?}");
            }
            service.cancel_with("secret");
            peer.assert_outcome("Unavailable", "service stopping", &format!("{how:?} {name}")).await;
        }
    }
}

/// The timer of either side may fire first.
#[tokio::test]
async fn the_timeout_of_the_client_applies_here() {
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let (server, mut contexts) = serve_all_protocols(layer, false).await;
    let Some(mut peer) = Peer::start(&["connect"]) else { return };
    for how in CONNECT {
        for name in ["stuck", "stream"] {
            peer.connect(how, &server, name, 700).await;
            let ctx = contexts.recv().await.unwrap();
            assert!(ctx.remaining().unwrap() <= ms(700), "{how:?}: {ctx:?}");
            if name == "stream" {
                assert_eq!(peer.read_words().await, ["message"]);
            }
            assert_eq!(peer.outcome().await.0, "DeadlineExceeded", "{how:?} {name}");
            eventually("the context ends", || ctx.is_done()).await;
        }
    }
}
