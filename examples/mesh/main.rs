//! Three services that share one deadline: an HTTP edge, a gRPC service in the middle, and a gRPC leaf
//! with SQLite.
//!
//! A request has 300 ms when it arrives at the edge, and each service prints how much of it is left. When the time is
//! over, or the client disconnects, all three services stop, and so does the query in SQLite.
//!
//! Without arguments, all services run in this process, on different ports, and the example runs three
//! cases. It fails if a case does not have the expected result:
//!
//! ```text
//! cargo run --example mesh
//! ```
//!
//! To run each service in a process of its own, until Ctrl-C:
//!
//! ```text
//! cargo run --example mesh -- --only leaf --port 7003
//! cargo run --example mesh -- --only middle --port 7002 --next 127.0.0.1:7003
//! cargo run --example mesh -- --only edge --port 7001 --next 127.0.0.1:7002
//! curl -i http://127.0.0.1:7001/search/slow
//! curl -i --max-time 0.1 http://127.0.0.1:7001/search/slow
//! ```
//!
//! `services.rs` contains the services, `search.rs` their protocol, `../recipes/rusqlite` a query that
//! ends with its context, `cases.rs` the client, and `journal.rs` the table.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_ctx::{BoxError, Context};

use journal::{Entry, Journal};

mod cases;
mod journal;
mod search;
mod services;

#[tokio::main]
async fn main() -> ExitCode {
    let run = match Arguments::read(std::env::args().skip(1)) {
        Err(message) => {
            eprintln!("mesh: {message}");
            return ExitCode::from(2);
        }
        Ok(Arguments { only: None, .. }) => all().await,
        Ok(Arguments { only: Some(only), port, next }) => alone(&only, port, next).await,
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all three services and a client.
async fn all() -> Result<(), BoxError> {
    let service = Context::background().with_cancel();
    let (journal, entries) = Journal::new();
    let (edge, middle, leaf) = (listen(0).await?, listen(0).await?, listen(0).await?);
    let [edge_at, middle_at, leaf_at] = [edge.local_addr()?, middle.local_addr()?, leaf.local_addr()?];
    tokio::spawn(services::leaf(service.clone(), leaf, journal.clone()));
    tokio::spawn(services::middle(service.clone(), middle, leaf_at, journal.clone()));
    tokio::spawn(services::edge(service.clone(), edge, middle_at, journal));
    cases::run(edge_at, entries).await
}

/// Runs one service until Ctrl-C.
async fn alone(only: &str, port: u16, next: Option<SocketAddr>) -> Result<(), BoxError> {
    if !["edge", "middle", "leaf"].contains(&only) {
        return Err("--only takes edge, middle or leaf".into());
    }
    let next = next.ok_or("--next is missing: the address of the service behind this one");
    if only != "leaf" {
        next?;
    }
    let service = Context::background().with_cancel();
    let stop = service.canceler();
    tokio::spawn(async move {
        let why = match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C".to_string(),
            Err(error) => error.to_string(),
        };
        stop.cancel_with(why);
    });
    let (journal, entries) = Journal::new();
    tokio::spawn(print(entries));
    let listener = listen(port).await?;
    println!("{only} at {}", listener.local_addr()?);
    match only {
        "edge" => services::edge(service.clone(), listener, next?, journal).await,
        "middle" => services::middle(service.clone(), listener, next?, journal).await,
        _ => services::leaf(service.clone(), listener, journal).await,
    }
}

async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

async fn print(mut entries: UnboundedReceiver<Entry>) {
    while let Some(entry) = entries.recv().await {
        let after = journal::millis(entry.took());
        println!(
            "  {:<7} request {} was over after {after}: {}",
            entry.service, entry.request, entry.end
        );
    }
}

#[derive(Default)]
struct Arguments {
    only: Option<String>,
    port: u16,
    next: Option<SocketAddr>,
}

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments::default();
        while let Some(name) = given.next() {
            let value = given.next().ok_or(format!("{name} takes a value"))?;
            match name.as_str() {
                "--only" => arguments.only = Some(value),
                "--port" => {
                    arguments.port =
                        value.parse().map_err(|_| format!("--port takes a port, not {value}"))?;
                }
                "--next" => {
                    let next = value.parse();
                    arguments.next =
                        Some(next.map_err(|_| format!("--next takes an address, not {value}"))?);
                }
                _ => return Err(format!("{name} is unknown; there are --only, --port and --next")),
            }
        }
        Ok(arguments)
    }
}
