//! Merged contexts. The child has one error, which is its own or that of one of its parents.

use loom::thread;

use super::{
    SECOND, Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    final_error, overdue_error, registrations, shut_down,
};
use crate::Context;
use crate::sync::{enter_runtime, tick};

/// Both parents end at once, with different causes, while something waits on the child.
fn both_parents(waits: bool, levels: usize) {
    let one = Context::background().with_cancel();
    let (two, ends_two) = Context::background().with_cancel().split();
    let both = one.merge(&two).detach();
    let all = chain(&both, levels);
    let tokens = WeakTokens::of([&one, &two].into_iter().chain(&all));
    let mut waiter = Waiter::on(&all[levels]);
    assert!(!(waits && waiter.poll()));
    let other = thread::spawn({
        let below = all[levels].clone();
        move || {
            ends_two.cancel_with("two");
            final_error(&below)
        }
    });
    one.cancel_with("one");
    let mine = common_error(all.iter().rev());
    waiter.poll();
    assert_same(&mine, &other.join().unwrap());
    assert_same(&mine, &common_error(&all));
    let (ones, twos) = (final_error(&one), final_error(&two));
    assert_eq!((cause_text(&ones).as_str(), cause_text(&twos).as_str()), ("one", "two"));
    assert_same(&mine, if cause_text(&mine) == "one" { &ones } else { &twos });
    waiter.finish(&mine);
    drop((one, two, both, all));
    tokens.assert_dropped();
}

#[test]
fn both_parents_end_at_once() {
    explore([3, 2], || both_parents(false, 0));
}

#[test]
fn both_parents_end_while_something_waits() {
    explore([3, 2], || both_parents(true, 0));
}

#[test]
fn both_parents_end_while_something_waits_below() {
    explore([3, 2], || both_parents(true, 1));
}

/// One parent ends while the two are merged.
#[test]
fn cancel_against_merge() {
    explore([4, 2], || {
        let one = Context::background().with_cancel();
        let (two, ends_two) = Context::background().with_cancel().split();
        let two = chain(&two, 1);
        let ender = thread::spawn(move || ends_two.cancel_with("two"));
        let both = one.merge(&two[1]);
        let mut waiter = Waiter::on(&both);
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&common_error(two.iter().chain([both.context()])));
        assert!(!one.is_done());
        drop(both);
        assert_eq!(registrations(&one), 0);
    });
}

/// When the cancel of one parent returns, all descendants have ended, although the other parent has not.
#[test]
fn cancel_of_one_parent_ends_all_below() {
    explore([4, 3], || {
        let one = Context::background().with_cancel();
        let (two, ends_two) = Context::background().with_cancel().split();
        let both = one.merge(&chain(&two, 1)[1]).detach();
        let below = chain(&both, 1);
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                ends_two.cancel_with("two");
                assert_all_done(&below);
            }
        });
        let seen = below[1].err();
        ender.join().unwrap();
        let error = common_error(below.iter().chain([&two]));
        seen.iter().for_each(|seen| assert_same(seen, &error));
        assert!(!one.is_done());
    });
}

/// The child ends by itself while a parent ends.
#[test]
fn own_end_against_a_parents() {
    explore([3, 3], || {
        let one = Context::background().with_cancel();
        let (two, ends_two) = Context::background().with_cancel().split();
        let ends_both = one.merge(&two);
        let both = ends_both.clone();
        let ender = thread::spawn({
            let both = both.clone();
            move || {
                ends_two.cancel_with("two");
                final_error(&both)
            }
        });
        ends_both.cancel_with("both");
        let mine = final_error(&both);
        assert_same(&mine, &ender.join().unwrap());
        assert!(["two", "both"].contains(&cause_text(&mine).as_str()));
    });
}

/// The child is dropped while both parents end. Nothing keeps it alive, and it is in neither list.
#[test]
fn drop_against_both_ends() {
    explore([4, 3], || {
        let (one, ends_one) = Context::background().with_cancel().split();
        let (two, ends_two) = Context::background().with_cancel().split();
        let both = one.merge(&two).detach();
        let tokens = WeakTokens::of([&one, &two, &both]);
        let first = thread::spawn(move || ends_one.cancel_with("one"));
        let second = thread::spawn(move || ends_two.cancel_with("two"));
        drop(both);
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(
            (cause_text(&final_error(&one)).as_str(), cause_text(&final_error(&two)).as_str()),
            ("one", "two")
        );
        drop((one, two));
        tokens.assert_dropped();
    });
}

/// The deadline of one parent has passed, and nothing has noticed. Then the other parent is canceled.
#[test]
fn deadline_of_one_before_cancel_of_the_other() {
    explore([3, 1], || {
        let (one, ends_one) = Context::background().with_cancel().split();
        let two = Context::background().with_timeout(SECOND);
        let both = one.merge(&two).detach();
        let below = chain(&both, 1);
        let tokens = WeakTokens::of([&one, &two].into_iter().chain(&below));
        tick();
        tick();
        let ender = thread::spawn({
            let below = below[1].clone();
            move || {
                ends_one.cancel_with("one");
                final_error(&below)
            }
        });
        let mine = final_error(&below[1]);
        assert!(mine.is_deadline_exceeded());
        assert_same(&mine, &ender.join().unwrap());
        assert_same(&mine, &common_error(below.iter().chain([two.context()])));
        assert_eq!(cause_text(&final_error(&one)), "one");
        drop((one, two, both, below));
        tokens.assert_dropped();
    });
}

/// The same, while something waits below, and the timer has not fired. The cancel wakes it, with the error of the deadline.
#[test]
fn cancel_wakes_a_wait_that_a_deadline_has_ended() {
    explore([3, 1], || {
        enter_runtime(1);
        let (one, ends_one) = Context::background().with_cancel().split();
        let two = Context::background().with_timeout(SECOND);
        let both = one.merge(&two).detach();
        let waiter = Waiter::waiting_on(&both);
        tick();
        let ender = thread::spawn(move || ends_one.cancel_with("one"));
        let seen = overdue_error(&two);
        ender.join().unwrap();
        assert!(waiter.is_woken(), "a lost wake-up");
        assert_same(&seen, &common_error([&both, two.context()]));
        waiter.finish(&seen);
        assert_eq!(cause_text(&final_error(&one)), "one");
        shut_down([1]);
    });
}
