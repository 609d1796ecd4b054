//! A deadline's bucket: entering and leaving it while its timer fires.
//!
//! Two contexts with one deadline share a bucket if they are waited on by one thread, which finds it in its cache.

use loom::thread;

use super::{
    Roll, SECOND, Waiter, census, explore, explore_exact, in_runtime, one_story, places, same,
    shut_down, story, tick_and_fire, why,
};
use crate::Context;
use crate::sync::{count_timers, enter_runtime, fire_timers, now, pause, tick};

/// The first wait makes the bucket, and sets its timer, as the time comes.
#[test]
fn first_wait_against_firing() {
    explore([5, 3], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let roll = Roll::of([&ctx]);
        let driver = in_runtime(1, tick_and_fire);
        enter_runtime(1);
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        driver.join().unwrap();
        assert!(waiter.is_roused(), "a lost wake-up");
        let error = story(&ctx);
        assert!(error.is_deadline_exceeded());
        waiter.finish(&error);
        assert_eq!(count_timers(), 0);
        drop(ctx);
        roll.is_gone();
        shut_down([1]);
    });
}

/// A second context enters the bucket that is there as that one's timer fires.
#[test]
fn entering_against_firing() {
    explore([5, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two] = [(); 2].map(|()| Context::background().with_deadline(at).detach());
        let first = Waiter::waiting_on(&one);
        let driver = in_runtime(1, tick_and_fire);
        let mut second = Waiter::on(&two);
        second.poll();
        driver.join().unwrap();
        assert!(second.is_roused(), "a lost wake-up");
        first.finish(&story(&one));
        second.finish(&story(&two));
        assert_eq!([&one, &two].map(places), [0, 0]);
        assert_eq!(count_timers(), 0);
        shut_down([1]);
    });
}

/// A second wait on the same context finds the registration there as that one's timer fires.
#[test]
fn second_wait_against_firing() {
    explore([4, 2], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let mut second = Waiter::on(&ctx);
        second.poll();
        driver.join().unwrap();
        assert!(second.is_roused(), "a lost wake-up");
        let error = story(&ctx);
        first.finish(&error);
        second.finish(&error);
        shut_down([1]);
    });
}

/// The only wait goes as the timer fires, and another one comes: what fires may find either, both or none.
#[test]
fn leaving_and_entering_against_firing() {
    explore([4, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let left = first.leave();
        let mut second = Waiter::on(&ctx);
        second.poll();
        driver.join().unwrap();
        left.is_gone();
        assert!(second.is_roused(), "a lost wake-up");
        second.finish(&story(&ctx));
        shut_down([1]);
    });
}

/// The wait goes as the timer fires: the context may have been ended by that, or by the next look at the clock.
#[test]
fn wait_dropped_against_firing() {
    explore([6, 4], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let left = waiter.leave();
        driver.join().unwrap();
        left.is_gone();
        assert_eq!((census(&ctx), places(&ctx)), (0, 0));
        assert!(story(&ctx).is_deadline_exceeded());
        shut_down([1]);
    });
}

/// The context goes as the timer fires, with its wait, and another one takes its place in the bucket. The one that
/// is left in there keeps its deadline.
#[test]
fn context_dropped_against_firing() {
    explore([5, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two, three] = [(); 3].map(|()| Context::background().with_deadline(at).detach());
        let roll = Roll::of([&one]);
        let [first, second] = [&one, &two].map(Waiter::waiting_on);
        let driver = in_runtime(1, tick_and_fire);
        drop((one, first));
        let mut third = Waiter::on(&three);
        third.poll();
        driver.join().unwrap();
        roll.is_gone();
        assert!(second.is_roused() && third.is_roused(), "a lost wake-up");
        second.finish(&story(&two));
        third.finish(&story(&three));
        shut_down([1]);
    });
}

/// Two threads drop two contexts of one bucket, whose timer fires then, for a third.
#[test]
fn two_contexts_dropped_at_once() {
    explore([5, 3], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two, three] = [(); 3].map(|()| Context::background().with_deadline(at).detach());
        let roll = Roll::of([&one, &two]);
        let [first, second, third] = [&one, &two, &three].map(Waiter::waiting_on);
        let dropper = thread::spawn(move || drop((first, one)));
        drop((two, second));
        dropper.join().unwrap();
        roll.is_gone();
        tick_and_fire();
        third.finish(&story(&three));
        shut_down([1]);
    });
}

/// A cancel takes the registration out as its timer fires: the earlier end wins, and the bucket's other context
/// keeps its deadline.
#[test]
fn cancel_against_firing() {
    explore([3, 2], || {
        enter_runtime(1);
        let at = now() + SECOND;
        let (one, ends_one) = Context::background().with_deadline(at).split();
        let two = Context::background().with_deadline(at).detach();
        let [first, second] = [&one, &two].map(Waiter::waiting_on);
        let driver = in_runtime(1, tick_and_fire);
        ends_one.cancel_with("why");
        driver.join().unwrap();
        let error = story(&one);
        assert!(error.is_deadline_exceeded() || why(&error) == "why");
        first.finish(&error);
        assert!(second.is_roused(), "a lost wake-up");
        second.finish(&story(&two));
        assert_eq!([&one, &two].map(places), [0, 0]);
        shut_down([1]);
    });
}

/// A cancel comes as the first wait registers the deadline. Nothing of it stays in the bucket, and what is in
/// there with it keeps its deadline.
fn cancel_against_first_wait(cause: Option<&'static str>) {
    enter_runtime(1);
    let at = now() + SECOND;
    let other = Context::background().with_deadline(at).detach();
    let beside = Waiter::waiting_on(&other);
    let (ctx, guard) = Context::background().with_deadline(at).split();
    let ender = thread::spawn(move || match cause {
        Some(cause) => guard.cancel_with(cause),
        None => guard.cancel(),
    });
    let mut waiter = Waiter::on(&ctx);
    waiter.poll();
    ender.join().unwrap();
    let error = story(&ctx);
    assert_eq!(why(&error), cause.unwrap_or_default());
    waiter.finish(&error);
    assert_eq!(places(&ctx), 0, "it is still in the bucket");
    tick_and_fire();
    beside.finish(&story(&other));
    shut_down([1]);
}

#[test]
fn cancel_against_first_wait_in_the_bucket() {
    explore([4, 3], || cancel_against_first_wait(Some("why")));
}

#[test]
fn unseen_cancel_against_first_wait_in_the_bucket() {
    explore([5, 3], || cancel_against_first_wait(None));
}

/// The same, where the wait makes the bucket: its place in there is the first.
#[test]
fn unseen_cancel_against_the_wait_that_makes_the_bucket() {
    explore([4, 3], || {
        let (ctx, guard) = Context::background().with_timeout(SECOND).split();
        let ender = thread::spawn(move || guard.cancel());
        enter_runtime(1);
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&story(&ctx));
        assert_eq!(places(&ctx), 0, "it is still in the bucket");
        shut_down([1]);
    });
}

/// Two threads of one runtime wait on one context for the first time, at once: one registration is kept.
#[test]
fn two_waits_register_at_once() {
    explore([4, 3], || {
        let ctx = Context::background().with_timeout(SECOND).detach();
        let other = in_runtime(1, {
            let ctx = ctx.clone();
            move || Waiter::waiting_on(&ctx)
        });
        enter_runtime(1);
        let mine = Waiter::waiting_on(&ctx);
        let theirs = other.join().unwrap();
        assert_eq!(places(&ctx), 1, "registered once");
        tick_and_fire();
        let error = story(&ctx);
        mine.finish(&error);
        theirs.finish(&error);
        assert_eq!((places(&ctx), count_timers()), (0, 0));
        shut_down([1]);
    });
}

/// The same as the time comes.
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
        assert!(mine.is_roused() && theirs.is_roused(), "a lost wake-up");
        let error = story(&ctx);
        mine.finish(&error);
        theirs.finish(&error);
        assert_eq!(places(&ctx), 0);
        shut_down([1]);
    });
}

/// Parent and child wait on the parent's deadline: whichever the driver ends first, both end by it.
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
        assert!(first.is_roused() && second.is_roused(), "a lost wake-up");
        let error = one_story([&child, &parent]);
        assert!(error.is_deadline_exceeded());
        first.finish(&error);
        second.finish(&error);
        assert_eq!([&child, &parent].map(places), [0, 0]);
        shut_down([1]);
    });
}

/// The parent is canceled as the driver ends the child by its deadline.
#[test]
fn cancel_of_the_parent_against_firing() {
    explore([3, 2], || {
        enter_runtime(1);
        let (parent, guard) = Context::background().with_cancel().split();
        let child = parent.with_timeout(SECOND).detach();
        let roll = Roll::of([&parent, &child]);
        let waiter = Waiter::waiting_on(&child);
        let driver = in_runtime(1, tick_and_fire);
        guard.cancel_with("why");
        drop(guard);
        let seen = story(&child);
        driver.join().unwrap();
        same(&seen, &story(&child));
        assert!(seen.is_deadline_exceeded() || why(&seen) == "why");
        waiter.finish(&seen);
        assert_eq!(why(&story(&parent)), "why");
        drop((parent, child));
        roll.is_gone();
        shut_down([1]);
    });
}

/// The deadline is seen to have passed by a third thread as its timer fires.
#[test]
fn asking_against_firing() {
    explore([3, 3], || {
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        tick();
        let driver = in_runtime(1, || fire_timers(false));
        let seen = story(&ctx);
        driver.join().unwrap();
        waiter.finish(&seen);
        assert_eq!(places(&ctx), 0);
        shut_down([1]);
    });
}

/// On a paused clock a bucket gives its timer up with its last member: as that leaves, another enters.
#[test]
fn leaving_against_entering_on_a_paused_clock() {
    explore([5, 3], || {
        pause(true);
        enter_runtime(1);
        let at = now() + SECOND;
        let [one, two] = [(); 2].map(|()| Context::background().with_deadline(at).detach());
        let first = Waiter::waiting_on(&one);
        let dropper = in_runtime(1, move || first.leave());
        let second = Waiter::waiting_on(&two);
        dropper.join().unwrap().is_gone();
        assert_eq!([&one, &two].map(places), [0, 1]);
        assert_eq!(count_timers(), 1);
        tick_and_fire();
        second.finish(&story(&two));
        shut_down([1]);
    });
}

/// Two waits on one context, on a paused clock: one comes as the other goes, and the timer stays or is set anew.
#[test]
fn wait_against_drop_of_the_other_on_a_paused_clock() {
    explore([5, 3], || {
        pause(true);
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let first = Waiter::waiting_on(&ctx);
        let dropper = in_runtime(1, move || first.leave());
        let second = Waiter::waiting_on(&ctx);
        dropper.join().unwrap().is_gone();
        assert_eq!((places(&ctx), count_timers()), (1, 1));
        tick_and_fire();
        second.finish(&story(&ctx));
        shut_down([1]);
    });
}

/// The last wait of a paused clock's bucket goes as its timer fires: no timer is left behind either way.
#[test]
fn leaving_against_firing_on_a_paused_clock() {
    explore([5, 3], || {
        pause(true);
        enter_runtime(1);
        let ctx = Context::background().with_timeout(SECOND).detach();
        let waiter = Waiter::waiting_on(&ctx);
        let driver = in_runtime(1, tick_and_fire);
        let left = waiter.leave();
        driver.join().unwrap();
        left.is_gone();
        assert_eq!((places(&ctx), count_timers()), (0, 0));
        assert!(story(&ctx).is_deadline_exceeded());
        shut_down([1]);
    });
}
