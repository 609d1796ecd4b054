//! An end against a derive. The child ends, whether the end is before or after it.

use loom::thread;

use super::{
    SECOND, Waiter, WeakTokens, assert_same, cause_text, chain, common_error, explore, final_error,
};
use crate::sync::now;
use crate::{CancelScope, Context};

/// One thread ends the parent. The other one derives a child, and waits on it.
fn end_against_derive(levels_above: usize, end: fn(CancelScope)) {
    let scope = Context::background().with_cancel();
    let root = scope.clone();
    let all = chain(&root, levels_above);
    let ender = thread::spawn(move || end(scope));
    let child = all[levels_above].with_cancel().detach();
    let mut waiter = Waiter::on(&child);
    waiter.poll();
    ender.join().unwrap();
    let error = common_error(all.iter().chain([&child]));
    waiter.finish(&error);
    let tokens = WeakTokens::of(all.iter().chain([&child]));
    drop((root, all, child));
    tokens.assert_dropped();
}

#[test]
fn cancel_against_derive_and_wait() {
    explore([6, 3], || end_against_derive(0, |scope| scope.cancel_with("why")));
}

#[test]
fn plain_cancel_against_derive_and_wait() {
    explore([8, 3], || end_against_derive(0, |scope| scope.cancel()));
}

#[test]
fn scope_drop_against_derive_and_wait() {
    explore([8, 4], || end_against_derive(0, drop));
}

#[test]
fn cancel_against_derive_two_levels_down() {
    explore([4, 1], || end_against_derive(2, |scope| scope.cancel_with("why")));
}

/// The first wait on the child links all four levels above it.
#[test]
fn cancel_against_derive_below_four_levels() {
    explore([4, 1], || end_against_derive(3, |scope| scope.cancel_with("why")));
}

#[test]
fn scope_drop_against_derive_below_four_levels() {
    explore([4, 1], || end_against_derive(3, drop));
}

/// Nothing waits on the child. If it is derived when the parent is known to have ended, it has ended with that error.
#[test]
fn scope_drop_against_derive_and_query() {
    explore([8, 8], || {
        let scope = Context::background().with_cancel();
        let parent = scope.clone();
        let ender = thread::spawn(move || drop(scope));
        let before = parent.with_cancel().detach();
        let parents = parent.err();
        let after = parent.with_cancel().detach();
        if let Some(parents) = &parents {
            assert_same(parents, &common_error([&after, &parent]));
        }
        ender.join().unwrap();
        assert!(common_error([&parent, &before, &after]).is_canceled());
    });
}

/// A child with a deadline in the past has the error of its parent, if that ended before the child was created.
#[test]
fn cancel_against_derive_with_a_deadline_that_has_passed() {
    explore([4, 2], || {
        let (parent, guard) = Context::background().with_cancel().split();
        crate::sync::tick();
        let past = crate::sync::now() - std::time::Duration::from_secs(1);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let ended_before = parent.is_done();
        let child = parent.with_deadline(past);
        let error = final_error(&child);
        assert!(
            !ended_before || cause_text(&error) == "why",
            "the parent ended first, with another error"
        );
        ender.join().unwrap();
        assert_same(&error, &final_error(&child));
        assert_eq!(cause_text(&final_error(&parent)), "why");
    });
}

/// A child with a deadline is derived while the parent is canceled. The end has the time of the cancel, whether it was
/// recorded because of the deadline, or by the first query.
#[test]
fn cancel_against_derive_with_a_deadline() {
    explore([6, 8], || {
        let parent = Context::background().with_cancel();
        let ender = thread::spawn({
            let canceler = parent.canceler();
            move || canceler.cancel()
        });
        let child = parent.with_timeout(SECOND);
        ender.join().unwrap();
        let error = common_error([parent.context(), &child]);
        assert_eq!(error.origin().ended_at(), now());
    });
}

/// A chain grows while its root ends. All of it ends, and a context that is derived after that has ended from the start.
#[test]
fn cancel_against_a_growing_chain() {
    explore([3, 3], || {
        let (root, guard) = Context::background().with_cancel().split();
        let ender = thread::spawn({
            let root = root.clone();
            move || {
                guard.cancel_with("why");
                final_error(&root)
            }
        });
        let mut all = chain(&root, 3);
        if all[3].is_done() {
            all.push(chain(&all[2], 1).remove(1));
            common_error(&all);
        }
        let error = ender.join().unwrap();
        assert_same(&error, &common_error(&all));
    });
}
