//! An axum server that is part of a shutdown.

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_ctx::Shutdown;
use tokio_ctx::wire::{Inbound, ServerLayer};

use super::story::answer;

/// Serves until the soft end; requests under way go on until the hard one.
pub fn start(listener: TcpListener, shutdown: &Shutdown) {
    let http = shutdown.named("axum");
    // Each request is work with a name, cut off by the hard end: axum would wait for it forever, and if its
    // server were aborted, leave it behind.
    let requests = ServerLayer::with_shutdown(&http, Inbound::new());
    let app = Router::new()
        .route("/slow", get(|| answer("/slow")))
        .route("/stuck", get(|| answer("/stuck")))
        .layer(requests);

    // Drops the listener when the shutdown begins, and ends when its connections have.
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    http.spawn(server.into_future());
}
