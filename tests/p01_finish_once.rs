//! Promise 1, *finish once*: a context ends at the first of cancel, scope drop, deadline and parent's end, and
//! nothing changes that afterward.

mod common;

use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::{Cause, LONG, assert_same, ended, ms, poll, poll_once, same, watched, word};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Context, ErrorKind};

static BACKGROUND: Context = Context::background();

/// The ways in which a scope, or the guard split from it, can end its context.
const WAYS: [fn(CancelScope); 4] = [
    |scope| scope.cancel(),
    |scope| scope.cancel_with(Cause("by way")),
    drop,
    |scope| drop(scope.split().1),
];

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
    let ctx = BACKGROUND.with_cancel();
    assert!(common::answer(&ctx).is_none());
    let ctx = ctx.context().with_value(1).with_cancel();
    assert!(common::answer(&ctx).is_none());
}

/// A deadline that passes at the time of the parent's cancel was first. One that passes a nanosecond later was not.
#[tokio::test(start_paused = true)]
async fn a_cancel_above_and_a_deadline_are_compared_to_the_nanosecond() {
    for case in 0..8 {
        let (waited, deep, later) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
        let at = Instant::now() + ms(5);
        let top = BACKGROUND.with_cancel();
        let parent = if deep { top.with_cancel().detach() } else { top.clone() };
        let timed = parent.with_deadline(at + Duration::from_nanos(later.into()));
        let below = timed.with_cancel();
        let mut wait = pin!(below.done());
        if waited {
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        }
        advance(ms(5)).await;
        top.cancel_with(Cause("at that time"));
        // Queried when the later deadline has passed as well.
        advance(Duration::from_nanos(1)).await;
        assert_same(&ended(&parent), &ended(&top));
        assert_eq!(ended(&below).is_canceled(), later);
        assert_same(&ended(&below), &ended(&timed));
        if later {
            assert_same(&ended(&timed), &ended(&top));
        }
    }
}

#[test]
fn cancel_ends_it_at_once_without_a_cause() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(error.is_canceled() && !error.is_deadline_exceeded());
    assert!(error.cause().is_none());
}

#[test]
fn cancel_with_ends_it_with_that_cause() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(Cause("hung up"));
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert_eq!(word(&error), Some("hung up"));
}

#[test]
fn dropping_the_scope_ends_it() {
    let scope = BACKGROUND.with_timeout(LONG);
    let ctx = scope.clone();
    drop(scope);
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(error.cause().is_none());
    assert!(error.origin().canceled_at().is_none());
}

#[test]
fn dropping_the_guard_ends_it() {
    let (ctx, guard) = BACKGROUND.with_timeout(LONG).split();
    drop(guard);
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(error.cause().is_none());
    assert!(error.origin().canceled_at().is_none());
}

#[test]
fn a_scope_dropped_by_a_panic_ends_it() {
    let scope = BACKGROUND.with_cancel();
    let ctx = scope.clone();
    let thread = thread::spawn(move || {
        let _scope = scope;
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert!(ended(&ctx).is_canceled());
}

#[test]
fn later_causes_change_nothing() {
    let scope = BACKGROUND.with_cancel();
    let ctx = scope.clone();
    scope.cancel_with(Cause("first"));
    let first = ended(&ctx);
    assert_eq!(word(&first), Some("first"));
    scope.cancel_with(Cause("second"));
    scope.cancel();
    scope.canceler().cancel_with(Cause("third"));
    assert_same(&ended(&ctx), &first);
    drop(scope);
    assert_same(&ended(&ctx), &first);
}

#[test]
fn a_cause_after_a_plain_cancel_has_no_effect() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let first = ended(&ctx);
    ctx.cancel_with(Cause("late"));
    let second = ended(&ctx);
    assert_same(&second, &first);
    assert!(second.cause().is_none());
}

#[test]
fn a_cause_after_an_unobserved_cancel_has_no_effect() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let line = line!() - 1;
    ctx.cancel_with(Cause("late"));
    let error = ended(&ctx);
    assert!(error.cause().is_none());
    assert_eq!(error.origin().canceled_at().unwrap().line(), line);
}

#[test]
fn a_canceler_ends_it_as_the_scope_does() {
    let ctx = BACKGROUND.with_cancel();
    let canceler = ctx.canceler();
    drop(canceler.clone());
    assert!(common::answer(&ctx).is_none(), "dropping a canceler ended it");
    canceler.cancel_with(Cause("by proxy"));
    assert_eq!(word(&ended(&ctx)), Some("by proxy"));

    let ctx = BACKGROUND.with_cancel();
    ctx.canceler().cancel();
    assert!(ended(&ctx).cause().is_none());
}

#[test]
fn a_canceler_outlives_a_detached_scope() {
    let scope = BACKGROUND.with_cancel();
    let canceler = scope.canceler();
    let ctx = scope.detach();
    assert!(common::answer(&ctx).is_none());
    canceler.cancel();
    assert!(ended(&ctx).is_canceled());
}

#[test]
fn a_canceler_outliving_its_context_does_nothing() {
    let scope = BACKGROUND.with_cancel();
    let ctx = scope.clone();
    let canceler = scope.canceler();
    drop(ctx);
    drop(scope);
    canceler.cancel();
    canceler.cancel_with(Cause("nobody there"));
}

#[tokio::test(start_paused = true)]
async fn a_detached_scope_leaves_it_to_the_deadline() {
    let ctx = BACKGROUND.with_timeout(ms(10)).detach();
    assert!(common::answer(&ctx).is_none());
    advance(ms(10)).await;
    assert!(ended(&ctx).is_deadline_exceeded());
}

#[test]
fn a_detached_scope_leaves_it_to_the_parent() {
    let parent = BACKGROUND.with_cancel();
    let ctx = parent.with_cancel().detach();
    assert!(common::answer(&ctx).is_none());
    parent.cancel_with(Cause("parent"));
    assert_eq!(word(&ended(&ctx)), Some("parent"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_it() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    advance(ms(99)).await;
    assert!(common::answer(&ctx).is_none());
    advance(ms(1)).await;
    let error = ended(&ctx);
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.is_deadline_exceeded() && !error.is_canceled());
    assert!(error.cause().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_unobserved_deadline_comes_before_a_later_cancel() {
    for way in WAYS {
        let scope = BACKGROUND.with_timeout_cause(ms(100), Cause("too slow"));
        let ctx = scope.clone();
        advance(ms(150)).await;
        way(scope);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded(), "{error}");
        assert_eq!(word(&error), Some("too slow"));
        assert!(error.origin().canceled_at().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_observed_deadline_comes_before_a_later_cancel() {
    for way in WAYS {
        let scope = BACKGROUND.with_timeout(ms(100));
        let ctx = scope.clone();
        advance(ms(150)).await;
        let first = ended(&ctx);
        way(scope);
        assert_same(&ended(&ctx), &first);
        assert!(first.is_deadline_exceeded());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_deadline_holds_after_it() {
    for observed in [true, false] {
        for way in WAYS {
            let scope = BACKGROUND.with_timeout_cause(ms(100), Cause("too slow"));
            let ctx = scope.clone();
            advance(ms(50)).await;
            way(scope);
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
fn a_context_derived_past_its_deadline_is_not_canceled_by_its_scope() {
    for way in WAYS {
        let scope = BACKGROUND.with_timeout(ms(0));
        let ctx = scope.clone();
        way(scope);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded() && error.cause().is_none());

        let scope = BACKGROUND.with_timeout_cause(ms(0), Cause("too slow"));
        let ctx = scope.clone();
        way(scope);
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded());
        assert_eq!(word(&error), Some("too slow"));
    }
}

#[test]
fn a_deadline_cause_is_not_used_for_a_cancel() {
    let ctx = BACKGROUND.with_timeout_cause(LONG, Cause("too slow"));
    ctx.cancel();
    assert!(ended(&ctx).cause().is_none());

    let ctx = BACKGROUND.with_deadline_cause(Instant::now() + LONG, Cause("too slow"));
    ctx.cancel_with(Cause("by way"));
    assert_eq!(word(&ended(&ctx)), Some("by way"));

    let parent = BACKGROUND.with_cancel();
    let ctx = parent.with_timeout_cause(LONG, Cause("too slow"));
    parent.cancel_with(Cause("finished early"));
    let error = ended(&ctx);
    assert!(error.is_canceled());
    assert_eq!(word(&error), Some("finished early"));
}

#[test]
fn a_parents_later_cancel_leaves_a_deadline_that_passed_first() {
    let parent = BACKGROUND.with_cancel();
    let ctx = parent.with_timeout_cause(ms(0), Cause("too slow"));
    parent.cancel_with(Cause("finished early"));
    let error = ended(&ctx);
    assert!(error.is_deadline_exceeded());
    assert_eq!(word(&error), Some("too slow"));
}

#[test]
fn the_parents_cause_comes_before_the_childs() {
    let parent = BACKGROUND.with_cancel();
    let child_scope = parent.with_cancel();
    let child = child_scope.clone();
    parent.cancel_with(Cause("parent"));
    child_scope.cancel_with(Cause("child"));
    assert_eq!(word(&ended(&child)), Some("parent"));
    drop(child_scope);
    assert_same(&ended(&child), &ended(&parent));
}

#[test]
fn the_childs_cause_comes_before_the_parents() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    child.cancel_with(Cause("child"));
    parent.cancel_with(Cause("parent"));
    assert_eq!(word(&ended(&child)), Some("child"));
    assert_eq!(word(&ended(&parent)), Some("parent"));
}

#[test]
fn the_parents_cause_comes_before_the_childs_plain_cancel() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    parent.cancel_with(Cause("parent"));
    child.cancel();
    assert_eq!(word(&ended(&child)), Some("parent"));
}

#[test]
fn the_childs_plain_cancel_comes_before_the_parents_cause() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    child.cancel();
    parent.cancel_with(Cause("parent"));
    assert!(ended(&child).cause().is_none());
}

#[test]
fn the_parents_plain_cancel_comes_before_the_childs_cause() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    parent.cancel();
    child.cancel_with(Cause("child"));
    assert!(ended(&child).cause().is_none());
}

#[test]
fn the_childs_cause_comes_before_the_parents_plain_cancel() {
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    child.cancel_with(Cause("child"));
    parent.cancel();
    assert_eq!(word(&ended(&child)), Some("child"));
}

#[test]
fn a_dropped_child_scope_comes_before_the_parents_cause() {
    let parent = BACKGROUND.with_cancel();
    let child_scope = parent.with_cancel();
    let child = child_scope.clone();
    drop(child_scope);
    parent.cancel_with(Cause("parent"));
    assert!(ended(&child).cause().is_none());
}

/// The order in time also applies if neither the deadline nor the parent's end was observed, with and without a
/// waiter on the child.
#[tokio::test(start_paused = true)]
async fn an_unobserved_deadline_before_the_parents_end_ends_the_child() {
    for waited in [false, true] {
        for way in WAYS {
            let scope = BACKGROUND.with_cancel();
            let parent = scope.clone();
            let child = parent.with_timeout(ms(100));
            let grandchild = child.with_cancel();
            let mut wait = Box::pin(grandchild.done());
            if waited {
                assert!(common::poll(wait.as_mut(), std::task::Waker::noop()).is_pending());
            }
            advance(ms(150)).await;
            way(scope);
            advance(ms(50)).await;
            let error = ended(&child);
            assert!(error.is_deadline_exceeded(), "waited {waited}: {error}");
            assert_same(&ended(&grandchild), &error);
            assert!(ended(&parent).is_canceled());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_parents_end_before_an_unobserved_deadline_ends_the_child() {
    for waited in [false, true] {
        for way in WAYS {
            let scope = BACKGROUND.with_cancel();
            let parent = scope.clone();
            let child = parent.with_timeout(ms(100));
            let grandchild = child.with_cancel();
            let mut wait = Box::pin(grandchild.done());
            if waited {
                assert!(common::poll(wait.as_mut(), std::task::Waker::noop()).is_pending());
            }
            advance(ms(50)).await;
            way(scope);
            advance(ms(150)).await;
            let error = ended(&grandchild);
            assert!(error.is_canceled(), "waited {waited}: {error}");
            assert_same(&ended(&child), &error);
            assert_same(&ended(&parent), &error);
        }
    }
}

/// The same, with the deadline on the parent and the cancel on the child.
#[tokio::test(start_paused = true)]
async fn the_parents_unobserved_deadline_comes_before_the_childs_later_cancel() {
    for way in WAYS {
        let parent = BACKGROUND.with_timeout(ms(100));
        let scope = parent.with_cancel();
        let child = scope.clone();
        advance(ms(150)).await;
        way(scope);
        let error = ended(&child);
        assert!(error.is_deadline_exceeded(), "{error}");
        assert_same(&error, &ended(&parent));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_unobserved_deadlines_the_earlier_ends_it() {
    let parent = BACKGROUND.with_timeout(ms(200));
    let child = parent.with_timeout(ms(100));
    advance(ms(300)).await;
    assert_eq!(ended(&child).origin().budget(), Some(ms(100)));
    assert_eq!(ended(&parent).origin().budget(), Some(ms(200)));

    let parent = BACKGROUND.with_timeout(ms(100));
    let child = parent.with_timeout(ms(200));
    advance(ms(300)).await;
    assert_eq!(ended(&child).origin().budget(), Some(ms(100)));
    assert_same(&ended(&child), &ended(&parent));
}

#[tokio::test(start_paused = true)]
async fn nothing_changes_an_end_that_a_waiter_has_seen() {
    let parent = BACKGROUND.with_cancel();
    let ctx = parent.with_timeout(ms(100));
    let reported = ctx.done().await;
    assert!(reported.is_deadline_exceeded());
    ctx.cancel_with(Cause("late"));
    parent.cancel_with(Cause("later"));
    advance(LONG).await;
    assert_same(&ended(&ctx), &reported);
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
                    for ctx in rounds.iter() {
                        barrier.wait();
                        ctx.cancel_with(Cause(own));
                        seen.push(ctx.err().expect("this thread has canceled it"));
                    }
                    seen
                })
            })
            .collect();
        let seen: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        for (round, ctx) in rounds.iter().enumerate() {
            let error = ended(ctx);
            assert!(WORDS.contains(&word(&error).unwrap()));
            assert!(seen.iter().all(|seen| same(&seen[round], &error)), "round {round}");
        }
    });
}

#[test]
fn ending_again_wakes_no_task_again() {
    let scope = BACKGROUND.with_cancel();
    let (wakes, waker) = common::Wakes::new();
    let mut done = Box::pin(scope.done_owned());
    assert!(common::poll(done.as_mut(), &waker).is_pending());
    scope.cancel();
    scope.cancel_with(Cause("late"));
    drop(scope);
    assert_eq!(wakes.count(), 1);
    assert!(poll_once(done).is_ready());
}
