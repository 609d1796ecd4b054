//! The cost of a watch: operations without and with an installed watch, snapshots of many contexts, and an axum service
//! under load. `cargo bench -p tokio-ctx-benches --features watch --bench watch`, `-- --quick` for a short run.
//!
//! A watch stays installed until the process exits, so the program runs itself once without a watch and once with one.

#[path = "../axum_load/load.rs"]
mod load;

use std::convert::Infallible;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::process::{Child, Command, Stdio};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::net::TcpListener;
use tokio_ctx::watch::Watch;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{Context, DoneOwned};
use tower::{Layer, Service, service_fn};

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let is_given = |arg: &str| given.iter().any(|given| given == arg);
    if is_given("--installed") {
        Watch::builder().max_entries(3_000_000).install().expect("the first");
    }
    if is_given("--serve") {
        serve(is_given("--installed"));
    } else if is_given("--operations") {
        operations();
    } else if is_given("--snapshots") {
        snapshots();
    } else if !is_given("--bench") {
        println!(
            "this takes a minute; run it with: cargo bench -p tokio-ctx-benches --features watch --bench watch"
        );
    } else {
        let rounds = if is_given("--quick") { 5 } else { 15 };
        compare_operations(rounds);
        println!("\n### Snapshots\n\n| contexts | time, ms | for each, ns |\n| --- | --- | --- |");
        print!("{}", this(&["--installed", "--snapshots"]));
        under_load(rounds);
    }
}

/// Runs this program with the given arguments, and returns its output.
fn this(arguments: &[&str]) -> String {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the median of a thousand batches, in nanoseconds for each call.
fn nanos(mut operation: impl FnMut()) -> f64 {
    // Shorter than a time slice of the scheduler.
    const BATCH: u32 = 100;
    let mut batch = || {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| operation());
        begun.elapsed().as_nanos() as f64 / f64::from(BATCH)
    };
    median((0..1_000).map(|_| batch()).collect())
}

fn median(mut all: Vec<f64>) -> f64 {
    if all.is_empty() {
        return f64::NAN;
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn waiting_on(ctx: &Context) -> Pin<Box<DoneOwned>> {
    let mut done = Box::pin(ctx.done_owned());
    assert!(done.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
    done
}

fn operations() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let parent = Context::background().with_cancel();
    let far = Duration::from_secs(600);
    runtime.block_on(async {
        println!("a child, dropped {}", nanos(|| drop(black_box(&parent).with_cancel())));
        println!(
            "a child with a timeout, dropped {}",
            nanos(|| drop(black_box(&parent).with_timeout(far)))
        );
        println!("a child, canceled {}", nanos(|| black_box(&parent).with_cancel().cancel()));
        println!("a root, dropped {}", nanos(|| drop(Context::background().with_cancel())));
        let layer = ServerLayer::new(parent.clone(), Inbound::new().max_budget(Duration::from_secs(30)));
        let mut service = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all is well"))))
        }));
        let answered = nanos(|| {
            let request = Request::get("/answer/7").body(Empty::new()).expect("a request");
            let response = ready(service.call(request)).expect("infallible");
            black_box(ready(response.into_body().collect()).expect("a body"));
        });
        println!("a request of the layer {answered}");
    });
    let spawned = nanos(|| {
        runtime.block_on(async { parent.spawn(async {}).await }).expect("it is not aborted");
    });
    println!("a task, spawned and joined {spawned}");
}

/// Returns the output of a future that resolves at its first poll.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("the future does not wait"),
    }
}

fn compare_operations(rounds: usize) {
    let mut names = Vec::new();
    let mut times: [Vec<Vec<f64>>; 2] = Default::default();
    for _ in 0..rounds {
        for (times, arguments) in
            times.iter_mut().zip([&["--operations"][..], &["--operations", "--installed"]])
        {
            let printed = this(arguments);
            let rows = printed.lines().filter_map(|line| line.rsplit_once(' '));
            for (nth, (name, time)) in rows.enumerate() {
                if names.len() == nth {
                    names.push(name.to_owned());
                }
                times.resize(times.len().max(nth + 1), Vec::new());
                times[nth].push(time.parse().expect("a number"));
            }
        }
    }
    println!("### Operations, ns\n\n| | not installed | installed |\n| --- | --- | --- |");
    let [without, with] = times;
    for (name, (without, with)) in names.iter().zip(without.into_iter().zip(with)) {
        println!("| {name} | {:.1} | {:.1} |", median(without), median(with));
    }
}

fn snapshots() {
    let watch = tokio_ctx::watch::install();
    for count in [1_000, 100_000, 1_000_000] {
        let root = Context::background().with_cancel();
        let waits: Vec<_> = (0..count).map(|_| waiting_on(&root.with_cancel().detach())).collect();
        let took = (0..5).map(|_| {
            let snapshot = watch.snapshot();
            assert!(snapshot.entries.len() > count);
            snapshot.took.as_secs_f64() * 1e3
        });
        let took = median(took.collect());
        println!("| {count} | {took:.2} | {:.0} |", took * 1e6 / count as f64);
        drop(waits);
    }
}

/// Serves on a free port, whose address it prints, until the process is killed. With a watch, it takes a snapshot every
/// second, like the page.
#[tokio::main(worker_threads = 1)]
async fn serve(is_watched: bool) {
    if is_watched {
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                black_box(
                    tokio::task::spawn_blocking(|| tokio_ctx::watch::install().snapshot()).await.ok(),
                );
            }
        });
    }
    let layer =
        ServerLayer::new(Context::background(), Inbound::new().max_budget(Duration::from_secs(30)));
    let app: Router = Router::new().route("/answer/{user}", get(answer)).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("its address"));
    axum::serve(listener, app).await.expect("it serves");
}

async fn answer(ctx: Context) -> Json<[&'static str; 3]> {
    let step = ctx.within(Duration::from_millis(50), async |_| tokio::task::yield_now().await).await;
    Json(if step.is_ok() { ["tea", "bread", "salt"] } else { ["too", "late", ""] })
}

struct Server(Child, SocketAddr);

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let program = std::env::current_exe().expect("this program");
        let mut child =
            Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().expect("it runs");
        let mut line = String::new();
        let printed = child.stdout.take().expect("piped");
        BufReader::new(printed).read_line(&mut line).expect("it prints its address");
        Server(child, line.trim().parse().expect("an address"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn under_load(rounds: usize) {
    let servers = [Server::start(&["--serve"]), Server::start(&["--serve", "--installed"])];
    let (mut rates, mut micros): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for round in 0..rounds {
        for place in 0..2 {
            let which = (round + place) % 2;
            let Server(process, at) = &servers[which];
            let before = load::busy(process.id());
            let load = load::load(*at, "/answer/7", &[], 1);
            rates[which].push(load.requests / load.seconds);
            let busy = load::busy(process.id()).zip(before).map(|(after, before)| after - before);
            micros[which].extend(busy.map(|busy| busy / load.requests));
        }
    }
    let share = |of: &[f64], by: &[f64]| median(of.iter().zip(by).map(|(of, by)| of / by).collect());
    let (requests, time) = (share(&rates[1], &rates[0]), share(&micros[1], &micros[0]));
    let by = if load::has_wrk() { "wrk" } else { "a plain client" };
    let ([without, with], [short, long]) = (rates.map(median), micros.map(median));
    println!("\n### An axum service, load by {by}\n");
    println!("| | requests per second | CPU time for each, µs |\n| --- | --- | --- |");
    println!("| not installed | {without:.0} | {short:.1} |");
    println!("| installed, a snapshot every second | {with:.0} | {long:.1} |");
    println!("\nWith a watch {:.1} % of the requests, target 95 %, and", requests * 100.0);
    println!("{:.1} % of the CPU time for each, target 105 % (medians of the rounds).", time * 100.0);
}
