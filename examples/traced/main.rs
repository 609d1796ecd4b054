//! OpenTelemetry and tokio-ctx together: OpenTelemetry propagates `traceparent`, tokio-ctx the deadline,
//! and both write `baggage`.
//!
//! A front-end service calls a back-end service. In a server, the order of their layers does not matter.
//! In a client, the layer of OpenTelemetry has to be the outer one, because it replaces the `baggage`
//! header, and tokio-ctx adds to it.
//!
//! ```text
//! cargo run --example traced
//! ```
//!
//! The example fails unless the back end sees the trace of its caller, both members of the baggage, and
//! less time than the front end had.

use std::borrow::Cow;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::baggage::BaggageExt;
use opentelemetry::context::FutureExt;
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use tokio::net::TcpListener;
use tokio_ctx::wire::{ClientLayer, Inbound, Outbound, ServerLayer, Travel};
use tokio_ctx::{BoxError, Context};
use tower::util::MapRequestLayer;
use tower::{ServiceBuilder, ServiceExt};

/// The user of a request, determined by the front end and propagated.
struct Tenant(String);

impl Travel for Tenant {
    const NAME: &'static str = "tenant";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        Some(Tenant(text.into()))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let back = serve(Router::new().route("/", get(back))).await?;
    let front = serve(Router::new().route("/", get(front)).with_state(back)).await?;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = Request::get(format!("http://{front}/"))
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("baggage", "region=eu")
        .header("connect-timeout-ms", "300")
        .body(Body::empty())?;
    let response = client().request(request).await?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 1000).await?;
    let received = String::from_utf8(body.to_vec())?;
    println!("{received}");
    let complete =
        received.contains(trace) && received.contains("region eu") && received.contains("tenant blue");
    if status != StatusCode::OK || !complete {
        return Err("something was lost on the way".into());
    }
    Ok(())
}

async fn front(ctx: Context, State(back): State<SocketAddr>) -> Result<Response, Response> {
    // The headers of OpenTelemetry, and those of tokio-ctx.
    let client = ServiceBuilder::new()
        .layer(MapRequestLayer::new(with_trace))
        .layer(ClientLayer::new(Outbound::new().carry_in_baggage::<Tenant>()))
        .service(client());
    let request =
        Request::get(format!("http://{back}/")).extension(ctx.with_value(Tenant("blue".into())));
    let request = request.body(Body::empty()).map_err(failed)?;
    let response = client.oneshot(request).await.map_err(failed)?;
    Ok(response.map(Body::new))
}

fn failed(error: impl Into<BoxError>) -> Response {
    eprintln!("front: {}", error.into());
    StatusCode::BAD_GATEWAY.into_response()
}

/// Returns what the back end has received.
async fn back(ctx: Context) -> String {
    let telemetry = opentelemetry::Context::current();
    let trace = telemetry.span().span_context().trace_id();
    let region = telemetry.baggage().get("region").map(ToString::to_string).unwrap_or_default();
    let tenant = ctx.value::<Tenant>().map_or("", |tenant| &tenant.0);
    let left = ctx.remaining().unwrap_or_default();
    format!("trace {trace}, region {region}, tenant {tenant}, {left:?} left of 300ms")
}

/// A server with both layers.
async fn serve(routes: Router) -> Result<SocketAddr, BoxError> {
    let inbound = Inbound::new().carry_in_baggage::<Tenant>();
    let app = routes.layer(ServerLayer::new(Context::background(), inbound)).layer(from_fn(in_trace));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, app).await });
    Ok(at)
}

/// Does what a server layer of OpenTelemetry does, without a span.
async fn in_trace(request: Request, next: Next) -> Response {
    let parent = propagator().extract(&HeaderExtractor(request.headers()));
    next.run(request).with_context(parent).await
}

/// Does what a client layer of OpenTelemetry does.
fn with_trace(mut request: Request) -> Request {
    let current = opentelemetry::Context::current();
    propagator().inject_context(&current, &mut HeaderInjector(request.headers_mut()));
    request
}

fn propagator() -> TextMapCompositePropagator {
    TextMapCompositePropagator::new(vec![
        Box::new(TraceContextPropagator::new()),
        Box::new(BaggagePropagator::new()),
    ])
}

fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build_http()
}
