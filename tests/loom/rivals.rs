//! Ends that race each other. One of them wins, and all queries agree.

use loom::thread;

use super::{Roll, Waiter, all_done, chain, explore, one_story, same, story, why};
use crate::Context;

/// A parent and its child are canceled at once, with different causes, while something waits below.
fn parent_against_child(linked: bool) {
    let (parent, ends_parent) = Context::background().with_cancel().split();
    let ends_child = parent.with_cancel();
    let child = ends_child.clone();
    let below = child.with_cancel().detach();
    let roll = Roll::of([&parent, &child, &below]);
    let mut waiter = Waiter::on(&below);
    if linked {
        assert!(!waiter.poll());
    }
    let other = thread::spawn({
        let (child, below) = (child.clone(), below.clone());
        move || {
            ends_parent.cancel_with("parent");
            (story(&below), story(&child))
        }
    });
    ends_child.cancel_with("child");
    let mine = one_story([&child, &below]);
    waiter.poll();
    let (theirs, childs) = other.join().unwrap();
    for told in [&theirs, &childs, &story(&child), &story(&below)] {
        same(&mine, told);
    }
    assert!(["parent", "child"].contains(&why(&mine).as_str()));
    assert_eq!(why(&story(&parent)), "parent");
    waiter.finish(&mine);
    drop((parent, child, below, ends_child));
    roll.is_gone();
}

#[test]
fn parent_against_child_with_a_waiter_below() {
    explore([2, 1], || parent_against_child(true));
}

#[test]
fn parent_against_child_with_no_waiter() {
    explore([2, 1], || parent_against_child(false));
}

/// Two threads end the same root. When either call returns, all descendants have ended, including those that the other
/// thread has not reached yet, and both observe the same error.
fn two_against_a_root(levels: usize, linked: usize) {
    let root = Context::background().with_cancel();
    let all = chain(&root, levels);
    let roll = Roll::of(&all);
    let mut waiter = Waiter::on(&all[linked]);
    assert!(linked == 0 || !waiter.poll());
    let other = thread::spawn({
        let (all, canceler) = (all.clone(), root.canceler());
        move || {
            canceler.cancel_with("one");
            all_done(all.iter().rev());
            all[levels].err()
        }
    });
    root.cancel_with("two");
    all_done(all.iter().rev());
    let error = one_story(&all);
    same(&error, &other.join().unwrap().expect("ended"));
    waiter.poll();
    waiter.finish(&error);
    drop((root, all));
    roll.is_gone();
}

#[test]
fn two_cancel_a_root_with_nothing_linked() {
    explore([2, 1], || two_against_a_root(2, 0));
}

#[test]
fn two_cancel_a_root_with_all_linked() {
    explore([3, 1], || two_against_a_root(2, 2));
}

#[test]
fn two_cancel_a_root_with_half_linked() {
    explore([2, 1], || two_against_a_root(2, 1));
}

#[test]
fn two_cancel_a_root_four_levels_up() {
    explore([2, 0], || two_against_a_root(4, 0));
}

#[test]
fn two_cancel_a_root_five_levels_up() {
    explore([2, 0], || two_against_a_root(5, 0));
}

/// A cancel with a cause against one without, which reads no clock.
#[test]
fn cause_against_no_cause() {
    explore([3, 2], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let canceler = scope.canceler();
        let other = thread::spawn({
            let ctx = ctx.clone();
            move || {
                canceler.cancel();
                story(&ctx)
            }
        });
        scope.cancel_with("why");
        let mine = story(&ctx);
        same(&mine, &other.join().unwrap());
        same(&mine, &story(&ctx));
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
                story(&c)
            }
        });
        let second = thread::spawn({
            let c = c.clone();
            move || {
                ends_b.cancel_with("b");
                story(&c)
            }
        });
        ends_c.cancel_with("c");
        let mine = story(&c);
        same(&mine, &first.join().unwrap());
        same(&mine, &second.join().unwrap());
        let (a, b) = (story(&a), story(&b));
        assert_eq!(why(&a), "a");
        assert!(["a", "b"].contains(&why(&b).as_str()));
        assert!(why(&mine) == "c" || why(&mine) == why(&b));
        waiter.finish(&mine);
    });
}
