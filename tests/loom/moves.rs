//! Deadlines that move to a narrower slot when the timer of a bucket fires.
//!
//! At the first tick, the time of the slot of [`soon_after_a_tick`] has come. The deadline passes before the second tick.

use loom::thread;

use super::{
    Waiter, WeakTokens, cause_text, explore, explore_exact, final_error, in_runtime, memberships,
    registrations, shut_down, soon_after_a_tick, tick_and_fire,
};
use crate::Context;
use crate::sync::{count_timers, enter_runtime, fire_timers, tick};

/// A deadline with a wait moves once, and passes in time.
#[test]
fn deadline_moves_and_fires() {
    explore([4, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || {
            tick_and_fire();
            assert_eq!(count_timers(), 1, "moved");
        });
        driver.join().unwrap();
        assert!(!waiter.is_woken() && !ctx.is_done(), "too early");
        assert_eq!(memberships(&ctx), 1);
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        shut_down([1]);
    });
}

/// A cancel removes it from either bucket, or prevents its registration.
#[test]
fn move_against_cancel() {
    explore([8, 6], || {
        enter_runtime(1);
        let (ctx, guard) = Context::background().with_deadline(soon_after_a_tick()).split();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        guard.cancel_with("why");
        driver.join().unwrap();
        let error = final_error(&ctx);
        assert_eq!(cause_text(&error), "why");
        waiter.finish(&error);
        assert_eq!(memberships(&ctx), 0, "still in a bucket");
        shut_down([1]);
    });
}

/// The same, by a cancel of the parent.
#[test]
fn move_against_cancel_of_the_parent() {
    explore([7, 5], || {
        enter_runtime(1);
        let (parent, guard) = Context::background().with_cancel().split();
        let ctx = parent.with_deadline(soon_after_a_tick()).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        guard.cancel_with("why");
        let error = final_error(&ctx);
        assert_eq!(cause_text(&error), "why");
        driver.join().unwrap();
        waiter.finish(&error);
        assert_eq!(memberships(&ctx), 0, "still in a bucket");
        shut_down([1]);
    });
}

/// The wait, or the context with it, is dropped while the deadline moves.
fn move_against_drop(of_the_context: bool) {
    enter_runtime(1);
    let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
    let tokens = WeakTokens::of([&ctx]);
    let waiter = Waiter::waiting_on(&ctx);
    let driver = in_runtime(1, tick_and_fire);
    if of_the_context {
        drop(ctx);
        let wait = waiter.drop_wait();
        driver.join().unwrap();
        wait.assert_dropped();
    } else {
        let wait = waiter.drop_wait();
        driver.join().unwrap();
        wait.assert_dropped();
        assert!(!ctx.is_done(), "too early");
        assert_eq!(registrations(&ctx), 0);
        drop(ctx);
    }
    tokens.assert_dropped();
    tick_and_fire();
    assert_eq!(count_timers(), 0);
    shut_down([1]);
}

#[test]
fn move_against_drop_of_the_wait() {
    explore([5, 4], || move_against_drop(false));
}

#[test]
fn move_against_drop_of_the_context() {
    explore([5, 5], || move_against_drop(true));
}

/// A deadline without waits does not move.
#[test]
fn not_moved_without_a_wait() {
    explore([1, 1], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        Waiter::waiting_on(&ctx).drop_wait().assert_dropped();
        in_runtime(1, tick_and_fire).join().unwrap();
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        let waiter = Waiter::waiting_on(&ctx);
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        shut_down([1]);
    });
}

/// A second wait begins while the deadline moves. It finds either registration, or registers the deadline itself. One
/// registration is left.
#[test]
fn move_against_second_wait() {
    explore([6, 5], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let second = Waiter::waiting_on(&ctx);
        driver.join().unwrap();
        assert_eq!(memberships(&ctx), 1, "registered once");
        tick_and_fire();
        assert!(first.is_woken() && second.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        first.finish(&error);
        second.finish(&error);
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        shut_down([1]);
    });
}

/// The first wait is dropped and a second one begins while the deadline moves, or is removed because nothing waits on it.
#[test]
fn move_against_one_wait_after_the_other() {
    explore([6, 5], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let wait = first.drop_wait();
        let second = Waiter::waiting_on(&ctx);
        driver.join().unwrap();
        wait.assert_dropped();
        assert_eq!(memberships(&ctx), 1, "registered once");
        tick_and_fire();
        second.finish(&final_error(&ctx));
        shut_down([1]);
    });
}

/// It moves while another member of its bucket is dropped, and a third one is inserted. Each keeps its own deadline.
#[test]
fn move_against_drop_of_another() {
    explore([5, 4], || {
        enter_runtime(1);
        let at = soon_after_a_tick();
        let [one, two, three] = [(); 3].map(|()| Context::background().with_deadline(at).detach());
        let tokens = WeakTokens::of([&one]);
        let [first, second] = [&one, &two].map(Waiter::waiting_on);
        let driver = in_runtime(1, tick_and_fire);
        drop((one, first));
        let third = Waiter::waiting_on(&three);
        driver.join().unwrap();
        tokens.assert_dropped();
        assert_eq!([&two, &three].map(memberships), [1, 1]);
        tick_and_fire();
        assert!(second.is_woken() && third.is_woken(), "a lost wake-up");
        second.finish(&final_error(&two));
        third.finish(&final_error(&three));
        shut_down([1]);
    });
}

/// The deadline passes while it moves, because another thread advances the clock.
#[test]
fn move_against_the_clock() {
    explore([4, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        tick();
        let seen = ctx.err();
        driver.join().unwrap();
        // The driver may have fired the timers before the deadline, so it fires them again.
        fire_timers(false);
        assert!(waiter.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        seen.iter().for_each(|seen| super::assert_same(seen, &error));
        waiter.finish(&error);
        assert_eq!(memberships(&ctx), 0);
        shut_down([1]);
    });
}

/// Three threads cancel the context, drop the wait, and move the deadline.
#[test]
fn move_against_cancel_and_drop() {
    explore_exact(4, || {
        enter_runtime(1);
        let (ctx, guard) = Context::background().with_deadline(soon_after_a_tick()).split();
        let tokens = WeakTokens::of([&ctx]);
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        drop(ctx);
        let wait = waiter.drop_wait();
        ender.join().unwrap();
        driver.join().unwrap();
        wait.assert_dropped();
        tokens.assert_dropped();
        tick_and_fire();
        assert_eq!(count_timers(), 0);
        shut_down([1]);
    });
}
