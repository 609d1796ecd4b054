//! HTTP clients that do not use this crate: curl and `reqwest`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../wire/mod.rs"]
mod wire;

use std::net::SocketAddr;

use axum::routing::get;
use axum::{Router, serve};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_ctx::wire::{Inbound, RequestEnd, ServerLayer};
use tokio_ctx::{BoxError, Context};

use common::{LONG, ms};
use wire::{Version, assert_client_disconnected, context_error, remote_server};

async fn serving(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async { serve(listener, app).await.unwrap() });
    at
}

#[tokio::test]
async fn a_timeout_of_the_client_ends_the_tasks_of_the_handler() {
    let (seen, mut contexts) = mpsc::unbounded_channel();
    let (sender, mut errors) = mpsc::unbounded_channel();
    let stuck = async move |ctx: Context| {
        ctx.spawn(async move { sender.send(Context::current().done().await).unwrap() });
        seen.send(ctx).unwrap();
        std::future::pending::<()>().await
    };
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let at = serving(Router::new().route("/", get(stuck)).layer(layer)).await;
    let gave_up = reqwest::Client::new().get(format!("http://{at}/")).timeout(ms(100)).send().await;
    assert!(gave_up.unwrap_err().is_timeout());
    assert_eq!(errors.recv().await.unwrap().cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
    assert!(contexts.recv().await.unwrap().is_done());
}

/// Returns whether curl is installed, and says so if it is not.
fn has_curl() -> bool {
    let is_there = std::process::Command::new("curl").arg("--version").output().is_ok();
    if !is_there {
        eprintln!("skipped: no curl here (apt-get install curl)");
    }
    is_there
}

/// `curl --max-time`, if curl is installed.
#[tokio::test]
async fn a_timeout_of_curl_ends_the_request() {
    if !has_curl() {
        return;
    }
    let (sender, mut errors) = mpsc::unbounded_channel();
    let stuck = async move |ctx: Context| {
        ctx.spawn(async move { sender.send(Context::current().done().await).unwrap() });
        std::future::pending::<()>().await
    };
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let at = serving(Router::new().route("/", get(stuck)).layer(layer)).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = tokio::process::Command::new("curl");
        let curl = curl.args(["-sS", "--max-time", "0.2", version, &format!("http://{at}/")]).output();
        let curl = curl.await.unwrap();
        const TIMED_OUT: i32 = 28;
        let stderr = String::from_utf8_lossy(&curl.stderr);
        assert_eq!(curl.status.code(), Some(TIMED_OUT), "{version}: {stderr}");
        assert_eq!(
            errors.recv().await.unwrap().cause_as::<RequestEnd>(),
            Some(&RequestEnd::Dropped),
            "{version}"
        );
    }
}

/// A curl that sends the header receives the response before its own timeout.
#[tokio::test]
async fn curl_with_a_deadline_header_gets_a_response() {
    if !has_curl() {
        return;
    }
    let stuck = async || std::future::pending::<()>().await;
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let at = serving(Router::new().route("/", get(stuck)).layer(layer)).await;
    let curl = tokio::process::Command::new("curl")
        .args(["-sS", "--max-time", "300", "-H", "connect-timeout-ms: 100", "-w", "%{http_code}"])
        .arg(format!("http://{at}/"))
        .output();
    assert_eq!(String::from_utf8(curl.await.unwrap().stdout).unwrap(), "deadline exceeded\n504");
}

#[tokio::test]
async fn reqwest_without_layers() {
    let (server, mut contexts) = remote_server(Version::Http1).await;
    let client = reqwest::Client::new();
    let ctx = Context::background().with_timeout(LONG);

    // The code of the guide.
    let get = async |path: &str| -> Result<reqwest::Response, BoxError> {
        let mut request = client.get(format!("http://{}{path}", server.at)).build()?;
        ctx.inject(request.headers_mut())?;
        Ok(ctx.run(client.execute(request)).await??)
    };
    let mut response = get("/stream").await.unwrap();
    assert_eq!(ctx.run(response.chunk()).await.unwrap().unwrap().unwrap(), "first");
    let streaming = contexts.recv().await.unwrap();
    assert!(streaming.deadline().is_some() && !streaming.is_done());

    let mut waiting = Box::pin(get("/wait"));
    let waited = tokio::select! {
        _ = waiting.as_mut() => unreachable!("no answer comes"),
        ctx = contexts.recv() => ctx.unwrap(),
    };
    ctx.cancel();
    assert!(context_error(waiting.await.unwrap_err()).is_canceled());
    assert!(ctx.run(response.chunk()).await.is_err());
    drop(response);
    assert_client_disconnected(&waited).await;
    assert_client_disconnected(&streaming).await;
    assert!(get("/wait").await.is_err());
    assert!(contexts.try_recv().is_err(), "nothing was sent");
}
