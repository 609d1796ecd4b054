//! Promise 2, *down, never up*: when `cancel()` returns, every descendant has ended with the parent's error. A
//! child's end affects neither its parent nor its siblings.

mod common;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use common::{
    Cause, Dice, LONG, Wakes, answer, assert_same, ended, ms, on_both, poll, poll_once, spin_until,
    watched, word,
};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// One child of each kind that ends with its parent.
fn one_of_each(parent: &Context) -> Vec<(&'static str, Context, Option<CancelScope>)> {
    let in_an_hour = Instant::now() + LONG;
    let scoped = |name, scope: CancelScope| (name, scope.clone(), Some(scope));
    vec![
        scoped("with_cancel", parent.with_cancel()),
        scoped("with_deadline", parent.with_deadline(in_an_hour)),
        scoped("with_deadline_cause", parent.with_deadline_cause(in_an_hour, "slow")),
        scoped("with_timeout", parent.with_timeout(LONG)),
        scoped("with_timeout_cause", parent.with_timeout_cause(LONG, "slow")),
        scoped("merge, left", parent.merge(&Context::background())),
        scoped("merge, right", Context::background().merge(parent)),
        scoped("with_token", parent.with_token(&CancellationToken::new())),
        ("with_value", parent.with_value(1_u8), None),
        ("clone", parent.clone(), None),
    ]
}

#[tokio::test]
async fn cancel_reaches_children_of_every_kind_before_it_returns() {
    let parent = BACKGROUND.with_cancel();
    let children = one_of_each(&parent);
    let grandchildren: Vec<_> = children.iter().flat_map(|(_, ctx, _)| one_of_each(ctx)).collect();
    for (name, ctx, _) in children.iter().chain(&grandchildren) {
        assert!(answer(ctx).is_none(), "{name} ended too soon");
    }
    parent.cancel_with(Cause("all of you"));
    let error = parent.err().unwrap();
    for (name, ctx, _) in children.iter().chain(&grandchildren) {
        assert!(ctx.is_done(), "{name} did not end");
        assert_same(&ended(ctx), &error);
    }
}

#[tokio::test]
async fn a_childs_end_of_any_kind_leaves_parent_and_siblings_alone() {
    let parent = BACKGROUND.with_cancel();
    let siblings = one_of_each(&parent);
    for (name, ctx, scope) in one_of_each(&parent) {
        let Some(scope) = scope else { continue };
        scope.cancel_with(Cause("only me"));
        assert_eq!(word(&ended(&ctx)), Some("only me"), "{name}");
        assert!(answer(&parent).is_none(), "{name} ended its parent");
        for (sibling, ctx, _) in &siblings {
            assert!(answer(ctx).is_none(), "{name} ended its sibling {sibling}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_childs_deadline_leaves_parent_and_siblings_alone() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_timeout(ms(10));
    let sibling = parent.with_timeout(LONG);
    let (wakes, waker) = Wakes::new();
    let mut waits = [parent.done(), sibling.done()].map(Box::pin);
    for wait in &mut waits {
        assert!(poll(wait.as_mut(), &waker).is_pending());
    }
    assert!(child.done().await.is_deadline_exceeded());
    assert!(answer(&parent).is_none());
    assert!(answer(&sibling).is_none());
    assert_eq!(wakes.count(), 0);
}

/// A long chain with waiters at some levels only, so that linked and unlinked stretches alternate. A cancel at
/// the top is immediately visible at every level.
#[test]
fn a_cancel_reaches_every_level_of_a_chain() {
    for waited in [&[][..], &[99], &[0], &[3, 17, 50], &[15, 16, 17, 31, 32, 33, 64]] {
        let mut chain = vec![BACKGROUND.with_cancel()];
        for level in 1..100 {
            chain.push(chain[level - 1].context().with_value(level).with_cancel());
        }
        let (wakes, waker) = Wakes::new();
        let mut waits: Vec<_> = waited.iter().map(|&l: &usize| Box::pin(chain[l].done())).collect();
        for wait in &mut waits {
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        chain[0].cancel_with(Cause("top"));
        assert_eq!(wakes.count(), waited.len(), "{waited:?}");
        let error = chain[0].err().unwrap();
        for (level, ctx) in chain.iter().enumerate().rev() {
            assert!(ctx.is_done(), "level {level}, waited on at {waited:?}");
            assert_same(&ended(ctx), &error);
        }
        for wait in waits {
            assert!(poll_once(wait).is_ready());
        }
    }
}

/// The same from the middle: all descendants end, and no ancestor.
#[test]
fn a_cancel_in_the_middle_of_a_chain_ends_only_descendants() {
    for waited in [None, Some(99), Some(40), Some(60)] {
        for cut in [1, 15, 16, 17, 50, 98] {
            let mut chain = vec![BACKGROUND.with_cancel()];
            for level in 1..100 {
                chain.push(chain[level - 1].with_cancel());
            }
            if let Some(level) = waited {
                assert!(poll_once(chain[level].done()).is_pending());
            }
            chain[cut].cancel();
            for (level, ctx) in chain.iter().enumerate() {
                assert_eq!(ctx.is_done(), level >= cut, "level {level}, cut at {cut}");
            }
        }
    }
}

#[test]
fn a_child_that_ends_with_its_parent_has_the_parents_error() {
    let parent = BACKGROUND.with_timeout(LONG);
    let child = parent.with_timeout_cause(ms(100), "not this one");
    let grandchild = child.context().with_value("v").with_cancel();
    parent.cancel_with(Cause("parent"));
    let line = line!() - 1;
    let error = ended(&grandchild);
    assert_eq!(error.origin().canceled_at().unwrap().line(), line);
    assert_eq!(error.origin().budget(), Some(LONG), "the origin is the parent's");
    assert_same(&error, &ended(&parent));
    assert_same(&ended(&child), &error);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_by_its_parents_deadline_has_the_parents_error() {
    let parent = BACKGROUND.with_timeout_cause(ms(50), Cause("parent"));
    let child = parent.with_timeout_cause(ms(100), Cause("child"));
    let reported = child.done().await;
    assert_eq!(reported.origin().budget(), Some(ms(50)));
    assert_eq!(word(&reported), Some("parent"));
    assert_same(&reported, &ended(&parent));
    assert_same(&reported, &ended(&child));
}

#[test]
fn a_dropped_scope_ends_the_descendants_too() {
    let scope = BACKGROUND.with_cancel();
    let parent = scope.clone();
    let child = parent.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(child.done());
    assert!(poll(wait.as_mut(), &waker).is_pending());
    drop(scope);
    assert_eq!(wakes.count(), 1);
    assert_same(&ended(&child), &ended(&parent));
}

#[tokio::test]
async fn without_cancel_ends_neither_with_its_parent_nor_for_it() {
    let parent = BACKGROUND.with_timeout(LONG);
    let free = parent.without_cancel();
    let below = free.with_cancel();
    let other = free.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(other.done());
    assert!(poll(wait.as_mut(), &waker).is_pending());

    below.cancel();
    assert!(ended(&below).is_canceled());
    assert!(answer(&parent).is_none());

    parent.cancel();
    assert!(answer(&free).is_none());
    assert!(answer(&other).is_none());
    assert_eq!(wakes.count(), 0);
}

#[test]
fn without_cancel_of_an_ended_context_has_not_ended() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(Cause("early"));
    assert!(answer(&ctx.without_cancel()).is_none());
    let ctx = BACKGROUND.with_timeout(ms(0));
    assert!(answer(&ctx.without_cancel()).is_none());
    assert!(answer(&BACKGROUND.without_cancel()).is_none());
}

#[tokio::test]
async fn the_handles_in_between_may_be_gone() {
    for waited in [false, true] {
        let scope = BACKGROUND.with_cancel();
        let root = scope.clone();
        let leaf = {
            let child = root.with_cancel().detach();
            let grandchild = child.with_timeout(LONG).detach();
            grandchild.with_value(7).with_cancel()
        };
        let (wakes, waker) = Wakes::new();
        let mut wait = pin!(leaf.done());
        if waited {
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        drop(root);
        assert!(answer(&leaf).is_none(), "dropping a handle ended something");
        scope.cancel_with(Cause("root"));
        assert_eq!(wakes.count(), usize::from(waited));
        assert_eq!(word(&ended(&leaf)), Some("root"));
        assert!(poll(wait.as_mut(), &waker).is_ready());
    }
}

#[test]
fn dropping_handles_in_any_order_ends_nothing() {
    for backwards in [false, true] {
        let parent = BACKGROUND.with_cancel().detach();
        let mut children: Vec<_> = (0..3)
            .map(|_| {
                let child = parent.with_cancel().detach();
                assert!(poll_once(child.done()).is_pending());
                child
            })
            .collect();
        if backwards {
            children.reverse();
        }
        while let Some(child) = children.pop() {
            drop(child);
            assert!(answer(&parent).is_none());
            assert!(children.iter().all(|child| answer(child).is_none()));
        }
    }
    let parent = BACKGROUND.with_cancel().detach();
    let first = parent.with_cancel();
    let second = parent.with_cancel();
    drop(parent);
    assert!(answer(&first).is_none());
    drop(first);
    assert!(answer(&second).is_none());
}

#[test]
fn exactly_the_descendants_end_and_their_waiters_wake_once() {
    let root = BACKGROUND.with_cancel();
    let node = root.with_cancel();
    let sibling = root.with_cancel();
    let child1 = node.with_cancel();
    let child2 = node.with_cancel();
    let grandchild1 = child1.with_cancel();
    let grandchild2 = child1.with_cancel();
    let great_grandchild = grandchild1.with_cancel();
    let outside = [&root, &sibling];
    let inside = [&node, &child1, &child2, &grandchild1, &grandchild2, &great_grandchild];

    let watch = |ctx: &Context| {
        let (wakes, waker) = Wakes::new();
        let mut done = Box::pin(ctx.done_owned());
        assert!(poll(done.as_mut(), &waker).is_pending());
        (wakes, waker, done)
    };
    let mut outside_waits = outside.map(|ctx| watch(ctx));
    let mut inside_waits = inside.map(|ctx| watch(ctx));

    node.cancel();

    for (wakes, waker, done) in &mut inside_waits {
        assert_eq!(wakes.count(), 1);
        assert!(poll(done.as_mut(), waker).is_ready());
    }
    for (wakes, waker, done) in &mut outside_waits {
        assert_eq!(wakes.count(), 0);
        assert!(poll(done.as_mut(), waker).is_pending());
    }
    assert!(inside.iter().all(|ctx| answer(ctx).is_some()));
    assert!(outside.iter().all(|ctx| answer(ctx).is_none()));
}

#[test]
fn a_parent_can_still_have_children_after_one_was_canceled() {
    let parent = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut parent_wait = pin!(parent.done());
    assert!(poll(parent_wait.as_mut(), &waker).is_pending());

    let first = parent.with_cancel();
    let mut first_wait = pin!(first.done());
    assert!(poll(first_wait.as_mut(), &waker).is_pending());
    first.cancel();
    assert_eq!(wakes.count(), 1);
    assert!(poll(first_wait.as_mut(), &waker).is_ready());
    assert!(poll(parent_wait.as_mut(), &waker).is_pending());

    let second = parent.with_cancel();
    let mut second_wait = pin!(second.done());
    assert!(poll(second_wait.as_mut(), &waker).is_pending());
    parent.cancel();
    assert_eq!(wakes.count(), 3);
    assert!(poll(second_wait.as_mut(), &waker).is_ready());
    assert!(poll(parent_wait.as_mut(), &waker).is_ready());
}

/// Random paths, canceled at a random level: the leaf ends, and keeps its values.
#[tokio::test]
async fn random_layers_end_by_any_scope_on_the_path() {
    for seed in 0..500 {
        let mut dice = Dice::new(seed);
        let mut ctx = Context::background();
        let mut scopes = Vec::new();
        let mut values = 0;
        while values + scopes.len() < 40 || scopes.is_empty() {
            ctx = match dice.roll(4) {
                0 => {
                    values += 1;
                    ctx.with_value::<usize>(values)
                }
                kind => {
                    let scope = match kind {
                        1 => ctx.with_cancel(),
                        2 => ctx.with_timeout(LONG),
                        _ => ctx.merge(&Context::background()),
                    };
                    let ctx = scope.clone();
                    scopes.push(scope);
                    ctx
                }
            };
            if dice.roll(10) == 0 {
                assert!(poll_once(ctx.done()).is_pending());
            }
        }
        assert!(!ctx.is_done(), "seed {seed}");
        let last = ctx.value::<usize>().copied();
        scopes[dice.roll(scopes.len())].cancel_with(Cause("cut"));
        assert!(ctx.is_done(), "seed {seed}");
        assert_eq!(word(&ended(&ctx)), Some("cut"), "seed {seed}");
        assert_eq!(ctx.value::<usize>().copied(), last, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn random_layers_end_by_the_earliest_deadline_on_the_path() {
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let mut ctx = Context::background();
        let mut scopes = Vec::new();
        let mut earliest = None;
        for _ in 0..40 {
            ctx = match dice.roll(3) {
                0 => ctx.with_value(seed),
                1 => {
                    scopes.push(ctx.with_cancel());
                    scopes.last().unwrap().context().clone()
                }
                _ => {
                    let after = 1 + dice.roll(1000) as u64;
                    earliest = Some(earliest.unwrap_or(after).min(after));
                    scopes.push(ctx.with_timeout(ms(after)));
                    scopes.last().unwrap().context().clone()
                }
            };
        }
        let reported = ctx.done().await;
        assert_eq!(reported.origin().budget(), earliest.map(ms), "seed {seed}");
    }
}

/// A tree of a hundred contexts. Each scope is canceled from a task of its own, and each context is awaited in
/// a task of its own, in random order. All must end.
#[test]
fn simultaneous_cancels_all_over_a_tree_end_everything() {
    on_both(|| async {
        for seed in 0..20 {
            let mut dice = Dice::new(seed);
            let mut tree = vec![BACKGROUND.with_cancel()];
            let mut parent = 0;
            while tree.len() < 100 {
                for _ in 0..4 {
                    let child = tree[parent].with_cancel();
                    tree.push(child);
                }
                parent += 1;
            }
            let contexts: Vec<_> = tree.iter().map(|scope| scope.context().clone()).collect();
            dice.shuffle(&mut tree);
            let mut tasks = Vec::new();
            for ctx in &contexts {
                tasks.push(tokio::spawn(ctx.done_owned()));
            }
            let cancels: Vec<_> =
                tree.into_iter().map(|scope| tokio::spawn(async move { scope.cancel() })).collect();
            for task in tasks {
                assert!(task.await.unwrap().is_canceled());
            }
            for cancel in cancels {
                cancel.await.unwrap();
            }
            assert!(contexts.iter().all(Context::is_done));
        }
    });
}

#[test]
fn a_child_canceled_from_its_parents_waiter_does_not_deadlock() {
    on_both(|| async {
        for _ in 0..100 {
            let parent = BACKGROUND.with_cancel();
            let scope = parent.with_cancel();
            let (child, above) = (scope.clone(), parent.clone());
            let waiter = tokio::spawn(async move {
                above.done().await;
                scope.cancel();
            });
            let child_waiter = tokio::spawn(child.done_owned());
            tokio::task::yield_now().await;
            parent.cancel_with(Cause("parent"));
            assert_eq!(word(&child_waiter.await.unwrap()), Some("parent"));
            waiter.await.unwrap();
        }
    });
}

#[test]
fn contexts_derived_during_a_cancel_end_with_it() {
    const ROUNDS: usize = 1000;
    watched(|| {
        for round in 0..ROUNDS {
            let (parent, guard) = BACKGROUND.with_cancel().split();
            let start = Arc::new(Barrier::new(2));
            let returned = Arc::new(AtomicBool::new(false));
            let canceler = {
                let (start, returned) = (start.clone(), returned.clone());
                thread::spawn(move || {
                    start.wait();
                    guard.cancel_with(Cause("all"));
                    returned.store(true, Ordering::Release);
                })
            };
            start.wait();
            let mut children = Vec::new();
            spin_until(|| {
                let last = returned.load(Ordering::Acquire);
                let child = parent.with_cancel();
                if round % 2 == 0 {
                    // Links to the parent, possibly while the parent ends.
                    let _ = poll_once(child.done());
                }
                children.push(child);
                last
            });
            canceler.join().unwrap();
            for child in &children {
                assert_eq!(word(&ended(child)), Some("all"));
            }
        }
    });
}

/// After `cancel` has returned on one thread, another thread, which was waiting on descendants, queries them.
#[test]
fn when_cancel_has_returned_every_thread_sees_every_descendant_ended() {
    watched(|| {
        let (to_querier, chains) =
            mpsc::channel::<(Vec<Context>, mpsc::Sender<()>, mpsc::Receiver<()>)>();
        let thread = thread::spawn(move || {
            for (contexts, ready, canceled) in chains {
                for ctx in contexts.iter().rev() {
                    let _ = poll_once(ctx.done());
                }
                ready.send(()).unwrap();
                for ctx in contexts.iter().rev() {
                    let _ = poll_once(ctx.done()); // while the cancel runs
                }
                canceled.recv().unwrap();
                assert!(contexts.iter().all(Context::is_done));
            }
        });
        for _ in 0..1000 {
            let root = BACKGROUND.with_cancel();
            let mut chain = vec![root.clone()];
            for _ in 0..20 {
                let next = chain.last().unwrap().with_cancel().detach();
                chain.push(next);
            }
            let (ready, is_ready) = mpsc::channel();
            let (canceled, was_canceled) = mpsc::channel();
            to_querier.send((chain, ready, was_canceled)).unwrap();
            is_ready.recv().unwrap();
            root.cancel();
            canceled.send(()).unwrap();
        }
        drop(to_querier);
        thread.join().unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn an_unobserved_deadline_of_the_parent_ends_every_level_below() {
    let mut chain = vec![BACKGROUND.with_timeout(ms(100))];
    for level in 0..60 {
        let next = match level % 3 {
            0 => chain[level].with_cancel(),
            1 => chain[level].with_timeout(LONG),
            _ => chain[level].context().with_value(level).with_cancel(),
        };
        chain.push(next);
    }
    advance(ms(100)).await;
    // Queries the leaf first, which has to detect the end from its ancestors.
    let error = ended(chain.last().unwrap());
    assert_eq!(error.origin().budget(), Some(ms(100)));
    for ctx in &chain {
        assert_same(&ended(ctx), &error);
    }
}

#[test]
fn poll_results_follow_the_tree_and_not_the_order_of_waiting() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    // Polls the child first, so that it is added to its parent's list before the parent has a waiter of its own.
    let mut child_wait = pin!(child.done());
    assert!(poll(child_wait.as_mut(), Waker::noop()).is_pending());
    let mut parent_wait = pin!(parent.done());
    assert!(poll(parent_wait.as_mut(), Waker::noop()).is_pending());
    child.cancel();
    assert!(matches!(poll(child_wait.as_mut(), Waker::noop()), Poll::Ready(_)));
    assert!(poll(parent_wait.as_mut(), Waker::noop()).is_pending());
    parent.cancel();
    assert!(poll(parent_wait.as_mut(), Waker::noop()).is_ready());
}
