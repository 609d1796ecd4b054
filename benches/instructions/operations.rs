//! The most frequent operations, each in a function that callgrind identifies by its name.

use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{CancelScope, Context};
use tower::{Layer, Service, service_fn};

/// How often each operation runs while it is counted.
pub const TIMES: u64 = 1_000;

const FAR: Duration = Duration::from_secs(600);

pub struct Operation {
    pub name: &'static str,
    run: fn(&Stage),
}

/// What the operations start from.
struct Stage {
    live: CancelScope,
    deep: Vec<CancelScope>,
    limited: CancelScope,
    /// Canceled with a cause.
    ended: CancelScope,
    /// With this many values.
    ten: Context,
    hundred: Context,
    layer: ServerLayer,
}

macro_rules! operations {
    ($($name:ident($stage:ident) $body:block)*) => {
        pub const ALL: &[Operation] = &[$(Operation { name: stringify!($name), run: functions::$name }),*];

        mod functions {
            use super::*;
            $(
                #[inline(never)]
                pub fn $name($stage: &Stage) {
                    for _ in 0..TIMES $body
                }
            )*
        }
    };
}

operations! {
    measured_derive_drop(stage) {
        let ctx = black_box(&stage.live).with_cancel();
        black_box(&ctx);
    }
    measured_derive_cancel(stage) {
        let ctx = black_box(&stage.live).with_cancel();
        ctx.cancel();
        black_box(&ctx);
    }
    measured_derive_timeout(stage) {
        let ctx = black_box(&stage.live).with_timeout(FAR);
        black_box(&ctx);
    }
    measured_derive_timeout_held(stage) {
        let ctx = black_box(&stage.live).with_timeout(FAR);
        let other = black_box(ctx.clone());
        drop(ctx);
        black_box(&other);
    }
    measured_is_done(stage) {
        black_box(black_box(&stage.live).is_done());
    }
    measured_is_done_deep(stage) {
        black_box(black_box(&stage.deep[9]).is_done());
    }
    measured_clone(stage) {
        black_box(black_box(stage.live.context()).clone());
    }
    measured_turn(stage) {
        wait_one_turn(&stage.live);
    }
    measured_turn_deadline(stage) {
        wait_one_turn(&stage.limited);
    }
    measured_derive_timeout_turn(stage) {
        let ctx = black_box(&stage.live).with_timeout(FAR);
        wait_one_turn(&ctx);
    }
    measured_derive_turn_cancel(stage) {
        let ctx = black_box(&stage.live).with_cancel();
        let mut done = pin!(ctx.done());
        assert!(done.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
        ctx.cancel();
        assert!(done.poll(&mut TaskContext::from_waker(Waker::noop())).is_ready());
    }
    measured_cancel_with_children(stage) {
        let ctx = black_box(&stage.live).with_cancel();
        let child = ctx.with_cancel();
        let other = ctx.with_cancel();
        wait_one_turn(&child);
        wait_one_turn(&other);
        ctx.cancel();
        assert!(child.is_done() && other.is_done());
    }
    measured_err_with_cause(stage) {
        black_box(black_box(&stage.ended).err());
    }
    measured_request(stage) {
        request(&stage.live);
    }
    measured_layer_request(stage) {
        served(&stage.layer);
    }
    measured_root_drop(_stage) {
        black_box(&Context::background().with_cancel());
    }
    measured_value_10_hits(stage) {
        look_up(&stage.ten, &LOOKS[0], true);
    }
    measured_value_10_misses(stage) {
        look_up(&stage.ten, MISSES.as_flattened(), false);
    }
    measured_value_100_hits(stage) {
        look_up(&stage.hundred, LOOKS.as_flattened(), true);
    }
    measured_value_100_misses(stage) {
        look_up(&stage.hundred, MISSES.as_flattened(), false);
    }
    measured_with_value(stage) {
        black_box(black_box(stage.live.context()).with_value(User(1)));
    }
    measured_with_100_values(_stage) {
        black_box(with_values(black_box(PUTS.as_flattened())));
    }
}

struct Key<const N: usize>(#[allow(dead_code)] usize);
type Look = fn(&Context) -> bool;
type Put = fn(&Context) -> Context;

fn look<const N: usize>(ctx: &Context) -> bool {
    ctx.value::<Key<N>>().is_some()
}

fn miss<const N: usize>(ctx: &Context) -> bool {
    struct Missing<const N: usize>;
    ctx.value::<Missing<N>>().is_some()
}

fn put<const N: usize>(ctx: &Context) -> Context {
    ctx.with_value(Key::<N>(N))
}

macro_rules! ten {
    ($each:ident, $tens:literal) => { ten!($each, $tens; 0 1 2 3 4 5 6 7 8 9) };
    ($each:ident, $tens:literal; $($ones:literal)*) => { [$($each::<{ $tens * 10 + $ones }>),*] };
}

macro_rules! hundred {
    ($each:ident) => { hundred!($each; 0 1 2 3 4 5 6 7 8 9) };
    ($each:ident; $($tens:literal)*) => { [$(ten!($each, $tens)),*] };
}

const LOOKS: [[Look; 10]; 10] = hundred!(look);
const MISSES: [[Look; 10]; 10] = hundred!(miss);
const PUTS: [[Put; 10]; 10] = hundred!(put);

/// Looks up many types, because the hash collisions of a single type change with every build.
#[inline]
fn look_up(ctx: &Context, looks: &[Look], found: bool) {
    for look in looks {
        assert_eq!(look(black_box(ctx)), found);
    }
}

fn with_values(puts: &[Put]) -> Context {
    puts.iter().fold(Context::background(), |ctx, put| put(&ctx))
}

/// Polled twice and dropped, as by a `select!` whose other branch was pending once.
#[inline]
fn wait_one_turn(ctx: &Context) {
    let mut cx = TaskContext::from_waker(Waker::noop());
    let mut done = pin!(black_box(ctx).done());
    assert!(done.as_mut().poll(&mut cx).is_pending());
    assert!(done.as_mut().poll(&mut cx).is_pending());
}

struct User(u64);
struct Team(u64);

#[inline]
fn request(server: &Context) {
    let request = black_box(server).with_cancel();
    let ctx = request.with_timeout(FAR / 2).with_value(User(1)).with_value(Team(2));
    let step = ctx.with_timeout(FAR / 4);
    assert_eq!(step.value::<User>().map(|user| user.0), Some(1));
    assert_eq!(step.value::<Team>().map(|team| team.0), Some(2));
    assert!(black_box(step.check()).is_ok());
}

/// Serves one request, which is answered immediately.
#[inline]
fn served(layer: &ServerLayer) {
    let handler = async |_: Request<Empty<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all is well"))))
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = http::Uri::from_static("/answer/7");
    let response = ready(black_box(layer).layer(service_fn(handler)).call(request));
    black_box(ready(response.expect("infallible").into_body().collect()).expect("a body"));
}

#[inline]
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("it does not wait"),
    }
}

pub fn run_all() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let _runtime = runtime.enter();
    let mut deep = vec![Context::background().with_cancel()];
    while deep.len() < 10 {
        deep.push(deep[deep.len() - 1].with_cancel());
    }
    let live = Context::background().with_cancel();
    let limited = Context::background().with_timeout(FAR);
    let ended = Context::background().with_cancel();
    ended.cancel_with("over");
    let (ten, hundred) = (with_values(&PUTS[0]), with_values(PUTS.as_flattened()));
    let layer = ServerLayer::new(live.clone(), Inbound::new().max_budget(FAR));
    let stage = Stage { live, deep, limited, ended, ten, hundred, layer };
    for operation in ALL {
        (operation.run)(&stage);
    }
}
