//! One operation at a time, for daily work: `cargo bench --bench single turn`. The comparison with peers is in
//! `compare`.

use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use divan::{Bencher, black_box};
use tokio::runtime::Builder;
use tokio_ctx::Context;

const FAR: Duration = Duration::from_secs(600);

fn main() {
    // Without I/O, whose driver would be woken, by a system call, for each timer that is the nearest one.
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _runtime = runtime.enter();
    divan::main();
}

#[divan::bench]
fn derive_drop(bencher: Bencher) {
    let parent = Context::background().with_cancel();
    bencher.bench_local(|| drop(black_box(&parent).with_cancel()));
}

#[divan::bench]
fn derive_cancel(bencher: Bencher) {
    let parent = Context::background().with_cancel();
    bencher.bench_local(|| {
        let ctx = black_box(&parent).with_cancel();
        ctx.cancel();
    });
}

#[divan::bench]
fn derive_timeout(bencher: Bencher) {
    let parent = Context::background().with_cancel();
    bencher.bench_local(|| drop(black_box(&parent).with_timeout(FAR)));
}

#[divan::bench(args = [1, 10, 1_000])]
fn is_done(bencher: Bencher, depth: usize) {
    let mut chain = vec![Context::background().with_cancel()];
    while chain.len() < depth {
        chain.push(chain[chain.len() - 1].with_cancel());
    }
    bencher.bench_local(|| black_box(&chain[depth - 1]).is_done());
}

#[divan::bench]
fn err_ended(bencher: Bencher) {
    let ctx = Context::background().with_cancel();
    ctx.cancel();
    bencher.bench_local(|| black_box(&ctx).err());
}

#[divan::bench]
fn turn(bencher: Bencher) {
    let ctx = Context::background().with_cancel();
    bencher.bench_local(|| wait_one_turn(&ctx));
}

#[divan::bench]
fn turn_deadline(bencher: Bencher) {
    let ctx = Context::background().with_timeout(FAR);
    bencher.bench_local(|| wait_one_turn(&ctx));
}

#[divan::bench]
fn derive_timeout_turn(bencher: Bencher) {
    let parent = Context::background().with_cancel();
    bencher.bench_local(|| {
        let ctx = black_box(&parent).with_timeout(FAR);
        wait_one_turn(&ctx);
    });
}

/// Polled twice, as by a `select!` whose other branch was pending once.
fn wait_one_turn(ctx: &Context) {
    let mut cx = TaskContext::from_waker(Waker::noop());
    let mut done = pin!(black_box(ctx).done());
    assert!(done.as_mut().poll(&mut cx).is_pending());
    assert!(done.as_mut().poll(&mut cx).is_pending());
}

#[divan::bench(args = [1, 10, 1_000])]
fn chain_canceled(bencher: Bencher, depth: usize) {
    bencher.bench_local(|| {
        let mut chain = vec![Context::background().with_cancel()];
        while chain.len() < depth {
            chain.push(chain[chain.len() - 1].with_cancel());
        }
        chain[0].cancel();
        while chain.pop().is_some() {}
    });
}

#[divan::bench]
fn with_value(bencher: Bencher) {
    let ctx = Context::background();
    bencher.bench_local(|| black_box(&ctx).with_value(7_u64));
}

#[divan::bench]
fn value(bencher: Bencher) {
    let ctx = Context::background().with_value(7_u64).with_value("seven");
    bencher.bench_local(|| black_box(&ctx).value::<u64>().copied());
}
