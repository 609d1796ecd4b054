//! Two web servers, one with axum and one with hyper, are shut down in two phases. First they stop
//! accepting connections. After a grace period, the remaining requests are canceled. A report names the
//! requests that did not end in time.
//!
//! The example sends requests to itself over real sockets, and fails if something unexpected happens:
//!
//! ```text
//! cargo run --example shutdown
//! ```
//!
//! `shutdown/axum_server.rs` and `shutdown/hyper_server.rs` contain the servers, and `shutdown/client.rs`
//! the client, which sends a slow request and one that hangs.

use std::process::ExitCode;

use tokio_ctx::BoxError;

#[path = "shutdown/axum_server.rs"]
mod axum_server;
#[path = "shutdown/client.rs"]
mod client;
#[path = "shutdown/hyper_server.rs"]
mod hyper_server;

#[tokio::main]
async fn main() -> ExitCode {
    match both().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("shutdown: {failed}");
            ExitCode::FAILURE
        }
    }
}

async fn both() -> Result<(), BoxError> {
    client::check("axum", axum_server::start).await?;
    client::check("hyper", hyper_server::start).await
}

/// Requests in progress are answered within the grace period, new connections are refused, and a request
/// that hangs is canceled and named.
#[cfg(test)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_take_no_more_and_finish_what_they_have() {
    both().await.unwrap();
}
