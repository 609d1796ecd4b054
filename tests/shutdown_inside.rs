//! `Shutdown::wait` in a task of the same shutdown, for which it does not wait, and `Shutdown::begun`.

mod common;

use std::future::{Future, pending};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;

use common::{Cause, LONG, Wakes, ms, multi_thread, on_both, on_paused, poll, poll_once, watched, word};
use tokio::sync::{Barrier, oneshot};
use tokio::time::{Instant, sleep};
use tokio_ctx::shutdown::{Fate, Report, Ticket};
use tokio_ctx::{Context, Shutdown};

static BACKGROUND: Context = Context::background();

/// A shutdown with times that are easy to add.
fn shutdown() -> Shutdown {
    Shutdown::new(&BACKGROUND).grace(ms(500)).cleanup(ms(100))
}

/// The names and fates of the overdue work.
fn fates(report: &Report) -> Vec<(&str, Fate)> {
    report.overdue().iter().map(|overdue| (overdue.name().unwrap_or(""), overdue.fate())).collect()
}

#[test]
fn a_wait_in_a_task_of_the_shutdown_leaves_that_task_out() {
    on_paused(async {
        let start = Instant::now();
        let shutdown = shutdown();
        let other = shutdown.clone();
        let waiting = shutdown.spawn(async move { other.wait().await });
        shutdown.spawn(sleep(ms(50)));
        shutdown.begin(Cause("over"));
        let report = waiting.await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(word(report.why()), Some("over"));
        assert!(start.elapsed() <= ms(53), "{:?}", start.elapsed());
        assert!(shutdown.hard().is_done());
    });
}

#[test]
fn a_wait_in_a_tracked_future_leaves_it_out_also_below_others() {
    on_paused(async {
        let start = Instant::now();
        let shutdown = shutdown();
        shutdown.begin(Cause("over"));
        let report = shutdown.track(shutdown.track(async { shutdown.wait().await })).await;
        assert!(report.is_clean(), "{report}");
        assert!(start.elapsed() <= ms(3), "{:?}", start.elapsed());
    });
}

#[test]
fn several_that_wait_inside_do_not_wait_for_each_other() {
    on_paused(async {
        let start = Instant::now();
        let shutdown = shutdown();
        let waiting: Vec<_> = (0..3)
            .map(|nth| {
                let shutdown = shutdown.clone();
                shutdown.clone().spawn(async move {
                    sleep(ms(nth)).await;
                    shutdown.wait().await
                })
            })
            .collect();
        sleep(ms(10)).await;
        shutdown.begin(Cause("over"));
        for waiting in waiting {
            assert!(waiting.await.unwrap().is_clean());
        }
        assert!(start.elapsed() <= ms(15), "{:?}", start.elapsed());
    });
}

/// A wait outside does not return before the task that waits inside has finished.
#[test]
fn a_wait_outside_includes_the_task_that_waits_inside() {
    on_paused(async {
        let shutdown = shutdown();
        let (inside, (logged, mut log)) = (shutdown.clone(), oneshot::channel());
        shutdown.named("log").spawn(async move {
            let report = inside.wait().await;
            sleep(ms(50)).await;
            logged.send(report.is_clean()).unwrap();
        });
        shutdown.begin(Cause("over"));
        let report = shutdown.wait().await;
        assert_eq!(log.try_recv(), Ok(true));
        assert!(report.is_clean(), "{report}");
    });
}

/// For waits in other tasks, what a task does after its own wait is not overdue.
#[test]
fn the_first_wait_that_is_over_ends_the_others_inside() {
    on_paused(async {
        let start = Instant::now();
        let shutdown = shutdown();
        let (first, second) = (shutdown.clone(), shutdown.clone());
        let slow = shutdown.named("slow").spawn(async move {
            assert!(first.wait().await.is_clean());
            sleep(ms(50)).await;
        });
        let quick = shutdown.named("quick").spawn(async move { second.wait().await });
        sleep(ms(10)).await;
        shutdown.begin(Cause("over"));
        assert!(quick.await.unwrap().is_clean());
        assert!(start.elapsed() <= ms(13), "{:?}", start.elapsed());
        assert!(shutdown.wait().await.is_clean());
        slow.await.unwrap();
    });
}

/// In all phases, work that waits inside is neither aborted nor reported.
#[test]
fn a_stuck_task_is_aborted_and_the_one_that_waits_is_not() {
    on_paused(async {
        let shutdown = shutdown();
        let (inside, (logged, mut log)) = (shutdown.clone(), oneshot::channel());
        shutdown.named("log").spawn(async move { logged.send(inside.wait().await).unwrap() });
        shutdown.named("stuck").spawn(pending::<()>());
        shutdown.begin(Cause("over"));
        let report = shutdown.wait().await;
        assert_eq!(fates(&report), [("stuck", Fate::Aborted)]);
        assert_eq!(fates(&log.try_recv().unwrap()), [("stuck", Fate::Aborted)]);
    });
}

/// Work of other shutdowns, and of this one in other tasks, is waited for.
#[test]
fn only_the_caller_is_left_out() {
    on_paused(async {
        let start = Instant::now();
        let (outer, inner) = (shutdown(), shutdown());
        inner.spawn(sleep(ms(50)));
        inner.begin(Cause("inner"));
        let waited = inner.clone();
        let report = outer.spawn(async move { waited.wait().await }).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(start.elapsed() >= ms(50));
        // A ticket that the caller holds cannot be distinguished from others.
        let ticket = inner.ticket();
        let report = inner.wait().await;
        assert_eq!(fates(&report), [("", Fate::Running)]);
        drop(ticket);
    });
}

#[test]
fn a_wait_inside_that_was_dropped_leaves_nothing_out() {
    on_paused(async {
        let start = Instant::now();
        let shutdown = shutdown();
        let inside = shutdown.clone();
        let (gone, is_gone) = oneshot::channel();
        shutdown.named("late").spawn(async move {
            assert!(poll_once(inside.wait()).is_pending());
            gone.send(()).unwrap();
            pending::<()>().await;
        });
        is_gone.await.unwrap();
        shutdown.begin(Cause("over"));
        assert_eq!(fates(&shutdown.wait().await), [("late", Fate::Aborted)]);
        assert!(start.elapsed() >= ms(600));
    });
}

/// Work ends on other threads while waits inside are created and dropped.
#[test]
fn no_wait_inside_hangs_whatever_ends_meanwhile() {
    watched(|| {
        let runtime = multi_thread(2);
        for _ in 0..500 {
            runtime.block_on(async {
                let shutdown = Shutdown::new(&BACKGROUND).grace(LONG);
                let barrier = std::sync::Arc::new(Barrier::new(4));
                let mut waiting = Vec::new();
                for nth in 0..4 {
                    let (inside, barrier) = (shutdown.clone(), barrier.clone());
                    let task = shutdown.spawn(async move {
                        barrier.wait().await;
                        if nth < 2 {
                            let _dropped = poll_once(inside.wait());
                            inside.begin(Cause("over"));
                            assert!(inside.wait().await.is_clean());
                        }
                    });
                    waiting.push(task);
                }
                assert!(shutdown.wait().await.is_clean());
                for task in waiting {
                    task.await.unwrap();
                }
            });
        }
    });
}

#[test]
fn begun_resolves_to_nothing_when_it_begins() {
    on_both(async || {
        let shutdown = shutdown();
        let mut begun = Box::pin(shutdown.begun());
        let (wakes, waker) = Wakes::new();
        assert!(poll(begun.as_mut(), &waker).is_pending());
        let elsewhere = tokio::spawn(shutdown.begun());
        shutdown.begin(Cause("over"));
        assert_eq!(wakes.count(), 1);
        let () = begun.await;
        let () = elsewhere.await.unwrap();
        let () = shutdown.begun().await;
    });
}

/// Like the contexts: on a signal, `force`, and when the last handle is dropped.
#[test]
fn begun_resolves_however_it_begins() {
    let parent = BACKGROUND.with_cancel();
    let by_parent = Shutdown::new(&parent);
    let begun = pin!(by_parent.begun());
    parent.cancel();
    assert!(poll_once(begun).is_ready());

    let forced = shutdown();
    forced.force(Cause("now"));
    assert!(poll_once(forced.begun()).is_ready());

    let dropped = shutdown();
    let begun = dropped.begun();
    drop(dropped);
    assert!(poll_once(begun).is_ready());
}

#[test]
fn handles_can_go_through_catch_unwind_and_to_any_thread() {
    fn all<T: UnwindSafe + RefUnwindSafe + Send + Sync + 'static>(_: &T) {}
    let shutdown = shutdown();
    all(&shutdown);
    all(&shutdown.ticket());
    let _: fn(&Ticket) = all::<Ticket>;
    fn server_signal<F: Future<Output = ()> + Send + 'static>(_: F) {}
    server_signal(shutdown.begun());
}
