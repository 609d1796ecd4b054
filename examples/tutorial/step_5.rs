//! A service that drains on SIGTERM.

use std::time::Duration;

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tokio_ctx::signal::until_termination;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context, Error, Shutdown};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let until_signal = until_termination(&Context::background())?;
    let shutdown = Shutdown::new(&until_signal).grace(Duration::from_secs(8));

    let http = shutdown.named("http");
    let app = Router::new()
        .route("/report", get(report))
        .layer(ServerLayer::with_shutdown(&http, Inbound::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/report", listener.local_addr()?);
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    http.spawn(server.into_future());

    let client = tokio::spawn(async move { reqwest::get(url).await?.text().await });

    let report = shutdown.wait().await;
    println!("client: {}", client.await??);
    println!("service: {report}");
    Ok(report.into_result()?)
}

async fn report(ctx: Context) -> Result<&'static str, Error> {
    println!("request: started");
    send_sigterm();
    ctx.sleep(Duration::from_millis(100)).await?;
    println!("request: finished");
    Ok("3 rows")
}

/// Stands for `docker stop`: sends SIGTERM to this very process.
fn send_sigterm() {
    let kill = format!("kill -TERM {}", std::process::id());
    std::process::Command::new("sh").args(["-c", &kill]).status().expect("a Unix shell");
}
