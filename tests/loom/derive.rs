//! An end against deriving: a child is told of what came before it and of what comes after.

use loom::thread;

use super::{Roll, Waiter, chain, explore, one_story, same, story, why};
use crate::{CancelScope, Context};

/// The parent ends on one thread; on the other a child is derived from it, and waited on.
fn end_against_derive(levels_above: usize, end: fn(CancelScope)) {
    let scope = Context::background().with_cancel();
    let root = scope.clone();
    let all = chain(&root, levels_above);
    let ender = thread::spawn(move || end(scope));
    let child = all[levels_above].with_cancel().detach();
    let mut waiter = Waiter::on(&child);
    waiter.poll();
    ender.join().unwrap();
    let error = one_story(all.iter().chain([&child]));
    waiter.finish(&error);
    let roll = Roll::of(all.iter().chain([&child]));
    drop((root, all, child));
    roll.is_gone();
}

#[test]
fn cancel_against_derive_and_wait() {
    explore([5, 3], || end_against_derive(0, |scope| scope.cancel_with("why")));
}

#[test]
fn unseen_cancel_against_derive_and_wait() {
    explore([5, 3], || end_against_derive(0, |scope| scope.cancel()));
}

#[test]
fn quiet_end_against_derive_and_wait() {
    explore([5, 3], || end_against_derive(0, drop));
}

#[test]
fn cancel_against_derive_two_levels_down() {
    explore([5, 3], || end_against_derive(2, |scope| scope.cancel_with("why")));
}

/// The child's first wait links all four levels above it.
#[test]
fn cancel_against_derive_below_four_levels() {
    explore([3, 2], || end_against_derive(3, |scope| scope.cancel_with("why")));
}

#[test]
fn scope_drop_against_derive_below_four_levels() {
    explore([3, 1], || end_against_derive(3, drop));
}

/// Nobody waits on the child: it learns of the end by looking, as soon as that is known.
#[test]
fn quiet_end_against_derive_and_ask() {
    explore([5, 3], || {
        let scope = Context::background().with_cancel();
        let parent = scope.clone();
        let ender = thread::spawn(move || drop(scope));
        let mine = parent.with_cancel();
        let child = mine.clone();
        let parents = parent.err();
        let childs = child.err();
        if let Some(parents) = &parents {
            same(parents, childs.as_ref().expect("its parent has ended"));
        }
        ender.join().unwrap();
        let error = one_story([&parent, &child]);
        assert!(error.is_canceled());
        drop(mine);
        same(&error, &story(&child));
    });
}

/// A deadline in the past does not hide that the parent had ended before the child was made.
#[test]
fn cancel_against_derive_with_a_deadline_that_has_passed() {
    explore([5, 3], || {
        let (parent, guard) = Context::background().with_cancel().split();
        crate::sync::tick();
        let past = crate::sync::now() - std::time::Duration::from_secs(1);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let ended_before = parent.is_done();
        let child = parent.with_deadline(past);
        let error = story(&child);
        assert!(!ended_before || why(&error) == "why", "ended before its birth");
        ender.join().unwrap();
        same(&error, &story(&child));
        assert_eq!(why(&story(&parent)), "why");
    });
}

/// Derived in a chain, by one thread, while the root ends: all of it has ended when that is known.
#[test]
fn cancel_against_a_growing_chain() {
    explore([5, 3], || {
        let (root, guard) = Context::background().with_cancel().split();
        let ender = thread::spawn({
            let root = root.clone();
            move || {
                guard.cancel_with("why");
                story(&root)
            }
        });
        let all = chain(&root, 3);
        if root.is_done() {
            one_story(&all);
        }
        let error = ender.join().unwrap();
        same(&error, &one_story(&all));
    });
}
