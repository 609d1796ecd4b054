//! An nginx between client and server: the end and the deadline of the client arrive at the server.
//!
//! If nginx is not installed, the tests are skipped, and print that.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
mod proxy;
#[path = "../wire/mod.rs"]
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio_ctx::Context;
use tokio_ctx::wire::{Inbound, Outbound, RequestEnd};
use tonic::Code;

use common::{LONG, ended, ms};
use grpc::{client, health_request, serving};
use proxy::{Proxy, upstream};
use wire::eventually;

/// Starts an nginx with this configuration of its location. Returns `None` if it is not installed.
async fn nginx(name: &str, listen: &str, location: &str) -> Option<Proxy> {
    if std::process::Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: no nginx here (apt-get install nginx-light)");
        return None;
    }
    let configure = |at: SocketAddr, place: &Path| {
        let place = place.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};"))
            .join("\n");
        let configuration = format!(
            // A single process, so that no workers remain when it is killed.
            "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
             events {{ worker_connections 64; }}
             http {{ access_log off; {temporary}
                     server {{ listen {at}{listen}; location / {{ {location} }} }} }}"
        );
        let file = format!("{place}/nginx.conf");
        fs::write(&file, configuration).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.args(["-e", "stderr", "-c", &file]);
        nginx
    };
    Some(Proxy::start(&format!("nginx-{name}"), configure).await)
}

#[tokio::test]
async fn a_client_that_leaves_nginx_ends_the_request_behind_it() {
    let (behind, mut contexts) = upstream(Inbound::new()).await;
    let location = format!("proxy_pass http://{};", behind.at);
    let Some(nginx) = nginx("http", "", &location).await else { return };
    let call = tokio::spawn(
        reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(format!("http://{}/", nginx.at))
            .header("connect-timeout-ms", "3600000")
            .send(),
    );
    let ctx = contexts.recv().await.unwrap();
    assert!(ctx.remaining().unwrap() <= LONG, "the header went through");
    assert!(!ctx.is_done());
    call.abort();
    eventually("the end comes through", || ctx.is_done()).await;
    assert_eq!(ended(&ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

#[tokio::test]
async fn a_grpc_call_through_nginx_keeps_its_deadline_and_its_status() {
    let (at, mut contexts) = serving(Some(Inbound::new())).await;
    let location = format!("grpc_pass grpc://{at};");
    let Some(nginx) = nginx("grpc", " http2", &location).await else { return };
    let mut health = client(nginx.at, Outbound::new());

    let ctx = Context::background().with_timeout(LONG);
    ctx.scope(health.check(health_request(""))).await.unwrap();
    let there = contexts.recv().await.unwrap();
    assert!(there.deadline().unwrap() <= ctx.deadline().unwrap() + ms(1000));
    eventually("the call is over", || there.is_done()).await;
    assert_eq!(ended(&there).cause_as::<RequestEnd>(), Some(&RequestEnd::Answered));

    let ctx = Context::background().with_timeout(ms(500));
    let status = ctx.scope(health.check(health_request("stuck"))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let there = contexts.recv().await.unwrap();
    eventually("the deadline holds there", || there.is_done()).await;

    let ctx = Context::background().with_cancel();
    let call = ctx.spawn(async move { health.check(health_request("stuck")).await });
    let there = contexts.recv().await.unwrap();
    assert!(!there.is_done());
    ctx.cancel();
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Cancelled);
    eventually("the end comes through", || there.is_done()).await;
    assert_eq!(ended(&there).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}
