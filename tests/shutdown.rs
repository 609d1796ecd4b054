//! `Shutdown`: the phases soft, grace, cancel, abort and report; begun by `begin`, by `force`, and by the
//! end of the parent context.

#[path = "common/alloc.rs"]
mod alloc;
mod common;

use std::future::{pending, ready};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::{
    Cause, Drops, LONG, answer, current_thread, ended, ms, multi_thread, on_both, on_paused, panic_text,
    poll, poll_once, watched, word,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::shutdown::{Fate, GraceOver, Report};
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

/// Timers round up to the millisecond.
#[track_caller]
fn assert_took(start: Instant, expected: Duration) {
    let took = start.elapsed();
    assert!(took >= expected && took <= expected + ms(3), "{took:?} instead of {expected:?}");
}

#[test]
fn nothing_has_ended_before_it_begins() {
    on_paused(async {
        let shutdown = shutdown();
        assert!(answer(shutdown.soft()).is_none());
        assert!(answer(shutdown.hard()).is_none());
        assert!(timeout(LONG, shutdown.wait()).await.is_err(), "without work it continues");
        assert!(answer(shutdown.soft()).is_none());
    });
}

#[test]
fn without_work_it_is_over_at_once() {
    on_paused(async {
        let shutdown = shutdown();
        let start = Instant::now();
        shutdown.begin(Cause("deploy"));
        let line = line!() - 1;
        let report = shutdown.wait().await;
        assert_took(start, Duration::ZERO);
        assert!(report.is_clean());
        assert_eq!(word(report.why()), Some("deploy"));
        let text =
            format!("context canceled at tests/shutdown.rs:{line}: deploy; all work ended in time");
        assert!(report.to_string().ends_with(&text), "{report}");
        assert!(report.into_result().is_ok());
        // It ends when `wait` returns, with the line that created the shutdown.
        let hard = ended(shutdown.hard());
        assert!(hard.to_string().ends_with(": the shutdown is over"), "{hard}");
        assert_eq!(hard.origin().canceled_at(), Some(hard.origin().made_at()));
    });
}

#[test]
fn work_that_ends_within_the_grace_is_not_canceled() {
    on_paused(async {
        let shutdown = shutdown();
        let start = Instant::now();
        let job = shutdown.spawn(async { Context::current().sleep(ms(450)).await });
        shutdown.begin("deploy");
        let report = shutdown.wait().await;
        assert_took(start, ms(450));
        assert!(report.is_clean(), "{report}");
        assert!(report.took() >= ms(450) && report.took() <= ms(452));
        job.await.unwrap().unwrap();
    });
}

#[test]
fn each_phase_takes_its_time_and_each_fate_is_reported() {
    on_paused(async {
        let shutdown = shutdown();
        let start = Instant::now();
        let drops = Drops::default();

        shutdown.named("prompt").spawn(async {
            Context::current().done().await;
        });
        shutdown.named("tidy").spawn(async {
            Context::current().done().await;
            sleep(ms(90)).await;
        });
        let counted = drops.counted();
        shutdown.named("stuck").spawn(async move {
            let _counted = counted;
            pending::<()>().await;
        });
        let ticket = shutdown.named("thread").ticket();
        let line = line!() - 1;
        shutdown.named("quick").spawn(sleep(ms(10)));

        shutdown.begin(Cause("deploy"));
        let report = shutdown.wait().await;
        assert_took(start, ms(500 + 100 + 100));
        let expected = [
            ("prompt", Fate::Canceled),
            ("tidy", Fate::Canceled),
            ("stuck", Fate::Aborted),
            ("thread", Fate::Running),
        ];
        assert_eq!(fates(&report), expected);
        assert_eq!(drops.count(), 1);
        assert_eq!(report.overdue()[3].spawned_at().line(), line);
        let text = report.to_string();
        assert!(
            text.contains("; 4 did not end in time: prompt (spawned at tests/shutdown.rs:"),
            "{text}"
        );
        assert!(text.ends_with(&format!("thread (spawned at tests/shutdown.rs:{line}): still running")));
        assert_eq!(report.into_result().unwrap_err().overdue().len(), 4);
        drop(ticket);
    });
}

#[test]
fn the_hard_end_has_a_cause_that_leads_to_the_begin() {
    on_paused(async {
        let shutdown = shutdown();
        let line = line!() + 1;
        let other = Shutdown::new(&BACKGROUND).grace(ms(500)).cleanup(ms(100));
        let job = other.spawn(async { Context::current().done().await });
        other.begin(Cause("deploy"));
        let _ = other.wait().await;
        let error = job.await.unwrap();
        assert!(error.is_canceled());
        assert_eq!(error.cause_as::<GraceOver>().unwrap().grace(), ms(500));
        assert_eq!(word(&error), Some("deploy"));
        assert_eq!(error.origin().canceled_at().unwrap().line(), line);
        drop(shutdown);
    });
}

mod it_begins {
    use super::*;

    #[test]
    fn once_and_a_second_begin_does_not_shorten_the_grace() {
        on_paused(async {
            let shutdown = shutdown();
            let start = Instant::now();
            shutdown.spawn(sleep(ms(450)));
            shutdown.begin(Cause("first"));
            sleep(ms(50)).await;
            shutdown.clone().begin(Cause("second"));
            let report = shutdown.wait().await;
            assert_took(start, ms(450));
            assert!(report.is_clean());
            assert_eq!(word(report.why()), Some("first"));
        });
    }

    #[test]
    fn with_the_end_of_its_context() {
        on_paused(async {
            let ctx = BACKGROUND.with_value("seven").with_timeout(ms(1000));
            let shutdown = Shutdown::new(&ctx).grace(ms(500));
            assert_eq!(shutdown.soft().value::<&str>(), Some(&"seven"));
            assert_eq!(shutdown.hard().value::<&str>(), Some(&"seven"));
            assert_eq!(shutdown.soft().deadline(), ctx.deadline());
            assert_eq!(shutdown.hard().deadline(), None);
            let start = Instant::now();
            shutdown.spawn(sleep(ms(1300)));
            let report = shutdown.wait().await;
            assert_took(start, ms(1300));
            assert!(report.is_clean());
            assert!(report.why().is_deadline_exceeded());
            assert!(report.took() >= ms(300) && report.took() <= ms(302), "from the deadline on");
        });
    }

    #[test]
    fn from_any_thread_or_from_its_own_work() {
        on_both(|| async {
            let shutdown = shutdown();
            let other = shutdown.clone();
            thread::spawn(move || other.begin("from a thread"));
            assert!(shutdown.wait().await.is_clean());

            let shutdown = super::shutdown();
            let other = shutdown.clone();
            shutdown.spawn(async move { other.begin(Cause("lost the database")) });
            assert_eq!(word(shutdown.wait().await.why()), Some("lost the database"));
        });
    }

    #[test]
    fn for_the_accept_loop_while_jobs_continue() {
        on_paused(async {
            let shutdown = shutdown();
            let done = Arc::new(AtomicUsize::new(0));
            let (service, jobs) = (shutdown.clone(), done.clone());
            shutdown.named("accept").spawn(async move {
                while service.soft().sleep(ms(30)).await.is_ok() {
                    let jobs = jobs.clone();
                    service.spawn(async move {
                        sleep(ms(100)).await;
                        jobs.fetch_add(1, Ordering::SeqCst);
                    });
                }
            });
            sleep(ms(100)).await;
            shutdown.begin("deploy");
            let report = shutdown.wait().await;
            assert!(report.is_clean(), "{report}");
            assert_eq!(done.load(Ordering::SeqCst), 3, "taken at 30, 60 and 90 ms, and all finished");
        });
    }
}

mod force {
    use super::*;

    #[test]
    fn ends_both_at_once() {
        on_paused(async {
            let shutdown = shutdown();
            let job = shutdown.named("job").spawn(async { Context::current().done().await });
            let start = Instant::now();
            shutdown.force(Cause("power is failing"));
            let line = line!() - 1;
            for ctx in [shutdown.soft(), shutdown.hard()] {
                let error = ended(ctx);
                assert_eq!(word(&error), Some("power is failing"));
                assert_eq!(error.origin().canceled_at().unwrap().line(), line);
            }
            let report = shutdown.wait().await;
            assert_took(start, Duration::ZERO);
            assert_eq!(fates(&report), [("job", Fate::Canceled)]);
            assert!(job.await.unwrap().cause_as::<GraceOver>().is_none());
        });
    }

    #[test]
    fn cuts_the_grace_short() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("stuck").spawn(pending::<()>());
            let start = Instant::now();
            shutdown.begin(Cause("Ctrl-C"));
            let other = shutdown.clone();
            tokio::spawn(async move {
                sleep(ms(200)).await;
                other.force(Cause("second Ctrl-C"));
                other.force(Cause("third Ctrl-C"));
            });
            let report = shutdown.wait().await;
            assert_took(start, ms(300));
            assert_eq!(fates(&report), [("stuck", Fate::Aborted)]);
            assert_eq!(word(report.why()), Some("Ctrl-C"));
            assert_eq!(word(&ended(shutdown.hard())), Some("second Ctrl-C"));
        });
    }

    /// Overdue work is reported even if nothing called `wait` at the time, and the work has ended since.
    #[test]
    fn reports_what_was_running() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("job").spawn(async {
                Context::current().done().await;
            });
            shutdown.named("earlier").spawn(ready(()));
            sleep(ms(1)).await;
            shutdown.force("now");
            sleep(ms(50)).await;
            assert_eq!(fates(&shutdown.wait().await), [("job", Fate::Canceled)]);
        });
    }
}

mod work {
    use super::*;

    #[test]
    fn is_a_future_that_other_code_polls() {
        on_paused(async {
            let shutdown = shutdown();
            let start = Instant::now();
            let tracked = shutdown.named("request").track(sleep(ms(300)));
            let unpolled = shutdown.track(pending::<()>());
            tokio::spawn(tracked);
            tokio::spawn(async move {
                sleep(ms(400)).await;
                drop(unpolled);
            });
            shutdown.begin("deploy");
            assert!(shutdown.wait().await.is_clean());
            assert_took(start, ms(400));
        });
    }

    /// Tracked work is over when its future is dropped, even if the task's handle is kept.
    #[test]
    fn is_over_as_soon_as_a_tracked_future_resolves() {
        on_both(|| async {
            let shutdown = shutdown();
            let drops = Drops::default();
            let counted = drops.counted();
            let mut tracked = pin!(shutdown.track(async move {
                let _counted = counted;
            }));
            assert!(poll(tracked.as_mut(), Waker::noop()).is_ready());
            assert_eq!(drops.count(), 1);
            shutdown.begin("deploy");
            assert!(shutdown.wait().await.is_clean());
            let again = panic_text(AssertUnwindSafe(|| poll(tracked.as_mut(), Waker::noop())));
            assert!(again.contains("polled after it resolved"), "{again}");
        });
    }

    #[test]
    fn is_anything_that_holds_a_ticket() {
        on_both(|| async {
            let shutdown = shutdown().grace(LONG);
            let (ticket, hard) = (shutdown.ticket(), shutdown.hard().clone());
            let (go_on, wait) = std::sync::mpsc::channel::<()>();
            let thread = thread::spawn(move || {
                wait.recv().unwrap();
                let late = hard.is_done();
                drop(ticket);
                late
            });
            shutdown.begin("deploy");
            let mut waiting = pin!(shutdown.wait());
            for _ in 0..10 {
                assert!(poll(waiting.as_mut(), Waker::noop()).is_pending());
                tokio::task::yield_now().await;
            }
            go_on.send(()).unwrap();
            assert!(waiting.await.is_clean());
            assert!(!thread.join().unwrap());
        });
    }

    #[test]
    fn runs_under_the_hard_context_and_returns_its_result() {
        on_both(|| async {
            let ctx = BACKGROUND.with_value("seven");
            let shutdown = Shutdown::new(&ctx);
            let job = shutdown.spawn(async { Context::current().value::<&str>().copied() });
            assert_eq!(job.await.unwrap(), Some("seven"));
            let broken = shutdown.spawn(async { panic!("broke") });
            assert!(broken.await.unwrap_err().is_panic());
            shutdown.begin("deploy");
            assert!(shutdown.wait().await.is_clean(), "a panic ends a task as well");
        });
    }

    #[test]
    fn has_a_name_below_the_name_of_its_handle() {
        on_paused(async {
            let shutdown = shutdown();
            let http = shutdown.named("http");
            http.named(String::from("GET /")).spawn(pending::<()>());
            http.spawn(pending::<()>());
            shutdown.spawn(pending::<()>());
            shutdown.named("").spawn(pending::<()>());
            shutdown.force("now");
            let report = shutdown.wait().await;
            let names: Vec<_> = report.overdue().iter().map(|overdue| overdue.name()).collect();
            assert_eq!(names, [Some("http/GET /"), Some("http"), None, Some("")]);
            for unnamed in &report.overdue()[2..] {
                assert!(unnamed.to_string().starts_with("work spawned at tests/shutdown.rs:"));
            }
        });
    }

    #[test]
    fn may_begin_in_any_phase_and_is_reported() {
        on_paused(async {
            let shutdown = shutdown();
            let late = shutdown.clone();
            let third = Arc::new(AtomicUsize::new(0));
            let ran = third.clone();
            shutdown.named("first").spawn(async move {
                Context::current().done().await;
                late.named("second").spawn(async move {
                    sleep(ms(150)).await;
                    unreachable!("aborted before");
                });
                struct Last(Shutdown, Arc<AtomicUsize>);
                impl Drop for Last {
                    fn drop(&mut self) {
                        let ran = self.1.clone();
                        self.0.named("third").spawn(async move { ran.fetch_add(1, Ordering::SeqCst) });
                    }
                }
                let _last = Last(late, ran);
                pending::<()>().await;
            });
            shutdown.begin("deploy");
            let report = shutdown.wait().await;
            assert_eq!(fates(&report)[..2], [("first", Fate::Aborted), ("second", Fate::Aborted)]);
            sleep(ms(1)).await;
            assert_eq!(third.load(Ordering::SeqCst), 0, "it was spawned after the abort");
        });
    }

    /// Finished work uses no memory, however long the service runs.
    #[test]
    fn leaves_nothing_behind() {
        on_paused(async {
            let shutdown = shutdown();
            let mut early = 0;
            for round in 0..2000 {
                if round == 500 {
                    early = alloc::live();
                }
                let job = shutdown.named(format!("job {round}"));
                job.spawn(ready(())).await.unwrap();
                job.track(ready(())).await;
                drop(job.ticket());
            }
            let left = alloc::live() - early;
            assert!(left < 512, "{left} bytes are left of 1,500 jobs");
            assert!(format!("{shutdown:?}").contains("running: 0"), "{shutdown:?}");
        });
    }

    #[test]
    fn that_cannot_be_spawned_is_not_waited_for() {
        let shutdown = shutdown();
        let text = panic_text(AssertUnwindSafe(|| shutdown.spawn(ready(()))));
        assert!(text.contains("no reactor running"), "{text}");
        current_thread().block_on(async {
            shutdown.begin("deploy");
            assert!(shutdown.wait().await.is_clean());
        });
    }
}

mod waiting {
    use super::*;

    #[test]
    fn can_be_dropped_and_repeated() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("stuck").spawn(pending::<()>());
            let start = Instant::now();
            shutdown.begin("deploy");
            for _ in 0..3 {
                assert!(timeout(ms(150), shutdown.wait()).await.is_err());
            }
            assert!(answer(shutdown.hard()).is_none());
            let report = shutdown.wait().await;
            assert_took(start, ms(600));
            assert_eq!(fates(&report), [("stuck", Fate::Aborted)]);
        });
    }

    #[test]
    fn by_several_is_one_shutdown() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("stuck").spawn(pending::<()>());
            shutdown.begin("deploy");
            let other = shutdown.clone();
            let other = tokio::spawn(async move { other.wait().await });
            let report = shutdown.wait().await;
            assert_eq!(fates(&report), fates(&other.await.unwrap()));
        });
    }

    #[test]
    fn again_after_the_end_returns_the_report_again() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("stuck").spawn(pending::<()>());
            shutdown.begin("deploy");
            let first = shutdown.wait().await;
            let start = Instant::now();
            assert_eq!(fates(&shutdown.wait().await), fates(&first));
            assert_took(start, Duration::ZERO);
        });
    }

    /// The report contains the current fate.
    #[test]
    fn called_again_later_reports_what_has_ended_since() {
        on_paused(async {
            let shutdown = shutdown();
            let (late, later) = (shutdown.named("late").ticket(), shutdown.named("later").ticket());
            shutdown.begin("deploy");
            tokio::spawn(async move {
                sleep(ms(650)).await;
                drop(late);
            });
            let report = shutdown.wait().await;
            assert_eq!(fates(&report), [("late", Fate::Canceled), ("later", Fate::Running)]);
            drop(later);
            let report = shutdown.wait().await;
            assert_eq!(fates(&report), [("late", Fate::Canceled), ("later", Fate::Canceled)]);
        });
    }

    #[test]
    fn that_starts_after_the_grace_gets_no_further_grace() {
        on_paused(async {
            let shutdown = shutdown();
            shutdown.named("job").spawn(async {
                Context::current().done().await;
            });
            shutdown.begin("deploy");
            sleep(ms(900)).await;
            let start = Instant::now();
            assert_eq!(fates(&shutdown.wait().await), [("job", Fate::Canceled)]);
            assert_took(start, Duration::ZERO);
        });
    }

    #[test]
    fn can_be_sent_to_a_task() {
        fn check<T: Send>(value: T) -> T {
            value
        }
        fn shared<T: Send + Sync>() {}
        shared::<Shutdown>();
        shared::<Report>();
        drop(check(shutdown().wait()));
    }

    #[test]
    fn accepts_any_durations() {
        on_paused(async {
            let shutdown = Shutdown::new(&BACKGROUND).grace(Duration::MAX).cleanup(Duration::MAX);
            shutdown.spawn(async {
                sleep(LONG).await;
                Context::current().done().await;
                sleep(LONG).await;
            });
            let other = shutdown.clone();
            tokio::spawn(async move {
                sleep(LONG * 3).await;
                other.force("long enough");
            });
            shutdown.begin("deploy");
            let start = Instant::now();
            assert_eq!(shutdown.wait().await.overdue().len(), 1);
            assert_took(start, LONG * 4);

            let shutdown = Shutdown::new(&BACKGROUND).grace(Duration::ZERO).cleanup(Duration::ZERO);
            shutdown.named("stuck").spawn(pending::<()>());
            shutdown.begin("deploy");
            assert_eq!(shutdown.wait().await.overdue().len(), 1);
        });
    }
}

#[test]
fn when_all_handles_are_dropped_both_contexts_end_and_the_work_continues() {
    on_both(|| async {
        let shutdown = shutdown();
        let job = shutdown.spawn(async {
            let error = Context::current().done().await;
            tokio::task::yield_now().await;
            error
        });
        let (soft, hard) = (shutdown.soft().clone(), shutdown.hard().clone());
        drop(shutdown);
        assert!(ended(&soft).is_canceled());
        assert!(ended(&hard).is_canceled());
        assert!(job.await.unwrap().is_canceled());
    });
}

/// Other threads start and finish work while the shutdown begins. All work that was accepted is waited for.
#[test]
fn no_work_is_missed_and_no_wait_hangs() {
    watched(|| {
        let runtime = multi_thread(4);
        for _ in 0..300 {
            runtime.block_on(async {
                let shutdown = shutdown().grace(LONG);
                let finished = Arc::new(AtomicUsize::new(0));
                let (started, mut starts) = mpsc::unbounded_channel();
                for _ in 0..4 {
                    let (service, finished, started) =
                        (shutdown.clone(), finished.clone(), started.clone());
                    shutdown.spawn(async move {
                        while service.soft().check().is_ok() {
                            let finished = finished.clone();
                            service.spawn(async move {
                                tokio::task::yield_now().await;
                                finished.fetch_add(1, Ordering::SeqCst);
                            });
                            started.send(()).unwrap();
                            tokio::task::yield_now().await;
                        }
                    });
                }
                drop(started);
                starts.recv().await.unwrap();
                shutdown.begin("deploy");
                let report = shutdown.wait().await;
                assert!(report.is_clean(), "{report}");
                let mut all = 1;
                while starts.recv().await.is_some() {
                    all += 1;
                }
                assert_eq!(finished.load(Ordering::SeqCst), all);
            });
        }
    });
}

/// The last work, the end of the grace period and `force` at the same time: one end, one report.
#[test]
fn the_last_to_leave_races_the_hard_end() {
    watched(|| {
        let runtime = multi_thread(3);
        for _ in 0..300 {
            runtime.block_on(async {
                let shutdown = shutdown().grace(LONG);
                let (leave, left) = oneshot::channel::<()>();
                shutdown.named("job").spawn(async move {
                    let _ = Context::current().run(left).await;
                });
                shutdown.begin("deploy");
                let other = shutdown.clone();
                let force = tokio::spawn(async move { other.force(Cause("now")) });
                let leaves = tokio::spawn(async move { leave.send(()) });
                let report = shutdown.wait().await;
                assert!(matches!(fates(&report)[..], [] | [("job", Fate::Canceled)]), "{report}");
                assert!(shutdown.hard().is_done());
                force.await.unwrap();
                let _ = leaves.await.unwrap();
            });
        }
    });
}

#[test]
fn a_wait_that_is_not_polled_delays_no_other() {
    on_both(|| async {
        let shutdown = shutdown();
        let job = shutdown.spawn(ready(7));
        shutdown.begin("deploy");
        let _ = poll_once(shutdown.wait());
        assert_eq!(job.await.unwrap(), 7);
    });
}
