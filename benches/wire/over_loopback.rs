//! An axum server over loopback, and one that calls it.

use std::net::SocketAddr;
use std::process;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_ctx::Context;
use tokio_ctx::wire::{ClientLayer, ClientService, Inbound, Outbound, ServerLayer};
use tower::util::MapFutureLayer;
use tower::{Layer, ServiceExt};

use crate::load::{busy, has_wrk, load};
use crate::{quartiles, verdict};

/// The smallest acceptable share of the requests per second.
const TARGET: f64 = 0.98;
/// Without a layer, with a timeout by hand, and with the layer; and a server that calls the others, without and with
/// the layers.
const PATHS: [&str; 5] = ["/bare", "/timeout", "/layered", "/asks-bare", "/asks-layered"];

type Plain = Client<HttpConnector, Body>;

pub fn report(rounds: usize) {
    let at = serve();
    let mut rates = PATHS.map(|_| Vec::new());
    for round in 0..rounds {
        // The order changes in every round.
        for place in 0..PATHS.len() {
            let path = (round + place) % PATHS.len();
            rates[path].push(rate(at, PATHS[path]));
        }
    }
    let by = if has_wrk() { "wrk" } else { "a plain client" };
    println!("### An axum server, load by {by}\n");
    println!("| | requests per second | with the layers | share left | of CPU time, ratio | target | |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let [bare, timeout, layered, asks_bare, asks_layered] = &rates;
    line("for comparison, `tokio::time::timeout` by hand", bare, timeout);
    line("the server's layer", bare, layered);
    line("the server's layer, beside the timeout by hand", timeout, layered);
    line("the server's layers and the client's, in one that asks the other", asks_bare, asks_layered);
}

/// Requests per second, and the CPU time of the server's threads for each, in microseconds.
struct Rate {
    per_second: f64,
    micros: Option<f64>,
}

fn rate(at: SocketAddr, path: &str) -> Rate {
    let before = busy(process::id());
    let load = load(at, path, &["connect-timeout-ms: 20000"], 1);
    let micros = busy(process::id()).zip(before).map(|(after, before)| (after - before) / load.requests);
    Rate { per_second: load.requests / load.seconds, micros }
}

fn line(name: &str, without: &[Rate], with: &[Rate]) {
    let middle = |rates: &[Rate]| quartiles(rates.iter().map(|rate| rate.per_second).collect())[1];
    let pairs = || with.iter().zip(without);
    let [low, share, high] =
        quartiles(pairs().map(|(with, without)| with.per_second / without.per_second).collect());
    let ratios: Vec<_> =
        pairs().filter_map(|(with, without)| Some(with.micros? / without.micros?)).collect();
    let ratio = if ratios.is_empty() { String::new() } else { format!("{:.3}", quartiles(ratios)[1]) };
    println!(
        "| {name} | {:.0} | {:.0} | {share:.3} | {ratio} | {TARGET} | {} |",
        middle(without),
        middle(with),
        verdict([low >= TARGET, high >= TARGET]),
    );
}

#[derive(Serialize)]
struct Answer {
    user: u64,
    items: [&'static str; 3],
}

/// Awaits once, like a handler that queries a database.
async fn answer() -> Json<Answer> {
    tokio::task::yield_now().await;
    Json(Answer { user: 7, items: ["tea", "bread", "salt"] })
}

async fn asks_bare(State((at, client)): State<(SocketAddr, Plain)>) -> Response {
    let request = Request::get(format!("http://{at}/bare")).body(Body::empty()).expect("a request");
    client.request(request).await.expect("an answer").map(Body::new)
}

async fn asks_layered(State((at, client)): State<(SocketAddr, ClientService<Plain>)>) -> Response {
    let request = Request::get(format!("http://{at}/layered")).body(Body::empty()).expect("a request");
    client.oneshot(request).await.expect("an answer").map(Body::new)
}

/// Starts a server, as `#[tokio::main]` would, which runs until the process ends.
fn serve() -> SocketAddr {
    let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().expect("a runtime")));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let at = listener.local_addr().expect("an address");
    let client: Plain = Client::builder(TokioExecutor::new()).build_http();
    let inbound = Inbound::new().max_budget(Duration::from_secs(30));
    let onward = ClientLayer::new(Outbound::new()).layer(client.clone());
    let with = Router::new()
        .route("/layered", get(answer))
        .route("/asks-layered", get(asks_layered).with_state((at, onward)))
        .layer(ServerLayer::new(Context::background(), inbound));
    let without = Router::new()
        .route("/bare", get(answer))
        .route("/asks-bare", get(asks_bare).with_state((at, client)));
    // Shows the cost of a deadline alone, which is a timer for each request.
    let by_hand = MapFutureLayer::new(|answer| async {
        tokio::time::timeout(Duration::from_secs(20), answer).await.expect("in time")
    });
    let by_hand = Router::new().route("/timeout", get(answer)).layer(by_hand);
    let all = without.merge(by_hand).merge(with);
    runtime.spawn(async { axum::serve(listener, all).await.expect("it serves") });
    at
}
