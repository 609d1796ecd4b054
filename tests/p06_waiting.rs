//! Promise 6, *waiting* is cancel-safe: `done()` can be created, polled and dropped any number of times, by any
//! number of tasks. No wake-up is lost, and a wait that is dropped leaves nothing behind.

mod common;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Poll, Wake, Waker};
use std::thread;

use common::{
    Cause, LONG, Wakes, assert_same, current_thread, ended, ms, multi_thread, on_both, paused, poll,
    poll_once, watched, word,
};
use futures::FutureExt as _;
use futures::executor::block_on;
use futures::future::FusedFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Canceler, Context, Error, ErrorKind};

static BACKGROUND: Context = Context::background();

#[test]
fn handles_and_waits_can_go_to_any_thread() {
    fn send_sync<T: Send + Sync>(_: &T) {}
    fn is_static<T: 'static>(_: &T) {}
    let scope = BACKGROUND.with_cancel();
    send_sync(&scope);
    let (ctx, guard) = scope.split();
    send_sync(&ctx);
    send_sync(&guard);
    send_sync::<Canceler>(&guard.canceler());
    send_sync(&ctx.done());
    let owned = ctx.done_owned();
    send_sync(&owned);
    is_static(&owned);
    guard.cancel();
    send_sync::<Error>(&ctx.err().unwrap());
    send_sync::<ErrorKind>(&ctx.err().unwrap().kind());
}

#[test]
fn a_wait_is_woken_once_and_returns_the_error() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut polled = pin!(ctx.done());
    assert!(poll(polled.as_mut(), &waker).is_pending());
    assert_eq!(wakes.count(), 0);
    let mut unpolled = pin!(ctx.done());

    ctx.cancel_with(Cause("now"));
    assert_eq!(wakes.count(), 1);
    for wait in [polled.as_mut(), unpolled.as_mut()] {
        let Poll::Ready(error) = poll(wait, &waker) else { panic!("still pending") };
        assert_same(&error, &ended(&ctx));
    }
    assert_eq!(wakes.count(), 1);
}

#[test]
fn an_owned_wait_is_the_same() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut polled = Box::pin(ctx.done_owned());
    assert!(poll(polled.as_mut(), &waker).is_pending());
    let mut unpolled = Box::pin(ctx.done_owned());
    ctx.cancel_with(Cause("now"));
    assert_eq!(wakes.count(), 1);
    for wait in [&mut polled, &mut unpolled] {
        let Poll::Ready(error) = poll(wait.as_mut(), &waker) else { panic!("still pending") };
        assert_eq!(word(&error), Some("now"));
    }
}

#[test]
fn an_owned_wait_that_was_dropped_is_not_woken() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut wait = Box::pin(ctx.done_owned());
    assert!(poll(wait.as_mut(), &waker).is_pending());
    drop(wait);
    ctx.cancel();
    assert_eq!(wakes.count(), 0);
    assert!(ctx.is_done());
}

#[test]
fn a_cancel_from_above_wakes_parent_and_child() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut child_wait = pin!(child.done());
    let mut parent_wait = pin!(parent.done());
    assert!(poll(child_wait.as_mut(), &waker).is_pending());
    assert!(poll(parent_wait.as_mut(), &waker).is_pending());
    parent.cancel();
    assert_eq!(wakes.count(), 2);
    assert!(poll(child_wait.as_mut(), &waker).is_ready());
    assert!(poll(parent_wait.as_mut(), &waker).is_ready());
}

#[test]
fn waiting_on_an_ended_context_is_ready_and_wakes_no_task() {
    for child_first in [true, false] {
        let parent = BACKGROUND.with_cancel();
        parent.cancel();
        let child = parent.with_cancel();
        let (wakes, waker) = Wakes::new();
        assert!(poll(pin!(child.done()), &waker).is_ready());
        assert!(poll(pin!(parent.done()), &waker).is_ready());
        assert_eq!(wakes.count(), 0);
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
        if child_first {
            drop(child);
            drop(parent);
        } else {
            drop(parent);
            drop(child);
        }
    }
}

#[test]
fn a_wait_polled_again_wakes_its_latest_waker_only() {
    let ctx = BACKGROUND.with_cancel();
    let (old, old_waker) = Wakes::new();
    let (new, new_waker) = Wakes::new();
    let mut wait = pin!(ctx.done());
    assert!(poll(wait.as_mut(), &old_waker).is_pending());
    assert!(poll(wait.as_mut(), &old_waker).is_pending());
    assert!(poll(wait.as_mut(), &new_waker).is_pending());
    drop(old_waker);
    assert_eq!(Arc::strong_count(&old), 1, "the old waker was kept");
    ctx.cancel();
    assert_eq!((old.count(), new.count()), (0, 1));
}

/// With and without a deadline, at the root and far below: a dropped wait leaves no waker.
#[tokio::test(start_paused = true)]
async fn a_dropped_wait_leaves_nothing_behind() {
    let root = BACKGROUND.with_cancel();
    let timed = root.with_timeout(LONG);
    let mut chain = vec![timed.with_cancel()];
    for _ in 0..40 {
        let next = chain.last().unwrap().with_cancel();
        chain.push(next);
    }
    let deep = chain.last().unwrap();
    for ctx in [&root, &timed, deep] {
        let (wakes, waker) = Wakes::new();
        for _ in 0..10_000 {
            let mut wait = pin!(ctx.done());
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        {
            let mut many: Vec<_> = (0..100).map(|_| Box::pin(ctx.done())).collect();
            for wait in &mut many {
                assert!(poll(wait.as_mut(), &waker).is_pending());
            }
            many.drain(..50);
            many.reverse();
        }
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1, "a waker was left behind");
        advance(ms(10)).await;
        assert_eq!(wakes.count(), 0);
    }
    root.cancel();
    assert!(deep.is_done());
}

#[test]
fn a_wait_that_ended_leaves_nothing_behind() {
    let ctx = BACKGROUND.with_cancel();
    let child = ctx.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut waits = [ctx.done(), child.done(), child.done()].map(Box::pin);
    for wait in &mut waits {
        assert!(poll(wait.as_mut(), &waker).is_pending());
    }
    ctx.cancel();
    assert_eq!(wakes.count(), 3);
    drop(waker);
    assert_eq!(Arc::strong_count(&wakes), 1, "a waker was kept after its wake-up");
}

#[test]
fn dropping_some_waits_leaves_the_others() {
    let ctx = BACKGROUND.with_cancel();
    let mut waits: Vec<_> = (0..20)
        .map(|_| {
            let (wakes, waker) = Wakes::new();
            let mut wait = Box::pin(ctx.done());
            assert!(poll(wait.as_mut(), &waker).is_pending());
            (wakes, wait)
        })
        .collect();
    let dropped: Vec<_> = [17, 11, 5, 0].map(|i| waits.remove(i).0).into();
    ctx.cancel();
    assert!(dropped.iter().all(|wakes| wakes.count() == 0));
    assert!(waits.iter().all(|(wakes, _)| wakes.count() == 1));
}

#[test]
fn a_wait_is_fused() {
    let ctx = BACKGROUND.with_cancel();
    let mut wait = pin!(ctx.done());
    assert!(!wait.is_terminated());
    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
    assert!(!wait.is_terminated());
    ctx.cancel();
    assert!(!wait.is_terminated());
    assert!(poll(wait.as_mut(), Waker::noop()).is_ready());
    assert!(wait.is_terminated());

    let mut owned = pin!(ctx.done_owned());
    assert!(!owned.is_terminated());
    assert!(poll(owned.as_mut(), Waker::noop()).is_ready());
    assert!(owned.is_terminated());
}

#[test]
fn waiting_works_in_both_select_macros() {
    on_both(|| async {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let (send, mut receive) = mpsc::unbounded_channel();
        let (all, has_all) = oneshot::channel();
        let looper = tokio::spawn(async move {
            let (mut received, mut all) = (0, Some(all));
            loop {
                tokio::select! {
                    item = receive.recv() => received += item.unwrap(),
                    error = ctx.done() => return (received, error),
                }
                if received == 1000 {
                    all.take().unwrap().send(()).unwrap();
                }
            }
        });
        for _ in 0..1000 {
            send.send(1).unwrap();
        }
        has_all.await.unwrap();
        scope.cancel_with(Cause("enough"));
        let (received, error) = looper.await.unwrap();
        assert_eq!(received, 1000);
        assert_eq!(word(&error), Some("enough"));

        let ctx = BACKGROUND.with_cancel();
        let mut done = pin!(ctx.done());
        let mut ticks = 0;
        let error = loop {
            let mut tick = pin!(tokio::task::yield_now().fuse());
            futures::select_biased! {
                error = done => break error,
                _ = tick => ticks += 1,
            }
            if ticks == 100 {
                ctx.cancel();
            }
        };
        assert!(error.is_canceled());
        assert_eq!(ticks, 100);
    });
}

/// The other branch is always ready, so the task never yields to the runtime, and no timer fires. The wait has
/// to read the clock itself.
#[test]
fn a_pinned_wait_sees_the_deadline_in_a_loop_that_never_yields() {
    watched(|| {
        common::current_thread().block_on(async {
            let ctx = BACKGROUND.with_timeout(ms(10));
            let child = ctx.with_cancel();
            for ctx in [&ctx, &child] {
                let mut done = pin!(ctx.done());
                let error = loop {
                    tokio::select! {
                        biased;
                        error = &mut done => break error,
                        () = std::future::ready(()) => {}
                    }
                };
                assert_same(&error, &ended(ctx));
            }
        });
    });
}

#[test]
fn many_tasks_wait_on_one_context() {
    on_both(|| async {
        let scope = BACKGROUND.with_timeout(LONG);
        let ctx = scope.clone();
        let child = ctx.with_cancel();
        let waits: Vec<_> = (0..500)
            .map(|i| {
                let ctx = if i % 2 == 0 { ctx.clone() } else { child.clone() };
                tokio::spawn(async move { ctx.done().await })
            })
            .collect();
        tokio::task::yield_now().await;
        scope.cancel_with(Cause("everyone"));
        let error = ended(&ctx);
        for wait in waits {
            assert_same(&wait.await.unwrap(), &error);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn many_tasks_wait_for_one_deadline() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    let waits: Vec<_> = (0..500).map(|_| tokio::spawn(ctx.done_owned())).collect();
    for wait in waits {
        assert!(wait.await.unwrap().is_deadline_exceeded());
    }
}

/// The first waiter, which may own a shared timer, is dropped. The others still end.
#[tokio::test(start_paused = true)]
async fn the_deadline_outlives_the_first_to_wait_for_it() {
    for go in 0..3 {
        let parent = BACKGROUND.with_timeout(ms(100));
        let child = parent.with_cancel();
        let (wakes, waker) = Wakes::new();
        let mut waits: Vec<_> = [&child, &parent, &child].map(|c| Box::pin(c.done())).into();
        for wait in &mut waits {
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        drop(waits.remove(go));
        tokio::time::sleep(ms(100)).await;
        tokio::task::yield_now().await;
        assert!(wakes.count() >= 2, "a waiter was not woken at the deadline");
        for wait in waits {
            assert!(poll_once(wait).is_ready());
        }
    }
}

/// Contexts with the same deadline may share a timer. Some are no longer waited on, canceled, or dropped. The others are
/// woken at the deadline.
#[test]
fn what_leaves_a_shared_timer_takes_no_other_deadline_along() {
    for runtime in [paused(), current_thread(), multi_thread(1)] {
        runtime.block_on(async {
            for case in 0..3 {
                let at = Instant::now() + ms(30);
                let scopes: Vec<_> = (0..8).map(|_| BACKGROUND.with_deadline(at)).collect();
                let mut waits: Vec<_> =
                    scopes.iter().map(|scope| Box::pin(scope.done_owned())).collect();
                let (wakes, wakers): (Vec<_>, Vec<_>) = waits.iter().map(|_| Wakes::new()).unzip();
                // On a busy machine the deadline may have passed by now.
                let waiting = waits.iter_mut().zip(&wakers);
                let waiting: Vec<_> =
                    waiting.map(|(wait, waker)| poll(wait.as_mut(), waker).is_pending()).collect();
                let mut members: Vec<_> = scopes.into_iter().zip(waits).map(Some).collect();
                for at in [1, 2, 5, 7] {
                    match case {
                        0 => _ = members[at].take().map(|(scope, _wait)| scope.detach()),
                        1 => members[at].as_ref().unwrap().0.cancel(),
                        _ => members[at] = None,
                    }
                }
                tokio::time::sleep_until(at + ms(2)).await;
                for at in [0, 3, 4, 6] {
                    assert_eq!(wakes[at].count() > 0, waiting[at], "case {case}: {at} was not woken");
                    let (_, wait) = members[at].as_mut().unwrap();
                    let Poll::Ready(error) = poll(wait.as_mut(), &wakers[at]) else { panic!("pending") };
                    assert!(error.is_deadline_exceeded());
                }
            }
        });
    }
}

/// Each waiter is woken at the deadline without any query: the waits run on tasks of their own.
#[tokio::test(start_paused = true)]
async fn a_wait_moves_to_another_task_and_still_ends() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    let mut wait = Box::pin(ctx.done_owned());
    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
    let moved = tokio::spawn(wait);
    assert!(moved.await.unwrap().is_deadline_exceeded());
    drop(ctx);
}

#[test]
fn no_wake_up_is_lost_between_the_first_wait_and_the_cancel() {
    watched(|| {
        for round in 0..2000 {
            let root = BACKGROUND.with_cancel();
            let middle = root.with_cancel();
            let leaf = middle.with_cancel();
            let other = middle.with_cancel();
            let start = Arc::new(Barrier::new(3));
            let waiters = [leaf, if round % 2 == 0 { other } else { middle }].map(|ctx| {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    block_on(ctx.done())
                })
            });
            start.wait();
            root.cancel_with(Cause("go"));
            for waiter in waiters {
                // A lost wake-up would hang here, and the watchdog would report it.
                assert_eq!(word(&waiter.join().unwrap()), Some("go"));
            }
        }
    });
}

#[test]
fn no_wake_up_is_lost_while_waits_come_and_go() {
    watched(|| {
        for _ in 0..500 {
            let root = BACKGROUND.with_cancel();
            let leaf = root.with_cancel();
            let start = Arc::new(Barrier::new(3));
            let stop = Arc::new(AtomicBool::new(false));
            // Meanwhile, creates and drops waits on the same context.
            let churner = {
                let (leaf, start, stop) = (leaf.clone(), start.clone(), stop.clone());
                thread::spawn(move || {
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let mut waits = [leaf.done(), leaf.done(), leaf.done()].map(Box::pin);
                        for wait in &mut waits {
                            let _ = poll(wait.as_mut(), Waker::noop());
                        }
                    }
                })
            };
            let waiter = {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    block_on(leaf.done())
                })
            };
            start.wait();
            root.cancel();
            assert!(waiter.join().unwrap().is_canceled());
            stop.store(true, Ordering::Relaxed);
            churner.join().unwrap();
        }
    });
}

#[test]
fn no_wake_up_is_lost_when_the_waker_changes_during_the_cancel() {
    watched(|| {
        for _ in 0..1000 {
            let scope = BACKGROUND.with_cancel();
            let ctx = scope.clone();
            let start = Arc::new(Barrier::new(2));
            let waiter = {
                let start = start.clone();
                thread::spawn(move || {
                    let mut wait = Box::pin(ctx.done_owned());
                    start.wait();
                    for _ in 0..10 {
                        let (wakes, waker) = Wakes::new();
                        match poll(wait.as_mut(), &waker) {
                            Poll::Ready(error) => return error,
                            Poll::Pending => drop(wakes),
                        }
                    }
                    block_on(wait)
                })
            };
            start.wait();
            scope.cancel_with(Cause("seen"));
            assert_eq!(word(&waiter.join().unwrap()), Some("seen"));
        }
    });
}

/// A waker that uses the tree while it is called.
struct Reenters(Mutex<Option<Box<dyn FnOnce() + Send>>>, AtomicUsize);

impl Reenters {
    fn with(f: impl FnOnce() + Send + 'static) -> (Arc<Reenters>, Waker) {
        let reenters = Arc::new(Reenters(Mutex::new(Some(Box::new(f))), AtomicUsize::new(0)));
        (reenters.clone(), reenters.into())
    }
}

impl Wake for Reenters {
    fn wake(self: Arc<Self>) {
        let f = self.0.lock().unwrap().take();
        if let Some(f) = f {
            f();
        }
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// No lock is held while waking: a waker may query, derive, wait, cancel and drop anywhere in the tree.
#[test]
fn a_waker_may_use_the_whole_tree() {
    watched(|| {
        type Act = fn(Context, Context, CancelScope) -> Box<dyn FnOnce() + Send>;
        let acts: [Act; 7] = [
            |root, _, scope| {
                Box::new(move || {
                    assert!(root.with_cancel().is_done());
                    scope.detach();
                })
            },
            |root, leaf, scope| {
                Box::new(move || {
                    assert_same(&ended(&root), &ended(&leaf));
                    scope.detach();
                })
            },
            |root, leaf, scope| {
                Box::new(move || {
                    assert!(poll_once(root.done()).is_ready());
                    assert!(poll_once(leaf.with_timeout(LONG).done()).is_ready());
                    scope.detach();
                })
            },
            |_, _, scope| Box::new(move || scope.cancel_with(Cause("inner"))),
            |_, _, scope| Box::new(move || drop(scope)),
            |_, _, scope| Box::new(move || drop(scope.split().1)),
            |root, leaf, scope| Box::new(move || drop((leaf, scope, root))),
        ];
        for act in acts {
            let root = BACKGROUND.with_cancel();
            let scope = root.with_cancel();
            let leaf = scope.clone();
            let bystander = leaf.with_cancel();
            let (reenters, waker) = Reenters::with(act(root.clone(), leaf.clone(), scope));
            let (wakes, plain) = Wakes::new();
            let mut waits = [leaf.done(), bystander.done(), root.done()].map(Box::pin);
            assert!(poll(waits[0].as_mut(), &waker).is_pending());
            assert!(poll(waits[1].as_mut(), &plain).is_pending());
            assert!(poll(waits[2].as_mut(), &plain).is_pending());
            root.cancel_with(Cause("outer"));
            assert_eq!(reenters.1.load(Ordering::SeqCst), 1);
            assert_eq!(wakes.count(), 2);
            for ctx in [&root, &leaf, &bystander] {
                assert_eq!(word(&ended(ctx)), Some("outer"));
            }
        }
    });
}

/// A waker drops the last handle of the context whose end has called it.
#[test]
fn a_waker_may_drop_the_wait_it_wakes() {
    watched(|| {
        let ctx = BACKGROUND.with_cancel();
        let slot: Arc<Mutex<Option<_>>> = Arc::default();
        let (reenters, waker) = Reenters::with({
            let slot = slot.clone();
            move || drop(slot.lock().unwrap().take())
        });
        let mut wait = Box::pin(ctx.done_owned());
        assert!(poll(wait.as_mut(), &waker).is_pending());
        *slot.lock().unwrap() = Some(wait);
        ctx.cancel();
        assert_eq!(reenters.1.load(Ordering::SeqCst), 1);
        assert!(slot.lock().unwrap().is_none());
    });
}

#[test]
fn a_wait_on_background_never_ends_and_costs_nothing() {
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(BACKGROUND.done());
    for _ in 0..10 {
        assert!(poll(wait.as_mut(), &waker).is_pending());
    }
    drop(waker);
    assert_eq!(wakes.count(), 0);
    assert_eq!(Arc::strong_count(&wakes), 1, "background never wakes a task");
}

/// A future that has resolved can be kept, for example in a struct or a `join_all`. It keeps no waker, whatever
/// it has returned.
mod resolved_futures_keep_no_waker {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio_ctx::{FutureExt as _, Group};

    use super::*;

    type Output = Result<u8, Error>;

    /// Polls a future until it resolves, and checks that its waker is gone before the future is dropped.
    #[track_caller]
    fn over<F: Future<Output = Output>>(future: F, resolve: impl FnOnce()) -> Output {
        let (wakes, waker) = Wakes::new();
        let mut future = Box::pin(future);
        assert!(poll(future.as_mut(), &waker).is_pending());
        assert!(Arc::strong_count(&wakes) > 2, "it does not wait");
        resolve();
        let Poll::Ready(output) = poll(future.as_mut(), &waker) else { panic!("it is still pending") };
        assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept");
        drop(future);
        output
    }

    type Bounded<'a> = Pin<Box<dyn Future<Output = Output> + 'a>>;
    type Received = oneshot::Receiver<u8>;

    type Bound = for<'a> fn(&'a Context, Received) -> Bounded<'a>;

    fn bounds() -> Vec<Bound> {
        async fn fallible(receiver: Received) -> Output {
            Ok(receiver.await.unwrap())
        }
        vec![
            |ctx, receiver| Box::pin(ctx.run(receiver).map(|received| Ok(received?.unwrap()))),
            |ctx, receiver| Box::pin(ctx.try_run(fallible(receiver))),
            |ctx, receiver| Box::pin(fallible(receiver).bounded_by(ctx).map(|received| received?)),
            |ctx, receiver| Box::pin(ctx.run_owned(receiver).map(|received| Ok(received?.unwrap()))),
            |ctx, receiver| {
                let run = ctx.with_cancel().run_owned(receiver);
                Box::pin(run.map(|received| Ok(received?.unwrap())))
            },
            |ctx, receiver| Box::pin(ctx.try_within(LONG, async |_| fallible(receiver).await)),
        ]
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_future() {
        let timed = BACKGROUND.with_timeout(LONG).detach();
        for bound in bounds() {
            for ctx in [BACKGROUND.with_cancel(), timed.with_cancel()] {
                let (send, receiver) = oneshot::channel();
                let output = over(bound(&ctx, receiver), || send.send(7).unwrap());
                assert_eq!(output.unwrap(), 7);
                let (_send, receiver) = oneshot::channel();
                let output = over(bound(&ctx, receiver), || ctx.cancel());
                assert_same(&output.unwrap_err(), &ended(&ctx));
            }
        }
    }

    /// A scope that is owned by a step ends with the step.
    #[test]
    fn a_step_that_owns_its_scope_ends_the_scope() {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let (send, receiver) = oneshot::channel();
        let mut step = Box::pin(scope.run_owned(receiver));
        assert!(poll(step.as_mut(), Waker::noop()).is_pending());
        send.send(7).unwrap();
        assert!(poll(step.as_mut(), Waker::noop()).is_ready());
        assert!(ctx.is_done());
        drop(step);
    }

    /// Polling again panics, as for an `async fn`.
    #[test]
    #[should_panic(expected = "polled again after it was ready")]
    fn a_resolved_future_panics_when_polled_again() {
        let ctx = BACKGROUND.with_cancel();
        let mut run = pin!(ctx.run(std::future::ready(1)));
        assert!(poll(run.as_mut(), Waker::noop()).is_ready());
        assert_eq!(format!("{run:?}"), "Run(..)");
        let _ = poll(run, Waker::noop());
    }

    /// A group with a grace period waits for the end of its context in `next` only.
    #[tokio::test(start_paused = true)]
    async fn a_group() {
        for dropped in [false, true] {
            let (group, ctx) = Group::<u8, Error>::new(&BACKGROUND);
            let mut group = group.grace(Duration::from_secs(1));
            let (send, receiver) = oneshot::channel();
            group.spawn(async { Ok(receiver.await.unwrap()) });
            let (wakes, waker) = Wakes::new();
            {
                let mut next = Box::pin(group.next());
                assert!(poll(next.as_mut(), &waker).is_pending());
                if !dropped {
                    send.send(7).unwrap();
                    tokio::task::yield_now().await;
                    assert!(poll(next.as_mut(), &waker).is_ready());
                }
            }
            // Tokio's `JoinSet` keeps its last waker; the context does not.
            let before = wakes.count();
            ctx.with_cancel().cancel();
            group.canceler().cancel();
            assert_eq!(wakes.count(), before, "a waker was kept, dropped: {dropped}");
        }
    }
}

/// A waker is dropped under no lock: what it holds may use the same context.
#[test]
fn a_wakers_drop_may_wait_on_the_same_context() {
    struct WaitsOnDrop(Context);

    impl Wake for WaitsOnDrop {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for WaitsOnDrop {
        fn drop(&mut self) {
            let mut done = pin!(self.0.done());
            let _ready = done.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
        }
    }

    let (over, waits) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for has_other in [false, true] {
            let scope = BACKGROUND.with_cancel();
            let ctx = scope.clone();
            let mut other = Box::pin(ctx.done());
            let poll = |done: &mut std::pin::Pin<Box<tokio_ctx::Done<'_>>>| {
                let waker = Waker::from(Arc::new(WaitsOnDrop(ctx.clone())));
                done.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_ready()
            };
            if has_other {
                assert!(!poll(&mut other));
            }
            let mut done = Box::pin(ctx.done());
            assert!(!poll(&mut done));
            assert!(!poll(&mut done), "its waker was replaced");
            drop(done);
            let mut done = Box::pin(ctx.done());
            assert!(!poll(&mut done));
            scope.cancel();
            assert!(poll(&mut done));
        }
        over.send(()).unwrap();
    });
    waits.recv_timeout(std::time::Duration::from_secs(60)).expect("no lock is held, and nothing panics");
}
