//! Functions after the end, and futures under `run`, that panic or drop guards.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::thread;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_ctx::{AfterFunc, Context, FutureExt as _};

use crate::common::{Cause, Drops, HANG, LONG, Wakes, assert_same, ended, on_both, poll, word};
use crate::{BACKGROUND, faulty};

async fn caught<F: Future>(future: F) -> thread::Result<F::Output> {
    AssertUnwindSafe(future).catch_unwind().await
}

/// A function drops a guard: of the ended context, of an ancestor, of a sibling, and of an unrelated context.
#[test]
fn may_drop_guards() {
    faulty(|| {
        on_both(|| async {
            for whose in 0..4 {
                let (root, root_guard) = BACKGROUND.with_cancel().split();
                let (ctx, guard) = root.with_timeout(LONG).split();
                let (sibling, sibling_guard) = root.with_timeout(LONG).split();
                let (far, far_guard) = BACKGROUND.with_timeout(LONG).split();
                let canceler = guard.canceler();
                let mut guards = [Some(guard), Some(root_guard), Some(sibling_guard), Some(far_guard)];
                let dropped = guards[whose].take();
                let (sender, receiver) = oneshot::channel();
                let _handle = ctx.after_func(move || async move {
                    drop(dropped);
                    sender.send(()).unwrap();
                });
                let waits = [&root, &sibling, &far].map(|ctx| tokio::spawn(ctx.done_owned()));
                yield_now().await;
                canceler.cancel_with(Cause("over"));
                receiver.await.unwrap();
                assert_eq!(word(&ended(&ctx)), Some("over"));
                assert_eq!(
                    [root.is_done(), sibling.is_done(), far.is_done()],
                    [whose == 1, whose == 1 || whose == 2, whose == 3]
                );
                drop(guards);
                for wait in waits {
                    assert!(timeout(HANG, wait).await.expect("hung").unwrap().is_canceled());
                }
            }
        });
    });
}

/// Each function ends the context of the next one.
#[test]
fn may_end_the_next_context() {
    faulty(|| {
        on_both(|| async {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let mut first = BACKGROUND.with_cancel();
            let mut last = first.clone();
            for nth in 0..100 {
                let (next, guard) = BACKGROUND.with_cancel().split();
                let sender = sender.clone();
                let _handle = last.after_func(move || async move {
                    sender.send(nth).unwrap();
                    drop(guard);
                });
                last = next;
            }
            drop(sender);
            yield_now().await;
            first.cancel();
            for nth in 0..100 {
                assert_eq!(receiver.recv().await, Some(nth));
            }
            assert_eq!(receiver.recv().await, None);
            assert!(last.done().await.is_canceled());
            // The first scope may also be replaced.
            first = BACKGROUND.with_cancel();
            drop(first);
        });
    });
}

#[test]
fn may_stop_themselves_and_each_other() {
    faulty(|| {
        on_both(|| async {
            for _ in 0..50 {
                let ctx = BACKGROUND.with_cancel();
                let handles: Arc<Mutex<Vec<AfterFunc>>> = Arc::default();
                let (sender, mut receiver) = mpsc::unbounded_channel();
                for _ in 0..3 {
                    let (all, sender) = (handles.clone(), sender.clone());
                    let handle = ctx.after_func(move || async move {
                        let stopped = all.lock().unwrap().iter().filter(|other| other.stop()).count();
                        sender.send(stopped).unwrap();
                    });
                    handles.lock().unwrap().push(handle);
                }
                drop(sender);
                yield_now().await;
                ctx.cancel();
                let (mut ran, mut stopped) = (0, 0);
                while let Some(count) = receiver.recv().await {
                    ran += 1;
                    stopped += count;
                }
                assert_eq!(ran + stopped, 3, "each ran, or was stopped by one that did");
                assert!(ran >= 1);
                handles.lock().unwrap().clear();
            }
        });
    });
}

/// A panic drops what the function holds. A guard that is dropped in this way still ends its context.
#[test]
fn that_panic_drop_their_guards() {
    faulty(|| {
        on_both(|| async {
            for before_its_future in [false, true] {
                let ctx = BACKGROUND.with_cancel();
                let (other, other_guard) = BACKGROUND.with_timeout(LONG).split();
                let wait = tokio::spawn(other.done_owned());
                yield_now().await;
                let _handle = match before_its_future {
                    true => ctx.after_func(move || -> std::future::Ready<()> {
                        let _guard = other_guard;
                        panic!("before its future")
                    }),
                    false => ctx.after_func(move || async move {
                        let _guard = other_guard;
                        yield_now().await;
                        panic!("in its future")
                    }),
                };
                ctx.cancel();
                assert!(timeout(HANG, wait).await.expect("hung").unwrap().is_canceled());
            }
        });
    });
}

/// Under `run`, `try_run`, `within`, `scope`, `bounded_by`: the panic propagates and leaves nothing behind.
#[test]
fn futures_that_panic_leave_the_context_in_use() {
    faulty(|| {
        on_both(|| async {
            let drops = Drops::default();
            let scope = BACKGROUND.with_timeout(LONG);
            let ctx = scope.clone();
            for at_once in [true, false] {
                let panics = || {
                    let counted = drops.counted();
                    async move {
                        let _counted = counted;
                        if !at_once {
                            yield_now().await;
                        }
                        panic!("in the future")
                    }
                };
                let result = |what: &str, outcome: thread::Result<()>| {
                    let panic = outcome.expect_err(what);
                    assert_eq!(panic.downcast_ref(), Some(&"in the future"), "{what}");
                };
                result("run", caught(ctx.run(panics()).map(drop)).await);
                result("bounded_by", caught(panics().bounded_by(&ctx).map(drop)).await);
                result("scope", caught(ctx.scope(panics())).await);
                let fallible = panics().map(|()| Ok::<(), tokio_ctx::Error>(()));
                result("try_run", caught(ctx.try_run(fallible).map(drop)).await);
                let mut child = None;
                let within = ctx.within(LONG, async |step| {
                    child = Some(step);
                    panics().await
                });
                result("within", caught(within.map(drop)).await);
                assert!(ended(&child.unwrap()).is_canceled(), "the step ends with its panic");
                assert!(Context::current().deadline().is_none(), "the context is still current");
            }
            assert_eq!(drops.count(), 10);
            assert!(!ctx.is_done());
            // In a task of its own, with another wait that is woken once.
            let (wakes, waker) = Wakes::new();
            let mut wait = Box::pin(ctx.done());
            assert!(poll(wait.as_mut(), &waker).is_pending());
            let task = ctx.spawn({
                let ctx = ctx.clone();
                async move { ctx.run(async { panic!("in the task") }).await }
            });
            assert!(task.await.unwrap_err().is_panic());
            assert_eq!(wakes.count(), 0);
            scope.cancel_with(Cause("fine"));
            assert_eq!(wakes.count(), 1);
            assert_eq!(word(&ended(&ctx)), Some("fine"));
        });
    });
}

/// The future is dropped as the context ends; its drop panics, or ends the context's parent.
#[test]
fn futures_whose_drop_is_a_fault_do_not_change_the_end() {
    faulty(|| {
        on_both(|| async {
            struct PanicsOnDrop;
            impl Drop for PanicsOnDrop {
                fn drop(&mut self) {
                    panic!("in drop");
                }
            }
            let (root, root_guard) = BACKGROUND.with_cancel().split();
            let scope = root.with_timeout(LONG);
            let ctx = scope.clone();
            let (held, task_ctx) = (PanicsOnDrop, ctx.clone());
            let task = tokio::spawn(async move {
                let work = async move {
                    let _held = held;
                    std::future::pending::<()>().await
                };
                task_ctx.run(work).await
            });
            let second = tokio::spawn({
                let ctx = ctx.clone();
                async move {
                    let work = async move {
                        let _guard = root_guard;
                        std::future::pending::<()>().await
                    };
                    ctx.run(work).await.unwrap_err()
                }
            });
            yield_now().await;
            scope.cancel_with(Cause("stop"));
            assert!(task.await.unwrap_err().is_panic());
            let error = second.await.unwrap();
            assert_same(&error, &ended(&ctx));
            assert_eq!(word(&error), Some("stop"));
            assert!(ended(&root).is_canceled());
        });
    });
}
