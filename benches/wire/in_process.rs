//! A call of a service in the same thread, without a socket.

use std::alloc::{GlobalAlloc, Layout, System};
use std::convert::Infallible;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::runtime::{Builder, Runtime};
use tokio_ctx::wire::{ClientLayer, Inbound, Outbound, ServerLayer};
use tokio_ctx::{BoxError, CancelScope, Context};
use tower::{Layer, Service, service_fn};

use crate::{quartiles, verdict};

const CALLS: u32 = 2_000;
/// The microseconds that the server's layer, the client's, and both may add.
const TARGETS: [f64; 3] = [0.45, 0.25, 0.7];

/// Counts allocations. Only one thread allocates.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.store(ALLOCATIONS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The cost of a call.
#[derive(Clone, Copy)]
struct Cost {
    micros: f64,
    allocations: f64,
}

/// The calls that are measured: the handler without the layers, with them, and with a body that is not ready at once.
const ROWS: [&str; 7] = ["bare", "served", "grpc", "bare stream", "served stream", "called", "both"];

/// The services and contexts of the calls in [`ROWS`].
struct Calls {
    runtime: Runtime,
    outer: CancelScope,
    server: ServerLayer,
    client: ClientLayer,
}

impl Calls {
    fn new() -> Calls {
        let service = Context::background().with_cancel().detach();
        let inbound = Inbound::new().max_budget(Duration::from_secs(30));
        Calls {
            runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"),
            outer: Context::background().with_timeout(Duration::from_secs(3600)),
            server: ServerLayer::new(service, inbound),
            client: ClientLayer::new(Outbound::new()),
        }
    }

    fn time(&self, row: &str, calls: u32) -> Cost {
        let Calls { runtime, outer, server, client } = self;
        let plain = "application/json";
        match row {
            "bare" => time(runtime, handler(), plain, calls),
            "served" => time(runtime, server.layer(handler()), plain, calls),
            "grpc" => time(runtime, server.layer(handler()), "application/grpc", calls),
            "bare stream" => time(runtime, streaming(), plain, calls),
            "served stream" => time(runtime, server.layer(streaming()), plain, calls),
            "called" => outer.sync_scope(|| time(runtime, client.layer(handler()), plain, calls)),
            "both" => {
                outer.sync_scope(|| time(runtime, client.layer(server.layer(handler())), plain, calls))
            }
            _ => panic!("no row {row}"),
        }
    }
}

pub fn report(rounds: usize) {
    let calls = Calls::new();
    let mut costs = ROWS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (row, costs) in ROWS.into_iter().zip(&mut costs) {
            costs.push(calls.time(row, CALLS));
        }
    }
    let instructions = ROWS.map(instructions);
    let at = |row| ROWS.iter().position(|name| *name == row).expect("a row");
    println!("### A call in the process\n");
    println!("| | µs | target | | allocations | instructions |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let alone = costs[0].iter().map(|cost: &Cost| cost.micros).collect();
    println!("| the call itself | {:.2} | | | | |", quartiles(alone)[1]);
    let [server, client, both] = TARGETS;
    let lines = [
        ("added by the server's layer", "served", "bare", Some(server)),
        ("the same for a gRPC call", "grpc", "bare", Some(server)),
        ("the same for a body that is not ready at once", "served stream", "bare stream", None),
        ("added by the client's layer", "called", "bare", Some(client)),
        ("added by both", "both", "bare", Some(both)),
    ];
    for (name, with, without, target) in lines {
        let pairs = || costs[at(with)].iter().zip(&costs[at(without)]);
        let micros = pairs().map(|(with, without)| with.micros - without.micros).collect();
        let allocations = pairs().map(|(with, without)| with.allocations - without.allocations);
        let [low, middle, high] = quartiles(micros);
        let allocations = quartiles(allocations.collect())[1];
        let verdict = target.map_or("", |target| verdict([low <= target, high <= target]));
        let target = target.map_or(String::new(), |target| target.to_string());
        let counted = instructions[at(with)].zip(instructions[at(without)]);
        let counted = counted.map_or(String::new(), |(with, without)| format!("{:.0}", with - without));
        println!("| {name} | {middle:.2} | {target} | {verdict} | {allocations:.2} | {counted} |");
    }
    println!();
}

/// The instructions of one call, by callgrind if it is installed: the difference that twice as many calls make.
pub fn instructions(row: &str) -> Option<f64> {
    /// This many are enough, because all calls cost the same.
    const COUNTED: u32 = 500;
    eprintln!("counting instructions: {row}");
    let total = |calls: u32| {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().ok()?)
            .args(["--counted", row, &calls.to_string()])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        let total = said.lines().find_map(|line| line.split("Collected : ").nth(1))?;
        total.trim().parse::<f64>().ok()
    };
    Some((total(2 * COUNTED)? - total(COUNTED)?) / f64::from(COUNTED))
}

/// Makes calls, for callgrind to count.
pub fn counted(row: &str, calls: &str) {
    let calls = calls.parse().expect("a number");
    match row {
        "tonic" | "tonic timeout" | "tonic layered" => crate::grpc::counted(row, calls),
        _ => {
            Calls::new().time(row, calls);
        }
    }
}

/// A handler that awaits once, like one that queries a database.
fn handler() -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
> + Clone {
    service_fn(|request: Request<Empty<Bytes>>| async move {
        tokio::task::yield_now().await;
        black_box(request);
        Ok(Response::new(Full::from("answer")))
    })
}

/// A handler whose body is not ready at once.
fn streaming() -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<impl Body<Data = Bytes, Error = Infallible> + Send + 'static>,
    Error = Infallible,
> + Clone {
    service_fn(|request: Request<Empty<Bytes>>| async move {
        tokio::task::yield_now().await;
        black_box(request);
        let mut polls = 0;
        let frames = futures::stream::poll_fn(move |cx| {
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
    })
}

/// Measures a call, including reading the response to its end.
fn time<S, B>(runtime: &Runtime, mut service: S, content_type: &'static str, calls: u32) -> Cost
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (start, before) = (busy(Of::Thread), ALLOCATIONS.load(Ordering::Relaxed));
    runtime.block_on(async {
        for _ in 0..calls {
            let request = Request::get("http://far.side/")
                .header("content-type", content_type)
                .header("grpc-timeout", "20S")
                // Servers insert extensions, such as a route or the address of the peer.
                .extension(CALLS)
                .body(Empty::new())
                .expect("a request");
            let response = service.call(request).await.map_err(Into::into).expect("an answer");
            let body = response.into_body().collect().await.map_err(Into::into);
            black_box(body.expect("a body"));
        }
    });
    Cost {
        micros: (busy(Of::Thread) - start) / f64::from(calls),
        allocations: (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / f64::from(calls),
    }
}

/// Whose time is measured.
pub enum Of {
    Thread,
    Process,
}

/// The microseconds that this thread, or all threads, have run. Other load on the machine affects them little.
#[cfg(unix)]
pub fn busy(of: Of) -> f64 {
    let clock = match of {
        Of::Thread => libc::CLOCK_THREAD_CPUTIME_ID,
        Of::Process => libc::CLOCK_PROCESS_CPUTIME_ID,
    };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `clock_gettime` writes to the value that it is given.
    let read = unsafe { libc::clock_gettime(clock, &mut now) };
    assert_eq!(read, 0, "a clock");
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

#[cfg(not(unix))]
pub fn busy(_: Of) -> f64 {
    use std::sync::LazyLock;
    use std::time::Instant;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64() * 1e6
}
