//! Promise 11, *runtimes*: everything except waiting works outside of a runtime. Waiting for a deadline without
//! a time driver panics with a clear message. Paused clocks, single threads, several runtimes, and a shutdown
//! during a wait are exact.

mod common;

use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::{
    Cause, Drops, HANG, LONG, Wakes, answer, assert_same, current_thread, ended, ms, multi_thread,
    panic_text, paused, poll, poll_once, watched, word,
};
use futures::executor::block_on;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, advance, pause, sleep_until, timeout};
use tokio_ctx::{Context, DoneOwned, Error};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

fn without_time() -> [Runtime; 2] {
    [
        Builder::new_current_thread().build().unwrap(),
        Builder::new_multi_thread().worker_threads(1).build().unwrap(),
    ]
}

/// Tokio's timers have a resolution of a millisecond. A wait may end up to two late, because the deadline was
/// set on another clock.
#[track_caller]
fn assert_at(deadline: Instant) {
    let now = Instant::now();
    assert!(
        now >= deadline && now <= deadline + ms(2),
        "{:?} off",
        now.saturating_duration_since(deadline)
    );
}

fn both() -> [Runtime; 2] {
    [current_thread(), multi_thread(2)]
}

#[test]
fn everything_but_waiting_works_outside_a_runtime() {
    assert!(tokio::runtime::Handle::try_current().is_err());
    let ctx = BACKGROUND.with_cancel();
    let timed = ctx.with_timeout_cause(LONG, Cause("slow"));
    let dated = timed.with_deadline(Instant::now() + LONG * 2);
    let merged = dated.context().with_value(7).merge(&timed);
    let token = merged.with_token(&CancellationToken::new());
    let free = token.without_cancel();
    assert!(!token.is_done() && token.err().is_none() && token.check().is_ok());
    assert!(token.remaining().unwrap() > LONG / 2);
    assert_eq!(token.deadline(), timed.deadline());
    assert_eq!(free.value(), Some(&7));
    assert!(token.sync_scope(|| Context::current().deadline().is_some()));
    assert!(matches!(block_on(token.run(async { 5 })), Ok(5)), "ready work needs no timer");
    let canceler = timed.canceler();
    drop(timed.detach());
    canceler.cancel_with(Cause("by hand"));
    assert_eq!(word(&ended(&token)), Some("by hand"));
    assert!(answer(&ctx).is_none());
    ctx.cancel();
    assert!(format!("{ctx} {ctx:?} {token} {token:?}").contains("canceled"));
}

#[test]
fn a_wait_without_a_deadline_needs_no_runtime() {
    watched(|| {
        let parent = BACKGROUND.with_cancel();
        let child = parent.with_cancel();
        let (waiting, is_waiting) = mpsc::channel();
        let waiter = thread::spawn(move || {
            waiting.send(()).unwrap();
            let run = block_on(child.run(pending::<()>())).unwrap_err();
            (run, block_on(child.done()))
        });
        is_waiting.recv().unwrap();
        parent.cancel_with(Cause("from outside"));
        let (run, done) = waiter.join().unwrap();
        assert_same(&run, &done);
        assert_same(&run, &ended(&parent));
    });
}

#[test]
fn an_ended_context_is_waited_on_anywhere() {
    let late = BACKGROUND.with_timeout(ms(0));
    let canceled = BACKGROUND.with_timeout(LONG);
    canceled.cancel();
    for ctx in [&late, &canceled] {
        assert_same(&block_on(ctx.done()), &ended(ctx));
        assert_same(&block_on(ctx.done_owned()), &ended(ctx));
        assert_same(&block_on(ctx.run(pending::<()>())).unwrap_err(), &ended(ctx));
    }
    for runtime in without_time() {
        assert_same(&runtime.block_on(late.done()), &ended(&late));
    }
}

#[test]
fn waiting_on_a_deadline_outside_a_runtime_panics_with_the_reason() {
    let timed = BACKGROUND.with_timeout(LONG);
    let child = timed.with_cancel();
    for ctx in [&timed, &child] {
        for text in [
            panic_text(|| block_on(ctx.done())),
            panic_text(|| block_on(ctx.done_owned())),
            panic_text(|| block_on(ctx.run(pending::<()>()))),
            panic_text(|| block_on(ctx.sleep(LONG))),
        ] {
            assert!(text.contains("Tokio") && text.contains("runtime"), "{text}");
        }
    }
    // Only that wait fails.
    assert!(!child.is_done());
    timed.cancel();
    assert_same(&block_on(child.done()), &ended(&timed));
}

#[test]
fn waiting_on_a_deadline_without_a_time_driver_panics_with_the_solution() {
    for runtime in without_time() {
        let timed = BACKGROUND.with_timeout(LONG);
        let child = timed.with_cancel();
        for ctx in [&timed, &child] {
            for text in [
                panic_text(|| runtime.block_on(ctx.done())),
                panic_text(|| runtime.block_on(ctx.run(pending::<()>()))),
                panic_text(|| runtime.block_on(async { ctx.sleep(LONG).await })),
            ] {
                assert!(text.contains("enable_time"), "{text}");
            }
        }
        assert!(!child.is_done());
        // The same contexts are awaited in a runtime with a clock, and canceled meanwhile.
        let waiter = current_thread();
        waiter.block_on(async {
            let wait = tokio::spawn(child.done_owned());
            tokio::task::yield_now().await;
            timed.cancel();
            assert!(wait.await.unwrap().is_canceled());
        });
    }
}

#[test]
fn without_a_time_driver_everything_else_works() {
    for runtime in without_time() {
        runtime.block_on(async {
            let ctx = BACKGROUND.with_cancel();
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let _handle = ctx.after_func(|| async { sender.send(()).unwrap() });
            let wait = ctx.spawn(async { Context::current().done().await });
            tokio::task::yield_now().await;
            ctx.cancel();
            assert!(wait.await.unwrap().is_canceled());
            receiver.await.unwrap();
            let late = BACKGROUND.with_timeout(ms(0));
            assert!(late.done().await.is_deadline_exceeded());
        });
    }
}

#[test]
fn real_deadlines_end_waits_on_every_flavor() {
    watched(|| {
        for runtime in both() {
            runtime.block_on(async {
                let ctx = BACKGROUND.with_timeout(ms(20));
                let waits: Vec<_> = (0..20).map(|_| tokio::spawn(ctx.done_owned())).collect();
                for wait in waits {
                    assert!(wait.await.unwrap().is_deadline_exceeded());
                }
                assert!(Instant::now() >= ctx.deadline().unwrap());
            });
        }
    });
}

/// Two runtimes and a plain thread wait on one context. Its end reaches all three.
#[test]
fn a_cancel_reaches_waiters_on_every_runtime() {
    watched(|| {
        let [one, two] = both();
        for _ in 0..200 {
            let (ctx, guard) = BACKGROUND.with_cancel().split();
            let child = ctx.with_cancel();
            let driver = {
                let ctx = ctx.clone();
                thread::spawn(move || block_on(ctx.done()))
            };
            let second = two.spawn(child.done_owned());
            let first = one.block_on(async {
                let wait = tokio::spawn(child.done_owned());
                tokio::task::yield_now().await;
                two.spawn(async move { guard.cancel_with(Cause("everywhere")) });
                wait.await.unwrap()
            });
            assert_eq!(word(&first), Some("everywhere"));
            assert_same(&first, &driver.join().unwrap());
            assert_same(&first, &two.block_on(second).unwrap());
        }
    });
}

#[test]
fn a_deadline_reaches_waiters_on_every_runtime() {
    watched(|| {
        for swap in [false, true] {
            let [mut one, mut two] = both();
            if swap {
                std::mem::swap(&mut one, &mut two);
            }
            let ctx = BACKGROUND.with_timeout(ms(30));
            let child = ctx.with_cancel();
            let others = thread::spawn({
                let child = child.clone();
                move || two.block_on(async { (child.done().await, child.done().await) })
            });
            let here = one.block_on(async { timeout(HANG, child.done()).await.expect("hung") });
            assert!(here.is_deadline_exceeded());
            let (a, b) = others.join().unwrap();
            assert_same(&a, &here);
            assert_same(&b, &here);
        }
    });
}

/// The timer of the first runtime may be shared. The runtime is shut down, or dropped without being driven,
/// with pending waits. The second runtime still sees the deadline.
#[test]
fn a_deadline_survives_the_runtime_that_first_waited_for_it() {
    watched(|| {
        for (makes, waits) in [(0, 1), (1, 1), (0, 3), (1, 3)] {
            for shut_down in [true, false] {
                let first = if makes == 0 { current_thread() } else { multi_thread(1) };
                let ctx = BACKGROUND.with_timeout(LONG);
                let child = ctx.with_cancel();
                let drops = Drops::default();
                let (polled, all_polled) = mpsc::channel();
                for _ in 0..waits {
                    let (child, counted, polled) = (child.clone(), drops.counted(), polled.clone());
                    first.spawn(async move {
                        let _counted = counted;
                        let mut wait = pin!(child.done());
                        assert!(poll_once(wait.as_mut()).is_pending());
                        polled.send(()).unwrap();
                        wait.await;
                    });
                }
                first.block_on(tokio::task::yield_now());
                (0..waits).for_each(|_| all_polled.recv().unwrap());

                let second = paused();
                let before = second.spawn(child.done_owned());
                second.block_on(tokio::task::yield_now());
                if shut_down {
                    first.shutdown_background();
                } else {
                    drop(first);
                }
                // Three waiters: one from before, one from after, and one on the parent only.
                let (a, b, c) = second.block_on(async {
                    let wait = async { tokio::join!(before, child.done(), ctx.done()) };
                    let errors =
                        timeout(LONG * 2, wait).await.expect("the deadline was lost with the runtime");
                    assert_at(ctx.deadline().unwrap());
                    errors
                });
                let a = a.unwrap();
                assert!(a.is_deadline_exceeded(), "{a}");
                assert_same(&a, &b);
                assert_same(&a, &c);
            }
        }
    });
}

/// A future is first polled on a runtime that is then dropped or not driven, and finished on another.
#[test]
fn a_wait_may_outlive_the_runtime_it_began_on() {
    watched(|| {
        for (others, stays) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
            for first in both() {
                let ctx = BACKGROUND.with_timeout(LONG);
                let child = ctx.with_cancel();
                let mut other_waits: Vec<_> =
                    (0..others).map(|_| Box::pin(child.done_owned())).collect();
                let mut wait = Box::pin(child.done_owned());
                first.block_on(async {
                    for wait in &mut other_waits {
                        assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                    }
                    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                });
                let _first = stays.then_some(first);
                assert!(!ctx.is_done(), "the shutdown ended the context");
                paused().block_on(async {
                    let error =
                        timeout(LONG * 2, wait).await.expect("the deadline was lost with the runtime");
                    assert!(error.is_deadline_exceeded());
                    assert_at(ctx.deadline().unwrap());
                });
            }
        }
    });
}

/// The same task polls its wait in a second runtime. The first one is never driven again.
#[test]
fn a_wait_that_its_task_polls_in_another_runtime_is_woken_there() {
    let (first, second) = (current_thread(), paused());
    let ctx = BACKGROUND.with_timeout(LONG);
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(ctx.done());
    {
        let _entered = first.enter();
        assert!(poll(wait.as_mut(), &waker).is_pending());
    }
    second.block_on(async {
        assert!(poll(wait.as_mut(), &waker).is_pending());
        tokio::time::sleep_until(ctx.deadline().unwrap() + ms(2)).await;
        assert_eq!(wakes.count(), 1, "left with the timer of the first runtime");
        assert!(poll(wait.as_mut(), &waker).is_ready());
    });
}

/// A wait whose timer is dropped with its runtime is woken, and finds another timer.
#[test]
fn a_runtime_shutdown_wakes_waits_that_used_its_timer() {
    for waits in [1, 2, 3] {
        for first in both() {
            let ctx = BACKGROUND.with_timeout(LONG);
            let child = ctx.with_cancel();
            let mut waits: Vec<_> = (0..waits)
                .map(|at| {
                    let (wakes, waker) = Wakes::new();
                    let wait = Box::pin(if at % 2 == 0 { child.done() } else { ctx.done() });
                    (wakes, waker, wait)
                })
                .collect();
            {
                let _entered = first.enter();
                for (_, waker, wait) in &mut waits {
                    assert!(poll(wait.as_mut(), waker).is_pending());
                }
            }
            drop(first);
            assert!(
                waits.iter().all(|(wakes, _, _)| wakes.count() >= 1),
                "still registered with a timer that is gone"
            );
            paused().block_on(async {
                for (_, waker, wait) in &mut waits {
                    assert!(poll(wait.as_mut(), waker).is_pending());
                }
                let before: Vec<_> = waits.iter().map(|(wakes, _, _)| wakes.count()).collect();
                tokio::time::sleep_until(ctx.deadline().unwrap() + ms(2)).await;
                for ((wakes, waker, wait), before) in waits.iter_mut().zip(before) {
                    assert!(wakes.count() > before, "not woken by the new one");
                    assert!(poll(wait.as_mut(), waker).is_ready());
                }
            });
        }
    }
}

/// The timers of a runtime that is not driven do not fire. Waits on another runtime do not depend on it.
#[test]
fn a_deadline_does_not_depend_on_a_runtime_that_is_not_driven() {
    watched(|| {
        for waits in [1, 2, 3] {
            let still = current_thread();
            let ctx = BACKGROUND.with_timeout(LONG);
            let mut kept: Vec<_> = (0..waits).map(|_| Box::pin(ctx.done_owned())).collect();
            {
                let _entered = still.enter();
                for wait in &mut kept {
                    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                }
            }
            paused().block_on(async {
                let wait = async { tokio::join!(ctx.done(), ctx.done()) };
                let (a, b) = timeout(LONG * 2, wait).await.expect("hung on another runtime's timer");
                assert_same(&a, &b);
                assert!(a.is_deadline_exceeded());
                assert_at(ctx.deadline().unwrap());
            });
        }
    });
}

/// A scope that is owned by a task ends its context when the runtime drops the task.
#[test]
fn a_shutdown_drops_scopes_and_so_ends_contexts() {
    for runtime in both() {
        let scope = BACKGROUND.with_cancel();
        let child = scope.with_cancel();
        let (wakes, waker) = Wakes::new();
        let mut outside = pin!(child.done());
        assert!(poll(outside.as_mut(), &waker).is_pending());
        let (running, is_running) = mpsc::channel();
        runtime.spawn(async move {
            let _scope = scope;
            running.send(()).unwrap();
            pending::<()>().await;
        });
        runtime.block_on(tokio::task::yield_now());
        is_running.recv().unwrap();
        assert!(answer(&child).is_none());
        runtime.shutdown_timeout(HANG);
        assert!(ended(&child).is_canceled());
        assert_eq!(wakes.count(), 1);
    }
}

#[test]
fn a_shutdown_with_everything_pending_hangs_nothing() {
    watched(|| {
        for runtime in both() {
            let scope = BACKGROUND.with_timeout(LONG);
            let ctx = scope.clone();
            let drops = Drops::default();
            let counted = drops.counted();
            let (started, has_started) = mpsc::channel();
            runtime.block_on(async {
                for _ in 0..10 {
                    let (ctx, started) = (ctx.clone(), started.clone());
                    tokio::spawn(async move {
                        started.send(()).unwrap();
                        ctx.run(pending::<()>()).await
                    });
                }
                let _handle = ctx.after_func(|| async move { drop(counted) });
                tokio::task::yield_now().await;
            });
            (0..10).for_each(|_| has_started.recv().unwrap());
            runtime.shutdown_timeout(HANG);
            assert_eq!(drops.count(), 1, "the function was dropped with the runtime, not run");
            assert!(!ctx.is_done());
            scope.cancel_with(Cause("afterwards"));
            assert_eq!(word(&ended(&ctx)), Some("afterwards"));
        }
    });
}

#[test]
fn waiting_works_on_local_sets_in_blocking_tasks_and_unconstrained() {
    watched(|| {
        current_thread().block_on(async {
            let scope = BACKGROUND.with_timeout(LONG);
            let ctx = scope.clone();
            let local = tokio::task::LocalSet::new();
            let not_send = std::rc::Rc::new(3);
            let wait = {
                let ctx = ctx.clone();
                local.spawn_local(async move {
                    let error = ctx.run(pending::<()>()).await.unwrap_err();
                    (error, *not_send)
                })
            };
            let blocking = {
                let (ctx, handle) = (ctx.clone(), tokio::runtime::Handle::current());
                tokio::task::spawn_blocking(move || handle.block_on(ctx.done()))
            };
            let free = tokio::spawn(tokio::task::unconstrained(ctx.done_owned()));
            local
                .run_until(async {
                    tokio::task::yield_now().await;
                    scope.cancel_with(Cause("all"));
                    let (error, three) = wait.await.unwrap();
                    assert_eq!((word(&error), three), (Some("all"), 3));
                    assert_same(&error, &blocking.await.unwrap());
                    assert_same(&error, &free.await.unwrap());
                })
                .await;
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_a_paused_clock_ends_every_deadline_in_between() {
    let year = Duration::from_secs(365 * 24 * 3600);
    let contexts: Vec<_> = (1..=10).map(|tenth| BACKGROUND.with_timeout(year / 10 * tenth)).collect();
    let beyond = BACKGROUND.with_timeout(year * 2);
    let waits: Vec<_> = contexts.iter().map(|ctx| tokio::spawn(ctx.done_owned())).collect();
    let beyond_wait = tokio::spawn(beyond.done_owned());
    tokio::task::yield_now().await;
    advance(year).await;
    for (ctx, wait) in contexts.iter().zip(waits) {
        let error = wait.await.unwrap();
        assert_same(&error, &ended(ctx));
        assert_eq!(Some(error.origin().ended_at()), ctx.deadline());
    }
    assert!(answer(&beyond).is_none());
    assert!(!beyond_wait.is_finished());
    let before = Instant::now();
    assert!(beyond_wait.await.unwrap().is_deadline_exceeded());
    assert!(before.elapsed() >= year && before.elapsed() <= year + ms(1000));
}

/// Only the test advances a paused clock while tasks are ready. A wait must not do so with a timer of its own.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_moves_from_deadline_to_deadline() {
    let start = Instant::now();
    let ctx = BACKGROUND.with_timeout(LONG);
    let mut stops = Vec::new();
    for minutes in [10, 20, 30, 60] {
        let step = ctx.with_deadline(start + Duration::from_secs(minutes * 60));
        step.done().await;
        stops.push((start.elapsed().as_secs_f64() / 60.0).round() as u64);
    }
    assert_eq!(stops, [10, 20, 30, 60]);
}

/// A context can be derived on a paused clock or on a plain thread, and used elsewhere.
#[test]
fn contexts_travel_between_threads_and_runtimes() {
    watched(|| {
        let [one, two] = both();
        let request = thread::spawn(|| BACKGROUND.with_timeout(ms(40))).join().unwrap();
        let step = one.block_on(async { request.with_cancel() });
        let wait = two.spawn(step.done_owned());
        let error: Error = two.block_on(async { timeout(HANG, wait).await.expect("hung").unwrap() });
        assert!(error.is_deadline_exceeded());
        let contexts = [request.clone(), step.clone()];
        thread::spawn(move || drop((request, step))).join().unwrap();
        for ctx in &contexts {
            assert_same(&ended(ctx), &error);
        }
    });
}

/// Returns how often a runtime parks on its way to a time far ahead, on a paused clock. Each timer on the way adds to it.
/// `prepare` runs before that, on a paused or a real clock, and what it returns is kept.
fn parks<R>(is_paused: bool, prepare: impl FnOnce(&Runtime) -> R) -> usize {
    // Not a multiple of the slots of Tokio's timer wheel, so that a few milliseconds do not change the number.
    const FAR: Duration = LONG.saturating_mul(2).saturating_add(ms(32));
    let parks = Arc::new(AtomicUsize::new(0));
    let counted = parks.clone();
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(is_paused).on_thread_park(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let runtime = builder.build().unwrap();
    let start = runtime.block_on(async { Instant::now() });
    let _kept = prepare(&runtime);
    runtime.block_on(async {
        if !is_paused {
            pause();
        }
        // A timer that was set on another thread has unparked the runtime.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let before = parks.load(Ordering::SeqCst);
        sleep_until(start + FAR).await;
        parks.load(Ordering::SeqCst) - before
    })
}

/// Begins to wait for a context in a runtime.
fn wait_in(runtime: &Runtime, ctx: &Context) -> Pin<Box<DoneOwned>> {
    let _entered = runtime.enter();
    let mut wait = Box::pin(ctx.done_owned());
    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
    wait
}

/// Where no deadline is waited for any more, there is no timer to which a paused clock would advance.
#[test]
fn a_paused_clock_stands_still_once_no_deadline_is_waited_for() {
    watched(|| {
        let idle = parks(true, |_| {});
        for case in 0..5 {
            let wait = async {
                let ctx = BACKGROUND.with_timeout(LONG);
                let child = ctx.with_timeout(LONG / 2);
                {
                    let (mut one, mut two) = (pin!(ctx.done()), pin!(child.done()));
                    let mut three = pin!(ctx.done());
                    assert!(poll(one.as_mut(), Waker::noop()).is_pending());
                    if case > 0 {
                        assert!(poll(two.as_mut(), Waker::noop()).is_pending());
                        assert!(poll(three.as_mut(), Waker::noop()).is_pending());
                    }
                    match case {
                        2 => child.cancel(),
                        3 => ctx.cancel(),
                        _ => {}
                    }
                }
                (case < 4).then_some((ctx, child))
            };
            assert_eq!(parks(true, |runtime| runtime.block_on(wait)), idle, "case {case}");
        }
    });
}

/// Waits that began on a thread that has ended keep their timer as long as they wait, and no longer.
#[test]
fn a_thread_that_ends_leaves_only_the_timers_that_are_waited_for() {
    fn wait_on_a_thread(runtime: &Runtime) -> (Context, Pin<Box<DoneOwned>>) {
        let begin = || {
            let ctx = {
                let _entered = runtime.enter();
                BACKGROUND.with_timeout(LONG).detach()
            };
            let wait = wait_in(runtime, &ctx);
            (ctx, wait)
        };
        thread::scope(|scope| scope.spawn(begin).join().unwrap())
    }
    watched(|| {
        let idle = parks(false, |_| {});
        assert!(parks(false, wait_on_a_thread) > idle, "the timer is gone");
        assert_eq!(parks(false, |runtime| wait_on_a_thread(runtime).0), idle, "after the thread");
        let on_the_thread = |runtime: &Runtime| {
            thread::scope(|scope| scope.spawn(|| drop(wait_on_a_thread(runtime))).join().unwrap());
            thread::scope(|scope| {
                let wait = || drop(wait_in(runtime, &BACKGROUND.with_timeout(LONG)));
                scope.spawn(wait).join().unwrap();
            });
        };
        assert_eq!(parks(false, on_the_thread), idle, "on the thread");

        let runtime = current_thread();
        let (ctx, wait) = wait_on_a_thread(&runtime);
        let error = runtime.block_on(async {
            pause();
            timeout(LONG * 2, wait).await.expect("the deadline was lost with the thread")
        });
        assert!(error.is_deadline_exceeded());
        assert_same(&error, &ended(&ctx));
    });
}

/// Whether a paused clock is behind the real one or ahead of it, no timer stays that nothing waits for.
#[test]
fn a_paused_clock_that_is_ahead_has_no_timers_without_waits() {
    watched(|| {
        for ahead in [ms(0), LONG / 4] {
            let after = |waits: bool| {
                parks(true, |runtime| {
                    runtime.block_on(advance(ahead));
                    let ctx = runtime.block_on(async { BACKGROUND.with_timeout(LONG) });
                    drop(waits.then(|| wait_in(runtime, &ctx)));
                    ctx
                })
            };
            assert_eq!(after(true), after(false), "{ahead:?} ahead");
        }
    });
}

/// The end of a context removes its timers from all runtimes, although its handle and its waits are kept.
#[test]
fn an_end_leaves_no_timer_in_any_runtime() {
    watched(|| {
        let idle = parks(true, |_| {});
        for is_further in [false, true] {
            for ends in [false, true] {
                let left = parks(true, |runtime| {
                    let other = paused();
                    let ctx = runtime.block_on(async { BACKGROUND.with_timeout(LONG) });
                    let before = is_further.then(|| wait_in(&other, &ctx));
                    let wait = wait_in(runtime, &ctx);
                    let after = (!is_further).then(|| wait_in(&other, &ctx));
                    if ends {
                        ctx.cancel();
                    }
                    (other, ctx, [before, Some(wait), after])
                });
                assert_eq!(left == idle, ends, "further: {is_further}, ends: {ends}: {left}");
            }
        }
    });
}
