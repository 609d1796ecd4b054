//! Where a context can be awaited: on any executor, in any set of tasks, on any thread.

use std::future::pending;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use futures::executor::LocalPool;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::task::LocalSpawnExt as _;
use tokio::runtime::Handle;
use tokio::task::{LocalSet, block_in_place, spawn_blocking, spawn_local, unconstrained, yield_now};
use tokio::time::{Instant, timeout};
use tokio_ctx::{Context, Error};

use crate::common::{
    Cause, HANG, LONG, assert_same, current_thread, ended, ms, multi_thread, on_both, poll_once, word,
};
use crate::{BACKGROUND, faulty};

/// How the context of a test ends: by a thread that cancels it, or by its deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Cancel,
    Deadline,
}

const BOTH: [By; 2] = [By::Cancel, By::Deadline];

/// A context that ends soon, or when the sender is used, by another thread.
fn ending(by: By) -> (Context, mpsc::Sender<()>) {
    let scope = match by {
        By::Cancel => BACKGROUND.with_timeout(LONG),
        By::Deadline => BACKGROUND.with_timeout(ms(20)),
    };
    let ctx = scope.clone();
    let (waits, wait) = mpsc::channel();
    thread::spawn(move || {
        if wait.recv().is_ok() && by == By::Cancel {
            scope.cancel_with(Cause("by hand"));
        } else {
            scope.detach();
        }
    });
    (ctx, waits)
}

#[track_caller]
fn check(by: By, ctx: &Context, error: &Error) {
    assert_same(error, &ended(ctx));
    assert_eq!(error.is_deadline_exceeded(), by == By::Deadline, "{error}");
}

/// A task that is unconstrained, or whose budget is exhausted.
#[test]
fn unconstrained_or_out_of_budget() {
    faulty(|| {
        on_both(|| async {
            for by in BOTH {
                let (ctx, begun) = ending(by);
                let free = tokio::spawn(unconstrained({
                    let ctx = ctx.clone();
                    async move { ctx.run(pending::<()>()).await.unwrap_err() }
                }));
                let hungry = tokio::spawn({
                    let ctx = ctx.clone();
                    async move {
                        let (jobs, mut queue) = tokio::sync::mpsc::unbounded_channel();
                        let busy = async {
                            loop {
                                jobs.send(()).unwrap();
                                queue.recv().await;
                            }
                        };
                        ctx.run(busy).await.unwrap_err()
                    }
                });
                begun.send(()).unwrap();
                for task in [free, hungry] {
                    check(by, &ctx, &timeout(HANG, task).await.expect("starved").unwrap());
                }
            }
        });
    });
}

#[test]
fn in_a_local_set() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(2)] {
            for by in BOTH {
                let (ctx, begun) = ending(by);
                let local = LocalSet::new();
                runtime.block_on(local.run_until(async {
                    let not_send = Rc::new(());
                    let tasks: Vec<_> = (0..5)
                        .map(|_| {
                            let (ctx, held) = (ctx.clone(), not_send.clone());
                            spawn_local(async move {
                                let inner = ctx.run(pending::<()>()).await.unwrap_err();
                                drop(held);
                                inner
                            })
                        })
                        .collect();
                    yield_now().await;
                    assert_eq!(Rc::strong_count(&not_send), 6);
                    begun.send(()).unwrap();
                    for task in tasks {
                        check(by, &ctx, &timeout(HANG, task).await.expect("hung").unwrap());
                    }
                    assert_eq!(Rc::strong_count(&not_send), 1);
                }));
                // Dropped with tasks that wait: their waits are deregistered.
                let kept = BACKGROUND.with_timeout(LONG);
                let local = LocalSet::new();
                local.spawn_local(kept.done_owned());
                runtime.block_on(local.run_until(yield_now()));
                drop(local);
                kept.cancel();
                assert!(kept.is_done());
            }
        }
    });
}

/// `block_on` where blocking is allowed, of a context from the same runtime.
#[test]
fn in_blocking_code() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(1), multi_thread(2)] {
            for by in BOTH {
                let (ctx, begun) = ending(by);
                runtime.block_on(async {
                    let tasks: Vec<_> = (0..3)
                        .map(|_| {
                            let (ctx, handle) = (ctx.clone(), Handle::current());
                            spawn_blocking(move || handle.block_on(ctx.done()))
                        })
                        .collect();
                    begun.send(()).unwrap();
                    for task in tasks {
                        check(by, &ctx, &timeout(HANG, task).await.expect("hung").unwrap());
                    }
                });
            }
        }
        let runtime = multi_thread(2);
        for by in BOTH {
            let (ctx, begun) = ending(by);
            let inside = ctx.clone();
            let task = runtime.spawn(async move {
                block_in_place(|| Handle::current().block_on(inside.run(pending::<()>()))).unwrap_err()
            });
            begun.send(()).unwrap();
            let error = runtime.block_on(async { timeout(HANG, task).await.expect("hung").unwrap() });
            check(by, &ctx, &error);
        }
    });
}

/// Outside of Tokio, by a cancel: on a thread that blocks, in a pool, and among many futures.
#[test]
fn outside_tokio() {
    faulty(|| {
        let parent = BACKGROUND.with_cancel();
        let child = parent.context().with_value(7).with_cancel();
        let (begun, has_begun) = mpsc::channel();
        let blocked = thread::spawn({
            let (child, begun) = (child.clone(), begun.clone());
            move || {
                begun.send(()).unwrap();
                futures::executor::block_on(
                    child.scope(async { Context::current().run(pending::<()>()).await.unwrap_err() }),
                )
            }
        });
        let pooled = thread::spawn({
            let (child, begun) = (child.clone(), begun.clone());
            move || {
                let mut pool = LocalPool::new();
                let spawner = pool.spawner();
                let waits: Vec<_> = (0..10)
                    .map(|_| spawner.spawn_local_with_handle(child.done_owned()).unwrap())
                    .collect();
                pool.run_until_stalled();
                begun.send(()).unwrap();
                pool.run_until(futures::future::join_all(waits))
            }
        });
        let unordered = thread::spawn({
            let child = child.clone();
            move || {
                let mut waits: FuturesUnordered<_> = (0..100).map(|_| child.done()).collect();
                assert!(poll_once(waits.next()).is_pending());
                begun.send(()).unwrap();
                let mut errors = Vec::new();
                while let Some(error) = futures::executor::block_on(waits.next()) {
                    errors.push(error);
                }
                errors
            }
        });
        (0..3).for_each(|_| has_begun.recv_timeout(HANG).unwrap());
        parent.cancel_with(Cause("everywhere"));
        let mut errors = vec![blocked.join().unwrap()];
        errors.extend(pooled.join().unwrap());
        errors.extend(unordered.join().unwrap());
        assert_eq!(errors.len(), 111);
        for error in errors {
            assert_eq!(word(&error), Some("everywhere"));
            assert_same(&error, &ended(&parent));
        }
    });
}

/// A loop of waits that are always ready does not starve the timer that ends it.
#[test]
fn in_a_loop_that_never_pauses() {
    faulty(|| {
        on_both(|| async {
            let ctx = BACKGROUND.with_timeout(ms(20));
            let start = Instant::now();
            let error = loop {
                tokio::select! {
                    biased;
                    error = ctx.done() => break error,
                    () = std::future::ready(()) => {}
                }
                assert!(start.elapsed() < HANG, "the deadline was not observed");
            };
            check(By::Deadline, &ctx, &error);
        });
    });
}
