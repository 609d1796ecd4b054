//! Promise 4, *deadlines only shrink*: the earliest deadline on the path applies. A past or zero deadline ends
//! a context from the start, an overflow sets none, and a deadline applies even without a waiter.

mod common;

use std::task::Waker;
use std::time::Duration;

use common::{Cause, LONG, answer, assert_same, ended, ms, poll, poll_once, word};
use tokio::time::{Instant, advance, sleep_until};
use tokio_ctx::Context;

static BACKGROUND: Context = Context::background();

/// Tokio's timers have a resolution of a millisecond. A wait may end up to one late, but never early.
#[track_caller]
fn assert_after(start: Instant, expected: Duration) {
    let elapsed = start.elapsed();
    assert!(elapsed >= expected && elapsed <= expected + ms(1), "{elapsed:?}, not {expected:?}");
}

#[test]
fn without_a_deadline_there_is_none() {
    let ctx = BACKGROUND.with_cancel();
    for ctx in [
        Context::background(),
        Context::todo(),
        ctx.context().with_value(1),
        ctx.without_cancel(),
        ctx.clone(),
    ] {
        assert_eq!(ctx.deadline(), None);
        assert_eq!(ctx.remaining(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_returned_as_it_was_set() {
    let at = Instant::now() + ms(1500);
    let ctx = BACKGROUND.with_deadline(at);
    assert_eq!(ctx.deadline(), Some(at));
    let ctx = BACKGROUND.with_deadline_cause(at, Cause("slow"));
    assert_eq!(ctx.deadline(), Some(at));
    let ctx = BACKGROUND.with_timeout(ms(1500));
    assert_eq!(ctx.deadline(), Some(at));
    let ctx = BACKGROUND.with_timeout_cause(ms(1500), Cause("slow"));
    assert_eq!(ctx.deadline(), Some(at));
}

#[tokio::test(start_paused = true)]
async fn a_later_deadline_below_changes_nothing() {
    let at = Instant::now() + ms(100);
    let parent = BACKGROUND.with_deadline(at);
    let cancel = parent.with_cancel();
    let later = cancel.with_timeout(LONG);
    let latest = later.context().with_value("v").with_deadline_cause(at + LONG, Cause("mine"));
    for ctx in [&parent, &cancel, &later, &latest] {
        assert_eq!(ctx.deadline(), Some(at));
        assert_eq!(ctx.remaining(), Some(ms(100)));
    }
    let error = latest.done().await;
    assert!(Instant::now() >= at);
    assert!(error.cause().is_none(), "its own deadline did not end it");
    assert_same(&error, &ended(&parent));
}

#[tokio::test(start_paused = true)]
async fn an_earlier_deadline_below_holds_below_only() {
    let start = Instant::now();
    let parent = BACKGROUND.with_timeout(ms(200));
    let child = parent.with_timeout(ms(100));
    let grandchild = child.with_cancel();
    assert_eq!(child.deadline(), Some(start + ms(100)));
    assert_eq!(grandchild.deadline(), Some(start + ms(100)));
    assert_eq!(parent.deadline(), Some(start + ms(200)));
    assert_same(&grandchild.done().await, &ended(&child));
    assert_after(start, ms(100));
    assert!(answer(&parent).is_none());
    parent.done().await;
    assert_after(start, ms(200));
}

#[tokio::test(start_paused = true)]
async fn each_further_deadline_can_only_make_it_earlier() {
    let start = Instant::now();
    let mut ctx = Context::background();
    let mut scopes = Vec::new();
    for (timeout, effective) in [(500, 500), (900, 500), (400, 400), (401, 400), (30, 30), (5000, 30)] {
        let next = ctx.with_timeout(ms(timeout));
        ctx = next.clone();
        scopes.push(next);
        assert_eq!(ctx.deadline(), Some(start + ms(effective)));
    }
    let error = ctx.done().await;
    assert_after(start, ms(30));
    assert_eq!(error.origin().budget(), Some(ms(30)));
}

#[tokio::test(start_paused = true)]
async fn with_equal_deadlines_the_child_ends_with_its_parent() {
    let at = Instant::now() + ms(100);
    for child_first in [true, false] {
        let parent = BACKGROUND.with_deadline_cause(at, Cause("parent"));
        let child = parent.with_deadline_cause(at, Cause("child"));
        let grandchild = child.with_cancel();
        if child_first {
            grandchild.done().await;
        } else {
            parent.done().await;
        }
        let error = ended(&child);
        assert!(error.is_deadline_exceeded());
        assert_eq!(word(&error), Some("parent"));
        assert_same(&error, &ended(&parent));
        assert_same(&error, &ended(&grandchild));
    }
}

#[tokio::test(start_paused = true)]
async fn remaining_counts_down_and_stays_at_zero() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    assert_eq!(ctx.remaining(), Some(ms(100)));
    advance(ms(30)).await;
    assert_eq!(ctx.remaining(), Some(ms(70)));
    advance(ms(70)).await;
    assert_eq!(ctx.remaining(), Some(Duration::ZERO));
    advance(ms(1000)).await;
    assert_eq!(ctx.remaining(), Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_still_returned_after_the_end() {
    let at = Instant::now() + ms(100);
    let ctx = BACKGROUND.with_deadline(at);
    ctx.cancel();
    assert_eq!(ctx.deadline(), Some(at));
    let ctx = BACKGROUND.with_deadline(at);
    advance(ms(200)).await;
    assert!(ctx.is_done());
    assert_eq!(ctx.deadline(), Some(at));
}

/// Outside of any runtime, so that no timer is involved.
#[test]
fn zero_and_past_deadlines_end_from_the_start() {
    let now = Instant::now();
    let past = now.checked_sub(ms(1)).unwrap_or(now);
    for ctx in [
        BACKGROUND.with_timeout(Duration::ZERO),
        BACKGROUND.with_timeout_cause(Duration::ZERO, "zero"),
        BACKGROUND.with_deadline(now),
        BACKGROUND.with_deadline(past),
        BACKGROUND.with_deadline_cause(past, "past"),
    ] {
        let error = ended(&ctx);
        assert!(error.is_deadline_exceeded());
        assert_eq!(ctx.remaining(), Some(Duration::ZERO));
        assert!(ended(&ctx.with_cancel()).is_deadline_exceeded());
    }
}

#[tokio::test(start_paused = true)]
async fn a_past_deadline_under_a_live_parent_ends_the_child_alone() {
    advance(LONG).await;
    let parent = BACKGROUND.with_timeout(LONG);
    let child = parent.with_deadline(Instant::now() - ms(1));
    assert!(ended(&child).is_deadline_exceeded());
    assert!(answer(&parent).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_overflows_is_no_deadline_of_its_own() {
    for forever in
        [Duration::MAX, Duration::from_secs(u64::MAX), Duration::MAX - Duration::from_nanos(1)]
    {
        let free = BACKGROUND.with_timeout(forever);
        assert_eq!(free.deadline(), None);
        assert_eq!(free.remaining(), None);
        assert!(answer(&free).is_none());

        let at = Instant::now() + ms(100);
        let parent = BACKGROUND.with_deadline(at);
        let child = parent.with_timeout_cause(forever, Cause("never"));
        assert_eq!(child.deadline(), Some(at));
        let other = child.with_timeout(forever);
        assert_same(&other.done().await, &ended(&parent));
        assert!(ended(&child).cause().is_none());
        drop(child);

        advance(LONG * 24 * 365 * 50).await;
        assert!(answer(&free).is_none());
    }
}

/// Each query is the first one of its context.
#[tokio::test(start_paused = true)]
async fn every_query_reads_the_clock() {
    let queries: [fn(&Context) -> bool; 4] = [
        |ctx| ctx.is_done(),
        |ctx| ctx.err().is_some_and(|error| error.is_deadline_exceeded()),
        |ctx| ctx.check().is_err_and(|error| error.is_deadline_exceeded()),
        |ctx| poll_once(ctx.done()).is_ready(),
    ];
    for query in queries {
        let parent = BACKGROUND.with_timeout(ms(100));
        let child = parent.with_cancel();
        let grandchild = child.with_timeout(ms(200));
        advance(ms(99)).await;
        for ctx in [&grandchild, &child, &parent] {
            assert!(!query(ctx));
        }
        advance(ms(1)).await;
        for ctx in [&grandchild, &child, &parent] {
            assert!(query(ctx));
        }
    }
}

#[test]
fn a_deadline_passes_on_the_real_clock_without_a_runtime() {
    let ctx = BACKGROUND.with_timeout(ms(20));
    let child = ctx.with_cancel();
    let deadline = ctx.deadline().unwrap();
    loop {
        let before = Instant::now();
        let done = child.is_done();
        let after = Instant::now();
        // The result was correct at some time between the two readings.
        assert!(!done || after >= deadline, "early");
        assert!(done || before < deadline, "late");
        if done {
            break;
        }
    }
    assert!(ended(&ctx).is_deadline_exceeded());
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_deadline() {
    for timeout in [1, 10, 100, 12_345, 3_600_000] {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(timeout));
        assert!(ctx.done().await.is_deadline_exceeded());
        assert_after(start, ms(timeout));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_a_deadline_between_two_milliseconds() {
    let start = Instant::now();
    let ctx = BACKGROUND.with_timeout(Duration::from_micros(1500));
    assert!(ctx.done().await.is_deadline_exceeded());
    assert!(start.elapsed() >= Duration::from_micros(1500));
    assert!(start.elapsed() <= ms(3));
}

/// The wait ends at the deadline of an ancestor, although nothing waits on the ancestor or in between.
#[tokio::test(start_paused = true)]
async fn a_wait_far_below_ends_at_the_ancestors_deadline() {
    let start = Instant::now();
    let mut chain = vec![BACKGROUND.with_timeout(ms(100))];
    for _ in 0..50 {
        let next = chain.last().unwrap().with_timeout(LONG);
        chain.push(next);
    }
    let error = chain.last().unwrap().done().await;
    assert_after(start, ms(100));
    assert_eq!(error.origin().budget(), Some(ms(100)));
}

#[tokio::test(start_paused = true)]
async fn without_cancel_drops_the_deadline() {
    let parent = BACKGROUND.with_timeout(ms(100));
    let free = parent.without_cancel();
    assert_eq!(free.deadline(), None);
    assert_eq!(free.remaining(), None);
    let own = free.with_timeout(ms(300));
    assert_eq!(own.remaining(), Some(ms(300)));
    advance(ms(200)).await;
    assert!(ended(&parent).is_deadline_exceeded());
    assert!(answer(&free).is_none());
    assert!(answer(&own).is_none());
    advance(ms(100)).await;
    assert!(ended(&own).is_deadline_exceeded());
    assert!(answer(&free).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_canceled_timeout_reports_the_cancel() {
    let parent = BACKGROUND.with_timeout(ms(1000));
    let child = parent.with_timeout(LONG);
    child.cancel();
    assert!(ended(&child).is_canceled());
    assert!(answer(&parent).is_none());
    advance(ms(1000)).await;
    assert!(ended(&child).is_canceled());
    assert!(ended(&parent).is_deadline_exceeded());
}

/// Many waiters on many contexts: each ends at its own deadline, in order.
#[tokio::test(start_paused = true)]
async fn deadlines_end_in_their_order() {
    let start = Instant::now();
    let parent = BACKGROUND.with_timeout(ms(500));
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    for timeout in [700, 300, 100, 900, 200, 400] {
        let ctx = parent.with_timeout(ms(timeout));
        let sender = sender.clone();
        tokio::spawn(async move {
            let error = ctx.done().await;
            sender.send((error.origin().budget().unwrap(), Instant::now())).unwrap();
        });
    }
    drop(sender);
    for budget in [100, 200, 300, 400, 500, 500] {
        let (ended_budget, at) = ended.recv().await.unwrap();
        assert_eq!(ended_budget, ms(budget));
        assert!(at - start >= ms(budget) && at - start <= ms(budget + 1));
    }
    assert!(ended.recv().await.is_none());
}

/// A wait is not affected by a child with an earlier deadline that is derived later.
#[tokio::test(start_paused = true)]
async fn a_wait_is_not_cut_short_by_a_childs_deadline() {
    let start = Instant::now();
    let parent = BACKGROUND.with_timeout(ms(200));
    let mut wait = Box::pin(parent.done());
    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
    let child = parent.with_timeout(ms(50));
    assert!(child.done().await.is_deadline_exceeded());
    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
    assert_eq!(wait.await.origin().budget(), Some(ms(200)));
    assert_after(start, ms(200));
}

/// Deadlines that lie close together may share a timer. Each wait still ends as `sleep_until` would, also if a later
/// deadline was waited for before.
#[tokio::test(start_paused = true)]
async fn close_deadlines_end_like_sleeps_in_any_order() {
    for step in 0..40 {
        let at = Instant::now() + Duration::from_micros(2_000 + 50 * step);
        let later = BACKGROUND.with_deadline(at + Duration::from_micros(300));
        let sooner = BACKGROUND.with_deadline(at);
        let (later_sleep, sooner_sleep) = (sleep_until(later.deadline().unwrap()), sleep_until(at));
        let ends = tokio::join!(
            async { (later.done().await, Instant::now()).1 },
            async { (sooner.done().await, Instant::now()).1 },
            async { (later_sleep.await, Instant::now()).1 },
            async { (sooner_sleep.await, Instant::now()).1 },
        );
        assert_eq!((ends.0, ends.1), (ends.2, ends.3));
    }
}
