//! `Group`: the first error ends the others and is what `wait` gives; nobody is left behind. Go's
//! `errgroup_test.go` is the checklist, and every promise of the docs is here.

mod common;
#[path = "common/live.rs"]
mod live;

use std::error::Error as StdError;
use std::fmt;
use std::future::{pending, ready};
use std::io;
use std::panic::{AssertUnwindSafe, panic_any};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use common::{
    Cause, Drops, LONG, answer, current_thread, ended, ms, multi_thread, on_both, panic_text, paused,
    poll, poll_once, watched, word,
};
use tokio::sync::{Barrier, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::group::fault::Boxed;
use tokio_ctx::group::{End, GroupError, TaskPanicked, TrySpawnError};
use tokio_ctx::{BoxError, Context, Error, Group};

static BACKGROUND: Context = Context::background();

type Words = Group<&'static str, Cause>;

/// Runs a test on a clock that stands still.
fn on_paused<F: Future<Output = ()>>(test: F) {
    paused().block_on(test);
}

/// Ends after the context does, and after some cleaning up.
async fn cleans_up(takes: Duration) -> Result<&'static str, Cause> {
    Context::current().done().await;
    sleep(takes).await;
    Ok("cleaned up")
}

mod values {
    use super::*;

    #[test]
    fn come_in_the_order_of_the_spawns() {
        on_paused(async {
            let (mut group, _ctx) = Group::<_, Cause>::new(&BACKGROUND);
            for (nth, delay) in [30, 10, 20, 0].into_iter().enumerate() {
                group.spawn(async move {
                    sleep(ms(delay)).await;
                    Ok(nth)
                });
            }
            assert_eq!(group.wait().await.unwrap(), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn of_no_tasks_are_none() {
        on_both(|| async {
            let (group, ctx) = Words::new(&BACKGROUND);
            assert!(answer(&ctx).is_none());
            assert_eq!(group.wait().await.unwrap(), [""; 0]);
            assert!(ended(&ctx).is_canceled());
        });
    }

    /// Go's `Wait` cancels its context also when all went well; ours says so in the usual words.
    #[test]
    fn are_there_when_the_context_has_ended() {
        on_both(|| async {
            let line = line!() + 1;
            let (mut group, ctx) = Words::new(&BACKGROUND);
            let (tell, told) = oneshot::channel();
            group.spawn(async { Ok(told.await.unwrap()) });
            assert!(answer(&ctx).is_none());
            tell.send("well").unwrap();
            assert_eq!(group.wait().await.unwrap(), ["well"]);
            let error = ended(&ctx);
            assert_eq!(error.origin().made_at().line(), line);
            assert!(error.cause().is_none());
        });
    }

    /// Finished work is not thrown away, and an end from outside is no failure. So does Go.
    #[test]
    fn survive_an_end_from_outside() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(50));
            let (mut group, ctx) = Words::new(&parent);
            group.spawn(async { Ok("early") });
            group.spawn(cleans_up(ms(10)));
            assert_eq!(group.wait().await.unwrap(), ["early", "cleaned up"]);
            assert!(ended(&ctx).is_deadline_exceeded());
        });
    }
}

mod the_context {
    use super::*;

    #[test]
    fn is_current_in_the_tasks_with_its_values() {
        on_both(|| async {
            let parent = BACKGROUND.with_value("seven");
            let (mut group, ctx) = Words::new(&parent);
            group.spawn(async { Ok(*Context::current().value::<&str>().unwrap()) });
            group.spawn(async {
                let error = Context::current().done().await;
                assert_eq!(word(&error), Some("over"));
                Ok("told")
            });
            group.canceller().cancel_with(Cause("over"));
            assert_eq!(word(&ended(&ctx)), Some("over"));
            assert_eq!(word(&ended(group.context())), Some("over"));
            assert_eq!(group.wait().await.unwrap(), ["seven", "told"]);
            assert!(answer(&parent).is_none(), "an end goes down, never up");
        });
    }

    /// As in Go: the task is told, and finds out.
    #[test]
    fn may_have_ended_before_a_task_is_spawned() {
        on_both(|| async {
            let parent = BACKGROUND.with_cancel();
            parent.cancel_with(Cause("dead"));
            let (mut group, _ctx) = Group::<(), Error>::new(&parent);
            group.spawn(async { Context::current().check() });
            let failed = group.wait().await.unwrap_err();
            assert_eq!(word(failed.error().unwrap()), Some("dead"));
        });
    }
}

mod the_first_error {
    use super::*;

    #[test]
    fn is_the_cause_for_the_others_and_what_wait_gives() {
        on_both(|| async {
            let (mut group, ctx) = Group::<(), Cause>::new(&BACKGROUND);
            let (tell, told) = oneshot::channel();
            group.spawn(async {
                tell.send(Context::current().done().await).unwrap();
                Ok(())
            });
            group.spawn(async { Err(Cause("doomed")) });
            let line = line!() - 1;

            let failed = group.wait().await.unwrap_err();
            let failure = failed.failure().unwrap();
            assert_eq!(**failure, Cause("doomed"));
            assert_eq!(failure.spawned_at().line(), line);
            assert!(failed.aborted().is_empty());

            // One and the same value, not a copy of it.
            let told = told.await.unwrap();
            for error in [&told, &ended(&ctx), failed.context_error().unwrap()] {
                let cause = error.cause_as::<Cause>().unwrap();
                assert!(std::ptr::eq(cause, &raw const **failure));
                assert_eq!(error.origin().canceled_at().unwrap().line(), line);
            }
        });
    }

    #[test]
    fn ends_the_others_also_if_nobody_waits() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Cause("doomed")) });
            assert_eq!(word(&ctx.done().await), Some("doomed"));
        });
    }

    #[test]
    fn is_not_replaced_by_its_echoes_or_by_later_ones() {
        on_paused(async {
            let (mut group, _ctx) = Group::<(), BoxError>::new(&BACKGROUND);
            group.spawn(async { Ok(Context::current().sleep(LONG).await?) });
            group.spawn(async {
                sleep(ms(20)).await;
                Err("first")?
            });
            group.spawn(async {
                sleep(ms(30)).await;
                Err("second")?
            });
            let start = Instant::now();
            let failed = group.wait().await.unwrap_err();
            assert_eq!(start.elapsed(), ms(30), "the sleeper was told");
            assert_eq!(failed.error().unwrap().to_string(), "first");
        });
    }

    /// The context had ended: its cause stays what it was, and `wait` tells what the task made of it.
    #[test]
    fn does_not_rewrite_an_end_from_outside() {
        on_both(|| async {
            let parent = BACKGROUND.with_cancel();
            let (mut group, ctx) = Words::new(&parent);
            group.spawn(async {
                Context::current().done().await;
                Err(Cause("could not clean up"))
            });
            parent.cancel_with(Cause("shutdown"));
            let failed = group.wait().await.unwrap_err();
            assert_eq!(*failed.error().unwrap(), Cause("could not clean up"));
            assert_eq!(word(failed.context_error().unwrap()), Some("shutdown"));
            assert_eq!(word(&ended(&ctx)), Some("shutdown"));
        });
    }

    /// Whichever it is, everybody names the same.
    #[test]
    fn of_many_at_once_is_one_for_everybody() {
        let runtime = multi_thread(4);
        for _ in 0..300 {
            let round = async {
                let (mut group, ctx) = Group::<(), BoxError>::new(&BACKGROUND);
                let barrier = Arc::new(Barrier::new(8));
                for nth in 0..8_u32 {
                    let barrier = barrier.clone();
                    group.spawn(async move {
                        barrier.wait().await;
                        Err(Box::new(Numbered(nth)) as BoxError)
                    });
                }
                let failed = group.wait().await.unwrap_err();
                let first = failed.error().unwrap().downcast_ref::<Numbered>().unwrap();
                assert_eq!(ended(&ctx).cause_as::<Numbered>().unwrap().0, first.0);
            };
            runtime.block_on(round);
        }
    }

    /// An error, a cancel from above and the end of the wait, all at once: no hang, nothing lost.
    #[test]
    fn is_told_whatever_else_ends_the_context() {
        let runtime = multi_thread(2);
        watched(move || {
            for _ in 0..300 {
                runtime.block_on(async {
                    let parent = BACKGROUND.with_cancel();
                    let (mut group, _ctx) = Words::new(&parent);
                    let barrier = Arc::new(Barrier::new(2));
                    let meet = barrier.clone();
                    group.spawn(async move {
                        meet.wait().await;
                        Err(Cause("doomed"))
                    });
                    group.spawn(cleans_up(Duration::ZERO));
                    let cancel = tokio::spawn(async move {
                        barrier.wait().await;
                        parent.cancel_with(Cause("above"));
                    });
                    let failed = group.wait().await.unwrap_err();
                    assert_eq!(*failed.error().unwrap(), Cause("doomed"));
                    let why = word(failed.context_error().unwrap());
                    assert!(matches!(why, Some("doomed" | "above")), "{why:?}");
                    cancel.await.unwrap();
                });
            }
        });
    }

    #[derive(Debug)]
    struct Numbered(u32);

    impl fmt::Display for Numbered {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "number {}", self.0)
        }
    }

    impl StdError for Numbered {}
}

mod errors_of_every_type {
    use super::*;

    async fn fails<E>(error: E) -> Result<(), E> {
        Err(error)
    }

    #[test]
    fn io() {
        on_both(|| async {
            async fn broken(kind: io::ErrorKind) -> io::Result<Vec<()>> {
                let (mut group, ctx) = Group::new(&BACKGROUND);
                group.spawn(fails(io::Error::from(kind)));
                let waited = group.wait().await;
                assert_eq!(ended(&ctx).cause_as::<io::Error>().unwrap().kind(), kind);
                Ok(waited?)
            }
            let error = broken(io::ErrorKind::AddrInUse).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            let inner = error.get_ref().unwrap().downcast_ref::<GroupError<io::Error>>().unwrap();
            assert_eq!(inner.error().unwrap().kind(), io::ErrorKind::AddrInUse);
        });
    }

    #[test]
    fn boxed() {
        on_both(|| async {
            let (mut group, ctx) = Group::<(), BoxError>::new(&BACKGROUND);
            group.spawn(fails(Box::new(Cause("boxed")) as BoxError));
            let failed: BoxError = group.wait().await.unwrap_err().into();
            assert_eq!(word(&ended(&ctx)), Some("boxed"));
            assert_eq!(*failed.source().unwrap().downcast_ref::<Cause>().unwrap(), Cause("boxed"));
        });
    }

    #[test]
    fn anyhow() {
        on_both(|| async {
            async fn wrapped() -> anyhow::Result<()> {
                let (mut group, ctx) = Group::<(), anyhow::Error>::new(&BACKGROUND);
                group.spawn(fails(anyhow::Error::new(Cause("inner")).context("while testing")));
                let failed = group.wait().await.unwrap_err();
                assert_eq!(word(&ended(&ctx)), Some("inner"));
                assert_eq!(failed.error().unwrap().downcast_ref(), Some(&Cause("inner")));
                Err(failed)?
            }
            let error = wrapped().await.unwrap_err();
            assert!(error.to_string().ends_with(" failed: while testing"), "{error}");
            assert!(error.chain().any(|cause| cause.is::<Cause>()));
        });
    }

    /// What tasks that only look at their context return.
    #[test]
    fn of_contexts() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(20));
            let (mut group, _ctx) = Group::<(), Error>::new(&parent);
            group.spawn(async { Context::current().sleep(LONG).await });
            let failed = group.wait().await.unwrap_err();
            assert!(failed.error().unwrap().is_deadline_exceeded());
            assert_eq!(io::Error::from(failed).kind(), io::ErrorKind::Other);
        });
    }

    /// An error itself, and with an error inside: which of them is meant must be said.
    #[test]
    fn shared() {
        type Shared = Arc<dyn StdError + Send + Sync>;
        on_both(|| async {
            let (mut group, ctx) = Group::<(), Shared>::new::<Boxed>(&BACKGROUND);
            group.spawn(fails(Arc::new(Cause("shared")) as Shared));
            assert!(group.wait().await.is_err());
            assert_eq!(word(&ended(&ctx)), Some("shared"));
        });
    }

    #[test]
    fn that_only_know_they_are_errors() {
        async fn all<E: StdError + Send + Sync + 'static>(error: E) -> GroupError<E> {
            let (mut group, _ctx) = Group::new(&BACKGROUND);
            group.spawn(fails(error));
            group.wait().await.unwrap_err()
        }
        on_both(|| async { assert_eq!(all(Cause("generic")).await.error(), Some(&Cause("generic"))) });
    }

    /// The failure is freed with the last who has it: the error of `wait`, and the context.
    #[test]
    fn are_dropped_once() {
        on_both(|| async {
            let drops = Drops::default();
            let (mut group, ctx) = Group::<(), common::CountsDrop>::new(&BACKGROUND);
            group.spawn(fails(drops.counted()));
            group.spawn(fails(drops.counted()));
            let failed = group.wait().await.unwrap_err();
            assert_eq!(drops.count(), 1, "only the first is kept");
            drop(failed);
            assert_eq!(drops.count(), 1);
            drop(ctx);
            assert_eq!(drops.count(), 2);
        });
    }
}

mod wait {
    use super::*;

    #[test]
    fn returns_when_all_have_really_ended() {
        on_paused(async {
            let start = Instant::now();
            let drops = Drops::default();
            let counted = drops.counted();
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Cause("doomed")) });
            group.spawn(async move {
                let _counted = counted;
                cleans_up(ms(100)).await
            });
            assert!(group.wait().await.is_err());
            assert_eq!(start.elapsed(), ms(100));
            assert_eq!(drops.count(), 1);
        });
    }

    /// A future need not be done with what it holds when it resolves; the wait is for its drop.
    #[test]
    fn returns_when_what_the_tasks_held_is_dropped() {
        on_both(|| async {
            let drops = Drops::default();
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            for _ in 0..50 {
                let counted = drops.counted();
                group.spawn(std::future::poll_fn(move |_| {
                    let _ = &counted;
                    std::task::Poll::Ready(Ok("done"))
                }));
            }
            group.wait().await.unwrap();
            assert_eq!(drops.count(), 50);
        });
    }

    #[test]
    fn can_be_sent_and_the_group_shared() {
        fn check<T: Send>(value: T) -> T {
            value
        }
        fn shared<T: Send + Sync>() {}
        shared::<Words>();
        shared::<Group<std::cell::Cell<u8>, Cause>>();
        shared::<GroupError<Cause>>();
        let (group, _ctx) = Words::new(&BACKGROUND);
        drop(check(group.wait()));
        let (group, _ctx) = Words::new(&BACKGROUND);
        let mut group = group.limit(1);
        drop(check(group.spawn(ready(Ok("")))));
    }

    #[test]
    fn dropped_ends_and_aborts_the_tasks() {
        on_both(|| async {
            let drops = Drops::default();
            let counted = drops.counted();
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async move {
                let _counted = counted;
                pending().await
            });
            let mut waiting = Box::pin(group.wait());
            assert!(poll(waiting.as_mut(), Waker::noop()).is_pending());
            assert!(answer(&ctx).is_none());
            drop(waiting);
            assert!(ended(&ctx).is_canceled());
            gone(&drops, 1).await;
        });
    }

    #[test]
    fn says_what_happened_on_one_line() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(10));
            group.spawn(async { Err(Cause("disk full")) });
            let line = line!() - 1;
            for _ in 0..2 {
                group.spawn(pending());
            }
            group.spawn(pending());
            let failed = group.wait().await.unwrap_err();
            let expected = format!(
                "task spawned at tests/group.rs:{line} failed: disk full; aborted: 2 tasks spawned at \
                 tests/group.rs:{}, 1 at tests/group.rs:{}",
                line + 3,
                line + 5
            );
            assert_eq!(failed.to_string(), expected);
            assert!(format!("{failed:?}").contains("disk full"));
        });
    }
}

/// Aborted tasks go at their next turn, which on several threads is soon, not at once.
async fn gone(drops: &Drops, count: usize) {
    let all = async {
        while drops.count() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(common::HANG, all).await.expect("a task outlived its group");
}

mod a_dropped_group {
    use super::*;

    #[test]
    fn ends_its_context_and_outlives_none_of_its_tasks() {
        on_both(|| async {
            let drops = Drops::default();
            let line = line!() + 1;
            let (mut group, ctx) = Words::new(&BACKGROUND);
            for _ in 0..10 {
                let counted = drops.counted();
                group.spawn(async move {
                    let _counted = counted;
                    pending().await
                });
            }
            drop(group);
            let error = ended(&ctx);
            assert_eq!(
                error.to_string(),
                format!("context canceled: scope dropped, context made at tests/group.rs:{line}")
            );
            gone(&drops, 10).await;
        });
    }

    /// They are told before they are aborted: a task that is at work just then hears of it.
    #[test]
    fn tells_its_tasks_first() {
        on_both(|| async {
            let (tell, told) = oneshot::channel();
            struct Tells(Option<oneshot::Sender<bool>>, Context);
            impl Drop for Tells {
                fn drop(&mut self) {
                    self.0.take().unwrap().send(self.1.is_done()).unwrap();
                }
            }
            let (mut group, ctx) = Words::new(&BACKGROUND);
            let tells = Tells(Some(tell), ctx);
            group.spawn(async move {
                let _tells = tells;
                pending().await
            });
            drop(group);
            assert!(told.await.unwrap(), "it was aborted before it was told");
        });
    }

    #[test]
    fn goes_with_its_runtime() {
        let drops = Drops::default();
        let runtime = multi_thread(2);
        let counted = drops.counted();
        let mut group = runtime.block_on(async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async move {
                let _counted = counted;
                pending().await
            });
            group
        });
        drop(runtime);
        assert_eq!(drops.count(), 1);
        // Nobody ends: its tasks are gone, and whoever waits is told.
        let failed = current_thread().block_on(async {
            group.spawn(cleans_up(Duration::ZERO));
            group.wait().await.unwrap_err()
        });
        assert!(failed.error().is_none());
        assert_eq!(failed.aborted().len(), 1);
        assert!(failed.to_string().contains("its runtime shut down; aborted: 1 task"), "{failed}");
    }
}

mod a_limit {
    use super::*;

    #[test]
    fn bounds_how_many_run_at_once() {
        on_both(|| async {
            const LIMIT: usize = 10;
            let active = Arc::new(AtomicUsize::new(0));
            let (group, _ctx) = Group::<(), Cause>::new(&BACKGROUND);
            let mut group = group.limit(LIMIT);
            for _ in 0..1000 {
                let active = active.clone();
                let task = async move {
                    let now = active.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::task::yield_now().await;
                    active.fetch_sub(1, Ordering::SeqCst);
                    if now > LIMIT { Err(Cause("too many")) } else { Ok(()) }
                };
                group.spawn(task).await.unwrap();
            }
            assert_eq!(group.wait().await.unwrap().len(), 1000);
        });
    }

    #[test]
    fn is_used_up_to_the_full() {
        on_paused(async {
            let start = Instant::now();
            let (group, _ctx) = Group::<usize, Cause>::new(&BACKGROUND);
            let mut group = group.limit(4);
            for nth in 0..12 {
                let task = async move {
                    sleep(ms(10)).await;
                    Ok(nth)
                };
                group.spawn(task).await.unwrap();
                assert_eq!(start.elapsed(), ms(10) * (nth as u32 / 4), "task {nth}");
            }
            assert_eq!(group.wait().await.unwrap(), Vec::from_iter(0..12));
            assert_eq!(start.elapsed(), ms(30));
        });
    }

    #[test]
    fn counts_those_that_run_already() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            let (tell, told) = oneshot::channel();
            group.spawn(async { Ok(told.await.unwrap()) });
            let mut group = group.limit(1);
            assert!(matches!(group.try_spawn(ready(Ok("two"))), Err(TrySpawnError::Full(_))));
            tell.send("one").unwrap();
            group.spawn(ready(Ok("two"))).await.unwrap();
            assert_eq!(group.wait().await.unwrap(), ["one", "two"]);
        });
    }

    #[test]
    fn makes_spawn_give_up_when_the_context_ends() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(50));
            let (group, _ctx) = Words::new(&parent);
            let mut group = group.limit(1);
            group.spawn(cleans_up(ms(20))).await.unwrap();
            let start = Instant::now();
            let gave_up = group.spawn(async { unreachable!() }).await.unwrap_err();
            assert!(gave_up.is_deadline_exceeded());
            assert!(start.elapsed() <= ms(51), "before the other has ended");
            let gave_up = group.spawn(async { unreachable!() }).await.unwrap_err();
            assert!(gave_up.is_deadline_exceeded());
            // One value of two or three would be taken for all.
            let failed = group.wait().await.unwrap_err();
            assert!(failed.error().is_none() && failed.aborted().is_empty());
            assert!(failed.context_error().unwrap().is_deadline_exceeded());
        });
    }

    /// The failure makes room, and ends the context: room or not, nothing starts after the end.
    #[test]
    fn starts_nothing_in_the_room_that_the_end_has_made() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            group.spawn(async { Err(Cause("doomed")) }).await.unwrap();
            let gave_up = group.spawn(async { unreachable!() }).await.unwrap_err();
            assert_eq!(word(&gave_up), Some("doomed"));
            assert_eq!(*group.wait().await.unwrap_err().error().unwrap(), Cause("doomed"));
        });
    }

    #[test]
    fn keeps_a_task_from_starting_whose_spawn_is_dropped() {
        on_both(|| async {
            let drops = Drops::default();
            let counted = drops.counted();
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            let (tell, told) = oneshot::channel();
            group.spawn(async { Ok(told.await.unwrap()) }).await.unwrap();
            {
                let never = async move {
                    let _counted = counted;
                    unreachable!()
                };
                let mut waiting = pin!(group.spawn(never));
                assert!(poll(waiting.as_mut(), Waker::noop()).is_pending());
            }
            assert_eq!(drops.count(), 1);
            tell.send("one").unwrap();
            assert_eq!(group.wait().await.unwrap(), ["one"]);
        });
    }

    /// Go's `TestTryGo`.
    #[test]
    fn makes_try_spawn_say_no() {
        on_both(|| async {
            let (group, _ctx) = Group::<(), Cause>::new(&BACKGROUND);
            let mut group = group.limit(42);
            let release = Arc::new(Semaphore::new(0));
            let task = || {
                let release = release.clone();
                async move {
                    release.acquire().await.unwrap().forget();
                    Ok(())
                }
            };
            for _ in 0..42 {
                assert!(group.try_spawn(task()).is_ok());
            }
            let refused = group.try_spawn(task()).unwrap_err();
            assert!(refused.to_string().starts_with("the group is full"), "{refused}");

            release.add_permits(1);
            assert!(group.next().await.is_some());
            assert!(group.try_spawn(task()).is_ok());
            assert!(group.try_spawn(task()).is_err());
            release.add_permits(42);
            while group.try_spawn(ready(Ok(()))).is_err() {
                tokio::task::yield_now().await;
            }
            group.wait().await.unwrap();
            drop(refused.into_inner());
        });
    }

    #[test]
    fn makes_try_spawn_start_nothing_after_the_end() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            group.canceller().cancel_with(Cause("over"));
            match group.try_spawn(async { unreachable!() }) {
                Err(TrySpawnError::Ended(_, why)) => assert_eq!(word(&why), Some("over")),
                other => panic!("{other:?}"),
            }
            // The task was handed back: nobody gave it up.
            assert_eq!(group.wait().await.unwrap(), [""; 0]);
        });
    }

    #[test]
    fn of_zero_is_refused_with_a_clear_word() {
        let text = panic_text(|| Words::new(&BACKGROUND).0.limit(0));
        assert!(text.contains("cannot be 0; use at least 1"), "{text}");
    }

    #[test]
    fn may_be_as_large_as_can_be() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(usize::MAX);
            group.spawn(ready(Ok("one"))).await.unwrap();
            assert_eq!(group.wait().await.unwrap(), ["one"]);
        });
    }

    #[test]
    fn goes_with_keep_going() {
        on_paused(async {
            let (group, ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going().limit(1);
            for _ in 0..3 {
                group.spawn(async { Err(Cause("failed")) }).await.unwrap();
            }
            assert!(answer(&ctx).is_none());
            assert_eq!(group.outcomes().await.len(), 3);
        });
    }
}

mod a_panic {
    use super::*;

    #[test]
    fn ends_the_others_and_is_resumed_when_all_have_ended() {
        on_both(|| async {
            let drops = Drops::default();
            let counted = drops.counted();
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async move {
                let _counted = counted;
                cleans_up(ms(5)).await
            });
            group.spawn(async { panic_any("task 7 broke".to_owned()) });
            let line = line!() - 1;

            let stopped = ctx.done().await;
            let cause = stopped.cause_as::<TaskPanicked>().unwrap();
            assert_eq!(cause.message(), "task 7 broke");
            assert_eq!(cause.spawned_at().line(), line);
            let expected = format!("the task spawned at tests/group.rs:{line} panicked: task 7 broke");
            assert_eq!(cause.to_string(), expected);
            assert_eq!(stopped.origin().canceled_at().unwrap().line(), line);

            let joined = tokio::spawn(group.wait()).await.unwrap_err();
            assert_eq!(drops.count(), 1, "resumed before all had ended");
            assert_eq!(*joined.into_panic().downcast::<String>().unwrap(), "task 7 broke");
        });
    }

    #[test]
    fn is_resumed_as_it_is_and_before_any_error() {
        on_paused(async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Cause("doomed")) });
            group.spawn(async {
                sleep(ms(20)).await;
                panic_any(42)
            });
            group.spawn(async {
                sleep(ms(10)).await;
                panic_any(43)
            });
            let joined = tokio::spawn(group.wait()).await.unwrap_err();
            assert_eq!(*joined.into_panic().downcast::<i32>().unwrap(), 42, "the first spawned");
        });
    }

    #[test]
    fn that_is_no_text_is_told_all_the_same() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async { panic_any(Cause("odd")) });
            let stopped = ctx.done().await;
            let told = stopped.cause_as::<TaskPanicked>().unwrap();
            assert_eq!(told.message(), "something that is no text");
        });
    }

    #[test]
    fn of_an_aborted_tasks_clean_up_is_resumed_as_well() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in the clean-up");
            }
        }
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(Duration::ZERO);
            group.spawn(async {
                let _bomb = Bomb;
                pending().await
            });
            sleep(ms(1)).await;
            group.canceller().cancel();
            let joined = tokio::spawn(group.wait()).await.unwrap_err();
            assert_eq!(*joined.into_panic().downcast::<&str>().unwrap(), "in the clean-up");
        });
    }
}

mod keeping_going {
    use super::*;

    #[test]
    fn tells_what_came_of_each_in_the_order_of_the_spawns() {
        on_paused(async {
            let (group, ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            let line = line!() + 1;
            group.spawn(async { Err(Cause("failed")) });
            group.spawn(async { panic!("broke") });
            group.spawn(async {
                Context::current().sleep(ms(50)).await.expect("the others' ends were told");
                Ok("done")
            });
            sleep(ms(10)).await;
            assert!(answer(&ctx).is_none());
            let outcomes = group.outcomes().await;
            assert!(answer(&ctx).is_some());

            let lines: Vec<u32> = outcomes.iter().map(|outcome| outcome.spawned_at.line()).collect();
            assert_eq!(lines, [line, line + 1, line + 2]);
            let mut ends = outcomes.into_iter().map(|outcome| outcome.end);
            match ends.next().unwrap() {
                End::Failed(failure) => {
                    assert_eq!(failure.try_into_inner().unwrap(), Cause("failed"));
                }
                other => panic!("{other:?}"),
            }
            match ends.next().unwrap() {
                End::Panicked(panic) => assert_eq!(*panic.downcast::<&str>().unwrap(), "broke"),
                other => panic!("{other:?}"),
            }
            assert!(matches!(ends.next(), Some(End::Done("done"))));
        });
    }

    /// Go's `TestZeroGroup`: the first error in time, when all have run their course.
    #[test]
    fn still_gives_the_first_error_to_wait() {
        on_paused(async {
            let start = Instant::now();
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            for (delay, error) in [(20, Some("second")), (10, Some("first")), (30, None)] {
                group.spawn(async move {
                    Context::current().sleep(ms(delay)).await.expect("nothing ends it");
                    error.map_or(Ok("done"), |error| Err(Cause(error)))
                });
            }
            let failed = group.wait().await.unwrap_err();
            assert_eq!(start.elapsed(), ms(30));
            assert_eq!(*failed.error().unwrap(), Cause("first"));
            assert!(failed.context_error().is_none(), "nothing ended it before the wait was over");
        });
    }

    #[test]
    fn is_too_late_to_ask_for_after_a_spawn() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(ready(Ok("one")));
            assert!(group.next().await.is_some());
            let text = panic_text(|| group.keep_going());
            assert!(text.contains("before its first task"), "{text}");
        });
    }

    #[test]
    fn is_not_needed_to_see_every_outcome() {
        on_paused(async {
            let (mut group, _ctx) = Group::<(), BoxError>::new(&BACKGROUND);
            group.spawn(async { Ok(Context::current().sleep(LONG).await?) });
            group.spawn(async { Err("doomed")? });
            let texts: Vec<String> = (group.outcomes().await.into_iter())
                .map(|outcome| match outcome.end {
                    End::Failed(failure) => failure.to_string(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert!(texts[0].starts_with("context canceled at tests/group.rs:"), "{texts:?}");
            assert!(texts[0].ends_with(": doomed"), "{texts:?}");
            assert_eq!(texts[1], "doomed");
        });
    }
}

mod a_grace {
    use super::*;

    #[test]
    fn lets_clean_up_who_can_in_time_and_aborts_the_rest() {
        on_paused(async {
            let start = Instant::now();
            let drops = Drops::default();
            let parent = BACKGROUND.with_timeout(ms(100));
            let (group, _ctx) = Words::new(&parent);
            let mut group = group.grace(ms(50));
            let (quick, slow) = (drops.counted(), drops.counted());
            group.spawn(async move {
                let _counted = quick;
                cleans_up(ms(49)).await
            });
            group.spawn(async move {
                let _counted = slow;
                cleans_up(ms(60)).await
            });
            let line = line!() - 4;
            let failed = group.wait().await.unwrap_err();
            assert!(start.elapsed() >= ms(150) && start.elapsed() <= ms(152), "{:?}", start.elapsed());
            assert_eq!(drops.count(), 2);
            assert!(failed.error().is_none());
            assert_eq!(failed.aborted().len(), 1);
            assert_eq!(failed.aborted()[0].line(), line);
            assert!(failed.context_error().unwrap().is_deadline_exceeded());
            let source = failed.source().unwrap().downcast_ref::<Error>().unwrap();
            assert!(source.is_deadline_exceeded());
            assert_eq!(io::Error::from(failed).kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn runs_from_the_end_not_from_the_wait() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(50));
            group.spawn(pending());
            group.canceller().cancel();
            let end = Instant::now();
            sleep(ms(40)).await;
            group.wait().await.unwrap_err();
            assert!(end.elapsed() >= ms(50) && end.elapsed() <= ms(51), "{:?}", end.elapsed());
        });
    }

    /// Nothing but the end starts it.
    #[test]
    fn leaves_those_alone_whose_context_has_not_ended() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(Duration::ZERO);
            group.spawn(async {
                sleep(LONG).await;
                Ok("done")
            });
            assert_eq!(group.wait().await.unwrap(), ["done"]);
        });
    }

    #[test]
    fn of_nothing_stops_every_task_where_it_awaits() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(Duration::ZERO);
            group.spawn(pending());
            group.spawn(async { Err(Cause("doomed")) });
            let failed = group.wait().await.unwrap_err();
            assert_eq!(*failed.error().unwrap(), Cause("doomed"));
            assert_eq!(failed.aborted().len(), 1);
        });
    }

    #[test]
    fn without_bounds_is_none() {
        on_paused(async {
            for grace in [Duration::MAX, Duration::from_secs(u64::MAX), LONG * 24 * 365 * 1000] {
                let (group, _ctx) = Words::new(&BACKGROUND);
                let mut group = group.grace(grace);
                group.spawn(cleans_up(LONG));
                group.canceller().cancel();
                assert_eq!(group.wait().await.unwrap(), ["cleaned up"]);
            }
        });
    }

    #[test]
    fn is_kept_in_next_and_outcomes_too() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(50));
            group.spawn(pending());
            group.spawn(cleans_up(ms(10)));
            group.canceller().cancel();
            assert!(matches!(group.next().await.unwrap().end, End::Done("cleaned up")));
            assert!(matches!(group.next().await.unwrap().end, End::Aborted));
            // Too late for anybody: it is aborted as soon as it is spawned.
            group.spawn(pending());
            let outcomes = group.outcomes().await;
            assert!(matches!(outcomes[..], [ref late] if matches!(late.end, End::Aborted)));
        });
    }

    /// A wait that is dropped half-way, and another: the time goes on where it was.
    #[test]
    fn goes_on_over_several_waits() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(50));
            group.spawn(pending());
            group.canceller().cancel();
            let end = Instant::now();
            for _ in 0..4 {
                assert!(timeout(ms(10), group.next()).await.is_err());
            }
            assert!(matches!(group.next().await.unwrap().end, End::Aborted));
            assert!(end.elapsed() >= ms(50) && end.elapsed() <= ms(52), "{:?}", end.elapsed());
        });
    }
}

mod next {
    use super::*;

    #[test]
    fn gives_them_as_they_end_and_wait_the_rest() {
        on_paused(async {
            let (mut group, _ctx) = Group::<u64, Cause>::new(&BACKGROUND);
            for delay in [30, 10, 20, 40] {
                group.spawn(async move {
                    sleep(ms(delay)).await;
                    Ok(delay)
                });
            }
            assert_eq!(group.next().await.unwrap().value(), Some(10));
            assert_eq!(group.next().await.unwrap().value(), Some(20));
            assert_eq!(group.wait().await.unwrap(), [30, 40]);
        });
    }

    #[test]
    fn gives_nothing_when_there_is_nothing() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            assert!(group.next().await.is_none());
            group.spawn(ready(Ok("one")));
            assert_eq!(group.next().await.unwrap().value(), Some("one"));
            assert!(group.next().await.is_none());
            assert!(answer(&ctx).is_none(), "the group goes on");
        });
    }

    #[test]
    fn takes_nothing_if_it_is_dropped() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            let (tell, told) = oneshot::channel();
            group.spawn(async { Ok(told.await.unwrap()) });
            for _ in 0..3 {
                assert!(poll_once(group.next()).is_pending());
            }
            tell.send("one").unwrap();
            assert_eq!(group.next().await.unwrap().value(), Some("one"));
        });
    }

    #[test]
    fn leaves_the_first_error_to_wait() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Cause("doomed")) });
            assert!(matches!(group.next().await.unwrap().end, End::Failed(_)));
            assert_eq!(*group.wait().await.unwrap_err().error().unwrap(), Cause("doomed"));
        });
    }
}

/// Go's `TestWithContext` and `TestCancelCause`.
#[test]
fn every_combination_of_errors_and_none() {
    let cases: [(&[Option<&'static str>], Option<&str>); 6] = [
        (&[], None),
        (&[None], None),
        (&[Some("one")], Some("one")),
        (&[Some("one"), None], Some("one")),
        (&[None, Some("one")], Some("one")),
        (&[Some("one"), None, Some("two")], Some("one")),
    ];
    on_both(move || async move {
        for (errors, want) in cases {
            let (group, ctx) = Words::new(&BACKGROUND);
            // One after the other, so that it is clear which comes first.
            let mut group = group.limit(1);
            for error in errors.iter().copied() {
                let task = async move { error.map_or(Ok(""), |error| Err(Cause(error))) };
                if group.spawn(task).await.is_err() {
                    break;
                }
            }
            let waited = group.wait().await;
            assert_eq!(
                waited.as_ref().err().and_then(|failed| failed.error()).map(|cause| cause.0),
                want
            );
            assert_eq!(word(&ended(&ctx)), want);
        }
    });
}

#[test]
fn spawning_without_a_runtime_says_so_and_leaves_the_group_whole() {
    let (mut group, _ctx) = Words::new(&BACKGROUND);
    let text = panic_text(AssertUnwindSafe(|| group.spawn(ready(Ok("")))));
    assert!(text.contains("no reactor running"), "{text}");
    let mut group = group;
    current_thread().block_on(async {
        group.spawn(ready(Ok("one")));
        assert_eq!(group.wait().await.unwrap(), ["one"]);
    });
}

/// What ends one of the inner groups ends the outer one, and is found through both.
#[test]
fn a_group_under_groups() {
    on_paused(async {
        let (mut outer, _ctx) = Group::<usize, BoxError>::new(&BACKGROUND);
        for size in 1..4_usize {
            outer.spawn(async move {
                let (mut inner, _ctx) = Group::<usize, Cause>::new(&Context::current());
                for nth in 0..size {
                    inner.spawn(async move {
                        Context::current().sleep(ms(10)).await.map_err(|_| Cause("stopped"))?;
                        if nth == 2 { Err(Cause("the third")) } else { Ok(nth) }
                    });
                }
                Ok(inner.wait().await?.len())
            });
        }
        let failed = outer.wait().await.unwrap_err();
        let inner = failed.error().unwrap().downcast_ref::<GroupError<Cause>>().unwrap();
        assert_eq!(inner.error(), Some(&Cause("the third")));
        assert_eq!(word(failed.context_error().unwrap()), Some("the third"));
    });
}

/// Whatever became of a group, not a byte of it is left.
#[test]
fn it_leaves_nothing_behind() {
    async fn life(parent: &Context) {
        let (mut values, _ctx) = Group::<_, Cause>::new(parent);
        (0..3).for_each(|nth| values.spawn(ready(Ok(nth))));
        values.wait().await.unwrap();

        let (fails, _ctx) = Group::<(), BoxError>::new(parent);
        let mut fails = fails.grace(ms(1));
        fails.spawn(async { Ok(Context::current().sleep(LONG).await?) });
        fails.spawn(pending());
        fails.spawn(async { Err("doomed")? });
        fails.wait().await.unwrap_err();

        let (group, _ctx) = Words::new(parent);
        let mut limited = group.keep_going().limit(1);
        for _ in 0..3 {
            limited.spawn(async { Err(Cause("failed")) }).await.unwrap();
        }
        assert!(limited.next().await.is_some());
        limited.outcomes().await;

        let (mut dropped, _ctx) = Words::new(parent);
        dropped.spawn(pending());
        drop(dropped);
        sleep(ms(1)).await;
    }
    on_paused(async {
        let parent = BACKGROUND.with_cancel();
        let mut least = isize::MAX;
        for round in 0..50 {
            life(&parent).await;
            // The runtime grows its own tables now and then, and gives them back.
            if round < 25 {
                least = least.min(live::live());
            }
        }
        let left = live::live() - least;
        assert!(left < 512, "{left} bytes are left of 25 rounds");
    });
}

#[test]
fn it_shows_who_runs() {
    on_both(|| async {
        let (mut group, _ctx) = Words::new(&BACKGROUND);
        group.spawn(pending());
        let line = line!() - 1;
        let shown = format!("{group:?}");
        assert!(shown.contains(&format!("tests/group.rs:{line}")), "{shown}");
    });
}
