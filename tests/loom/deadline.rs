//! Deadlines that nothing waits on. The first query after the deadline ends the context.

use loom::thread;

use super::{
    Roll, SECOND, Waiter, all_done, chain, explore, explore_exact, one_story, same, story, token, why,
};
use crate::Context;
use crate::sync::tick;

/// Two threads notice that the deadline has passed, while a third one cancels too late.
#[test]
fn two_see_it_pass_while_a_third_cancels() {
    explore([2, 0], || {
        let ctx = Context::background().with_timeout(SECOND);
        let child = ctx.with_cancel();
        let roll = Roll::of([ctx.context(), &child]);
        assert!(!ctx.is_done() && !child.is_done());
        tick();
        let askers = [ctx.clone(), child.clone()].map(|ctx| thread::spawn(move || ctx.err()));
        ctx.cancel_with("too late");
        let error = one_story([ctx.context(), &child]);
        assert!(error.is_deadline_exceeded());
        for asker in askers {
            same(&error, &asker.join().unwrap().expect("has passed"));
        }
        drop((ctx, child));
        roll.is_gone();
    });
}

/// The deadline passes while the context is canceled. Either may be first, and all queries agree.
#[test]
fn it_passes_against_cancel() {
    explore([2, 1], || {
        let ctx = Context::background().with_timeout(SECOND);
        let child = chain(&ctx, 1).remove(1);
        let clock = thread::spawn({
            let child = child.clone();
            move || {
                tick();
                story(&child)
            }
        });
        ctx.cancel_with("why");
        let mine = one_story([&ctx, &child]);
        same(&mine, &clock.join().unwrap());
        assert!(mine.is_deadline_exceeded() || why(&mine) == "why");
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
            story(&below)
        }
    });
    let seen = below.err().expect("its deadline has passed");
    assert!(seen.is_deadline_exceeded());
    same(&seen, &ender.join().unwrap());
    same(&seen, &one_story([&child, &below]));
    assert_eq!(why(&story(&parent)), "why");
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
    explore([4, 3], || {
        let parent = Context::background().with_timeout(2 * SECOND);
        let child = parent.with_timeout(SECOND);
        tick();
        tick();
        let asker = thread::spawn({
            let parent = parent.clone();
            move || story(&parent)
        });
        let childs = story(&child);
        same(&asker.join().unwrap(), &story(&parent));
        assert_eq!(childs.origin().budget(), Some(SECOND));
        assert_eq!(story(&parent).origin().budget(), Some(2 * SECOND));
    });
}

/// A deadline in the middle of a linked chain has passed. One thread closes the path from there, another one cancels the
/// root. All contexts below the owner of the deadline end by it, and have ended when the cancel returns.
fn settle_against_cancel_of_the_root(levels_between: usize) {
    let (root, guard) = Context::background().with_cancel().split();
    let timed = chain(&root, levels_between)[levels_between].with_timeout(SECOND).detach();
    let below = chain(&timed, 2);
    let roll = Roll::of([&root].into_iter().chain(&below));
    // Linked without a wait, because a wait would start a timer.
    assert!(token(&below[2]).link());
    tick();
    let ender = thread::spawn({
        let below = below.clone();
        move || {
            guard.cancel_with("why");
            all_done(below.iter().rev());
            story(&below[1])
        }
    });
    let seen = below[2].err().expect("its deadline has passed");
    assert!(seen.is_deadline_exceeded());
    same(&seen, &ender.join().unwrap());
    same(&seen, &one_story(&below));
    assert_eq!(why(&story(&root)), "why");
    drop((root, timed, below));
    roll.is_gone();
}

#[test]
fn settle_against_cancel_of_the_parent() {
    explore([3, 1], || settle_against_cancel_of_the_root(0));
}

#[test]
fn settle_against_cancel_two_levels_up() {
    explore([3, 1], || settle_against_cancel_of_the_root(1));
}

/// The clock advances in the meantime, so that the cancel is before or after the deadline. All contexts below agree.
#[test]
fn settle_against_cancel_as_the_deadline_passes() {
    explore([2, 1], || {
        let (root, guard) = Context::background().with_cancel().split();
        let timed = root.with_timeout(SECOND).detach();
        let below = chain(&timed, 2);
        assert!(token(&below[2]).link());
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                guard.cancel_with("why");
                all_done(below.iter().rev());
                one_story(below.iter().rev())
            }
        });
        tick();
        let seen = below[2].err().expect("its deadline has passed");
        same(&seen, &ender.join().unwrap());
        same(&seen, &one_story(&below));
        let roots = story(&root);
        assert_eq!(why(&roots), "why");
        // The cancel's clock is read before it is published: the deadline may still come in between.
        let is_late = roots.origin().ended_at() >= timed.deadline().expect("it has one");
        assert!(seen.is_deadline_exceeded() || (why(&seen) == "why" && !is_late));
    });
}

/// The owner of the deadline is canceled while one thread closes the path, and another one closes the whole tree. When the
/// call returns, all contexts below have ended.
#[test]
fn settle_against_cancel_against_cancel_of_the_owner() {
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
                all_done(below.iter().rev());
            }
        });
        let seen = below[2].err().expect("its deadline has passed");
        ender.join().unwrap();
        second.join().unwrap();
        same(&seen, &one_story(&below));
        assert!(seen.is_deadline_exceeded());
    });
}

/// A wait on a parent without a deadline is not woken when the deadline of the child passes.
#[test]
fn settle_wakes_only_what_is_below() {
    explore([3, 1], || {
        let root = Context::background().with_cancel();
        let mut above = Waiter::waiting_on(&root);
        let timed = root.with_timeout(SECOND).detach();
        let below = chain(&timed, 1).remove(1);
        tick();
        let asker = thread::spawn({
            let below = below.clone();
            move || story(&below)
        });
        let mine = story(&timed);
        same(&mine, &asker.join().unwrap());
        assert!(!above.is_roused() && !above.poll());
        root.cancel_with("why");
        above.finish(&story(&root));
    });
}
