//! Blocking code: `spawn_blocking`, and waits on threads with and without a runtime.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Cause, LONG, assert_same, current_thread, ended, ms, multi_thread, on_both, panic_text, paused,
    spin_until, watched, word,
};
use tokio::runtime::Builder;
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Lets other threads run: from not at all to long enough for a wait to begin.
fn yield_times(times: usize) {
    (0..times).for_each(|_| thread::yield_now());
}

#[test]
fn spawn_blocking_propagates_the_context() {
    on_both(|| async {
        let scope = BACKGROUND.with_value("blue").with_cancel();
        let ctx = scope.clone();
        let (sender, receiver) = mpsc::channel();
        let spawned = ctx.spawn_blocking(move || {
            let ctx = Context::current();
            assert_eq!(ctx.value::<&str>(), Some(&"blue"));
            sender.send(()).unwrap();
            let mut iterations = 0_u64;
            while ctx.check().is_ok() {
                iterations += 1;
            }
            (iterations, ctx.err().unwrap())
        });
        spin_until(|| receiver.try_recv().is_ok());
        scope.cancel_with(Cause("enough"));
        let (iterations, error) = spawned.await.unwrap();
        assert!(iterations > 0);
        assert_same(&error, &ended(&ctx));
        assert!(!Context::current().is_done());
    });
}

/// Like `spawn`: the function sees the end and is not stopped.
#[test]
fn spawn_blocking_runs_after_the_end_too() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel();
        assert!(ctx.spawn_blocking(|| Context::current().is_done()).await.unwrap());
    });
}

#[test]
fn a_plain_thread_waits_for_a_cancel() {
    watched(|| {
        for _round in 0..300 {
            let ctx = BACKGROUND.with_cancel();
            let child = ctx.with_cancel();
            let waits = thread::spawn(move || child.done_blocking());
            thread::yield_now();
            ctx.cancel_with(Cause("now"));
            let error = waits.join().unwrap();
            assert_eq!(word(&error), Some("now"));
            assert_same(&error, &ended(&ctx));
        }
    });
}

#[test]
fn a_plain_thread_waits_for_a_deadline() {
    watched(|| {
        let begun = Instant::now();
        let ctx = BACKGROUND.with_timeout_cause(ms(50), Cause("late"));
        let child = ctx.with_timeout(LONG);
        let error = child.done_blocking();
        assert!(begun.elapsed() >= ms(50));
        assert!(error.is_deadline_exceeded());
        assert_eq!(word(&error), Some("late"));
        // After the end, it does not wait.
        assert_same(&child.done_blocking(), &error);
    });
}

#[test]
fn a_plain_thread_waits_for_a_token_and_a_merge() {
    watched(|| {
        for round in 0..100 {
            let token = CancellationToken::new();
            let ctx = BACKGROUND.with_token(&token);
            let other = BACKGROUND.with_timeout(LONG);
            let ctx = other.merge(&ctx);
            let waits = thread::spawn(move || ctx.done_blocking());
            yield_times(round);
            token.cancel();
            assert!(waits.join().unwrap().is_canceled());
        }
    });
}

/// An end long before the deadline is seen immediately.
#[test]
fn a_cancel_long_before_the_deadline_wakes_it() {
    watched(|| {
        for round in 0..100 {
            let scope = BACKGROUND.with_timeout(LONG);
            let ctx = scope.clone();
            let waits: Vec<_> = (0..4)
                .map(|_| {
                    let ctx = ctx.clone();
                    thread::spawn(move || ctx.done_blocking())
                })
                .collect();
            yield_times(round);
            scope.cancel();
            for wait in waits {
                assert!(wait.join().unwrap().is_canceled());
            }
        }
    });
}

/// An unpark by other code must not be taken for the end.
#[test]
fn it_does_not_wake_without_a_reason() {
    watched(|| {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let (sender, receiver) = mpsc::channel();
        let waits = thread::spawn(move || {
            let error = ctx.done_blocking();
            sender.send(()).unwrap();
            error
        });
        for _ in 0..100 {
            waits.thread().unpark();
            thread::yield_now();
        }
        assert!(receiver.try_recv().is_err());
        scope.cancel();
        assert!(waits.join().unwrap().is_canceled());
    });
}

#[test]
fn on_a_blocking_thread_it_waits_for_either() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let waits = ctx.spawn_blocking(|| Context::current().done_blocking());
        ctx.cancel();
        assert!(waits.await.unwrap().is_canceled());

        let ctx = BACKGROUND.with_timeout(ms(30));
        let waits = ctx.spawn_blocking(|| Context::current().done_blocking());
        assert!(waits.await.unwrap().is_deadline_exceeded());
    });
}

#[test]
fn it_needs_no_time_driver() {
    watched(|| {
        let runtime = Builder::new_current_thread().build().unwrap();
        let ctx = BACKGROUND.with_timeout(ms(30));
        runtime.block_on(async {
            let waits = ctx.spawn_blocking(|| Context::current().done_blocking());
            assert!(waits.await.unwrap().is_deadline_exceeded());
        });
    });
}

#[test]
fn it_outlives_its_runtime() {
    watched(|| {
        let runtime = multi_thread(1);
        let ctx = BACKGROUND.with_timeout(LONG);
        let (sender, receiver) = mpsc::channel();
        runtime.block_on(async {
            let begun = mpsc::channel();
            ctx.spawn_blocking(move || {
                begun.0.send(()).unwrap();
                sender.send(Context::current().done_blocking()).unwrap();
            });
            begun.1.recv().unwrap();
        });
        runtime.shutdown_background();
        ctx.cancel();
        assert!(receiver.recv().unwrap().is_canceled());
    });
}

/// The clock of the runtime applies, if a test moves it.
#[test]
fn it_follows_a_paused_clock() {
    watched(|| {
        paused().block_on(async {
            let ctx = BACKGROUND.with_timeout(LONG);
            let waits = ctx.spawn_blocking(|| Context::current().done_blocking());
            tokio::time::advance(LONG).await;
            assert!(waits.await.unwrap().is_deadline_exceeded());
        });
    });
}

#[test]
fn in_a_task_it_panics_because_it_would_block() {
    let words = "Cannot block the current thread from within a runtime";
    let ended = BACKGROUND.with_cancel();
    ended.cancel();
    current_thread().block_on(async {
        // Even if it would not block.
        for ctx in [BACKGROUND.clone(), ended.clone()] {
            let text = panic_text(|| ctx.done_blocking());
            assert!(text.starts_with(words), "{text}");
            let text = panic_text(|| ctx.sleep_blocking(ms(1)));
            assert!(text.starts_with(words), "{text}");
        }
    });
}

#[test]
fn in_block_in_place_it_may_block() {
    watched(|| {
        multi_thread(2).block_on(async {
            let ctx = BACKGROUND.with_timeout(ms(10));
            let task =
                ctx.spawn(async { tokio::task::block_in_place(|| Context::current().done_blocking()) });
            assert!(task.await.unwrap().is_deadline_exceeded());
        });
    });
}

#[test]
fn sleeping_ends_with_the_time_or_the_context() {
    watched(|| {
        let begun = Instant::now();
        BACKGROUND.sleep_blocking(ms(30)).unwrap();
        let ctx = BACKGROUND.with_cancel();
        ctx.sleep_blocking(ms(30)).unwrap();
        assert!(begun.elapsed() >= ms(60));
        ctx.sleep_blocking(Duration::ZERO).unwrap();

        for round in 0..100 {
            for long in [LONG, Duration::MAX] {
                let scope = BACKGROUND.with_cancel();
                let ctx = scope.clone();
                let sleeps = thread::spawn(move || ctx.sleep_blocking(long).unwrap_err());
                yield_times(round);
                scope.cancel();
                assert_same(&sleeps.join().unwrap(), &ended(&scope));
                assert!(scope.sleep_blocking(Duration::ZERO).is_err());
            }
        }

        let ctx = BACKGROUND.with_timeout(ms(20));
        assert!(ctx.sleep_blocking(LONG).unwrap_err().is_deadline_exceeded());
    });
}
