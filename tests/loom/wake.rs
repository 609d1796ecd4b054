//! Wake-ups: a wait that is dropped, or moves to another task, while it is woken.

use std::sync::Arc;

use loom::thread;

use super::{Waiter, WeakTokens, common_error, explore, final_error, registrations};
use crate::Context;

/// A wait is dropped while it is woken.
#[test]
fn waiter_dropped_while_woken() {
    explore([6, 5], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let tokens = WeakTokens::of([&ctx]);
        let waiter = Waiter::waiting_on(&ctx);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let wait = waiter.drop_wait();
        ender.join().unwrap();
        wait.assert_dropped();
        final_error(&ctx);
        drop(ctx);
        tokens.assert_dropped();
    });
}

/// One of two waits is dropped, and a third one gets its key, while all are woken.
#[test]
fn waiter_replaced_by_another_while_woken() {
    explore([8, 7], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let [mut one, mut two, mut three] = [(); 3].map(|()| Waiter::on(&ctx));
        assert!(!one.poll() && !two.poll());
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let wait = two.drop_wait();
        three.poll();
        ender.join().unwrap();
        let error = common_error([&ctx]);
        one.finish(&error);
        three.finish(&error);
        wait.assert_dropped();
    });
}

/// A wait moves to another task while it is woken. The new task is woken, or observes the end.
#[test]
fn waker_replaced_while_woken() {
    explore([8, 8], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let mut waiter = Waiter::waiting_on(&ctx);
        let before = waiter.waker.clone();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        waiter.change_task();
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&final_error(&ctx));
        assert_eq!(Arc::strong_count(&before), 1);
    });
}

/// A wait is polled again by the same task, which takes no lock, while it is woken.
#[test]
fn waiter_polled_again_while_woken() {
    explore([6, 8], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let mut waiter = Waiter::waiting_on(&ctx);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&final_error(&ctx));
    });
}

/// Two waits on one context move to other tasks at once. Then the context ends.
#[test]
fn two_wakers_replaced_at_once() {
    explore([8, 8], || {
        let ctx = Context::background().with_cancel();
        let [mut one, mut two] = [(); 2].map(|()| Waiter::on(&ctx));
        assert!(!one.poll() && !two.poll());
        let other = thread::spawn(move || {
            one.change_task();
            one.poll();
            one
        });
        two.change_task();
        two.poll();
        let one = other.join().unwrap();
        assert_eq!(registrations(&ctx), 2);
        ctx.cancel();
        let error = final_error(&ctx);
        one.finish(&error);
        two.finish(&error);
    });
}

/// Two threads create and drop waits. The list is empty afterwards.
#[test]
fn waits_created_and_dropped() {
    explore([8, 6], || {
        let ctx = Context::background().with_cancel();
        let create_and_drop = |ctx: Context| {
            move || {
                Waiter::waiting_on(&ctx).drop_wait().assert_dropped();
            }
        };
        let other = thread::spawn(create_and_drop(ctx.clone()));
        create_and_drop(ctx.clone())();
        other.join().unwrap();
        assert_eq!(registrations(&ctx), 0);
    });
}

/// A wait has been dropped, and another one begins, while the token is canceled with an empty list.
#[test]
fn cancel_against_wait_on_an_emptied_list() {
    explore([6, 4], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let tokens = WeakTokens::of([&ctx]);
        Waiter::waiting_on(&ctx).drop_wait().assert_dropped();
        let ender = thread::spawn({
            let ctx = ctx.clone();
            move || {
                drop(guard);
                final_error(&ctx)
            }
        });
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        let error = ender.join().unwrap();
        waiter.finish(&error);
        drop(ctx);
        tokens.assert_dropped();
    });
}

/// The same with a child instead of a wait. It is closed, or observes the end of its parent.
#[test]
fn cancel_against_link_on_an_emptied_list() {
    explore([4, 3], || {
        let root = Context::background().with_cancel();
        let gone = root.with_cancel();
        Waiter::waiting_on(&gone).drop_wait().assert_dropped();
        drop(gone);
        let child = root.with_cancel().detach();
        let ender = thread::spawn({
            let (canceler, child) = (root.canceler(), child.clone());
            move || {
                canceler.cancel_with("why");
                final_error(&child)
            }
        });
        let mut waiter = Waiter::on(&child);
        waiter.poll();
        let error = ender.join().unwrap();
        waiter.finish(&error);
        assert_eq!(registrations(&child), 0);
    });
}
