//! Promise 10, *no leaks*: dropping the last handle removes a context from the tree, including its timer. There
//! is no task per context. A million contexts, deep or wide, do not overflow the stack on cancel or drop.

#[path = "common/alloc.rs"]
mod alloc;
mod common;

use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Waker;

use alloc::live;
use common::{
    Cause, Drops, LONG, Wakes, current_thread, ended, ms, multi_thread, on_a_small_stack, poll,
    poll_once, word,
};
use tokio_ctx::{CancelScope, Context, DoneOwned};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Runs `round` a few times to warm up, then many times, and checks that not one byte is left.
#[track_caller]
fn leaves_nothing(what: &str, mut round: impl FnMut()) {
    for _ in 0..64 {
        round();
    }
    let before = live();
    for _ in 0..2_000 {
        round();
    }
    assert_eq!(live() - before, 0, "bytes left by 2000 times {what}");
}

/// The counting allocator works: it counts what is kept, and what is freed.
#[test]
fn the_count_sees_a_kept_context() {
    let before = live();
    let kept = BACKGROUND.with_cancel();
    assert!(live() > before);
    drop(kept);
    assert_eq!(live(), before);
}

/// Returns the number of allocations of `f` after a warm-up.
fn allocations<R>(mut f: impl FnMut() -> R) -> usize {
    drop(f());
    let before = alloc::allocations();
    let kept = f();
    let allocations = alloc::allocations() - before;
    drop(kept);
    allocations
}

#[test]
fn deriving_allocates_once_and_querying_never() {
    let runtime = current_thread();
    let _entered = runtime.enter();
    let parent = BACKGROUND.with_cancel();
    for root in [&BACKGROUND, parent.context()] {
        assert_eq!(allocations(|| root.clone()), 0);
        assert_eq!(allocations(|| root.with_cancel()), 1);
        assert_eq!(allocations(|| root.with_timeout(LONG)), 1);
        assert_eq!(allocations(|| root.with_deadline(tokio::time::Instant::now() + LONG)), 1);
        assert_eq!(allocations(|| root.with_value(7_u64)), 1);
        assert_eq!(allocations(|| root.without_cancel()), 0);
        assert_eq!(allocations(|| root.with_cancel().cancel()), 1);
        assert_eq!(allocations(|| root.with_timeout(LONG).cancel()), 1);
    }
    let timed = parent.with_timeout(LONG);
    let child = timed.context().with_value(1_u8).with_cancel();
    for ctx in [&BACKGROUND, parent.context(), timed.context(), child.context()] {
        let query = || (ctx.is_done(), ctx.err().is_none(), ctx.check().is_ok(), ctx.remaining());
        assert_eq!(allocations(query), 0);
        assert_eq!(allocations(|| ctx.value::<u8>().copied()), 0);
        assert_eq!(allocations(|| ctx.value::<u16>().copied()), 0);
    }
    // The first wait does not allocate either, with or without a deadline.
    for derive in [|ctx: &Context| ctx.with_cancel(), |ctx: &Context| ctx.with_timeout(LONG)] {
        let wait = || {
            let ctx = derive(&BACKGROUND);
            poll_once(ctx.done()).is_pending()
        };
        assert_eq!(allocations(wait), 1);
    }
}

type Ending = (&'static str, fn(CancelScope));

fn endings() -> [Ending; 6] {
    [
        ("canceled", |scope| scope.cancel()),
        ("canceled with a cause", |scope| scope.cancel_with(Cause("why"))),
        ("dropped", drop),
        ("detached", |scope| drop(scope.detach())),
        ("split, the guard dropped", |scope| drop(scope.split().1)),
        ("split, the guard detached", |scope| scope.split().1.detach()),
    ]
}

/// Every derivation, below the background and below a context that stays, with and without queries and waits,
/// and every way to end the scope.
#[test]
fn a_dropped_context_leaves_nothing() {
    type Derive = fn(&Context) -> CancelScope;
    let derivations: [(&str, Derive); 9] = [
        ("with_cancel", |ctx| ctx.with_cancel()),
        ("with_timeout", |ctx| ctx.with_timeout(LONG)),
        ("with_timeout zero", |ctx| ctx.with_timeout(ms(0))),
        ("with_timeout_cause", |ctx| ctx.with_timeout_cause(LONG, Cause("slow"))),
        ("with_value", |ctx| ctx.with_value([7_u8; 100]).with_cancel()),
        ("merge", |ctx| ctx.merge(&Context::background().with_cancel())),
        ("merge with its child", |ctx| ctx.merge(&ctx.with_timeout(LONG))),
        ("with_token", |ctx| ctx.with_token(&CancellationToken::new())),
        ("chain", |ctx| {
            let mut chain = vec![ctx.with_cancel()];
            for _ in 0..19 {
                let next = chain.last().unwrap().with_cancel();
                chain.push(next);
            }
            let chain: Vec<_> = chain.into_iter().map(CancelScope::detach).collect();
            chain.last().unwrap().with_timeout(LONG)
        }),
    ];
    let runtime = current_thread();
    let _entered = runtime.enter();
    let long_lived = BACKGROUND.with_cancel();
    let timed = long_lived.with_timeout(LONG);
    let _waits = [&long_lived, &timed].map(|ctx| {
        let mut wait = Box::pin(ctx.done());
        assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        wait
    });
    let roots =
        [(&BACKGROUND, "background"), (long_lived.context(), "long-lived"), (timed.context(), "timed")];
    for (root, name) in roots {
        for (derivation, derive) in derivations {
            for (ending, end) in endings() {
                leaves_nothing(&format!("{derivation} of {name}, unobserved, {ending}"), || {
                    end(derive(root))
                });
                for waits in [0, 1, 3] {
                    leaves_nothing(&format!("{derivation} of {name}, {waits} waits, {ending}"), || {
                        let scope = derive(root);
                        let ctx = scope.clone();
                        let _is_done = ctx.is_done();
                        let mut waiting: Vec<_> = (0..waits).map(|_| Box::pin(ctx.done())).collect();
                        for wait in &mut waiting {
                            let _ = poll(wait.as_mut(), Waker::noop());
                        }
                        end(scope);
                        let _error = ctx.err();
                    });
                }
            }
        }
    }
}

#[test]
fn handles_may_be_dropped_in_any_order() {
    let runtime = current_thread();
    let _entered = runtime.enter();
    let root = BACKGROUND.with_cancel();
    for order in 0..6 {
        leaves_nothing(&format!("order {order}"), || {
            let parent = root.with_timeout(LONG).detach();
            let child = parent.with_cancel().detach();
            assert!(poll_once(child.done()).is_pending());
            let wait = {
                let mut wait = Box::pin(child.done_owned());
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                wait
            };
            match order {
                0 => drop((parent, child, wait)),
                1 => drop((parent, wait, child)),
                2 => drop((child, parent, wait)),
                3 => drop((child, wait, parent)),
                4 => drop((wait, parent, child)),
                _ => drop((wait, child, parent)),
            }
        });
    }
}

#[test]
fn a_canceler_and_an_error_keep_no_tree() {
    let root = BACKGROUND.with_cancel();
    let drops = Drops::default();
    let ctx = root.context().with_value(drops.counted()).with_cancel();
    let child = ctx.with_cancel();
    ctx.cancel_with(Cause("kept"));
    let (error, canceler) = (child.err().unwrap(), ctx.canceler());
    drop((ctx, child));
    assert_eq!(drops.count(), 1);
    assert_eq!(word(&error), Some("kept"));
    canceler.cancel();
}

#[test]
fn a_cause_is_freed_with_its_last_error() {
    let drops = Drops::default();
    let root = BACKGROUND.with_cancel();
    let ctx = root.with_cancel();
    let child = ctx.with_cancel();
    assert!(poll_once(child.done()).is_pending());
    ctx.cancel_with(drops.counted());
    let error = ended(&child);
    drop(ctx);
    drop(child);
    assert_eq!(drops.count(), 0);
    drop(error);
    assert_eq!(drops.count(), 1);

    // A cause that has no effect, and the cause of a deadline that is not reached.
    let scope = root.with_timeout_cause(LONG, drops.counted());
    scope.cancel();
    scope.cancel_with(drops.counted());
    assert_eq!(drops.count(), 2, "the late cause");
    drop(scope);
    assert_eq!(drops.count(), 3, "the deadline's cause");
}

/// The other parent stays, or the token.
#[test]
fn merges_and_tokens_leave_nothing_in_their_parents() {
    let left = BACKGROUND.with_cancel();
    let right = BACKGROUND.with_cancel();
    let token = CancellationToken::new();
    for (ending, end) in endings() {
        for waited in [false, true] {
            leaves_nothing(&format!("merge, {ending}, waited {waited}"), || {
                let scope = left.merge(&right);
                let merged = scope.clone();
                if waited {
                    assert!(poll_once(merged.done()).is_pending());
                }
                end(scope);
            });
            leaves_nothing(&format!("with_token, {ending}, waited {waited}"), || {
                let scope = left.with_token(&token);
                let ctx = scope.clone();
                if waited {
                    assert!(poll_once(ctx.done()).is_pending());
                }
                end(scope);
            });
        }
    }
}

/// A returned token does not keep the context alive. A token that outlives its context follows the parent.
#[test]
fn a_handed_out_token_keeps_no_context() {
    let left = BACKGROUND.with_cancel();
    let hand_out = |ctx: &Context, wait: bool| {
        let token = ctx.cancellation_token();
        assert!(!token.is_cancelled());
        assert!(!wait || poll_once(token.cancelled()).is_pending());
    };
    for (ending, end) in endings() {
        for wait in [false, true] {
            leaves_nothing(&format!("cancellation_token, {ending}, waited {wait}"), || {
                let scope = left.with_cancel();
                let ctx = scope.clone();
                hand_out(&ctx, wait);
                end(scope);
            });
            leaves_nothing(&format!("cancellation_token of a root, {ending}, waited {wait}"), || {
                let scope = BACKGROUND.with_cancel();
                let ctx = scope.clone();
                hand_out(&ctx, wait);
                end(scope);
            });
            leaves_nothing(
                &format!("cancellation_token, {ending}, then its parent, waited {wait}"),
                || {
                    let parent = left.with_cancel();
                    let scope = parent.with_cancel();
                    let ctx = scope.clone();
                    hand_out(&ctx, wait);
                    end(scope);
                    parent.cancel();
                },
            );
        }
    }
    leaves_nothing("cancellation_token of a context that lives on", || {
        assert!(!left.cancellation_token().is_cancelled());
    });
    leaves_nothing("cancellation_token that outlives its context", || {
        let parent_scope = left.with_cancel();
        let parent = parent_scope.clone();
        let ctx = parent.with_cancel().detach();
        let token = ctx.cancellation_token();
        drop(ctx);
        assert!(!token.is_cancelled());
        drop(parent);
        parent_scope.cancel();
        assert!(token.is_cancelled());
    });
}

/// The waits of a `select!` loop on one context, with and without a deadline.
#[test]
fn a_million_waits_on_one_context_leave_nothing() {
    let runtime = current_thread();
    let _entered = runtime.enter();
    let plain = BACKGROUND.with_cancel();
    let timed = plain.with_timeout(LONG);
    let child = timed.with_cancel();
    let mut other = Box::pin(child.done());
    for contended in [false, true] {
        if contended {
            assert!(poll(other.as_mut(), Waker::noop()).is_pending());
        }
        for ctx in [&plain, &timed, &child] {
            let wait_once = || assert!(poll_once(ctx.done()).is_pending());
            (0..1_000).for_each(|_| wait_once());
            let before = live();
            (0..333_333).for_each(|_| wait_once());
            assert_eq!(live(), before);
        }
    }
}

/// Memory for many contexts is freed when they are gone.
#[test]
fn many_contexts_that_were_dropped_leave_no_memory() {
    let ctx = BACKGROUND.with_cancel();
    let add_and_drop = |size: usize| {
        let waits: Vec<_> = (0..size)
            .map(|_| {
                let mut wait = Box::pin(ctx.done());
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                wait
            })
            .collect();
        drop(waits);
    };
    add_and_drop(10);
    let before = live();
    add_and_drop(100_000);
    assert!(live() - before < 64 * 1024, "{} bytes are kept", live() - before);
}

/// The memory of the runtime counts as well, so a leaked task would be detected.
#[test]
fn finished_tasks_leave_nothing() {
    let runtime = current_thread();
    let root = BACKGROUND.with_cancel();
    let yields = || async {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    };
    leaves_nothing("spawn", || {
        runtime.block_on(async {
            let ctx = root.with_timeout(LONG);
            let task = ctx.spawn(async { Context::current().done().await });
            tokio::task::yield_now().await;
            ctx.cancel();
            assert!(task.await.unwrap().is_canceled());
        });
    });
    leaves_nothing("run", || {
        runtime.block_on(async {
            let ctx = root.with_timeout(LONG);
            assert!(poll_once(ctx.run(pending::<()>())).is_pending());
            assert!(poll_once(ctx.sleep(LONG)).is_pending());
        });
    });
    leaves_nothing("after_func, stopped", || {
        runtime.block_on(async {
            let handle = root.after_func(|| async {});
            tokio::task::yield_now().await;
            assert!(handle.stop());
            yields().await;
        });
    });
    leaves_nothing("after_func, run", || {
        runtime.block_on(async {
            let ctx = root.with_timeout(LONG);
            let _handle = ctx.after_func(|| async {});
            tokio::task::yield_now().await;
            ctx.cancel();
            yields().await;
        });
    });
    leaves_nothing("cancellation_token of a deadline", || {
        runtime.block_on(async {
            let ctx = root.with_timeout(LONG);
            let token = ctx.cancellation_token();
            tokio::task::yield_now().await;
            ctx.cancel();
            yields().await;
            assert!(token.is_cancelled());
        });
    });
}

#[test]
fn no_task_for_a_context_a_deadline_or_a_wait() {
    for runtime in [current_thread(), multi_thread(2)] {
        runtime.block_on(async {
            let metrics = tokio::runtime::Handle::current().metrics();
            let before = metrics.num_alive_tasks();
            let root = BACKGROUND.with_timeout(LONG);
            let mut kept: Vec<CancelScope> = Vec::new();
            let mut waits: Vec<Pin<Box<DoneOwned>>> = Vec::new();
            for at in 0..1_000 {
                let parent = kept.last().unwrap_or(&root);
                let derived = match at % 4 {
                    0 => parent.with_timeout(LONG),
                    1 => parent.with_cancel(),
                    2 => parent.merge(&root),
                    _ => root.with_timeout_cause(LONG * 2, Cause("slow")),
                };
                let mut wait = Box::pin(derived.done_owned());
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                waits.push(wait);
                kept.push(derived);
            }
            assert!(poll_once(root.run(pending::<()>())).is_pending());
            assert_eq!(metrics.num_alive_tasks(), before);
        });
    }
}

/// The long timeout of a dropped context keeps no waker, and therefore no task, alive.
#[test]
fn the_timer_of_a_dropped_context_holds_nothing() {
    let runtime = current_thread();
    runtime.block_on(async {
        let (wakes, waker) = Wakes::new();
        for waits in [1, 2, 5] {
            let ctx = BACKGROUND.with_timeout(LONG).detach();
            let mut waiting: Vec<_> = (0..waits).map(|_| Box::pin(ctx.done_owned())).collect();
            for wait in &mut waiting {
                assert!(poll(wait.as_mut(), &waker).is_pending());
            }
            drop(ctx);
            drop(waiting);
        }
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
    });
}

const MILLION: usize = 1_000_000;

fn chain(derive: impl Fn(&Context) -> CancelScope) -> Vec<CancelScope> {
    let mut chain = vec![derive(&BACKGROUND)];
    for level in 1..MILLION {
        let next = derive(&chain[level - 1]);
        chain.push(next);
    }
    chain
}

#[test]
fn a_million_deep_canceled_and_dropped_from_the_root() {
    on_a_small_stack(|| {
        let mut chain = chain(Context::with_cancel);
        let (wakes, waker) = Wakes::new();
        let mut wait = Box::pin(chain[MILLION - 1].done_owned());
        assert!(poll(wait.as_mut(), &waker).is_pending());
        assert!(!chain[MILLION - 1].is_done());
        chain[0].cancel_with(Cause("root"));
        assert_eq!(wakes.count(), 1);
        assert!(poll(wait.as_mut(), &waker).is_ready());
        assert!(chain.iter().rev().all(|ctx| ctx.is_done()));
        assert_eq!(word(&ended(&chain[MILLION - 1])), Some("root"));
        // The root first: the leaf then owns all of them, and frees all of them when dropped.
        chain.drain(..MILLION - 1);
        drop(chain);
    });
}

#[test]
fn a_million_deep_canceled_and_dropped_from_the_leaf() {
    on_a_small_stack(|| {
        let mut chain = chain(|ctx| ctx.with_timeout(LONG));
        let runtime = current_thread();
        let _entered = runtime.enter();
        assert!(poll_once(chain[MILLION - 1].done()).is_pending());
        chain[0].cancel();
        assert!(chain[MILLION - 1].is_done());
        while chain.pop().is_some() {}
    });
}

#[test]
fn a_million_deep_never_waited_on() {
    on_a_small_stack(|| {
        for from_the_root in [true, false] {
            let mut chain = chain(Context::with_cancel);
            chain[0].cancel_with(Cause("root"));
            assert_eq!(word(&ended(&chain[MILLION - 1])), Some("root"));
            assert!(chain.iter().all(|ctx| ctx.is_done()));
            if from_the_root {
                chain.drain(..MILLION - 1);
            } else {
                while chain.pop().is_some() {}
            }
        }
    });
}

/// Never canceled, and with detached scopes, so that only the handles keep the contexts alive.
#[test]
fn a_million_deep_dropped_alive() {
    on_a_small_stack(|| {
        for waited in [false, true] {
            let before = live();
            let mut last = Context::background();
            for _ in 0..MILLION {
                let next = last.with_cancel().detach();
                last = next;
            }
            if waited {
                let mut wait = pin!(last.done());
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
            }
            assert!(!last.is_done());
            drop(last);
            assert_eq!(live(), before);
        }
    });
}

#[test]
fn a_million_merges_deep() {
    on_a_small_stack(|| {
        for waited in [false, true] {
            let root = BACKGROUND.with_cancel();
            let mut last = root.clone();
            for _ in 0..MILLION {
                let next = last.merge(&root).detach();
                last = next;
            }
            if waited {
                assert!(poll_once(last.done()).is_pending());
            }
            root.cancel_with(Cause("root"));
            assert!(last.is_done());
            assert_eq!(word(&last.err().unwrap()), Some("root"));
        }
    });
}

#[test]
fn a_million_values_deep() {
    struct Level(usize);
    on_a_small_stack(|| {
        let before = live();
        let mut last = BACKGROUND.with_value("first");
        for level in 0..MILLION {
            last = last.with_value(Level(level));
        }
        assert_eq!(last.value::<Level>().unwrap().0, MILLION - 1);
        assert_eq!(last.value(), Some(&"first"));
        assert!(last.value::<u8>().is_none());
        drop(last);
        assert_eq!(live(), before);
    });
}

/// A million children with a waiter each, canceled together, and dropped in both orders.
#[test]
fn a_million_wide() {
    on_a_small_stack(|| {
        for backwards in [false, true] {
            let before = live();
            {
                let root = BACKGROUND.with_cancel();
                let (wakes, waker) = Wakes::new();
                let mut fan: Vec<_> = (0..MILLION)
                    .map(|_| {
                        let child = root.with_cancel();
                        let mut wait = Box::pin(child.done_owned());
                        assert!(poll(wait.as_mut(), &waker).is_pending());
                        (wait, child)
                    })
                    .collect();
                root.cancel_with(Cause("root"));
                assert_eq!(wakes.count(), MILLION);
                for (wait, _) in &mut fan {
                    assert!(poll(wait.as_mut(), &waker).is_ready());
                }
                if backwards {
                    while fan.pop().is_some() {}
                } else {
                    drop(fan.drain(..));
                }
            }
            assert_eq!(live(), before);
        }
    });
}

/// A million children that are dropped without having ended, below a parent that stays.
#[test]
fn a_million_wide_dropped_alive() {
    on_a_small_stack(|| {
        let root = BACKGROUND.with_cancel();
        for backwards in [false, true] {
            let mut fan: Vec<_> = (0..MILLION)
                .map(|_| {
                    let child = root.with_cancel().detach();
                    assert!(poll_once(child.done()).is_pending());
                    child
                })
                .collect();
            if backwards {
                while fan.pop().is_some() {}
            } else {
                drop(fan.drain(..));
            }
            assert!(!root.is_done());
        }
        root.cancel();
    });
}

/// Deep enough to show whether queries, derivations or waits take longer at greater depth.
#[test]
fn queries_deep_below_a_token_are_not_slow() {
    on_a_small_stack(|| {
        let token = CancellationToken::new();
        let top = BACKGROUND.with_token(&token);
        let mut last = top.clone();
        for _ in 0..MILLION {
            let next = last.with_cancel().detach();
            last = next;
        }
        assert!(!last.is_done());
        token.cancel();
        assert!(last.is_done());
    });
}
