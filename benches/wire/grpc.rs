//! A unary echo over tonic's server and channel, on loopback, with and without both layers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_ctx::Context;
use tokio_ctx::wire::{ClientLayer, Inbound, Outbound, ServerLayer};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tower::{Layer, Service};

use crate::in_process::{Of, busy, instructions};
use crate::{quartiles, verdict};

/// The smallest acceptable share of the calls per second.
const TARGET: f64 = 0.97;
const AT_ONCE: usize = 16;
const ROUND: Duration = Duration::from_millis(400);

pub fn report(rounds: usize) {
    // Like a service, with several workers, and calls from tasks.
    let runtime = Runtime::new().expect("a runtime");
    let inbound = Inbound::new().max_budget(Duration::from_secs(30));
    let layer = ServerLayer::new(Context::background(), inbound);
    let [bare, layered] = runtime.block_on(async { [serve(None).await, serve(Some(layer)).await] });
    let client = ClientLayer::new(Outbound::new());
    let (bare, layered) = (connect(&runtime, bare), client.layer(connect(&runtime, layered)));
    let rounds: Vec<[Rate; 2]> = (0..rounds)
        .map(|round| {
            // They take turns to be the first.
            if round % 2 == 0 {
                let without = rate(&runtime, &bare);
                [without, rate(&runtime, &layered)]
            } else {
                let with = rate(&runtime, &layered);
                [rate(&runtime, &bare), with]
            }
        })
        .collect();
    let middle = |value: fn(&[Rate; 2]) -> f64| quartiles(rounds.iter().map(value).collect());
    let [low, share, high] = middle(|[without, with]| with.per_second / without.per_second);
    let [_, without, _] = middle(|[without, _]| without.per_second);
    let [_, with, _] = middle(|[_, with]| with.per_second);
    let [_, busy, _] = middle(|[without, with]| with.micros / without.micros);
    let [_, micros, _] = middle(|[without, _]| without.micros);
    println!("\n### A unary echo through tonic\n");
    println!(
        "| | calls per second | with the layers | share left | of CPU time ({micros:.1} µs), ratio | of instructions in user mode, ratio | target | |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let verdict = verdict([low >= TARGET, high >= TARGET]);
    let [plain, timed, layered] = ["tonic", "tonic timeout", "tonic layered"].map(instructions);
    let ratio = |without: Option<f64>| {
        let counted = layered.zip(without);
        counted.map_or(String::new(), |(with, without)| format!("{:.3}", with / without))
    };
    println!(
        "| both layers | {without:.0} | {with:.0} | {share:.3} | {busy:.3} | {} | {TARGET} | {verdict} |",
        ratio(plain)
    );
    println!("| both layers, beside a call with `set_timeout` | | | | | {} | | |", ratio(timed));
}

/// Makes calls one after the other on one thread, for callgrind to count.
pub fn counted(row: &str, times: u32) {
    let (is_layered, is_timed) = (row == "tonic layered", row == "tonic timeout");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let inbound = Inbound::new().max_budget(Duration::from_secs(30));
    let layer = is_layered.then(|| ServerLayer::new(Context::background(), inbound));
    let at = runtime.block_on(serve(layer));
    let channel = connect(&runtime, at);
    let ctx = Context::background().with_timeout(Duration::from_secs(3600));
    let mut left = times;
    let more = move || {
        left = left.saturating_sub(1);
        left > 0
    };
    if is_layered {
        let client = ClientLayer::new(Outbound::new()).layer(channel);
        runtime.block_on(ctx.scope(calls(tonic::client::Grpc::new(client), is_timed, more)));
    } else {
        runtime.block_on(ctx.scope(calls(tonic::client::Grpc::new(channel), is_timed, more)));
    }
}

/// Calls per second, and the microseconds that all threads of client and server were busy for each.
struct Rate {
    per_second: f64,
    micros: f64,
}

/// Measures calls by some tasks at once.
fn rate<S>(runtime: &Runtime, service: &S) -> Rate
where
    S: GrpcService<Body, Future: Send, Error: Send> + Clone + Send + 'static,
    S::ResponseBody: http_body::Body<Data = Bytes, Error: Into<tokio_ctx::BoxError>> + Send + 'static,
{
    let until = Instant::now() + ROUND;
    let calls = async {
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let client = tonic::client::Grpc::new(service.clone());
                let ctx = Context::background().with_timeout(ROUND * 100).detach();
                tokio::spawn(ctx.scope(calls(client, false, move || Instant::now() < until)))
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("it calls");
        }
        sum
    };
    let (start, before) = (Instant::now(), busy(Of::Process));
    let calls = f64::from(runtime.block_on(calls));
    let micros = (busy(Of::Process) - before) / calls;
    Rate { per_second: calls / start.elapsed().as_secs_f64(), micros }
}

async fn calls<S>(
    mut client: tonic::client::Grpc<S>,
    is_timed: bool,
    mut more: impl FnMut() -> bool,
) -> u32
where
    S: GrpcService<Body, Error: Send>,
    S::ResponseBody: http_body::Body<Data = Bytes, Error: Into<tokio_ctx::BoxError>> + Send + 'static,
{
    let mut calls = 0;
    while more() {
        let Ok(()) = client.ready().await else { panic!("no connection") };
        let path = PathAndQuery::from_static("/bench.Echo/Say");
        let mut request = Request::new(Bytes::from_static(b"hello"));
        if is_timed {
            request.set_timeout(Duration::from_secs(20));
        }
        let answer = client.unary(request, path, Raw).await;
        assert_eq!(answer.expect("an answer").into_inner(), "hello");
        calls += 1;
    }
    calls
}

async fn serve(layer: Option<ServerLayer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(async {
        let mut server = Server::builder();
        match layer {
            None => server.add_service(Echo).serve_with_incoming(incoming).await,
            Some(layer) => server.layer(layer).add_service(Echo).serve_with_incoming(incoming).await,
        }
    });
    at
}

fn connect(runtime: &Runtime, at: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{at}")).expect("an address");
    runtime.block_on(endpoint.connect()).expect("a connection")
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(tonic::server::Grpc::new(Raw).unary(Echo, request).await) })
    }
}

/// A codec that does not encode messages.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
