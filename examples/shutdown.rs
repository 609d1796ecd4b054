//! Two web servers, one of axum and one of hyper, shut down in two phases: first they take no more
//! connections, then, after a grace period, what is left is cut off, and in the end a report says what did
//! not end in time.
//!
//! It drives itself, over real sockets, and fails if anything else happens:
//!
//! ```text
//! cargo run --example shutdown
//! ```
//!
//! `shutdown/axum_server.rs` and `shutdown/hyper_server.rs` are what a service would have, and
//! `shutdown/story.rs` is the client that asks for something slow and for something stuck.

use std::process::ExitCode;

use tokio_ctx::BoxError;

#[path = "shutdown/axum_server.rs"]
mod axum_server;
#[path = "shutdown/hyper_server.rs"]
mod hyper_server;
#[path = "shutdown/story.rs"]
mod story;

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
    story::tell("axum", axum_server::start).await?;
    story::tell("hyper", hyper_server::start).await
}
