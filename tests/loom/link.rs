//! Registration: a path is linked once, from the top down, however many want it at once.

use loom::thread;

use super::{Roll, Waiter, census, chain, explore, one_story, why};
use crate::Context;

/// Two leaves below one parent wait for the first time, at once: each token on the way sits once.
fn two_leaves(cancels: bool) {
    let (root, guard) = Context::background().with_cancel().split();
    let middle = chain(&root, 1).remove(1);
    let [one, two] = [(); 2].map(|()| chain(&middle, 1).remove(1));
    let roll = Roll::of([&root, &middle, &one, &two]);
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
            assert_eq!([&root, &middle, &one, &two].map(|ctx| census(ctx).0), [1, 2, 1, 1]);
            assert!(waiting.iter().all(|waiter| waiter.told.is_none()));
        }
    }
    if let Some(guard) = guard {
        guard.cancel_with("why");
    }
    let error = one_story([&root, &middle, &one, &two]);
    assert_eq!(why(&error), "why");
    waiting.into_iter().for_each(|waiter| waiter.finish(&error));
    drop((root, middle, one, two));
    roll.is_gone();
}

#[test]
fn two_leaves_link_at_once() {
    explore([4, 3], || two_leaves(false));
}

#[test]
fn two_leaves_link_while_the_root_ends() {
    explore([3, 2], || two_leaves(true));
}

/// A leaf and its own parent wait for the first time, at once.
#[test]
fn parent_and_leaf_link_at_once() {
    explore([3, 2], || {
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
        assert_eq!(all.iter().map(|ctx| census(ctx).0).collect::<Vec<_>>(), [1, 1, 2, 1]);
        root.cancel_with("why");
        let error = one_story(&all);
        above.finish(&error);
        below.finish(&error);
    });
}

/// Linked by two, and let go by two: the lists are empty again, and the root goes on.
#[test]
fn two_leaves_come_and_go() {
    explore([4, 3], || {
        let root = Context::background().with_cancel();
        let mut all = chain(&root, 1);
        let [one, two] = [(); 2].map(|()| chain(&all[1], 1).remove(1));
        let roll = Roll::of([&all[1], &one, &two]);
        all.truncate(1);
        let other = thread::spawn(move || {
            assert!(!Waiter::on(&one).poll());
            drop(one);
        });
        assert!(!Waiter::on(&two).poll());
        drop(two);
        other.join().unwrap();
        assert_eq!(census(&root), (0, 0));
        roll.is_gone();
    });
}
