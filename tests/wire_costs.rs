//! The allocations of a request under the server's layer, all of which are freed.

#[path = "common/alloc.rs"]
mod alloc;
mod common;
mod wire;

use std::convert::Infallible;
use std::task::Poll;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context};
use tower::{Layer, Service, ServiceExt, service_fn};

use common::LONG;

/// Makes a request with an extension, as servers do.
fn request() -> Request<()> {
    Request::builder().header("grpc-timeout", "20S").extension(7_u8).body(()).unwrap()
}

/// Counts the allocations of a call, and the bytes that it leaves. The first calls make the lasting allocations of the
/// runtime and its timers.
async fn cost<S, B>(mut service: S) -> (usize, isize)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let call = async |service: &mut S| {
        let response = service.ready().await.unwrap().call(request()).await.unwrap();
        assert_eq!(
            response.into_body().collect().await.map_err(Into::into).unwrap().to_bytes(),
            "answer"
        );
    };
    for _ in 0..100 {
        call(&mut service).await;
    }
    let (allocations, live) = (alloc::allocations(), alloc::live());
    for _ in 0..100 {
        call(&mut service).await;
    }
    let allocations = alloc::allocations() - allocations;
    assert_eq!(allocations % 100, 0, "the same for each call");
    (allocations / 100, alloc::live() - live)
}

/// A handler that awaits once, like one that queries a database.
async fn ready(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    tokio::task::yield_now().await;
    Ok(Response::new(Full::from("answer")))
}

async fn later(
    _: Request<()>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible> + Send + 'static>, Infallible> {
    tokio::task::yield_now().await;
    let mut polls = 0;
    let frames = stream::poll_fn(move |cx| {
        polls += 1;
        match polls {
            1 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            2 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"answer"))))),
            _ => Poll::Ready(None),
        }
    });
    Ok(Response::new(StreamBody::new(frames)))
}

#[tokio::test]
async fn a_request_takes_three_allocations_or_four() {
    let service = Context::background().with_timeout(LONG);
    let layer = ServerLayer::new(service.clone(), Inbound::new().max_budget(LONG));
    let (bare, _) = cost(service_fn(ready)).await;
    let (served, left) = cost(layer.layer(service_fn(ready))).await;
    assert!(served <= bare + 3, "{served}, {bare} without");
    assert_eq!(left, 0);

    let (bare, _) = cost(service_fn(later)).await;
    let (served, left) = cost(layer.layer(service_fn(later))).await;
    assert!(served <= bare + 4, "{served}, {bare} without");
    assert_eq!(left, 0);
}
