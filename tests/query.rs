//! `Context::query` and `transact`: a query always ends with its context, and its connection is returned only if it is
//! idle and no cancel can take effect later.
//!
//! The server is simulated: a query continues when its future is dropped, and a cancel affects the query that runs at
//! the time. The tests with real servers are in `examples/recipes`.

mod common;

use std::future::{pending, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::query::{Connection, Outcome, Stopped, StoppedKind};
use tokio_ctx::{BoxError, Context, Error};

use common::{
    Cause, Dice, current_thread, ms, multi_thread, on_both, panic_text, paused, spin_until, watched,
    word,
};

const GRACE: Duration = ms(500);
const CANCELED: &str = "canceled by request";

/// How the server handles cancels.
#[derive(Clone, Copy, Default, PartialEq)]
enum Cancels {
    #[default]
    Work,
    /// This many cancels are lost, each between two steps of the query.
    Lost(u32),
    Ignored,
    /// They arrive at once, and the attempt ends after this time.
    Slow(Duration),
    /// They arrive after this time.
    Late(Duration),
    /// They arrive at once, and the attempt never ends.
    Hang,
    Fail,
    Panic,
}

#[derive(Default)]
struct Server {
    cancels: Cancels,
    grace: Option<Duration>,
    discard_panics: bool,
    state: Mutex<State>,
    canceled: watch::Sender<u32>,
}

#[derive(Default, Debug, PartialEq, Clone)]
struct State {
    /// The number of queries that were started, and that are running.
    begun: u32,
    running: u32,
    /// The number of attempts that were started, that are in progress, and that arrived without a query.
    attempts: u32,
    under_way: u32,
    idle_hits: u32,
    cancelers: u32,
    given_back: u32,
    discarded: u32,
}

impl Server {
    fn new(cancels: Cancels) -> Arc<Server> {
        Arc::new(Server { cancels, ..Server::default() })
    }

    fn connect(self: &Arc<Self>) -> Conn {
        Conn { server: Some(self.clone()) }
    }

    fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    fn change(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns whether the connection was returned or discarded. It must not be both.
    fn is_over(&self) -> bool {
        let state = self.state();
        assert!(state.given_back + state.discarded <= 1, "{state:?}");
        state.given_back + state.discarded == 1
    }

    async fn until_over(&self) {
        timeout(ms(60_000), async {
            while !self.is_over() {
                sleep(ms(1)).await;
            }
        })
        .await
        .expect("it is passed on");
    }

    fn cancel_now(&self) {
        let mut state = self.change();
        if state.running == 0 {
            state.idle_hits += 1;
        }
        drop(state);
        self.canceled.send_modify(|canceled| *canceled += 1);
    }

    /// Runs a query for this time, or until it is canceled. If the future is dropped, it continues.
    async fn run(&self, time: Duration) -> Result<u32, &'static str> {
        let mut canceled = self.canceled.subscribe();
        canceled.mark_unchanged();
        {
            let mut state = self.change();
            state.begun += 1;
            state.running += 1;
        }
        let result = tokio::select! {
            biased;
            _ = canceled.changed() => Err(CANCELED),
            () = sleep(time) => Ok(7),
        };
        self.change().running -= 1;
        result
    }
}

struct Conn {
    server: Option<Arc<Server>>,
}

impl Conn {
    fn server(&self) -> &Arc<Server> {
        self.server.as_ref().unwrap()
    }

    async fn run(&mut self, time: Duration) -> Result<u32, &'static str> {
        self.server().run(time).await
    }
}

/// A connection that is dropped returns to its pool.
impl Drop for Conn {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let mut state = server.change();
        state.given_back += 1;
        assert_eq!(state.under_way, 0, "given back while a cancel is under way");
        if state.running > 0 && !std::thread::panicking() {
            panic!("given back while its query runs");
        }
    }
}

impl Connection for Conn {
    type Canceler = Arc<Server>;

    fn canceler(&self) -> Arc<Server> {
        self.server().change().cancelers += 1;
        self.server().clone()
    }

    async fn cancel(server: &mut Arc<Server>) -> Result<(), BoxError> {
        let attempt = {
            let mut state = server.change();
            assert_eq!(state.given_back, 0, "a cancel for what has been given back");
            state.attempts += 1;
            state.under_way += 1;
            state.attempts
        };
        match server.cancels {
            Cancels::Work => server.cancel_now(),
            Cancels::Lost(n) if attempt > n => server.cancel_now(),
            Cancels::Lost(_) | Cancels::Ignored => {}
            Cancels::Slow(time) => {
                server.cancel_now();
                sleep(time).await;
            }
            Cancels::Late(time) => {
                sleep(time).await;
                server.cancel_now();
            }
            Cancels::Hang => {
                server.cancel_now();
                pending().await
            }
            Cancels::Fail => {
                server.cancel_now();
                return Err("connection reset".into());
            }
            Cancels::Panic => {
                server.cancel_now();
                panic!("a canceler panics")
            }
        }
        server.change().under_way -= 1;
        Ok(())
    }

    fn discard(mut self) {
        let server = self.server.take().unwrap();
        server.change().discarded += 1;
        assert!(!server.discard_panics, "a discard panics");
    }

    fn grace(&self) -> Duration {
        self.server().grace.unwrap_or(GRACE)
    }
}

type Done = Outcome<Conn, Result<u32, &'static str>>;

async fn query(ctx: &Context, server: &Arc<Server>, time: Duration) -> Done {
    ctx.query(server.connect(), move |conn| Box::pin(conn.run(time))).await
}

fn in_ms(n: u64) -> Context {
    Context::background().with_timeout(ms(n)).detach()
}

const LONG: Duration = common::LONG;

#[test]
fn an_ended_context_starts_no_query() {
    on_both(|| async {
        let server = Server::new(Cancels::Work);
        let ctx = Context::background().with_cancel();
        ctx.cancel_with(Cause("over"));
        let called = Arc::new(AtomicU32::new(0));
        let counted = called.clone();
        let outcome = ctx
            .query(server.connect(), move |conn| {
                counted.fetch_add(1, Ordering::Relaxed);
                Box::pin(conn.run(ms(1)))
            })
            .await;
        let stopped = outcome.result.unwrap_err();
        assert_eq!(
            (stopped.kind(), word(stopped.context_error())),
            (StoppedKind::NotBegun, Some("over"))
        );
        assert_eq!(word(&outcome.ended.unwrap()), Some("over"));
        assert!(outcome.connection.is_some(), "it was not used");
        assert_eq!(called.load(Ordering::Relaxed), 0);
        assert_eq!(server.state(), State::default());
    });
}

/// The future is made before the end, and polled after it.
#[test]
fn a_context_that_ends_before_the_first_poll_starts_no_query() {
    paused().block_on(async {
        let server = Server::new(Cancels::Work);
        let ctx = in_ms(10);
        let query = query(&ctx, &server, ms(1));
        sleep(ms(20)).await;
        let outcome = query.await;
        assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::NotBegun);
        assert_eq!(server.state(), State::default());
    });
}

#[test]
fn a_query_that_returns_in_time_is_not_canceled() {
    on_both(|| async {
        let server = Server::new(Cancels::Work);
        let outcome = query(&Context::background(), &server, ms(1)).await;
        assert_eq!(outcome.result.unwrap(), Ok(7));
        assert!(outcome.ended.is_none());
        drop(outcome.connection.unwrap());
        let expected = State { begun: 1, cancelers: 1, given_back: 1, ..State::default() };
        assert_eq!(server.state(), expected);
    });
}

#[test]
fn a_result_that_is_ready_wins_over_the_end() {
    paused().block_on(async {
        let server = Server::new(Cancels::Work);
        let ctx = in_ms(10);
        // Both are ready at the same time, and the query is polled first.
        let mut query = Box::pin(query(&ctx, &server, ms(10)));
        assert!(poll_fn(|cx| Poll::Ready(query.as_mut().poll(cx).is_pending())).await);
        sleep(ms(30)).await;
        assert!(ctx.is_done());
        let outcome = query.await;
        assert_eq!(outcome.result.unwrap(), Ok(7));
        assert!(outcome.ended.is_some() && outcome.connection.is_some());
        assert_eq!(server.state().attempts, 0);
    });
}

/// A query that checks its context itself, like SQLite, may be faster than the timer.
#[test]
fn a_query_may_notice_the_end_itself() {
    paused().block_on(async {
        let ctx = Context::background().with_cancel();
        let canceler = ctx.canceler();
        let outcome = ctx.query(Server::new(Cancels::Work).connect(), move |_| {
            canceler.cancel_with(Cause("now"));
            Box::pin(async { Err::<u32, _>(CANCELED) })
        });
        let flat: Result<u32, BoxError> = outcome.await.into_result(|error| *error == CANCELED);
        let stopped = flat.unwrap_err();
        assert_eq!(stopped.downcast_ref::<Stopped>().unwrap().kind(), StoppedKind::Canceled);
        assert_eq!(word(Error::find(&*stopped).unwrap()), Some("now"));
    });
}

#[test]
fn at_the_end_it_is_canceled_and_waited_for() {
    paused().block_on(async {
        let server = Server::new(Cancels::Work);
        let begun = Instant::now();
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert!(begun.elapsed() <= ms(52), "{:?}", begun.elapsed());
        assert!(outcome.ended.as_ref().unwrap().is_deadline_exceeded());
        assert!(outcome.connection.is_some());
        assert_eq!(server.state().attempts, 1);
        let flat: Result<u32, BoxError> = outcome.into_result(|error| *error == CANCELED);
        let stopped = flat.unwrap_err();
        assert_eq!(stopped.downcast_ref::<Stopped>().unwrap().kind(), StoppedKind::Canceled);
        assert!(Error::find(&*stopped).unwrap().is_deadline_exceeded());
        sleep(LONG).await;
        assert_eq!(server.state().attempts, 1, "the canceling has ended");
    });
}

#[test]
fn a_lost_cancel_is_repeated_after_a_pause() {
    paused().block_on(async {
        let server = Server::new(Cancels::Lost(3));
        let begun = Instant::now();
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert_eq!(outcome.result.unwrap(), Err(CANCELED));
        let took = begun.elapsed() - ms(50);
        // The pauses are 5, 10 and 20 ms.
        assert!(took >= ms(35) && took <= ms(45), "{took:?}");
        assert_eq!(server.state().attempts, 4);
    });
}

#[test]
fn a_query_that_does_not_end_is_dropped_after_the_grace_period() {
    paused().block_on(async {
        let server = Server::new(Cancels::Ignored);
        let begun = Instant::now();
        let outcome = query(&in_ms(50), &server, LONG).await;
        let took = begun.elapsed() - ms(50);
        assert!(took >= GRACE && took <= GRACE + ms(2), "{took:?}");
        let stopped = outcome.result.unwrap_err();
        assert_eq!((stopped.kind(), stopped.commit_sent()), (StoppedKind::Unknown, false));
        assert!(outcome.connection.is_none() && outcome.ended.is_some());
        let attempts = server.state().attempts;
        assert!((4..=9).contains(&attempts), "{attempts}");
        assert_eq!((server.state().discarded, server.state().given_back), (1, 0));
        sleep(LONG).await;
        assert_eq!(server.state().attempts, attempts, "the canceling has ended");
    });
}

#[test]
fn a_grace_of_zero_and_an_endless_one() {
    paused().block_on(async {
        let with =
            |grace, cancels| Arc::new(Server { cancels, grace: Some(grace), ..Server::default() });
        let server = with(Duration::ZERO, Cancels::Ignored);
        let begun = Instant::now();
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::Unknown);
        assert!(begun.elapsed() <= ms(53));
        assert!(server.state().discarded == 1);

        let server = with(Duration::MAX, Cancels::Lost(20));
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert_eq!(outcome.result.unwrap(), Err(CANCELED));
        assert!(outcome.connection.is_some());
    });
}

#[test]
fn the_last_cancel_ends_before_the_connection_is_returned() {
    paused().block_on(async {
        let server = Server::new(Cancels::Slow(ms(100)));
        let begun = Instant::now();
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert!(begun.elapsed() >= ms(150));
        assert_eq!(outcome.result.unwrap(), Err(CANCELED));
        assert_eq!(server.state().under_way, 0);
        assert!(outcome.connection.is_some());

        // An attempt that has not ended in time may affect the next query.
        for cancels in [Cancels::Slow(GRACE * 2), Cancels::Hang] {
            let server = Server::new(cancels);
            let begun = Instant::now();
            let outcome = query(&in_ms(50), &server, LONG).await;
            assert!(begun.elapsed() <= ms(50) + GRACE + ms(2));
            assert_eq!(outcome.result.unwrap(), Err(CANCELED), "finished work is kept");
            assert!(outcome.connection.is_none());
            assert_eq!((server.state().attempts, server.state().discarded), (1, 1));
        }
    });
}

#[test]
fn after_a_cancel_that_failed_or_panicked_the_connection_is_discarded() {
    for cancels in [Cancels::Fail, Cancels::Panic] {
        paused().block_on(async {
            let server = Server::new(cancels);
            let outcome = query(&in_ms(50), &server, LONG).await;
            assert_eq!(outcome.result.unwrap(), Err(CANCELED));
            assert!(outcome.connection.is_none());
            assert_eq!((server.state().attempts, server.state().discarded), (1, 1));
        });
    }
}

#[test]
fn the_error_of_a_failed_cancel_is_reported() {
    struct Deaf;
    impl Connection for Deaf {
        type Canceler = u32;
        fn canceler(&self) -> u32 {
            0
        }
        async fn cancel(attempts: &mut u32) -> Result<(), BoxError> {
            *attempts += 1;
            Err(format!("refused {attempts} times").into())
        }
        fn discard(self) {}
        fn grace(&self) -> Duration {
            ms(10)
        }
    }
    paused().block_on(async {
        let ctx = Context::background().with_timeout(ms(50));
        let set_at = line!() - 1;
        let outcome = ctx.query(Deaf, |_| Box::pin(pending::<()>())).await;
        let stopped = outcome.result.unwrap_err();
        assert_eq!(stopped.cancel_error().unwrap().to_string(), "refused 2 times");
        let text = format!(
            "query not known to have ended 10ms after its context (cancel failed: refused 2 times): \
             context deadline exceeded: 50ms budget set at tests/query.rs:{set_at}"
        );
        assert_eq!(stopped.to_string(), text);
        let error = Error::from(stopped.clone());
        let text = format!(
            "context deadline exceeded: 50ms budget set at tests/query.rs:{set_at}: \
             query not known to have ended 10ms after its context (cancel failed: refused 2 times)"
        );
        assert_eq!(error.to_string(), text);
        assert!(error.cause_as::<Stopped>().is_some());
        assert_eq!(std::io::Error::from(stopped).kind(), std::io::ErrorKind::TimedOut);
    });
}

#[test]
fn the_causes_of_the_end_are_found() {
    paused().block_on(async {
        let ctx = Context::background().with_cancel();
        ctx.cancel_with(Cause("lease lost"));
        let stopped = ctx
            .query(Server::new(Cancels::Work).connect(), |c| Box::pin(c.run(LONG)))
            .await
            .result
            .unwrap_err();
        assert!(stopped.to_string().starts_with("query not begun: context canceled at tests/query.rs:"));
        assert!(stopped.to_string().ends_with(": lease lost"));
        assert_eq!(format!("{stopped:?}"), stopped.to_string());
        assert_eq!(word(Error::find(&stopped).unwrap()), Some("lease lost"));
        assert_eq!(word(&Error::from(stopped)), Some("lease lost"));

        let ctx = Context::background().with_timeout_cause(ms(5), Cause("slow"));
        let ended = query(&ctx, &Server::new(Cancels::Ignored), LONG).await.result.unwrap_err();
        // The previous cause is behind that of the unknown outcome.
        assert_eq!(word(&Error::from(ended)), Some("slow"));
    });
}

mod a_query_that_panics {
    use super::*;

    #[test]
    fn is_canceled_once_and_its_connection_discarded() {
        for cancels in
            [Cancels::Work, Cancels::Slow(ms(50)), Cancels::Hang, Cancels::Fail, Cancels::Panic]
        {
            paused().block_on(async move {
                let server = Server::new(cancels);
                let run = Context::background().query(server.connect(), |conn| {
                    Box::pin(async {
                        let runs = poll_fn(|_| Poll::Ready(())).then(|()| conn.run(LONG));
                        tokio::select! {
                            _ = runs => {}
                            () = sleep(ms(10)) => panic!("a query panics"),
                        }
                    })
                });
                let begun = Instant::now();
                let payload = AssertUnwindSafe(run).catch_unwind().await.err().unwrap();
                assert_eq!(payload.downcast_ref::<&str>(), Some(&"a query panics"));
                assert!(begun.elapsed() <= ms(11) + GRACE, "{:?}", begun.elapsed());
                let state = server.state();
                assert_eq!((state.attempts, state.discarded, state.given_back), (1, 1, 0));
                sleep(LONG).await;
                assert_eq!(server.state().attempts, 1);
            });
        }
    }

    #[test]
    fn before_it_has_a_future() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let run = Context::background().query::<_, (), _>(server.connect(), |_| panic!("at once"));
            let payload = AssertUnwindSafe(run).catch_unwind().await.err().unwrap();
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"at once"));
            assert!(server.is_over());
            assert_eq!(server.state().discarded, 1);
        });
    }

    #[test]
    fn after_its_end_while_it_is_canceled() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let run = in_ms(10).query(server.connect(), |conn| {
                Box::pin(async {
                    conn.run(LONG).await.unwrap();
                })
            });
            assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
            assert_eq!((server.state().attempts, server.state().discarded), (1, 1));
        });
    }

    #[test]
    fn without_its_caller() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let run = Context::background().query(server.connect(), |conn| {
                Box::pin(async {
                    conn.run(LONG).await.unwrap();
                })
            });
            assert!(timeout(ms(10), run).await.is_err());
            server.until_over().await;
            assert_eq!((server.state().attempts, server.state().discarded), (1, 1));
        });
    }
}

#[test]
fn a_panic_in_discard_is_caught() {
    paused().block_on(async {
        let server =
            Arc::new(Server { cancels: Cancels::Hang, discard_panics: true, ..Server::default() });
        let outcome = query(&in_ms(50), &server, LONG).await;
        assert_eq!(outcome.result.unwrap(), Err(CANCELED));
        assert!(outcome.connection.is_none());
    });
}

mod held_and_not_polled {
    use super::*;
    use common::{Wakes, poll};
    use std::task::Waker;

    /// As in a `select!` whose other branch is running.
    #[test]
    fn the_query_is_canceled() {
        paused().block_on(async {
            for cancels in [Cancels::Work, Cancels::Slow(ms(30)), Cancels::Lost(2)] {
                let server = Server::new(cancels);
                let ctx = in_ms(50);
                let mut run = Box::pin(query(&ctx, &server, LONG));
                assert!(poll(run.as_mut(), Waker::noop()).is_pending());
                sleep(ms(200)).await;
                let state = server.state();
                assert!(state.attempts > 0 && state.running == 0 && !server.is_over(), "{state:?}");
                let outcome = run.await;
                assert_eq!(outcome.result.unwrap(), Err(CANCELED));
                assert!(outcome.ended.is_some() && outcome.connection.is_some());
            }
        });
    }

    #[test]
    fn the_query_is_dropped_after_the_grace_period() {
        paused().block_on(async {
            let server = Server::new(Cancels::Ignored);
            let ctx = in_ms(50);
            let mut run = Box::pin(query(&ctx, &server, LONG));
            assert!(poll(run.as_mut(), Waker::noop()).is_pending());
            sleep(ms(60) + GRACE).await;
            assert_eq!(server.state().discarded, 1);
            assert_eq!(run.await.result.unwrap_err().kind(), StoppedKind::Unknown);
        });
    }

    /// At every step of its end.
    #[test]
    fn a_later_drop_changes_nothing() {
        paused().block_on(async {
            for after in [10, 49, 50, 51, 60, 79, 80, 81, 500] {
                let server = Server::new(Cancels::Slow(ms(30)));
                let ctx = in_ms(50);
                let mut run = Box::pin(query(&ctx, &server, LONG));
                assert!(poll(run.as_mut(), Waker::noop()).is_pending());
                sleep(ms(after)).await;
                drop(run);
                server.until_over().await;
                let state = server.state();
                assert_eq!((state.given_back, state.attempts, state.under_way), (1, 1, 0), "{state:?}");
            }
        });
    }

    /// Only the last waker is woken, and not before the outcome is there.
    #[test]
    fn the_caller_is_woken_once_with_the_outcome() {
        paused().block_on(async {
            let server = Server::new(Cancels::Slow(ms(30)));
            let ctx = in_ms(50);
            let mut run = Box::pin(query(&ctx, &server, LONG));
            let ((first, one), (second, two)) = (Wakes::new(), Wakes::new());
            assert!(poll(run.as_mut(), &one).is_pending());
            sleep(ms(60)).await;
            assert_eq!(first.count(), 0);
            assert!(poll(run.as_mut(), &one).is_pending());
            assert!(poll(run.as_mut(), &two).is_pending());
            sleep(ms(30)).await;
            assert_eq!((first.count(), second.count()), (0, 1));
            assert!(poll(run.as_mut(), &two).is_ready());
        });
    }

    /// The context ends while the caller polls, after it has registered.
    #[test]
    fn an_end_during_the_callers_poll_is_not_lost() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let ctx = Context::background().with_cancel();
            let canceler = ctx.canceler();
            let outcome = ctx.query(server.connect(), move |conn| {
                Box::pin(async move {
                    sleep(ms(5)).await;
                    canceler.cancel();
                    conn.run(LONG).await
                })
            });
            assert_eq!(outcome.await.result.unwrap(), Err(CANCELED));
        });
    }

    /// The context ends on another thread, at any point of a caller that polls continuously. Each poll may be the last.
    #[test]
    fn an_end_on_another_thread_is_not_lost() {
        watched(|| {
            let runtime = multi_thread(1);
            for round in 0..1_000 {
                let server = Server::new(Cancels::Work);
                let ctx = Context::background().with_cancel();
                let mut run = Box::pin(query(&ctx, &server, LONG));
                let once = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending()));
                assert!(runtime.block_on(once));
                let canceler = ctx.canceler();
                let cancels = std::thread::spawn(move || {
                    for _ in 0..round % 40 {
                        std::hint::spin_loop();
                    }
                    canceler.cancel();
                });
                while !cancels.is_finished() {
                    if poll(run.as_mut(), Waker::noop()).is_ready() {
                        break;
                    }
                }
                cancels.join().unwrap();
                // The future is not polled again.
                spin_until(|| server.state().running == 0);
                drop(run);
                spin_until(|| server.is_over());
                assert_eq!(server.state().given_back, 1);
            }
        });
    }

    /// On a thread outside of the runtime.
    #[test]
    fn an_end_outside_of_the_runtime_is_handled_inside() {
        watched(|| {
            let runtime = multi_thread(2);
            for _ in 0..300 {
                let server = Server::new(Cancels::Work);
                let ctx = Context::background().with_cancel();
                let mut run = Box::pin(query(&ctx, &server, LONG));
                let once = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending()));
                assert!(runtime.block_on(once));
                ctx.cancel();
                spin_until(|| server.state().running == 0);
                let outcome = futures::executor::block_on(run);
                assert_eq!(outcome.result.unwrap(), Err(CANCELED));
                assert!(outcome.connection.is_some());
            }
        });
    }

    /// The runtime shuts down, and its timers fire. That is no end of the context.
    #[test]
    fn a_runtime_that_shuts_down_does_not_end_the_context() {
        watched(|| {
            let server = Server::new(Cancels::Ignored);
            let ctx = Context::background().with_timeout(LONG);
            let (first, second) = (current_thread(), current_thread());
            let mut run = Box::pin(ctx.query(server.connect(), |_| Box::pin(pending::<()>())));
            for runtime in [&first, &second] {
                let once = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending()));
                assert!(runtime.block_on(once));
            }
            drop(first);
            let once = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending()));
            assert!(second.block_on(once), "ended with the runtime");
            ctx.cancel();
            let outcome = second.block_on(run);
            assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::Unknown);
            assert_eq!(server.state().discarded, 1);
        });
    }

    /// The runtime shuts down, so that nothing ends the query. The caller in another runtime receives the outcome.
    #[test]
    fn a_runtime_that_shuts_down_leaves_an_outcome() {
        watched(|| {
            for ends_before in [true, false] {
                let server = Server::new(Cancels::Ignored);
                let ctx = Context::background().with_cancel();
                let runtime = current_thread();
                let mut run = Box::pin(query(&ctx, &server, LONG));
                let once = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending()));
                assert!(runtime.block_on(once));
                if ends_before {
                    ctx.cancel();
                }
                drop(runtime);
                ctx.cancel();
                let outcome = futures::executor::block_on(run);
                assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::Unknown);
                assert!(outcome.connection.is_none());
                assert_eq!(server.state().discarded, 1);
            }
        });
    }
}

mod dropped {
    use super::*;

    #[test]
    fn before_the_first_poll_the_connection_is_returned() {
        let server = Server::new(Cancels::Work);
        drop(query(&Context::background(), &server, ms(1)));
        drop(Context::background().query(server.connect(), |conn| Box::pin(conn.run(ms(1)))));
        let expected = State { given_back: 1, ..State::default() };
        assert_eq!(server.state(), expected);
    }

    /// The future is dropped after any number of polls, with a query of several steps and every kind of cancel.
    #[test]
    fn at_every_await() {
        let kinds = [
            Cancels::Work,
            Cancels::Lost(2),
            Cancels::Ignored,
            Cancels::Slow(ms(30)),
            Cancels::Late(ms(30)),
            Cancels::Hang,
            Cancels::Fail,
        ];
        for cancels in kinds {
            for polls in 1..12 {
                for budget in [None, Some(ms(12))] {
                    paused().block_on(async {
                        let server = Server::new(cancels);
                        let ctx = Context::background().with_timeout(budget).detach();
                        let mut run = Box::pin(ctx.query(server.connect(), |conn| {
                            Box::pin(async {
                                conn.run(ms(3)).await?;
                                conn.run(ms(3)).await?;
                                conn.run(LONG).await
                            })
                        }));
                        let mut left = polls;
                        let outcome = poll_fn(|cx| {
                            let polled = run.as_mut().poll(cx).map(Some);
                            left -= 1;
                            if left == 0 && polled.is_pending() { Poll::Ready(None) } else { polled }
                        });
                        let outcome = outcome.await;
                        drop(run);
                        drop(outcome);
                        server.until_over().await;
                        let state = server.state();
                        assert!(state.discarded == 1 || state.running == 0, "{state:?}");
                        let is_known =
                            !matches!(cancels, Cancels::Ignored | Cancels::Hang | Cancels::Fail);
                        // Otherwise the query ran to its end before the drop.
                        assert_eq!(state.discarded == 0, is_known || state.attempts == 0, "{state:?}");
                        sleep(LONG * 2).await;
                        assert_eq!(server.state().attempts, state.attempts, "the canceling has ended");
                    });
                }
            }
        }
    }

    #[test]
    fn with_a_stuck_server_the_connection_is_discarded_after_the_grace_period() {
        paused().block_on(async {
            let server = Server::new(Cancels::Ignored);
            let begun = Instant::now();
            assert!(timeout(ms(50), query(&Context::background(), &server, LONG)).await.is_err());
            server.until_over().await;
            assert!(begun.elapsed() <= ms(50) + GRACE + ms(3));
            assert_eq!(server.state().discarded, 1);
        });
    }

    /// The context inside of the query ends, although the caller's has not.
    #[test]
    fn the_context_of_the_query_ends() {
        paused().block_on(async {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let server = Server::new(Cancels::Ignored);
            let run = Context::background().query(server.connect(), |_| {
                Box::pin(async { sender.send(Context::current().done().await).unwrap() })
            });
            let line = line!() - 3;
            assert!(timeout(ms(10), run).await.is_err());
            let ended = receiver.await.unwrap();
            assert_eq!(ended.cause().unwrap().to_string(), "query dropped");
            assert_eq!(ended.origin().canceled_at().unwrap().line(), line);
            server.until_over().await;
            assert_eq!(server.state().given_back, 1);
        });
    }

    #[test]
    fn outside_of_its_runtime_the_query_finishes_inside() {
        watched(|| {
            let server = Server::new(Cancels::Work);
            let runtime = multi_thread(1);
            let mut run = Box::pin(query_owned(server.clone()));
            runtime
                .block_on(async { poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_pending())).await });
            drop(run);
            spin_until(|| server.is_over());
            assert_eq!(server.state().given_back, 1);
        });
    }

    #[test]
    fn with_its_runtime_the_connection_is_discarded() {
        for flavor in [current_thread, || multi_thread(2)] {
            watched(move || {
                let server = Server::new(Cancels::Work);
                let runtime = flavor();
                let task = runtime.spawn(query_owned(server.clone()));
                runtime.block_on(async {
                    while server.state().running == 0 {
                        tokio::task::yield_now().await;
                    }
                });
                drop(runtime);
                assert!(task.is_finished());
                assert!(server.is_over());
                assert_eq!(server.state().discarded, 1);
            });
        }
    }

    /// The caller drops the future, and then the task is dropped with its runtime.
    #[test]
    fn followed_by_its_runtime() {
        watched(|| {
            let server = Server::new(Cancels::Ignored);
            let runtime = current_thread();
            runtime
                .block_on(async { assert!(timeout(ms(5), query_owned(server.clone())).await.is_err()) });
            drop(runtime);
            assert!(server.is_over());
            assert_eq!(server.state().discarded, 1);
        });
    }

    async fn query_owned(server: Arc<Server>) -> Done {
        query(&Context::background(), &server, LONG).await
    }
}

/// A future that uses up the whole budget in every poll.
#[test]
fn a_query_that_uses_up_the_budget_hides_neither_end_nor_grace() {
    current_thread().block_on(async {
        for cancels in [Cancels::Work, Cancels::Ignored, Cancels::Late(ms(5))] {
            let server = Server::new(cancels);
            let begun = Instant::now();
            let outcome = in_ms(20)
                .query(server.connect(), |conn| {
                    let mut run = Box::pin(conn.run(LONG));
                    Box::pin(poll_fn(move |cx| {
                        // Unconstrained, because it would not be polled otherwise.
                        let polled = tokio::task::coop::unconstrained(std::future::poll_fn(|cx| {
                            Poll::Ready(run.as_mut().poll(cx))
                        }))
                        .poll_unpin(cx);
                        let Poll::Ready(polled) = polled else { unreachable!() };
                        while let Poll::Ready(budget) = tokio::task::coop::poll_proceed(cx) {
                            budget.made_progress();
                        }
                        cx.waker().wake_by_ref();
                        polled
                    }))
                })
                .await;
            assert!(begun.elapsed() < ms(5_000));
            assert_eq!(outcome.result.is_err(), cancels == Cancels::Ignored);
            assert_eq!(outcome.connection.is_some(), cancels != Cancels::Ignored);
        }
    });
}

#[test]
fn without_a_time_driver_the_end_panics_and_the_connection_is_discarded() {
    let server = Server::new(Cancels::Work);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = panic_text(|| {
        runtime.block_on(async {
            let ctx = Context::background().with_cancel();
            let canceler = ctx.canceler();
            let outcome = ctx.query(server.connect(), move |_| {
                canceler.cancel();
                Box::pin(pending::<()>())
            });
            drop(outcome.await);
        });
    });
    assert!(text.contains("enable_time"), "{text}");
    assert!(server.is_over());
    assert_eq!(server.state().discarded, 1);
    // A query that needs no timer continues.
    let server = Server::new(Cancels::Work);
    let seven = Context::background().query(server.connect(), |_| Box::pin(async { 7 }));
    assert_eq!(futures::executor::block_on(seven).result.unwrap(), 7);
}

#[test]
fn the_values_are_there_in_query_and_cancel() {
    struct RecordsContext(Arc<Mutex<Vec<(&'static str, bool)>>>);
    impl Connection for RecordsContext {
        type Canceler = Arc<Mutex<Vec<(&'static str, bool)>>>;
        fn canceler(&self) -> Self::Canceler {
            self.0.clone()
        }
        async fn cancel(seen: &mut Self::Canceler) -> Result<(), BoxError> {
            let ctx = Context::current();
            seen.lock().unwrap().push((ctx.value::<&str>().unwrap(), ctx.is_done()));
            Ok(())
        }
        fn discard(self) {}
    }
    paused().block_on(async {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ctx = Context::background().with_value("blue").with_timeout(ms(5));
        let outcome = ctx.query(RecordsContext(seen.clone()), |connection| {
            Box::pin(async {
                let ctx = Context::current();
                connection.0.lock().unwrap().push((ctx.value::<&str>().unwrap(), ctx.is_done()));
                ctx.done().await;
                sleep(ms(1)).await;
            })
        });
        assert!(outcome.await.connection.is_some());
        assert_eq!(*seen.lock().unwrap(), [("blue", false), ("blue", false)]);
    });
}

#[test]
fn without_a_runtime_a_query_is_polled_by_its_caller() {
    let server = Server::new(Cancels::Work);
    let ctx = Context::background().with_cancel();
    let canceler = ctx.canceler();
    let outcome = ctx.query(server.connect(), move |_| {
        canceler.cancel();
        Box::pin(pending::<()>())
    });
    let text = panic_text(|| futures::executor::block_on(outcome).connection.is_some());
    assert!(text.contains("no reactor running"), "{text}");
    assert_eq!(server.state().discarded, 1);

    // Without a runtime, nothing can finish a dropped query.
    let server = Server::new(Cancels::Work);
    let mut run = Box::pin(Context::background().query(server.connect(), |_| Box::pin(pending::<()>())));
    assert!(common::poll(run.as_mut(), std::task::Waker::noop()).is_pending());
    drop(run);
    assert_eq!(server.state().discarded, 1);
}

#[test]
fn refusals_yield() {
    current_thread().block_on(async {
        let ctx = Context::background().with_cancel();
        ctx.cancel();
        let server = Server::new(Cancels::Work);
        let refused = async {
            loop {
                drop(query(&ctx, &server, ms(1)).await);
            }
        };
        timeout(ms(20), refused).await.unwrap_err()
    });
}

/// The driver panics before it has used the connection.
#[test]
fn a_driver_that_panics_at_the_start_affects_only_its_query() {
    struct Rude(Arc<AtomicU32>, bool);
    impl Drop for Rude {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl Connection for Rude {
        type Canceler = ();
        fn canceler(&self) {
            assert!(self.1, "no canceler");
        }
        async fn cancel((): &mut ()) -> Result<(), BoxError> {
            Ok(())
        }
        fn discard(self) {}
        fn grace(&self) -> Duration {
            panic!("no grace")
        }
    }
    for has_canceler in [true, false] {
        let dropped = Arc::new(AtomicU32::new(0));
        let run =
            Context::background().query(Rude(dropped.clone(), has_canceler), |_| Box::pin(async {}));
        let text = panic_text(|| current_thread().block_on(run).connection.is_some());
        assert_eq!(text, if has_canceler { "no grace" } else { "no canceler" });
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}

/// The context of a test waits for the task, and reports its line if that takes too long.
#[cfg(feature = "test-util")]
#[test]
fn a_query_without_its_caller_is_a_task_of_its_context() {
    use tokio_ctx::testing;

    let server = Server::new(Cancels::Slow(ms(100)));
    let drops = async |test: &Context, server: &Arc<Server>| {
        assert!(timeout(ms(10), query(test, server, LONG)).await.is_err());
    };
    paused().block_on(testing::scope(async |test| drops(test, &server).await));
    assert!(server.is_over());

    let stuck = Arc::new(Server { cancels: Cancels::Hang, grace: Some(LONG), ..Server::default() });
    let text = panic_text(|| paused().block_on(testing::scope(async |test| drops(test, &stuck).await)));
    assert!(text.contains("a task spawned at tests/query.rs:"), "{text}");
}

mod a_commit {
    use super::*;

    /// Runs a transaction: a step, then a commit that takes this long.
    async fn transact(
        ctx: &Context,
        server: &Arc<Server>,
        step: Duration,
        commit_takes: Duration,
    ) -> Outcome<Conn, Result<u32, BoxError>> {
        ctx.transact(server.connect(), move |conn, commit| {
            Box::pin(async move {
                conn.run(step).await?;
                Ok(commit.send(conn.run(commit_takes)).await??)
            })
        })
        .await
    }

    #[test]
    fn is_not_canceled_after_it_was_sent() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let outcome = transact(&in_ms(50), &server, ms(10), ms(200)).await;
            assert_eq!(outcome.result.unwrap().unwrap(), 7, "it happened");
            assert!(outcome.ended.is_some() && outcome.connection.is_some());
            assert_eq!(server.state().attempts, 0);
        });
    }

    #[test]
    fn is_not_sent_after_the_end() {
        paused().block_on(async {
            let server = Server::new(Cancels::Ignored);
            // The step ignores the cancel, and returns after the end.
            let outcome = transact(&in_ms(50), &server, ms(100), ms(1)).await;
            let refused = outcome.result.unwrap().unwrap_err();
            assert!(Error::find(&*refused).unwrap().is_deadline_exceeded());
            assert_eq!(server.state().begun, 1);
            assert!(outcome.connection.is_some());
        });
    }

    /// The context has ended, and canceling has not begun yet.
    #[test]
    fn is_not_sent_in_the_poll_that_notices_the_end() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let ctx = Context::background().with_cancel();
            let canceler = ctx.canceler();
            let outcome = ctx
                .transact(server.connect(), move |conn, commit| {
                    Box::pin(async move {
                        canceler.cancel_with(Cause("now"));
                        commit.send(conn.run(ms(1))).await
                    })
                })
                .await;
            assert_eq!(word(&outcome.result.unwrap().unwrap_err()), Some("now"));
            assert_eq!((server.state().begun, server.state().attempts), (0, 0));
        });
    }

    #[test]
    fn without_a_response_may_have_taken_effect() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let begun = Instant::now();
            let outcome = transact(&in_ms(50), &server, ms(10), LONG).await;
            assert!(begun.elapsed() <= ms(50) + GRACE + ms(2));
            let stopped = outcome.result.unwrap_err();
            assert_eq!((stopped.kind(), stopped.commit_sent()), (StoppedKind::Unknown, true));
            assert!(stopped.to_string().starts_with(
                "commit not answered within 500ms, it may have happened: context deadline"
            ));
            assert!(outcome.connection.is_none());
            assert_eq!((server.state().attempts, server.state().discarded), (0, 1));
        });
    }

    #[test]
    fn is_waited_for_without_its_caller() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let ctx = Context::background();
            let run = transact(&ctx, &server, ms(10), ms(100));
            assert!(timeout(ms(20), run).await.is_err());
            server.until_over().await;
            assert_eq!(
                server.state(),
                State { begun: 2, cancelers: 1, given_back: 1, ..State::default() }
            );
        });
    }

    #[test]
    fn protects_nothing_after_its_response() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let outcome = in_ms(50)
                .transact(server.connect(), |conn, commit| {
                    Box::pin(async move {
                        commit.send(conn.run(ms(100))).await.unwrap().unwrap();
                        conn.run(LONG).await
                    })
                })
                .await;
            assert!(outcome.connection.is_some() && outcome.commit_sent);
            assert!(server.state().attempts >= 1);
            let flat: Result<u32, BoxError> = outcome.into_result(|error| *error == CANCELED);
            let stopped = *flat.unwrap_err().downcast::<Stopped>().unwrap();
            assert_eq!((stopped.kind(), stopped.commit_sent()), (StoppedKind::Canceled, true));
            assert!(stopped.to_string().starts_with("query canceled after a commit: "));
        });
    }

    #[test]
    fn that_is_dropped_discards_the_connection() {
        paused().block_on(async {
            for limit in [None, Some(ms(5))] {
                let ctx = Context::background().with_timeout(limit);
                let server = Server::new(Cancels::Work);
                let outcome = ctx
                    .transact(server.connect(), |conn, commit| {
                        Box::pin(
                            async move { timeout(ms(10), commit.send(conn.run(LONG))).await.is_err() },
                        )
                    })
                    .await;
                assert!(outcome.result.unwrap());
                assert!(outcome.connection.is_none() && outcome.commit_sent);
                assert_eq!((server.state().attempts, server.state().discarded), (0, 1));
            }
        });
    }

    #[test]
    fn in_a_query_that_panics_is_not_canceled() {
        paused().block_on(async {
            let server = Server::new(Cancels::Work);
            let run = Context::background().transact(server.connect(), |_, commit| {
                Box::pin(async move {
                    let _answer = commit.send(async { panic!("during the commit") }).await;
                })
            });
            assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
            assert_eq!((server.state().attempts, server.state().discarded), (0, 1));
        });
    }

    #[test]
    fn refusals_yield() {
        current_thread().block_on(async {
            let ctx = Context::background().with_cancel();
            let canceler = ctx.canceler();
            let server = Server::new(Cancels::Work);
            let run = ctx.transact(server.connect(), move |_, commit| {
                Box::pin(async move {
                    canceler.cancel();
                    loop {
                        commit.send(async {}).await.unwrap_err();
                    }
                })
            });
            let outcome: Outcome<_, ()> = run.await;
            assert_eq!(outcome.result.unwrap_err().kind(), StoppedKind::Unknown);
        });
    }
}

/// The end of a query, the end of its context, a drop, and a slow cancel happen at about the same time, on four threads.
/// `Conn` checks that no connection is returned while its query runs or a cancel is in progress, or canceled after that.
#[test]
fn all_ends_race() {
    watched(|| {
        let runtime = multi_thread(4);
        for seed in 0..600 {
            runtime.block_on(async move {
                let mut dice = Dice::new(seed);
                let cancels = [
                    Cancels::Work,
                    Cancels::Lost(1),
                    Cancels::Slow(Duration::from_micros(300)),
                    Cancels::Slow(ms(3)),
                ];
                let server = Server::new(cancels[dice.roll(4)]);
                let micros = |dice: &mut Dice| Duration::from_micros(dice.roll(2_500) as u64);
                let [takes, ends, dropped] = [(); 3].map(|()| micros(&mut dice));
                let drops = dice.roll(2) == 0;
                let ctx = Context::background().with_timeout(ends);
                // Made outside of the task, which may be aborted before its first poll.
                let run =
                    tokio::spawn(ctx.query(server.connect(), move |conn| Box::pin(conn.run(takes))));
                if drops {
                    sleep(dropped).await;
                    run.abort();
                }
                match run.await {
                    Ok(outcome) => {
                        let connection = outcome.connection;
                        assert!(connection.is_some(), "{:?}", server.state());
                    }
                    Err(aborted) => assert!(aborted.is_cancelled(), "{aborted}"),
                }
                let over = async {
                    while !server.is_over() {
                        tokio::task::yield_now().await;
                    }
                };
                timeout(common::HANG, over).await.unwrap();
                assert_eq!(server.state().discarded, 0, "seed {seed}: {:?}", server.state());
            });
        }
    });
}
