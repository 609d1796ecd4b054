//! `for_each_task`: a task for each item of a stream, with a limit. The first error is returned, the end of
//! the context stops it, and the source is not polled beyond the limit.

#[path = "common/alloc.rs"]
mod alloc;
mod common;

use std::cell::Cell;
use std::future::pending;
use std::panic::panic_any;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use common::{
    Cause, Drops, LONG, answer, assert_same, current_thread, ended, ms, on_both, panic_text, paused,
    poll,
};
use futures::{StreamExt as _, stream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_ctx::group::TaskFailed;
use tokio_ctx::{BoxError, Context, Error, StreamExt as _};
use tokio_stream::wrappers::UnboundedReceiverStream;

static BACKGROUND: Context = Context::background();

#[test]
fn every_item_is_processed() {
    on_both(|| async {
        let sum = Arc::new(AtomicUsize::new(0));
        let pool = stream::iter(1..=1000).for_each_task(&BACKGROUND, 7, |_, item| {
            let sum = sum.clone();
            async move {
                tokio::task::yield_now().await;
                sum.fetch_add(item, Ordering::Relaxed);
                Ok::<_, Error>(())
            }
        });
        pool.await.unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 500_500);
    });
}

#[test]
fn no_items_are_no_error() {
    on_both(|| async {
        let none = stream::empty::<()>();
        none.for_each_task(&BACKGROUND, 1, async |_, ()| Err(BoxError::from("none"))).await.unwrap();
    });
}

/// The number of items that have been taken and not finished never exceeds the number of tasks.
#[test]
fn the_source_is_not_polled_before_a_worker_is_free() {
    on_both(|| async {
        const WORKERS: usize = 5;
        let under_way = Arc::new(AtomicUsize::new(0));
        let left = Arc::new(AtomicUsize::new(300));
        let (seen, took) = (under_way.clone(), left.clone());
        let source = stream::poll_fn(move |_| {
            assert!(seen.load(Ordering::SeqCst) < WORKERS, "polled while every worker was busy");
            if took.load(Ordering::SeqCst) == 0 {
                return Poll::Ready(None);
            }
            took.fetch_sub(1, Ordering::SeqCst);
            seen.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(Some(()))
        });
        let pool = source.for_each_task(&BACKGROUND, WORKERS, |_, ()| {
            let under_way = under_way.clone();
            async move {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                under_way.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            }
        });
        pool.await.unwrap();
        assert_eq!(left.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn all_workers_are_used() {
    paused().block_on(async {
        let start = Instant::now();
        let pool =
            stream::iter(0..12).for_each_task(&BACKGROUND, 4, async |ctx, _| ctx.sleep(ms(10)).await);
        pool.await.unwrap();
        assert_eq!(start.elapsed(), ms(30));
    });
}

#[test]
fn the_pools_context_is_passed_and_current() {
    on_both(|| async {
        let ctx = BACKGROUND.with_value("seven");
        let pool = stream::iter(0..3).for_each_task(&ctx, 2, async |ctx, _| {
            assert_eq!(ctx.value::<&str>(), Some(&"seven"));
            assert_eq!(Context::current().value::<&str>(), Some(&"seven"));
            Ok::<_, Error>(())
        });
        pool.await.unwrap();
        assert!(answer(&ctx).is_none());
    });
}

#[test]
fn the_first_error_wins_and_nothing_more_is_taken() {
    on_both(|| async {
        let taken = Arc::new(AtomicUsize::new(0));
        let drops = Drops::default();
        let (took, counted, dropped) = (taken.clone(), drops.counted(), drops.clone());
        let source = stream::iter(0..).inspect(move |_| {
            let _ = &counted;
            took.fetch_add(1, Ordering::SeqCst);
        });
        let canceled = Arc::new(AtomicUsize::new(0));
        let line = line!() + 1;
        let pool = source.for_each_task(&BACKGROUND, 3, |ctx, item| {
            let (canceled, dropped) = (canceled.clone(), dropped.clone());
            async move {
                if item == 5 {
                    return Err(BoxError::from(Cause("five")));
                }
                if item > 2 {
                    let why = ctx.done().await;
                    let failed = why.cause_as::<TaskFailed>().unwrap();
                    assert_eq!((failed.message(), failed.spawned_at().line()), ("five", line));
                    canceled.fetch_add(1, Ordering::SeqCst);
                    // The source is dropped before the last task has finished.
                    while dropped.count() == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(())
            }
        });
        let failed = pool.await.unwrap_err();
        assert_eq!(*failed.downcast::<Cause>().unwrap(), Cause("five"));
        assert_eq!(canceled.load(Ordering::SeqCst), 2, "all had ended");
        assert_eq!(taken.load(Ordering::SeqCst), 6);
        assert_eq!(drops.count(), 1);
    });
}

#[test]
fn an_end_while_the_source_is_waited_for_is_seen_at_once() {
    paused().block_on(async {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(50));
        let source = stream::iter([1]).chain(stream::pending());
        let worked = Arc::new(AtomicUsize::new(0));
        let pool = source.for_each_task(&ctx, 2, |_, item| {
            let worked = worked.clone();
            async move {
                worked.fetch_add(item, Ordering::SeqCst);
                Ok::<_, Error>(())
            }
        });
        let stopped = pool.await.unwrap_err();
        assert!(start.elapsed() <= ms(51));
        assert_eq!(worked.load(Ordering::SeqCst), 1);
        assert!(stopped.to_string().starts_with("context deadline exceeded: 50ms budget set at "));
    });
}

/// Running tasks may finish. It is an error nevertheless, because not all items were processed.
#[test]
fn an_end_while_every_worker_is_busy_takes_nothing_more() {
    paused().block_on(async {
        let start = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(50));
        let mut taken = 0;
        let source = stream::iter(0..).inspect(|_| taken += 1);
        let pool = source.for_each_task(&ctx, 2, async |ctx, _| {
            ctx.done().await;
            sleep(ms(20)).await;
            Ok::<_, Error>(())
        });
        let stopped = pool.await.unwrap_err();
        assert!(start.elapsed() >= ms(70) && start.elapsed() <= ms(72));
        assert!(stopped.is_deadline_exceeded());
        assert_eq!(taken, 2);
    });
}

#[test]
fn an_end_after_the_last_item_has_no_effect() {
    paused().block_on(async {
        let ctx = BACKGROUND.with_timeout(ms(50));
        let pool = stream::iter(0..2).for_each_task(&ctx, 4, async |_, _| {
            sleep(ms(80)).await;
            Ok::<_, Error>(())
        });
        pool.await.unwrap();
    });
}

#[test]
fn an_ended_context_takes_no_item() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with(Cause("dead"));
        let source =
            stream::poll_fn(|_| -> Poll<Option<()>> { unreachable!("polled under an ended context") });
        let pool = source.for_each_task(&ctx, 4, async |_, _| Ok::<_, Error>(()));
        let stopped = pool.await.unwrap_err();
        assert_same(&stopped, &ended(&ctx));
    });
}

/// Neither a source that is always ready nor tasks that never wait hide the end.
#[test]
fn a_busy_pool_still_ends_in_time() {
    on_both(|| async {
        let ctx = BACKGROUND.with_timeout(ms(20));
        let pool = stream::repeat(()).for_each_task(&ctx, usize::MAX, async |_, ()| Ok::<_, Error>(()));
        assert!(pool.await.unwrap_err().is_deadline_exceeded());
        let ctx = BACKGROUND.with_timeout(ms(20));
        let pool = stream::repeat(()).for_each_task(&ctx, 2, async |_, ()| Ok::<_, Error>(()));
        assert!(pool.await.unwrap_err().is_deadline_exceeded());
    });
}

/// Every item that was taken from a channel is processed, whenever the context ends. The rest stays in the
/// channel.
#[test]
fn no_item_is_taken_and_then_lost() {
    on_both(|| async {
        for round in 0..50 {
            let (send, receive) = mpsc::unbounded_channel();
            (0..100).for_each(|item| send.send(item).unwrap());
            let worked = Arc::new(AtomicUsize::new(0));
            let mut source = UnboundedReceiverStream::new(receive);
            let ctx = BACKGROUND.with_cancel();
            let pool = (&mut source).for_each_task(&ctx, 3, |_, item| {
                let worked = worked.clone();
                if item == round {
                    ctx.cancel();
                }
                async move {
                    tokio::task::yield_now().await;
                    worked.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Error>(())
                }
            });
            assert!(pool.await.is_err());
            drop(send);
            let left = source.count().await;
            assert_eq!(worked.load(Ordering::SeqCst) + left, 100);
            assert_eq!(left, 100 - (round + 1));
        }
    });
}

/// The stream is polled by the caller: it may borrow, and need not be `Send`.
#[test]
fn the_source_may_borrow_and_need_not_be_send() {
    current_thread().block_on(async {
        let items = Rc::new([1, 2, 3]);
        let borrowed = &items;
        let source = stream::iter(0..3).map(|nth| borrowed[nth]);
        let pool = source.for_each_task(&BACKGROUND, 2, async |_, item| {
            if item > 3 { Err(BoxError::from("wrong item")) } else { Ok(()) }
        });
        pool.await.unwrap();
    });
}

#[test]
fn its_future_can_be_sent() {
    fn check<T: Send>(value: T) -> T {
        value
    }
    drop(check(stream::iter(0..3).for_each_task(&BACKGROUND, 2, async |_, _| Ok::<_, Error>(()))));
}

#[test]
fn dropped_it_drops_the_source_and_aborts_the_workers() {
    on_both(|| async {
        let drops = Drops::default();
        let (source, work) = (drops.counted(), Arc::new(drops.counted()));
        let endless = stream::repeat(()).map(move |()| {
            let _ = &source;
        });
        let mut pool = Box::pin(endless.for_each_task(&BACKGROUND, 3, move |_, ()| {
            let work = work.clone();
            async move {
                let _work = work;
                pending::<Result<(), Error>>().await
            }
        }));
        assert!(poll(pool.as_mut(), Waker::noop()).is_pending());
        drop(pool);
        while drops.count() < 2 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_panic_is_resumed_when_all_have_ended() {
    on_both(|| async {
        let (ended, was_ended) = oneshot::channel();
        let ended = Arc::new(std::sync::Mutex::new(Some(ended)));
        let pool = stream::iter(0..).for_each_task(&BACKGROUND, 2, move |ctx, item: u32| {
            let ended = ended.clone();
            async move {
                if item == 1 {
                    panic_any(item);
                }
                ctx.done().await;
                ended.lock().unwrap().take().unwrap().send(()).unwrap();
                Ok::<_, Error>(())
            }
        });
        let joined = tokio::spawn(pool).await.unwrap_err();
        assert_eq!(*joined.into_panic().downcast::<u32>().unwrap(), 1);
        was_ended.await.unwrap();
    });
}

#[test]
fn a_panic_of_the_source_or_of_the_function_leaves_no_worker() {
    on_both(|| async {
        breaks(2, usize::MAX, "the source broke").await;
        breaks(usize::MAX, 2, "the function broke").await;
    });
}

async fn breaks(source: usize, function: usize, text: &str) {
    let drops = Drops::default();
    let counted = Arc::new(drops.counted());
    let source = stream::iter(0..).inspect(move |item| assert!(*item < source, "the source broke"));
    let pool = source.for_each_task(&BACKGROUND, 5, move |_, item| {
        assert!(item < function, "the function broke");
        let counted = counted.clone();
        async move {
            let _counted = counted;
            pending::<Result<(), Error>>().await
        }
    });
    let joined = tokio::spawn(pool).await.unwrap_err();
    assert_eq!(*joined.into_panic().downcast::<&str>().unwrap(), text);
    while drops.count() < 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn zero_workers_are_refused_with_a_clear_message() {
    let text = panic_text(|| {
        let pool = stream::iter(0..3).for_each_task(&BACKGROUND, 0, async |_, _| Ok::<_, Error>(()));
        drop(pool);
    });
    assert!(text.contains("must be at least 1"), "{text}");
}

#[test]
fn errors_may_be_boxed() {
    on_both(|| async {
        let pool = stream::iter(["1", "two"]).for_each_task(&BACKGROUND, 1, async |_, text: &str| {
            text.parse::<u32>()?;
            Ok::<_, BoxError>(())
        });
        let failed = pool.await.unwrap_err();
        assert_eq!(failed.to_string(), "invalid digit found in string");
    });
}

/// Tasks that wait for their context, with that error type.
#[test]
fn errors_that_the_tasks_return_at_the_end_are_returned() {
    paused().block_on(async {
        let ctx = BACKGROUND.with_timeout(ms(50));
        let pool = stream::iter(0..).for_each_task(&ctx, 2, async |ctx, _| ctx.sleep(LONG).await);
        let error: Error = pool.await.unwrap_err();
        assert_same(&error, &ended(&ctx));
    });
}

/// Finished items do not use memory while the pool runs.
#[test]
fn a_long_run_takes_no_more_memory_than_a_short_one() {
    current_thread().block_on(async {
        let (mut early, mut late) = (0, 0);
        let pool = stream::iter(0..40_000).for_each_task(&BACKGROUND, 4, |_, item| {
            match item {
                2_000 => early = alloc::live(),
                39_999 => late = alloc::live(),
                _ => {}
            }
            async { Ok::<_, Error>(()) }
        });
        pool.await.unwrap();
        assert!(late - early < 4_096, "{} bytes more", late - early);
    });
}

/// Finished tasks are freed, whatever the limit, and however long the next item takes.
#[test]
fn a_large_pool_frees_the_tasks_that_have_ended() {
    current_thread().block_on(async {
        let (early, late) = (Cell::new(0), Cell::new(0));
        let source = stream::iter(0..4_000).then(async |item| {
            if item == 100 {
                early.set(alloc::live());
            }
            if item == 3_999 {
                // The source is pending, and the tasks finish meanwhile.
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                late.set(alloc::live());
            }
            item
        });
        let pool = source.for_each_task(&BACKGROUND, usize::MAX, |_, _| async { Ok::<_, Error>(()) });
        pool.await.unwrap();
        let more = late.get() - early.get();
        assert!(more < 64 * 1024, "{more} bytes more for 3,900 tasks that have ended");
    });
}

/// As documented: the closure captures, and the call is spawned.
#[test]
fn the_function_may_capture_and_the_call_be_spawned() {
    on_both(|| async {
        let sum = Arc::new(AtomicUsize::new(0));
        let total = sum.clone();
        let crawl = BACKGROUND.spawn_with(|ctx| async move {
            let pool = stream::iter(1..=10).for_each_task(&ctx, 3, |ctx, item| {
                let sum = sum.clone();
                async move {
                    ctx.run(tokio::task::yield_now()).await?;
                    sum.fetch_add(item, Ordering::SeqCst);
                    Ok::<_, Error>(())
                }
            });
            pool.await
        });
        crawl.await.unwrap().unwrap();
        assert_eq!(total.load(Ordering::SeqCst), 55);
    });
}

/// The others continue while one task is slow, and the pool waits for it at the end.
#[test]
fn one_slow_worker_delays_only_the_end() {
    paused().block_on(async {
        let start = Instant::now();
        let release = Arc::new(Notify::new());
        let pool = stream::iter(0..20_u64).for_each_task(&BACKGROUND, 2, |_, item| {
            let release = release.clone();
            async move {
                match item {
                    0 => release.notified().await,
                    19 => release.notify_one(),
                    _ => sleep(ms(1)).await,
                }
                Ok::<_, Error>(())
            }
        });
        pin!(pool).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(18));
    });
}
