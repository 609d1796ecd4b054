//! The client: three cases, and the expected result of each.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};
use tokio_ctx::BoxError;
use tokio_ctx::wire::{Budget, RequestEnd};

use crate::journal::{Entry, millis, table};
use crate::services::BUDGET;

const SERVICES: [&str; 4] = ["edge", "middle", "leaf", "sqlite"];
/// How long services may continue after the deadline, or after the client has disconnected.
const AFTER: Duration = Duration::from_millis(50);
/// The time after which the client disconnects in the third case.
const PATIENCE: Duration = Duration::from_millis(120);
/// The number of attempts, because a busy machine may be late.
const ATTEMPTS: usize = 20;

pub async fn run(edge: SocketAddr, entries: UnboundedReceiver<Entry>) -> Result<(), BoxError> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut mesh = Mesh { client, edge, entries };
    let mut all = Vec::new();
    all.extend(attempts(async || mesh.quick().await).await?);
    all.extend(attempts(async || mesh.slow().await).await?);
    all.extend(attempts(async || mesh.hanging_up().await).await?);
    table(&all);
    Ok(())
}

async fn attempts<T>(mut case: impl AsyncFnMut() -> Result<T, BoxError>) -> Result<T, BoxError> {
    for _ in 1..ATTEMPTS {
        match case().await {
            Ok(done) => return Ok(done),
            Err(error) => println!("  once more, since {error}\n"),
        }
    }
    case().await
}

struct Mesh {
    client: Client,
    edge: SocketAddr,
    entries: UnboundedReceiver<Entry>,
}

impl Mesh {
    async fn quick(&mut self) -> Result<Vec<Entry>, BoxError> {
        println!("a request that finishes in time");
        let response = self.get("quick").send().await?;
        println!("  client {}, {:?}\n", response.status(), response.text().await?);
        let hops = self.ended(&SERVICES[..3]).await?;
        let answered = |hop: &Entry| hop.end.cause_as() == Some(&RequestEnd::Answered);
        insist(hops.iter().all(answered), "it was not answered")?;
        insist(hops.windows(2).all(|hops| hops[0].given > hops[1].given), "one got more than the last")?;
        Ok(hops)
    }

    async fn slow(&mut self) -> Result<Vec<Entry>, BoxError> {
        println!("a request that would take forever");
        let start = Instant::now();
        let response = self.get("slow").send().await?;
        let (status, took) = (response.status(), start.elapsed());
        println!("  client {status}, {:?}, after {}\n", response.text().await?, millis(took));
        insist(status == 504 && took < BUDGET + AFTER, "there was no 504 in time")?;
        let hops = self.ended(&SERVICES).await?;
        insist(hops.iter().all(|hop| hop.took() <= hop.given + AFTER), "one went on too long")?;
        // The other services may have received its answer before their own deadline.
        let leaf = &hops[2].end;
        insist(leaf.is_deadline_exceeded(), "the leaf was not stopped by the deadline")?;
        insist(leaf.cause_as() == Some(&Budget::Caller), "the deadline was not the edge's")?;
        Ok(hops)
    }

    async fn hanging_up(&mut self) -> Result<Vec<Entry>, BoxError> {
        println!("a client that disconnects after {}", millis(PATIENCE));
        let (call, left) = (self.get("slow").send(), Instant::now() + PATIENCE);
        insist(timeout(PATIENCE, call).await.is_err(), "there was an answer in that time")?;
        let hops = self.ended(&SERVICES).await?;
        let last = hops.iter().map(|hop| hop.over - left).max().unwrap_or_default();
        println!("  all of them stopped within {}\n", millis(last));
        let left = |hop: &Entry| hop.end.cause_as() == Some(&RequestEnd::Dropped);
        insist(hops.iter().all(left), "one ended otherwise")?;
        insist(last <= AFTER, "one went on too long")?;
        Ok(hops)
    }

    fn get(&self, text: &str) -> RequestBuilder {
        self.client.get(format!("http://{}/search/{text}", self.edge))
    }

    /// Returns the entries of the last request in these services, in their order.
    async fn ended(&mut self, services: &[&'static str]) -> Result<Vec<Entry>, BoxError> {
        let mut hops: Vec<Entry> = Vec::new();
        while hops.len() < services.len() {
            let entry = timeout(Duration::from_secs(3), self.entries.recv()).await?;
            let entry = entry.ok_or("the services are gone")?;
            // A late entry of a previous attempt.
            hops.retain(|hop| hop.request >= entry.request);
            if hops.iter().all(|hop| hop.request == entry.request) {
                hops.push(entry);
            }
        }
        hops.sort_by_key(|hop| services.iter().position(|service| *service == hop.service));
        let each_once = hops.iter().map(|hop| hop.service).eq(services.iter().copied());
        insist(each_once, "it did not end once in each")?;
        Ok(hops)
    }
}

fn insist(holds: bool, what: &str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(what.into()) }
}
