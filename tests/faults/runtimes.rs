//! Runtimes that are shut down, not driven, or changed during a wait.

use std::future::{Future as _, pending};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::task::Waker;
use std::thread;

use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

use crate::common::{
    Cause, Drops, HANG, LONG, Wakes, answer, assert_same, current_thread, ended, ms, multi_thread, poll,
    poll_once, word,
};
use crate::{BACKGROUND, faulty};

type Flavor = (&'static str, fn() -> Runtime);

fn flavors() -> [Flavor; 3] {
    [
        ("current_thread", current_thread),
        ("multi_thread, 1 worker", || multi_thread(1)),
        ("multi_thread, 2 workers", || multi_thread(2)),
    ]
}

type ShutDown = (&'static str, fn(Runtime));

fn ways() -> [ShutDown; 3] {
    [
        ("dropped", drop),
        ("shutdown_background", Runtime::shutdown_background),
        ("shutdown_timeout", |runtime| runtime.shutdown_timeout(HANG)),
    ]
}

/// Waits until `done` returns true, for an action of another thread; fails after a time limit.
fn until(what: &str, done: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < HANG, "{what}: not after {HANG:?}");
        thread::yield_now();
    }
}

/// Pending waits, timers, functions, token watchers and a guard are dropped with the runtime, and the tree stays
/// usable.
#[test]
fn that_shut_down_drop_all_that_is_pending() {
    faulty(|| {
        for (flavor, make) in flavors() {
            for (way, shut_down) in ways() {
                let name = format!("{flavor}, {way}");
                let runtime = make();
                let drops = Drops::default();
                let root = BACKGROUND.with_timeout(LONG);
                let scope = root.with_cancel();
                let ended_by_task = scope.clone();
                let outer = CancellationToken::new();
                let foreign = root.with_token(&outer);
                let (polled, are_polled) = mpsc::channel();
                let bridges = runtime.block_on(async {
                    for nth in 0..12 {
                        let child = root.with_timeout(LONG / 2);
                        let contexts = [root.clone(), child.clone(), foreign.clone()];
                        let (counted, polled) = (drops.counted(), polled.clone());
                        tokio::spawn(async move {
                            let (_counted, _child) = (counted, child);
                            let ctx = &contexts[nth % 3];
                            let mut run = Box::pin(ctx.run(pending::<()>()));
                            assert!(poll_once(run.as_mut()).is_pending());
                            polled.send(()).unwrap();
                            run.await
                        });
                        let counted = drops.counted();
                        let ended = if nth % 2 == 0 { &root } else { &foreign };
                        let _handle = ended.after_func(move || async move {
                            drop(counted);
                            unreachable!("nothing ended it");
                        });
                    }
                    let counted = drops.counted();
                    let polled = polled.clone();
                    tokio::spawn(async move {
                        let (_counted, _scope) = (counted, scope);
                        polled.send(()).unwrap();
                        pending::<()>().await
                    });
                    tokio::task::yield_now().await;
                    [root.cancellation_token(), foreign.cancellation_token()]
                });
                (0..13).for_each(|_| are_polled.recv_timeout(HANG).unwrap());
                let elsewhere = current_thread();
                let (wakes, waker) = Wakes::new();
                let mut other_wait = Box::pin(root.done_owned());
                {
                    let _entered = elsewhere.enter();
                    assert!(poll(other_wait.as_mut(), &waker).is_pending());
                }
                shut_down(runtime);
                until(&name, || drops.count() == 25);
                until(&name, || ended_by_task.is_done());
                assert!(ended(&ended_by_task).is_canceled());
                let _entered = elsewhere.enter();
                assert!(answer(&root).is_none() && answer(&foreign).is_none());
                assert!(bridges.iter().all(|token| !token.is_cancelled()));
                let woken_for_nothing = wakes.count();
                outer.cancel();
                assert!(ended(&foreign).is_canceled());
                assert!(poll(other_wait.as_mut(), &waker).is_pending(), "{name}");
                root.cancel_with(Cause("afterwards"));
                assert_eq!(word(&ended(&root)), Some("afterwards"));
                assert!(wakes.count() > woken_for_nothing, "{name}: the waiter elsewhere was not woken");
                assert!(poll(other_wait.as_mut(), &waker).is_ready());
                assert!(bridges.iter().all(CancellationToken::is_cancelled), "{name}");
            }
        }
    });
}

/// The first runtime is shut down while the second one sleeps in `block_on`, which still wakes at the deadline.
#[test]
fn that_shut_down_do_not_affect_the_deadline_of_a_sleeping_one() {
    faulty(|| {
        for (flavor, make) in flavors() {
            for (way, shut_down) in ways() {
                for waits_here in [1, 3] {
                    for waits_there in [1, 3] {
                        let first = make();
                        let ctx = BACKGROUND.with_timeout(ms(40));
                        let child = ctx.with_cancel();
                        for _ in 0..waits_here {
                            first.spawn(child.done_owned());
                        }
                        first.block_on(tokio::task::yield_now());
                        let (waiting, is_waiting) = mpsc::channel();
                        let second = thread::spawn({
                            let child = child.clone();
                            move || {
                                current_thread().block_on(async {
                                    let mut waits: Vec<_> =
                                        (0..waits_there).map(|_| Box::pin(child.done())).collect();
                                    for wait in &mut waits {
                                        // Unless the machine is so slow that the deadline has passed.
                                        let polled = poll_once(wait.as_mut());
                                        assert!(polled.is_pending() || child.is_done());
                                    }
                                    waiting.send(()).unwrap();
                                    futures::future::join_all(waits).await
                                })
                            }
                        });
                        is_waiting.recv_timeout(HANG).unwrap();
                        shut_down(first);
                        let before = Instant::now();
                        let errors = second.join().unwrap();
                        let name = format!("{flavor}, {way}, {waits_here} here, {waits_there} there");
                        assert!(before.elapsed() < HANG / 2, "{name}");
                        assert!(Instant::now() >= ctx.deadline().unwrap(), "{name}: too early");
                        for error in &errors {
                            assert!(error.is_deadline_exceeded(), "{name}: {error}");
                            assert_same(error, &ended(&ctx));
                        }
                    }
                }
            }
        }
    });
}

/// Polled with the task's own waker inside the other runtime's `enter`, so that the timer belongs to the other.
#[test]
fn that_provided_a_timer_and_shut_down_are_replaced() {
    faulty(|| {
        for (_, make) in flavors() {
            for (_, shut_down) in ways() {
                for waits in [1, 2, 3] {
                    let ctx = BACKGROUND.with_timeout(ms(30));
                    let child = ctx.with_cancel();
                    let lender = make();
                    let handle = lender.handle().clone();
                    let mut lender = Some(lender);
                    current_thread().block_on(async {
                        let mut all: Vec<_> = (0..waits).map(|_| Box::pin(child.done_owned())).collect();
                        let join = futures::future::join_all(all.iter_mut().map(|wait| {
                            let (mut first, handle) = (true, handle.clone());
                            std::future::poll_fn(move |cx| {
                                let _entered = std::mem::take(&mut first).then(|| handle.enter());
                                wait.as_mut().as_mut().poll(cx)
                            })
                        }));
                        let mut join = Box::pin(timeout(HANG, join));
                        if futures::poll!(join.as_mut()).is_ready() {
                            // On a very slow machine, there is nothing to check.
                            return assert!(ctx.is_done());
                        }
                        // A runtime must not block on the shutdown of another one.
                        let lender = lender.take().unwrap();
                        thread::spawn(move || shut_down(lender)).join().unwrap();
                        for error in join.await.expect("hung on the timer of the other runtime") {
                            assert!(error.is_deadline_exceeded());
                        }
                        assert!(Instant::now() >= ctx.deadline().unwrap());
                    });
                }
            }
        }
    });
}

/// From one runtime to another and back, after the first was shut down or not driven, with and without other
/// waits.
#[test]
fn may_change_during_a_wait() {
    faulty(|| {
        for others in [0, 1, 2] {
            for path in [[0, 1, 2], [0, 1, 0], [1, 0, 1], [2, 1, 2], [0, 2, 1]] {
                for keep_still in [true, false] {
                    let ctx = BACKGROUND.with_timeout(ms(40));
                    let child = ctx.with_cancel();
                    let mut runtimes: Vec<_> =
                        flavors().into_iter().map(|(_, make)| Some(make())).collect();
                    let mut other_waits: Vec<_> =
                        (0..others).map(|_| Box::pin(child.done_owned())).collect();
                    let mut wait = Box::pin(child.done_owned());
                    let [first, second, last] = path;
                    for at in [first, second] {
                        runtimes[at].as_ref().unwrap().block_on(async {
                            for other in &mut other_waits {
                                let polled = poll(other.as_mut(), Waker::noop());
                                assert!(polled.is_pending() || ctx.is_done());
                            }
                            let polled = poll(wait.as_mut(), Waker::noop());
                            // Unless the machine is so slow that the deadline has passed.
                            assert!(polled.is_pending() || ctx.is_done());
                        });
                    }
                    if ctx.is_done() {
                        continue;
                    }
                    if !keep_still {
                        for at in [first, second] {
                            if at != last {
                                drop(runtimes[at].take());
                            }
                        }
                    }
                    let error = runtimes[last].as_ref().unwrap().block_on(async {
                        timeout(HANG, wait).await.expect("the wait did not move to the other runtime")
                    });
                    assert!(error.is_deadline_exceeded(), "{path:?}");
                    assert!(Instant::now() >= ctx.deadline().unwrap());
                }
            }
        }
    });
}

/// Polled where there is no runtime any more, also while another runtime waits.
#[test]
fn are_not_needed_to_observe_a_cancel() {
    faulty(|| {
        for (_, make) in flavors() {
            let ctx = BACKGROUND.with_timeout(LONG);
            let mut wait = Box::pin(ctx.done_owned());
            let runtime = make();
            runtime.block_on(async {
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
            });
            let waiter = thread::spawn(move || futures::executor::block_on(wait));
            ctx.cancel_with(Cause("by hand"));
            assert_eq!(word(&waiter.join().unwrap()), Some("by hand"));
            drop(runtime);
        }
    });
}

/// Not driven for a while, and then again: its waits observe what happened meanwhile.
#[test]
fn that_were_not_driven_catch_up() {
    faulty(|| {
        for waits in [1, 2, 4] {
            let still = current_thread();
            let moving = multi_thread(1);
            let ctx = BACKGROUND.with_timeout(ms(20));
            let child = ctx.with_cancel();
            let live = BACKGROUND.with_cancel();
            let spawn = |runtime: &Runtime, ctx: &Context| -> Vec<_> {
                (0..waits).map(|_| runtime.spawn(ctx.done_owned())).collect()
            };
            let asleep = [spawn(&still, &child), spawn(&still, &live)];
            let (ran, has_run) = mpsc::channel();
            let _handle = {
                let _entered = still.enter();
                ctx.after_func(move || async move { ran.send(()).unwrap() })
            };
            still.block_on(tokio::task::yield_now());
            let awake = spawn(&moving, &child);
            let error = moving.block_on(async {
                let all = timeout(HANG, futures::future::join_all(awake)).await;
                all.expect("hung on a runtime that is not driven").remove(0).unwrap()
            });
            live.cancel_with(Cause("meanwhile"));
            assert!(asleep.iter().flatten().all(|task| !task.is_finished()));
            assert!(has_run.try_recv().is_err());
            let [timed_out, canceled] = asleep;
            still.block_on(async {
                for task in timed_out {
                    assert_same(&timeout(HANG, task).await.expect("hung").unwrap(), &error);
                }
                for task in canceled {
                    let error = timeout(HANG, task).await.expect("hung").unwrap();
                    assert_eq!(word(&error), Some("meanwhile"));
                }
            });
            until("the function after the end", || {
                still.block_on(tokio::task::yield_now());
                has_run.try_recv().is_ok()
            });
        }
    });
}

/// A shutdown, a cancel and a passing deadline at the same moment.
#[test]
fn that_shut_down_during_an_end_lose_nothing() {
    faulty(|| {
        for round in 0..150 {
            let (_, make) = flavors()[round % 3];
            let (_, shut_down) = ways()[round / 3 % 3];
            let runtime = make();
            let drops = Drops::default();
            let scope = match round % 2 {
                0 => BACKGROUND.with_timeout(LONG),
                _ => BACKGROUND.with_timeout(ms(1)),
            };
            let ctx = scope.clone();
            let child = ctx.with_cancel();
            for _ in 0..6 {
                let (ctx, counted) = (child.clone(), drops.counted());
                runtime.spawn(async move {
                    let _counted = counted;
                    ctx.done().await
                });
                let counted = drops.counted();
                let _entered = runtime.enter();
                let _handle = child.after_func(|| async move { drop(counted) });
            }
            let elsewhere = current_thread();
            let here = elsewhere.spawn(child.done_owned());
            elsewhere.block_on(tokio::task::yield_now());
            let start = Arc::new(Barrier::new(3));
            let cancel = {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    scope.cancel_with(Cause("race"));
                })
            };
            let shutdown = {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    shut_down(runtime);
                })
            };
            start.wait();
            let error = elsewhere
                .block_on(async { timeout(HANG, here).await.expect("lost in the shutdown").unwrap() });
            cancel.join().unwrap();
            shutdown.join().unwrap();
            until("everything is dropped", || drops.count() == 12);
            assert_same(&ended(&ctx), &error);
            assert!(error.is_deadline_exceeded() || word(&error) == Some("race"));
        }
    });
}

/// A task shuts its own runtime down from inside, under a context that the shutdown ends.
#[test]
fn may_be_shut_down_from_inside() {
    faulty(|| {
        for (flavor, make) in flavors() {
            let runtime = make();
            let handle = runtime.handle().clone();
            let scope = BACKGROUND.with_timeout(LONG);
            let (ctx, child) = (scope.clone(), scope.with_cancel());
            let waiter = thread::spawn({
                let child = child.clone();
                move || current_thread().block_on(child.done_owned())
            });
            let held = handle.spawn(async move {
                let _scope = scope;
                pending::<()>().await
            });
            runtime.block_on(tokio::task::yield_now());
            let inside = async move {
                ctx.run(async {
                    runtime.shutdown_background();
                    pending::<()>().await
                })
                .await
            };
            // It is dropped, or sees that the context has ended because the scope was dropped.
            thread::spawn(move || {
                let _task = handle.spawn(inside);
                drop(held);
            })
            .join()
            .unwrap();
            if flavor == "current_thread" {
                // Not driven: nothing has run, and the task holds the runtime, which holds the task.
                drop(child);
                continue;
            }
            assert!(waiter.join().unwrap().is_canceled(), "{flavor}");
        }
    });
}
