//! The allocations of a request under the server's layer, all of which are freed.

mod common;
mod wire;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
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

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// The number of allocations of this thread, and the bytes that have not been freed.
    static COUNTS: Cell<(u64, isize)> = const { Cell::new((0, 0)) };
}

fn count(allocations: u64, bytes: isize) {
    let add = |counts: &Cell<(u64, isize)>| {
        let (before, live) = counts.get();
        counts.set((before + allocations, live + bytes));
    };
    // The counters do not exist any more if the thread is ending.
    let _ = COUNTS.try_with(add);
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        unsafe { System.dealloc(block, layout) }
    }
}

/// Makes a request with an extension, as servers do.
fn request() -> Request<()> {
    Request::builder().header("grpc-timeout", "20S").extension(7_u8).body(()).unwrap()
}

/// Counts the allocations of a call, and the bytes that it leaves. The first calls make the lasting allocations of the
/// runtime and its timers.
async fn cost<S, B>(mut service: S) -> (u64, isize)
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
    let before = COUNTS.get();
    for _ in 0..100 {
        call(&mut service).await;
    }
    let after = COUNTS.get();
    assert_eq!((after.0 - before.0) % 100, 0, "the same for each call");
    ((after.0 - before.0) / 100, after.1 - before.1)
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
