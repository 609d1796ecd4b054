//! Depth: a walk that stops half-way up, at an anchor, misses no end that is known.

use loom::thread;

use super::{Roll, Waiter, chain, explore, explore_exact, one_story, same, story, why};
use crate::Context;

/// A chain, and whether anchors lie in it: then somebody has looked up from below each.
fn with_anchors(root: &Context, levels: usize, laid: bool) -> Vec<Context> {
    let all = chain(root, levels);
    if laid {
        assert!(!chain(&all[levels], 1)[1].is_done());
    }
    all
}

/// Who has seen an ancestor ended sees all below it ended, whoever is still pushing the end down.
fn seen_above_is_seen_below(levels: usize, laid: bool, looks: &'static [usize]) {
    let (root, guard) = Context::background().with_cancel().split();
    let all = with_anchors(&root, levels, laid);
    let roll = Roll::of(&all);
    let ender = thread::spawn(move || guard.cancel_with("why"));
    for &look in looks {
        if all[look].is_done() {
            assert!(all[look..].iter().rev().all(Context::is_done), "ended above, and not below");
            assert!(all[..look].iter().all(Context::is_done), "told by one that goes on");
        }
    }
    ender.join().unwrap();
    assert_eq!(why(&one_story(&all)), "why");
    drop((root, all));
    roll.is_gone();
}

#[test]
fn seen_above_is_seen_below_without_an_anchor() {
    explore([5, 3], || seen_above_is_seen_below(3, false, &[0, 1, 2]));
}

#[test]
fn seen_above_is_seen_at_the_anchor() {
    explore([4, 2], || seen_above_is_seen_below(4, true, &[0, 2]));
}

#[test]
fn seen_above_is_seen_below_the_anchor() {
    explore([3, 2], || seen_above_is_seen_below(5, true, &[0, 3]));
}

/// The first look from below lays the anchor while the root ends.
#[test]
fn seen_above_is_seen_below_an_anchor_being_laid() {
    explore([3, 1], || seen_above_is_seen_below(5, false, &[5, 0]));
}

#[test]
fn seen_above_is_seen_below_two_anchors() {
    explore([3, 1], || seen_above_is_seen_below(9, true, &[0]));
}

#[test]
fn seen_above_is_seen_below_two_anchors_being_laid() {
    explore([2, 1], || seen_above_is_seen_below(9, false, &[9]));
}

/// One thread tells another, by nothing but its answer, that the root has ended.
#[test]
fn told_by_a_third_thread() {
    explore([3, 0], || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = with_anchors(&root, 5, true);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let asker = thread::spawn({
            let (middle, leaf) = (all[2].clone(), all[5].clone());
            move || {
                if middle.is_done() {
                    assert!(leaf.is_done(), "ended above, and not below");
                }
            }
        });
        if root.is_done() {
            assert!(all[5].is_done(), "ended above, and not below");
            assert!(all[4].is_done(), "ended above, and not below");
        }
        ender.join().unwrap();
        asker.join().unwrap();
        one_story(&all);
    });
}

/// Two lay the same anchor from two leaves below it, while the root ends.
#[test]
fn two_lay_an_anchor_against_cancel() {
    explore_exact(2, || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = chain(&root, 5);
        let other = chain(&all[4], 1).remove(1);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let asker = thread::spawn({
            let other = other.clone();
            move || other.is_done()
        });
        let mine = all[5].is_done();
        if mine {
            assert!(other.is_done(), "ended above, and not below");
        }
        asker.join().unwrap();
        ender.join().unwrap();
        one_story(all.iter().chain([&other]));
    });
}

/// An anchor is dropped, and another takes its place, while the root ends.
#[test]
fn drop_of_an_anchor_against_cancel() {
    explore([3, 2], || {
        let (root, guard) = Context::background().with_cancel().split();
        let mut all = with_anchors(&root, 4, true);
        let roll = Roll::of(&all);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        drop(all.remove(4));
        let next = chain(&all[3], 2).remove(2);
        next.is_done();
        if root.is_done() {
            assert!(next.is_done(), "ended above, and not below");
        }
        ender.join().unwrap();
        one_story(all.iter().chain([&next]));
        drop((root, all, next));
        roll.is_gone();
    });
}

/// What was marked by an anchor that has gone again ends, and no push is left behind.
#[test]
fn cancel_where_an_anchor_was() {
    explore([5, 3], || {
        let root = Context::background().with_cancel();
        let mut all = with_anchors(&root, 4, true);
        let roll = Roll::of(&all);
        let canceler = root.canceler();
        drop(all.remove(4));
        let ender = thread::spawn(move || canceler.cancel_with("one"));
        root.cancel_with("two");
        ender.join().unwrap();
        one_story(&all);
        drop((root, all));
        roll.is_gone();
    });
}

/// A leaf below an anchor settles its path, from the root's end down, while the root pushes it: the
/// two meet half-way.
#[test]
fn settling_against_pushing() {
    explore([3, 1], || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = with_anchors(&root, 5, true);
        let mut waiter = Waiter::on(&all[5]);
        assert!(!waiter.poll());
        let ender = thread::spawn({
            let all = all.clone();
            move || {
                guard.cancel_with("why");
                assert!(all[5].is_done());
                story(&all[4])
            }
        });
        let middle = all[1].err();
        let leaf = all[5].err();
        if let Some(middle) = &middle {
            same(middle, leaf.as_ref().expect("ended above, and not below"));
        }
        same(&ender.join().unwrap(), &one_story(&all));
        waiter.finish(&story(&all[5]));
    });
}
