//! Promise 8, *after_func*: runs its function once, on a task of its own, after the end, or immediately if the
//! context has ended. `stop` works as in Go. Dropping the handle has no effect.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{
    Cause, Drops, HANG, LONG, current_thread, ended, ms, on_both, run_ready_tasks, watched, word,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_ctx::{CancelScope, Context};

static BACKGROUND: Context = Context::background();

#[test]
fn it_runs_after_a_cancel_and_not_before() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let queried = ctx.clone();
        let handle = ctx.after_func(move || async move { sender.send(queried.err()).unwrap() });
        run_ready_tasks().await;
        assert!(receiver.try_recv().is_err(), "it ran before the end");
        ctx.cancel_with(Cause("over"));
        let error = receiver.recv().await.unwrap().expect("it ran before the end");
        assert_eq!(word(&error), Some("over"));
        assert!(!handle.stop(), "it can no longer be stopped");
        assert!(receiver.recv().await.is_none(), "it ran twice");
    });
}

#[tokio::test(start_paused = true)]
async fn it_runs_after_a_deadline_without_other_waiters() {
    let start = Instant::now();
    let ctx = BACKGROUND.with_timeout(ms(100));
    let (sender, receiver) = oneshot::channel();
    let _handle = ctx.after_func(|| async { sender.send(Instant::now()).unwrap() });
    let ran = receiver.await.unwrap() - start;
    assert!(ran >= ms(100) && ran <= ms(101), "{ran:?}");
    drop(ctx);
}

#[test]
fn it_runs_at_once_if_the_context_has_ended() {
    on_both(|| async {
        let canceled = BACKGROUND.with_cancel();
        canceled.cancel();
        let late = BACKGROUND.with_timeout(ms(0));
        let child = canceled.with_cancel();
        for ctx in [canceled, late, child] {
            let (sender, receiver) = oneshot::channel();
            let _handle = ctx.after_func(|| async { sender.send(()).unwrap() });
            receiver.await.unwrap();
        }
    });
}

#[test]
fn stopped_it_never_runs() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (sender, receiver) = oneshot::channel::<()>();
        let handle = ctx.after_func(|| async { sender.send(()).unwrap() });
        assert!(handle.stop());
        assert!(!handle.stop(), "only the first call stops it");
        ctx.cancel();
        assert!(!handle.stop());
        assert!(receiver.await.is_err(), "it ran after all");
    });
}

#[test]
fn stopped_before_its_task_was_polled_it_never_runs() {
    current_thread().block_on(async {
        let ctx = BACKGROUND.with_cancel();
        let (sender, receiver) = oneshot::channel::<()>();
        // No await in between: its task has not run yet.
        let handle = ctx.after_func(|| async { sender.send(()).unwrap() });
        assert!(handle.stop());
        ctx.cancel();
        assert!(receiver.await.is_err(), "it ran after all");
    });
}

/// Also before its task has run, and if another thread or the deadline has ended the context.
#[test]
fn once_the_context_has_ended_stop_answers_false_and_it_runs() {
    let ends: [fn(&CancelScope); 3] = [
        |scope| scope.cancel(),
        |scope| std::thread::scope(|threads| drop(threads.spawn(|| scope.cancel()).join())),
        |_deadline| std::thread::sleep(ms(2)),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        for ended_before in [false, true] {
            current_thread().block_on(async {
                let ctx = BACKGROUND.with_timeout(if number == 2 { ms(1) } else { LONG });
                let (sender, receiver) = oneshot::channel();
                let f = || async { sender.send("ran").unwrap() };
                // No await in between: its task has not run yet.
                let handle = if ended_before {
                    end(&ctx);
                    ctx.after_func(f)
                } else {
                    let handle = ctx.after_func(f);
                    end(&ctx);
                    handle
                };
                assert!(!handle.stop());
                assert!(!handle.stop());
                assert_eq!(receiver.await, Ok("ran"));
            });
        }
    }
}

#[test]
fn stop_does_not_interrupt_a_started_function() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let resume = go_on.clone();
        let handle = ctx.after_func(move || async move {
            sender.send("started").unwrap();
            resume.notified().await;
            sender.send("finished").unwrap();
        });
        ctx.cancel();
        assert_eq!(receiver.recv().await, Some("started"));
        assert!(!handle.stop());
        drop(handle);
        go_on.notify_one();
        assert_eq!(receiver.recv().await, Some("finished"));
        assert_eq!(receiver.recv().await, None);
    });
}

#[test]
fn cancel_does_not_wait_for_it() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (meet, met) = oneshot::channel::<()>();
        let (sender, receiver) = oneshot::channel();
        let _handle = ctx.after_func(|| async {
            met.await.unwrap(); // ready only after cancel has returned
            sender.send(()).unwrap();
        });
        run_ready_tasks().await;
        ctx.cancel();
        meet.send(()).unwrap();
        receiver.await.unwrap();
    });
}

#[test]
fn dropping_the_handle_changes_nothing() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        drop(ctx.after_func(move || async move { sender.send(()).unwrap() }));
        run_ready_tasks().await;
        assert!(receiver.try_recv().is_err(), "it ran before the end");
        ctx.cancel();
        assert_eq!(receiver.recv().await, Some(()));
        assert_eq!(receiver.recv().await, None);
    });
}

#[test]
fn it_needs_no_other_handle_of_its_context() {
    on_both(|| async {
        let scope = BACKGROUND.with_cancel();
        let parent = scope.clone();
        let (sender, receiver) = oneshot::channel();
        {
            let child = parent.with_cancel().detach();
            let _handle = child.after_func(|| async { sender.send(()).unwrap() });
        }
        drop(parent);
        scope.cancel();
        receiver.await.unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn it_runs_at_the_deadline_of_a_context_without_handles() {
    let (sender, receiver) = oneshot::channel();
    {
        let ctx = BACKGROUND.with_timeout(ms(100)).detach();
        let _handle = ctx.after_func(|| async { sender.send(Instant::now()).unwrap() });
    }
    let before = Instant::now();
    assert!(receiver.await.unwrap() - before >= ms(100));
}

/// Three functions and the test run on four different tasks.
#[test]
fn each_runs_on_a_task_of_its_own() {
    on_both(|| async {
        let outcome = tokio::spawn(async {
            let ctx = BACKGROUND.with_cancel();
            let (sender, mut receiver) = mpsc::unbounded_channel();
            for _ in 0..3 {
                let sender = sender.clone();
                let _handle =
                    ctx.after_func(move || async move { sender.send(tokio::task::id()).unwrap() });
            }
            ctx.cancel();
            let mut ids = vec![tokio::task::id()];
            for _ in 0..3 {
                ids.push(receiver.recv().await.unwrap());
            }
            ids
        });
        let mut ids: Vec<_> = outcome.await.unwrap().iter().map(ToString::to_string).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4);
    });
}

/// A function that never finishes does not delay the others.
#[test]
fn one_that_hangs_does_not_prevent_others_from_running() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let _stuck = ctx.after_func(std::future::pending);
        let (sender, receiver) = oneshot::channel();
        let _handle = ctx.after_func(|| async { sender.send(()).unwrap() });
        ctx.cancel();
        receiver.await.unwrap();
    });
}

#[test]
fn it_runs_when_the_cancel_comes_from_outside_the_runtime() {
    on_both(|| async {
        let (ctx, guard) = BACKGROUND.with_cancel().split();
        let (sender, receiver) = oneshot::channel();
        let _handle =
            ctx.after_func(|| async { sender.send(tokio::runtime::Handle::try_current()).unwrap() });
        thread::spawn(move || guard.cancel()).join().unwrap();
        assert!(receiver.await.unwrap().is_ok(), "it runs on the runtime it was made on");
    });
}

#[test]
fn on_a_context_that_never_ends_it_holds_nothing_and_can_be_stopped() {
    let ctx = BACKGROUND.with_value(1).with_cancel();
    for never in [BACKGROUND.clone(), BACKGROUND.with_value(1), ctx.without_cancel()] {
        let drops = Drops::default();
        let counted = drops.counted();
        // No task waits for an end that never comes, so no runtime is needed.
        let handle = never.after_func(|| async move { drop(counted) });
        assert_eq!(drops.count(), 1, "the function was kept");
        assert!(handle.stop());
        assert!(!handle.stop());
    }
}

#[test]
fn stopped_it_drops_all_it_held() {
    current_thread().block_on(async {
        let root = BACKGROUND.with_cancel();
        let (values, captured) = (Drops::default(), Drops::default());
        let ctx = root.context().with_value(values.counted()).with_timeout(LONG);
        let counted = captured.counted();
        let handle = ctx.after_func(|| async move { drop(counted) });
        run_ready_tasks().await;
        assert!(handle.stop());
        drop(ctx);
        run_ready_tasks().await;
        assert_eq!((values.count(), captured.count()), (1, 1));
        assert!(!handle.stop(), "the handle was kept");
    });
}

/// Any thread can use the handle. `stop` and the cancel race a thousand times, and each time exactly one of
/// them wins.
#[test]
fn stop_and_run_exclude_each_other() {
    watched(|| {
        for runtime in [current_thread(), common::multi_thread(2)] {
            for round in 0..1000 {
                let (ctx, guard) = BACKGROUND.with_cancel().split();
                let runs = Arc::new(AtomicUsize::new(0));
                let (sender, receiver) = oneshot::channel::<()>();
                let handle = {
                    let _in_runtime = runtime.enter();
                    let runs = runs.clone();
                    ctx.after_func(move || async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        sender.send(()).unwrap();
                    })
                };
                let start = Arc::new(Barrier::new(3));
                let cancel = {
                    let start = start.clone();
                    thread::spawn(move || {
                        start.wait();
                        guard.cancel();
                    })
                };
                let stop = {
                    let start = start.clone();
                    thread::spawn(move || {
                        start.wait();
                        (handle.stop(), handle.stop())
                    })
                };
                let ran = runtime.block_on(async {
                    start.wait();
                    timeout(HANG, receiver).await.expect("neither run nor dropped").is_ok()
                });
                cancel.join().unwrap();
                let (stopped, again) = stop.join().unwrap();
                assert_ne!(stopped, ran, "round {round}: stop returned {stopped}, it ran: {ran}");
                assert!(!again);
                assert_eq!(runs.load(Ordering::SeqCst), usize::from(ran));
            }
        }
    });
}

#[test]
fn of_two_concurrent_stops_one_returns_true() {
    watched(|| {
        let runtime = common::multi_thread(1);
        for _ in 0..1000 {
            let ctx = BACKGROUND.with_cancel();
            let handle = {
                let _in_runtime = runtime.enter();
                Arc::new(ctx.after_func(|| async { unreachable!("the context does not end") }))
            };
            let start = Arc::new(Barrier::new(2));
            let stops = [0, 1].map(|_| {
                let (handle, start) = (handle.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    handle.stop()
                })
            });
            let stops = stops.map(|stop| stop.join().unwrap());
            assert_ne!(stops[0], stops[1]);
        }
    });
}

/// The function's work is not stopped by the end of the context.
#[tokio::test(start_paused = true)]
async fn its_work_is_not_bounded_by_the_ended_context() {
    let ctx = BACKGROUND.with_cancel();
    let (sender, receiver) = oneshot::channel();
    let _handle = ctx.after_func(|| async {
        tokio::time::sleep(LONG).await;
        sender.send("cleaned up").unwrap();
    });
    ctx.cancel();
    assert_eq!(receiver.await, Ok("cleaned up"));
    assert!(ended(&ctx).is_canceled());
}

/// Go builds a merged context in this way. Here there is `merge`, but it is possible too.
#[test]
fn two_contexts_can_be_tied_together_with_it() {
    on_both(|| async {
        let one = BACKGROUND.with_cancel();
        let two = BACKGROUND.with_cancel();
        let (tied, tied_guard) = one.with_cancel().split();
        let from = two.clone();
        let _handle = two.after_func(move || async move { tied_guard.cancel_with(from.err().unwrap()) });
        two.cancel_with(Cause("two"));
        let error = tied.done().await;
        assert_eq!(word(&error), Some("two"));
        assert!(common::answer(&one).is_none());
    });
}

/// A blocking read that only `shutdown` of its socket can interrupt.
#[tokio::test]
async fn it_interrupts_code_that_does_not_know_contexts() {
    let ctx = BACKGROUND.with_timeout(ms(1));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_peer, _) = listener.accept().await.unwrap();
    let handle = {
        let stream = stream.try_clone().unwrap();
        ctx.after_func(|| async move { stream.shutdown(std::net::Shutdown::Both).unwrap() })
    };
    let read = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        (&stream).read(&mut [0; 16])
    });
    assert_eq!(timeout(HANG, read).await.expect("never interrupted").unwrap().unwrap(), 0);
    assert!(!handle.stop());
    assert!(ended(&ctx).is_deadline_exceeded());
}
