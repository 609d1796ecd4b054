//! Promise 3, *one answer*: once one of `is_done`, `err`, `check` and `done` has reported the end, all of them
//! do, on every thread and with the same error. A context that is derived from an ended one has ended with that
//! error.

mod common;

use std::sync::{Arc, Barrier, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use common::{
    Cause, Dice, LONG, assert_same, ended, ms, poll, poll_once, same, spin_until, watched, word,
};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Context, Error};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Keeps alive what the context of a test depends on.
type Kept = Box<dyn std::any::Any>;

/// A way to end a context without observing the end: its name, and the ended context.
type End = (&'static str, fn(&Context) -> (Context, Kept));

/// Runs one query, and returns its error and whether it reported the end. `is_done` returns no error.
type Query = (&'static str, fn(&Context) -> (bool, Option<Error>));

/// Each takes a base (the background or a deeper context) and returns a context that ends after 100 ms.
const ENDS: &[End] = &[
    ("cancelled", |base| {
        let ctx = base.with_cancel();
        ctx.cancel();
        (ctx.clone(), Box::new(ctx))
    }),
    ("canceled with a cause", |base| {
        let ctx = base.with_timeout(LONG);
        ctx.cancel_with(Cause("why"));
        (ctx.clone(), Box::new(ctx))
    }),
    ("scope dropped", |base| {
        let scope = base.with_cancel();
        (scope.clone(), Box::new(()))
    }),
    ("guard dropped", |base| {
        let (ctx, guard) = base.with_cancel().split();
        drop(guard);
        (ctx, Box::new(()))
    }),
    ("deadline", |base| {
        let ctx = base.with_timeout(ms(100));
        (ctx.clone(), Box::new(ctx))
    }),
    ("deadline with a cause", |base| {
        let ctx = base.with_timeout_cause(ms(100), Cause("slow"));
        (ctx.clone(), Box::new(ctx))
    }),
    ("ended from the start", |base| {
        let ctx = base.with_timeout(ms(0));
        (ctx.clone(), Box::new(ctx))
    }),
    ("parent canceled", |base| {
        let parent = base.with_cancel();
        let ctx = parent.with_timeout(LONG);
        parent.cancel_with(Cause("parent"));
        (ctx.clone(), Box::new((parent, ctx)))
    }),
    ("parent's scope dropped", |base| {
        let parent = base.with_cancel();
        let ctx = parent.with_cancel();
        drop(parent);
        (ctx.clone(), Box::new(ctx))
    }),
    ("parent's deadline", |base| {
        let parent = base.with_timeout(ms(100));
        let ctx = parent.context().with_value(1).with_timeout(LONG);
        (ctx.clone(), Box::new((parent, ctx)))
    }),
    ("left of a merge canceled", |base| {
        let left = base.with_cancel();
        let ctx = left.merge(&Context::background());
        left.cancel_with(Cause("left"));
        (ctx.clone(), Box::new((left, ctx)))
    }),
    ("right of a merge canceled", |base| {
        let right = Context::background().with_cancel();
        let ctx = base.merge(&right);
        right.cancel_with(Cause("right"));
        (ctx.clone(), Box::new((right, ctx)))
    }),
    ("right of a merge past its deadline", |base| {
        let right = Context::background().with_timeout(ms(100));
        let ctx = base.merge(&right);
        (ctx.clone(), Box::new((right, ctx)))
    }),
    ("token canceled", |base| {
        let token = CancellationToken::new();
        let ctx = base.with_token(&token);
        token.cancel();
        (ctx.clone(), Box::new((token, ctx)))
    }),
];

const QUERIES: [Query; 4] = [
    ("is_done", |ctx| (ctx.is_done(), None)),
    ("err", |ctx| {
        let error = ctx.err();
        (error.is_some(), error)
    }),
    ("check", |ctx| {
        let error = ctx.check().err();
        (error.is_some(), error)
    }),
    ("done", |ctx| match poll_once(ctx.done()) {
        Poll::Ready(error) => (true, Some(error)),
        Poll::Pending => (false, None),
    }),
];

/// Every way to end, every query as the first one, with and without an earlier waiter, on the context itself
/// and twenty levels below: all report the end with the same error.
#[tokio::test(start_paused = true)]
async fn whichever_query_comes_first_all_agree() {
    for &(how, end) in ENDS {
        for (name, query) in QUERIES {
            for depth in [0, 1, 20] {
                let case = format!("{how}, {name} first, {depth} below");
                let (ctx, _kept) = end(&BACKGROUND);
                let mut below = ctx.clone();
                let mut scopes: Vec<CancelScope> = Vec::new();
                for _ in 0..depth {
                    let next = below.with_cancel();
                    below = next.clone();
                    scopes.push(next);
                }
                advance(ms(100)).await;
                tokio::task::yield_now().await; // lets with_token's task run, if it needs one
                let (first, reported) = query(&below);
                assert!(first, "{case}: not ended");
                let error = ended(&below);
                if let Some(reported) = reported {
                    assert_same(&reported, &error);
                }
                assert_same(&ended(&ctx), &error);
                assert_same(&ended(&below.clone()), &error);
                for (_, query) in QUERIES {
                    let (again, reported) = query(&below);
                    assert!(again, "{case}: no longer reports the end");
                    assert!(reported.is_none_or(|reported| same(&reported, &error)), "{case}");
                }
            }
        }
    }
}

/// The same with a waiter from before the end, which gets the same error.
#[tokio::test(start_paused = true)]
async fn a_waiter_from_before_gets_the_same_error() {
    let parent = BACKGROUND.with_timeout(ms(100));
    let child = parent.with_cancel();
    let waits: Vec<_> = (0..5).map(|_| tokio::spawn(child.done_owned())).collect();
    let parent_waits: Vec<_> = (0..5).map(|_| tokio::spawn(parent.done_owned())).collect();
    tokio::task::yield_now().await;
    advance(ms(150)).await;
    parent.cancel();
    let error = ended(&parent);
    for wait in waits.into_iter().chain(parent_waits) {
        assert_same(&wait.await.unwrap(), &error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_context_derived_from_an_ended_one_has_its_error() {
    let token = CancellationToken::new();
    for &(how, end) in ENDS {
        for observed in [true, false] {
            let (ctx, _kept) = end(&BACKGROUND);
            advance(ms(100)).await;
            tokio::task::yield_now().await;
            if observed {
                assert!(ctx.is_done());
            }
            let now = Instant::now();
            let derived: Vec<(&str, CancelScope)> = vec![
                ("with_cancel", ctx.with_cancel()),
                ("with_timeout", ctx.with_timeout(LONG)),
                ("with_timeout zero", ctx.with_timeout(ms(0))),
                ("with_timeout_cause", ctx.with_timeout_cause(LONG, Cause("mine"))),
                ("with_timeout_cause zero", ctx.with_timeout_cause(ms(0), Cause("mine"))),
                ("with_deadline", ctx.with_deadline(now + LONG)),
                ("with_deadline now", ctx.with_deadline(now)),
                ("with_deadline_cause", ctx.with_deadline_cause(now + LONG, Cause("mine"))),
                ("merge", ctx.merge(&Context::background())),
                ("merge from the right", Context::background().merge(&ctx)),
                ("merge with itself", ctx.merge(&ctx)),
                ("with_token", ctx.with_token(&token)),
            ];
            let value = ctx.with_value(5);
            let error = ended(&ctx);
            assert_same(&ended(&value), &error);
            assert_eq!(value.value(), Some(&5));
            for (derive, child) in derived {
                assert!(child.is_done(), "{how}, then {derive}");
                assert!(same(&ended(&child), &error), "{how}, then {derive}: {:?}", child.err());
                child.cancel_with(Cause("too late"));
                assert_same(&ended(&child), &error);
                assert_same(&ended(&child.with_cancel()), &error);
            }
            assert!(ctx.cancellation_token().is_cancelled(), "{how}, then cancellation_token");
            assert!(!token.is_cancelled());
        }
    }
}

#[test]
fn a_child_of_a_canceled_parent_has_its_cause_at_once() {
    let parent = BACKGROUND.with_cancel();
    parent.cancel_with(Cause("because"));
    let child = parent.with_cancel();
    let error = ended(&child);
    assert!(error.is_canceled());
    assert_eq!(word(&error), Some("because"));
}

#[test]
fn a_child_of_a_parent_being_canceled_has_its_cause() {
    watched(|| {
        for _ in 0..1000 {
            let (parent, guard) = BACKGROUND.with_cancel().split();
            let canceler = thread::spawn(move || guard.cancel_with(Cause("because")));
            let child = parent.with_cancel();
            let error = futures::executor::block_on(child.done());
            assert_eq!(word(&error), Some("because"));
            assert_same(&error, &ended(&parent));
            canceler.join().unwrap();
        }
    });
}

/// A query reports the end while `cancel` is still running on another thread. Every other query of that context
/// agrees immediately, and queries of the other contexts agree once `cancel` has returned.
#[test]
fn no_query_lags_behind_another_during_a_cancel() {
    watched(|| {
        for round in 0..3000 {
            let mut dice = Dice::new(round);
            let mut chain = vec![BACKGROUND.with_cancel()];
            let root = chain[0].canceler();
            // Every other time, the hardest case: from the top to the bottom of a long path.
            let all_the_way = round % 2 == 0;
            for _ in 0..if all_the_way { 100 } else { [2, 9, 30][dice.roll(3)] } {
                let next = chain.last().unwrap().with_cancel();
                chain.push(next);
            }
            // Further contexts, so that propagating the end takes some time.
            let waits: Vec<_> = (0..dice.roll(40))
                .map(|_| {
                    let at = if all_the_way { chain.len() - 1 } else { dice.roll(chain.len()) };
                    let mut wait = Box::pin(chain[at].done_owned());
                    assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
                    wait
                })
                .collect();
            let start = Arc::new(Barrier::new(2));
            let canceler = {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    root.cancel_with(Cause("now"));
                })
            };
            let (_, query) = QUERIES[dice.roll(4)];
            let queried = if all_the_way { 0 } else { dice.roll(chain.len()) };
            start.wait();
            spin_until(|| query(&chain[queried]).0);
            let (name, query) = QUERIES[dice.roll(4)];
            assert!(query(&chain[queried]).0, "{name} lags behind at level {queried}");
            let error = ended(&chain[queried]);
            assert_eq!(word(&error), Some("now"));
            canceler.join().unwrap();
            dice.shuffle(&mut chain);
            for ctx in &chain {
                assert_same(&ended(ctx), &error);
            }
            drop(waits);
        }
    });
}

/// One thread sees the end and notifies a second one, which had not queried the context. It sees the same.
#[test]
fn a_thread_that_is_notified_of_the_end_observes_the_same_error() {
    watched(|| {
        let (sender, receiver) = mpsc::channel::<(Context, Error)>();
        let listener = thread::spawn(move || {
            let mut received = 0;
            for (ctx, error) in receiver {
                assert_same(&ended(&ctx), &error);
                received += 1;
            }
            received
        });
        for round in 0..1000 {
            let (parent, parent_guard) = BACKGROUND.with_cancel().split();
            let (child, child_guard) = parent.with_cancel().split();
            let start = Arc::new(Barrier::new(3));
            let cancelers = [(parent_guard, "parent"), (child_guard, "child")].map(|(guard, own)| {
                let start = start.clone();
                thread::spawn(move || {
                    start.wait();
                    guard.cancel_with(Cause(own));
                })
            });
            start.wait();
            let (_, query) = QUERIES[round % 4];
            spin_until(|| query(&child).0);
            let error = child.err().unwrap();
            sender.send((child.clone(), error.clone())).unwrap();
            for canceler in cancelers {
                canceler.join().unwrap();
            }
            // The child has whichever came first. The parent has only its own.
            assert_same(&ended(&child), &error);
            assert_eq!(word(&ended(&parent)), Some("parent"));
            if word(&error) == Some("parent") {
                assert_same(&error, &ended(&parent));
            }
        }
        drop(sender);
        assert_eq!(listener.join().unwrap(), 1000);
    });
}

/// Several threads detect that a deadline has passed, while another one cancels at about the same time. There
/// is one error.
#[test]
fn a_deadline_and_a_cancel_at_the_same_time_make_one_error() {
    watched(|| {
        let runtime = common::current_thread(); // for the timers that `done` asks for
        for round in 0..400_u32 {
            let parent = BACKGROUND.with_timeout(ms(1));
            let scope = parent.with_cancel();
            let ctx = scope.clone();
            let start = Arc::new(Barrier::new(4));
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let (ctx, start) = (ctx.clone(), start.clone());
                    let (_, query) = QUERIES[(round as usize + thread) % 4];
                    let runtime = runtime.handle().clone();
                    thread::spawn(move || {
                        let _entered = runtime.enter();
                        start.wait();
                        spin_until(|| query(&ctx).0);
                        (ended(&ctx), ended(&ctx))
                    })
                })
                .collect();
            start.wait();
            // From well before the deadline to well after it.
            let at = Instant::now() + std::time::Duration::from_micros(u64::from(round) * 5);
            spin_until(|| Instant::now() >= at);
            scope.cancel_with(Cause("by hand"));
            let error = ended(&ctx);
            for thread in threads {
                let (one, two) = thread.join().unwrap();
                assert_same(&one, &error);
                assert_same(&two, &error);
            }
            match word(&error) {
                Some("by hand") => assert!(error.is_canceled()),
                _ => assert_same(&error, &ended(&parent)),
            }
        }
    });
}

/// Spins on `err` alone. The error is complete as soon as there is one.
#[test]
fn the_cause_is_available_as_soon_as_the_end_is() {
    watched(|| {
        for round in 0..1000 {
            let (ctx, guard) = BACKGROUND.with_cancel().split();
            let child = ctx.with_cancel();
            let canceler = thread::spawn(move || guard.cancel_with(Cause("whole")));
            let queried = if round % 2 == 0 { &ctx } else { &child };
            let mut first = None;
            spin_until(|| {
                first = queried.err();
                first.is_some()
            });
            let error = first.unwrap();
            assert_eq!(word(&error), Some("whole"));
            assert!(error.origin().canceled_at().is_some());
            canceler.join().unwrap();
        }
    });
}
