//! The hottest operations, each in a function of its own that callgrind knows by its name.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use tokio_ctx::{CancelScope, Context};

/// How often each is done while it is counted.
pub const TIMES: u64 = 1_000;

const FAR: Duration = Duration::from_secs(600);

pub struct Operation {
    pub name: &'static str,
    run: fn(&Stage),
}

/// What they start from.
struct Stage {
    live: CancelScope,
    deep: Vec<CancelScope>,
    limited: CancelScope,
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
    measured_request(stage) {
        request(&stage.live);
    }
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
    let stage = Stage { live, deep, limited };
    for operation in ALL {
        (operation.run)(&stage);
    }
}
