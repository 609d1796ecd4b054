//! Deadlines that nothing waits on. The first query after the deadline ends the context.

use loom::thread;

use super::{
    SECOND, Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    explore_exact, final_error, overdue_error, token,
};
use crate::Context;
use crate::sync::tick;

/// Two threads notice that the deadline has passed, while a third one cancels too late.
#[test]
fn two_queries_after_expiry_against_a_late_cancel() {
    explore([2, 0], || {
        let ctx = Context::background().with_timeout(SECOND);
        let child = ctx.with_cancel();
        let tokens = WeakTokens::of([ctx.context(), &child]);
        assert!(!ctx.is_done() && !child.is_done());
        tick();
        let queries = [ctx.clone(), child.clone()].map(|ctx| thread::spawn(move || ctx.err()));
        ctx.cancel_with("too late");
        let error = common_error([ctx.context(), &child]);
        assert!(error.is_deadline_exceeded());
        for query in queries {
            assert_same(&error, &query.join().unwrap().expect("has passed"));
        }
        drop((ctx, child));
        tokens.assert_dropped();
    });
}

/// The deadline passes while the context is canceled. Either may be first, and all queries agree.
#[test]
fn expiry_against_cancel() {
    explore([3, 1], || {
        let ctx = Context::background().with_timeout(SECOND);
        let child = chain(&ctx, 1).remove(1);
        let clock = thread::spawn({
            let child = child.clone();
            move || {
                tick();
                final_error(&child)
            }
        });
        ctx.cancel_with("why");
        let mine = common_error([&ctx, &child]);
        assert_same(&mine, &clock.join().unwrap());
        assert!(mine.is_deadline_exceeded() || cause_text(&mine) == "why");
    });
}

/// The deadline of a child passes before its parent is canceled. The child ends by its deadline, whichever thread reads the
/// clock first, and whether or not the child is linked.
fn child_before_parent(linked: bool) {
    let (parent, guard) = Context::background().with_cancel().split();
    let child = parent.with_timeout(SECOND);
    let below = chain(&child, 1).remove(1);
    if linked {
        assert!(token(&below).link());
    }
    tick();
    let ender = thread::spawn({
        let below = below.clone();
        move || {
            guard.cancel_with("why");
            final_error(&below)
        }
    });
    let seen = below.err().expect("its deadline has passed");
    assert!(seen.is_deadline_exceeded());
    assert_same(&seen, &ender.join().unwrap());
    assert_same(&seen, &common_error([&child, &below]));
    assert_eq!(cause_text(&final_error(&parent)), "why");
}

#[test]
fn child_before_parent_in_the_list() {
    explore([3, 1], || child_before_parent(true));
}

#[test]
fn child_before_parent_out_of_the_list() {
    explore([3, 1], || child_before_parent(false));
}

/// A child has an earlier deadline than its parent, and both pass. The child ends by its own.
#[test]
fn two_deadlines_pass_at_once() {
    explore([5, 4], || {
        let parent = Context::background().with_timeout(2 * SECOND);
        let child = parent.with_timeout(SECOND);
        tick();
        tick();
        let query = thread::spawn({
            let parent = parent.clone();
            move || overdue_error(&parent)
        });
        let childs = overdue_error(&child);
        assert_same(&query.join().unwrap(), &final_error(&parent));
        assert_eq!(childs.origin().budget(), Some(SECOND));
        assert_eq!(final_error(&parent).origin().budget(), Some(2 * SECOND));
    });
}

/// A deadline in the middle of a linked chain has passed. One thread closes the path from there, another one cancels the
/// root. All contexts below the owner of the deadline end by it, and have ended when the cancel returns.
fn expiry_against_cancel_of_the_root(levels_between: usize) {
    let (root, guard) = Context::background().with_cancel().split();
    let timed = chain(&root, levels_between)[levels_between].with_timeout(SECOND).detach();
    let below = chain(&timed, 2);
    let tokens = WeakTokens::of([&root].into_iter().chain(&below));
    // Linked without a wait, because a wait would start a timer.
    assert!(token(&below[2]).link());
    tick();
    let ender = thread::spawn({
        let below = below.clone();
        move || {
            guard.cancel_with("why");
            assert_all_done(below.iter().rev());
            final_error(&below[1])
        }
    });
    let seen = below[2].err().expect("its deadline has passed");
    assert!(seen.is_deadline_exceeded());
    assert_same(&seen, &ender.join().unwrap());
    assert_same(&seen, &common_error(&below));
    assert_eq!(cause_text(&final_error(&root)), "why");
    drop((root, timed, below));
    tokens.assert_dropped();
}

#[test]
fn expiry_against_cancel_of_the_parent() {
    explore([3, 1], || expiry_against_cancel_of_the_root(0));
}

#[test]
fn expiry_against_cancel_two_levels_up() {
    explore([3, 1], || expiry_against_cancel_of_the_root(1));
}

/// The clock advances in the meantime, so that the cancel is before or after the deadline. All contexts below agree.
#[test]
fn expiry_against_cancel_as_the_deadline_passes() {
    explore([2, 1], || {
        let (root, guard) = Context::background().with_cancel().split();
        let timed = root.with_timeout(SECOND).detach();
        let below = chain(&timed, 2);
        assert!(token(&below[2]).link());
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                guard.cancel_with("why");
                assert_all_done(below.iter().rev());
                common_error(below.iter().rev())
            }
        });
        tick();
        let seen = below[2].err().expect("its deadline has passed");
        assert_same(&seen, &ender.join().unwrap());
        assert_same(&seen, &common_error(&below));
        let roots = final_error(&root);
        assert_eq!(cause_text(&roots), "why");
        // The cancel's clock is read before it is published: the deadline may still come in between.
        let is_late = roots.origin().ended_at() >= timed.deadline().expect("it has one");
        assert!(seen.is_deadline_exceeded() || (cause_text(&seen) == "why" && !is_late));
    });
}

/// The owner of the deadline is canceled while one thread closes the path, and another one closes the whole tree. When the
/// call returns, all contexts below have ended.
#[test]
fn expiry_against_cancel_against_cancel_of_the_owner() {
    explore_exact(1, || {
        let (root, guard) = Context::background().with_cancel().split();
        let timed = root.with_timeout(SECOND);
        let below = chain(&timed, 2);
        assert!(token(&below[2]).link());
        tick();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let second = thread::spawn({
            let below = below.clone();
            move || {
                timed.cancel();
                assert_all_done(below.iter().rev());
            }
        });
        let seen = below[2].err().expect("its deadline has passed");
        ender.join().unwrap();
        second.join().unwrap();
        assert_same(&seen, &common_error(&below));
        assert!(seen.is_deadline_exceeded());
    });
}

/// A wait on a parent without a deadline is not woken when the deadline of the child passes.
#[test]
fn expiry_wakes_only_descendants() {
    explore([3, 2], || {
        let root = Context::background().with_cancel();
        let mut above = Waiter::waiting_on(&root);
        let timed = root.with_timeout(SECOND).detach();
        let below = chain(&timed, 1).remove(1);
        tick();
        let query = thread::spawn({
            let below = below.clone();
            move || overdue_error(&below)
        });
        let mine = overdue_error(&timed);
        assert_same(&mine, &query.join().unwrap());
        assert!(!above.is_woken() && !above.poll());
        root.cancel_with("why");
        above.finish(&final_error(&root));
    });
}
