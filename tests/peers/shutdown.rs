//! Servers of axum and tonic drain on real sockets: requests in progress complete, and stuck ones are reported.

#[path = "../common/mod.rs"]
mod common;

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_ctx::wire::{Inbound, RequestEnd, ServerLayer};
use tokio_ctx::{BoxError, Context, Shutdown};
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use common::{HANG, LONG, ms};

static BACKGROUND: Context = Context::background();

/// Runs on the real clock, and fails if it hangs.
fn live<F: Future<Output = Result<(), BoxError>>>(test: F) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { timeout(HANG, test).await }).expect("it hangs").unwrap();
}

#[test]
fn an_axum_server_drains() {
    live(async {
        let shutdown = Shutdown::new(&BACKGROUND).grace(LONG);
        let http = shutdown.named("http");
        let (sender, mut contexts) = mpsc::unbounded_channel();
        let slow = async move |ctx: Context| {
            sender.send(ctx.clone()).unwrap();
            sleep(ms(300)).await;
            "slow"
        };
        let app = Router::new()
            .route("/slow", get(slow))
            .layer(ServerLayer::with_shutdown(&http, Inbound::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let at = listener.local_addr()?;
        let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
        let server = http.spawn(server.into_future());

        let client = reqwest::Client::builder().no_proxy().build()?;
        let slow = tokio::spawn(client.get(format!("http://{at}/slow")).send());
        let ctx = contexts.recv().await.unwrap();
        shutdown.begin("SIGTERM");
        let report = shutdown.wait().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(slow.await??.text().await?, "slow");
        server.await??;
        assert_eq!(ctx.err().unwrap().cause_as(), Some(&RequestEnd::Answered));
        assert!(tokio::net::TcpStream::connect(at).await.is_err());
        Ok(())
    });
}

#[test]
fn a_tonic_server_drains_and_reports_a_stuck_call() {
    live(async {
        let shutdown = Shutdown::new(&BACKGROUND).grace(ms(300)).cleanup(ms(2_000));
        let grpc = shutdown.named("grpc");
        let (_health, service) = tonic_health::server::health_reporter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let at = listener.local_addr()?;
        drop(listener);
        let server = Server::builder()
            .layer(ServerLayer::with_shutdown(&grpc, Inbound::new()))
            .add_service(service)
            .serve_with_shutdown(at, shutdown.begun());
        let server = grpc.spawn(server);

        let endpoint = Channel::from_shared(format!("http://{at}"))?;
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        };
        let mut client = HealthClient::new(channel);
        let check = HealthCheckRequest::default();
        assert!(client.check(check.clone()).await.is_ok());
        // Streams until the server stops.
        let mut watched = client.watch(check).await?.into_inner();
        assert!(watched.message().await?.is_some());

        shutdown.begin("SIGTERM");
        let report = shutdown.wait().await;
        let names: Vec<_> = report.overdue().iter().map(|overdue| overdue.name().unwrap()).collect();
        assert!(names.contains(&"grpc/POST /grpc.health.v1.Health/Watch"), "{report}");
        assert_eq!(watched.message().await.unwrap_err().code(), tonic::Code::Unavailable);
        server.await??;
        Ok(())
    });
}
