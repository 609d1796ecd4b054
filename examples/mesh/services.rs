//! The three services. The lines with `ServerLayer` and `ClientLayer` propagate the deadline between
//! them.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use http::StatusCode;
use recipe_rusqlite::{self as sqlite, Database};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_ctx::wire::{ClientLayer, ClientService, Inbound, Outbound, ServerLayer, StatusExt};
use tokio_ctx::{BoxError, Context};
use tonic::Status;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tower::ServiceBuilder;

use crate::journal::{Journal, RequestId};
use crate::search::{Found, Query, Search, SearchServer, call};

/// The time limit of a request. The edge sets it, and the other services get the time that is left.
pub const BUDGET: Duration = Duration::from_millis(300);
/// The time that each caller reserves for the way of the answer.
const MARGIN: Duration = Duration::from_millis(5);

/// Serves HTTP to untrusted clients.
pub async fn edge(
    service: Context,
    listener: TcpListener,
    middle: SocketAddr,
    journal: Journal,
) -> Result<(), BoxError> {
    let inbound = Inbound::new().untrusted().default_budget(BUDGET);
    let app = Router::new()
        .route("/search/{text}", get(search))
        .layer(ServerLayer::new(service.clone(), inbound))
        .with_state((onward(middle)?, journal));
    let listener = listener.tap_io(|stream| {
        // Otherwise small answers are delayed. Errors are ignored.
        stream.set_nodelay(true).ok();
    });
    axum::serve(listener, app).with_graceful_shutdown(async move { drop(service.done().await) }).await?;
    Ok(())
}

async fn search(
    ctx: Context,
    State((middle, journal)): State<(Onward, Journal)>,
    Path(text): Path<String>,
) -> Result<String, Response> {
    let ctx = ctx.with_value(RequestId::new());
    journal.request("edge", &ctx);
    let found = ctx.scope(call(middle, Query { text })).await.map_err(refusal)?;
    Ok(format!("{} rows\n", found.rows))
}

/// Answers 504 or 503 if a context has ended, here or in another service.
fn refusal(status: Status) -> Response {
    match status.context_error() {
        Some(error) => error.into_response(),
        None => (StatusCode::BAD_GATEWAY, "the search failed\n").into_response(),
    }
}

/// Serves gRPC, and calls the leaf.
pub async fn middle(
    service: Context,
    listener: TcpListener,
    leaf: SocketAddr,
    journal: Journal,
) -> Result<(), BoxError> {
    #[derive(Clone)]
    struct Middle(Onward, Journal);
    impl Search for Middle {
        async fn search(&self, query: Query) -> Result<Found, Status> {
            self.1.request("middle", &Context::current());
            call(self.0.clone(), query).await
        }
    }
    serve(service, listener, Middle(onward(leaf)?, journal)).await
}

/// Serves gRPC, and queries SQLite.
pub async fn leaf(service: Context, listener: TcpListener, journal: Journal) -> Result<(), BoxError> {
    #[derive(Clone)]
    struct Leaf(Journal);
    impl Search for Leaf {
        async fn search(&self, query: Query) -> Result<Found, Status> {
            let ctx = Context::current();
            self.0.request("leaf", &ctx);
            let (journal, given) = (self.0.clone(), ctx.remaining().unwrap_or_default());
            let request = ctx.clone();
            let database = Database::new(":memory:");
            let rows = database.query(&ctx, move |sqlite| {
                let start = Instant::now();
                let rows = sqlite.query_row(statement(&query.text), (), |row| row.get(0));
                let rows = rows.map_err(sqlite::Error::from);
                if rows.as_ref().is_err_and(sqlite::is_cancel) {
                    journal.over("sqlite", &request, given, start, Instant::now());
                }
                rows
            });
            // At the deadline the layer answers, unless SQLite is faster.
            let rows = rows.await.map_err(|error| match ctx.check() {
                Err(ended) => ended.into(),
                Ok(()) => Status::internal(error.to_string()),
            })?;
            Ok(Found { rows })
        }
    }
    serve(service, listener, Leaf(journal)).await
}

/// A query that finishes immediately, and one that would never finish.
fn statement(text: &str) -> &'static str {
    match text {
        "slow" => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        }
        _ => "SELECT count(*) FROM (VALUES (1), (2), (3))",
    }
}

async fn serve(service: Context, listener: TcpListener, search: impl Search) -> Result<(), BoxError> {
    let inbound = Inbound::new().max_budget(Duration::from_secs(10)).carry::<RequestId>();
    Server::builder()
        .layer(ServerLayer::new(service.clone(), inbound))
        .add_service(SearchServer(search))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
            drop(service.done().await)
        })
        .await?;
    Ok(())
}

type Onward = ClientService<Channel>;

/// Returns a channel to the next service, whose calls carry their context.
fn onward(next: SocketAddr) -> Result<Onward, BoxError> {
    let channel = Endpoint::from_shared(format!("http://{next}"))?.connect_lazy();
    let outbound = Outbound::new().margin(MARGIN).carry::<RequestId>();
    Ok(ServiceBuilder::new().layer(ClientLayer::new(outbound)).service(channel))
}
