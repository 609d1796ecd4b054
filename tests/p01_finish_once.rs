//! Promise 1, *finish once*: the first of cancel, guard drop, deadline and parent's end decides how a
//! context ended, and nothing after it changes that.

mod common;

use std::sync::{Arc, Barrier};
use std::thread;

use common::{Cause, LONG, assert_same, ended, ms, poll_once, same, watched, word};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelGuard, Context, ErrorKind};

static BACKGROUND: Context = Context::background();

/// The three ways in which a guard can end its context.
const HANDS: [fn(CancelGuard); 3] =
    [|guard| guard.cancel(), |guard| guard.cancel_with(Cause("by hand")), drop];

#[test]
fn background_and_todo_never_end() {
    for root in [Context::background(), Context::todo(), Context::default()] {
        assert!(common::answer(&root).is_none());
        assert!(root.deadline().is_none());
        assert!(root.remaining().is_none());
    }
}

#[test]
fn a_fresh_context_has_not_ended() {
    let (ctx, _guard) = BACKGROUND.with_cancel();
    assert!(common::answer(&ctx).is_none());
    let (ctx, _guard) = ctx.with_value(1).with_cancel();
    assert!(common::answer(&ctx).is_none());
}

#[test]
fn cancel_ends_it_at_once_without_a_cause() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.cancel();
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(error.is_canceled() && !error.is_deadline_exceeded());
    assert!(error.cause().is_none());
}

#[test]
fn cancel_with_ends_it_with_that_cause() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.cancel_with(Cause("hung up"));
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert_eq!(word(&error), Some("hung up"));
}

#[test]
fn dropping_the_guard_ends_it() {
    let (ctx, guard) = BACKGROUND.with_timeout(LONG);
    drop(guard);
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(error.cause().is_none());
    assert!(error.origin().canceled_at().is_none());
}

#[test]
fn a_guard_dropped_by_a_panic_ends_it() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    let thread = thread::spawn(move || {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert!(ended(&ctx).is_canceled());
}

#[test]
fn later_causes_change_nothing() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.cancel_with(Cause("first"));
    let first = ended(&ctx);
    assert_eq!(word(&first), Some("first"));
    guard.cancel_with(Cause("second"));
    guard.cancel();
    guard.canceller().cancel_with(Cause("third"));
    assert_same(&ended(&ctx), &first);
    drop(guard);
    assert_same(&ended(&ctx), &first);
}

#[test]
fn a_cause_after_a_plain_cancel_is_too_late() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.cancel();
    let first = ended(&ctx);
    guard.cancel_with(Cause("late"));
    let second = ended(&ctx);
    assert_same(&second, &first);
    assert!(second.cause().is_none());
}

#[test]
fn a_cause_after_an_unobserved_cancel_is_too_late() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.cancel();
    let line = line!() - 1;
    guard.cancel_with(Cause("late"));
    let error = ended(&ctx);
    assert!(error.cause().is_none());
    assert_eq!(error.origin().canceled_at().unwrap().line(), line);
}

#[test]
fn a_canceller_ends_it_as_the_guard_does() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    let canceller = guard.canceller();
    drop(canceller.clone());
    assert!(common::answer(&ctx).is_none(), "dropping a canceller ended it");
    canceller.cancel_with(Cause("by proxy"));
    assert_eq!(word(&ended(&ctx)), Some("by proxy"));

    let (ctx, guard) = BACKGROUND.with_cancel();
    guard.canceller().cancel();
    assert!(ended(&ctx).cause().is_none());
}

#[test]
fn a_canceller_outlives_a_detached_guard() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    let canceller = guard.canceller();
    guard.detach();
    assert!(common::answer(&ctx).is_none());
    canceller.cancel();
    assert!(ended(&ctx).is_canceled());
}

#[test]
fn a_canceller_outliving_its_context_does_nothing() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    let canceller = guard.canceller();
    drop(ctx);
    drop(guard);
    canceller.cancel();
    canceller.cancel_with(Cause("nobody there"));
}

#[tokio::test(start_paused = true)]
async fn a_detached_guard_leaves_it_to_the_deadline() {
    let (ctx, guard) = BACKGROUND.with_timeout(ms(10));
    guard.detach();
    assert!(common::answer(&ctx).is_none());
    advance(ms(10)).await;
    assert!(ended(&ctx).is_deadline_exceeded());
}

#[test]
fn a_detached_guard_leaves_it_to_the_parent() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (ctx, guard) = parent.with_cancel();
    guard.detach();
    assert!(common::answer(&ctx).is_none());
    parent_guard.cancel_with(Cause("parent"));
    assert_eq!(word(&ended(&ctx)), Some("parent"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_it() {
    let (ctx, _guard) = BACKGROUND.with_timeout(ms(100));
    advance(ms(99)).await;
    assert!(common::answer(&ctx).is_none());
    advance(ms(1)).await;
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.is_deadline_exceeded() && !error.is_canceled());
    assert!(error.cause().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_nobody_saw_still_comes_before_a_later_hand() {
    for hand in HANDS {
        let (ctx, guard) = BACKGROUND.with_timeout_cause(ms(100), Cause("too slow"));
        advance(ms(150)).await;
        hand(guard);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded(), "{error}");
        assert_eq!(word(&error), Some("too slow"));
        assert!(error.origin().canceled_at().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_seen_stands_against_a_later_hand() {
    for hand in HANDS {
        let (ctx, guard) = BACKGROUND.with_timeout(ms(100));
        advance(ms(150)).await;
        let first = ended(&ctx);
        hand(guard);
        assert_same(&ended(&ctx), &first);
        assert!(first.is_deadline_exceeded());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_before_the_deadline_stands_after_it() {
    for observed in [true, false] {
        for hand in HANDS {
            let (ctx, guard) = BACKGROUND.with_timeout_cause(ms(100), Cause("too slow"));
            advance(ms(50)).await;
            hand(guard);
            let at_once = observed.then(|| ended(&ctx));
            advance(ms(100)).await;
            let error = ended(&ctx);
            assert!(error.is_canceled(), "{error}");
            assert_ne!(word(&error), Some("too slow"));
            if let Some(at_once) = at_once {
                assert_same(&error, &at_once);
            }
        }
    }
}

#[test]
fn a_context_born_past_its_deadline_is_not_canceled_by_its_guard() {
    for hand in HANDS {
        let (ctx, guard) = BACKGROUND.with_timeout(ms(0));
        hand(guard);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded() && error.cause().is_none());

        let (ctx, guard) = BACKGROUND.with_timeout_cause(ms(0), Cause("too slow"));
        hand(guard);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded());
        assert_eq!(word(&error), Some("too slow"));
    }
}

#[test]
fn a_deadline_cause_is_not_told_of_a_cancel() {
    let (ctx, guard) = BACKGROUND.with_timeout_cause(LONG, Cause("too slow"));
    guard.cancel();
    assert!(ended(&ctx).cause().is_none());

    let (ctx, guard) = BACKGROUND.with_deadline_cause(Instant::now() + LONG, Cause("too slow"));
    guard.cancel_with(Cause("by hand"));
    assert_eq!(word(&ended(&ctx)), Some("by hand"));

    let (parent, guard) = BACKGROUND.with_cancel();
    let (ctx, _guard) = parent.with_timeout_cause(LONG, Cause("too slow"));
    guard.cancel_with(Cause("finished early"));
    let error = ended(&ctx);
    assert!(error.is_canceled());
    assert_eq!(word(&error), Some("finished early"));
}

#[test]
fn a_parents_later_cancel_leaves_a_deadline_that_passed_first() {
    let (parent, guard) = BACKGROUND.with_cancel();
    let (ctx, _guard) = parent.with_timeout_cause(ms(0), Cause("too slow"));
    guard.cancel_with(Cause("finished early"));
    let error = ended(&ctx);
    assert!(error.is_deadline_exceeded());
    assert_eq!(word(&error), Some("too slow"));
}

#[test]
fn the_parents_cause_comes_before_the_childs() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    parent_guard.cancel_with(Cause("parent"));
    child_guard.cancel_with(Cause("child"));
    assert_eq!(word(&ended(&child)), Some("parent"));
    drop(child_guard);
    assert_same(&ended(&child), &ended(&parent));
}

#[test]
fn the_childs_cause_comes_before_the_parents() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    child_guard.cancel_with(Cause("child"));
    parent_guard.cancel_with(Cause("parent"));
    assert_eq!(word(&ended(&child)), Some("child"));
    assert_eq!(word(&ended(&parent)), Some("parent"));
}

#[test]
fn the_parents_cause_comes_before_the_childs_plain_cancel() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    parent_guard.cancel_with(Cause("parent"));
    child_guard.cancel();
    assert_eq!(word(&ended(&child)), Some("parent"));
}

#[test]
fn the_childs_plain_cancel_comes_before_the_parents_cause() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    child_guard.cancel();
    parent_guard.cancel_with(Cause("parent"));
    assert!(ended(&child).cause().is_none());
}

#[test]
fn the_parents_plain_cancel_comes_before_the_childs_cause() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    parent_guard.cancel();
    child_guard.cancel_with(Cause("child"));
    assert!(ended(&child).cause().is_none());
}

#[test]
fn the_childs_cause_comes_before_the_parents_plain_cancel() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    child_guard.cancel_with(Cause("child"));
    parent_guard.cancel();
    assert_eq!(word(&ended(&child)), Some("child"));
}

#[test]
fn a_dropped_child_guard_comes_before_the_parents_cause() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (child, child_guard) = parent.with_cancel();
    drop(child_guard);
    parent_guard.cancel_with(Cause("parent"));
    assert!(ended(&child).cause().is_none());
}

/// Who comes first in time also holds where a deadline and a parent's end both went unseen, whether or
/// not somebody had begun to wait on the child.
#[tokio::test(start_paused = true)]
async fn an_unseen_deadline_before_the_parents_end_is_what_ended_the_child() {
    for waited in [false, true] {
        for hand in HANDS {
            let (parent, guard) = BACKGROUND.with_cancel();
            let (child, _child_guard) = parent.with_timeout(ms(100));
            let (grandchild, _grandchild_guard) = child.with_cancel();
            let mut wait = Box::pin(grandchild.done());
            if waited {
                assert!(common::poll(wait.as_mut(), std::task::Waker::noop()).is_pending());
            }
            advance(ms(150)).await;
            hand(guard);
            advance(ms(50)).await;
            let error = ended(&child);
            assert!(error.is_deadline_exceeded(), "waited {waited}: {error}");
            assert_same(&ended(&grandchild), &error);
            assert!(ended(&parent).is_canceled());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_parents_end_before_an_unseen_deadline_is_what_ended_the_child() {
    for waited in [false, true] {
        for hand in HANDS {
            let (parent, guard) = BACKGROUND.with_cancel();
            let (child, _child_guard) = parent.with_timeout(ms(100));
            let (grandchild, _grandchild_guard) = child.with_cancel();
            let mut wait = Box::pin(grandchild.done());
            if waited {
                assert!(common::poll(wait.as_mut(), std::task::Waker::noop()).is_pending());
            }
            advance(ms(50)).await;
            hand(guard);
            advance(ms(150)).await;
            let error = ended(&grandchild);
            assert!(error.is_canceled(), "waited {waited}: {error}");
            assert_same(&ended(&child), &error);
            assert_same(&ended(&parent), &error);
        }
    }
}

/// As above, with the deadline on the parent and the hand on the child.
#[tokio::test(start_paused = true)]
async fn the_parents_unseen_deadline_comes_before_the_childs_later_hand() {
    for hand in HANDS {
        let (parent, _parent_guard) = BACKGROUND.with_timeout(ms(100));
        let (child, guard) = parent.with_cancel();
        advance(ms(150)).await;
        hand(guard);
        let error = ended(&child);
        assert!(error.is_deadline_exceeded(), "{error}");
        assert_same(&error, &ended(&parent));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_unseen_deadlines_the_earlier_ended_it() {
    let (parent, _g1) = BACKGROUND.with_timeout(ms(200));
    let (child, _g2) = parent.with_timeout(ms(100));
    advance(ms(300)).await;
    assert_eq!(ended(&child).origin().budget(), Some(ms(100)));
    assert_eq!(ended(&parent).origin().budget(), Some(ms(200)));

    let (parent, _g1) = BACKGROUND.with_timeout(ms(100));
    let (child, _g2) = parent.with_timeout(ms(200));
    advance(ms(300)).await;
    assert_eq!(ended(&child).origin().budget(), Some(ms(100)));
    assert_same(&ended(&child), &ended(&parent));
}

#[tokio::test(start_paused = true)]
async fn nothing_changes_an_end_that_a_waiter_was_told() {
    let (parent, parent_guard) = BACKGROUND.with_cancel();
    let (ctx, guard) = parent.with_timeout(ms(100));
    let told = ctx.done().await;
    assert!(told.is_deadline_exceeded());
    guard.cancel_with(Cause("late"));
    parent_guard.cancel_with(Cause("later"));
    advance(LONG).await;
    assert_same(&ended(&ctx), &told);
}

#[test]
fn of_racing_causes_exactly_one_is_kept() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 1000;
    const WORDS: [&str; THREADS] = ["zero", "one", "two", "three"];
    watched(|| {
        let rounds: Arc<Vec<_>> = Arc::new((0..ROUNDS).map(|_| BACKGROUND.with_cancel()).collect());
        let barrier = Arc::new(Barrier::new(THREADS));
        let threads: Vec<_> = WORDS
            .into_iter()
            .map(|own| {
                let (rounds, barrier) = (rounds.clone(), barrier.clone());
                thread::spawn(move || {
                    let mut seen = Vec::with_capacity(ROUNDS);
                    for (ctx, guard) in rounds.iter() {
                        barrier.wait();
                        guard.cancel_with(Cause(own));
                        seen.push(ctx.err().expect("cancelled by this very thread"));
                    }
                    seen
                })
            })
            .collect();
        let seen: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        for (round, (ctx, _guard)) in rounds.iter().enumerate() {
            let error = ended(ctx);
            assert!(WORDS.contains(&word(&error).unwrap()));
            assert!(seen.iter().all(|seen| same(&seen[round], &error)), "round {round}");
        }
    });
}

#[test]
fn ending_again_wakes_nobody_again() {
    let (ctx, guard) = BACKGROUND.with_cancel();
    let (wakes, waker) = common::Wakes::new();
    let mut done = Box::pin(ctx.done());
    assert!(common::poll(done.as_mut(), &waker).is_pending());
    guard.cancel();
    guard.cancel_with(Cause("late"));
    drop(guard);
    assert_eq!(wakes.count(), 1);
    assert!(poll_once(done).is_ready());
}
