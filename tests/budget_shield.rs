//! Work that can outlive its callers: `shield`, `coalesce`, `run_then`.

mod common;

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use common::{LONG, ms, poll_once, run_ready_tasks};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_ctx::Context;
use tokio_ctx::budget::Coalescer;

static BACKGROUND: Context = Context::background();

/// Counts what happens.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Counts its drop.
    fn on_drop(&self) -> OnDrop {
        OnDrop(self.clone())
    }
}

struct OnDrop(Count);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add();
    }
}

mod a_shield {
    use super::*;

    #[tokio::test]
    async fn returns_the_output_of_the_work() {
        let ctx = BACKGROUND.with_value("alice").with_cancel();
        let seen = ctx.shield(async {
            let ctx = Context::current();
            yield_now().await;
            (ctx.value::<&str>().copied(), ctx.is_done())
        });
        assert_eq!(seen.await.unwrap(), (Some("alice"), false));
    }

    #[tokio::test(start_paused = true)]
    async fn protects_the_work_from_the_end_and_from_a_drop() {
        for drops in [false, true] {
            let (done, ctx) = (Count::default(), BACKGROUND.with_timeout(ms(50)));
            let work = {
                let done = done.clone();
                ctx.shield(async move {
                    sleep(ms(100)).await;
                    assert!(!Context::current().is_done());
                    done.add();
                })
            };
            match drops {
                true => assert!(timeout(ms(20), work).await.is_err()),
                false => assert!(work.await.unwrap_err().is_deadline_exceeded()),
            }
            assert_eq!(done.get(), 0);
            sleep(ms(100)).await;
            assert_eq!(done.get(), 1, "{drops}");
        }
    }

    #[tokio::test]
    async fn starts_nothing_if_it_is_not_polled_or_the_context_has_ended() {
        let started = Count::default();
        let work = |ctx: &Context| {
            let (ctx, started) = (ctx.clone(), started.clone());
            async move { ctx.shield(async move { started.add() }).await }
        };
        drop(work(&BACKGROUND));
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel();
        assert!(work(&ctx).await.unwrap_err().is_canceled());
        run_ready_tasks().await;
        assert_eq!(started.get(), 0);
    }

    #[tokio::test]
    async fn panics_if_its_work_does() {
        let work = BACKGROUND.shield(async { std::panic::panic_any("the work") });
        let panic = tokio::spawn(async move { work.await.map(drop) }).await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the work"));
    }

    #[test]
    fn needs_a_runtime_and_ends_with_it() {
        let outside = catch_unwind(|| poll_once(BACKGROUND.shield(async {})).is_ready());
        assert!(outside.is_err());
        let (is_shut_down, ctx) =
            (Builder::new_current_thread().build().unwrap(), BACKGROUND.with_cancel());
        let mut work = Box::pin(ctx.shield(pending::<()>()));
        is_shut_down.block_on(poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_pending())));
        drop(is_shut_down);
        // A caller on another runtime does not hang.
        let here = Builder::new_current_thread().build().unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| here.block_on(work).map(drop))).is_err());
    }
}

mod callers {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn share_one_piece_of_work() {
        let (work, begun) = (Coalescer::new(), Count::default());
        let calls = (0..10).map(|_| {
            let begun = begun.clone();
            BACKGROUND.coalesce(&work, "key", |_| async move {
                begun.add();
                sleep(ms(10)).await;
                String::from("output")
            })
        });
        for output in futures::future::join_all(calls).await {
            assert_eq!(output.unwrap(), "output");
        }
        assert_eq!((begun.get(), work.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn with_different_keys_or_later_do_not_share() {
        let (work, begun) = (Coalescer::new(), Count::default());
        for round in 1..4 {
            let calls = (0..3).map(|key| {
                let begun = begun.clone();
                BACKGROUND.coalesce(&work, key, move |_| async move {
                    begun.add();
                    key
                })
            });
            let outputs = futures::future::join_all(calls).await;
            assert_eq!(outputs.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 2]);
            assert_eq!(begun.get(), round * 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn may_leave_including_the_first() {
        let (work, dropped) = (Coalescer::new(), Count::default());
        let call = |limit: u64| {
            let (work, on_drop) = (&work, dropped.on_drop());
            async move {
                let ctx = BACKGROUND.with_value(limit).with_timeout(ms(limit));
                let output = ctx.coalesce(work, (), |ctx| async move {
                    sleep(ms(100)).await;
                    assert!(!ctx.is_done());
                    drop(on_drop);
                    ctx.value::<u64>().copied()
                });
                output.await
            }
        };
        let (first, second, third) = tokio::join!(call(10), call(50), call(150));
        assert!(first.unwrap_err().is_deadline_exceeded());
        assert!(second.unwrap_err().is_deadline_exceeded());
        assert_eq!(third.unwrap(), Some(10), "the values of the first");
        assert_eq!(dropped.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn that_have_all_left_end_the_work() {
        for by_drop in [false, true] {
            let (work, dropped, ended) = (Coalescer::new(), Count::default(), Count::default());
            let begun = Instant::now();
            let call = |limit: u64| {
                let (work, on_drop, ended) = (&work, dropped.on_drop(), ended.clone());
                async move {
                    let ctx = BACKGROUND.with_timeout(if by_drop { LONG } else { ms(limit) });
                    let output = ctx.coalesce(work, (), move |ctx| async move {
                        let _on_drop = on_drop;
                        ctx.after_func(|| async move { ended.add() });
                        pending::<()>().await;
                    });
                    timeout(ms(limit), output).await
                }
            };
            let _left = tokio::join!(call(10), call(50), call(30));
            assert!(work.is_empty());
            run_ready_tasks().await;
            assert_eq!(
                (dropped.get(), ended.get()),
                (3, 1),
                "dropped where it awaits, with an ended context"
            );
            assert!(begun.elapsed() < ms(52));
            // A later call starts new work.
            assert_eq!(BACKGROUND.coalesce(&work, (), |_| async {}).await.ok(), Some(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_have_left_keep_work_until_the_latest_deadline() {
        let (work, dropped) = (Coalescer::until_latest_deadline(), Count::default());
        let begun = Instant::now();
        let call = |limit: u64| {
            let (work, on_drop) = (&work, dropped.on_drop());
            async move {
                let ctx = BACKGROUND.with_timeout(ms(limit));
                let output = ctx.coalesce(work, (), move |_| async move {
                    let _on_drop = on_drop;
                    pending::<()>().await;
                });
                timeout(ms(5), output).await.unwrap_err();
            }
        };
        tokio::join!(call(20), call(100), call(60));
        assert_eq!((work.len(), dropped.get()), (1, 2), "it continues without a caller");
        sleep(ms(94) - begun.elapsed()).await;
        assert_eq!(work.len(), 1);
        sleep(ms(10)).await;
        assert_eq!((work.len(), dropped.get()), (0, 3));
    }

    /// The work is stopped at the deadline of the last caller. That caller then gets its own error, whether its task or that of
    /// the work runs first.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_that_stay_to_the_end_get_their_own_error() {
        let work = Coalescer::until_latest_deadline();
        for round in 0..300_u32 {
            let deadline = Instant::now() + ms(2);
            let calls = [0, 1].map(|_| {
                let (work, ctx) = (work.clone(), BACKGROUND.with_deadline(deadline));
                tokio::spawn(async move { ctx.coalesce(&work, round, |_| pending::<()>()).await })
            });
            for call in calls {
                let ended = call.await.expect("no panic").unwrap_err();
                assert!(ended.is_deadline_exceeded());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_without_a_deadline_takes_the_limit_away() {
        let work = Coalescer::until_latest_deadline();
        let bounded = BACKGROUND.with_timeout(ms(20));
        let call = |ctx: Context| {
            let work = work.clone();
            async move { ctx.coalesce(&work, (), |_| async { sleep(ms(200)).await }).await }
        };
        let (bounded, unbounded) = tokio::join!(call(bounded.clone()), call(BACKGROUND.clone()));
        assert!(bounded.is_err());
        unbounded.unwrap();
    }

    #[tokio::test]
    async fn that_have_ended_start_and_join_nothing() {
        let (work, begun) = (Coalescer::new(), Count::default());
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with("why");
        let call = {
            let begun = begun.clone();
            ctx.coalesce(&work, (), move |_| async move { begun.add() })
        };
        assert_eq!(call.await.unwrap_err().cause().unwrap().to_string(), "why");
        drop(BACKGROUND.coalesce(&work, (), |_| async {}));
        run_ready_tasks().await;
        assert_eq!((begun.get(), work.len()), (0, 0));
    }

    #[tokio::test]
    async fn all_panic_if_the_work_does_and_later_ones_start_new_work() {
        let work = Coalescer::new();
        let calls = (0..3).map(|_| {
            let work = work.clone();
            tokio::spawn(async move {
                let panics = BACKGROUND.coalesce(&work, (), |_| async {
                    yield_now().await;
                    panic!("the work")
                });
                panics.await.map(drop)
            })
        });
        for call in futures::future::join_all(calls).await {
            assert!(call.unwrap_err().is_panic());
        }
        assert!(work.is_empty());
        // Also if the function itself does.
        let refused = Coalescer::new();
        let call = tokio::spawn({
            let work = refused.clone();
            async move {
                let f = |_| -> std::future::Ready<()> { panic!("the call") };
                BACKGROUND.coalesce(&work, (), f).await.map(drop)
            }
        });
        assert!(call.await.unwrap_err().is_panic());
        assert!(refused.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_at_every_await_leave_nothing() {
        for polls in 0..8 {
            let (work, dropped) = (Coalescer::new(), Count::default());
            {
                let on_drop = dropped.on_drop();
                let call = BACKGROUND.coalesce(&work, polls, move |_| async move {
                    let _on_drop = on_drop;
                    for _ in 0..3 {
                        yield_now().await;
                    }
                });
                let mut call = pin!(call);
                for _ in 0..polls {
                    if poll_once(call.as_mut()).is_ready() {
                        break;
                    }
                    yield_now().await;
                }
            }
            run_ready_tasks().await;
            assert_eq!((work.len(), dropped.get()), (0, 1), "after {polls} polls");
        }
    }

    /// Threads call, join and leave. Each output belongs to the caller's key, and nothing is left.
    #[test]
    fn on_many_threads_agree() {
        let runtime = Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        for round in 0..common_rounds() {
            let work: Coalescer<u64, u64> = Coalescer::new();
            runtime.block_on(async {
                let calls = (0..32_u64).map(|nth| {
                    let work = work.clone();
                    tokio::spawn(async move {
                        let ctx = BACKGROUND.with_cancel();
                        let key = nth % 3;
                        let call = ctx.coalesce(&work, key, move |_| async move {
                            for _ in 0..nth % 4 {
                                yield_now().await;
                            }
                            key
                        });
                        if nth % 5 == 0 {
                            // Leaves after one poll.
                            let mut call = pin!(call);
                            let first = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                            if let Poll::Ready(output) = first {
                                assert_eq!(output.unwrap(), key);
                            }
                            return;
                        }
                        assert_eq!(call.await.unwrap(), key);
                    })
                });
                for call in futures::future::join_all(calls).await {
                    call.unwrap();
                }
                timeout(LONG, async {
                    while !work.is_empty() {
                        yield_now().await;
                    }
                })
                .await
                .unwrap_or_else(|_| panic!("round {round}: {work:?}"));
            });
        }
    }

    fn common_rounds() -> usize {
        300
    }
}

mod a_clean_up {
    use super::*;

    /// Records what a clean-up does.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<&'static str>>>);

    impl Notes {
        fn add(&self, note: &'static str) {
            self.0.lock().unwrap().push(note);
        }

        fn get(&self) -> Vec<&'static str> {
            self.0.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn follows_the_end_in_its_own_time_with_the_values() {
        let (notes, begun) = (Notes::default(), Instant::now());
        let ctx = BACKGROUND.with_value("alice").with_timeout(ms(100));
        let (in_work, in_cleanup) = (notes.clone(), notes.clone());
        struct Work(Notes);
        impl Drop for Work {
            fn drop(&mut self) {
                self.0.add("work dropped");
            }
        }
        let work = async move {
            let _work = Work(in_work);
            pending::<()>().await;
        };
        let ended = ctx.run_then(work, ms(50), move |ctx| async move {
            in_cleanup.add("clean-up");
            assert_eq!(ctx.value::<&str>(), Some(&"alice"));
            assert_eq!(Context::current().value::<&str>(), Some(&"alice"));
            assert!(!ctx.is_done() && ctx.remaining() == Some(ms(50)));
            ctx.sleep(ms(20)).await.unwrap();
            in_cleanup.add("over");
        });
        assert!(ended.await.unwrap_err().is_deadline_exceeded());
        assert_eq!(notes.get(), ["work dropped", "clean-up", "over"]);
        assert!((ms(120)..ms(123)).contains(&begun.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn is_bounded_itself() {
        let (dropped, begun) = (Count::default(), Instant::now());
        let ctx = BACKGROUND.with_cancel();
        let on_drop = dropped.on_drop();
        let ended = ctx.run_then(
            async {
                ctx.cancel();
                pending::<()>().await;
            },
            ms(30),
            |_| async move {
                let _on_drop = on_drop;
                pending().await
            },
        );
        assert!(ended.await.unwrap_err().is_canceled());
        assert!((ms(30)..ms(32)).contains(&begun.elapsed()));
        assert_eq!(dropped.get(), 1);
    }

    #[tokio::test]
    async fn does_not_run_if_the_work_has_finished_or_not_started() {
        let cleaned = Count::default();
        let cleanup = || {
            let cleaned = cleaned.clone();
            |_| async move { cleaned.add() }
        };
        assert_eq!(BACKGROUND.run_then(async { 7 }, LONG, cleanup()).await.unwrap(), 7);
        let ctx = BACKGROUND.with_cancel();
        let last = ctx.run_then(async { ctx.cancel() }, LONG, cleanup());
        last.await.unwrap();
        assert!(ctx.run_then(async { unreachable!() }, LONG, cleanup()).await.is_err());
        drop(BACKGROUND.run_then(pending::<()>(), LONG, cleanup()));
        run_ready_tasks().await;
        assert_eq!(cleaned.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn runs_also_if_its_waiter_is_dropped() {
        // By an outer `run` of the same context, and by another branch.
        let cleaned = Count::default();
        let cleanup = || {
            let cleaned = cleaned.clone();
            |_: Context| async move {
                sleep(ms(5)).await;
                cleaned.add();
            }
        };
        let ctx = BACKGROUND.with_timeout(ms(10));
        assert!(ctx.run(ctx.run_then(pending::<()>(), LONG, cleanup())).await.is_err());
        sleep(ms(10)).await;
        assert_eq!(cleaned.get(), 1);
        assert!(timeout(ms(10), BACKGROUND.run_then(pending::<()>(), LONG, cleanup())).await.is_err());
        sleep(ms(10)).await;
        assert_eq!(cleaned.get(), 2);
    }

    #[tokio::test]
    async fn runs_also_if_the_work_panics() {
        let cleaned = Count::default();
        let cleanup = {
            let cleaned = cleaned.clone();
            |_| async move { cleaned.add() }
        };
        let panics = tokio::spawn(async move {
            BACKGROUND.run_then(async { panic!("the work") }, LONG, cleanup).await.map(drop)
        });
        assert!(panics.await.unwrap_err().is_panic());
        run_ready_tasks().await;
        assert_eq!(cleaned.get(), 1);
    }

    #[tokio::test]
    async fn that_panics_panics_in_its_caller() {
        let ctx = BACKGROUND.with_cancel();
        let canceler = ctx.canceler();
        let panics = tokio::spawn(async move {
            let work = async move {
                canceler.cancel();
                pending::<()>().await;
            };
            ctx.run_then(work, LONG, |_| async { std::panic::panic_any("the clean-up") }).await
        });
        let panic = panics.await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the clean-up"));
    }

    #[tokio::test(start_paused = true)]
    async fn with_no_grace_or_with_unlimited_grace() {
        let begun = Count::default();
        for grace in [Duration::ZERO, Duration::MAX] {
            let ctx = BACKGROUND.with_timeout(ms(10));
            let begun = begun.clone();
            let ended = ctx.run_then(pending::<()>(), grace, move |ctx| async move {
                begun.add();
                assert_eq!(ctx.deadline(), None);
                sleep(LONG).await;
            });
            assert!(ended.await.is_err());
        }
        assert_eq!(begun.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn has_its_full_time_after_a_jump_of_the_clock() {
        let ctx = BACKGROUND.with_timeout(ms(10));
        let (sender, receiver) = oneshot::channel();
        let ended = ctx.run_then(pending::<()>(), ms(50), |ctx| async move {
            let _sent = sender.send(ctx.remaining());
        });
        let mut ended = pin!(ended);
        assert!(poll_fn(|cx| Poll::Ready(ended.as_mut().poll(cx))).await.is_pending());
        advance(LONG).await;
        assert!(ended.await.is_err());
        assert_eq!(receiver.await.unwrap(), Some(ms(50)));
    }

    #[test]
    fn needs_a_runtime_before_the_work_begins_and_none_to_be_dropped() {
        let polled = Cell::new(false);
        let outside = catch_unwind(AssertUnwindSafe(|| {
            let work = BACKGROUND.run_then(async { polled.set(true) }, LONG, |_| async {});
            poll_once(work).is_ready()
        }));
        assert!(outside.is_err() && !polled.get());
        // Started in a runtime, and dropped outside of it after it has shut down.
        for is_shut_down in [false, true] {
            let runtime = Builder::new_current_thread().enable_time().build().unwrap();
            let cleaned = Count::default();
            let cleanup = {
                let cleaned = cleaned.clone();
                |_| async move { cleaned.add() }
            };
            let mut work = Box::pin(BACKGROUND.run_then(pending::<()>(), LONG, cleanup));
            runtime.block_on(poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_pending())));
            if is_shut_down {
                drop(runtime);
                drop(work);
                assert_eq!(cleaned.get(), 0);
            } else {
                drop(work);
                runtime.block_on(run_ready_tasks());
                assert_eq!(cleaned.get(), 1);
            }
        }
    }
}
