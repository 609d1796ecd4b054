//! Ends that race each other. One of them wins, and all queries agree.

use loom::thread;

use super::{
    Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    final_error,
};
use crate::Context;

/// A parent and its child are canceled at once, with different causes, while something waits below.
fn parent_against_child(linked: bool) {
    let (parent, ends_parent) = Context::background().with_cancel().split();
    let ends_child = parent.with_cancel();
    let child = ends_child.clone();
    let below = child.with_cancel().detach();
    let tokens = WeakTokens::of([&parent, &child, &below]);
    let mut waiter = Waiter::on(&below);
    if linked {
        assert!(!waiter.poll());
    }
    let other = thread::spawn({
        let (child, below) = (child.clone(), below.clone());
        move || {
            ends_parent.cancel_with("parent");
            (final_error(&below), final_error(&child))
        }
    });
    ends_child.cancel_with("child");
    let mine = common_error([&child, &below]);
    waiter.poll();
    let (theirs, childs) = other.join().unwrap();
    for other_error in [&theirs, &childs, &final_error(&child), &final_error(&below)] {
        assert_same(&mine, other_error);
    }
    assert!(["parent", "child"].contains(&cause_text(&mine).as_str()));
    assert_eq!(cause_text(&final_error(&parent)), "parent");
    waiter.finish(&mine);
    drop((parent, child, below, ends_child));
    tokens.assert_dropped();
}

#[test]
fn parent_against_child_with_a_waiter_below() {
    explore([3, 2], || parent_against_child(true));
}

#[test]
fn parent_against_child_with_no_waiter() {
    explore([3, 1], || parent_against_child(false));
}

/// Two threads end the same root. When either call returns, all descendants have ended, including those that the other
/// thread has not reached yet, and both observe the same error.
fn two_against_a_root(levels: usize, linked: usize) {
    let root = Context::background().with_cancel();
    let all = chain(&root, levels);
    let tokens = WeakTokens::of(&all);
    let mut waiter = Waiter::on(&all[linked]);
    assert!(linked == 0 || !waiter.poll());
    let other = thread::spawn({
        let (all, canceler) = (all.clone(), root.canceler());
        move || {
            canceler.cancel_with("one");
            assert_all_done(all.iter().rev());
            all[levels].err()
        }
    });
    root.cancel_with("two");
    assert_all_done(all.iter().rev());
    let error = common_error(&all);
    assert_same(&error, &other.join().unwrap().expect("ended"));
    waiter.poll();
    waiter.finish(&error);
    drop((root, all));
    tokens.assert_dropped();
}

#[test]
fn two_cancel_a_root_with_nothing_linked() {
    explore([3, 1], || two_against_a_root(2, 0));
}

#[test]
fn two_cancel_a_root_with_all_linked() {
    explore([3, 2], || two_against_a_root(2, 2));
}

#[test]
fn two_cancel_a_root_with_half_linked() {
    explore([3, 1], || two_against_a_root(2, 1));
}

#[test]
fn two_cancel_a_root_four_levels_up() {
    explore([2, 1], || two_against_a_root(4, 0));
}

#[test]
fn two_cancel_a_root_five_levels_up() {
    explore([2, 0], || two_against_a_root(5, 0));
}

/// A cancel with a cause against one without, which reads no clock.
#[test]
fn cause_against_no_cause() {
    explore([4, 2], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let canceler = scope.canceler();
        let other = thread::spawn({
            let ctx = ctx.clone();
            move || {
                canceler.cancel();
                final_error(&ctx)
            }
        });
        scope.cancel_with("why");
        let mine = final_error(&ctx);
        assert_same(&mine, &other.join().unwrap());
        assert_same(&mine, &final_error(&ctx));
    });
}

/// A grandparent, a parent and a child are canceled at once, with different causes.
#[test]
fn three_generations_at_once() {
    explore([2, 1], || {
        let (a, ends_a) = Context::background().with_cancel().split();
        let (b, ends_b) = a.with_cancel().split();
        let ends_c = b.with_cancel();
        let c = ends_c.clone();
        let mut waiter = Waiter::on(&c);
        assert!(!waiter.poll());
        let first = thread::spawn({
            let c = c.clone();
            move || {
                ends_a.cancel_with("a");
                final_error(&c)
            }
        });
        let second = thread::spawn({
            let c = c.clone();
            move || {
                ends_b.cancel_with("b");
                final_error(&c)
            }
        });
        ends_c.cancel_with("c");
        let mine = final_error(&c);
        assert_same(&mine, &first.join().unwrap());
        assert_same(&mine, &second.join().unwrap());
        let (a, b) = (final_error(&a), final_error(&b));
        assert_eq!(cause_text(&a), "a");
        assert!(["a", "b"].contains(&cause_text(&b).as_str()));
        assert!(cause_text(&mine) == "c" || cause_text(&mine) == cause_text(&b));
        waiter.finish(&mine);
    });
}
