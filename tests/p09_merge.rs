//! Promise 9, *merge*: a merged context ends when either parent does, with that parent's error. The earlier
//! deadline applies. The values of `self` come first, then those of `other`.

mod common;

use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::{
    Cause, Dice, LONG, Wakes, answer, assert_same, ended, ms, on_both, poll, poll_once, same,
    spin_until, watched, word,
};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Context};

static BACKGROUND: Context = Context::background();

/// The ways in which a scope, or the guard split from it, can end its context.
const WAYS: [fn(CancelScope); 4] = [
    |scope| scope.cancel(),
    |scope| scope.cancel_with(Cause("by way")),
    drop,
    |scope| drop(scope.split().1),
];

#[test]
fn either_parent_ends_it_with_its_own_error() {
    for way in WAYS {
        for which in [0, 1] {
            for waited in [false, true] {
                let (left, right) = (BACKGROUND.with_cancel(), BACKGROUND.with_cancel());
                let merged = left.merge(&right);
                assert!(answer(&merged).is_none());
                let (wakes, waker) = Wakes::new();
                let mut wait = pin!(merged.done());
                if waited {
                    assert!(poll(wait.as_mut(), &waker).is_pending());
                }
                let [scope, second] = if which == 0 { [left, right] } else { [right, left] };
                let first = scope.clone();
                way(scope);
                assert_eq!(wakes.count(), usize::from(waited));
                assert!(merged.is_done());
                assert_same(&ended(&merged), &ended(&first));
                assert!(poll(wait.as_mut(), &waker).is_ready());
                assert!(answer(&second).is_none(), "the end reached an ancestor");
            }
        }
    }
}

#[tokio::test]
async fn its_own_scope_ends_neither_parent() {
    for way in WAYS {
        let left = BACKGROUND.with_cancel();
        let right = BACKGROUND.with_timeout(LONG);
        let scope = left.merge(&right);
        let merged = scope.clone();
        way(scope);
        assert!(ended(&merged).is_canceled());
        assert!(answer(&left).is_none());
        assert!(answer(&right).is_none());
    }
}

#[test]
fn the_first_of_both_ends_applies() {
    for which in [0, 1] {
        for waited in [false, true] {
            let (left, right) = (BACKGROUND.with_cancel(), BACKGROUND.with_cancel());
            let merged = left.merge(&right);
            let below = merged.with_cancel();
            if waited {
                assert!(poll_once(below.done()).is_pending());
            }
            let (first, second) = if which == 0 { (&left, &right) } else { (&right, &left) };
            first.cancel_with(Cause("first"));
            second.cancel_with(Cause("second"));
            merged.cancel_with(Cause("third"));
            assert_eq!(word(&ended(&merged)), Some("first"));
            assert_same(&ended(&below), &ended(&merged));
        }
    }
}

/// The parents end one after the other on the paused clock, in every way, without a query in between.
#[tokio::test(start_paused = true)]
async fn the_first_end_applies_although_unobserved() {
    for way in WAYS {
        for which in [0, 1] {
            let (left, right) = (BACKGROUND.with_cancel(), BACKGROUND.with_cancel());
            let merged = left.merge(&right);
            let (first, second) = if which == 0 { (left, right) } else { (right, left) };
            let (first_ctx, _second_ctx) = (first.clone(), second.clone());
            way(first);
            advance(ms(10)).await;
            way(second);
            advance(ms(10)).await;
            assert_same(&ended(&merged), &ended(&first_ctx));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_of_either_parent_applies() {
    let start = Instant::now();
    for (left_ms, right_ms, own) in [(100, 200, 0), (200, 100, 1)] {
        let left = BACKGROUND.with_timeout(ms(left_ms));
        let right = BACKGROUND.with_timeout(ms(right_ms));
        let merged = left.merge(&right);
        let first = [&left, &right][own];
        assert_eq!(merged.deadline(), first.deadline());
        assert_eq!(merged.remaining(), Some(ms(100)));
        let below = merged.with_timeout(LONG);
        assert_eq!(below.deadline(), first.deadline());
        let sooner = merged.with_timeout(ms(5));
        assert_eq!(sooner.remaining(), Some(ms(5)));
    }
    let timed = BACKGROUND.with_timeout(ms(100));
    assert_eq!(timed.merge(&BACKGROUND).deadline(), Some(start + ms(100)));
    assert_eq!(BACKGROUND.merge(&timed).deadline(), Some(start + ms(100)));
    let free = BACKGROUND.with_cancel();
    let other = BACKGROUND.with_cancel();
    assert_eq!(free.merge(&other).deadline(), None);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_earlier_deadline_with_its_error() {
    for swap in [false, true] {
        let start = Instant::now();
        let one = BACKGROUND.with_timeout_cause(ms(100), Cause("one"));
        let two = BACKGROUND.with_timeout_cause(ms(200), Cause("two"));
        let merged = if swap { two.merge(&one) } else { one.merge(&two) };
        let below = merged.with_cancel();
        let reported = below.done().await;
        assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
        assert_eq!(word(&reported), Some("one"));
        for ctx in [&merged, &one, &below] {
            assert_same(&ended(ctx), &reported);
        }
        assert!(answer(&two).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unobserved_deadline_of_either_parent_ends_it() {
    for case in 0..8 {
        let (swap, looked, waited) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
        let timed = BACKGROUND.with_timeout(ms(100));
        let free = BACKGROUND.with_cancel();
        let merged = if swap { free.merge(&timed) } else { timed.merge(&free) };
        let below = merged.with_cancel();
        advance(ms(99)).await;
        // Does not use `answer`, whose wait could leave a timer behind that detects the deadline.
        assert!(!merged.is_done() && !below.is_done());
        let mut wait = pin!(below.done());
        if waited {
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        }
        advance(ms(1)).await;
        if looked {
            assert!(merged.is_done());
        }
        advance(ms(1)).await;
        free.cancel_with(Cause("too late"));
        assert_same(&ended(&below), &ended(&timed));
        assert_same(&ended(&merged), &ended(&timed));
        assert!(ended(&merged).is_deadline_exceeded());
    }
}

/// A deadline that passes at the time of a cancel was first. One that passes a nanosecond later was not.
#[tokio::test(start_paused = true)]
async fn an_end_and_a_deadline_are_compared_to_the_nanosecond() {
    for case in 0..8 {
        let (swap, waited, later) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
        let at = Instant::now() + ms(5);
        let timed = BACKGROUND.with_deadline(at + Duration::from_nanos(later.into()));
        let free = BACKGROUND.with_cancel();
        let merged = if swap { free.merge(&timed) } else { timed.merge(&free) };
        let below = merged.with_cancel();
        let mut wait = pin!(below.done());
        if waited {
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        }
        advance(ms(5)).await;
        free.cancel();
        let first = if later { ended(&free) } else { ended(&timed) };
        assert_eq!(first.is_canceled(), later);
        assert_same(&ended(&below), &first);
        assert_same(&ended(&merged), &first);
    }
}

#[test]
fn values_come_from_self_first_then_from_other() {
    let left = BACKGROUND.with_value("left").with_value(1_u8);
    let right = BACKGROUND.with_value("right").with_value(2_u16);
    let merged = left.merge(&right);
    assert_eq!(merged.value(), Some(&"left"));
    assert_eq!(merged.value(), Some(&1_u8));
    assert_eq!(merged.value(), Some(&2_u16));
    assert_eq!(merged.value::<u32>(), None);
    let other = right.merge(&left);
    assert_eq!(other.value(), Some(&"right"));
    assert_eq!(other.value(), Some(&1_u8));
    let nearest = merged.with_value("nearest");
    assert_eq!(nearest.value(), Some(&"nearest"));
    assert_eq!(left.value::<u16>(), None, "a value is visible in an ancestor");
    // `without_cancel` keeps the values.
    assert_eq!(other.without_cancel().value(), Some(&2_u16));
}

#[test]
fn merging_with_background_or_itself_or_a_relative_is_a_child() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    let merges = [
        parent.merge(&BACKGROUND),
        BACKGROUND.merge(&parent),
        parent.merge(&parent),
        parent.merge(&child),
        child.merge(&parent),
        parent.merge(&parent.clone()),
        parent.merge(&parent.without_cancel()),
    ];
    let never = BACKGROUND.merge(&Context::todo());
    for merged in &merges {
        assert!(answer(merged).is_none());
    }
    child.cancel_with(Cause("child"));
    for (at, merged) in merges.iter().enumerate() {
        assert_eq!(merged.is_done(), at == 3 || at == 4, "merge {at}");
    }
    parent.cancel_with(Cause("parent"));
    for (at, merged) in merges.iter().enumerate() {
        let expected = if at == 3 || at == 4 { "child" } else { "parent" };
        assert_eq!(word(&ended(merged)), Some(expected), "merge {at}");
    }
    assert!(answer(&never).is_none());
}

#[test]
fn descendants_of_a_merge_end_with_it() {
    let left = BACKGROUND.with_cancel();
    let right = BACKGROUND.with_cancel();
    let mut chain = vec![left.merge(&right)];
    for _ in 0..50 {
        let next = chain.last().unwrap().with_cancel();
        chain.push(next);
    }
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(chain[50].done());
    assert!(poll(wait.as_mut(), &waker).is_pending());
    right.cancel_with(Cause("right"));
    assert_eq!(wakes.count(), 1);
    for ctx in chain.iter().rev() {
        assert!(ctx.is_done());
        assert_same(&ended(ctx), &ended(&right));
    }
}

#[test]
fn an_ancestor_of_either_parent_ends_it() {
    for which in [0, 1] {
        for waited in [false, true] {
            let roots = [BACKGROUND.with_cancel(), BACKGROUND.with_cancel()];
            let mut sides = [roots[0].context().clone(), roots[1].context().clone()];
            let mut scopes = Vec::new();
            for side in &mut sides {
                for _ in 0..20 {
                    let next = side.with_cancel();
                    *side = next.clone();
                    scopes.push(next);
                }
            }
            let merged = sides[0].merge(&sides[1]);
            let below = merged.with_cancel();
            if waited {
                assert!(poll_once(below.done()).is_pending());
            }
            roots[which].cancel_with(Cause("root"));
            assert!(below.is_done());
            assert_same(&ended(&below), &ended(&roots[which]));
            assert_same(&ended(&merged), &ended(&below));
            assert!(answer(&sides[1 - which]).is_none());
        }
    }
}

/// Paths that fork and merge forty times: 2^40 paths to the root, and an immediate result.
#[test]
fn merges_of_merges_are_queried_in_no_time() {
    watched(|| {
        let runtime = common::current_thread(); // for the timers that `done` needs
        let _entered = runtime.enter();
        for waited in [false, true] {
            let root = BACKGROUND.with_cancel();
            let (mut bottom, mut scopes) = (root.clone(), Vec::new());
            while scopes.len() < 120 {
                let (a, b) = (bottom.with_cancel(), bottom.with_timeout(LONG));
                let merged = a.merge(&b);
                bottom = merged.clone();
                scopes.extend([a, b, merged]);
            }
            assert!(!bottom.is_done());
            if waited {
                assert!(poll_once(bottom.done()).is_pending());
            }
            root.cancel_with(Cause("top"));
            assert_eq!(word(&ended(&bottom)), Some("top"));
        }
    });
}

/// Random graphs of derivations and merges. After one context is canceled, exactly its descendants have ended.
#[test]
fn an_end_propagates_along_every_edge_and_no_other() {
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let mut nodes: Vec<(CancelScope, Vec<usize>)> = Vec::new();
        for _ in 0..3 {
            nodes.push((BACKGROUND.with_cancel(), vec![]));
        }
        while nodes.len() < 60 {
            let (a, b) = (dice.roll(nodes.len()), dice.roll(nodes.len()));
            let (ctx, parents) = match dice.roll(3) {
                0 => (nodes[a].0.merge(&nodes[b].0), vec![a, b]),
                _ => (nodes[a].0.with_cancel(), vec![a]),
            };
            if dice.roll(4) == 0 {
                assert!(poll_once(ctx.done()).is_pending());
            }
            nodes.push((ctx, parents));
        }
        let cut = dice.roll(20);
        nodes[cut].0.cancel_with(Cause("cut"));
        let mut reached = vec![false; nodes.len()];
        for at in 0..nodes.len() {
            reached[at] = at == cut || nodes[at].1.iter().any(|&parent| reached[parent]);
        }
        let mut order: Vec<_> = (0..nodes.len()).collect();
        dice.shuffle(&mut order);
        for at in order {
            assert_eq!(nodes[at].0.is_done(), reached[at], "seed {seed}, node {at}, cut {cut}");
            if reached[at] {
                assert_same(&ended(&nodes[at].0), &ended(&nodes[cut].0));
            }
        }
    }
}

#[test]
fn dropping_the_handle_of_one_parent_leaves_it_to_the_other() {
    for which in [0, 1] {
        let (left, left_guard) = BACKGROUND.with_cancel().split();
        let (right, right_guard) = BACKGROUND.with_cancel().split();
        let merged = left.merge(&right);
        let mut wait = pin!(merged.done());
        assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        drop((left, right));
        assert!(answer(&merged).is_none());
        [left_guard, right_guard][which].cancel_with(Cause("gone"));
        assert_eq!(word(&ended(&merged)), Some("gone"));
    }
}

/// Both parents are canceled at the same time, with different causes. The merged context and all its
/// descendants have the same one.
#[test]
fn both_parents_ending_at_once_make_one_error() {
    watched(|| {
        for round in 0..1000 {
            let (left, left_guard) = BACKGROUND.with_cancel().split();
            let (right, right_guard) = BACKGROUND.with_cancel().split();
            let merged = left.merge(&right);
            let below = merged.with_cancel();
            if round % 2 == 0 {
                assert!(poll_once(below.done()).is_pending());
            }
            let start = Arc::new(Barrier::new(3));
            let cancels = [(left_guard, "left"), (right_guard, "right")].map(|(guard, side)| {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    guard.cancel_with(Cause(side));
                })
            });
            start.wait();
            spin_until(|| below.is_done());
            let error = ended(&below);
            assert_same(&ended(&merged), &error);
            for cancel in cancels {
                cancel.join().unwrap();
            }
            assert_same(&ended(&merged), &error);
            assert_same(&ended(&below), &error);
            let source = if word(&error) == Some("left") { &left } else { &right };
            assert!(same(&ended(source), &error), "round {round}");
        }
    });
}

#[test]
fn waiting_on_a_merge_works_on_every_runtime() {
    on_both(|| async {
        for which in [0, 1] {
            let (left, right) = (BACKGROUND.with_cancel(), BACKGROUND.with_cancel());
            let merged = left.merge(&right);
            let waits: Vec<_> = (0..10).map(|_| tokio::spawn(merged.done_owned())).collect();
            tokio::task::yield_now().await;
            [&left, &right][which].cancel_with(Cause("either"));
            for wait in waits {
                assert_eq!(word(&wait.await.unwrap()), Some("either"));
            }
            drop(merged);
        }
    });
}
