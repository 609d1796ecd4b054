//! Several runtimes wait on one deadline. Some of them stall or shut down.

use super::{
    SECOND, Waiter, WeakTokens, cause_text, explore, explore_exact, final_error, in_runtime,
    memberships, panics_in_shutdown, shut_down, soon_after_a_tick, tick_and_fire,
};
use crate::Context;
use crate::sync::{count_timers, enter_runtime, fire_timers, now, tick};

/// Two runtimes register one deadline at once. One timer fires, and the other runtime stalls. Both waits are woken.
#[test]
fn two_runtimes_register_and_one_fires() {
    explore([5, 4], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let other = in_runtime(2, {
            let ctx = ctx.clone();
            move || Waiter::waiting_on(&ctx)
        });
        enter_runtime(1);
        let mine = Waiter::waiting_on(&ctx);
        let theirs = other.join().unwrap();
        assert_eq!(memberships(&ctx), 2, "registered with both");
        enter_runtime(2);
        tick_and_fire();
        assert!(mine.is_woken() && theirs.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        mine.finish(&error);
        theirs.finish(&error);
        assert_eq!(memberships(&ctx), 0);
        shut_down([1, 2]);
    });
}

/// Both timers fire at once. The context ends once.
#[test]
fn two_runtimes_fire_at_once() {
    explore([3, 2], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiters = [1, 2].map(|id| {
            enter_runtime(id);
            Waiter::waiting_on(&ctx)
        });
        tick();
        let drivers = [1, 2].map(|id| in_runtime(id, || fire_timers(false)));
        drivers.into_iter().for_each(|driver| driver.join().unwrap());
        let error = final_error(&ctx);
        waiters.into_iter().for_each(|waiter| waiter.finish(&error));
        assert_eq!(memberships(&ctx), 0);
        shut_down([1, 2]);
    });
}

/// Both runtimes move the deadline to a narrower slot at once.
#[test]
fn two_runtimes_move_a_deadline_at_once() {
    explore([4, 3], || {
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let waiters = [1, 2].map(|id| {
            enter_runtime(id);
            Waiter::waiting_on(&ctx)
        });
        tick();
        let drivers = [1, 2].map(|id| in_runtime(id, || fire_timers(false)));
        drivers.into_iter().for_each(|driver| driver.join().unwrap());
        assert_eq!(memberships(&ctx), 2, "registered with both");
        enter_runtime(1);
        tick_and_fire();
        let error = final_error(&ctx);
        waiters.into_iter().for_each(|waiter| waiter.finish(&error));
        assert_eq!(memberships(&ctx), 0);
        shut_down([1, 2]);
    });
}

/// A wait that was polled in one runtime is polled in another one while the timer of the first one fires early, and moves
/// the deadline. Then the first runtime stalls.
#[test]
fn wait_changes_runtime_against_a_move() {
    explore([5, 4], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let mut waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        enter_runtime(2);
        waiter.change_task();
        assert!(!waiter.poll());
        driver.join().unwrap();
        assert_eq!(memberships(&ctx), 2, "registered with both");
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        assert_eq!(memberships(&ctx), 0);
        shut_down([1, 2]);
    });
}

/// The same while the first one shuts down. The wait that it wakes may have moved already.
#[test]
fn wait_changes_runtime_against_shutdown() {
    explore([8, 8], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let mut waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        enter_runtime(2);
        waiter.change_task();
        assert!(!waiter.poll());
        driver.join().unwrap();
        // A task polls again when it is woken.
        assert!(!(waiter.is_woken() && waiter.poll()));
        assert_eq!(memberships(&ctx), 1, "registered with the remaining runtime");
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        shut_down([2]);
    });
}

/// A runtime shuts down while a wait registers there. The wait panics like `tokio::time::sleep`, or it is woken, and
/// registers elsewhere.
#[test]
fn first_wait_against_shutdown() {
    explore([8, 7], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let driver = in_runtime(1, || fire_timers(true));
        enter_runtime(1);
        let mut waiter = Waiter::on(&ctx);
        let panicked = panics_in_shutdown(&mut waiter);
        driver.join().unwrap();
        assert!(panicked || waiter.is_woken(), "registered only with a runtime that has shut down");
        enter_runtime(2);
        assert!(!waiter.poll());
        assert_eq!(memberships(&ctx), 1, "registered with the remaining runtime");
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        assert_eq!(memberships(&ctx), 0);
        shut_down([2]);
    });
}

/// The same with an existing bucket, which contains another context.
#[test]
fn registration_against_shutdown() {
    explore([8, 8], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two] = [(); 2].map(|()| Context::background().with_deadline(at).detach());
        let mut first = Waiter::waiting_on(&one);
        let driver = in_runtime(1, || fire_timers(true));
        let mut second = Waiter::on(&two);
        let panicked = panics_in_shutdown(&mut second);
        driver.join().unwrap();
        assert!(first.is_woken(), "registered only with a runtime that has shut down");
        assert!(panicked || second.is_woken(), "registered only with a runtime that has shut down");
        enter_runtime(2);
        assert!(!first.poll() && !second.poll());
        tick_and_fire();
        first.finish(&final_error(&one));
        second.finish(&final_error(&two));
        shut_down([2]);
    });
}

/// A runtime shuts down while another one registers the deadline, and a third thread waits.
#[test]
fn shutdown_against_first_wait_elsewhere() {
    explore([7, 6], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let mut first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        enter_runtime(2);
        let mut second = Waiter::waiting_on(&ctx);
        driver.join().unwrap();
        assert!(first.is_woken(), "registered only with a runtime that has shut down");
        assert!(!first.poll());
        assert!(!(second.is_woken() && second.poll()));
        assert_eq!(memberships(&ctx), 1, "registered with the remaining runtime");
        tick_and_fire();
        let error = final_error(&ctx);
        first.finish(&error);
        second.finish(&error);
        shut_down([2]);
    });
}

/// A runtime shuts down while the timer of another one fires, in which the deadline is registered as well.
#[test]
fn shutdown_against_firing_elsewhere() {
    explore([4, 2], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiters = [1, 2].map(|id| {
            enter_runtime(id);
            Waiter::waiting_on(&ctx)
        });
        let down = in_runtime(1, || fire_timers(true));
        tick_and_fire();
        down.join().unwrap();
        let error = final_error(&ctx);
        waiters.into_iter().for_each(|waiter| waiter.finish(&error));
        assert_eq!(memberships(&ctx), 0);
        shut_down([2]);
    });
}

/// A runtime shuts down between the time of the slot and the deadline, before its timer has fired. It starts no timer, and
/// wakes the wait.
#[test]
fn shutdown_when_the_slot_has_come() {
    explore([4, 4], || {
        enter_runtime(1);
        let ctx = Context::background().with_deadline(soon_after_a_tick()).detach();
        let mut waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        tick();
        driver.join().unwrap();
        assert!(waiter.is_woken(), "registered only with a runtime that has shut down");
        enter_runtime(2);
        assert!(!waiter.poll());
        tick_and_fire();
        waiter.finish(&final_error(&ctx));
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        shut_down([2]);
    });
}

/// The context is canceled while the runtime shuts down and wakes its waits.
#[test]
fn shutdown_against_cancel() {
    explore([8, 8], || {
        enter_runtime(1);
        let (ctx, guard) = Context::background().with_timeout(SECOND).split();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        guard.cancel_with("why");
        driver.join().unwrap();
        let error = final_error(&ctx);
        assert_eq!(cause_text(&error), "why");
        waiter.finish(&error);
        assert_eq!(memberships(&ctx), 0);
    });
}

/// The wait and the context are dropped while the runtime shuts down and wakes the wait.
#[test]
fn shutdown_against_drop() {
    explore([6, 5], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let tokens = WeakTokens::of([&ctx]);
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        drop(ctx);
        let wait = waiter.drop_wait();
        driver.join().unwrap();
        wait.assert_dropped();
        tokens.assert_dropped();
    });
}

/// A wait that needs no timer, and is always polled by the same task, is woken by a shutdown and an end at once.
#[test]
fn shutdown_against_a_second_poll() {
    explore_exact(3, || {
        enter_runtime(1);
        let (ctx, guard) = Context::background().with_timeout(SECOND).split();
        let mut waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, || fire_timers(true));
        let ender = loom::thread::spawn(move || guard.cancel_with("why"));
        enter_runtime(2);
        waiter.poll();
        driver.join().unwrap();
        ender.join().unwrap();
        waiter.finish(&final_error(&ctx));
        assert_eq!(memberships(&ctx), 0);
        shut_down([2]);
    });
}
