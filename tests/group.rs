//! `Group`: the first error cancels the other tasks and is returned by `join`, and no task is left behind.
//! Covers Go's `errgroup_test.go` and every promise of the documentation.

#[path = "common/alloc.rs"]
mod alloc;
mod common;

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
    Cause, Drops, LONG, answer, current_thread, ended, ms, multi_thread, on_both, on_paused, panic_text,
    poll, poll_once, watched, word,
};
use tokio::sync::{Barrier, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::group::{End, TaskFailed};
use tokio_ctx::{BoxError, Context, Error, Group};

static BACKGROUND: Context = Context::background();

/// The error types of tasks, as in real programs.
#[derive(Debug)]
enum Failure {
    Own(&'static str),
    Ended(Error),
}

use Failure::{Ended, Own};

impl Failure {
    /// The task's own message.
    #[track_caller]
    fn word(&self) -> &'static str {
        match self {
            Own(word) => word,
            Ended(error) => panic!("not a task's own error: {error}"),
        }
    }

    /// The error of the context.
    #[track_caller]
    fn end(&self) -> &Error {
        match self {
            Own(word) => panic!("a task's own error: {word}"),
            Ended(error) => error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Own(word) => f.write_str(word),
            Ended(error) => error.fmt(f),
        }
    }
}

impl StdError for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Ended(error)
    }
}

type Words = Group<&'static str, Failure>;

/// Returns the message of the task that ended the context.
fn message_of(error: &Error) -> Option<&str> {
    error.cause_as::<TaskFailed>().map(TaskFailed::message)
}

/// Ends after the context does, and after some cleanup.
async fn cleans_up(takes: Duration) -> Result<&'static str, Failure> {
    Context::current().done().await;
    sleep(takes).await;
    Ok("cleaned up")
}

mod values {
    use super::*;

    #[test]
    fn come_in_the_order_of_the_spawns() {
        on_paused(async {
            let (mut group, _ctx) = Group::<_, Failure>::new(&BACKGROUND);
            for (nth, delay) in [30, 10, 20, 0].into_iter().enumerate() {
                group.spawn(async move {
                    sleep(ms(delay)).await;
                    Ok(nth)
                });
            }
            assert_eq!(group.join().await.unwrap(), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn of_no_tasks_are_none() {
        on_both(|| async {
            let (group, ctx) = Words::new(&BACKGROUND);
            assert!(answer(&ctx).is_none());
            assert_eq!(group.join().await.unwrap(), [""; 0]);
            assert!(ended(&ctx).is_canceled());
        });
    }

    /// Go's `Wait` cancels its context even if no task failed. So does `join`, with the usual error.
    #[test]
    fn are_there_when_the_context_has_ended() {
        on_both(|| async {
            let line = line!() + 1;
            let (mut group, ctx) = Words::new(&BACKGROUND);
            let (sender, receiver) = oneshot::channel();
            group.spawn(async { Ok(receiver.await.unwrap()) });
            assert!(answer(&ctx).is_none());
            sender.send("well").unwrap();
            assert_eq!(group.join().await.unwrap(), ["well"]);
            let error = ended(&ctx);
            assert_eq!(error.origin().made_at().line(), line);
            assert!(error.cause().is_none());
        });
    }

    /// Finished work is not discarded, and an end from outside is not a failure, as in Go.
    #[test]
    fn survive_an_end_from_outside() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(50));
            let (mut group, ctx) = Words::new(&parent);
            group.spawn(async { Ok("early") });
            group.spawn(cleans_up(ms(10)));
            assert_eq!(group.join().await.unwrap(), ["early", "cleaned up"]);
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
                Ok("ended")
            });
            group.canceler().cancel_with(Cause("over"));
            assert_eq!(word(&ended(&ctx)), Some("over"));
            assert_eq!(word(&ended(group.context())), Some("over"));
            assert_eq!(group.join().await.unwrap(), ["seven", "ended"]);
            assert!(answer(&parent).is_none(), "an end goes down, never up");
        });
    }

    /// As in Go, the task can see the end.
    #[test]
    fn may_have_ended_before_a_task_is_spawned() {
        on_both(|| async {
            let parent = BACKGROUND.with_cancel();
            parent.cancel_with(Cause("dead"));
            let (mut group, _ctx) = Group::<(), Error>::new(&parent);
            group.spawn(async { Context::current().check() });
            assert_eq!(word(&group.join().await.unwrap_err()), Some("dead"));
        });
    }
}

mod the_first_error {
    use super::*;

    /// The error is returned by value, while the others and the context still exist; they have its text and
    /// line.
    #[test]
    fn is_returned_by_value_and_the_others_cause() {
        on_both(|| async {
            let (mut group, ctx) = Group::<(), Failure>::new(&BACKGROUND);
            let (sender, receiver) = oneshot::channel();
            group.spawn(async {
                sender.send(Context::current().done().await).unwrap();
                Ok(())
            });
            group.spawn(async { Err(Own("doomed")) });
            let line = line!() - 1;

            let failure: Failure = group.join().await.unwrap_err();
            assert_eq!(failure.word(), "doomed");

            let reported = receiver.await.unwrap();
            for error in [&reported, &ended(&ctx)] {
                let failed = error.cause_as::<TaskFailed>().unwrap();
                assert_eq!(
                    failed.to_string(),
                    format!("task spawned at tests/group.rs:{line} failed: doomed")
                );
                assert_eq!((failed.message(), failed.is_panic()), ("doomed", false));
                assert_eq!(failed.spawned_at().line(), line);
                assert_eq!(error.origin().canceled_at().unwrap().line(), line);
            }
        });
    }

    /// In a function with the caller's own error type.
    #[test]
    fn converts_with_the_question_mark() {
        async fn own() -> Result<usize, Failure> {
            let (mut group, _ctx) = Group::new(&BACKGROUND);
            group.spawn(async { Ok("value") });
            group.spawn(async { Err(Own("doomed")) });
            Ok(group.join().await?.len())
        }
        async fn anyhows() -> anyhow::Result<usize> {
            let (mut group, _ctx) = Group::new(&BACKGROUND);
            group.spawn(async { anyhow::Ok(own().await?) });
            Ok(group.join().await?.len())
        }
        async fn boxed() -> Result<usize, BoxError> {
            let (mut group, _ctx) = Group::<usize, BoxError>::new(&BACKGROUND);
            group.spawn(async { Ok(own().await?) });
            Ok(group.join().await?.len())
        }
        async fn contexts() -> Result<usize, Error> {
            let dead = BACKGROUND.with_cancel();
            dead.cancel_with(Cause("dead"));
            let (mut group, ctx) = Group::new(&dead);
            group.spawn(async move { ctx.check() });
            Ok(group.join().await?.len())
        }
        /// A handler of tonic, and one of axum.
        #[cfg(feature = "tonic")]
        async fn rpc() -> Result<usize, tonic::Status> {
            let (mut group, ctx) = Group::new(&BACKGROUND);
            group.spawn(async move { Ok::<_, tonic::Status>(ctx.check()?) });
            group.spawn(async { Err(tonic::Status::not_found("no such page")) });
            Ok(group.join().await?.len())
        }
        #[cfg(feature = "axum")]
        async fn page() -> Result<String, Error> {
            let (mut group, ctx) = Group::new(&BACKGROUND);
            group.spawn(async move { ctx.run(async { "part" }).await });
            Ok(group.join().await?.concat())
        }
        #[cfg(feature = "axum")]
        let _router: axum::Router = axum::Router::new().route("/", axum::routing::get(page));
        on_both(|| async {
            #[cfg(feature = "tonic")]
            assert_eq!(rpc().await.unwrap_err().code(), tonic::Code::NotFound);
            assert_eq!(own().await.unwrap_err().word(), "doomed");
            assert_eq!(anyhows().await.unwrap_err().downcast::<Failure>().unwrap().word(), "doomed");
            assert_eq!(boxed().await.unwrap_err().downcast::<Failure>().unwrap().word(), "doomed");
            assert_eq!(word(&contexts().await.unwrap_err()), Some("dead"));
        });
    }

    #[test]
    fn ends_the_others_also_if_it_is_not_waited_for() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Own("doomed")) });
            assert_eq!(message_of(&ctx.done().await), Some("doomed"));
        });
    }

    #[test]
    fn is_not_replaced_by_its_consequences_or_later_errors() {
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
            let failed = group.join().await.unwrap_err();
            assert_eq!(start.elapsed(), ms(30), "the sleeping task was canceled");
            assert_eq!(failed.to_string(), "first");
        });
    }

    /// The context had ended before: its cause does not change, and `join` returns the error of the task.
    #[test]
    fn does_not_rewrite_an_end_from_outside() {
        on_both(|| async {
            let parent = BACKGROUND.with_cancel();
            let (mut group, ctx) = Words::new(&parent);
            group.spawn(async {
                Context::current().done().await;
                Err(Own("could not clean up"))
            });
            parent.cancel_with(Cause("shutdown"));
            assert_eq!(group.join().await.unwrap_err().word(), "could not clean up");
            assert_eq!(word(&ended(&ctx)), Some("shutdown"));
        });
    }

    /// Whichever is first, all errors name the same one.
    #[test]
    fn of_many_at_once_is_the_same_for_all() {
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
                let failed = group.join().await.unwrap_err();
                let first = failed.downcast_ref::<Numbered>().unwrap();
                assert_eq!(message_of(&ended(&ctx)), Some(&*first.to_string()));
            };
            runtime.block_on(round);
        }
    }

    /// An error, a cancel of the parent and dropping the wait at the same time: nothing hangs, nothing is lost.
    #[test]
    fn is_returned_also_if_something_else_ends_the_context() {
        let runtime = multi_thread(2);
        watched(move || {
            for _ in 0..300 {
                runtime.block_on(async {
                    let parent = BACKGROUND.with_cancel();
                    let (mut group, ctx) = Words::new(&parent);
                    let barrier = Arc::new(Barrier::new(2));
                    let meet = barrier.clone();
                    group.spawn(async move {
                        meet.wait().await;
                        Err(Own("doomed"))
                    });
                    group.spawn(cleans_up(Duration::ZERO));
                    let cancel = tokio::spawn(async move {
                        barrier.wait().await;
                        parent.cancel_with(Cause("above"));
                    });
                    assert_eq!(group.join().await.unwrap_err().word(), "doomed");
                    let why = ended(&ctx);
                    assert!(message_of(&why) == Some("doomed") || word(&why) == Some("above"), "{why}");
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
                let joined = group.join().await;
                assert_eq!(message_of(&ended(&ctx)), Some(&*io::Error::from(kind).to_string()));
                joined
            }
            let error = broken(io::ErrorKind::AddrInUse).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(error.get_ref().is_none(), "it is the task's own");
        });
    }

    #[test]
    fn boxed() {
        on_both(|| async {
            let (mut group, ctx) = Group::<(), BoxError>::new(&BACKGROUND);
            group.spawn(fails(Box::new(Cause("boxed")) as BoxError));
            let failed: BoxError = group.join().await.unwrap_err();
            assert_eq!(message_of(&ended(&ctx)), Some("boxed"));
            assert_eq!(*failed.downcast::<Cause>().unwrap(), Cause("boxed"));
        });
    }

    /// The others see the whole chain.
    #[test]
    fn anyhow() {
        on_both(|| async {
            let (mut group, ctx) = Group::<(), anyhow::Error>::new(&BACKGROUND);
            group.spawn(fails(anyhow::Error::new(Cause("inner")).context("while testing")));
            let failed = group.join().await.unwrap_err();
            assert_eq!(message_of(&ended(&ctx)), Some("while testing: inner"));
            assert_eq!(failed.to_string(), "while testing");
            assert_eq!(failed.downcast_ref(), Some(&Cause("inner")));
        });
    }

    /// The errors of tasks that only wait for their context.
    #[test]
    fn of_contexts() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(20));
            let (mut group, ctx) = Group::<(), Error>::new(&parent);
            group.spawn(async { Context::current().sleep(LONG).await });
            common::assert_same(&group.join().await.unwrap_err(), &ended(&ctx));
        });
    }

    /// Neither `Sync`, nor an error type, nor converted from a context's error: only `outcomes` is available
    /// for such a group.
    #[test]
    fn that_only_print() {
        struct Plain(std::cell::Cell<u8>);
        impl fmt::Display for Plain {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "plain {}", self.0.get())
            }
        }
        on_both(|| async {
            let (mut group, ctx) = Group::<(), Plain>::new(&BACKGROUND);
            group.spawn(fails(Plain(std::cell::Cell::new(3))));
            let outcome = group.outcomes().await.pop().unwrap();
            assert_eq!(message_of(&ended(&ctx)), Some("plain 3"));
            assert!(matches!(outcome.end, End::Failed(Plain(three)) if three.get() == 3));
        });
    }

    /// An error whose `Display` panics counts as a panic of the task, and does not affect other tasks.
    #[test]
    fn that_cannot_be_formatted() {
        #[derive(Debug)]
        struct PanicsOnDisplay;
        impl fmt::Display for PanicsOnDisplay {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("unspeakable")
            }
        }
        on_both(|| async {
            let (mut group, ctx) = Group::<(), PanicsOnDisplay>::new(&BACKGROUND);
            group.spawn(fails(PanicsOnDisplay));
            group.spawn(async {
                Context::current().done().await;
                Ok(())
            });
            let outcomes = group.outcomes().await;
            assert_eq!(message_of(&ended(&ctx)), Some("unspeakable"));
            assert!(matches!(outcomes[0].end, End::Panicked(_)));
            assert!(matches!(outcomes[1].end, End::Done(())));
        });
    }

    /// An error whose `Display` fails is returned like any other.
    #[test]
    fn whose_display_fails() {
        #[derive(Debug, PartialEq)]
        struct FailsOnDisplay;
        impl fmt::Display for FailsOnDisplay {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("half of it")?;
                Err(fmt::Error)
            }
        }
        impl From<Error> for FailsOnDisplay {
            fn from(_: Error) -> Self {
                unreachable!("the group has not ended for another reason")
            }
        }
        on_both(|| async {
            let (mut group, ctx) = Group::<(), FailsOnDisplay>::new(&BACKGROUND);
            group.spawn(fails(FailsOnDisplay));
            assert_eq!(group.join().await, Err(FailsOnDisplay));
            assert_eq!(message_of(&ended(&ctx)), Some("half of it"));
        });
    }

    /// The caller gets the first error, and no other is kept.
    #[test]
    fn are_dropped_once() {
        #[derive(Debug)]
        struct Counted(#[allow(dead_code, reason = "it is there for its drop")] common::CountsDrop);
        impl fmt::Display for Counted {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("counted")
            }
        }
        impl From<Error> for Counted {
            fn from(error: Error) -> Counted {
                panic!("no end from outside: {error}")
            }
        }
        on_both(|| async {
            let drops = Drops::default();
            let (mut group, ctx) = Group::<(), Counted>::new(&BACKGROUND);
            group.spawn(fails(Counted(drops.counted())));
            group.spawn(fails(Counted(drops.counted())));
            let failed = group.join().await.unwrap_err();
            assert_eq!(drops.count(), 1, "only the first is kept");
            drop(failed);
            assert_eq!(drops.count(), 2, "although the context is there");
            drop(ctx);
        });
    }
}

mod join {
    use super::*;

    #[test]
    fn returns_when_all_have_really_ended() {
        on_paused(async {
            let start = Instant::now();
            let drops = Drops::default();
            let counted = drops.counted();
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Own("doomed")) });
            group.spawn(async move {
                let _counted = counted;
                cleans_up(ms(100)).await
            });
            assert!(group.join().await.is_err());
            assert_eq!(start.elapsed(), ms(100));
            assert_eq!(drops.count(), 1);
        });
    }

    /// A future may own values after it has resolved. The wait is for its drop.
    #[test]
    fn returns_when_the_futures_of_the_tasks_are_dropped() {
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
            group.join().await.unwrap();
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
        shared::<Group<std::cell::Cell<u8>, std::cell::Cell<u8>>>();
        let (group, _ctx) = Words::new(&BACKGROUND);
        drop(check(group.join()));
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
            let mut waiting = Box::pin(group.join());
            assert!(poll(waiting.as_mut(), Waker::noop()).is_pending());
            assert!(answer(&ctx).is_none());
            drop(waiting);
            assert!(ended(&ctx).is_canceled());
            dropped(&drops, 1).await;
        });
    }

    /// Aborted tasks are named next to the cause, which can still be found.
    #[test]
    fn names_the_aborted_on_one_line() {
        on_paused(async {
            let parent = BACKGROUND.with_cancel();
            let (group, _ctx) = Words::new(&parent);
            let mut group = group.grace(ms(10));
            let line = line!() + 2;
            for _ in 0..2 {
                group.spawn(pending());
            }
            group.spawn(pending());
            parent.cancel_with(Cause("disk full"));
            let failed = group.join().await.unwrap_err();
            let expected = format!(
                "context canceled at tests/group.rs:{}: disk full; aborted: 2 tasks spawned at \
                 tests/group.rs:{line}, 1 at tests/group.rs:{}",
                line + 3,
                line + 2
            );
            assert_eq!(failed.to_string(), expected);
            assert_eq!(word(failed.end()), Some("disk full"));
            assert_eq!(format!("{:#}", anyhow::Error::new(failed)).matches("disk full").count(), 1);
        });
    }

    /// Without an error of a task, the caller gets the context's error, converted.
    #[test]
    fn converts_the_contexts_end() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(20));
            let (group, _ctx) = Group::<(), io::Error>::new(&parent);
            let mut group = group.grace(Duration::ZERO);
            group.spawn(pending());
            let error = group.join().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(Error::find(&error).unwrap().is_deadline_exceeded());
        });
    }
}

/// Aborted tasks are dropped when they are next scheduled, which on several threads is soon, but not immediate.
async fn dropped(drops: &Drops, count: usize) {
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
            dropped(&drops, 10).await;
        });
    }

    /// Tasks are canceled before they are aborted, so a task that is running sees the cancel.
    #[test]
    fn cancels_its_tasks_first() {
        on_both(|| async {
            let (sender, receiver) = oneshot::channel();
            struct Reports(Option<oneshot::Sender<bool>>, Context);
            impl Drop for Reports {
                fn drop(&mut self) {
                    self.0.take().unwrap().send(self.1.is_done()).unwrap();
                }
            }
            let (mut group, ctx) = Words::new(&BACKGROUND);
            let reports = Reports(Some(sender), ctx);
            group.spawn(async move {
                let _reports = reports;
                pending().await
            });
            drop(group);
            assert!(receiver.await.unwrap(), "it was aborted before it could observe the cancel");
        });
    }

    #[test]
    fn ends_with_its_runtime() {
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
        // Its tasks are gone, and `join` reports this.
        let failed = current_thread().block_on(async {
            group.spawn(cleans_up(Duration::ZERO));
            group.join().await.unwrap_err()
        });
        assert!(failed.end().is_canceled());
        assert!(failed.to_string().contains("its runtime shut down; aborted: 1 task"), "{failed}");
    }

    /// The context does not end, and then reports this as well.
    #[test]
    fn that_keeps_going_reports_it_too() {
        let runtime = multi_thread(2);
        let (group, ctx) = runtime.block_on(async {
            let (group, ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            group.spawn(pending());
            (group, ctx)
        });
        let line = line!() - 3;
        drop(runtime);
        let failed = current_thread().block_on(group.join()).unwrap_err();
        assert_eq!(failed.end().origin().canceled_at().unwrap().line(), line);
        assert!(failed.to_string().contains("its runtime shut down; aborted: 1 task"), "{failed}");
        assert!(ended(&ctx).to_string().ends_with("its runtime shut down"));
    }
}

mod a_limit {
    use super::*;

    #[test]
    fn bounds_how_many_run_at_once() {
        on_both(|| async {
            const LIMIT: usize = 10;
            let active = Arc::new(AtomicUsize::new(0));
            let (group, _ctx) = Group::<(), Failure>::new(&BACKGROUND);
            let mut group = group.limit(LIMIT);
            for _ in 0..1000 {
                let active = active.clone();
                let task = async move {
                    let now = active.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::task::yield_now().await;
                    active.fetch_sub(1, Ordering::SeqCst);
                    if now > LIMIT { Err(Own("too many")) } else { Ok(()) }
                };
                assert!(group.spawn(task).await);
            }
            assert_eq!(group.join().await.unwrap().len(), 1000);
        });
    }

    #[test]
    fn is_fully_used() {
        on_paused(async {
            let start = Instant::now();
            let (group, _ctx) = Group::<usize, Failure>::new(&BACKGROUND);
            let mut group = group.limit(4);
            for nth in 0..12 {
                let task = async move {
                    sleep(ms(10)).await;
                    Ok(nth)
                };
                assert!(group.spawn(task).await);
                assert_eq!(start.elapsed(), ms(10) * (nth as u32 / 4), "task {nth}");
            }
            assert_eq!(group.join().await.unwrap(), Vec::from_iter(0..12));
            assert_eq!(start.elapsed(), ms(30));
        });
    }

    #[test]
    fn counts_those_that_run_already() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            let (sender, receiver) = oneshot::channel();
            group.spawn(async { Ok(receiver.await.unwrap()) });
            let mut group = group.limit(1);
            assert!(group.try_spawn(ready(Ok("two"))).is_err());
            sender.send("one").unwrap();
            assert!(group.spawn(ready(Ok("two"))).await);
            assert_eq!(group.join().await.unwrap(), ["one", "two"]);
        });
    }

    #[test]
    fn makes_spawn_give_up_when_the_context_ends() {
        on_paused(async {
            let parent = BACKGROUND.with_timeout(ms(50));
            let (group, _ctx) = Words::new(&parent);
            let mut group = group.limit(1);
            assert!(group.spawn(cleans_up(ms(20))).await);
            let start = Instant::now();
            assert!(!group.spawn(async { unreachable!() }).await);
            assert!(start.elapsed() <= ms(51), "before the other has ended");
            assert!(!group.spawn(async { unreachable!() }).await);
            // The value of one task out of three must not be taken for all values.
            let failed = group.join().await.unwrap_err();
            common::assert_same(failed.end(), &ended(&parent));
        });
    }

    /// The failure frees a slot and ends the context. Nothing starts after the end.
    #[test]
    fn starts_nothing_in_a_slot_freed_by_the_end() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            assert!(group.spawn(async { Err(Own("doomed")) }).await);
            assert!(!group.spawn(async { unreachable!() }).await);
            // Not the refusal, which is only a consequence.
            assert_eq!(group.join().await.unwrap_err().word(), "doomed");
        });
    }

    #[test]
    fn does_not_start_a_task_whose_spawn_is_dropped() {
        on_both(|| async {
            let drops = Drops::default();
            let counted = drops.counted();
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            let (sender, receiver) = oneshot::channel();
            assert!(group.spawn(async { Ok(receiver.await.unwrap()) }).await);
            {
                let never = async move {
                    let _counted = counted;
                    unreachable!()
                };
                let mut waiting = pin!(group.spawn(never));
                assert!(poll(waiting.as_mut(), Waker::noop()).is_pending());
            }
            assert_eq!(drops.count(), 1);
            sender.send("one").unwrap();
            assert_eq!(group.join().await.unwrap(), ["one"]);
        });
    }

    /// Go's `TestTryGo`.
    #[test]
    fn makes_try_spawn_refuse() {
        on_both(|| async {
            let (group, _ctx) = Group::<(), Failure>::new(&BACKGROUND);
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
            let refused = group.try_spawn(task()).err().unwrap();
            assert!(!group.context().is_done(), "it is full");

            release.add_permits(1);
            assert!(group.next().await.is_some());
            assert!(group.try_spawn(task()).is_ok());
            assert!(group.try_spawn(task()).is_err());
            release.add_permits(42);
            while group.try_spawn(ready(Ok(()))).is_err() {
                tokio::task::yield_now().await;
            }
            group.join().await.unwrap();
            drop(refused);
        });
    }

    #[test]
    fn makes_try_spawn_start_nothing_after_the_end() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(1);
            group.canceler().cancel_with(Cause("over"));
            assert!(group.try_spawn(async { unreachable!() }).is_err());
            assert_eq!(word(&ended(group.context())), Some("over"));
            // The task was returned, not lost.
            assert_eq!(group.join().await.unwrap(), [""; 0]);
        });
    }

    #[test]
    fn of_zero_is_refused_with_a_clear_message() {
        let text = panic_text(|| Words::new(&BACKGROUND).0.limit(0));
        assert!(text.contains("must be at least 1"), "{text}");
    }

    #[test]
    fn may_be_the_largest_number() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.limit(usize::MAX);
            assert!(group.spawn(ready(Ok("one"))).await);
            assert_eq!(group.join().await.unwrap(), ["one"]);
        });
    }

    #[test]
    fn can_be_combined_with_keep_going() {
        on_paused(async {
            let (group, ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going().limit(1);
            for _ in 0..3 {
                assert!(group.spawn(async { Err(Own("failed")) }).await);
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
            let cause = stopped.cause_as::<TaskFailed>().unwrap();
            assert_eq!((cause.message(), cause.is_panic()), ("task 7 broke", true));
            assert_eq!(cause.spawned_at().line(), line);
            let expected = format!("task spawned at tests/group.rs:{line} panicked: task 7 broke");
            assert_eq!(cause.to_string(), expected);
            assert_eq!(stopped.origin().canceled_at().unwrap().line(), line);

            let joined = tokio::spawn(group.join()).await.unwrap_err();
            assert_eq!(drops.count(), 1, "resumed before all had ended");
            assert_eq!(*joined.into_panic().downcast::<String>().unwrap(), "task 7 broke");
        });
    }

    #[test]
    fn is_resumed_unchanged_and_before_any_error() {
        on_paused(async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Own("doomed")) });
            group.spawn(async {
                sleep(ms(20)).await;
                panic_any(42)
            });
            group.spawn(async {
                sleep(ms(10)).await;
                panic_any(43)
            });
            let joined = tokio::spawn(group.join()).await.unwrap_err();
            assert_eq!(*joined.into_panic().downcast::<i32>().unwrap(), 42, "the first spawned");
        });
    }

    #[test]
    fn that_is_not_a_string_is_reported_too() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async { panic_any(Cause("odd")) });
            let stopped = ctx.done().await;
            assert_eq!(message_of(&stopped), Some("a payload that is not a string"));
        });
    }

    /// The payloads of the other panics are dropped, and may panic again. Two panics at once would abort.
    #[test]
    fn is_resumed_although_the_payloads_of_others_panic_when_dropped() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a payload");
            }
        }
        on_paused(async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { panic!("the first") });
            group.spawn(async { std::panic::panic_any(Bomb) });
            group.spawn(async { std::panic::panic_any(Bomb) });
            let joined = tokio::spawn(group.join()).await.unwrap_err();
            assert_eq!(*joined.into_panic().downcast::<&str>().unwrap(), "the first");
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
            group.canceler().cancel();
            let joined = tokio::spawn(group.join()).await.unwrap_err();
            assert_eq!(*joined.into_panic().downcast::<&str>().unwrap(), "in the clean-up");
        });
    }
}

mod keeping_going {
    use super::*;

    #[test]
    fn returns_each_outcome_in_the_order_of_the_spawns() {
        on_paused(async {
            let (group, ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            let line = line!() + 1;
            group.spawn(async { Err(Own("failed")) });
            group.spawn(async { panic!("broke") });
            group.spawn(async {
                Context::current().sleep(ms(50)).await.expect("the others' failures canceled it");
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
                End::Failed(failure) => assert_eq!(failure.word(), "failed"),
                other => panic!("{other:?}"),
            }
            match ends.next().unwrap() {
                End::Panicked(panic) => assert_eq!(*panic.downcast::<&str>().unwrap(), "broke"),
                other => panic!("{other:?}"),
            }
            assert!(matches!(ends.next(), Some(End::Done("done"))));
        });
    }

    /// Go's `TestZeroGroup`: the first error, after all tasks have finished.
    #[test]
    fn still_returns_the_first_error_from_join() {
        on_paused(async {
            let start = Instant::now();
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            for (delay, error) in [(20, Some("second")), (10, Some("first")), (30, None)] {
                group.spawn(async move {
                    Context::current().sleep(ms(delay)).await.expect("nothing ends it");
                    error.map_or(Ok("done"), |error| Err(Own(error)))
                });
            }
            let failed = group.join().await.unwrap_err();
            assert_eq!(start.elapsed(), ms(30));
            assert_eq!(failed.word(), "first");
        });
    }

    #[test]
    fn cannot_be_requested_after_a_spawn() {
        on_both(|| async {
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(ready(Ok("one")));
            assert!(group.next().await.is_some());
            let text = panic_text(|| group.keep_going());
            assert!(text.contains("before the first task"), "{text}");
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
    fn lets_tasks_clean_up_in_time_and_aborts_the_rest() {
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
            let failed = group.join().await.unwrap_err();
            assert!(start.elapsed() >= ms(150) && start.elapsed() <= ms(152), "{:?}", start.elapsed());
            assert_eq!(drops.count(), 2);
            assert!(failed.end().is_deadline_exceeded());
            let aborted = format!("aborted: 1 task spawned at tests/group.rs:{line}");
            assert!(failed.to_string().ends_with(&aborted), "{failed}");
        });
    }

    #[test]
    fn runs_from_the_end_not_from_the_wait() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(50));
            group.spawn(pending());
            group.canceler().cancel();
            let end = Instant::now();
            sleep(ms(40)).await;
            group.join().await.unwrap_err();
            assert!(end.elapsed() >= ms(50) && end.elapsed() <= ms(51), "{:?}", end.elapsed());
        });
    }

    /// Only the end starts the grace period.
    #[test]
    fn does_not_apply_before_the_end() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(Duration::ZERO);
            group.spawn(async {
                sleep(LONG).await;
                Ok("done")
            });
            assert_eq!(group.join().await.unwrap(), ["done"]);
        });
    }

    #[test]
    fn of_zero_stops_every_task_where_it_awaits() {
        on_both(|| async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(Duration::ZERO);
            let drops = Drops::default();
            let counted = drops.counted();
            group.spawn(async move {
                let _counted = counted;
                pending().await
            });
            group.spawn(async { Err(Own("doomed")) });
            assert_eq!(group.join().await.unwrap_err().word(), "doomed");
            assert_eq!(drops.count(), 1);
        });
    }

    #[test]
    fn of_unlimited_duration_aborts_nothing() {
        on_paused(async {
            for grace in [Duration::MAX, Duration::from_secs(u64::MAX), LONG * 24 * 365 * 1000] {
                let (group, _ctx) = Words::new(&BACKGROUND);
                let mut group = group.grace(grace);
                group.spawn(cleans_up(LONG));
                group.canceler().cancel();
                assert_eq!(group.join().await.unwrap(), ["cleaned up"]);
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
            group.canceler().cancel();
            assert!(matches!(group.next().await.unwrap().end, End::Done("cleaned up")));
            assert!(matches!(group.next().await.unwrap().end, End::Aborted));
            // Spawned after the grace period, so it is aborted immediately.
            group.spawn(pending());
            let outcomes = group.outcomes().await;
            assert!(matches!(outcomes[..], [ref late] if matches!(late.end, End::Aborted)));
        });
    }

    /// A wait that is dropped, and another one: the time continues.
    #[test]
    fn continues_over_several_waits() {
        on_paused(async {
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.grace(ms(50));
            group.spawn(pending());
            group.canceler().cancel();
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
    fn returns_outcomes_as_tasks_end_and_join_the_rest() {
        on_paused(async {
            let (mut group, _ctx) = Group::<u64, Failure>::new(&BACKGROUND);
            for delay in [30, 10, 20, 40] {
                group.spawn(async move {
                    sleep(ms(delay)).await;
                    Ok(delay)
                });
            }
            assert_eq!(group.next().await.unwrap().value(), Some(10));
            assert_eq!(group.next().await.unwrap().value(), Some(20));
            assert_eq!(group.join().await.unwrap(), [30, 40]);
        });
    }

    #[test]
    fn returns_none_without_tasks() {
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
            let (sender, receiver) = oneshot::channel();
            group.spawn(async { Ok(receiver.await.unwrap()) });
            for _ in 0..3 {
                assert!(poll_once(group.next()).is_pending());
            }
            sender.send("one").unwrap();
            assert_eq!(group.next().await.unwrap().value(), Some("one"));
        });
    }

    /// An error that `next` has returned belongs to the caller. The group has failed nevertheless.
    #[test]
    fn takes_the_error_and_leaves_the_end_to_join() {
        on_both(|| async {
            let (mut group, ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Own("doomed")) });
            match group.next().await.unwrap().end {
                End::Failed(failure) => assert_eq!(failure.word(), "doomed"),
                other => panic!("{other:?}"),
            }
            group.spawn(ready(Ok("some value of two")));
            let failed = group.join().await.unwrap_err();
            common::assert_same(failed.end(), &ended(&ctx));
            assert_eq!(message_of(failed.end()), Some("doomed"));
            // The first of the remaining errors.
            let (mut group, _ctx) = Words::new(&BACKGROUND);
            group.spawn(async { Err(Own("first")) });
            assert!(matches!(group.next().await.unwrap().end, End::Failed(_)));
            group.spawn(async { Err(Own("second")) });
            assert_eq!(group.join().await.unwrap_err().word(), "second");
            // A group that keeps going has not failed.
            let (group, _ctx) = Words::new(&BACKGROUND);
            let mut group = group.keep_going();
            group.spawn(async { Err(Own("first")) });
            assert!(matches!(group.next().await.unwrap().end, End::Failed(_)));
            group.spawn(ready(Ok("value")));
            assert_eq!(group.join().await.unwrap(), ["value"]);
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
            // One after the other, so that the order is known.
            let mut group = group.limit(1);
            for error in errors.iter().copied() {
                let task = async move { error.map_or(Ok(""), |error| Err(Own(error))) };
                if !group.spawn(task).await {
                    break;
                }
            }
            let waited = group.join().await;
            assert_eq!(waited.as_ref().err().map(Failure::word), want);
            assert_eq!(message_of(&ended(&ctx)), want);
        }
    });
}

#[test]
fn spawning_without_a_runtime_panics_and_leaves_the_group_intact() {
    let (mut group, _ctx) = Words::new(&BACKGROUND);
    let text = panic_text(AssertUnwindSafe(|| group.spawn(ready(Ok("")))));
    assert!(text.contains("no reactor running"), "{text}");
    let mut group = group;
    current_thread().block_on(async {
        group.spawn(ready(Ok("one")));
        assert_eq!(group.join().await.unwrap(), ["one"]);
    });
}

/// The error that ends an inner group ends the outer one, and is found through both.
#[test]
fn nested_groups_end_with_the_same_error() {
    on_paused(async {
        let (mut outer, ctx) = Group::<usize, BoxError>::new(&BACKGROUND);
        for size in 1..4_usize {
            outer.spawn(async move {
                let (mut inner, _ctx) = Group::<usize, Failure>::new(&Context::current());
                for nth in 0..size {
                    inner.spawn(async move {
                        Context::current().sleep(ms(10)).await?;
                        if nth == 2 { Err(Own("the third")) } else { Ok(nth) }
                    });
                }
                Ok(inner.join().await?.len())
            });
        }
        let failed = outer.join().await.unwrap_err();
        assert_eq!(failed.downcast::<Failure>().unwrap().word(), "the third");
        assert_eq!(message_of(&ended(&ctx)), Some("the third"));
    });
}

/// No memory is left, however the group has ended.
#[test]
fn it_leaves_nothing_behind() {
    async fn life(parent: &Context) {
        let (mut values, _ctx) = Group::<_, Failure>::new(parent);
        (0..3).for_each(|nth| values.spawn(ready(Ok(nth))));
        values.join().await.unwrap();

        let (fails, _ctx) = Group::<(), BoxError>::new(parent);
        let mut fails = fails.grace(ms(1));
        fails.spawn(async { Ok(Context::current().sleep(LONG).await?) });
        fails.spawn(pending());
        fails.spawn(async { Err("doomed")? });
        fails.join().await.unwrap_err();

        let (group, _ctx) = Words::new(parent);
        let mut limited = group.keep_going().limit(1);
        for _ in 0..3 {
            assert!(limited.spawn(async { Err(Own("failed")) }).await);
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
            // The runtime resizes its own tables now and then.
            if round < 25 {
                least = least.min(alloc::live());
            }
        }
        let left = alloc::live() - least;
        assert!(left < 512, "{left} bytes are left of 25 rounds");
    });
}

#[test]
fn it_shows_the_running_tasks() {
    on_both(|| async {
        let (mut group, _ctx) = Words::new(&BACKGROUND);
        group.spawn(pending());
        let line = line!() - 1;
        let shown = format!("{group:?}");
        assert!(shown.contains(&format!("tests/group.rs:{line}")), "{shown}");
    });
}
