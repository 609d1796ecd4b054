//! axum: the context as an argument, the error as an answer, and the layer around routes.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, serve};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_ctx::wire::{Inbound, RequestEnd, ServerLayer};
use tokio_ctx::{Context, Error};
use tower::ServiceExt;

use common::ms;

async fn answer(app: Router, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response: Response<Body> = app.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

fn layer() -> ServerLayer {
    ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(50)))
}

#[tokio::test(start_paused = true)]
async fn a_handler_takes_its_context() {
    let handler = async |ctx: Context| {
        assert_eq!(ctx.deadline(), Context::current().deadline());
        format!("{:?}", ctx.remaining().unwrap())
    };
    let app = Router::new().route("/", get(handler)).layer(layer());
    assert_eq!(answer(app, "/").await, (200, "50ms".to_string()));
}

#[tokio::test]
async fn a_route_without_the_layer_is_refused_unless_it_does_not_mind() {
    let strict = async |_: Context| "ran";
    let easy = async |ctx: Option<Context>| format!("{}", ctx.is_some());
    let app = Router::new().route("/strict", get(strict)).route("/easy", get(easy));
    let (status, text) = answer(app.clone(), "/strict").await;
    assert_eq!(status, 500);
    assert!(text.contains("ServerLayer"), "{text}");
    assert_eq!(answer(app.clone(), "/easy").await, (200, "false".to_string()));
    assert_eq!(answer(app.layer(layer()), "/easy").await, (200, "true".to_string()));
}

#[tokio::test(start_paused = true)]
async fn an_error_answers_without_detail() {
    let late = async |ctx: Context| -> Result<(), Error> {
        ctx.within(ms(10), async |ctx| ctx.sleep(Duration::MAX).await).await?
    };
    let canceled = async |ctx: Context| -> Result<(), Error> {
        let ctx = ctx.with_cancel();
        ctx.cancel_with("secret");
        ctx.check()
    };
    let app = Router::new().route("/late", get(late)).route("/canceled", get(canceled)).layer(layer());
    assert_eq!(answer(app.clone(), "/late").await, (504, "deadline exceeded\n".to_string()));
    assert_eq!(answer(app, "/canceled").await, (503, "request canceled\n".to_string()));
}

#[tokio::test(start_paused = true)]
async fn the_layer_answers_for_a_handler_that_does_not() {
    let stuck = async || std::future::pending::<()>().await;
    let app = Router::new().route("/", get(stuck)).layer(layer());
    assert_eq!(answer(app, "/").await, (504, "deadline exceeded\n".to_string()));
}

async fn serving(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async { serve(listener, app).await.unwrap() });
    at
}

#[tokio::test]
async fn a_client_with_a_time_of_its_own_ends_what_the_handler_started() {
    let (seen, mut contexts) = mpsc::unbounded_channel();
    let (tell, mut told) = mpsc::unbounded_channel();
    let stuck = async move |ctx: Context| {
        ctx.spawn(async move { tell.send(Context::current().done().await).unwrap() });
        seen.send(ctx).unwrap();
        std::future::pending::<()>().await
    };
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let at = serving(Router::new().route("/", get(stuck)).layer(layer)).await;
    let gave_up = reqwest::Client::new().get(format!("http://{at}/")).timeout(ms(100)).send().await;
    assert!(gave_up.unwrap_err().is_timeout());
    assert_eq!(told.recv().await.unwrap().cause_as::<RequestEnd>(), Some(&RequestEnd::ClientLeft));
    assert!(contexts.recv().await.unwrap().is_done());
}

/// `curl --max-time`, where there is a curl.
#[tokio::test]
async fn curl_that_gives_up_ends_the_request() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: no curl here (apt-get install curl)");
        return;
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let stuck = async move |ctx: Context| {
        ctx.spawn(async move { tell.send(Context::current().done().await).unwrap() });
        std::future::pending::<()>().await
    };
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let at = serving(Router::new().route("/", get(stuck)).layer(layer)).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = tokio::process::Command::new("curl");
        let curl = curl.args(["-sS", "--max-time", "0.2", version, &format!("http://{at}/")]).output();
        let curl = curl.await.unwrap();
        const TIMED_OUT: i32 = 28;
        let said = String::from_utf8_lossy(&curl.stderr);
        assert_eq!(curl.status.code(), Some(TIMED_OUT), "{version}: {said}");
        assert_eq!(
            told.recv().await.unwrap().cause_as::<RequestEnd>(),
            Some(&RequestEnd::ClientLeft),
            "{version}"
        );
    }
}

/// One that sends the header is answered in time, before its own clock has run out.
#[tokio::test]
async fn curl_that_says_how_long_it_waits_gets_an_answer() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: no curl here (apt-get install curl)");
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
