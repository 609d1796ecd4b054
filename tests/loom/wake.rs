//! Wake-ups: a wait that is dropped, or moves to another task, while it is woken.

use std::sync::Arc;

use loom::thread;

use super::{Roll, Waiter, census, explore, one_story, story};
use crate::Context;

/// A wait is dropped while it is woken.
#[test]
fn waiter_dropped_while_woken() {
    explore([6, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let roll = Roll::of([&ctx]);
        let waiter = Waiter::waiting_on(&ctx);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let left = waiter.leave();
        ender.join().unwrap();
        left.is_gone();
        story(&ctx);
        drop(ctx);
        roll.is_gone();
    });
}

/// One of two waits is dropped, and a third one gets its key, while all are woken.
#[test]
fn waiter_replaced_by_another_while_woken() {
    explore([5, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let [mut one, mut two, mut three] = [(); 3].map(|()| Waiter::on(&ctx));
        assert!(!one.poll() && !two.poll());
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let left = two.leave();
        three.poll();
        ender.join().unwrap();
        let error = one_story([&ctx]);
        one.finish(&error);
        three.finish(&error);
        left.is_gone();
    });
}

/// A wait moves to another task while it is woken. The new task is woken, or observes the end.
#[test]
fn waker_replaced_while_woken() {
    explore([6, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let mut waiter = Waiter::waiting_on(&ctx);
        let before = waiter.bell.clone();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        waiter.change_hands();
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&story(&ctx));
        assert_eq!(Arc::strong_count(&before), 1);
    });
}

/// A wait is polled again by the same task, which takes no lock, while it is woken.
#[test]
fn waiter_looks_again_while_woken() {
    explore([6, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let mut waiter = Waiter::waiting_on(&ctx);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&story(&ctx));
    });
}

/// Two waits on one context move to other tasks at once. Then the context ends.
#[test]
fn two_wakers_replaced_at_once() {
    explore([6, 4], || {
        let ctx = Context::background().with_cancel();
        let [mut one, mut two] = [(); 2].map(|()| Waiter::on(&ctx));
        assert!(!one.poll() && !two.poll());
        let other = thread::spawn(move || {
            one.change_hands();
            one.poll();
            one
        });
        two.change_hands();
        two.poll();
        let one = other.join().unwrap();
        assert_eq!(census(&ctx), 2);
        ctx.cancel();
        let error = story(&ctx);
        one.finish(&error);
        two.finish(&error);
    });
}

/// Two threads create and drop waits. The list is empty afterwards.
#[test]
fn waiters_come_and_go() {
    explore([6, 4], || {
        let ctx = Context::background().with_cancel();
        let come_and_go = |ctx: Context| {
            move || {
                Waiter::waiting_on(&ctx).leave().is_gone();
            }
        };
        let other = thread::spawn(come_and_go(ctx.clone()));
        come_and_go(ctx.clone())();
        other.join().unwrap();
        assert_eq!(census(&ctx), 0);
    });
}

/// A wait has been dropped, and another one begins, while the token is canceled with an empty list.
#[test]
fn canceled_as_a_waiter_comes_back() {
    explore([6, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let roll = Roll::of([&ctx]);
        Waiter::waiting_on(&ctx).leave().is_gone();
        let ender = thread::spawn({
            let ctx = ctx.clone();
            move || {
                drop(guard);
                story(&ctx)
            }
        });
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        let error = ender.join().unwrap();
        waiter.finish(&error);
        drop(ctx);
        roll.is_gone();
    });
}

/// The same with a child instead of a wait. It is closed, or observes the end of its parent.
#[test]
fn canceled_as_a_child_is_linked_again() {
    explore([4, 2], || {
        let root = Context::background().with_cancel();
        let gone = root.with_cancel();
        Waiter::waiting_on(&gone).leave().is_gone();
        drop(gone);
        let child = root.with_cancel().detach();
        let ender = thread::spawn({
            let (canceler, child) = (root.canceler(), child.clone());
            move || {
                canceler.cancel_with("why");
                story(&child)
            }
        });
        let mut waiter = Waiter::on(&child);
        waiter.poll();
        let error = ender.join().unwrap();
        waiter.finish(&error);
        assert_eq!(census(&child), 0);
    });
}
