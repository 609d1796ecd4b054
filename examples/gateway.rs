//! A gateway: an HTTP server that calls three slower services, with one context per request.
//!
//! `/user/{id}` requires the profile, and adds the preferences and the recent activity if they arrive in
//! time. The deadline is 500 ms for the request, and 200 ms for the two optional parts. The request ID
//! is a value of the context. When a client disconnects, the work for it stops, in the gateway and in
//! the services behind it. On SIGTERM or Ctrl-C, the gateway stops accepting, finishes the requests in
//! progress, and exits with success.
//!
//! Without arguments it runs six cases over real sockets, and fails if one of them does not have the
//! expected result:
//!
//! ```text
//! cargo run --example gateway
//! ```
//!
//! With `--serve` it runs until SIGTERM or Ctrl-C. `slow` makes a service slow: profile, preferences,
//! activity, or all.
//!
//! ```text
//! cargo run --example gateway -- --serve 8080
//! curl -i 'http://127.0.0.1:8080/user/7'
//! curl -i 'http://127.0.0.1:8080/user/7?slow=preferences'
//! curl -i 'http://127.0.0.1:8080/user/7?slow=profile'
//! curl -i --max-time 0.1 'http://127.0.0.1:8080/user/7?slow=all'    # disconnects after 100 ms
//! ```
//!
//! This file contains the gateway, `gateway/services.rs` the services behind it, and `gateway/cases.rs`
//! the client with the six cases.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use reqwest::{Client, RequestBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinError, JoinHandle};
use tokio_ctx::signal::until_termination;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context, Shutdown};

use services::{Event, Part, Slow, Visit};

#[path = "gateway/cases.rs"]
mod cases;
#[path = "gateway/services.rs"]
mod services;

/// The time limit of a request.
const BUDGET: Duration = Duration::from_millis(500);
/// The time limit of an optional part.
const OPTIONAL_BUDGET: Duration = Duration::from_millis(200);
/// How long requests in progress may take when the gateway stops. They end by themselves at their
/// deadline; this is for a client that does not read its answer.
const GRACE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    let port = match port(std::env::args_os().skip(1).map(lossy)) {
        Ok(port) => port,
        Err(message) => {
            eprintln!("gateway: {message}");
            return ExitCode::from(2);
        }
    };
    match run(port).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves on `port` until a signal arrives, or, without a port, runs the six cases.
async fn run(port: Option<u16>) -> Result<(), BoxError> {
    let until_signal = until_termination(&Context::background())?;
    let shutdown = Shutdown::new(&until_signal).grace(GRACE);
    // The services have a shutdown of their own, because requests that the gateway still finishes need
    // them.
    let for_services = Shutdown::new(&Context::background());
    let (log, events) = unbounded_channel();
    let services = serve(&for_services.named("services"), 0, services::router(log)).await?;
    let gateway = serve(&shutdown.named("gateway"), port.unwrap_or(0), router(services)?).await?;
    println!("gateway at http://{gateway}");
    println!("services at http://{services}");

    if port.is_none() {
        return cases::run(gateway, shutdown, events).await;
    }
    tokio::spawn(print(events));
    println!("stopping: {}", shutdown.soft().done().await);
    let report = shutdown.wait().await;
    println!("{report}");
    for_services.begin("the gateway has stopped");
    // Returns an error if a request had to be canceled.
    Ok(report.into_result()?)
}

fn router(services: SocketAddr) -> reqwest::Result<Router> {
    // The services are on this machine, so a proxy from the environment must not be used.
    let client = Client::builder().no_proxy().build()?;
    let gateway = Gateway { client, services };
    Ok(Router::new().route("/user/{id}", get(user)).with_state(gateway))
}

#[derive(Clone)]
struct Gateway {
    client: Client,
    services: SocketAddr,
}

impl Gateway {
    fn request(&self, part: Part, id: u64, slow: Slow) -> RequestBuilder {
        let url = format!("http://{}/{part}/{id}?slow={slow}", self.services);
        self.client.get(url)
    }
}

/// The response of `/user/{id}`.
#[derive(Serialize, Deserialize)]
struct User {
    request_id: RequestId,
    profile: Value,
    preferences: Option<Value>,
    activity: Option<Vec<String>>,
    /// Why optional parts are missing.
    missing: Vec<String>,
}

async fn user(
    State(gateway): State<Gateway>,
    Path(id): Path<u64>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    ctx: Context,
) -> Result<Json<User>, (StatusCode, String)> {
    let slow = Slow::in_query(query.as_deref()).map_err(bad_request)?;
    let request_id = RequestId::of(&headers);

    // `ServerLayer` created the request's context. It ends when the client disconnects, or when the
    // grace period of a shutdown is over, and so does all work for this request, on every task.
    let ctx = ctx.with_timeout(BUDGET).with_value(request_id.clone());
    let profile = ctx.spawn(profile(gateway.request(Part::Profile, id, slow)));
    let preferences = ctx.spawn(preferences(gateway.request(Part::Preferences, id, slow)));
    let activity = ctx.spawn(activity(gateway.request(Part::Activity, id, slow)));

    // Without a profile there is no answer. Returning drops the scope, which also cancels the other two
    // parts.
    let profile = joined(profile)
        .await
        .map_err(|failure| (failure.status(), format!("{}: {failure}", Part::Profile)))?;
    let mut missing = Vec::new();
    let mut note = |part: Part, failure: &Failure| missing.push(format!("{part}: {failure}"));
    let preferences = joined(preferences).await.inspect_err(|why| note(Part::Preferences, why)).ok();
    let activity = joined(activity).await.inspect_err(|why| note(Part::Activity, why)).ok();

    Ok(Json(User { request_id, profile, preferences, activity, missing }))
}

/// Loads the required part, which may use all the time of the request.
async fn profile(request: RequestBuilder) -> Result<Value, Failure> {
    ask(&Context::current(), request).await
}

/// Loads an optional part, with a shorter deadline of its own.
async fn preferences(request: RequestBuilder) -> Result<Value, Failure> {
    Context::current().within(OPTIONAL_BUDGET, async |ctx| ask(&ctx, request).await).await?
}

/// Loads the other optional part, and processes it before the same deadline.
async fn activity(request: RequestBuilder) -> Result<Vec<String>, Failure> {
    Context::current()
        .within(OPTIONAL_BUDGET, async |ctx| {
            let visits: Vec<Visit> = ask(&ctx, request).await?;
            Ok(describe(&ctx, &visits)?)
        })
        .await?
}

/// Describes visits. This does not await, so the loop checks the context; otherwise a long list would be
/// processed even after the request has ended.
fn describe(ctx: &Context, visits: &[Visit]) -> Result<Vec<String>, tokio_ctx::Error> {
    let mut lines = Vec::with_capacity(visits.len());
    for Visit { page, minutes_ago } in visits {
        ctx.check()?;
        lines.push(match minutes_ago {
            0 => format!("{page}, just now"),
            1..60 => format!("{page}, {minutes_ago} minutes ago"),
            _ => format!("{page}, {} hours ago", minutes_ago / 60),
        });
    }
    Ok(lines)
}

/// Sends a request to a service and reads the answer until `ctx` ends. Dropping the request then closes
/// its connection, which cancels the work in the service.
async fn ask<T: DeserializeOwned>(ctx: &Context, request: RequestBuilder) -> Result<T, Failure> {
    let request = with_request_id(request);
    ctx.try_run(async {
        let response = request.send().await?.error_for_status()?;
        Ok(response.json().await?)
    })
    .await
}

/// Adds the request ID to a request. The functions between the handler and this one do not need to know
/// it.
fn with_request_id(request: RequestBuilder) -> RequestBuilder {
    match Context::current().value::<RequestId>() {
        Some(RequestId(id)) => request.header(RequestId::HEADER, id),
        None => request,
    }
}

async fn joined<T>(task: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    task.await?
}

/// Why a part of the answer could not be loaded.
enum Failure {
    Stopped(tokio_ctx::Error),
    Service(reqwest::Error),
    Panicked(JoinError),
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Failure::Stopped(why) if why.is_deadline_exceeded() => StatusCode::GATEWAY_TIMEOUT,
            Failure::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Service(_) => StatusCode::BAD_GATEWAY,
            Failure::Panicked(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Stopped(why) => why.fmt(f),
            Failure::Service(error) => error.fmt(f),
            Failure::Panicked(error) => error.fmt(f),
        }
    }
}

impl From<tokio_ctx::Error> for Failure {
    fn from(why: tokio_ctx::Error) -> Failure {
        Failure::Stopped(why)
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Failure {
        Failure::Service(error)
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Failure {
        Failure::Panicked(error)
    }
}

fn bad_request(message: String) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, message)
}

/// The ID of a request, a value of its context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RequestId(String);

impl RequestId {
    const HEADER: &str = "x-request-id";

    /// Returns the ID that the client has sent, or a new one.
    fn of(headers: &HeaderMap) -> RequestId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let given = headers.get(RequestId::HEADER);
        match given.and_then(|id| id.to_str().ok()) {
            Some(id) => RequestId(id.to_owned()),
            None => RequestId(format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed))),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Serves `app` on a loopback port until the shutdown begins, and returns the address. Port 0 stands for
/// any free port.
async fn serve(shutdown: &Shutdown, port: u16, app: Router) -> Result<SocketAddr, BoxError> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener =
        TcpListener::bind(addr).await.map_err(|error| format!("cannot listen on {addr}: {error}"))?;
    let addr = listener.local_addr()?;
    // The shutdown waits for each request, and cancels those that are late.
    let app = app.layer(ServerLayer::with_shutdown(shutdown, Inbound::new()));
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    shutdown.spawn(server.into_future());
    Ok(addr)
}

/// Prints what the services report.
async fn print(mut events: UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        println!("{event}");
    }
}

/// Parses the port from the arguments, or returns an error message.
fn port(mut args: impl Iterator<Item = String>) -> Result<Option<u16>, String> {
    let Some(arg) = args.next() else {
        return Ok(None);
    };
    if arg != "--serve" {
        return Err(format!(
            "unknown argument {arg:?}; the only one is --serve PORT, e.g. --serve 8080"
        ));
    }
    let value = args.next().ok_or("--serve needs a port after it, e.g. --serve 8080")?;
    let port = value.parse().map_err(|_| {
        format!("--serve {value:?} is not a port: say a number from 0 (any free one) to 65535")
    })?;
    match args.next() {
        Some(extra) => Err(format!("nothing goes after --serve {port}, but there is {extra:?}")),
        None => Ok(Some(port)),
    }
}

/// Converts an argument that may not be Unicode, for the error message.
fn lossy(arg: std::ffi::OsString) -> String {
    arg.to_string_lossy().into_owned()
}
