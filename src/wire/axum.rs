//! For axum: `Context` as an extractor, `Error` as a response.

use std::error::Error as StdError;
use std::fmt;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::outcome::Outcome;
use crate::context::Context;
use crate::error::Error;

/// Extracts the request's context, which a [`ServerLayer`](crate::wire::ServerLayer) around the route has made.
///
/// Without that layer, the response is `500 Internal Server Error`, from [`MissingContext`], because a handler that
/// relies on a deadline should not run without one. `Option<Context>` extracts `None` instead.
///
/// A middleware extracts the context in the same way. If the middleware derives a context, for example with a value, it
/// inserts the new context into the request's extensions, where the extractor finds it, and runs the rest in the scope
/// of the new context, so that [`Context::current`] returns it:
///
/// ```
/// use axum::{extract::Request, middleware::Next, response::Response};
/// use tokio_ctx::Context;
///
/// struct Tenant(String);
///
/// async fn with_tenant(ctx: Context, mut request: Request, next: Next) -> Response {
///     let host = request.headers().get("host").and_then(|host| host.to_str().ok());
///     let ctx = ctx.with_value(Tenant(host.unwrap_or_default().to_owned()));
///     request.extensions_mut().insert(ctx.clone());
///     ctx.scope(next.run(request)).await
/// }
/// # use axum::{Router, middleware::from_fn, routing::get};
/// # use tokio_ctx::wire::{Inbound, ServerLayer};
/// # let layer = ServerLayer::new(Context::background(), Inbound::new());
/// # let app: Router = Router::new().layer(from_fn(with_tenant)).layer(layer);
/// ```
///
/// ```
/// use axum::{Router, routing::get};
/// use tokio_ctx::{Context, wire::{Inbound, ServerLayer}};
///
/// async fn left(ctx: Context) -> String {
///     format!("{:?} left", ctx.remaining())
/// }
///
/// let layer = ServerLayer::new(Context::background(), Inbound::new());
/// let app: Router = Router::new().route("/left", get(left)).layer(layer);
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = MissingContext;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingContext> {
        parts.extensions.get::<Context>().cloned().ok_or(MissingContext(()))
    }
}

/// Extracts the request's context, if there is a [`ServerLayer`](crate::wire::ServerLayer) around the route.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> OptionalFromRequestParts<S> for Context {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Context>().cloned())
    }
}

/// The rejection of the [`Context`] extractor: there is no [`ServerLayer`](crate::wire::ServerLayer) around the route.
///
/// ```
/// use axum::extract::FromRequestParts;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (mut parts, ()) = http::Request::new(()).into_parts();
/// let missing = <Context as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await.unwrap_err();
/// assert!(missing.to_string().contains("ServerLayer"));
/// # }
/// ```
#[derive(Debug)]
pub struct MissingContext(());

impl fmt::Display for MissingContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request has no context: put a tokio_ctx::wire::ServerLayer around the route")
    }
}

impl StdError for MissingContext {}

impl IntoResponse for MissingContext {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// Converts the error into `504 Gateway Timeout` for a deadline, `503 Service Unavailable` for a cancel, and `499` if the
/// client has left.
///
/// The body is a short fixed text, without lines, causes or budgets. For a call of gRPC, gRPC-Web or Connect, the
/// [`ServerLayer`](crate::wire::ServerLayer) around the route converts the response into the status of that protocol.
///
/// ```
/// use std::time::Duration;
/// use axum::response::IntoResponse;
/// use tokio_ctx::Context;
///
/// let ctx = Context::background().with_timeout(Duration::ZERO);
/// let response = ctx.err().unwrap().into_response();
/// assert_eq!(response.status(), 504);
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let outcome = Outcome::of(&self);
        let mut response = (outcome.http(), format!("{}\n", outcome.text())).into_response();
        // The layer knows the protocol, and converts the response by the outcome.
        response.extensions_mut().insert(outcome);
        response
    }
}
