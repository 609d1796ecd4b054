//! Promise 5: an ended context starts no work, and finished work is never discarded, in `run`, `try_run`,
//! `within` and `sleep`.

mod common;

use std::cell::Cell;
use std::future::{pending, poll_fn, ready};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use common::{
    Cause, Drops, LONG, Wakes, answer, assert_same, ended, ms, on_both, panic_text, poll, poll_once,
    word,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, advance};
use tokio_ctx::{Context, Error, ErrorKind};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// A future that records its polls and its drop, and never resolves.
fn watched_future(polls: &Rc<Cell<usize>>, drops: &Drops) -> impl Future<Output = ()> + use<> {
    let polls = polls.clone();
    let counted = drops.counted();
    poll_fn(move |_| {
        let _ = &counted;
        polls.set(polls.get() + 1);
        Poll::Pending
    })
}

#[tokio::test(start_paused = true)]
async fn run_returns_the_result_of_finished_work() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    assert_eq!(ctx.run(ready(7)).await.unwrap(), 7);
    let slow = async {
        tokio::time::sleep(ms(50)).await;
        "done"
    };
    assert_eq!(ctx.run(slow).await.unwrap(), "done");
    assert_eq!(BACKGROUND.run(ready(8)).await.unwrap(), 8);
    assert!(answer(&ctx).is_none(), "finishing work is not an end");
}

#[tokio::test(start_paused = true)]
async fn run_ends_at_the_deadline() {
    let start = Instant::now();
    let ctx = BACKGROUND.with_timeout(ms(100));
    let error = ctx.run(tokio::time::sleep(LONG)).await.unwrap_err();
    assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
    assert!(error.is_deadline_exceeded());
    assert_same(&error, &ended(&ctx));
}

#[test]
fn run_ends_by_a_cancel_from_another_task() {
    on_both(|| async {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let (started, has_started) = oneshot::channel();
        let task = tokio::spawn({
            let ctx = ctx.clone();
            async move {
                ctx.run(async {
                    started.send(()).unwrap();
                    pending::<()>().await;
                })
                .await
            }
        });
        has_started.await.unwrap();
        scope.cancel_with(Cause("hung up"));
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(word(&error), Some("hung up"));
        assert_same(&error, &ended(&ctx));
    });
}

/// However the context has ended, and whether that was observed or not, the future is dropped without being
/// polled.
#[tokio::test(start_paused = true)]
async fn an_ended_context_never_polls_the_future() {
    type End = fn() -> (Context, Box<dyn std::any::Any>);
    let cases: [End; 6] = [
        || {
            let ctx = BACKGROUND.with_cancel();
            ctx.cancel();
            (ctx.clone(), Box::new(ctx))
        },
        || {
            let scope = BACKGROUND.with_cancel();
            (scope.clone(), Box::new(()))
        },
        || {
            let (ctx, guard) = BACKGROUND.with_cancel().split();
            drop(guard);
            (ctx, Box::new(()))
        },
        || {
            let ctx = BACKGROUND.with_timeout(ms(0));
            (ctx.clone(), Box::new(ctx))
        },
        || {
            let ctx = BACKGROUND.with_timeout(ms(100));
            (ctx.clone(), Box::new(ctx))
        },
        || {
            let parent = BACKGROUND.with_cancel();
            let ctx = parent.with_cancel();
            parent.cancel();
            (ctx.clone(), Box::new(ctx))
        },
    ];
    for (case, end) in cases.into_iter().enumerate() {
        for observed in [true, false] {
            let (ctx, _kept) = end();
            advance(ms(100)).await;
            if observed {
                assert!(ctx.is_done());
            }
            let (polls, drops) = (Rc::default(), Drops::default());
            let result = ctx.run(watched_future(&polls, &drops)).await;
            assert_same(&result.unwrap_err(), &ended(&ctx));
            assert_eq!((polls.get(), drops.count()), (0, 1), "case {case}");
            let ready = ctx.run(ready(1)).await;
            assert!(ready.is_err(), "case {case}: even ready work is not started");
        }
    }
}

/// `run` checks the context when it is first polled, not when it is created.
#[tokio::test(start_paused = true)]
async fn a_context_that_ends_before_the_first_poll_starts_no_work() {
    for by_deadline in [true, false] {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let (polls, drops) = (Rc::default(), Drops::default());
        let run = ctx.run(watched_future(&polls, &drops));
        if by_deadline {
            advance(ms(100)).await;
        } else {
            ctx.cancel();
        }
        assert!(run.await.is_err());
        assert_eq!((polls.get(), drops.count()), (0, 1));
    }
}

/// The work finishes, then the context ends, and then the task runs: the result is kept.
#[tokio::test(start_paused = true)]
async fn a_ready_result_wins_over_the_end() {
    for by_deadline in [true, false] {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let (send, receive) = oneshot::channel();
        let mut run = pin!(ctx.run(receive));
        assert!(poll(run.as_mut(), Waker::noop()).is_pending());
        send.send(5).unwrap();
        if by_deadline {
            advance(ms(100)).await;
        } else {
            ctx.cancel();
        }
        assert!(ctx.is_done());
        let Poll::Ready(Ok(Ok(5))) = poll(run.as_mut(), Waker::noop()) else {
            panic!("finished work was discarded");
        };
    }
}

/// The future ends its own context and resolves in the same poll.
#[test]
fn work_that_ends_its_own_context_and_finishes_keeps_its_result() {
    let ctx = BACKGROUND.with_cancel();
    let run = ctx.run(async {
        ctx.cancel();
        "finished"
    });
    assert!(matches!(poll_once(run), Poll::Ready(Ok("finished"))));
}

/// The future ends its own context in its first poll, and is then pending. Nothing else will wake it.
#[test]
fn work_that_ends_its_own_context_and_is_pending_is_ended() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let mut run = pin!(ctx.run(async {
        ctx.cancel();
        pending::<()>().await;
    }));
    let first = poll(run.as_mut(), &waker);
    assert!(first.is_ready() || wakes.count() > 0, "it would never be polled again");
    if first.is_pending() {
        assert!(poll(run.as_mut(), &waker).is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn the_future_is_dropped_before_run_returns() {
    for by_deadline in [true, false] {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let (polls, drops) = (Rc::default(), Drops::default());
        let mut run = pin!(ctx.run(watched_future(&polls, &drops)));
        assert!(poll(run.as_mut(), Waker::noop()).is_pending());
        assert_eq!((polls.get(), drops.count()), (1, 0));
        if by_deadline {
            advance(ms(100)).await;
        } else {
            ctx.cancel();
        }
        assert_eq!(drops.count(), 0, "dropped too early");
        assert!(poll(run.as_mut(), Waker::noop()).is_ready());
        // `run` itself has not been dropped yet.
        assert_eq!(drops.count(), 1);
    }
}

#[test]
fn dropping_run_drops_the_future_and_leaves_no_waker() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let (polls, drops) = (Rc::default(), Drops::default());
    {
        let mut run = pin!(ctx.run(watched_future(&polls, &drops)));
        assert!(poll(run.as_mut(), &waker).is_pending());
    }
    assert_eq!(drops.count(), 1);
    drop(waker);
    assert_eq!(std::sync::Arc::strong_count(&wakes), 1, "a waker was left behind");
    ctx.cancel();
    assert_eq!(wakes.count(), 0);
}

#[test]
fn run_is_woken_by_the_future_and_by_the_context() {
    let ctx = BACKGROUND.with_cancel();
    let (wakes, waker) = Wakes::new();
    let (send, mut receive) = mpsc::unbounded_channel();
    let mut run = pin!(ctx.run(async {
        receive.recv().await.unwrap();
        receive.recv().await
    }));
    assert!(poll(run.as_mut(), &waker).is_pending());
    send.send(1).unwrap();
    assert_eq!(wakes.count(), 1);
    assert!(poll(run.as_mut(), &waker).is_pending());
    ctx.cancel();
    assert_eq!(wakes.count(), 2);
    assert!(matches!(poll(run.as_mut(), &waker), Poll::Ready(Err(_))));
}

#[tokio::test]
async fn the_future_under_run_may_borrow() {
    let ctx = BACKGROUND.with_cancel();
    let mut count = 0;
    let text = String::from("borrowed");
    let length = ctx
        .run(async {
            count += 1;
            text.len()
        })
        .await;
    assert_eq!((length.unwrap(), count), (8, 1));
}

/// A receiver that always has an item ready uses up the task's cooperative budget in each poll, and is then
/// pending. The end must still be seen.
async fn busy() {
    let (send, mut receive) = mpsc::unbounded_channel();
    loop {
        send.send(()).unwrap();
        receive.recv().await.unwrap();
    }
}

/// The same, from a future that exhausts the budget itself and never yields in any other way.
async fn exhausting() {
    loop {
        tokio::task::consume_budget().await;
    }
}

#[test]
fn a_busy_future_cannot_hide_a_cancel() {
    on_both(|| async {
        let (ctx, guard) = BACKGROUND.with_cancel().split();
        let (started, has_started) = oneshot::channel();
        let canceler = thread::spawn(move || {
            has_started.blocking_recv().unwrap();
            guard.cancel();
        });
        let work = async {
            started.send(()).unwrap();
            busy().await;
        };
        assert!(ctx.run(work).await.unwrap_err().is_canceled());
        canceler.join().unwrap();

        let (ctx, guard) = BACKGROUND.with_cancel().split();
        let canceler = tokio::spawn(async move { guard.cancel() });
        assert!(ctx.run(exhausting()).await.unwrap_err().is_canceled());
        canceler.await.unwrap();
    });
}

#[test]
fn a_busy_future_cannot_hide_a_deadline() {
    on_both(|| async {
        for deep in [false, true] {
            let parent = BACKGROUND.with_timeout(ms(20));
            let child = parent.with_cancel();
            let ctx = if deep { &child } else { &parent };
            assert!(ctx.run(busy()).await.unwrap_err().is_deadline_exceeded());
            let parent = BACKGROUND.with_timeout(ms(20));
            let child = parent.with_cancel();
            let ctx = if deep { &child } else { &parent };
            assert!(ctx.run(exhausting()).await.unwrap_err().is_deadline_exceeded());
        }
    });
}

#[test]
fn a_busy_future_cannot_hide_a_canceled_token() {
    on_both(|| async {
        let token = CancellationToken::new();
        let ctx = BACKGROUND.with_token(&token);
        let (started, has_started) = oneshot::channel();
        let canceler = thread::spawn(move || {
            has_started.blocking_recv().unwrap();
            token.cancel();
        });
        let work = async {
            started.send(()).unwrap();
            busy().await;
        };
        assert!(ctx.run(work).await.unwrap_err().is_canceled());
        canceler.join().unwrap();
    });
}

/// In a task whose budget is used up before `run` is polled.
#[tokio::test]
async fn an_exhausted_budget_does_not_hide_an_earlier_end() {
    let ctx = BACKGROUND.with_timeout(LONG);
    let (wakes, waker) = Wakes::new();
    let mut run = pin!(ctx.run(pending::<()>()));
    assert!(poll(run.as_mut(), &waker).is_pending());
    ctx.cancel();
    assert_eq!(wakes.count(), 1);
    poll_fn(|cx| {
        // Uses up the budget of the task.
        while poll(pin!(tokio::task::consume_budget()), cx.waker()).is_ready() {}
        assert!(poll(run.as_mut(), cx.waker()).is_ready());
        assert!(ctx.is_done());
        assert!(poll_once(ctx.done()).is_ready());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_panic_in_the_future_propagates_and_leaves_the_context_intact() {
    let ctx = BACKGROUND.with_cancel();
    let text = panic_text(|| poll_once(ctx.run(async { panic!("in the work") })));
    assert_eq!(text, "in the work");
    assert!(answer(&ctx).is_none());
    assert_eq!(ctx.run(ready(3)).await.unwrap(), 3);
    ctx.cancel();
    assert!(ended(&ctx).is_canceled());
}

#[tokio::test(start_paused = true)]
async fn nested_runs_are_ended_by_the_earlier_context() {
    let outer = BACKGROUND.with_timeout(ms(200));
    let inner = outer.with_timeout(ms(100));
    let both = outer.run(async { inner.run(pending::<()>()).await }).await;
    let error = both.expect("the outer one had time left").unwrap_err();
    assert_eq!(error.origin().budget(), Some(ms(100)));

    let outer = BACKGROUND.with_timeout(ms(100));
    let free = outer.without_cancel();
    let cut = outer.run(async { free.run(pending::<()>()).await }).await;
    assert!(cut.unwrap_err().is_deadline_exceeded());
}

#[derive(Debug, PartialEq)]
enum Failure {
    Own,
    Ended(ErrorKind),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ended(error.kind())
    }
}

#[tokio::test(start_paused = true)]
async fn try_run_flattens_the_result() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    let ok = ctx.try_run(async { Ok::<_, Failure>(1) }).await;
    assert_eq!(ok, Ok(1));
    let own = ctx.try_run(async { Err::<(), _>(Failure::Own) }).await;
    assert_eq!(own, Err(Failure::Own));
    let late = ctx.try_run(pending::<Result<(), Failure>>()).await;
    assert_eq!(late, Err(Failure::Ended(ErrorKind::DeadlineExceeded)));
    drop(ctx);

    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let (polls, drops) = (Rc::default(), Drops::default());
    let work = watched_future(&polls, &drops);
    let dead = ctx
        .try_run(async {
            work.await;
            Ok::<_, io::Error>(())
        })
        .await;
    assert_eq!(dead.unwrap_err().kind(), io::ErrorKind::Other);
    assert_eq!((polls.get(), drops.count()), (0, 1));

    let boxed: Result<(), Box<dyn std::error::Error + Send + Sync>> =
        ctx.try_run(async { Ok(()) }).await;
    assert!(boxed.unwrap_err().downcast::<Error>().unwrap().is_canceled());
}

#[tokio::test(start_paused = true)]
async fn try_run_keeps_finished_work_too() {
    let ctx = BACKGROUND.with_cancel();
    let (send, receive) = oneshot::channel();
    let mut run = pin!(ctx.try_run(async { Ok::<_, Error>(receive.await.unwrap()) }));
    assert!(poll(run.as_mut(), Waker::noop()).is_pending());
    send.send("kept").unwrap();
    ctx.cancel();
    assert!(matches!(poll(run.as_mut(), Waker::noop()), Poll::Ready(Ok("kept"))));
}

#[tokio::test(start_paused = true)]
async fn within_sets_a_shorter_deadline_and_returns_the_result() {
    let start = Instant::now();
    let parent = BACKGROUND.with_timeout(ms(100));
    let parent = parent.with_value("carried");
    let mut calls = 0;
    let deadline = parent
        .within(ms(30), async |ctx: Context| {
            calls += 1;
            assert_eq!(ctx.value(), Some(&"carried"));
            ctx.deadline()
        })
        .await;
    assert_eq!(deadline.unwrap(), Some(start + ms(30)));
    assert_eq!(calls, 1);
    let deadline = parent.within(LONG, async |ctx: Context| ctx.deadline()).await;
    assert_eq!(deadline.unwrap(), Some(start + ms(100)), "a budget cannot grow");
}

#[tokio::test(start_paused = true)]
async fn within_ends_at_its_own_deadline_and_leaves_the_parent() {
    let start = Instant::now();
    let parent = BACKGROUND.with_timeout(ms(100));
    let drops = Drops::default();
    let counted = drops.counted();
    let error = parent
        .within(ms(30), async move |_ctx: Context| {
            let _counted = counted;
            pending::<()>().await;
        })
        .await
        .unwrap_err();
    let line = line!() - 6;
    assert!(start.elapsed() >= ms(30) && start.elapsed() <= ms(31));
    assert_eq!(error.origin().budget(), Some(ms(30)));
    assert_eq!(error.origin().made_at().file(), file!());
    assert_eq!(error.origin().made_at().line(), line);
    assert_eq!(drops.count(), 1);
    assert!(answer(&parent).is_none());
}

#[tokio::test(start_paused = true)]
async fn within_ends_with_its_parent() {
    let parent = BACKGROUND.with_cancel();
    let mut within = pin!(parent.within(ms(30), async |_ctx: Context| pending::<()>().await));
    assert!(poll(within.as_mut(), Waker::noop()).is_pending());
    parent.cancel_with(Cause("parent"));
    let error = within.await.unwrap_err();
    assert_same(&error, &ended(&parent));

    let mut called = false;
    let dead = parent.within(ms(30), async |_ctx: Context| called = true).await;
    assert_same(&dead.unwrap_err(), &ended(&parent));
    assert!(!called, "an ended context started work");
}

#[tokio::test(start_paused = true)]
async fn the_context_of_within_ends_when_within_does() {
    let kept = BACKGROUND.within(LONG, async |ctx: Context| ctx).await.unwrap();
    assert!(ended(&kept).is_canceled());

    let mut kept = None;
    {
        let mut within = pin!(BACKGROUND.within(LONG, async |ctx: Context| {
            kept = Some(ctx);
            pending::<()>().await;
        }));
        assert!(poll(within.as_mut(), Waker::noop()).is_pending());
    }
    assert!(ended(&kept.unwrap()).is_canceled(), "dropped half-way");
}

#[tokio::test(start_paused = true)]
async fn within_zero_time_starts_no_work() {
    let mut called = false;
    let error = BACKGROUND.within(ms(0), async |_ctx: Context| called = true).await.unwrap_err();
    assert!(error.is_deadline_exceeded());
    assert!(!called);
}

#[tokio::test(start_paused = true)]
async fn sleep_lasts_its_time_or_until_the_context_ends() {
    let start = Instant::now();
    let ctx = BACKGROUND.with_timeout(ms(100));
    ctx.sleep(ms(40)).await.unwrap();
    assert!(start.elapsed() >= ms(40) && start.elapsed() <= ms(41));
    let error = ctx.sleep(LONG).await.unwrap_err();
    assert!(start.elapsed() >= ms(100) && start.elapsed() <= ms(101));
    assert_same(&error, &ended(&ctx));
    ctx.cancel();

    let start = Instant::now();
    assert_same(&ctx.sleep(ms(40)).await.unwrap_err(), &error);
    assert_eq!(start.elapsed(), ms(0), "slept although the context had ended");
    BACKGROUND.sleep(ms(5)).await.unwrap();
    assert!(start.elapsed() >= ms(5));
    BACKGROUND.sleep(Duration::ZERO).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_a_sleep_of_any_length() {
    for long in [LONG, Duration::MAX] {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let sleeper = tokio::spawn(async move { ctx.sleep(long).await });
        tokio::task::yield_now().await;
        scope.cancel_with(Cause("wake up"));
        assert_eq!(word(&sleeper.await.unwrap().unwrap_err()), Some("wake up"));
    }
}
