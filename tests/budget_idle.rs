//! `with_idle`: a limit that progress renews.

mod common;

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use common::{LONG, answer, assert_same, ms};
use futures::StreamExt as _;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_ctx::budget::NoProgress;
use tokio_ctx::{Context, Error, StreamExt as _};

static BACKGROUND: Context = Context::background();
const LIMIT: Duration = ms(800);
/// The maximum delay of a detection: an eighth of the limit, and the resolution of a timer.
const LATE: Duration = ms(101);

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[track_caller]
fn is_idle(error: &Error) {
    assert!(error.is_deadline_exceeded(), "{error}");
    assert_eq!(error.cause_as::<NoProgress>().expect("the cause").limit(), LIMIT, "{error}");
}

mod without_progress {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_exactly_at_the_limit_and_reports_it() {
        let begun = Instant::now();
        let ctx = BACKGROUND.with_idle(LIMIT);
        let set_at = line!() - 1;
        assert_eq!((ctx.deadline(), ctx.remaining()), (None, None));
        let error = ctx.done().await;
        assert_eq!(begun.elapsed(), LIMIT);
        is_idle(&error);
        let cause = error.cause_as::<NoProgress>().unwrap();
        assert_eq!((cause.set_at().line(), cause.bytes()), (set_at, None));
        assert_eq!(error.origin().made_at().line(), set_at);
        assert_eq!(error.origin().ended_at(), begun + LIMIT);
        let line = format!(
            "context deadline exceeded: no progress for 800ms (budget set at {}:{set_at})",
            file!()
        );
        assert_eq!(error.to_string(), line);
        assert_eq!(std::io::Error::from(error.clone()).kind(), std::io::ErrorKind::TimedOut);
        answer(&ctx);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_contains_the_progress() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (3_240_000, "3.2 MB"),
            (999_960_000, "1.0 GB"),
            (7_000_000_000_000, "7.0 TB"),
            (u64::MAX >> 1, "9223.4 PB"),
        ] {
            let ctx = BACKGROUND.with_idle(LIMIT);
            ctx.progress().report_bytes(bytes);
            let error = ctx.done().await;
            assert!(error.to_string().ends_with(&format!("), {text} so far")), "{error}");
        }
    }

    #[test]
    fn queries_detect_it_without_a_timer() {
        for below in 0..3 {
            let runtime = paused();
            runtime.block_on(async {
                let idle = BACKGROUND.with_idle(LIMIT);
                let mut ctx = idle.context().clone();
                for _ in 0..below {
                    ctx = ctx.with_cancel().detach();
                }
                advance(LIMIT - ms(1)).await;
                assert!(answer(&ctx).is_none());
                advance(ms(1)).await;
                is_idle(&answer(&ctx).unwrap());
                is_idle(&answer(&idle).unwrap());
                assert!(idle.with_cancel().is_done());
            });
        }
    }

    #[test]
    fn outside_of_a_runtime_queries_and_blocking_waits_detect_it() {
        let ctx = BACKGROUND.with_idle(ms(30));
        let begun = std::time::Instant::now();
        assert!(!ctx.is_done());
        assert!(ctx.done_blocking().is_deadline_exceeded());
        assert!(begun.elapsed() >= ms(30));
        let ctx = BACKGROUND.with_idle(ms(20));
        thread::sleep(ms(25));
        assert!(ctx.check().is_err());
    }

    #[test]
    fn zero_ends_it_from_the_start_and_none_is_no_limit() {
        assert!(answer(&BACKGROUND.with_idle(Duration::ZERO)).unwrap().is_deadline_exceeded());
        for limit in [None, Some(Duration::MAX), Some(Duration::from_secs(u64::MAX / 2))] {
            let ctx = BACKGROUND.with_idle(limit);
            assert!(answer(&ctx).is_none());
            ctx.progress().report();
        }
        let centuries = Duration::from_secs(600 * 365 * 86_400);
        assert!(!BACKGROUND.with_idle(centuries).is_done());
    }
}

mod with_progress {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_stays_alive_and_ends_after_the_last_report() {
        for period in [1, 99, 100, 101, 799] {
            let ctx = BACKGROUND.with_idle(LIMIT);
            let progress = ctx.progress();
            let reports = async {
                for _ in 0..20 {
                    sleep(ms(period)).await;
                    progress.report();
                }
                let last = Instant::now();
                sleep(LIMIT - ms(1)).await;
                assert!(!ctx.context().clone().is_done(), "{period}: too early");
                last
            };
            let (error, last) = tokio::join!(ctx.done(), reports);
            is_idle(&error);
            assert!((LIMIT..=LIMIT + LATE).contains(&last.elapsed()), "{period}: {:?}", last.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_descendant_counts_for_all_ancestors() {
        let outer = BACKGROUND.with_idle(LIMIT);
        let inner = outer.with_cancel().detach().with_value(1_u8).with_idle(LIMIT / 2);
        let progress = inner.with_cancel().detach().progress();
        let outer_only = outer.progress();
        for _ in 0..10 {
            sleep(LIMIT / 4).await;
            progress.report();
            assert!(!inner.is_done());
        }
        for _ in 0..6 {
            sleep(LIMIT / 4).await;
            outer_only.report();
        }
        assert!(!outer.is_done());
        let ended = inner.err().unwrap();
        assert_eq!(ended.cause_as::<NoProgress>().unwrap().limit(), LIMIT / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_a_merged_context_even_if_no_other_is_queried_or_waited_on() {
        for case in 0..4 {
            let (idle, plain) = (BACKGROUND.with_idle(LIMIT), BACKGROUND.with_cancel());
            let merged = if case & 1 == 0 { idle.merge(&plain) } else { plain.merge(&idle) };
            if case & 2 == 0 {
                advance(LIMIT).await;
            } else {
                let begun = Instant::now();
                timeout(LIMIT * 2, merged.done()).await.expect("not woken");
                assert!(begun.elapsed() <= LIMIT + LATE);
            }
            is_idle(&answer(&merged).unwrap());
        }
    }

    /// It passes unnoticed before the deadline of a child does, and is noticed after both.
    #[tokio::test(start_paused = true)]
    async fn is_compared_with_a_deadline_below_by_the_time_when_it_passed() {
        for (after, is_first) in [(LIMIT - ms(1), false), (LIMIT, false), (LIMIT + ms(1), true)] {
            for queries_parent in [false, true] {
                let begun = Instant::now();
                let ctx = BACKGROUND.with_idle(LIMIT);
                let timed = ctx.with_timeout(after);
                let merged = timed.merge(&BACKGROUND.with_cancel().detach());
                advance(LIMIT * 2).await;
                if queries_parent {
                    assert!(ctx.is_done());
                }
                let error = answer(&timed).unwrap();
                assert_eq!(error.cause_as::<NoProgress>().is_some(), is_first);
                assert_eq!(error.origin().ended_at(), begun + after.min(LIMIT));
                assert_same(&answer(&merged).unwrap(), &error);
                is_idle(&answer(&ctx).unwrap());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counts_for_both_parents_of_a_merged_one_and_either_ends_it() {
        let (one, other) = (BACKGROUND.with_idle(LIMIT), BACKGROUND.with_idle(LIMIT * 2));
        let plain = BACKGROUND.with_cancel();
        for merged in [one.merge(&other), plain.merge(&one), one.merge(&plain)] {
            let progress = merged.progress();
            for _ in 0..8 {
                sleep(LIMIT / 2).await;
                progress.report();
                // The progress of the contexts that are not a parent of this one.
                one.progress().report();
                other.progress().report();
                assert!(answer(&merged).is_none());
            }
        }
        // Over both parents to the same limit.
        let (left, right) = (one.with_cancel(), one.with_cancel());
        let diamond = left.merge(&right);
        assert_eq!(format!("{:?}", diamond.progress()), "Progress { limits: 1 }");
        let merged = plain.merge(&other);
        for _ in 0..4 {
            sleep(LIMIT / 2).await;
            other.progress().report();
        }
        assert!(one.is_done() && !merged.is_done());
        let error = merged.done().await;
        assert_eq!(error.cause_as::<NoProgress>().unwrap().limit(), LIMIT * 2);
    }

    /// A context below ends with another one, and this is noticed between the report and the next check.
    #[tokio::test(start_paused = true)]
    async fn counts_although_an_end_below_is_noticed_after_it() {
        let idle = BACKGROUND.with_idle(LIMIT);
        let parent = idle.with_cancel();
        let child = parent.with_cancel();
        advance(LIMIT / 2).await;
        idle.progress().report();
        parent.cancel();
        child.cancel_with("too late");
        advance(LIMIT * 3 / 4).await;
        assert!(!idle.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn from_another_thread_counts() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let (progress, (request, requested), (sender, receiver)) =
            (ctx.progress(), mpsc::channel(), mpsc::channel());
        let reporter = thread::spawn(move || {
            while let Ok(()) = requested.recv() {
                progress.report();
                sender.send(()).unwrap();
            }
        });
        let mut wait = pin!(ctx.done());
        for _ in 0..10 {
            assert!(
                timeout(LIMIT / 2, wait.as_mut()).await.is_err(),
                "it ended although there was progress"
            );
            request.send(()).unwrap();
            receiver.recv().unwrap();
        }
        drop(request);
        reporter.join().unwrap();
        is_idle(&wait.await);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_end_changes_nothing() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let progress = ctx.progress();
        let error = ctx.done().await;
        progress.report_bytes(7);
        common::assert_same(&error, &ctx.err().unwrap());
        drop(ctx);
        progress.report();
        BACKGROUND.progress().report();
    }
}

mod automatic_reports {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn are_made_by_reads_and_writes() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let (here, mut there) = duplex(64);
        let mut stream = ctx.io(here);
        for _ in 0..4 {
            sleep(LIMIT / 2).await;
            stream.write_all(b"12345").await.unwrap();
            sleep(LIMIT / 2).await;
            there.write_all(b"abc").await.unwrap();
            stream.read_exact(&mut [0; 3]).await.unwrap();
            there.read_exact(&mut [0; 5]).await.unwrap();
        }
        let error = stream.read_u8().await.unwrap_err();
        let ended = Error::find(&error).unwrap();
        is_idle(ended);
        assert_eq!(ended.cause_as::<NoProgress>().unwrap().bytes(), Some(32));
        assert!(stream.write_all(b"x").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn are_not_made_by_an_end_of_file() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let begun = Instant::now();
        let mut empty = ctx.io(tokio::io::empty());
        while empty.read(&mut [0; 8]).await.is_ok() {
            sleep(LIMIT / 10).await;
        }
        assert!(begun.elapsed() <= LIMIT + LATE);
    }

    #[tokio::test(start_paused = true)]
    async fn of_buffered_readers_count_consumed_bytes() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let mut lines = ctx.io(BufReader::new(&b"one\ntwo\n"[..])).lines();
        while lines.next_line().await.unwrap().is_some() {}
        let error = ctx.done().await;
        assert_eq!(error.cause_as::<NoProgress>().unwrap().bytes(), Some(8));
    }

    #[tokio::test(start_paused = true)]
    async fn are_made_by_items_of_bounded_streams() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let slow = |n| {
            futures::stream::iter(0..n).then(|item| async move {
                sleep(LIMIT / 2).await;
                item
            })
        };
        assert_eq!(pin!(slow(9).bounded_by(&ctx)).count().await, 9);
        assert_eq!(pin!(slow(9).checked_by(&ctx)).count().await, 9);
        let results = slow(9).map(Ok::<_, std::io::Error>);
        assert_eq!(pin!(results.try_bounded_by(&ctx)).count().await, 9);
        let stuck = slow(3).chain(futures::stream::pending());
        let last = pin!(stuck.checked_by(&ctx)).collect::<Vec<_>>().await.pop().unwrap();
        is_idle(&last.unwrap_err());
    }
}

mod among_other_ends {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_parents_earlier_deadline_or_cancel_takes_precedence() {
        let parent = BACKGROUND.with_timeout(LIMIT / 2);
        let ctx = parent.with_idle(LIMIT);
        assert_eq!(ctx.deadline(), parent.deadline());
        let error = ctx.done().await;
        assert_eq!(error.origin().budget(), Some(LIMIT / 2));

        let parent = BACKGROUND.with_cancel();
        let (ctx, child) = (parent.with_idle(LIMIT), parent.with_idle(LIMIT).detach().with_cancel());
        parent.cancel_with("why");
        for ctx in [&ctx, &child] {
            assert_eq!(answer(ctx).unwrap().cause().unwrap().to_string(), "why");
        }
        assert!(BACKGROUND.with_idle(LIMIT).detach().with_cancel().done().await.is_deadline_exceeded());
    }

    /// Several limits pass in one jump of the clock. The earliest is reported.
    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_clock_reports_the_earliest() {
        let parent = BACKGROUND.with_timeout(LIMIT * 2);
        let idle = parent.with_idle(LIMIT);
        let early = idle.with_timeout(LIMIT / 2);
        let late = idle.with_timeout(LIMIT * 3 / 2);
        let waited = [idle.done_owned(), early.done_owned(), late.done_owned()];
        let mut waited = futures::future::join_all(waited);
        assert!(poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut waited).poll(cx))).await.is_pending());
        advance(LONG).await;
        assert_eq!(answer(&early).unwrap().origin().budget(), Some(LIMIT / 2));
        is_idle(&answer(&late).unwrap());
        is_idle(&answer(&idle).unwrap());
        assert_eq!(answer(&parent).unwrap().origin().budget(), Some(LIMIT * 2));
        let ended = waited.await;
        is_idle(&ended[0]);
        assert_eq!(ended[1].origin().budget(), Some(LIMIT / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_at_the_same_time_takes_precedence() {
        let parent = BACKGROUND.with_timeout(LIMIT);
        let ctx = parent.with_idle(LIMIT);
        advance(LIMIT).await;
        assert_eq!(answer(&ctx).unwrap().origin().budget(), Some(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_idle_limits_the_earliest_is_reported() {
        let outer = BACKGROUND.with_idle(LIMIT);
        let inner = outer.with_idle(LIMIT * 2);
        advance(LONG).await;
        is_idle(&answer(&inner).unwrap());
        is_idle(&answer(&outer).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn the_scopes_own_cancel_takes_precedence_and_stops_the_timer() {
        let ctx = BACKGROUND.with_idle(LIMIT);
        let child = ctx.with_cancel();
        let mut wait = pin!(child.done());
        assert!(poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await);
        ctx.cancel_with("why");
        assert_eq!(wait.await.cause().unwrap().to_string(), "why");
        no_task_is_left().await;
        // Dropped with and without a pending wait.
        for waits in [true, false] {
            let ctx = BACKGROUND.with_idle(LIMIT);
            let mut wait = pin!(ctx.context().done_owned());
            assert!(poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await);
            if !waits {
                wait.set(BACKGROUND.done_owned());
            }
            drop(ctx);
            no_task_is_left().await;
        }
    }

    /// Checks that no task is left, whose timer would advance the paused clock.
    async fn no_task_is_left() {
        yield_now().await;
        yield_now().await;
        let metrics = tokio::runtime::Handle::current().metrics();
        assert_eq!(metrics.num_alive_tasks(), 0, "a task is left");
    }

    #[tokio::test(start_paused = true)]
    async fn contexts_without_the_end_are_without_the_limit() {
        let ctx = BACKGROUND.with_timeout(LONG).detach().with_idle(LIMIT);
        let free = [ctx.without_cancel(), ctx.keeping_deadline()];
        ctx.done().await;
        for free in free {
            assert!(!free.is_done());
            free.progress().report();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_and_functions_observe_it() {
        let ctx = BACKGROUND.with_idle(LIMIT).detach().with_cancel();
        let begun = Instant::now();
        ctx.cancellation_token().cancelled().await;
        assert_eq!(begun.elapsed(), LIMIT);
        let ctx = BACKGROUND.with_idle(LIMIT);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        ctx.after_func(|| async move { sender.send(()).unwrap() });
        receiver.await.unwrap();
        assert!(ctx.is_done());
        let bounded = BACKGROUND.with_idle(LIMIT).run_owned(pending::<()>()).await;
        is_idle(&bounded.unwrap_err());
    }
}

mod runtimes {
    use super::*;

    #[test]
    fn a_wait_needs_one_with_a_time_driver() {
        let wait = || {
            let ctx = BACKGROUND.with_idle(LIMIT);
            std::panic::catch_unwind(move || {
                let mut done = Box::pin(ctx.done_owned());
                let waker = std::task::Waker::noop();
                done.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending()
            })
        };
        assert!(wait().is_err());
        let without = Builder::new_current_thread().build().unwrap();
        let _entered = without.enter();
        assert!(wait().is_err());
    }

    #[test]
    fn that_are_not_driven_or_shut_down_do_not_affect_waits_elsewhere() {
        for is_shut_down in [false, true] {
            let ctx = BACKGROUND.with_idle(ms(40));
            let first = Builder::new_current_thread().enable_all().build().unwrap();
            let mut wait = Box::pin(ctx.context().done_owned());
            first.block_on(poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())));
            let first = if is_shut_down { None } else { Some(first) };
            let second = Builder::new_current_thread().enable_all().build().unwrap();
            let begun = std::time::Instant::now();
            assert!(second.block_on(ctx.done()).is_deadline_exceeded());
            assert!(begun.elapsed() < LONG);
            assert!(second.block_on(wait).is_deadline_exceeded());
            drop(first);
        }
    }

    /// Concurrent reports, queries, waits and cancels. Each context ends once, with one error.
    #[test]
    fn many_threads_agree_on_one_end() {
        let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        for round in 0..200_u64 {
            runtime.block_on(async {
                let scope = BACKGROUND.with_idle(Duration::from_micros(200 + 100 * (round % 7)));
                let mut tasks = Vec::new();
                for nth in 0..8_u64 {
                    let ctx = match nth % 3 {
                        0 => scope.clone(),
                        1 => scope.with_cancel().detach(),
                        _ => scope.with_timeout(LONG).detach().with_cancel().detach(),
                    };
                    tasks.push(tokio::spawn(async move {
                        let progress = ctx.progress();
                        for _ in 0..nth * 20 {
                            progress.report_bytes(1);
                            if ctx.is_done() {
                                break;
                            }
                            yield_now().await;
                        }
                        let ended = ctx.done().await;
                        common::assert_same(&ended, &ctx.err().unwrap());
                        ended
                    }));
                }
                if round % 4 == 0 {
                    sleep(Duration::from_micros(round)).await;
                    scope.cancel_with("why");
                }
                let mut ended = Vec::new();
                for task in tasks {
                    ended.push(task.await.unwrap());
                }
                for error in &ended {
                    common::assert_same(error, &ended[0]);
                }
            });
        }
    }
}

/// Each of a hundred merged contexts has two paths to the limit, so that there are 2^100 paths in all. Between them are
/// plain contexts, and then other merged ones.
#[tokio::test(start_paused = true)]
async fn the_cost_of_a_check_grows_with_the_contexts_and_not_with_the_paths() {
    let idle = Context::background().with_idle(LIMIT);
    let mut knot = idle.clone();
    for _ in 0..50 {
        knot = knot.merge(&knot.with_cancel().detach()).detach();
    }
    for _ in 0..50 {
        let other = knot.merge(&idle).detach();
        knot = knot.merge(&other).detach();
    }
    let progress = knot.progress();
    sleep(LIMIT / 2).await;
    progress.report();
    sleep(LIMIT / 2 + LIMIT / 4).await;
    assert!(!knot.is_done());
    assert_eq!(knot.done().await.cause_as::<NoProgress>().unwrap().limit(), LIMIT);
    assert!(idle.is_done());
}

/// The first wait spawns the task that runs the checks, while another thread ends the context.
#[test]
fn an_end_beside_the_first_wait_leaves_no_task() {
    let runtime = common::multi_thread(2);
    for _ in 0..3_000 {
        let ctx = BACKGROUND.with_idle(LONG);
        let start = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = runtime.enter();
                start.wait();
                let _polled = common::poll_once(ctx.done());
            });
            start.wait();
            ctx.cancel();
        });
    }
    let begun = std::time::Instant::now();
    while runtime.metrics().num_alive_tasks() > 0 {
        assert!(begun.elapsed() < ms(10_000), "{} tasks are left", runtime.metrics().num_alive_tasks());
        thread::yield_now();
    }
}
