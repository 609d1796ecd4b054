//! What a request's contexts cost where a request costs something: an axum handler with them, against
//! the same handler without. `cargo bench --bench axum_load`, `-- --quick` for a short run.
//!
//! One server with all routes, over loopback; the load comes from `wrk` (`apt-get install wrk`), or, where
//! there is none, from a plain client on a thread of this process. The routes take turns; share and ratio
//! are medians over the rounds.
//!
//! Requests per second are what the machine had left for this. Where it has other work as well, the time
//! that the server's threads took for a request says more; it is given beside them.

mod load;
mod routes;

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

/// The first is what the others are compared with.
const ROUTES: [&str; 4] = ["without", "with", "bounded", "by-hand"];

struct Plan {
    rounds: usize,
    seconds: u64,
}

/// Requests per second, and the microseconds that the server's threads took for each.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    micros: Option<f64>,
}

fn main() {
    let given: Vec<String> = std::env::args().collect();
    if !given.iter().any(|arg| arg == "--bench") {
        return println!("this takes a minute: cargo bench --bench axum_load");
    }
    let quick = given.iter().any(|arg| arg == "--quick");
    let plan = if quick { Plan { rounds: 3, seconds: 1 } } else { Plan { rounds: 21, seconds: 1 } };
    let at = serve();
    let mut rates = ROUTES.map(|_| Vec::new());
    for round in 0..plan.rounds {
        // Each is the first, the second and the last in turns.
        for place in 0..ROUTES.len() {
            let route = (round + place) % ROUTES.len();
            rates[route].push(rate(at, ROUTES[route], plan.seconds));
        }
    }
    report(&rates);
}

fn rate(at: SocketAddr, route: &str, seconds: u64) -> Rate {
    let before = load::busy();
    let load = load::load(at, &format!("/{route}/7"), &[], seconds);
    let micros = load::busy().zip(before).map(|(after, before)| (after - before) / load.requests);
    Rate { per_second: load.requests / load.seconds, micros }
}

fn report([without, with, bounded, by_hand]: &[Vec<Rate>; 4]) {
    let by = if load::has_wrk() { "wrk" } else { "a plain client" };
    println!("### An axum handler, load by {by}\n");
    println!("| handler | requests per second | share | CPU time for each, µs | ratio |");
    println!("| --- | --- | --- | --- | --- |");
    println!("{}", line("without contexts", without, without));
    println!("{}", line("with a request's contexts", with, without));
    println!("{}", line("with these, and they bound its work", bounded, without));
    println!("{}", line("with tokens and timeout, by hand, that bound it", by_hand, without));
    println!("\nRequests beside those of the handler by hand, target 1.0:\n");
    beside("with a request's contexts", with, by_hand);
    beside("with these, and they bound its work", bounded, by_hand);
}

/// Not below by hand: by the middle half of the rounds, as on a busy machine they may not agree.
fn beside(name: &str, rates: &[Rate], by_hand: &[Rate]) {
    let shares = shares(rates, by_hand, |rate| Some(rate.per_second));
    let quarter = shares.len() / 4;
    let verdict = match (shares[quarter], shares[shares.len() - 1 - quarter]) {
        (low, _) if low >= 1.0 => "met",
        (_, high) if high < 1.0 => "MISSED",
        _ => "unclear",
    };
    println!("- {name}: {:.3}, {verdict}", shares[shares.len() / 2]);
}

fn line(name: &str, rates: &[Rate], without: &[Rate]) -> String {
    let middle = |part: fn(&Rate) -> Option<f64>| median(rates.iter().filter_map(part).collect());
    let or_none =
        |number: Option<f64>, digits| number.map_or(String::new(), |n| format!("{n:.digits$}"));
    let (per_second, micros) = (|rate: &Rate| Some(rate.per_second), |rate: &Rate| rate.micros);
    format!(
        "| {name} | {} | {} | {} | {} |",
        or_none(middle(per_second), 0),
        or_none(median(shares(rates, without, per_second)), 3),
        or_none(middle(micros), 2),
        or_none(median(shares(rates, without, micros)), 3),
    )
}

/// Sorted: one for each round, in which both had the same machine.
fn shares(a: &[Rate], b: &[Rate], part: fn(&Rate) -> Option<f64>) -> Vec<f64> {
    let shares = a.iter().zip(b).filter_map(|(a, b)| Some(part(a)? / part(b)?));
    sorted(shares.collect())
}

fn median(samples: Vec<f64>) -> Option<f64> {
    let sorted = sorted(samples);
    sorted.get(sorted.len() / 2).copied()
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    samples
}

/// A server, as `#[tokio::main]` would run it, for as long as the process lives.
fn serve() -> SocketAddr {
    let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().expect("a runtime")));
    let server = Context::background().with_cancel().detach();
    let routes = routes::all(server, CancellationToken::new());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let at = listener.local_addr().expect("an address");
    runtime.spawn(async { axum::serve(listener, routes).await.expect("it serves") });
    at
}
