//! Conversions from and to tokio-util's `CancellationToken`: `with_token` ends a context with a token,
//! `cancellation_token` cancels a token with a context, and neither has an effect in the other direction.

mod common;

use std::pin::pin;
use std::sync::{Arc, Barrier, mpsc};
use std::task::Waker;
use std::thread;

use common::{
    Cause, HANG, LONG, Wakes, answer, assert_same, current_thread, ended, ms, multi_thread, on_both,
    panic_text, paused, poll, poll_once, spin_until, watched, word,
};
use tokio::time::{Instant, advance, timeout};
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

#[test]
fn a_canceled_token_ends_the_context_at_once() {
    for queried_before in [false, true] {
        let token = CancellationToken::new();
        let ctx = BACKGROUND.with_token(&token);
        if queried_before {
            assert!(answer(&ctx).is_none());
        }
        token.cancel();
        assert!(ctx.is_done());
        let error = ended(&ctx);
        assert!(error.is_canceled());
        assert!(error.cause().is_none() && error.origin().canceled_at().is_none());
    }
}

#[test]
fn a_token_that_was_canceled_before_ends_it_from_the_start() {
    let token = CancellationToken::new();
    token.cancel();
    let ctx = BACKGROUND.with_token(&token);
    assert!(ctx.is_done());
    let error = ended(&ctx);
    assert!(error.is_canceled());
    ctx.cancel_with(Cause("too late"));
    assert_same(&ended(&ctx), &error);
}

#[test]
fn a_parent_or_child_of_the_token_counts_as_it_does_there() {
    let above = CancellationToken::new();
    let token = above.child_token();
    let below = token.child_token();
    let ctx = BACKGROUND.with_token(&token);
    below.cancel();
    assert!(answer(&ctx).is_none());
    above.cancel();
    assert!(ended(&ctx).is_canceled());
}

#[test]
fn the_context_never_cancels_the_token() {
    let token = CancellationToken::new();
    for way in 0..4 {
        let parent = BACKGROUND.with_cancel();
        let scope = parent.with_token(&token);
        let ctx = scope.clone();
        match way {
            0 => scope.cancel(),
            1 => drop(scope),
            2 => parent.cancel(),
            _ => drop((ctx, scope)),
        }
        assert!(!token.is_cancelled());
    }
}

#[test]
fn the_context_also_ends_by_its_scope_its_parent_and_its_deadline() {
    let token = CancellationToken::new();
    let parent = BACKGROUND.with_value("kept").with_cancel();
    let ctx = parent.with_token(&token);
    assert_eq!(ctx.value(), Some(&"kept"));
    ctx.cancel_with(Cause("scope"));
    assert_eq!(word(&ended(&ctx)), Some("scope"));
    token.cancel();
    assert_eq!(word(&ended(&ctx)), Some("scope"), "the first end stands");

    let token = CancellationToken::new();
    let ctx = parent.with_token(&token);
    parent.cancel_with(Cause("parent"));
    token.cancel();
    assert_eq!(word(&ended(&ctx)), Some("parent"));

    let token = CancellationToken::new();
    let late = BACKGROUND.with_timeout(ms(0));
    let ctx = late.with_token(&token);
    token.cancel();
    assert!(ended(&ctx).is_deadline_exceeded());
}

#[test]
fn a_later_scope_does_not_change_the_tokens_end() {
    let token = CancellationToken::new();
    let scope = BACKGROUND.with_token(&token);
    let ctx = scope.clone();
    token.cancel();
    scope.cancel_with(Cause("too late"));
    let error = ended(&ctx);
    assert!(error.cause().is_none(), "{error}");
    drop(scope);
    assert_same(&ended(&ctx), &error);
}

#[test]
fn a_wait_is_woken_when_the_token_is_canceled() {
    on_both(|| async {
        let token = CancellationToken::new();
        let ctx = BACKGROUND.with_token(&token);
        let waits: Vec<_> = (0..20).map(|_| tokio::spawn(ctx.done_owned())).collect();
        let run = ctx.spawn({
            let ctx = ctx.clone();
            async move { ctx.run(std::future::pending::<()>()).await.unwrap_err() }
        });
        tokio::task::yield_now().await;
        token.cancel();
        let error = ended(&ctx);
        for wait in waits {
            assert_same(&timeout(HANG, wait).await.expect("hung").unwrap(), &error);
        }
        assert_same(&timeout(HANG, run).await.expect("hung").unwrap(), &error);
    });
}

#[test]
fn a_wait_outside_a_runtime_is_woken_when_the_token_is_canceled() {
    watched(|| {
        for round in 0..500 {
            let token = CancellationToken::new();
            let ctx = BACKGROUND.with_token(&token);
            let child = ctx.with_cancel();
            let start = Arc::new(Barrier::new(2));
            let waiter = {
                let (waited, start) = (if round % 2 == 0 { ctx } else { child }, start.clone());
                thread::spawn(move || {
                    start.wait();
                    futures::executor::block_on(waited.done())
                })
            };
            start.wait();
            token.cancel();
            assert!(waiter.join().unwrap().is_canceled());
        }
    });
}

#[test]
fn descendants_of_a_token_end_with_it() {
    for waited in [false, true] {
        let (one, two) = (CancellationToken::new(), CancellationToken::new());
        let top = BACKGROUND.with_token(&one);
        let middle = top.context().with_value("v").with_token(&two);
        let mut chain = vec![middle];
        for _ in 0..30 {
            let next = chain.last().unwrap().with_cancel();
            chain.push(next);
        }
        let aside = top.with_cancel();
        let merged = aside.merge(&chain[30]);
        let (wakes, waker) = Wakes::new();
        let mut waits = [&chain[30], &merged, &aside].map(|ctx| Box::pin(ctx.done()));
        if waited {
            for wait in &mut waits {
                assert!(poll(wait.as_mut(), &waker).is_pending());
            }
        }
        two.cancel();
        if waited {
            assert!(wakes.count() >= 2);
        }
        let error = ended(&chain[30]);
        assert!(error.is_canceled());
        for ctx in chain.iter().chain([&merged]) {
            assert!(ctx.is_done());
            assert_same(&ended(ctx), &error);
        }
        assert!(answer(&top).is_none(), "the end reached an ancestor");
        assert!(answer(&aside).is_none(), "the end reached a sibling");
        drop(waits);
        one.cancel();
        assert!(ended(&aside).is_canceled());
        assert_same(&ended(&aside), &ended(&top));
        assert_same(&ended(&chain[30]), &error);
    }
}

#[test]
fn a_dropped_wait_leaves_no_waker_with_the_token() {
    let token = CancellationToken::new();
    let ctx = BACKGROUND.with_token(&token);
    let (wakes, waker) = Wakes::new();
    for _ in 0..100 {
        assert!(poll(pin!(ctx.done()), &waker).is_pending());
    }
    drop(waker);
    assert_eq!(Arc::strong_count(&wakes), 1);
    token.cancel();
    assert_eq!(wakes.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_and_a_deadline_whichever_comes_first() {
    let token = CancellationToken::new();
    let timed = BACKGROUND.with_timeout(ms(100));
    let ctx = timed.with_token(&token);
    assert_eq!(ctx.remaining(), Some(ms(100)));
    assert!(ctx.done().await.is_deadline_exceeded());
    token.cancel();
    assert!(ended(&ctx).is_deadline_exceeded());

    let ctx = BACKGROUND.with_token(&token);
    let timed = ctx.with_timeout(ms(100));
    advance(ms(200)).await;
    // Canceled before it was made, let alone before its deadline.
    assert!(ended(&timed).is_canceled());
}

#[test]
fn with_token_works_inside_and_outside_of_any_runtime() {
    let check = || {
        let token = CancellationToken::new();
        let ctx = BACKGROUND.with_token(&token);
        let child = ctx.with_cancel();
        assert!(!child.is_done());
        token.cancel();
        assert!(child.is_done());
    };
    check();
    current_thread().block_on(async { check() });
    multi_thread(1).block_on(async { check() });
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { check() });
}

#[test]
fn a_handed_out_token_is_canceled_before_cancel_returns() {
    for case in 0..8 {
        // The token counts also if there is no other handle.
        let (way, has_handles) = (case % 4, case < 4);
        let parent = BACKGROUND.with_cancel();
        let scope = parent.with_cancel();
        let _handles = has_handles.then(|| [parent.clone(), scope.clone()]);
        let token = scope.cancellation_token();
        let child = token.child_token();
        assert!(!token.is_cancelled());
        match way {
            0 => scope.cancel(),
            1 => drop(scope),
            2 => parent.cancel_with(Cause("parent")),
            _ => drop(parent),
        }
        assert!(token.is_cancelled(), "case {case}");
        assert!(child.is_cancelled());
    }
}

/// A context with a deadline does not learn of a cancel later than others do.
#[test]
fn a_handed_out_token_of_a_timed_context_is_canceled_before_cancel_returns() {
    on_both(|| async {
        let ctx = BACKGROUND.with_timeout(LONG);
        let token = ctx.cancellation_token();
        tokio::task::yield_now().await;
        assert!(!token.is_cancelled());
        ctx.cancel();
        assert!(token.is_cancelled());
    });
}

#[test]
fn a_returned_token_wakes_its_waiters() {
    watched(|| {
        for _ in 0..500 {
            let ctx = BACKGROUND.with_cancel();
            let token = ctx.cancellation_token();
            let waiter = thread::spawn(move || futures::executor::block_on(token.cancelled()));
            ctx.cancel();
            waiter.join().unwrap();
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_handed_out_token_is_canceled_at_the_deadline() {
    for child in [false, true] {
        let start = Instant::now();
        let timed = BACKGROUND.with_timeout(ms(100));
        let below = timed.with_cancel();
        let ctx = if child { below.clone() } else { timed.clone() };
        let token = ctx.cancellation_token();
        drop(ctx);
        timeout(HANG, token.cancelled()).await.expect("never canceled");
        assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
    }
}

#[test]
fn canceling_a_handed_out_token_touches_nothing_else() {
    on_both(|| async {
        let parent = BACKGROUND.with_cancel();
        let timed = parent.with_timeout(LONG);
        for ctx in [&parent, timed.context(), &Context::background()] {
            let (one, two) = (ctx.cancellation_token(), ctx.cancellation_token());
            one.cancel();
            tokio::task::yield_now().await;
            assert!(answer(ctx).is_none());
            assert!(!two.is_cancelled(), "canceled by another's token");
            assert!(!ctx.cancellation_token().is_cancelled());
        }
    });
}

#[test]
fn a_token_of_an_ended_context_is_canceled() {
    let canceled = BACKGROUND.with_cancel();
    let before = canceled.cancellation_token();
    canceled.cancel();
    let late = BACKGROUND.with_timeout(ms(0));
    let [value, child] = [canceled.context().with_value(1), canceled.with_cancel().context().clone()];
    for ctx in [canceled.context(), &late, &value, &child] {
        assert!(ctx.cancellation_token().is_cancelled());
    }
    assert!(before.is_cancelled());
}

#[test]
fn a_token_of_background_is_never_canceled() {
    let token = BACKGROUND.cancellation_token();
    assert!(!token.is_cancelled());
    assert!(poll_once(token.cancelled()).is_pending());
    let ctx = BACKGROUND.with_token(&token);
    assert!(answer(&ctx).is_none());
}

/// The token is the only handle that is left.
#[test]
fn a_handed_out_token_outlives_the_handles() {
    let scope = BACKGROUND.with_cancel();
    let parent = scope.clone();
    let token = {
        let child = parent.with_cancel().detach();
        child.cancellation_token()
    };
    drop(parent);
    assert!(!token.is_cancelled());
    scope.cancel();
    assert!(token.is_cancelled());
}

#[test]
fn a_token_may_be_bound_to_its_own_context() {
    let ctx = BACKGROUND.with_cancel();
    let token = ctx.cancellation_token();
    let back = BACKGROUND.with_token(&token).detach();
    let (wakes, waker) = Wakes::new();
    let mut wait = pin!(back.done());
    assert!(poll(wait.as_mut(), &waker).is_pending());
    ctx.cancel_with(Cause("round"));
    assert!(wakes.count() >= 1);
    assert!(ended(&back).is_canceled());
    assert!(poll(wait.as_mut(), Waker::noop()).is_ready());
}

#[test]
fn a_token_of_a_context_below_a_token_is_canceled_with_it() {
    on_both(|| async {
        let outer = CancellationToken::new();
        let ctx = BACKGROUND.with_token(&outer);
        let child = ctx.with_cancel();
        let inner = child.cancellation_token();
        outer.cancel();
        timeout(HANG, inner.cancelled()).await.expect("never canceled");
        assert!(child.is_done());
    });
}

#[test]
fn a_token_of_a_deadline_outside_a_runtime_panics_with_the_reason() {
    let ctx = BACKGROUND.with_timeout(LONG);
    let text = panic_text(|| ctx.cancellation_token());
    assert!(text.contains("Tokio") && text.contains("runtime"), "{text}");
    let without_timers = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let entered = without_timers.enter();
    for limited in [&ctx, &BACKGROUND.with_idle(LONG)] {
        let text = panic_text(|| limited.cancellation_token());
        assert!(text.contains("timers are disabled"), "{text}");
    }
    drop(entered);
    ctx.cancel();
    assert!(ctx.cancellation_token().is_cancelled(), "an earlier end needs no runtime");
}

/// The task that watches the deadline ran on a runtime that has shut down. A cancel needs no runtime.
#[test]
fn a_handed_out_token_survives_the_runtime_it_was_made_on() {
    watched(|| {
        for first in [current_thread(), multi_thread(1)] {
            let ctx = BACKGROUND.with_timeout(LONG);
            let token = first.block_on(async { ctx.cancellation_token() });
            first.block_on(tokio::task::yield_now());
            drop(first);
            assert!(!token.is_cancelled() && !ctx.is_done());
            ctx.cancel();
            assert!(ctx.is_done());
            assert!(token.is_cancelled(), "the cancel was lost with the runtime");
        }
    });
}

/// The first runtime exists, but nothing drives it.
#[test]
fn a_token_of_another_runtime_sees_the_deadline_while_the_first_one_stalls() {
    let ctx = BACKGROUND.with_timeout(ms(20));
    let first = current_thread();
    let kept = first.block_on(async { ctx.cancellation_token() });
    current_thread().block_on(async {
        let token = ctx.cancellation_token();
        timeout(HANG, token.cancelled()).await.expect("never canceled");
        assert!(kept.is_cancelled());
    });
}

#[test]
fn a_token_requested_again_on_another_runtime_sees_the_deadline() {
    let ctx = BACKGROUND.with_timeout(LONG);
    let first = current_thread();
    let kept = first.block_on(async { ctx.cancellation_token() });
    first.block_on(tokio::task::yield_now());
    drop(first);
    paused().block_on(async {
        let token = ctx.cancellation_token();
        timeout(LONG * 2, token.cancelled()).await.expect("never canceled");
        assert!(ctx.is_done());
        assert!(kept.is_cancelled());
    });
}

#[test]
fn a_token_and_a_guard_at_the_same_time_make_one_error() {
    watched(|| {
        for _ in 0..1000 {
            let token = CancellationToken::new();
            let (ctx, guard) = BACKGROUND.with_token(&token).split();
            let child = ctx.with_cancel();
            let start = Arc::new(Barrier::new(3));
            let (sender, receiver) = mpsc::channel();
            let by_token = {
                let (token, start) = (token.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    token.cancel();
                })
            };
            let by_guard = {
                let (child, start) = (child.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    guard.cancel_with(Cause("guard"));
                    sender.send(ended(&child)).unwrap();
                })
            };
            start.wait();
            spin_until(|| child.is_done());
            let error = ended(&child);
            by_token.join().unwrap();
            by_guard.join().unwrap();
            assert_same(&receiver.recv().unwrap(), &error);
            assert_same(&ended(&ctx), &error);
            assert_same(&ended(&child), &error);
        }
    });
}
