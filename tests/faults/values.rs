//! Values whose drop uses contexts, holds guards, or panics.

use tokio_ctx::{CancelGuard, Context};

use crate::common::{
    Cause, Drops, LONG, Wakes, current_thread, ended, multi_thread, panic_text, poll, poll_once, word,
};
use crate::{BACKGROUND, RunsOnDrop, faulty, use_from_elsewhere};

#[test]
fn may_derive_and_cancel_in_their_drop() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let (root, root_guard) = BACKGROUND.with_timeout(LONG).split();
        let (wakes, waker) = Wakes::new();
        let mut wait = Box::pin(root.done());
        assert!(poll(wait.as_mut(), &waker).is_pending());
        let contexts = [root.clone()];
        let valued = root.with_value(RunsOnDrop::new(move || {
            use_from_elsewhere(&contexts);
            let mut chain = vec![contexts[0].with_cancel()];
            for _ in 1..50 {
                let next = chain.last().unwrap().with_cancel();
                chain.push(next);
            }
            assert!(poll_once(chain[49].done()).is_pending());
            chain[0].cancel_with(Cause("from the drop"));
            assert_eq!(word(&ended(&chain[49])), Some("from the drop"));
            root_guard.cancel_with(Cause("the root too"));
        }));
        let child = valued.with_cancel();
        drop(valued);
        assert!(!root.is_done());
        drop(child);
        assert_eq!(wakes.count(), 2, "by the shutdown of the other runtime, and by the end");
        assert_eq!(word(&ended(&root)), Some("the root too"));
    });
}

/// The guard of a context is one of its own values. It is dropped with the last handle that has the values.
#[test]
fn may_hold_the_guard_of_their_own_context() {
    faulty(|| {
        struct Keeps(#[allow(dead_code)] CancelGuard);
        let drops = Drops::default();
        let (ctx, guard) = BACKGROUND.with_value(drops.counted()).with_cancel().split();
        let valued = ctx.with_value(Keeps(guard));
        let child = valued.with_cancel();
        let (wakes, waker) = Wakes::new();
        let mut wait = Box::pin(ctx.done_owned());
        assert!(poll(wait.as_mut(), &waker).is_pending());
        drop(valued);
        assert!(!ctx.is_done());
        drop(child);
        assert_eq!(wakes.count(), 1);
        assert!(ended(&ctx).is_canceled());
        drop((ctx, wait));
        assert_eq!(drops.count(), 1, "kept by a reference cycle");
    });
}

/// Only a wait holds the values. It is dropped when its own context ends, in a task.
#[test]
fn may_end_their_own_context_as_its_task_ends() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(2)] {
            runtime.block_on(async {
                let (ctx, guard) = BACKGROUND.with_timeout(LONG).split();
                let valued = ctx.with_value(RunsOnDrop::new(move || guard.cancel_with(Cause("last"))));
                let task = valued.spawn(async { tokio::task::yield_now().await });
                drop(valued);
                task.await.unwrap();
                assert_eq!(word(&ctx.done().await), Some("last"));
            });
        }
    });
}

/// At the front, in the middle, behind an index, in both lists of a merge. Two panics at once would abort.
#[test]
fn that_panic_when_dropped_do_not_leak_other_values() {
    faulty(|| {
        for values in [1, 3, 8, 9, 20, 100] {
            for bad_at in [0, values / 2, values - 1] {
                for merged in [false, true] {
                    let drops = Drops::default();
                    let fill = |mut ctx: Context, bad: bool| {
                        for nth in 0..values {
                            ctx = ctx.with_value((nth, drops.counted()));
                            if bad && nth == bad_at {
                                ctx = ctx.with_value(RunsOnDrop::new(|| panic!("in drop")));
                            }
                        }
                        ctx
                    };
                    let (left, left_guard) = fill(Context::background(), true).with_cancel().split();
                    let derived = match merged {
                        false => left.with_cancel(),
                        true => left.merge(&fill(Context::background(), false).with_cancel()),
                    };
                    let (ctx, guard) = derived.split();
                    drop(left);
                    assert_eq!(panic_text(|| drop(ctx)), "in drop");
                    let count = if merged { 2 * values } else { values };
                    assert_eq!(drops.count(), count, "{values} values, the one that panics at {bad_at}");
                    drop((left_guard, guard));
                }
            }
        }
    });
}
