//! Deadlines that nobody waits on: the first to read the clock late enough ends the context for all.

use std::time::Duration;

use loom::thread;

use super::{Roll, chain, explore, one_story, same, story, why};
use crate::Context;
use crate::sync::tick;

const SECOND: Duration = Duration::from_secs(1);

/// Two see that the deadline has passed while a third cancels, too late.
#[test]
fn two_see_it_pass_while_a_third_cancels() {
    explore([3, 1], || {
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

/// It passes while it is cancelled: either may be first, and all say which.
#[test]
fn it_passes_against_cancel() {
    explore([3, 2], || {
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

/// A child's deadline passes before its parent is cancelled, whoever is the first to look, and whether
/// or not the child is in its parent's list.
fn child_before_parent(linked: bool) {
    let (parent, guard) = Context::background().with_cancel().split();
    let child = parent.with_timeout(SECOND);
    let below = chain(&child, 1).remove(1);
    if linked {
        assert!(below.token().expect("not the background").link());
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
    explore([4, 2], || child_before_parent(true));
}

#[test]
fn child_before_parent_out_of_the_list() {
    explore([4, 2], || child_before_parent(false));
}

/// A child with the earlier deadline of its own, and both pass: the child's is its story.
#[test]
fn two_deadlines_pass_at_once() {
    explore([5, 3], || {
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
