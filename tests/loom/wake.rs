//! Waking: a waiter that leaves, or changes hands, while it is being woken.

use std::sync::Arc;

use loom::thread;

use super::{Roll, Waiter, census, explore, one_story, story};
use crate::Context;

/// A waiter is dropped while it is being woken.
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

/// One of two waiters is dropped, and a third takes its seat, while all are being woken.
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

/// A waiter goes over to another task while it is being woken: the new one is woken, or sees the end.
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

/// Polled again by the same task, which takes no lock, while it is being woken.
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

/// Two waiters change hands at once, in one list that goes on; then it ends.
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

/// Waiters come and go on two threads; the list is empty again.
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

/// A waiter has come and gone, and another comes, while the token is canceled, which takes a way of its own where
/// the list is empty.
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

/// The same with a child in the list's place: it is closed, or sees the end above.
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
