//! An axum server that is part of a shutdown.

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_ctx::Shutdown;
use tokio_ctx::wire::{Inbound, ServerLayer};

use super::client::answer;

/// Serves until the soft context ends. Requests in progress continue until the hard context ends.
pub fn start(listener: TcpListener, shutdown: &Shutdown) {
    let http = shutdown.named("axum");
    // Makes each request a named part of the shutdown, which is canceled when the hard context ends.
    // axum itself would wait for it forever, and aborting axum's server would not stop it.
    let requests = ServerLayer::with_shutdown(&http, Inbound::new());
    let app = Router::new()
        .route("/slow", get(|| answer("/slow")))
        .route("/stuck", get(|| answer("/stuck")))
        .layer(requests);

    // Drops the listener when the shutdown begins, and resolves when all connections have ended.
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.begun());
    http.spawn(server.into_future());
}
