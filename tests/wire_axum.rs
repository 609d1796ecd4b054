//! axum: the context as an argument, the error as a response, and the layer around routes.

mod common;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio_ctx::wire::{Inbound, ServerLayer};
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
async fn a_route_without_the_layer_is_rejected_unless_the_context_is_optional() {
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
async fn an_error_as_a_response_has_no_details() {
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
async fn the_layer_responds_for_a_handler_that_is_late() {
    let stuck = async || std::future::pending::<()>().await;
    let app = Router::new().route("/", get(stuck)).layer(layer());
    assert_eq!(answer(app, "/").await, (504, "deadline exceeded\n".to_string()));
}
