//! The steps: each triggers a fault, and finds its line in the watch.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_ctx::watch::{EndedLine, How, Kind, Phase, Snapshot, State, Watch};
use tokio_ctx::{BoxError, Context, Shutdown};

use crate::load::{Faults, Load};
use crate::service::{self, DONE};
use crate::{BUDGET, serve};

/// A timeout, which is far longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns an error with the message unless the condition is true.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

pub async fn run(watch: Watch, page: SocketAddr) -> Result<(), BoxError> {
    let shutdown = Shutdown::new(&Context::background()).grace(3 * BUDGET / 5).cleanup(BUDGET / 5);
    let load = Load::start(serve(&shutdown).await?, Faults::Later)?;

    let healthy =
        until(watch, |shown| shown.lately.iter().any(|ended| ended.how == How::Finished)).await?;
    print("1. a healthy service: no work is running long after its end", &healthy);
    ensure!(overstays(&healthy).next().is_none(), "something overstays");
    ensure!(healthy.alive.iter().any(|line| line.kind == Kind::Request), "no request is under way");

    load.ask("report/7", BUDGET / 5).await;
    let hung = until(watch, |shown| overstays(shown).next().is_some()).await?;
    print("2. a client has disconnected, and its report is still running", &hung);
    let first = overstays(&hung).next().ok_or("gone")?;
    let line = format!("service.rs:{}", service::REPORT);
    ensure!(first.line.to_string().ends_with(&line), "{} is first, not {line}", first.line);
    ensure!(first.state == State::Waiting, "it is {:?}", first.state);
    ensure!(first.end.how == How::RequestDropped, "it ended by {}", first.end.how);
    same_on_the_page(page, first).await?;

    let line = format!("service.rs:{}", service::THUMBNAIL);
    let is_blocking = |ended: &EndedLine| ended.line.to_string().ends_with(&line) && ended.inside == 1;
    // The client's timeout may be held up by the blocked worker as well.
    let seen = until(watch, |shown| overstays(shown).any(is_blocking));
    let ((), blocked) = tokio::join!(load.ask("thumbnail/7", BUDGET / 5), seen);
    let blocked = blocked?;
    print("3. a thumbnail blocks a worker", &blocked);
    let found = overstays(&blocked).find(|ended| is_blocking(ended)).ok_or("gone")?;
    ensure!(found.state == State::Busy, "it is {:?}", found.state);
    DONE.store(true, Ordering::Relaxed);

    for id in 0..20 {
        load.ask(&format!("subscribe/{id}"), BUDGET).await;
    }
    let leaked = until(watch, |shown| shown.totals.held >= 20).await?;
    print("4. twenty requests have ended, and their contexts are still held", &leaked);
    let held = leaked.ended.iter().find(|line| !line.is_work).ok_or("no context is held")?;
    ensure!(held.kind == Kind::Request && held.count >= 20, "{} of {}", held.count, held.kind);
    let name = held.name.as_deref().unwrap_or_default();
    ensure!(name.contains("/subscribe/"), "the first is {name}");

    drain(watch, &shutdown, load).await
}

/// The report and the watch agree: both name a request that does not end.
async fn drain(watch: Watch, shutdown: &Shutdown, load: Load) -> Result<(), BoxError> {
    let stuck = load.ask("report/8", PATIENCE);
    let phase = |shown: &Snapshot, phase| shown.shutdowns.iter().any(|shutdown| shutdown.phase == phase);
    let watched = async {
        until(watch, |shown| shown.alive.iter().any(|line| line.kind == Kind::Request)).await?;
        until(watch, |shown| {
            let name = |entry: &tokio_ctx::watch::Entry| entry.name.clone().unwrap_or_default();
            shown.entries.iter().any(|entry| entry.is_work && name(entry).contains("/report/"))
        })
        .await?;
        shutdown.begin("a new version");
        let (draining, report) =
            tokio::join!(until(watch, |shown| phase(shown, Phase::Soft)), shutdown.wait());
        let draining = draining?;
        print("5. a shutdown is in progress", &draining);
        println!("{report}\n");
        let state = draining.shutdowns.iter().find(|state| state.phase == Phase::Soft).ok_or("gone")?;
        for overdue in report.overdue() {
            let name = overdue.name().unwrap_or_default();
            let is_named = state.waits_for.iter().any(|work| work.name.as_deref() == Some(name));
            ensure!(is_named, "the watch does not name {name}");
        }
        let is_report = |name: Option<&str>| name.is_some_and(|name| name.contains("/report/"));
        ensure!(
            report.overdue().iter().any(|overdue| is_report(overdue.name())),
            "not overdue: {report}"
        );
        Ok::<_, BoxError>(())
    };
    tokio::select! {
        watched = watched => watched?,
        () = async { stuck.await; std::future::pending().await } => {}
    }
    load.stop();
    println!("all five steps succeeded");
    Ok(())
}

/// Returns work whose context ended at least a second ago.
fn overstays(shown: &Snapshot) -> impl Iterator<Item = &EndedLine> {
    shown.ended.iter().filter(|line| line.is_work && line.longest >= Duration::from_secs(1))
}

/// Takes snapshots until one satisfies the condition.
async fn until(watch: Watch, is_such: impl Fn(&Snapshot) -> bool) -> Result<Snapshot, BoxError> {
    let begun = Instant::now();
    loop {
        // There are few contexts here. With many, take the snapshot in `spawn_blocking`.
        let shown = watch.snapshot();
        if is_such(&shown) {
            return Ok(shown);
        }
        ensure!(begun.elapsed() < PATIENCE, "timeout:\n{shown}");
        // Not a timer of the runtime: a handler that blocks its worker may also hold up the timers.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(20))).await?;
    }
}

fn print(title: &str, shown: &Snapshot) {
    println!("\n==== {title}\n\n{shown}\n");
}

/// Checks that the page begins with the same line: it shows this JSON.
async fn same_on_the_page(page: SocketAddr, first: &EndedLine) -> Result<(), BoxError> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let json: Value = client.get(format!("http://{page}/json")).send().await?.json().await?;
    let shown = &json["ended"][0]["line"];
    ensure!(*shown == first.line.to_string(), "the page begins with {shown}");
    Ok(())
}
