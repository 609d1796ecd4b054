//! Causes that panic when shown or dropped, or use contexts when dropped.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::time::timeout;
use tokio_ctx::CancelScope;

use crate::common::{
    Cause, HANG, LONG, assert_same, current_thread, ended, ms, multi_thread, panic_text, word,
};
use crate::{BACKGROUND, LastWill, faulty, use_from_elsewhere};

/// A cause that cannot be shown.
#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

impl std::error::Error for Unspeakable {}

impl fmt::Debug for LastWill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWill")
    }
}

impl fmt::Display for LastWill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a last will")
    }
}

impl std::error::Error for LastWill {}

/// By a deadline that a worker's timer sees to, or by hand: no worker falls over it, nor does whoever
/// waits or asks.
#[test]
fn that_cannot_be_shown_hurt_no_worker() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(1), multi_thread(2)] {
            for waits in [1, 2, 5] {
                runtime.block_on(async {
                    let timed = BACKGROUND.with_timeout_cause(ms(10), Unspeakable);
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
                        assert!(error.cause_as::<Unspeakable>().is_some());
                    }
                    let task = tokio::spawn(async move { guard.cancel_with(Unspeakable) });
                    task.await.expect("whoever cancels fell over");
                    assert!(ended(&other).cause_as::<Unspeakable>().is_some());
                    assert_same(&ended(&merged), &ended(&timed));
                    assert_eq!(panic_text(|| ended(&timed).to_string()), "unspeakable");
                });
            }
        }
    });
}

/// Dropped with the last who was told, or at once because it came too late.
#[test]
fn may_use_contexts_in_their_drop() {
    faulty(|| {
        for too_late in [false, true] {
            let root = BACKGROUND.with_cancel();
            let ctx = root.with_cancel();
            let (beside, beside_guard) = root.with_cancel().split();
            let contexts = [root.clone(), beside.clone()];
            let will = LastWill::new(move || {
                use_from_elsewhere(&contexts);
                let derived = contexts[0].with_cancel();
                derived.cancel_with(Cause("of the will"));
                assert_eq!(word(&ended(&derived)), Some("of the will"));
                drop(beside_guard);
            });
            if too_late {
                ctx.cancel();
            }
            ctx.cancel_with(will);
            assert_eq!(beside.is_done(), too_late);
            assert_eq!(ended(&ctx).cause().is_none(), too_late);
            drop(ctx);
            assert!(beside.is_done(), "the cause was not dropped with the last who was told");
            assert!(!root.is_done());
            root.cancel();
        }
    });
}

/// The cause of a deadline that never came, which goes with its context: even if that is in the middle
/// of the end of all, as the last handle goes in a waker.
#[test]
fn of_a_deadline_that_did_not_come_may_too() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let root = BACKGROUND.with_cancel();
        let (beside, beside_guard) = root.with_cancel().split();
        let contexts = [root.clone(), beside.clone()];
        let will = LastWill::new(move || {
            use_from_elsewhere(&contexts);
            drop(beside_guard);
        });
        let timed = root.with_timeout_cause(LONG, will).detach();
        assert!(!beside.is_done());
        drop(timed);
        assert!(beside.is_done());
        assert!(!root.is_done());
        drop(root);
    });
}

/// A cause that ends what is above, as it goes with the last handle of what is below. (Of its own
/// context it must hold nothing: that would keep itself.)
#[test]
fn may_hold_the_guards_of_their_own_tree() {
    faulty(|| {
        let (root, root_guard) = BACKGROUND.with_cancel().split();
        let ctx = root.with_cancel();
        let (below, below_guard) = ctx.with_cancel().split();
        let will = LastWill::new(move || {
            below_guard.cancel_with(Cause("late"));
            root_guard.cancel_with(Cause("from below"));
        });
        // Below it has a story of its own, so that it does not share this cause.
        let gone = below.with_cancel();
        gone.cancel_with(will);
        let waiter = thread::spawn({
            let root = root.clone();
            move || futures::executor::block_on(root.done())
        });
        assert!(!root.is_done() && !below.is_done());
        drop(gone);
        assert_eq!(word(&ended(&below)), Some("late"));
        assert_eq!(word(&ended(&root)), Some("from below"));
        assert_same(&ended(&ctx), &ended(&root));
        assert_same(&waiter.join().unwrap(), &ended(&root));
        drop(ctx);
    });
}

/// Dropped wherever it may be: the panic comes out there, and nothing else is amiss.
#[test]
fn that_panic_in_their_drop_leave_the_tree_intact() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let panics = || LastWill::new(|| panic!("in drop"));
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
        // In the middle of a chain that is taken apart: all the rest is let go of.
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
        // And no wait of the root is left behind, nor kept from its end.
        let (wakes, waker) = crate::common::Wakes::new();
        let mut wait = Box::pin(root.done());
        assert!(crate::common::poll(wait.as_mut(), &waker).is_pending());
        root.cancel_with(Cause("fine"));
        assert_eq!(wakes.count(), 1);
        assert_eq!(word(&ended(&root)), Some("fine"));
    });
}

/// As the error of one context it is the cause of another, and so on: a long story is dropped and
/// shown without going deep into the stack for each of a reasonable number.
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

/// A task that panics while it holds a scope, with a cause that cannot be shown beside it.
#[test]
fn that_cannot_be_shown_do_not_abort_a_panic_under_way() {
    faulty(|| {
        struct CancelsOnDrop(CancelScope);
        impl Drop for CancelsOnDrop {
            fn drop(&mut self) {
                self.0.cancel_with(Unspeakable);
            }
        }
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _cancels = CancelsOnDrop(scope);
            panic!("the first")
        }));
        assert!(outcome.is_err());
        assert!(ended(&ctx).cause_as::<Unspeakable>().is_some());
    });
}
