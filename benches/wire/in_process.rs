//! A call of a service in this very thread: no socket, no scheduler.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use tokio::runtime::{Builder, Runtime};
use tokio_ctx::wire::{ClientLayer, Inbound, Outbound, ServerLayer};
use tokio_ctx::{BoxError, Context};
use tower::{Layer, Service, service_fn};

use crate::{quartiles, verdict};

const CALLS: u32 = 2_000;
/// Microseconds, for each layer.
const TARGET: f64 = 2.0;

pub fn report(rounds: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let service = Context::background().with_cancel();
    let server = ServerLayer::new(service.clone(), Inbound::new().max_budget(Duration::from_secs(30)));
    let client = ClientLayer::new(Outbound::new());
    let (plain, grpc) = ("application/json", "application/grpc");

    let mut bare = handler();
    let mut served = server.layer(handler());
    let mut called = client.layer(handler());
    let mut both = client.layer(server.layer(handler()));
    let outer = Context::background().with_timeout(Duration::from_secs(3600));

    let mut added: [Vec<f64>; 4] = Default::default();
    let mut alone = Vec::new();
    for _ in 0..rounds {
        let without = time(&runtime, &mut bare, plain);
        alone.push(without);
        let rows = [
            time(&runtime, &mut served, plain),
            time(&runtime, &mut served, grpc),
            outer.sync_scope(|| time(&runtime, &mut called, plain)),
            outer.sync_scope(|| time(&runtime, &mut both, plain)),
        ];
        for (added, with) in added.iter_mut().zip(rows) {
            added.push(with - without);
        }
    }
    println!("### A call in the process\n");
    println!("| | µs | target | |");
    println!("| --- | --- | --- | --- |");
    println!("| the call itself | {:.2} | | |", quartiles(alone)[1]);
    let names = [
        ("added by the server's layer", 1.0),
        ("the same for a gRPC call", 1.0),
        ("added by the client's layer", 1.0),
        ("added by both", 2.0),
    ];
    for ((name, layers), added) in names.into_iter().zip(added) {
        let [low, middle, high] = quartiles(added);
        let target = TARGET * layers;
        let verdict = verdict([low <= target, high <= target]);
        println!("| {name} | {middle:.2} | {target:.0} | {verdict} |");
    }
    println!();
}

/// One that awaits once, as one that asks a database does.
fn handler() -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
> {
    service_fn(|request: Request<Empty<Bytes>>| async move {
        tokio::task::yield_now().await;
        black_box(request);
        Ok(Response::new(Full::from("answer")))
    })
}

/// Microseconds for one call, its answer read to its end.
fn time<S, B>(runtime: &Runtime, service: &mut S, content_type: &'static str) -> f64
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let start = Instant::now();
    runtime.block_on(async {
        for _ in 0..CALLS {
            let request = Request::get("http://far.side/")
                .header("content-type", content_type)
                .header("grpc-timeout", "20S")
                .body(Empty::new())
                .expect("a request");
            let response = service.call(request).await.map_err(Into::into).expect("an answer");
            let body = response.into_body().collect().await.map_err(Into::into);
            black_box(body.expect("a body"));
        }
    });
    start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS)
}
