//! An end against a wait. The second one observes the first.

use loom::thread;

use super::{
    Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
};
use crate::{CancelScope, Context};

/// One thread ends the root of a chain. The other one waits on the last context of the chain for the first time.
fn end_against_wait(levels: usize, waited_before: bool, end: fn(CancelScope)) {
    let scope = Context::background().with_cancel();
    let root = scope.clone();
    let all = chain(&root, levels);
    let tokens = WeakTokens::of(&all);
    if waited_before {
        Waiter::waiting_on(&all[levels]).drop_wait().assert_dropped();
    }
    let mut waiter = Waiter::on(&all[levels]);
    let ender = thread::spawn({
        let all = all.clone();
        move || {
            end(scope);
            assert_all_done(&all);
        }
    });
    waiter.poll();
    ender.join().unwrap();
    let error = common_error(&all);
    assert!(["", "why"].contains(&cause_text(&error).as_str()));
    waiter.finish(&error);
    drop((root, all));
    tokens.assert_dropped();
}

fn cancel_with_cause(scope: CancelScope) {
    scope.cancel_with("why");
}

fn cancel_without_cause(scope: CancelScope) {
    scope.cancel();
}

fn drop_scope(scope: CancelScope) {
    drop(scope);
}

#[test]
fn cancel_against_first_wait() {
    explore([8, 6], || end_against_wait(0, false, cancel_with_cause));
}

#[test]
fn plain_cancel_against_first_wait() {
    explore([8, 5], || end_against_wait(0, false, cancel_without_cause));
}

#[test]
fn scope_drop_against_first_wait() {
    explore([8, 7], || end_against_wait(0, false, drop_scope));
}

#[test]
fn plain_cancel_against_next_wait() {
    explore([8, 8], || end_against_wait(0, true, cancel_without_cause));
}

#[test]
fn scope_drop_against_next_wait() {
    explore([8, 8], || end_against_wait(0, true, drop_scope));
}

#[test]
fn cancel_of_the_parent_against_first_wait() {
    explore([4, 3], || end_against_wait(1, false, cancel_with_cause));
}

#[test]
fn cancel_against_first_wait_two_levels_down() {
    explore([3, 2], || end_against_wait(2, false, cancel_with_cause));
}

/// The wait links three levels, from the top down.
#[test]
fn cancel_against_first_wait_three_levels_down() {
    explore([3, 1], || end_against_wait(3, false, cancel_with_cause));
}

#[test]
fn guard_drop_against_first_wait_two_levels_down() {
    explore([3, 2], || end_against_wait(2, false, drop_scope));
}

#[test]
fn cancel_against_next_wait_two_levels_down() {
    explore([6, 3], || end_against_wait(2, true, cancel_with_cause));
}

/// Two threads wait on the same context for the first time, while it ends.
#[test]
fn cancel_against_two_first_waits() {
    explore([3, 2], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let tokens = WeakTokens::of([&ctx]);
        let (mut one, mut two) = (Waiter::on(&ctx), Waiter::on(&ctx));
        let first = thread::spawn(move || {
            one.poll();
            one
        });
        let ender = thread::spawn(move || guard.cancel_with("why"));
        two.poll();
        let one = first.join().unwrap();
        ender.join().unwrap();
        let error = common_error([&ctx]);
        one.finish(&error);
        two.finish(&error);
        drop(ctx);
        tokens.assert_dropped();
    });
}

/// The context is canceled while it is queried, as in a loop that computes.
#[test]
fn cancel_against_query() {
    explore([6, 8], || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = chain(&root, 2);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let seen = all[2].err();
        // An end that an unlinked context has observed is the end of its ancestors as well.
        let above = seen.as_ref().map(|_| common_error(&all));
        ender.join().unwrap();
        let error = common_error(&all);
        assert_eq!(cause_text(&error), "why");
        for seen in seen.iter().chain(&above) {
            assert_same(seen, &error);
        }
    });
}
