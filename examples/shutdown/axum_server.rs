//! An axum server that is part of a shutdown.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_ctx::Shutdown;

use super::story::answer;

/// Serves until the soft end; requests under way go on.
pub fn start(listener: TcpListener, shutdown: &Shutdown) {
    let http = shutdown.named("axum");
    let app = Router::new()
        .route("/slow", get(|| answer("/slow")))
        .route("/stuck", get(|| answer("/stuck")))
        .layer(from_fn_with_state(http.clone(), until_the_hard_end));

    let soft_end = shutdown.soft().done_owned();
    http.spawn(async move {
        let stop = async move {
            soft_end.await;
        };
        // Drops the listener then, and ends when its connections have.
        axum::serve(listener, app).with_graceful_shutdown(stop).await
    });
}

/// Each request is work with a name, cut off by the hard end: axum would wait for it for ever, and if
/// its server were aborted, leave it behind.
async fn until_the_hard_end(State(http): State<Shutdown>, request: Request, next: Next) -> Response {
    let request_line = format!("{} {}", request.method(), request.uri().path());
    let hard = http.hard().clone();
    let work = http.named(request_line).track(hard.scope(next.run(request)));
    match hard.run(work).await {
        Ok(response) => response,
        Err(stopped) => (StatusCode::SERVICE_UNAVAILABLE, stopped.to_string()).into_response(),
    }
}
