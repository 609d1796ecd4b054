//! Linking. A path is linked once, from the top down, by any number of threads.

use loom::thread;

use super::{
    Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    explore_exact, registrations,
};
use crate::Context;

/// Two leaves below one parent wait for the first time, at once. Each token on the path is in one list, once.
fn two_leaves(cancels: bool) {
    let (root, guard) = Context::background().with_cancel().split();
    let middle = chain(&root, 1).remove(1);
    let [one, two] = [(); 2].map(|()| chain(&middle, 1).remove(1));
    let tokens = WeakTokens::of([&root, &middle, &one, &two]);
    let other = thread::spawn({
        let mut waiter = Waiter::on(&one);
        move || {
            waiter.poll();
            waiter
        }
    });
    let mut waiter = Waiter::on(&two);
    let mut guard = Some(guard);
    let ender = cancels.then(|| guard.take()).flatten().map(|guard| {
        thread::spawn(move || {
            guard.cancel_with("why");
        })
    });
    waiter.poll();
    let waiting = [other.join().unwrap(), waiter];
    match ender {
        Some(ender) => ender.join().unwrap(),
        None => {
            assert_eq!([&root, &middle, &one, &two].map(registrations), [1, 2, 1, 1]);
            assert!(waiting.iter().all(|waiter| waiter.error.is_none()));
        }
    }
    if let Some(guard) = guard {
        guard.cancel_with("why");
    }
    let error = common_error([&root, &middle, &one, &two]);
    assert_eq!(cause_text(&error), "why");
    waiting.into_iter().for_each(|waiter| waiter.finish(&error));
    drop((root, middle, one, two));
    tokens.assert_dropped();
}

#[test]
fn two_leaves_link_at_once() {
    explore([8, 5], || two_leaves(false));
}

#[test]
fn two_leaves_link_while_the_root_ends() {
    explore([3, 0], || two_leaves(true));
}

/// A leaf and its own parent wait for the first time, at once.
#[test]
fn parent_and_leaf_link_at_once() {
    explore([4, 3], || {
        let root = Context::background().with_cancel();
        let all = chain(&root, 3);
        let mut above = Waiter::on(&all[2]);
        let mut below = Waiter::on(&all[3]);
        let other = thread::spawn(move || {
            assert!(!above.poll());
            above
        });
        assert!(!below.poll());
        let above = other.join().unwrap();
        assert_eq!(all.iter().map(registrations).collect::<Vec<_>>(), [1, 1, 2, 1]);
        root.cancel_with("why");
        let error = common_error(&all);
        above.finish(&error);
        below.finish(&error);
    });
}

/// Two threads link, and two drop. The lists are empty again, and the root has not ended.
#[test]
fn two_leaves_linked_and_dropped() {
    explore([6, 4], || {
        let root = Context::background().with_cancel();
        let mut all = chain(&root, 1);
        let [one, two] = [(); 2].map(|()| chain(&all[1], 1).remove(1));
        let tokens = WeakTokens::of([&all[1], &one, &two]);
        all.truncate(1);
        let other = thread::spawn(move || {
            Waiter::waiting_on(&one).drop_wait().assert_dropped();
            drop(one);
        });
        Waiter::waiting_on(&two).drop_wait().assert_dropped();
        drop(two);
        other.join().unwrap();
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
    });
}

/// A query that walks up more than three levels links the path. Two threads query one leaf, or two leaves below one parent,
/// at once. Each token on the path is linked once.
fn two_walks(leaves: usize, levels: usize) {
    let root = Context::background().with_cancel();
    let all = chain(&root, levels);
    let others = [all[levels].clone(), chain(&all[levels - 1], 1).remove(1)];
    let tokens = WeakTokens::of(all.iter().chain(&others));
    let other = thread::spawn({
        let leaf = others[leaves - 1].clone();
        move || assert!(!leaf.is_done())
    });
    assert!(!all[levels].is_done());
    other.join().unwrap();
    assert!(all[..levels - 1].iter().all(|ctx| registrations(ctx) == 1), "the path is linked, once");
    assert_eq!(registrations(&all[levels - 1]), 0, "the leaf is not");
    root.cancel_with("why");
    common_error(all.iter().chain(&others));
    drop((root, all, others));
    tokens.assert_dropped();
}

#[test]
fn one_leaf_walks_up_twice() {
    explore([3, 2], || two_walks(1, 4));
}

#[test]
fn two_leaves_walk_up_at_once() {
    explore([3, 2], || two_walks(2, 4));
}

#[test]
fn two_leaves_walk_up_six_levels_at_once() {
    explore_exact(3, || two_walks(2, 6));
}

/// Two threads link a long path from two leaves while the root ends. When the cancel returns, both leaves have ended.
#[test]
fn two_walks_against_cancel() {
    explore_exact(2, || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = chain(&root, 4);
        let other = chain(&all[3], 1).remove(1);
        let tokens = WeakTokens::of(all.iter().chain([&other]));
        let ender = thread::spawn({
            let leaves = [all[4].clone(), other.clone()];
            move || {
                guard.cancel_with("why");
                assert_all_done(&leaves);
            }
        });
        let query = thread::spawn({
            let other = other.clone();
            move || other.err()
        });
        let mine = all[4].err();
        let theirs = query.join().unwrap();
        ender.join().unwrap();
        let error = common_error(all.iter().chain([&other]));
        mine.iter().chain(&theirs).for_each(|seen| assert_same(seen, &error));
        drop((root, all, other));
        tokens.assert_dropped();
    });
}

/// A long walk links its path while the root ends. A query and a wait after the cancel observe it. The next walk is short.
fn walk_against_cancel(levels: usize) {
    let (root, guard) = Context::background().with_cancel().split();
    let all = chain(&root, levels);
    let tokens = WeakTokens::of(&all);
    let ender = thread::spawn({
        let all = all.clone();
        move || {
            guard.cancel_with("why");
            assert_all_done(all.iter().rev());
        }
    });
    let seen = all[levels].err();
    let mut waiter = Waiter::on(&all[levels]);
    assert!(waiter.poll() || seen.is_none(), "two answers");
    ender.join().unwrap();
    let error = common_error(&all);
    seen.iter().for_each(|seen| assert_same(seen, &error));
    waiter.finish(&error);
    drop((root, all));
    tokens.assert_dropped();
}

#[test]
fn long_walk_against_cancel() {
    explore([3, 0], || walk_against_cancel(4));
}

#[test]
fn longer_walk_against_cancel() {
    explore([2, 0], || walk_against_cancel(6));
}

/// A context in the middle of a long path ends while the path is linked.
#[test]
fn long_walk_against_cancel_in_the_middle() {
    explore([3, 0], || {
        let root = Context::background().with_cancel();
        let above = chain(&root, 2);
        let (middle, guard) = above[2].with_cancel().split();
        let below = chain(&middle, 3);
        let tokens = WeakTokens::of(above.iter().chain(&below));
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                guard.cancel_with("why");
                assert_all_done(below.iter().rev());
            }
        });
        let mut waiter = Waiter::on(&below[3]);
        below[3].is_done();
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&common_error(&below));
        assert!(above.iter().all(|ctx| !ctx.is_done()));
        drop((root, above, middle, below));
        tokens.assert_dropped();
    });
}

/// One thread links a long path from its leaf, the other one from the parent of the leaf. Both drop all of it, and the root
/// has not ended.
#[test]
fn long_walk_against_drop_of_the_branch() {
    explore([3, 1], || {
        let root = Context::background().with_cancel();
        let mut all = chain(&root, 5);
        let tokens = WeakTokens::of(&all[1..]);
        let (leaf, parent) = (all.remove(5), all.remove(4));
        drop(all);
        let walker = thread::spawn(move || assert!(!leaf.is_done()));
        let waiter = Waiter::waiting_on(&parent);
        drop(parent);
        waiter.drop_wait().assert_dropped();
        walker.join().unwrap();
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
    });
}

/// A merged context is linked to both parents, or to no parent that has not ended, while one of the parents ends. Merging
/// links that parent as well.
#[test]
fn merge_links_a_path_against_cancel() {
    explore([4, 1], || {
        let one = Context::background().with_cancel();
        let (two, guard) = Context::background().with_cancel().split();
        let (ones, twos) = (chain(&one, 1), chain(&two, 2));
        let tokens = WeakTokens::of(ones.iter().chain(&twos));
        let ender = thread::spawn(move || guard.cancel_with("two"));
        let both = ones[1].merge(&twos[2]).detach();
        let leaf = chain(&both, 1).remove(1);
        let mut waiter = Waiter::on(&leaf);
        waiter.poll();
        ender.join().unwrap();
        waiter.finish(&common_error(twos.iter().chain([&both, &leaf])));
        assert!(ones.iter().all(|ctx| !ctx.is_done()));
        drop((both, leaf, ones));
        assert_eq!(registrations(&one), 0);
        drop((one, two, twos));
        tokens.assert_dropped();
    });
}
