//! Causes that panic when formatted or dropped, or that use contexts when dropped.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::time::timeout;
use tokio_ctx::CancelScope;

use crate::common::{
    Cause, HANG, LONG, assert_same, current_thread, ended, ms, multi_thread, panic_text, word,
};
use crate::{BACKGROUND, RunsOnDrop, faulty, use_from_elsewhere};

/// A cause that panics when it is formatted.
#[derive(Debug)]
struct PanicsOnDisplay;

impl fmt::Display for PanicsOnDisplay {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

impl std::error::Error for PanicsOnDisplay {}

impl fmt::Debug for RunsOnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunsOnDrop")
    }
}

impl fmt::Display for RunsOnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("runs on drop")
    }
}

impl std::error::Error for RunsOnDrop {}

/// Ended by a timer on a worker, or by a cancel. Neither the worker nor a waiter or caller panics.
#[test]
fn that_cannot_be_formatted_do_not_affect_workers() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(1), multi_thread(2)] {
            for waits in [1, 2, 5] {
                runtime.block_on(async {
                    let timed = BACKGROUND.with_timeout_cause(ms(10), PanicsOnDisplay);
                    let child = timed.with_cancel();
                    let (other, guard) = BACKGROUND.with_cancel().split();
                    let merged = child.merge(&other);
                    let tasks: Vec<_> = [&timed, &child, &merged]
                        .into_iter()
                        .flat_map(|ctx| (0..waits).map(|_| ctx.done_owned()))
                        .map(tokio::spawn)
                        .collect();
                    for task in tasks {
                        let error = timeout(HANG, task).await.expect("hung").expect("fell over");
                        assert!(error.cause_as::<PanicsOnDisplay>().is_some());
                    }
                    let task = tokio::spawn(async move { guard.cancel_with(PanicsOnDisplay) });
                    task.await.expect("the task that cancels panicked");
                    assert!(ended(&other).cause_as::<PanicsOnDisplay>().is_some());
                    assert_same(&ended(&merged), &ended(&timed));
                    assert_eq!(panic_text(|| ended(&timed).to_string()), "unspeakable");
                });
            }
        }
    });
}

/// `#[tracing::instrument]` records the `Debug` of a context, which must not fail the function.
#[test]
fn that_cannot_be_formatted_do_not_affect_the_debug_of_their_context() {
    #[derive(Debug)]
    struct Fails;
    impl fmt::Display for Fails {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("half of it")?;
            Err(fmt::Error)
        }
    }
    impl std::error::Error for Fails {}

    faulty(|| {
        let panics = BACKGROUND.with_cancel();
        panics.cancel_with(PanicsOnDisplay);
        let fails = BACKGROUND.with_cancel();
        fails.cancel_with(Fails);
        for (ctx, cause) in [(panics, ""), (fails, "half of it")] {
            let text = format!("{ctx:?}");
            let context = text.strip_prefix("CancelScope(").and_then(|text| text.strip_suffix(")"));
            let ended = context.and_then(|text| text.strip_prefix("Context(canceled at ")).unwrap();
            assert!(ended.ends_with(&format!(": {cause})")), "{text}");
        }
    });
}

/// Dropped with the last error that holds it, or immediately because it has no effect.
#[test]
fn may_use_contexts_in_their_drop() {
    faulty(|| {
        for too_late in [false, true] {
            let root = BACKGROUND.with_cancel();
            let ctx = root.with_cancel();
            let (sibling, sibling_guard) = root.with_cancel().split();
            let contexts = [root.clone(), sibling.clone()];
            let action = RunsOnDrop::new(move || {
                use_from_elsewhere(&contexts);
                let derived = contexts[0].with_cancel();
                derived.cancel_with(Cause("from the drop"));
                assert_eq!(word(&ended(&derived)), Some("from the drop"));
                drop(sibling_guard);
            });
            if too_late {
                ctx.cancel();
            }
            ctx.cancel_with(action);
            assert_eq!(sibling.is_done(), too_late);
            assert_eq!(ended(&ctx).cause().is_none(), too_late);
            drop(ctx);
            assert!(sibling.is_done(), "the cause was not dropped with the last error");
            assert!(!root.is_done());
            root.cancel();
        }
    });
}

/// The cause of a deadline that is not reached is dropped with its context, even if a waker drops the last
/// handle during an end.
#[test]
fn of_a_deadline_that_is_not_reached_may_too() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let root = BACKGROUND.with_cancel();
        let (sibling, sibling_guard) = root.with_cancel().split();
        let contexts = [root.clone(), sibling.clone()];
        let action = RunsOnDrop::new(move || {
            use_from_elsewhere(&contexts);
            drop(sibling_guard);
        });
        let timed = root.with_timeout_cause(LONG, action).detach();
        assert!(!sibling.is_done());
        drop(timed);
        assert!(sibling.is_done());
        assert!(!root.is_done());
        drop(root);
    });
}

/// A cause that cancels an ancestor when it is dropped with the last handle of a descendant. (It must not hold
/// its own context, which would be a reference cycle.)
#[test]
fn may_hold_the_guards_of_their_own_tree() {
    faulty(|| {
        let (root, root_guard) = BACKGROUND.with_cancel().split();
        let ctx = root.with_cancel();
        let (below, below_guard) = ctx.with_cancel().split();
        let action = RunsOnDrop::new(move || {
            below_guard.cancel_with(Cause("late"));
            root_guard.cancel_with(Cause("from below"));
        });
        // The child has an error of its own, so it does not share this cause.
        let ended_below = below.with_cancel();
        ended_below.cancel_with(action);
        let waiter = thread::spawn({
            let root = root.clone();
            move || futures::executor::block_on(root.done())
        });
        assert!(!root.is_done() && !below.is_done());
        drop(ended_below);
        assert_eq!(word(&ended(&below)), Some("late"));
        assert_eq!(word(&ended(&root)), Some("from below"));
        assert_same(&ended(&ctx), &ended(&root));
        assert_same(&waiter.join().unwrap(), &ended(&root));
        drop(ctx);
    });
}

/// The panic surfaces where the cause is dropped, and nothing else is affected.
#[test]
fn that_panic_in_their_drop_leave_the_tree_intact() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let panics = || RunsOnDrop::new(|| panic!("in drop"));
        let root = BACKGROUND.with_cancel();
        // With the last handle, the scope's or a clone.
        for scope_last in [false, true] {
            let scope = root.with_cancel();
            let ctx = scope.clone();
            scope.cancel_with(panics());
            let text = match scope_last {
                true => {
                    drop(ctx);
                    panic_text(|| drop(scope))
                }
                false => {
                    drop(scope);
                    panic_text(|| drop(ctx))
                }
            };
            assert_eq!(text, "in drop");
        }
        // With the last error.
        let ctx = root.with_cancel();
        ctx.cancel_with(panics());
        let error = ended(&ctx);
        drop(ctx);
        assert_eq!(panic_text(|| drop(error)), "in drop");
        // In the middle of a chain that is freed: the rest is freed as well.
        let drops = crate::common::Drops::default();
        let valued = root.context().with_value(drops.counted());
        let top = valued.with_timeout_cause(LONG, drops.counted());
        let middle = top.with_timeout_cause(LONG / 2, panics());
        let leaf = middle.with_timeout_cause(LONG / 3, drops.counted());
        let [top, middle, leaf] = [top, middle, leaf].map(CancelScope::detach);
        drop(valued);
        assert!(crate::common::poll_once(leaf.done()).is_pending());
        drop((top, middle));
        assert_eq!(panic_text(|| drop(leaf)), "in drop");
        assert_eq!(drops.count(), 3, "something was leaked by the panic");
        // No wait of the root stays registered, or misses its end.
        let (wakes, waker) = crate::common::Wakes::new();
        let mut wait = Box::pin(root.done());
        assert!(crate::common::poll(wait.as_mut(), &waker).is_pending());
        root.cancel_with(Cause("fine"));
        assert_eq!(wakes.count(), 1);
        assert_eq!(word(&ended(&root)), Some("fine"));
    });
}

/// The error of one context is the cause of another, and so on. Dropping and printing a chain of reasonable
/// length does not recurse deeply.
#[test]
fn may_be_errors_of_other_contexts() {
    faulty(|| {
        let first = BACKGROUND.with_cancel();
        first.cancel_with(Cause("the first"));
        let mut error = ended(&first);
        for _ in 0..100 {
            let next = BACKGROUND.with_cancel();
            next.cancel_with(error);
            error = ended(&next);
        }
        assert_eq!(word(&error), Some("the first"));
        assert!(error.to_string().ends_with("the first"));
    });
}

/// A task panics while it holds a scope and a cause that cannot be formatted.
#[test]
fn that_cannot_be_formatted_do_not_abort_while_a_panic_unwinds() {
    faulty(|| {
        struct CancelsOnDrop(CancelScope);
        impl Drop for CancelsOnDrop {
            fn drop(&mut self) {
                self.0.cancel_with(PanicsOnDisplay);
            }
        }
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _cancels = CancelsOnDrop(scope);
            panic!("the first")
        }));
        assert!(outcome.is_err());
        assert!(ended(&ctx).cause_as::<PanicsOnDisplay>().is_some());
    });
}
