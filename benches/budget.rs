//! The cost of retries, progress, coalesced calls and queues, compared with plain calls: `cargo bench --bench budget`.

use std::hint::black_box;
use std::time::Duration;

use divan::Bencher;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio_ctx::budget::{Coalescer, Queue};
use tokio_ctx::{Context, Error};

const FAR: Duration = Duration::from_secs(600);
/// Operations in one `block_on`.
const BATCH: u32 = 1_000;

fn main() {
    divan::main();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Runs `operation` repeatedly in one task.
fn each(bencher: Bencher, mut operation: impl AsyncFnMut()) {
    let runtime = runtime();
    bencher.counter(BATCH).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCH {
                operation().await;
            }
        });
    });
}

/// Returns a context with a deadline, like that of a request, and one without.
fn contexts() -> [Context; 2] {
    let root = Context::background().with_cancel().detach();
    [root.with_timeout(FAR).detach(), root.with_cancel().detach()]
}

#[divan::bench(args = [0, 1])]
fn run(bencher: Bencher, which: usize) {
    let ctx = contexts()[which].clone();
    each(bencher, async || {
        let done = ctx.try_run(async { Ok::<_, Error>(black_box(7)) }).await;
        black_box(done.is_ok());
    });
}

#[divan::bench(args = [0, 1])]
fn run_in_child(bencher: Bencher, which: usize) {
    let ctx = contexts()[which].clone();
    each(bencher, async || {
        let done = ctx.with_cancel().try_run(async { Ok::<_, Error>(black_box(7)) }).await;
        black_box(done.is_ok());
    });
}

#[divan::bench(args = [0, 1])]
fn retry_first_succeeds(bencher: Bencher, which: usize) {
    let ctx = contexts()[which].clone();
    each(bencher, async || {
        let done = ctx.retry([FAR; 3], |_, _| async { Ok::<_, Error>(black_box(7)) }).await;
        black_box(done.is_ok());
    });
}

#[divan::bench]
fn progress(bencher: Bencher) {
    let ctx = Context::background().with_timeout(FAR).with_idle(FAR).detach();
    let progress = ctx.progress();
    bencher.counter(BATCH).bench_local(|| {
        for _ in 0..BATCH {
            black_box(&progress).report();
        }
    });
}

#[divan::bench]
fn progress_of_bytes(bencher: Bencher) {
    let ctx = Context::background().with_timeout(FAR).with_idle(FAR).detach();
    let progress = ctx.progress();
    bencher.counter(BATCH).bench_local(|| {
        for _ in 0..BATCH {
            black_box(&progress).report_bytes(16);
        }
    });
}

#[divan::bench]
fn is_done_under_an_idle_limit(bencher: Bencher) {
    let scope = Context::background().with_idle(FAR);
    let ctx = scope.with_cancel();
    bencher.bench_local(|| black_box(&ctx).is_done());
}

/// A call that starts the work, which is a task, and returns its output.
#[divan::bench]
fn coalesced_alone(bencher: Bencher) {
    let (ctx, work) = (Context::background().with_cancel().detach(), Coalescer::new());
    each(bencher, async || {
        black_box(ctx.coalesce(&work, 7_u64, |_| async { 1_u32 }).await.is_ok());
    });
}

/// A call that joins running work, one of ten concurrent calls.
#[divan::bench]
fn coalesced_of_ten(bencher: Bencher) {
    let (ctx, work) = (Context::background().with_cancel().detach(), Coalescer::new());
    let runtime = runtime();
    bencher.counter(10_u32).bench_local(|| {
        runtime.block_on(async {
            let call = || {
                ctx.coalesce(&work, 7_u64, |_| async {
                    yield_now().await;
                    1_u32
                })
            };
            let calls = tokio::join!(
                call(),
                call(),
                call(),
                call(),
                call(),
                call(),
                call(),
                call(),
                call(),
                call()
            );
            black_box(calls.0.is_ok());
        });
    });
}

#[divan::bench]
fn queue(bencher: Bencher) {
    let ctx = Context::background().with_timeout(FAR).detach();
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let mut queue = Queue::from(receiver).least(Duration::from_millis(1));
    each(bencher, async || {
        let _sent = sender.send(ctx.carry(7_u32)).await;
        black_box(queue.recv().await.is_some());
    });
}
