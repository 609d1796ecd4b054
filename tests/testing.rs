//! `testing::scope`: succeeds if no work is left, and otherwise names the work that is.

#![cfg(feature = "test-util")]

mod common;

use std::future::{Future, pending};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use common::{Drops, LONG, current_thread, ms, multi_thread, on_both, panic_text, paused, watched};
use futures::{FutureExt as _, stream};
use tokio::sync::Notify;
use tokio_ctx::{BoxError, Context, Error, Group, Shutdown, StreamExt as _, testing};

/// Returns the message with which a scope fails. The clock is paused, so it fails at once.
fn failure_of<T>(body: impl AsyncFnOnce(&Context) -> T) -> String {
    panic_text(|| paused().block_on(testing::scope(body)))
}

/// Returns the text of a future's panic.
async fn panicked(future: impl Future) -> String {
    let Err(panic) = AssertUnwindSafe(future).catch_unwind().await else {
        panic!("should have panicked")
    };
    panic_text(|| std::panic::resume_unwind(panic))
}

#[test]
fn nothing_left_passes() {
    on_both(|| async {
        let seen = testing::scope(async |test| {
            let child = test.with_timeout(LONG);
            let answer = child.spawn(async { 42 }).await.unwrap();
            let waits = child.clone();
            test.spawn(async move { waits.done().await });
            test.spawn_blocking(|| Context::current().done_blocking());
            let waits = test.clone();
            tokio::spawn(async move { waits.sleep(LONG).await });
            test.after_func(|| async { tokio::time::sleep(ms(1)).await });
            answer
        })
        .await;
        assert_eq!(seen, 42);
    });
}

#[test]
fn it_ends_with_the_body() {
    on_both(|| async {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        testing::scope(async |test| {
            assert!(!test.is_done());
            let waits = test.clone();
            test.spawn(async move { sender.send(waits.done().await) });
        })
        .await;
        assert!(receiver.await.unwrap().to_string().ends_with(": the test is over"));
    });
}

#[test]
fn work_that_outlives_its_caller_is_named_by_its_line() {
    use tokio_ctx::budget::Coalescer;

    let line = line!() + 4;
    let text = failure_of(async |test| {
        let gives_up = test.with_timeout(ms(10));
        // A dropped caller leaves the first; the second has time of its own; the third ends with its last caller.
        gives_up.shield(pending::<()>()).await.unwrap_err();
        let cleanup = |_| pending::<()>();
        let step = test.with_timeout(ms(10));
        assert!(
            tokio::time::timeout(ms(5), step.run_then(pending::<()>(), LONG, cleanup)).await.is_err()
        );
        let work = Coalescer::new();
        let step = test.with_timeout(ms(10));
        step.coalesce(&work, (), |_| pending::<()>()).await.unwrap_err();
        tokio::task::yield_now().await;
    });
    assert_eq!(text.matches("is still running").count(), 2, "{text}");
    for line in [line, line + 4] {
        assert!(
            text.contains(&format!("a task spawned at tests/testing.rs:{line} is still running")),
            "{text}"
        );
    }
}

#[test]
fn a_task_that_is_left_is_named_by_its_line() {
    let line = line!() + 3;
    let text = failure_of(async |test| {
        let child = test.with_cancel();
        child.spawn(pending::<()>());
        test.spawn(async {}).await.unwrap();
    });
    assert!(text.starts_with("the test's context, made at tests/testing.rs:"), "{text}");
    assert!(
        text.ends_with(&format!(":\n  a task spawned at tests/testing.rs:{line} is still running")),
        "{text}"
    );
}

#[test]
fn each_of_several_tasks_is_named() {
    let text = failure_of(async |test| {
        test.spawn(pending::<()>());
        let deep = test.with_value("deep").without_cancel();
        deep.spawn(pending::<()>());
    });
    assert_eq!(text.matches("is still running").count(), 2, "{text}");
}

#[test]
fn a_context_that_is_held_by_an_unregistered_task_is_found() {
    let text = failure_of(async |test| {
        let child = test.with_cancel();
        let held = child.clone();
        tokio::spawn(async move {
            pending::<()>().await;
            drop(held);
        });
    });
    let end =
        "\n  the context, or one derived from it, is still held, but not by a task that it spawned";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_blocking_task_that_is_left_is_named_too() {
    watched(|| {
        let runtime = current_thread();
        let text = runtime.block_on(async {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let line = line!() + 2;
            let text = panicked(testing::scope(async |test| {
                test.spawn_blocking(move || stopped.recv());
            }))
            .await;
            assert!(text.contains(&format!("spawned at tests/testing.rs:{line} is still")), "{text}");
            stop.send(()).unwrap();
            text
        });
        assert_eq!(text.lines().count(), 2, "{text}");
    });
}

/// Checks that a scope reports one task, which was spawned on this line.
#[track_caller]
fn left_at<T>(line: u32, body: impl AsyncFnOnce(&Context) -> T) {
    let text = failure_of(body);
    let left = format!("a task spawned at tests/testing.rs:{line} is still running");
    assert!(text.ends_with(&left), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

/// Waits forever, in an unregistered task.
fn forget(wait: impl Future + Send + 'static) {
    tokio::spawn(async move {
        wait.await;
    });
}

#[test]
fn a_member_of_a_group_that_is_not_joined_is_named() {
    left_at(line!() + 2, async |test| {
        let (mut group, _ctx) = Group::<(), Error>::new(test);
        group.spawn(pending());
        group.spawn(async { Ok(()) });
        forget(async move { group.join().await.is_ok() });
    });
    left_at(line!() + 2, async |test| {
        let mut group = Group::<(), Error>::new(test).0.limit(1);
        assert!(group.spawn(pending()).await);
        forget(async move { group.join().await.is_ok() });
    });
    left_at(line!() + 4, async |test| {
        let (begun, begins) = (Arc::new(Notify::new()), test.clone());
        let jobs = begun.clone();
        forget(async move {
            let work = stream::iter([1, 2]).for_each_task(&begins, 1, |_, _| {
                jobs.notify_one();
                pending::<Result<(), BoxError>>()
            });
            work.await.is_ok()
        });
        begun.notified().await;
    });
}

#[test]
fn work_that_a_shutdown_waits_for_is_named() {
    left_at(line!() + 2, async |test| {
        let shutdown = Shutdown::new(test);
        shutdown.spawn(pending::<()>());
    });
    left_at(line!() + 1, async |test| {
        forget(Shutdown::new(test).track(pending::<()>()));
    });
    left_at(line!() + 2, async |test| {
        let shutdown = Shutdown::new(test);
        let ticket = shutdown.named("thread").ticket();
        // Neither the thread nor its ticket holds a context.
        std::thread::spawn(move || {
            let _ticket = ticket;
            std::thread::park();
        });
    });
}

#[test]
fn a_clean_up_that_does_not_end_is_named() {
    left_at(line!() + 1, async |test| {
        test.after_func(pending::<()>);
    });
}

#[test]
fn groups_and_shutdowns_that_end_leave_nothing() {
    on_both(|| async {
        testing::scope(async |test| {
            // Waited for, dropped, and canceled.
            let (mut group, ctx) = Group::<(), Error>::new(test);
            group.spawn(async move { Err(ctx.done().await) });
            group.canceler().cancel();
            assert!(group.join().await.is_err());
            let (mut group, _ctx) = Group::<(), Error>::new(test);
            group.spawn(pending());
            drop(group);
            let shutdown = Shutdown::new(test).grace(ms(1)).cleanup(ms(1));
            let tracked = shutdown.track(pending::<()>());
            shutdown.spawn(pending::<()>());
            shutdown.begin("over");
            assert_eq!(shutdown.wait().await.overdue().len(), 2);
            drop(tracked);
            let cleanup = test.after_func(pending::<()>);
            assert!(cleanup.stop());
        })
        .await;
    });
}

#[test]
fn a_member_that_panicked_fails_the_test_also_if_its_group_is_dropped() {
    let line = line!() + 3;
    let text = failure_of(async |test| {
        let (mut group, ctx) = Group::<(), Error>::new(test);
        group.spawn(async { panic!("in a member") });
        ctx.done().await;
    });
    assert!(
        text.ends_with(&format!(":\n  a task spawned at tests/testing.rs:{line} panicked")),
        "{text}"
    );
}

#[test]
fn a_task_that_panicked_fails_the_test() {
    let text = failure_of(async |test| {
        let failed = test.spawn(async { panic!("in a task") });
        assert!(failed.await.is_err());
    });
    assert_eq!(text.matches(" panicked").count(), 1, "{text}");
}

#[test]
fn a_panic_of_the_body_is_propagated_alone() {
    let drops = Drops::default();
    let counted = drops.counted();
    let runtime = paused();
    let text = panic_text(|| {
        runtime.block_on(testing::scope(async |test| {
            let waits = test.clone();
            test.spawn(async move {
                let _counted = counted;
                waits.done().await;
                tokio::task::yield_now().await;
            });
            tokio::task::yield_now().await;
            panic!("the test failed");
        }))
    });
    assert_eq!(text, "the test failed");
    // Its context has ended nevertheless.
    runtime.block_on(async {
        while drops.count() == 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn tasks_that_need_some_time_to_end_get_it() {
    multi_thread(2).block_on(async {
        testing::scope(async |test| {
            let waits = test.clone();
            test.spawn(async move {
                waits.done().await;
                tokio::time::sleep(ms(50)).await;
            });
        })
        .await;
    });
}

#[test]
fn other_contexts_are_not_checked() {
    paused().block_on(async {
        let stranger = Context::background().with_cancel();
        let task = stranger.spawn(pending::<()>());
        testing::scope(async |test| assert!(!test.is_done())).await;
        assert!(!task.is_finished());
    });
}
