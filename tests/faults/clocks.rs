//! A clock that jumps, and deadlines beyond what Tokio's timer wheel holds (some two years).

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_ctx::Context;

use crate::common::{Cause, answer, assert_same, current_thread, ended, ms, multi_thread, word};
use crate::{BACKGROUND, faulty};

const DAY: Duration = Duration::from_secs(24 * 3600);

const fn years(n: u32) -> Duration {
    Duration::from_secs(n as u64 * 365 * 24 * 3600)
}

fn paused<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    faulty(|| {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test());
    });
}

/// All deadlines within one jump end, with one wait (which has its own timer) or several (which share one), and
/// no deadline beyond it.
#[test]
fn that_jumps_over_years_ends_every_deadline_in_between() {
    paused(|| async {
        for jump in [1, 3, 10, 50] {
            let lengths = [years(jump) / 100, years(jump) / 2, years(jump) - DAY, years(jump)];
            let due: Vec<_> = lengths.iter().map(|length| BACKGROUND.with_timeout(*length)).collect();
            let beyond = BACKGROUND.with_timeout(years(jump) + DAY);
            let wait = |ctx: &Context, waits: usize| -> Vec<_> {
                (0..waits).map(|_| tokio::spawn(ctx.done_owned())).collect()
            };
            let waits: Vec<_> = due.iter().zip(1..).map(|(ctx, nth)| wait(ctx, nth)).collect();
            let pending = wait(&beyond, 3);
            let inner = beyond.with_timeout(years(jump) - DAY * 2);
            let inner_waits = wait(&inner, 2);
            yield_now().await;
            advance(years(jump)).await;
            for ((ctx, waits), length) in due.iter().zip(waits).zip(lengths) {
                for wait in waits {
                    // Auto-advance would hide a wait that was not woken by the jump.
                    let before = Instant::now();
                    assert_same(&wait.await.unwrap(), &ended(ctx));
                    assert_eq!(before.elapsed(), Duration::ZERO, "{length:?} of {jump} years");
                }
                assert_eq!(Some(ended(ctx).origin().ended_at()), ctx.deadline());
                assert_eq!(ended(ctx).origin().budget(), Some(length));
            }
            for wait in inner_waits {
                assert_same(&wait.await.unwrap(), &ended(&inner));
            }
            assert!(answer(&beyond).is_none());
            assert!(pending.iter().all(|wait| !wait.is_finished()));
            pending.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

/// Only the runtime advances the clock, from timer to timer, however distant they are.
#[test]
fn that_advances_by_itself_stops_at_each_deadline() {
    paused(|| async {
        for length in [years(1), years(2), years(3), years(10), years(100)] {
            for waits in [1, 2, 4] {
                let start = Instant::now();
                let ctx = BACKGROUND.with_timeout(length);
                let child = ctx.with_cancel();
                let tasks: Vec<_> = (0..waits).map(|_| tokio::spawn(child.done_owned())).collect();
                for task in tasks {
                    let error = task.await.unwrap();
                    assert!(error.is_deadline_exceeded());
                    assert_same(&error, &ended(&ctx));
                }
                let late = start.elapsed().checked_sub(length).expect("too early");
                assert!(late <= ms(2), "{length:?}, {waits} waits: {late:?} late");
                assert_eq!(ended(&ctx).origin().ended_at(), start + length);
            }
        }
    });
}

/// Small steps over years, so that the timer moves within the wheel repeatedly.
#[test]
fn that_advances_in_steps_ends_nothing_too_early() {
    paused(|| async {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(years(7));
        let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(ctx.done_owned())).collect();
        yield_now().await;
        while start.elapsed() + DAY * 30 < years(7) {
            assert!(answer(&ctx).is_none());
            assert!(tasks.iter().all(|task| !task.is_finished()));
            advance(DAY * 30).await;
        }
        for task in tasks {
            assert!(task.await.unwrap().is_deadline_exceeded());
        }
        assert!(start.elapsed() >= years(7) && start.elapsed() <= years(7) + ms(2));
    });
}

/// The clock jumps between a query and a wait, between two polls, and without a wait.
#[test]
fn that_jumps_at_any_moment_leaves_one_error() {
    paused(|| async {
        for moment in 0..4 {
            let ctx = BACKGROUND.with_timeout_cause(DAY, Cause("due"));
            let child = ctx.with_timeout(DAY * 2);
            let mut wait = Box::pin(child.done_owned());
            if moment == 0 {
                assert!(!child.is_done());
            }
            if moment >= 1 {
                assert!(futures::poll!(wait.as_mut()).is_pending());
            }
            if moment == 2 {
                advance(DAY / 2).await;
                assert!(futures::poll!(wait.as_mut()).is_pending());
            }
            advance(years(1)).await;
            // A year too late, if the clock has passed the deadline before the first query.
            child.cancel_with(Cause("late"));
            ctx.cancel_with(Cause("late"));
            let error = wait.await;
            assert_eq!(word(&error), Some("due"), "moment {moment}");
            assert_eq!(Some(error.origin().ended_at()), ctx.deadline());
            assert_same(&error, &ended(&ctx));
            assert_eq!(ctx.remaining(), Some(Duration::ZERO));
        }
    });
}

/// `run`, `within`, `sleep` and a function after the end, across a jump.
#[test]
fn that_jumps_ends_work_and_starts_functions_after_the_end() {
    paused(|| async {
        let ctx = BACKGROUND.with_timeout(years(3));
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let _handle = ctx.after_func(|| async { sender.send(Instant::now()).unwrap() });
        let slept = tokio::spawn({
            let ctx = ctx.clone();
            async move { ctx.sleep(years(8)).await.unwrap_err() }
        });
        let within = tokio::spawn({
            let ctx = ctx.clone();
            async move { ctx.within(years(1), async |step| step.sleep(years(9)).await).await }
        });
        yield_now().await;
        advance(years(5)).await;
        assert_same(&slept.await.unwrap(), &ended(&ctx));
        assert!(receiver.await.is_ok());
        let step = within.await.unwrap().map_or_else(|error| error, Result::unwrap_err);
        assert!(step.is_deadline_exceeded());
        assert_eq!(step.origin().budget(), Some(years(1)));
    });
}

/// On a real clock, where ten years do not pass: waited on, canceled, dropped, together with short ones.
#[test]
fn a_deadline_ten_years_off_is_an_ordinary_one() {
    faulty(|| {
        for runtime in [current_thread(), multi_thread(2)] {
            runtime.block_on(async {
                let decade = BACKGROUND.with_timeout(years(10));
                let tasks: Vec<_> = (0..5).map(|_| tokio::spawn(decade.done_owned())).collect();
                let short = decade.with_timeout(ms(10));
                assert!(short.done().await.is_deadline_exceeded());
                assert!(timeout(ms(10), decade.done()).await.is_err());
                assert!(decade.sleep(ms(1)).await.is_ok());
                sleep(ms(1)).await;
                assert!(answer(&decade).is_none());
                assert!(tasks.iter().all(|task| !task.is_finished()));
                decade.cancel_with(Cause("patience"));
                for task in tasks {
                    assert_eq!(word(&task.await.unwrap()), Some("patience"));
                }
            });
        }
    });
}
