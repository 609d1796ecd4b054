//! The server's layer with a `Shutdown`: requests have the grace period, are waited for until the end of their body, and
//! are listed in the report by method and route. The tests on real sockets are in `peers/shutdown.rs`.

mod common;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_ctx::shutdown::{Fate, GraceOver, Report};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context, Shutdown};
use tower::{Layer as _, ServiceExt as _, service_fn};

use common::{Cause, LONG, ms, poll_once, word};

static BACKGROUND: Context = Context::background();

/// Makes a shutdown with round numbers.
fn shutdown() -> Shutdown {
    Shutdown::new(&BACKGROUND).grace(ms(500)).cleanup(ms(100))
}

/// Returns the names and fates of the overdue work.
fn fates(report: &Report) -> Vec<(&str, Fate)> {
    report.overdue().iter().map(|overdue| (overdue.name().unwrap_or(""), overdue.fate())).collect()
}

/// Checks the number of requests that the shutdown waits for.
#[track_caller]
fn assert_running(shutdown: &Shutdown, count: usize) {
    let text = format!("{shutdown:?}");
    assert!(text.contains(&format!("running: {count}")), "{text}");
}

fn app(layer: ServerLayer) -> Router {
    let sleeps = async |millis: u64| sleep(ms(millis)).await;
    Router::new()
        .route("/fast", get(async || "fast"))
        .route("/report/{id}", get(async move || sleeps(200).await))
        .route("/stuck/{id}", get(pending::<()>))
        .nest("/inner", Router::new().route("/stuck/{id}", get(pending::<()>)))
        .fallback(pending::<()>)
        .layer(layer)
}

async fn answer(app: &Router, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

fn spawn_answer(app: &Router, path: impl Into<String>) -> tokio::task::JoinHandle<(u16, String)> {
    let (app, path) = (app.clone(), path.into());
    tokio::spawn(async move { answer(&app, &path).await })
}

#[tokio::test(start_paused = true)]
async fn a_request_in_progress_has_the_grace_period() {
    let shutdown = shutdown();
    let app = app(ServerLayer::with_shutdown(&shutdown, Inbound::new()));
    let slow = spawn_answer(&app, "/report/7");
    sleep(ms(50)).await;
    assert_running(&shutdown, 1);

    let begun = Instant::now();
    shutdown.begin(Cause("new version"));
    let report = shutdown.wait().await;
    assert!(report.is_clean(), "{report}");
    assert!(begun.elapsed() >= ms(150) && begun.elapsed() <= ms(155), "{:?}", begun.elapsed());
    assert_eq!(slow.await.unwrap().0, 200);
    assert_running(&shutdown, 0);
    // A request after the end is refused, and not waited for.
    assert_eq!(answer(&app, "/fast").await, (503, "service stopping\n".to_string()));
    assert_running(&shutdown, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_request_is_dropped_and_reported_by_method_and_route() {
    let shutdown = shutdown();
    let http = shutdown.named("http");
    let layer = ServerLayer::with_shutdown(&http, Inbound::new());
    let line = line!() - 1;
    let app = app(layer);
    let stuck: Vec<_> = ["/stuck/7?token=secret", "/inner/stuck/8", "/nowhere/9?token=secret"]
        .map(|path| spawn_answer(&app, path))
        .into();
    sleep(ms(50)).await;
    shutdown.begin(Cause("new version"));
    let report = shutdown.wait().await;
    let late = [
        ("http/GET /stuck/{id}", Fate::Canceled),
        ("http/GET /inner/stuck/{id}", Fate::Canceled),
        // No route matched: the path that was sent, without the query.
        ("http/GET /nowhere/9", Fate::Canceled),
    ];
    assert_eq!(fates(&report), late);
    let spawned_at = report.overdue()[0].spawned_at();
    assert_eq!((spawned_at.file(), spawned_at.line()), (file!(), line));
    for stuck in stuck {
        assert_eq!(stuck.await.unwrap(), (503, "service stopping\n".to_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_receives_the_cause() {
    let shutdown = shutdown();
    let (errors, mut received) = mpsc::unbounded_channel();
    let handler = async move |ctx: Context| {
        ctx.spawn(async move { errors.send(Context::current().done().await).unwrap() });
        pending::<()>().await
    };
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new().max_budget(LONG));
    let app = Router::new().route("/", get(handler)).layer(layer);
    let stuck = spawn_answer(&app, "/");
    sleep(ms(1)).await;
    shutdown.begin(Cause("new version"));
    assert_eq!(shutdown.wait().await.overdue().len(), 1);
    let error = received.recv().await.unwrap();
    assert_eq!(error.cause_as::<GraceOver>().unwrap().grace(), ms(500));
    assert_eq!(word(&error), Some("new version"));
    assert_eq!(stuck.await.unwrap().0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_long_path_is_truncated_in_the_report() {
    let shutdown = shutdown();
    let app = app(ServerLayer::with_shutdown(&shutdown, Inbound::new()));
    let _long = spawn_answer(&app, format!("/{}", "a".repeat(5_000)));
    let request = Request::builder().method("B".repeat(5_000).as_str()).uri("/fast");
    let handler = service_fn(|_: Request<()>| pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    let mut method = Box::pin(layer.layer(handler).oneshot(request.body(()).unwrap()));
    assert!(poll_once(&mut method).is_pending());
    sleep(ms(1)).await;
    shutdown.force(Cause("now"));
    let report = shutdown.wait().await;
    assert_eq!(report.overdue().len(), 2);
    assert!(report.to_string().len() < 700, "{report}");
}

/// Calls a handler that responds with a body of two frames, of which the second waits for a signal.
fn streaming(shutdown: &Shutdown) -> (mpsc::UnboundedSender<&'static str>, impl Future<Output = Body>) {
    let (send, mut receive) = mpsc::unbounded_channel::<&'static str>();
    let layer = ServerLayer::with_shutdown(shutdown, Inbound::new());
    let stream = futures::stream::poll_fn(move |cx| {
        receive
            .poll_recv(cx)
            .map(|text| text.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text)))))
    });
    let body = Arc::new(Mutex::new(Some(StreamBody::new(stream))));
    let handler = service_fn(move |_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(body.lock().unwrap().take().unwrap())))
    });
    let called = layer.layer(handler).oneshot(Request::new(()));
    (send, async move { Body::new(called.await.unwrap().into_body()) })
}

#[tokio::test(start_paused = true)]
async fn a_body_is_part_of_its_request() {
    let shutdown = shutdown();
    let (send, body) = streaming(&shutdown);
    let mut body = body.await;
    send.send("first").unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert_running(&shutdown, 1);

    let start = Instant::now();
    shutdown.begin(Cause("new version"));
    let reading = tokio::spawn(async move {
        sleep(ms(100)).await;
        send.send("last").unwrap();
        drop(send);
        body.collect().await.unwrap().to_bytes()
    });
    assert!(shutdown.wait().await.is_clean());
    assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(103), "{:?}", start.elapsed());
    assert_eq!(reading.await.unwrap(), "last");

    // A stuck body is aborted.
    let shutdown = self::shutdown();
    let (send, body) = streaming(&shutdown);
    let body = body.await;
    let reading = tokio::spawn(body.collect());
    shutdown.begin(Cause("new version"));
    assert_eq!(fates(&shutdown.wait().await), [("GET /", Fate::Canceled)]);
    assert!(reading.await.unwrap().is_err());
    drop(send);
}

/// Every way in which a request ends: the response, a client that leaves in either phase, a panic, an error, a refusal.
#[tokio::test(start_paused = true)]
async fn a_completed_request_is_not_waited_for() {
    let shutdown = shutdown();
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new().strict());
    let app = app(layer.clone());
    assert_eq!(answer(&app, "/fast").await.0, 200);
    assert_running(&shutdown, 0);

    let request = Request::get("/stuck/1").body(Body::empty()).unwrap();
    let mut left = Box::pin(app.clone().oneshot(request));
    assert!(poll_once(&mut left).is_pending());
    assert_running(&shutdown, 1);
    drop(left);
    assert_running(&shutdown, 0);

    let (_send, body) = streaming(&shutdown);
    let body = body.await;
    assert_running(&shutdown, 1);
    drop(body);
    assert_running(&shutdown, 0);

    async fn panics(_: Request<()>) -> Result<Response<Full<Bytes>>, BoxError> {
        panic!("a handler")
    }
    let called = layer.layer(service_fn(panics)).oneshot(Request::new(()));
    assert!(AssertUnwindSafe(called).catch_unwind().await.is_err());
    assert_running(&shutdown, 0);

    let fails = service_fn(async |_: Request<()>| Err::<Response<Full<Bytes>>, BoxError>("no".into()));
    assert!(layer.layer(fails).oneshot(Request::new(())).await.is_err());
    assert_running(&shutdown, 0);

    let bad = Request::get("/fast").header("grpc-timeout", "soon").body(Body::empty()).unwrap();
    assert_eq!(app.clone().oneshot(bad).await.unwrap().status(), 400);
    assert_running(&shutdown, 0);

    shutdown.begin(Cause("over"));
    assert!(shutdown.wait().await.is_clean());
}

/// The handler and the body of a request are dropped before it counts as completed.
#[tokio::test(start_paused = true)]
async fn a_request_is_over_when_its_handler_has_been_dropped() {
    struct ChecksOnDrop(Shutdown);
    impl Drop for ChecksOnDrop {
        fn drop(&mut self) {
            assert_running(&self.0, 1);
        }
    }
    let shutdown = shutdown();
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    for stuck in [false, true] {
        let handler = service_fn(|_: Request<()>| {
            let on_drop = ChecksOnDrop(shutdown.clone());
            async move {
                let _on_drop = on_drop;
                if stuck {
                    pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        let called = Box::pin(layer.layer(handler).oneshot(Request::new(())));
        match stuck {
            false => drop(called.await),
            true => {
                let mut called = called;
                assert!(poll_once(&mut called).is_pending());
            }
        }
        assert_running(&shutdown, 0);
    }
}

/// A request that begins the shutdown, and responds with its report.
#[tokio::test(start_paused = true)]
async fn a_handler_may_wait_for_the_shutdown_that_its_request_is_part_of() {
    let shutdown = shutdown();
    let handler = {
        let shutdown = shutdown.clone();
        async move || {
            shutdown.begin("requested over HTTP");
            shutdown.wait().await.to_string()
        }
    };
    let layer = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    let app = Router::new().route("/stop", get(handler)).layer(layer);
    let start = Instant::now();
    let (status, text) = answer(&app, "/stop").await;
    assert!(status == 200 && text.ends_with("all work ended in time"), "{status} {text}");
    assert!(start.elapsed() <= ms(3), "{:?}", start.elapsed());
}

/// A nested layer, whose requests end with both contexts and are waited for.
#[tokio::test(start_paused = true)]
async fn the_layer_may_be_nested() {
    let shutdown = shutdown();
    let inner = ServerLayer::with_shutdown(&shutdown, Inbound::new());
    let app =
        app(inner).layer(ServerLayer::new(Context::background(), Inbound::new().max_budget(ms(50))));
    let stuck = spawn_answer(&app, "/stuck/1");
    sleep(ms(10)).await;
    assert_running(&shutdown, 1);
    assert_eq!(stuck.await.unwrap().0, 504);
    assert_running(&shutdown, 0);
}
