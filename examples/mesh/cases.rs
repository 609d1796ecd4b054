//! The client, with its three cases, and what must have come of them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};
use tokio_ctx::BoxError;
use tokio_ctx::wire::{Budget, RequestEnd};

use crate::journal::{Entry, millis, table};
use crate::services::BUDGET;

const SERVICES: [&str; 4] = ["edge", "middle", "leaf", "sqlite"];
/// How long they may go on after their time is up, or their client has left.
const AFTER: Duration = Duration::from_millis(50);
/// When the client that hangs up does.
const PATIENCE: Duration = Duration::from_millis(120);
/// A busy machine may be late; the services must not be.
const ATTEMPTS: usize = 5;

pub async fn run(edge: SocketAddr, mut entries: UnboundedReceiver<Entry>) -> Result<(), BoxError> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = |text| format!("http://{edge}/search/{text}");
    let mut all = Vec::new();

    println!("a request that is done in time");
    let response = client.get(url("quick")).send().await?;
    println!("  client {}, {:?}\n", response.status(), response.text().await?);
    let hops = ended(&mut entries, &SERVICES[..3]).await?;
    insist(hops.iter().all(|hop| hop.end.cause_as() == Some(&RequestEnd::Answered)), "answered")?;
    insist(hops.windows(2).all(|hops| hops[0].given > hops[1].given), "each gets less than the last")?;
    all.extend(hops);

    println!("a request that would take for ever");
    let start = Instant::now();
    let response = client.get(url("slow")).send().await?;
    let (status, took) = (response.status(), start.elapsed());
    println!("  client {status}, {:?}, after {}\n", response.text().await?, millis(took));
    insist(status == 504 && took < BUDGET * 2, "504 in time")?;
    let hops = ended(&mut entries, &SERVICES).await?;
    let caller_or_default = |hop: &Entry| match hop.service {
        "edge" => Budget::Default,
        _ => Budget::Caller,
    };
    // The edge may have had its answer from the middle, before its own time was up.
    let stopped = |hop: &&Entry| hop.end.is_deadline_exceeded();
    insist(
        hops.iter().filter(stopped).all(|hop| hop.end.cause_as() == Some(&caller_or_default(hop))),
        "whose budget",
    )?;
    insist(
        hops.iter().any(|hop| hop.service == "leaf" && stopped(&hop)),
        "the leaf was stopped by the deadline",
    )?;
    insist(hops.iter().all(|hop| hop.took() <= hop.given + AFTER), "none of them took longer")?;
    all.extend(hops);

    println!("a client that hangs up after {}", millis(PATIENCE));
    for attempt in 1..=ATTEMPTS {
        let (call, left) = (client.get(url("slow")).send(), Instant::now() + PATIENCE);
        insist(timeout(PATIENCE, call).await.is_err(), "no answer in that time")?;
        let hops = ended(&mut entries, &SERVICES).await?;
        let last = hops.iter().map(|hop| hop.over - left).max().unwrap_or_default();
        println!("  all of them stopped within {}\n", millis(last));
        insist(
            hops.iter().all(|hop| hop.end.cause_as() == Some(&RequestEnd::ClientLeft)),
            "the client left",
        )?;
        if last <= AFTER {
            all.extend(hops);
            break;
        }
        insist(attempt < ATTEMPTS, "all stopped within 50 ms")?;
    }
    table(&all);
    Ok(())
}

/// The entries of a request in these services, in their order.
async fn ended(
    entries: &mut UnboundedReceiver<Entry>,
    services: &[&'static str],
) -> Result<Vec<Entry>, BoxError> {
    let mut hops = Vec::new();
    while hops.len() < services.len() {
        let entry = timeout(Duration::from_secs(10), entries.recv()).await?;
        hops.push(entry.ok_or("the services are gone")?);
    }
    hops.sort_by_key(|hop| services.iter().position(|service| *service == hop.service));
    insist(hops.iter().map(|hop| hop.service).eq(services.iter().copied()), "each once")?;
    insist(hops.iter().all(|hop| hop.request == hops[0].request), "one request id in all")?;
    Ok(hops)
}

fn insist(holds: bool, what: &str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}
