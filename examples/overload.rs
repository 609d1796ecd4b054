//! Overload: how a queue behaves with three times as many requests as can be answered.
//!
//! A service has four workers, and takes 5 to 15 ms for a request. Its callers wait for at most 100 ms. Both versions
//! have the same queue in front of the workers. The plain version processes requests in order. Under overload, each
//! request has waited longer than its caller by the time it is started, and all the work is wasted: the *goodput*,
//! the rate of answers in time, collapses. The other version carries each request's context through the queue, and
//! skips requests that can no longer be answered in time.
//!
//! The clock is paused, so that ten seconds of load take no time, and the figures are the same in every run. With a
//! path as its argument, the example also draws them: `cargo run --example overload -- overload.svg`.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep};
use tokio_ctx::budget::{Carried, Queue};
use tokio_ctx::{Context, StreamExt as _};

const WORKERS: usize = 4;
/// The requests per second that the workers can process, at 10 ms on average.
const CAPACITY: f64 = 400.0;
const PATIENCE: Duration = Duration::from_millis(100);
/// The duration of the longest request.
const LONGEST: Duration = Duration::from_millis(15);
/// Many more than can be processed while callers wait, like the queues of many services.
const QUEUE_LENGTH: usize = 1_000;
const LOAD_FOR: Duration = Duration::from_secs(10);

struct Request {
    takes: Duration,
    reply: oneshot::Sender<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    Plain,
    Skipping,
}

/// Processes requests until all callers are gone.
async fn serve(version: Version, requests: mpsc::Receiver<Carried<Request>>) -> u64 {
    let service = Context::background();
    let work = |request: Request| async move {
        sleep(request.takes).await;
        // The caller may be gone.
        let _left = request.reply.send(());
    };
    let mut skipped = 0;
    let served = match version {
        Version::Plain => {
            let requests = futures::stream::unfold(requests, async |mut requests| {
                Some((requests.recv().await?.into_parts().1, requests))
            });
            requests
                .for_each_task(&service, WORKERS, |_, request| {
                    let work = work(request);
                    async {
                        work.await;
                        Ok::<_, tokio_ctx::Error>(())
                    }
                })
                .await
        }
        Version::Skipping => {
            let queue = Queue::from(requests).least(LONGEST);
            let count = queue.skipped();
            let served = queue.for_each_task(&service, WORKERS, |_, request| work(request)).await;
            skipped = count.get();
            served
        }
    };
    served.expect("the background does not end");
    skipped
}

/// Sends requests at this rate, each from a caller of its own. Returns the answers in time per second, and the
/// number of skipped requests.
async fn load(version: Version, per_second: f64) -> (f64, u64) {
    let (sender, requests) = mpsc::channel(QUEUE_LENGTH);
    let server = tokio::spawn(serve(version, requests));
    let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
    let (begun, mut callers, mut nth) = (Instant::now(), Vec::new(), 0_u64);
    while begun.elapsed() < LOAD_FOR {
        ticks.tick().await;
        nth += 1;
        // From 5 to 15 ms, in random order, and in whole milliseconds, like Tokio's timers.
        let mixed = (nth ^ nth << 21).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let takes =
            Duration::from_millis(5 + (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) % 11);
        let sender = sender.clone();
        callers.push(tokio::spawn(async move {
            let ctx = Context::background().with_timeout(PATIENCE);
            let (reply, replied) = oneshot::channel();
            let sent = ctx.run(sender.send(ctx.carry(Request { takes, reply }))).await;
            matches!(sent, Ok(Ok(()))) && matches!(ctx.run(replied).await, Ok(Ok(())))
        }));
    }
    drop(sender);
    let mut answered = 0_u32;
    for caller in callers {
        answered += u32::from(caller.await.expect("a caller does not panic"));
    }
    let skipped = server.await.expect("the server does not panic");
    (f64::from(answered) / LOAD_FOR.as_secs_f64(), skipped)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    println!("capacity: {CAPACITY} requests a second; callers wait for {PATIENCE:?}\n");
    println!("{:>12}{:>16}{:>16}{:>10}", "load, times", "plain, in time", "skipping", "skipped");
    let mut points = Vec::new();
    for step in 1..=16 {
        let times = f64::from(step) / 4.0;
        let (plain, _) = load(Version::Plain, CAPACITY * times).await;
        let (skipping, skipped) = load(Version::Skipping, CAPACITY * times).await;
        println!("{times:>12}{plain:>14.0}/s{skipping:>14.0}/s{skipped:>10}");
        points.push((times, plain / CAPACITY, skipping / CAPACITY));
    }
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(&path, plot(&points)).expect("a path that can be written");
        println!("\ndrawn in {path}");
    }

    let (_, plain, skipping) = points[11];
    println!(
        "\nat three times the capacity: plain {:.0} %, skipping {:.0} % of it",
        plain * 1e2,
        skipping * 1e2
    );
    let overload = points.iter().filter(|(times, ..)| *times > 1.0);
    assert!(
        overload.clone().all(|(.., skipping)| *skipping >= 0.9),
        "the time goes to what can still be answered"
    );
    assert!(overload.clone().all(|(_, plain, _)| *plain <= 0.3), "the plain version collapses");
    let under_load = points.iter().filter(|(times, ..)| *times < 1.0);
    for (times, plain, skipping) in under_load {
        assert!(
            (plain - times).abs() < 0.02 && (skipping - times).abs() < 0.02,
            "nothing is lost at {times}"
        );
    }
}

/// Plots the goodput against the load, both relative to the capacity.
fn plot(points: &[(f64, f64, f64)]) -> String {
    let at = |times: f64, goodput: f64| (60.0 + times * 140.0, 260.0 - goodput * 200.0);
    let line = |of: fn(&(f64, f64, f64)) -> f64| {
        let mut line = String::new();
        for point in points {
            let (x, y) = at(point.0, of(point));
            let _ = write!(line, "{x:.1},{y:.1} ");
        }
        line
    };
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 660 330\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"660\" height=\"330\" fill=\"white\"/>\n",
    );
    for tick in 0..=4 {
        let (x, y) = at(f64::from(tick), 0.0);
        let _ = writeln!(svg, "<path d=\"M{x} {y}v-220\" stroke=\"#ddd\"/>");
        let _ =
            writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{tick}×</text>", y + 18.0);
        let (x, y) = at(0.0, f64::from(tick) / 4.0);
        let _ = writeln!(svg, "<path d=\"M{x} {y}h570\" stroke=\"#ddd\"/>");
        let _ =
            writeln!(svg, "<text x=\"52\" y=\"{}\" text-anchor=\"end\">{} %</text>", y + 4.0, tick * 25);
    }
    let _ = write!(
        svg,
        "<text x=\"340\" y=\"308\" text-anchor=\"middle\">load, in capacities</text>\n\
         <text x=\"60\" y=\"24\">answers in time, of the capacity</text>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#c0392b\" stroke-width=\"2.5\"/>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#1f6f43\" stroke-width=\"2.5\"/>\n\
         <text x=\"470\" y=\"80\" fill=\"#1f6f43\">overdue items are skipped</text>\n\
         <text x=\"470\" y=\"245\" fill=\"#c0392b\">plain</text>\n</svg>\n",
        line(|point| point.1),
        line(|point| point.2),
    );
    svg
}
