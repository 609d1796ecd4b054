//! The cost of a request's contexts in a real server: an axum handler with contexts, against the same handler
//! without. `cargo bench --bench axum_load`, `-- --quick` for a short run.
//!
//! One server with all routes, over loopback. The load comes from `wrk` (`apt-get install wrk`), or, without it,
//! from a simple client on a thread of this process. The routes are measured in turns; share and ratio are medians
//! over the rounds.
//!
//! The requests per second depend on other work of the machine. The CPU time that the server's threads use for a
//! request does not, and is shown next to them.

mod load;
mod routes;

use std::net::SocketAddr;
use std::process;

use tokio::net::TcpListener;
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

/// The first route is the baseline.
const ROUTES: [&str; 4] = ["without", "with", "bounded", "by-hand"];

struct Plan {
    rounds: usize,
    seconds: u64,
}

/// Requests per second, and the CPU time of the server's threads for each, in microseconds.
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
        // The order alternates, so that no route is always first or last.
        for place in 0..ROUTES.len() {
            let route = (round + place) % ROUTES.len();
            rates[route].push(rate(at, ROUTES[route], plan.seconds));
        }
    }
    report(&rates);
}

fn rate(at: SocketAddr, route: &str, seconds: u64) -> Rate {
    let before = load::busy(process::id());
    let load = load::load(at, &format!("/{route}/7"), &[], seconds);
    let micros =
        load::busy(process::id()).zip(before).map(|(after, before)| (after - before) / load.requests);
    Rate { per_second: load.requests / load.seconds, micros }
}

fn report([without, with, bounded, by_hand]: &[Vec<Rate>; 4]) {
    let by = if load::has_wrk() { "wrk" } else { "a simple client" };
    println!("### An axum handler, load by {by}\n");
    println!("| handler | requests per second | share | CPU time for each, µs | ratio |");
    println!("| --- | --- | --- | --- | --- |");
    println!("{}", line("without contexts", without, without));
    println!("{}", line("with a request's contexts", with, without));
    println!("{}", line("with these, bounding its work", bounded, without));
    println!("{}", line("with tokens and timeout, bounding its work", by_hand, without));
    println!("\nRequests, compared with those of the handler by hand, target 1.0:\n");
    compare("with a request's contexts", with, by_hand);
    compare("with these, bounding its work", bounded, by_hand);
}

/// Compares with the handler by hand, by the middle half of the rounds, because they may disagree on a busy machine.
fn compare(name: &str, rates: &[Rate], by_hand: &[Rate]) {
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

/// Returns the quotients in ascending order, one for each round.
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

/// Starts a server like that of `#[tokio::main]`, which runs as long as the process.
fn serve() -> SocketAddr {
    let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().expect("a runtime")));
    let server = Context::background().with_cancel().detach();
    let routes = routes::all(server, CancellationToken::new());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let at = listener.local_addr().expect("an address");
    runtime.spawn(async { axum::serve(listener, routes).await.expect("it serves") });
    at
}
