//! gRPC for Python as a peer of tonic with the layers, as client and as server.
//!
//! `.ci/python-peers` makes its environment. Without it, the tests are skipped, and print that.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
mod peer;
#[path = "../wire/mod.rs"]
mod wire;

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_ctx::wire::{Budget, Inbound, Outbound, RequestEnd, ServerLayer, StatusExt};
use tokio_ctx::{Context, ErrorKind};
use tonic::Code;

use common::{ended, ms};
use grpc::{chat, client, health_request, serving, serving_under};
use peer::Peer;
use wire::eventually;

impl Peer {
    /// Returns `None` if the environment does not exist.
    fn start(arguments: &[&str]) -> Option<Peer> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let python = root.join("target/python-peers/bin/python");
        if !python.exists() {
            eprintln!("skipped: no Python with grpcio; .ci/python-peers makes one");
            return None;
        }
        let script = root.join("tests/peers/peer.py");
        Some(Peer::spawn(Command::new(python).arg(script).args(arguments)))
    }
}

// Python as the client.

#[tokio::test]
async fn the_clients_deadline_arrives_and_is_its_status() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let port = at.port().to_string();
    let Some(mut peer) = Peer::start(&["call", &port, "stuck", "2"]) else { return };
    let ctx = contexts.recv().await.unwrap();
    assert!(ctx.remaining().unwrap() <= ms(2000), "{ctx:?}");
    assert!(ctx.remaining().unwrap() >= ms(100), "{ctx:?}");
    let (code, seconds, details) = peer.outcome().await;
    assert_eq!(code, "DEADLINE_EXCEEDED");
    assert!(seconds < 2.5, "{seconds}");
    // The server's status, if it arrived before the client's timer fired.
    assert!(["deadline exceeded", "Deadline Exceeded"].contains(&&*details), "{details}");
    eventually("the context ends", || ctx.is_done()).await;
    let end = ended(&ctx);
    assert!(
        end.cause_as::<Budget>() == Some(&Budget::Caller)
            || end.cause_as::<RequestEnd>() == Some(&RequestEnd::Dropped),
        "{end}"
    );
}

#[tokio::test]
async fn the_servers_deadline_is_the_clients_status() {
    let (at, _contexts) = serving(Some(Inbound::new().max_budget(ms(300)))).await;
    let port = at.port().to_string();
    let Some(mut peer) = Peer::start(&["call", &port, "stuck", "0"]) else { return };
    let (code, _, details) = peer.outcome().await;
    assert_eq!((&*code, &*details), ("DEADLINE_EXCEEDED", "deadline exceeded"));

    // During a stream, after a message.
    let mut peer = Peer::start(&["watch", &port, "0"]).unwrap();
    assert_eq!(peer.read_words().await, ["message"]);
    let (code, _, details) = peer.outcome().await;
    assert_eq!((&*code, &*details), ("DEADLINE_EXCEEDED", "deadline exceeded"));
}

#[tokio::test]
async fn a_service_that_stops_is_unavailable_for_the_client() {
    // From the layer, from a handler that returns the error, and during a stream.
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
        let (code, _, details) = peer.outcome().await;
        assert_eq!((&*code, &*details), ("UNAVAILABLE", "service stopping"), "{name}");
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

    // A stream whose process ends.
    let mut peer = Peer::start(&["watch", &port, "0"]).unwrap();
    assert_eq!(peer.read_words().await, ["message"]);
    let ctx = contexts.recv().await.unwrap();
    assert!(!ctx.is_done());
    drop(peer);
    eventually("the context ends", || ctx.is_done()).await;
    assert_eq!(ended(&ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

// Python as the server.

async fn peer_server() -> Option<(Peer, std::net::SocketAddr)> {
    let mut peer = Peer::start(&["server"])?;
    let port: u16 = peer.read_words().await[1].parse().unwrap();
    Some((peer, (std::net::Ipv4Addr::LOCALHOST, port).into()))
}

#[tokio::test]
async fn the_clients_deadline_arrives_at_the_server() {
    let Some((mut peer, at)) = peer_server().await else { return };
    let mut health = client(at, Outbound::new());
    health.check(health_request("")).await.unwrap();
    assert_eq!(peer.read_words().await, ["remaining", "none"]);

    let ctx = Context::background().with_timeout(Duration::from_secs(20));
    ctx.scope(health.check(health_request(""))).await.unwrap();
    let remaining: f64 = peer.read_words().await[1].parse().unwrap();
    assert!((10.0..=20.0).contains(&remaining), "{remaining}");

    let mut with_margin = client(at, Outbound::new().margin(Duration::from_secs(15)));
    ctx.scope(with_margin.check(health_request(""))).await.unwrap();
    let remaining: f64 = peer.read_words().await[1].parse().unwrap();
    assert!(remaining <= 5.0, "{remaining}");
}

#[tokio::test]
async fn the_clients_end_ends_the_call_at_the_server() {
    let Some((mut peer, at)) = peer_server().await else { return };
    let mut health = client(at, Outbound::new());
    let ctx = Context::background().with_cancel();
    let call = ctx.spawn({
        let mut health = health.clone();
        async move { health.check(health_request("stuck")).await }
    });
    assert_eq!(peer.read_words().await[0], "remaining");
    ctx.cancel();
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Cancelled);
    assert_eq!(peer.read_words().await, ["ended"]);

    let ctx = Context::background().with_timeout(ms(2000));
    let status = ctx.scope(health.check(health_request("stuck"))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(peer.read_words().await[0], "remaining");
    assert_eq!(peer.read_words().await, ["ended"]);

    let ctx = Context::background().with_cancel();
    let mut stream = ctx.scope(health.watch(health_request(""))).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    ctx.cancel();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(peer.read_words().await, ["ended"]);
}

#[tokio::test]
async fn the_clients_end_resets_an_open_request() {
    let Some((mut peer, at)) = peer_server().await else { return };
    for held in [true, false] {
        let ctx = Context::background().with_cancel();
        let (send, mut replies) = ctx.scope(chat(at)).await.unwrap();
        assert_eq!(peer.read_words().await, ["chat"]);
        ctx.cancel();
        if !held {
            assert_eq!(replies.message().await.unwrap_err().code(), Code::Cancelled);
        }
        assert_eq!(peer.read_words().await, ["ended"]);
        drop((send, replies));
    }
}

#[tokio::test]
async fn the_servers_status_is_an_error_of_a_context() {
    let Some((_peer, at)) = peer_server().await else { return };
    let status = client(at, Outbound::new()).check(health_request("late")).await.unwrap_err();
    let error = status.context_error().unwrap();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().ends_with("too slow for me\""), "{error}");
}
