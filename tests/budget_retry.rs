//! `Context::retry`: attempts and delays under one budget, and what the error of a failed retry contains.

mod common;

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::{Future, pending, poll_fn, ready};
use std::io;
use std::iter::{empty, repeat};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use common::{LONG, ms, poll_once};
use tokio::time::{Instant, advance, sleep};
use tokio_ctx::budget::{GaveUp, RetryError};
use tokio_ctx::{Context, Error};

static BACKGROUND: Context = Context::background();

#[derive(Debug)]
enum Failed {
    Busy(u32),
    Stopped(Error),
}

impl From<Error> for Failed {
    fn from(stopped: Error) -> Self {
        Failed::Stopped(stopped)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Busy(attempt) => write!(f, "busy {attempt}"),
            Failed::Stopped(stopped) => write!(f, "{stopped}"),
        }
    }
}

impl std::error::Error for Failed {}

async fn busy(attempt: u32) -> Result<u32, Failed> {
    Err(Failed::Busy(attempt))
}

mod attempts {
    use super::*;

    #[tokio::test]
    async fn are_numbered_and_end_with_the_first_that_succeeds() {
        let seen = RefCell::new(Vec::new());
        let done = BACKGROUND.retry([Duration::ZERO; 9], |_, attempt| {
            seen.borrow_mut().push(attempt);
            async move { if attempt < 4 { busy(attempt).await } else { Ok(attempt) } }
        });
        assert_eq!(done.await.unwrap(), 4);
        assert_eq!(*seen.borrow(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn are_one_more_than_there_are_delays() {
        for delays in 0..4 {
            let failed =
                BACKGROUND.retry(vec![Duration::ZERO; delays], |_, n| busy(n)).await.unwrap_err();
            assert_eq!(failed.attempts() as usize, delays + 1);
            assert!(matches!(failed.why(), GaveUp::NoDelayLeft));
            assert!(matches!(failed.error(), Failed::Busy(n) if *n as usize == delays + 1));
        }
    }

    #[tokio::test]
    async fn have_a_child_context_each_that_is_current_and_ends_with_the_attempt() {
        let ctx = BACKGROUND.with_value("alice").with_cancel();
        let children = RefCell::new(Vec::new());
        let failed = ctx.retry([Duration::ZERO; 2], |child, n| {
            assert_eq!(Context::current().value::<&str>(), Some(&"alice"), "in the call");
            for earlier in &*children.borrow() {
                assert!(Context::is_done(earlier), "the attempt before is over");
            }
            assert!(!child.is_done());
            children.borrow_mut().push(child);
            async move {
                assert_eq!(Context::current().value::<&str>(), Some(&"alice"), "in the future");
                busy(n).await
            }
        });
        failed.await.unwrap_err();
        assert_eq!(children.borrow().len(), 3);
        assert!(children.borrow().iter().all(Context::is_done));
        assert!(!ctx.is_done());
        assert!(Context::current().value::<&str>().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn are_polled_and_dropped_in_their_context_wherever_they_end() {
        struct Seen(Rc<Cell<u32>>);
        impl Drop for Seen {
            fn drop(&mut self) {
                assert_eq!(Context::current().value::<&str>(), Some(&"alice"));
                self.0.set(self.0.get() + 1);
            }
        }
        let (ctx, seen) = (BACKGROUND.with_value("alice").with_timeout(ms(35)), Rc::new(Cell::new(0)));
        let retry = || {
            ctx.retry([ms(1); 9], |_, n| {
                let seen = Seen(seen.clone());
                async move {
                    tokio::task::yield_now().await;
                    assert_eq!(Context::current().value::<&str>(), Some(&"alice"));
                    sleep(if n == 1 { ms(5) } else { LONG }).await;
                    drop(seen);
                    busy(n).await
                }
            })
        };
        // The second attempt is stopped by its limit, by a drop, and by the end of the context.
        let failed = retry().attempt_timeout(ms(6)).when(|error| matches!(error, Failed::Busy(_)));
        assert_eq!((failed.await.unwrap_err().attempts(), seen.get()), (2, 2));
        assert!(tokio::time::timeout(ms(10), retry()).await.is_err());
        assert_eq!(seen.get(), 4);
        assert!(matches!(retry().await.unwrap_err().why(), GaveUp::Ended(_)));
        assert_eq!(seen.get(), 6);
        assert!(Context::current().value::<&str>().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn have_a_limit_of_their_own() {
        let ctx = BACKGROUND.with_timeout(LONG);
        let stuck = ctx
            .retry([ms(10); 2], |child, _| async move {
                assert_eq!(child.remaining(), Some(ms(100)));
                pending::<Result<(), Failed>>().await
            })
            .attempt_timeout(ms(100));
        let called_at = line!() - 5;
        let failed = stuck.await.unwrap_err();
        assert_eq!(failed.attempts(), 3);
        assert!(failed.latest().all(|attempt| (ms(100)..ms(102)).contains(&attempt.took())));
        assert_eq!(failed.called_at().line(), called_at);
        let Failed::Stopped(cut_off) = failed.error() else { panic!("{failed:?}") };
        assert!(cut_off.is_deadline_exceeded());
        assert_eq!(cut_off.origin().made_at().line(), called_at);
        assert!(failed.context_error().is_none(), "the context has not ended");
    }

    #[tokio::test(start_paused = true)]
    async fn have_a_share_of_the_time_left() {
        let ctx = BACKGROUND.with_timeout(ms(1000));
        let limits = RefCell::new(Vec::new());
        let stuck = ctx
            .retry([Duration::ZERO; 2], |child, _| {
                limits.borrow_mut().push(child.remaining().unwrap().as_millis());
                pending::<Result<(), Failed>>()
            })
            .attempt_share(0.5);
        assert_eq!(stuck.await.unwrap_err().attempts(), 3);
        assert_eq!(*limits.borrow(), [500, 250, 125]);
        let unlimited =
            BACKGROUND.retry([], |child, _| ready(Ok::<_, Failed>(child.deadline()))).attempt_share(0.5);
        assert_eq!(unlimited.await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn that_have_finished_win_over_the_end() {
        let ctx = BACKGROUND.with_cancel();
        let done = ctx.retry([LONG], |_, _| async {
            ctx.cancel();
            Ok::<_, Failed>(7)
        });
        assert_eq!(done.await.unwrap(), 7);
    }

    #[test]
    fn that_succeed_need_no_runtime() {
        let ctx = BACKGROUND.with_timeout(LONG);
        let done =
            ctx.retry(
                [Duration::ZERO; 2],
                |_, n| async move { if n == 1 { busy(n).await } else { Ok(n) } },
            );
        assert!(matches!(poll_once(done), Poll::Ready(Ok(2))));
    }
}

mod the_end {
    use super::*;

    #[tokio::test]
    async fn before_the_first_attempt_makes_none() {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with("why");
        let failed = ctx.retry([Duration::ZERO; 3], |_, _| -> std::future::Ready<Result<(), Failed>> {
            panic!("an ended context started work")
        });
        let failed = failed.await.unwrap_err();
        assert_eq!((failed.attempts(), failed.elapsed()), (0, Duration::ZERO));
        assert_eq!(failed.context_error().unwrap().cause().unwrap().to_string(), "why");
        assert!(failed.to_string().starts_with("no attempt made: the context ended"));
        assert!(matches!(failed.into_error(), Failed::Stopped(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn during_an_attempt_drops_it_and_keeps_the_error_before() {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let failed = ctx
            .retry([ms(10)], |_, n| async move { if n == 1 { busy(n).await } else { pending().await } });
        let failed = failed.await.unwrap_err();
        assert!(matches!(failed.why(), GaveUp::Ended(ended) if ended.is_deadline_exceeded()));
        assert!(matches!(failed.error(), Failed::Busy(1)));
        assert_eq!(failed.attempts(), 2);
        // Found by its source, and the attempt's error in the line.
        assert!(Error::find(&failed).unwrap().is_deadline_exceeded());
        assert!(failed.to_string().ends_with(": the context ended; the last error: busy 1"), "{failed}");
        let debug = format!("{failed:?}");
        assert!(debug.contains("Caused by:\n    context deadline exceeded: 100ms budget"), "{debug}");
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_delay_ends_it() {
        let ctx = BACKGROUND.with_cancel();
        let begun = Instant::now();
        let failed = ctx.retry(repeat(LONG), |_, n| busy(n));
        let cancel = async {
            sleep(ms(50)).await;
            ctx.cancel_with("enough");
        };
        let (failed, ()) = tokio::join!(failed, cancel);
        let failed = failed.unwrap_err();
        assert_eq!(failed.context_error().unwrap().cause().unwrap().to_string(), "enough");
        assert_eq!(failed.in_delays(), begun.elapsed());
        assert!(begun.elapsed() < ms(52));
    }

    #[tokio::test(start_paused = true)]
    async fn by_a_jump_of_the_clock_during_a_delay_starts_no_attempt() {
        let ctx = BACKGROUND.with_timeout(ms(500));
        let attempts = Cell::new(0);
        let failed = ctx.retry([ms(100); 3], |_, n| {
            attempts.set(attempts.get() + 1);
            busy(n)
        });
        let mut failed = pin!(failed);
        assert!(poll_fn(|cx| Poll::Ready(failed.as_mut().poll(cx))).await.is_pending());
        advance(LONG).await;
        let failed = failed.await.unwrap_err();
        assert!(matches!(failed.why(), GaveUp::Ended(_)));
        assert_eq!(attempts.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn is_not_awaited_by_a_delay_that_does_not_fit() {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let set_at = line!() - 1;
        let begun = Instant::now();
        let failed = ctx.retry([ms(100)], |_, n| busy(n)).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO, "it gives up before the time is over");
        let GaveUp::NotEnoughTime(short) = failed.why() else { panic!("{failed:?}") };
        assert_eq!((short.required(), short.left()), (ms(101), ms(100)));
        assert_eq!(short.set_at().unwrap().line(), set_at);
        assert!(failed.source().unwrap().is::<Failed>());
        assert!(!ctx.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_caller_stops_it_at_every_await() {
        for after in 0..6 {
            let (attempts, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            struct OnDrop(Rc<Cell<u32>>);
            impl Drop for OnDrop {
                fn drop(&mut self) {
                    self.0.set(self.0.get() + 1);
                }
            }
            let ctx = BACKGROUND.with_timeout(LONG);
            {
                let retry = ctx.retry([ms(10); 2], |child, n| {
                    let (attempts, dropped) = (attempts.clone(), OnDrop(dropped.clone()));
                    async move {
                        let _dropped = dropped;
                        attempts.set(n);
                        child.sleep(ms(10)).await?;
                        busy(n).await
                    }
                });
                // At 5 ms in the first attempt, at 15 in the delay, and so on.
                let bound = tokio::time::timeout(ms(5 + 11 * after), retry).await;
                assert_eq!(bound.is_err(), after < 5, "{after}");
            }
            assert_eq!(attempts.get(), 1 + (after as u32).min(4) / 2, "{after}");
            assert_eq!(dropped.get(), attempts.get(), "{after}");
            let now = Instant::now();
            drop(ctx);
            sleep(ms(1)).await;
            assert!(now.elapsed() <= ms(2), "no timer is left");
        }
    }
}

mod rules {
    use super::*;

    #[tokio::test]
    async fn when_is_called_for_each_error() {
        let failed = BACKGROUND
            .retry(repeat(Duration::ZERO), |_, n| busy(n))
            .when(|error| matches!(error, Failed::Busy(n) if *n < 3));
        let failed = failed.await.unwrap_err();
        assert!(matches!(failed.why(), GaveUp::NotWorthIt));
        assert_eq!(failed.attempts(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn when_is_called_for_an_attempt_that_was_cut_off() {
        let failed = BACKGROUND
            .retry(repeat(Duration::ZERO), |_, _| pending::<Result<(), Failed>>())
            .attempt_timeout(ms(10))
            .when(|error| Error::find(error).is_none() && !matches!(error, Failed::Stopped(_)));
        assert_eq!(failed.await.unwrap_err().attempts(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_lengthens_and_never_shortens() {
        for (requested, slept) in [(None, 20), (Some(ms(5)), 20), (Some(ms(200)), 200)] {
            let begun = Instant::now();
            let failed = BACKGROUND.retry([ms(20)], |_, n| busy(n)).retry_after(|_| requested);
            failed.await.unwrap_err();
            assert!((ms(slept)..ms(slept + 2)).contains(&begun.elapsed()), "{requested:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_that_does_not_fit_gives_up() {
        let ctx = BACKGROUND.with_timeout(ms(100));
        for requested in [ms(100), LONG, Duration::MAX] {
            let failed = ctx.retry([ms(1)], |_, n| busy(n)).retry_after(|_| Some(requested));
            assert!(matches!(failed.await.unwrap_err().why(), GaveUp::NotEnoughTime(_)));
        }
    }

    #[tokio::test]
    async fn permit_is_called_last_and_not_for_the_first_attempt() {
        let left = Cell::new(2);
        let permit = || {
            left.set(left.get() - 1);
            left.get() >= 0
        };
        let failed = BACKGROUND.retry(repeat(Duration::ZERO), |_, n| busy(n)).permit(permit);
        let failed = failed.await.unwrap_err();
        assert!(matches!(failed.why(), GaveUp::NotPermitted));
        assert_eq!((failed.attempts(), left.get()), (3, -1));

        let unused = || -> bool { panic!("no attempt to permit") };
        BACKGROUND.retry([], |_, n| busy(n)).permit(unused).await.unwrap_err();
        let not_worth_it = BACKGROUND.retry([ms(1)], |_, n| busy(n)).when(|_| false).permit(unused);
        not_worth_it.await.unwrap_err();
        let short = BACKGROUND.with_timeout(ms(20));
        short.retry([LONG], |_, n| busy(n)).permit(unused).await.unwrap_err();
        BACKGROUND.retry([], |_, n| ready(Ok::<_, Failed>(n))).permit(unused).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn least_applies_to_every_attempt() {
        let ctx = BACKGROUND.with_timeout(ms(100));
        let begun = Cell::new(0);
        let failed = ctx
            .retry(repeat(ms(9)), |child, n| {
                begun.set(begun.get() + 1);
                assert!(child.remaining().unwrap() >= ms(50));
                busy(n)
            })
            .least(ms(50));
        let failed = failed.await.unwrap_err();
        assert!(matches!(failed.why(), GaveUp::NotEnoughTime(_)));
        // At 0, 9, 18, 27, 36 and 45 ms.
        assert_eq!((begun.get(), failed.attempts()), (6, 6));
        let none = ctx.retry([], |_, n| busy(n)).least(LONG).await.unwrap_err();
        assert!(matches!(none.into_error(), Failed::Stopped(stopped) if stopped.is_deadline_exceeded()));
        BACKGROUND.retry([], |_, n| ready(Ok::<_, Failed>(n))).least(Duration::MAX).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn learns_from_attempts_that_failed_by_themselves() {
        // The first is cut off after 20 ms, the others fail after 10: with 18 ms left there is one more, with 7 none.
        let ctx = BACKGROUND.with_timeout(ms(60));
        let failed = ctx
            .retry(repeat(ms(1)), |_, n| async move {
                sleep(if n == 1 { LONG } else { ms(10) }).await;
                busy(n).await
            })
            .attempt_timeout(ms(20))
            .least_learned();
        let failed = failed.await.unwrap_err();
        assert_eq!(failed.attempts(), 4, "{failed}");
        let GaveUp::NotEnoughTime(short) = failed.why() else { panic!("{failed}") };
        assert_eq!((short.required(), short.left()), (ms(11), ms(7)));
    }
}

mod the_error {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn adds_up_and_keeps_the_latest() {
        let begun = Instant::now();
        let failed = BACKGROUND.retry([ms(3); 40], |_, n| async move {
            sleep(ms(2)).await;
            busy(n).await
        });
        let failed = failed.await.unwrap_err();
        assert_eq!(failed.attempts(), 41);
        assert_eq!(failed.elapsed(), begun.elapsed());
        assert_eq!(failed.elapsed(), failed.in_attempts() + failed.in_delays());
        assert_eq!(
            failed.latest().map(|attempt| attempt.number()).collect::<Vec<_>>(),
            Vec::from_iter(26..=41)
        );
        let line = failed.to_string();
        assert!(line.starts_with("gave up after 41 attempts in "), "{line}");
        assert!(line.contains(" (…, ") && line.ends_with(" between them): no attempts left"), "{line}");
    }

    #[tokio::test]
    async fn is_printed_once_in_a_chain() {
        let failed = BACKGROUND.retry([], |_, n| busy(n)).await.unwrap_err();
        let error = anyhow::Error::from(failed);
        let chain = format!("{error:#}");
        assert_eq!(chain.matches("busy 1").count(), 1, "{chain}");
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with("hung up");
        let failed = ctx.retry([], |_, n| busy(n)).await.unwrap_err();
        let chain = format!("{:#}", anyhow::Error::from(failed));
        assert_eq!(chain.matches("hung up").count(), 1, "{chain}");
    }

    #[tokio::test]
    async fn converts_with_the_question_mark() {
        async fn io_call(ctx: &Context) -> io::Result<()> {
            Ok(ctx.retry([], |_, _| async { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }).await?)
        }
        async fn ctx_call(ctx: &Context) -> Result<(), Error> {
            Ok(ctx.retry([], |child, _| async move { child.check() }).await?)
        }
        let failed = io_call(&BACKGROUND).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
        assert!(failed.get_ref().unwrap().is::<RetryError<io::Error>>());
        let ctx = BACKGROUND.with_timeout(Duration::ZERO);
        assert_eq!(io_call(&ctx).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(Error::find(&io_call(&ctx).await.unwrap_err()).is_some());
        assert!(ctx_call(&ctx).await.unwrap_err().is_deadline_exceeded());
    }
}

mod foreign_code {
    use super::*;

    #[test]
    fn that_panics_panics_in_the_caller() {
        fn panics(retry: impl Future) {
            assert!(catch_unwind(AssertUnwindSafe(|| drop(poll_once(retry)))).is_err());
        }
        type Outcome = Result<(), Failed>;
        panics(BACKGROUND.retry([], |_, _| -> std::future::Ready<Outcome> { panic!("call") }));
        panics(BACKGROUND.retry([], |_, _| async { panic!("future") as Outcome }));
        panics(BACKGROUND.retry(std::iter::from_fn(|| panic!("delays")), |_, n| busy(n)));
        panics(BACKGROUND.retry([ms(1)], |_, n| busy(n)).when(|_| panic!("when")));
        panics(BACKGROUND.retry([ms(1)], |_, n| busy(n)).retry_after(|_| panic!("after")));
        panics(BACKGROUND.retry([ms(1)], |_, n| busy(n)).permit(|| panic!("permit")));
        // No runtime for the delay.
        panics(BACKGROUND.retry([ms(1)], |_, n| busy(n)));
    }

    #[tokio::test]
    async fn that_fails_forever_lets_other_tasks_run() {
        let ctx = BACKGROUND.with_cancel();
        let retry = ctx.retry(repeat(Duration::ZERO), |_, n| busy(n));
        let cancel = async {
            tokio::task::yield_now().await;
            ctx.cancel();
        };
        let (failed, ()) = tokio::join!(retry, cancel);
        assert!(matches!(failed.unwrap_err().why(), GaveUp::Ended(_)));
    }

    #[tokio::test]
    async fn may_be_spawned_and_shared_among_threads() {
        fn is_send<T: Send>(value: T) -> T {
            value
        }
        let ctx = BACKGROUND.with_cancel();
        let text = String::from("captured");
        let retried = tokio::spawn(is_send(async move {
            ctx.retry(empty(), |_, _| {
                let text = text.clone();
                async move { Ok::<_, Failed>(text) }
            })
            .await
        }));
        assert_eq!(retried.await.unwrap().unwrap(), "captured");
    }

    #[test]
    fn endless_delays_and_durations_do_not_overflow() {
        let ctx = BACKGROUND.with_timeout(Duration::MAX);
        let failed = ctx
            .retry([Duration::MAX], |_, n| busy(n))
            .attempt_timeout(Duration::MAX)
            .least(Duration::MAX)
            .retry_after(|_| Some(Duration::MAX));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(tokio::time::timeout(ms(5), failed).await.is_err(), "it sleeps forever");
        });
    }
}
