//! A second `cancel()` against the propagation of the first one. When it returns, all descendants have ended.

use loom::thread;

use super::{
    Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    explore_exact, final_error, token,
};
use crate::{Context, Error};

/// One thread cancels the root of a linked chain, the other one the context at `inner`. When either call returns, all
/// contexts below have ended.
fn second_cancel(levels: usize, inner: usize) {
    let root = Context::background().with_cancel();
    let above = chain(&root, inner.saturating_sub(1));
    let scope = (inner > 0).then(|| above[inner - 1].with_cancel());
    let middle = scope.as_deref().unwrap_or(&root);
    let below = chain(middle, levels - inner);
    let tokens = WeakTokens::of(above.iter().chain(&below));
    let waiter = Waiter::waiting_on(&below[levels - inner]);
    let ender = thread::spawn({
        let (canceler, below) = (root.canceler(), below.clone());
        move || {
            canceler.cancel_with("one");
            assert_all_done(below.iter().rev());
        }
    });
    match &scope {
        Some(scope) => scope.cancel_with("two"),
        None => root.cancel_with("two"),
    }
    assert_all_done(below.iter().rev());
    ender.join().unwrap();
    let error = common_error(&below);
    assert!(["one", "two"].contains(&cause_text(&error).as_str()));
    assert!(inner == 0 || cause_text(&common_error(&above)) == "one");
    waiter.finish(&error);
    drop((root, scope, above, below));
    tokens.assert_dropped();
}

#[test]
fn second_cancel_of_the_root_of_three_levels() {
    explore([4, 2], || second_cancel(3, 0));
}

#[test]
fn second_cancel_of_the_root_of_four_levels() {
    explore([4, 2], || second_cancel(4, 0));
}

#[test]
fn second_cancel_of_a_child() {
    explore([4, 2], || second_cancel(3, 1));
}

#[test]
fn second_cancel_of_a_grandchild() {
    explore([4, 2], || second_cancel(4, 2));
}

#[test]
fn cancel_of_a_leaf_against_that_of_the_root() {
    explore([6, 5], || second_cancel(3, 3));
}

/// Two branches, each with a leaf. The propagation closes one after the other.
#[test]
fn second_cancel_of_the_root_of_two_branches() {
    explore([4, 2], || {
        let root = Context::background().with_cancel();
        let branches = [(); 2].map(|()| chain(&root, 2));
        let waiters = [0, 1].map(|branch| Waiter::waiting_on(&branches[branch][2]));
        let ender = thread::spawn({
            let (canceler, branches) = (root.canceler(), branches.clone());
            move || {
                canceler.cancel_with("one");
                assert_all_done(branches.iter().flatten());
            }
        });
        root.cancel_with("two");
        assert_all_done(branches.iter().flatten());
        ender.join().unwrap();
        let error = common_error(branches.iter().flatten());
        waiters.into_iter().for_each(|waiter| waiter.finish(&error));
    });
}

/// Three threads cancel the root, the root again, and a context in the middle.
#[test]
fn three_cancels() {
    explore_exact(1, || {
        let root = Context::background().with_cancel();
        let middle = root.with_cancel();
        let below = chain(&middle, 2);
        assert!(token(&below[2]).link());
        let others = [root.canceler(), middle.canceler()].map(|canceler| {
            let below = below.clone();
            thread::spawn(move || {
                canceler.cancel();
                assert_all_done(below.iter().rev());
            })
        });
        root.cancel();
        assert_all_done(below.iter().rev());
        others.into_iter().for_each(|other| other.join().unwrap());
        common_error(&below);
    });
}

/// A root, two children, a context that is merged from both, and a waiter below that.
struct Diamond {
    root: crate::CancelScope,
    sides: [crate::CancelScope; 2],
    below: Vec<Context>,
}

impl Diamond {
    fn new() -> Diamond {
        let root = Context::background().with_cancel();
        let sides = [root.with_cancel(), root.with_cancel()];
        let below = chain(&sides[0].merge(&sides[1]).detach(), 1);
        Diamond { root, sides, below }
    }

    /// Each thread cancels one of the two.
    fn cancel(&self, one: &crate::CancelScope, two: &crate::CancelScope) -> Error {
        let tokens = WeakTokens::of(&self.below);
        let waiter = Waiter::waiting_on(&self.below[1]);
        let ender = thread::spawn({
            let (canceler, below) = (one.canceler(), self.below.clone());
            move || {
                canceler.cancel_with("one");
                assert_all_done(below.iter().rev());
                final_error(&below[1])
            }
        });
        two.cancel_with("two");
        assert_all_done(self.below.iter().rev());
        let mine = common_error(&self.below);
        assert_same(&mine, &ender.join().unwrap());
        waiter.finish(&mine);
        drop(tokens);
        mine
    }
}

#[test]
fn second_cancel_above_a_diamond() {
    explore([3, 2], || {
        let diamond = Diamond::new();
        let error = diamond.cancel(&diamond.root, &diamond.root);
        assert_same(&error, &final_error(&diamond.root));
        assert_same(&error, &common_error(diamond.sides.iter().map(|side| side.context())));
    });
}

#[test]
fn cancel_above_a_diamond_against_that_of_a_side() {
    explore([3, 1], || {
        let diamond = Diamond::new();
        let error = diamond.cancel(&diamond.root, &diamond.sides[0]);
        assert_eq!(cause_text(&final_error(&diamond.root)), "one");
        assert!(["one", "two"].contains(&cause_text(&error).as_str()));
    });
}

#[test]
fn cancel_above_a_diamond_against_that_of_the_other_side() {
    explore([3, 2], || {
        let diamond = Diamond::new();
        let error = diamond.cancel(&diamond.root, &diamond.sides[1]);
        assert_eq!(cause_text(&final_error(&diamond.root)), "one");
        assert!(["one", "two"].contains(&cause_text(&error).as_str()));
    });
}

#[test]
fn cancel_of_both_sides_of_a_diamond() {
    explore([3, 2], || {
        let diamond = Diamond::new();
        let error = diamond.cancel(&diamond.sides[0], &diamond.sides[1]);
        let sides = [0, 1].map(|side| final_error(&diamond.sides[side]));
        assert_eq!(sides.each_ref().map(cause_text), ["one", "two"]);
        assert_same(&error, &sides[usize::from(cause_text(&error) == "two")]);
        assert!(!diamond.root.is_done());
    });
}

/// A waker that queries and cancels contexts. It can use the tree, because no lock is held and no token is `CLOSING`.
#[test]
fn waker_cancels_again() {
    struct CancelingWaker(crate::Canceler, Vec<Context>);

    impl std::task::Wake for CancelingWaker {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.cancel_with("three");
            assert_all_done(&self.1);
        }
    }

    explore([4, 2], || {
        let root = Context::background().with_cancel();
        let all = chain(&root, 2);
        let mut done = Box::pin(all[2].done_owned());
        let waker = std::sync::Arc::new(CancelingWaker(root.canceler(), all.clone())).into();
        let first = done.as_mut().poll(&mut std::task::Context::from_waker(&waker));
        assert!(first.is_pending());
        drop(waker);
        let ender = thread::spawn({
            let canceler = root.canceler();
            move || canceler.cancel_with("one")
        });
        root.cancel_with("two");
        assert_all_done(&all);
        ender.join().unwrap();
        let error = common_error(&all);
        assert!(["one", "two"].contains(&cause_text(&error).as_str()));
    });
}
