//! `after_func`: its start races `stop`, and one of them wins.
//!
//! The function runs as a real task of a runtime that one thread of the model drives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;
use tokio::runtime::{Builder, Runtime};

use super::{WeakTokens, explore, final_error};
use crate::{AfterFunc, Context};

/// Registers a function that counts its runs.
pub(super) fn after(ctx: &Context, runtime: &Runtime) -> (AfterFunc, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let count = || async move {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let after = runtime.block_on(async { ctx.after_func(count) });
    poll_woken(runtime);
    (after, runs)
}

/// Polls the tasks that have been woken.
pub(super) fn poll_woken(runtime: &Runtime) {
    runtime.block_on(async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    });
}

pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime without drivers")
}

/// `stop` is called while the context ends and the function starts. It returns true if and only if the function never runs.
#[test]
fn stop_against_end_against_start() {
    explore([8, 7], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let tokens = WeakTokens::of([&ctx]);
        let runtime = runtime();
        let (after, runs) = after(&ctx, &runtime);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let stopper = thread::spawn({
            let ctx = ctx.clone();
            move || {
                let has_ended = ctx.is_done();
                let stopped = after.stop();
                assert!(!(has_ended && stopped), "the context has ended: it runs");
                stopped
            }
        });
        ender.join().unwrap();
        poll_woken(&runtime);
        let stopped = stopper.join().unwrap();
        poll_woken(&runtime);
        assert_eq!(runs.load(Ordering::Relaxed), usize::from(!stopped), "stopped: {stopped}");
        final_error(&ctx);
        drop((ctx, runtime));
        tokens.assert_dropped();
    });
}

/// Two threads call `stop` at once, and one of the calls returns true. The end comes later.
#[test]
fn two_stops_at_once() {
    explore([6, 8], || {
        let ctx = Context::background().with_cancel();
        let runtime = runtime();
        let (after, runs) = after(&ctx, &runtime);
        let after = Arc::new(after);
        let other = thread::spawn({
            let after = after.clone();
            move || after.stop()
        });
        let mine = after.stop();
        assert!(mine != other.join().unwrap(), "stopped once");
        ctx.cancel();
        poll_woken(&runtime);
        assert_eq!(runs.load(Ordering::Relaxed), 0);
        assert!(!after.stop());
    });
}

/// The function is registered while the context ends. It runs.
#[test]
fn registration_against_end() {
    explore([8, 8], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let runtime = runtime();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let (after, runs) = after(&ctx, &runtime);
        ender.join().unwrap();
        poll_woken(&runtime);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert!(!after.stop(), "the context has ended");
    });
}
