//! Buckets: registrations and deregistrations while the timer fires.
//!
//! Two contexts with the same deadline share a bucket if one thread waits on both, and finds the bucket in its cache.

use loom::thread;

use super::{
    SECOND, Waiter, WeakTokens, assert_same, cause_text, common_error, explore, explore_exact,
    final_error, in_runtime, memberships, overdue_error, registrations, shut_down, tick_and_fire,
};
use crate::Context;
use crate::sync::{count_timers, enter_runtime, fire_timers, now, pause, tick};

/// The first wait creates the bucket, and starts its timer, while the deadline passes.
#[test]
fn first_wait_against_firing() {
    explore([5, 3], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let tokens = WeakTokens::of([&ctx]);
        let driver = in_runtime(1, tick_and_fire);
        enter_runtime(1);
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        driver.join().unwrap();
        assert!(waiter.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        assert!(error.is_deadline_exceeded());
        waiter.finish(&error);
        assert_eq!(count_timers(), 0);
        drop(ctx);
        tokens.assert_dropped();
        shut_down([1]);
    });
}

/// A second context is inserted into an existing bucket while the timer fires.
#[test]
fn registration_against_firing() {
    explore([5, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two] = [(); 2].map(|()| Context::background().with_deadline(at).detach());
        let first = Waiter::waiting_on(&one);
        let driver = in_runtime(1, tick_and_fire);
        let mut second = Waiter::on(&two);
        second.poll();
        driver.join().unwrap();
        assert!(second.is_woken(), "a lost wake-up");
        first.finish(&final_error(&one));
        second.finish(&final_error(&two));
        assert_eq!([&one, &two].map(memberships), [0, 0]);
        assert_eq!(count_timers(), 0);
        shut_down([1]);
    });
}

/// A second wait on the same context finds the registration while the timer fires.
#[test]
fn second_wait_against_firing() {
    explore([4, 4], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let mut second = Waiter::on(&ctx);
        second.poll();
        driver.join().unwrap();
        assert!(second.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        first.finish(&error);
        second.finish(&error);
        shut_down([1]);
    });
}

/// The only wait is dropped while the timer fires, and another one begins. The timer may find any of them.
#[test]
fn deregistration_and_registration_against_firing() {
    explore([4, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let wait = first.drop_wait();
        let mut second = Waiter::on(&ctx);
        second.poll();
        driver.join().unwrap();
        wait.assert_dropped();
        assert!(second.is_woken(), "a lost wake-up");
        second.finish(&final_error(&ctx));
        shut_down([1]);
    });
}

/// The wait is dropped while the timer fires. The context ends by the timer, or by the next query.
#[test]
fn wait_dropped_against_firing() {
    explore([6, 5], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let wait = waiter.drop_wait();
        driver.join().unwrap();
        wait.assert_dropped();
        assert_eq!((registrations(&ctx), memberships(&ctx)), (0, 0));
        assert!(overdue_error(&ctx).is_deadline_exceeded());
        shut_down([1]);
    });
}

/// A context and its wait are dropped while the timer fires, and another context gets the same key. The third one in the
/// bucket keeps its deadline.
#[test]
fn context_dropped_against_firing() {
    explore([5, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two, three] = [(); 3].map(|()| Context::background().with_deadline(at).detach());
        let tokens = WeakTokens::of([&one]);
        let [first, second] = [&one, &two].map(Waiter::waiting_on);
        let driver = in_runtime(1, tick_and_fire);
        drop((one, first));
        let mut third = Waiter::on(&three);
        third.poll();
        driver.join().unwrap();
        tokens.assert_dropped();
        assert!(second.is_woken() && third.is_woken(), "a lost wake-up");
        second.finish(&final_error(&two));
        third.finish(&final_error(&three));
        shut_down([1]);
    });
}

/// Two threads drop two contexts of one bucket. Then its timer fires, for a third one.
#[test]
fn two_contexts_dropped_at_once() {
    explore([6, 6], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two, three] = [(); 3].map(|()| Context::background().with_deadline(at).detach());
        let tokens = WeakTokens::of([&one, &two]);
        let [first, second, third] = [&one, &two, &three].map(Waiter::waiting_on);
        let dropper = thread::spawn(move || drop((first, one)));
        drop((two, second));
        dropper.join().unwrap();
        tokens.assert_dropped();
        tick_and_fire();
        third.finish(&final_error(&three));
        shut_down([1]);
    });
}

/// A cancel removes the registration while the timer fires. The earlier end wins, and the other context in the bucket
/// keeps its deadline.
#[test]
fn cancel_against_firing() {
    explore([4, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let (one, ends_one) = Context::background().with_deadline(at).split();
        let two = Context::background().with_deadline(at).detach();
        let [first, second] = [&one, &two].map(Waiter::waiting_on);
        let driver = in_runtime(1, tick_and_fire);
        ends_one.cancel_with("why");
        driver.join().unwrap();
        let error = final_error(&one);
        assert!(error.is_deadline_exceeded() || cause_text(&error) == "why");
        first.finish(&error);
        assert!(second.is_woken(), "a lost wake-up");
        second.finish(&final_error(&two));
        assert_eq!([&one, &two].map(memberships), [0, 0]);
        shut_down([1]);
    });
}

/// A context is canceled while its first wait registers the deadline. Nothing of it stays in the bucket, and the other
/// context in the bucket keeps its deadline.
fn cancel_against_first_wait(cause: Option<&'static str>) {
    enter_runtime(1);
    let at = now() + SECOND;
    let other = Context::background().with_deadline(at).detach();
    let neighbor = Waiter::waiting_on(&other);
    let (ctx, guard) = Context::background().with_deadline(at).split();
    let ender = thread::spawn(move || match cause {
        Some(cause) => guard.cancel_with(cause),
        None => guard.cancel(),
    });
    let mut waiter = Waiter::on(&ctx);
    waiter.poll();
    ender.join().unwrap();
    let error = final_error(&ctx);
    assert_eq!(cause_text(&error), cause.unwrap_or_default());
    waiter.finish(&error);
    assert_eq!(memberships(&ctx), 0, "it is still in the bucket");
    tick_and_fire();
    neighbor.finish(&final_error(&other));
    shut_down([1]);
}

#[test]
fn cancel_against_first_wait_in_the_bucket() {
    explore([8, 5], || cancel_against_first_wait(Some("why")));
}

#[test]
fn plain_cancel_against_first_wait_in_the_bucket() {
    explore([8, 5], || cancel_against_first_wait(None));
}

/// The same, and the wait creates the bucket, so that it has the first key.
#[test]
fn plain_cancel_against_the_wait_that_creates_the_bucket() {
    explore([8, 5], || {
        let (ctx, guard) = Context::background().with_timeout(SECOND).split();
        let ender = thread::spawn(move || guard.cancel());
        enter_runtime(1);
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&final_error(&ctx));
        assert_eq!(memberships(&ctx), 0, "it is still in the bucket");
        shut_down([1]);
    });
}

/// Two threads of one runtime wait on a context for the first time, at once. One registration is stored.
#[test]
fn two_waits_register_at_once() {
    explore([7, 5], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let other = in_runtime(1, {
            let ctx = ctx.clone();
            move || Waiter::waiting_on(&ctx)
        });
        enter_runtime(1);
        let mine = Waiter::waiting_on(&ctx);
        let theirs = other.join().unwrap();
        assert_eq!(memberships(&ctx), 1, "registered once");
        tick_and_fire();
        let error = final_error(&ctx);
        mine.finish(&error);
        theirs.finish(&error);
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        shut_down([1]);
    });
}

/// The same, while the deadline passes.
#[test]
fn two_waits_register_against_firing() {
    explore_exact(2, || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let other = in_runtime(1, {
            let ctx = ctx.clone();
            move || {
                let mut waiter = Waiter::on(&ctx);
                waiter.poll();
                waiter
            }
        });
        let driver = in_runtime(1, tick_and_fire);
        enter_runtime(1);
        let mut mine = Waiter::on(&ctx);
        mine.poll();
        let theirs = other.join().unwrap();
        driver.join().unwrap();
        assert!(mine.is_woken() && theirs.is_woken(), "a lost wake-up");
        let error = final_error(&ctx);
        mine.finish(&error);
        theirs.finish(&error);
        assert_eq!(memberships(&ctx), 0);
        shut_down([1]);
    });
}

/// A parent and its child wait on the deadline of the parent. Both end by it, in whichever order the timer ends them.
#[test]
fn child_with_its_parents_deadline_against_firing() {
    explore([3, 1], || {
        enter_runtime(1);
        let parent = Context::background().with_timeout(SECOND).detach();
        let child = parent.with_cancel().detach();
        let first = Waiter::waiting_on(&parent);
        let driver = in_runtime(1, tick_and_fire);
        let mut second = Waiter::on(&child);
        second.poll();
        driver.join().unwrap();
        assert!(first.is_woken() && second.is_woken(), "a lost wake-up");
        let error = common_error([&child, &parent]);
        assert!(error.is_deadline_exceeded());
        first.finish(&error);
        second.finish(&error);
        assert_eq!([&child, &parent].map(memberships), [0, 0]);
        shut_down([1]);
    });
}

/// The parent is canceled while the timer ends the child by its deadline.
#[test]
fn cancel_of_the_parent_against_firing() {
    explore([3, 2], || {
        enter_runtime(1);
        let (parent, guard) = Context::background().with_cancel().split();
        let child = parent.with_timeout(SECOND).detach();
        let tokens = WeakTokens::of([&parent, &child]);
        let waiter = Waiter::waiting_on(&child);
        let driver = in_runtime(1, tick_and_fire);
        guard.cancel_with("why");
        drop(guard);
        let seen = final_error(&child);
        driver.join().unwrap();
        assert_same(&seen, &final_error(&child));
        assert!(seen.is_deadline_exceeded() || cause_text(&seen) == "why");
        waiter.finish(&seen);
        assert_eq!(cause_text(&final_error(&parent)), "why");
        drop((parent, child));
        tokens.assert_dropped();
        shut_down([1]);
    });
}

/// A third thread notices that the deadline has passed while the timer fires.
#[test]
fn query_against_firing() {
    explore([4, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        tick();
        let driver = in_runtime(1, || fire_timers(false));
        let seen = overdue_error(&ctx);
        driver.join().unwrap();
        waiter.finish(&seen);
        assert_eq!(memberships(&ctx), 0);
        shut_down([1]);
    });
}

/// On a paused clock, a bucket drops its timer with its last member. That one is removed while another one is inserted.
#[test]
fn deregistration_against_registration_on_a_paused_clock() {
    explore([5, 4], || {
        pause(true);
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two] = [(); 2].map(|()| Context::background().with_deadline(at).detach());
        let first = Waiter::waiting_on(&one);
        let dropper = in_runtime(1, move || first.drop_wait());
        let second = Waiter::waiting_on(&two);
        dropper.join().unwrap().assert_dropped();
        assert_eq!([&one, &two].map(memberships), [0, 1]);
        assert_eq!(count_timers(), 1);
        tick_and_fire();
        second.finish(&final_error(&two));
        shut_down([1]);
    });
}

/// Two waits on one context, on a paused clock. One begins while the other is dropped. The timer is kept or replaced.
#[test]
fn wait_against_drop_of_the_other_on_a_paused_clock() {
    explore([8, 8], || {
        pause(true);
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let dropper = in_runtime(1, move || first.drop_wait());
        let second = Waiter::waiting_on(&ctx);
        dropper.join().unwrap().assert_dropped();
        assert_eq!((memberships(&ctx), count_timers()), (1, 1));
        tick_and_fire();
        second.finish(&final_error(&ctx));
        shut_down([1]);
    });
}

/// On a paused clock, the last wait of a bucket is dropped while the timer fires. No timer is left behind.
#[test]
fn deregistration_against_firing_on_a_paused_clock() {
    explore([7, 8], || {
        pause(true);
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let wait = waiter.drop_wait();
        driver.join().unwrap();
        wait.assert_dropped();
        assert_eq!((memberships(&ctx), count_timers()), (0, 0));
        assert!(overdue_error(&ctx).is_deadline_exceeded());
        shut_down([1]);
    });
}
