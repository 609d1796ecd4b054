//! Random schedules of attempts, delays, limits and ends, on a paused clock: properties of every `retry`.
//!
//! `PROPTEST_CASES` sets the number of schedules, and `PROPTEST_RNG_SEED` the seed. Both have defaults, so every run is the same.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use tokio::time::{Instant, advance, sleep};
use tokio_ctx::budget::{GaveUp, RetryError};
use tokio_ctx::{Context, Error};

const CASES: u32 = 5_000;
const SEED: u64 = 15;

/// The resolution of Tokio's timers, which round up.
const TICK: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
struct Schedule {
    /// The duration and the outcome of each attempt. The last one repeats.
    attempts: Vec<(Duration, Outcome)>,
    delays: Vec<Duration>,
    budget: Option<Duration>,
    cancel: Option<Duration>,
    /// At this time, the clock jumps by this much.
    jump: Option<(Duration, Duration)>,
    limit: Limit,
    least: Duration,
    learns: bool,
    permits: u32,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Succeeds,
    Fails,
    FailsForGood,
    /// Asks for at least this delay.
    Pushes(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    None,
    Timeout(Duration),
    Share(f64),
}

#[derive(Debug)]
enum Failed {
    Own(u32, Outcome),
    Stopped(Error),
}

impl From<Error> for Failed {
    fn from(stopped: Error) -> Self {
        Failed::Stopped(stopped)
    }
}

fn micros(most: u64) -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), 0..most, (0..most).prop_map(|us| us / 1_000 * 1_000)]
        .prop_map(Duration::from_micros)
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let outcome = prop_oneof![
        2 => Just(Outcome::Succeeds),
        6 => Just(Outcome::Fails),
        1 => Just(Outcome::FailsForGood),
        1 => micros(40_000).prop_map(Outcome::Pushes),
    ];
    let limit = prop_oneof![
        Just(Limit::None),
        micros(30_000).prop_map(Limit::Timeout),
        (0.0..1.2_f64).prop_map(Limit::Share),
    ];
    (
        prop::collection::vec((micros(40_000), outcome), 1..8),
        prop::collection::vec(micros(30_000), 0..8),
        prop::option::weighted(0.8, micros(120_000)),
        prop::option::weighted(0.3, micros(120_000)),
        // Whole milliseconds, because otherwise Tokio's paused clock may advance up to one too far.
        prop::option::weighted(0.2, (micros(80_000), (0..80_u64).prop_map(Duration::from_millis))),
        limit,
        prop_oneof![3 => Just(Duration::ZERO), 1 => micros(40_000)],
        any::<bool>(),
        prop_oneof![3 => Just(u32::MAX), 1 => 0..4_u32],
    )
        .prop_map(|(attempts, delays, budget, cancel, jump, limit, least, learns, permits)| {
            Schedule { attempts, delays, budget, cancel, jump, limit, least, learns, permits }
        })
}

/// What was observed from outside.
#[derive(Default)]
struct Seen {
    begun: RefCell<Vec<Instant>>,
    permit_calls: Cell<u32>,
    /// The attempts that have returned an error themselves.
    own: RefCell<Vec<u32>>,
}

async fn retry(schedule: &Schedule, ctx: &Context, seen: &Seen) -> Result<u32, RetryError<Failed>> {
    let deadline = ctx.deadline();
    let retry = ctx
        .retry(schedule.delays.iter().copied(), |child, number| {
            assert!(!ctx.is_done(), "an attempt begins after the end");
            assert!(deadline.is_none_or(|deadline| Instant::now() < deadline));
            assert!(child.remaining().is_none_or(|left| left <= ctx.remaining().unwrap_or(left)));
            let least = schedule.least;
            assert!(ctx.remaining().is_none_or(|left| left >= least), "it cannot fit");
            seen.begun.borrow_mut().push(Instant::now());
            assert_eq!(number as usize, seen.begun.borrow().len());
            let nth = (number as usize - 1).min(schedule.attempts.len() - 1);
            let (takes, outcome) = schedule.attempts[nth];
            async move {
                if !takes.is_zero() {
                    sleep(takes).await;
                }
                if matches!(outcome, Outcome::Succeeds) {
                    return Ok(number);
                }
                seen.own.borrow_mut().push(number);
                Err(Failed::Own(number, outcome))
            }
        })
        .when(|error| !matches!(error, Failed::Own(_, Outcome::FailsForGood)))
        .retry_after(|error| match error {
            Failed::Own(_, Outcome::Pushes(delay)) => Some(*delay),
            _ => None,
        })
        .permit(|| {
            seen.permit_calls.set(seen.permit_calls.get() + 1);
            seen.permit_calls.get() <= schedule.permits
        })
        .least(schedule.least);
    let retry = match schedule.limit {
        Limit::None => retry,
        Limit::Timeout(limit) => retry.attempt_timeout(limit),
        Limit::Share(share) => retry.attempt_share(share),
    };
    if schedule.learns { retry.least_learned().await } else { retry.await }
}

async fn run(schedule: &Schedule) {
    let start = Instant::now();
    let ctx = Context::background().with_timeout(schedule.budget);
    let seen = Seen::default();
    let canceled = async {
        match schedule.cancel {
            Some(at) => sleep(at).await,
            None => std::future::pending().await,
        }
        ctx.cancel_with("enough");
        std::future::pending::<()>().await;
    };
    let jumps = async {
        if let Some((at, by)) = schedule.jump {
            sleep(at).await;
            advance(by).await;
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        biased;
        outcome = retry(schedule, &ctx, &seen) => outcome,
        () = canceled => unreachable!(),
        () = jumps => unreachable!(),
    };
    let jumped = schedule.jump.map_or(Duration::ZERO, |(_, by)| by);
    let took = start.elapsed();
    if let Some(budget) = schedule.budget {
        assert!(took <= budget + TICK + jumped, "{took:?} of {budget:?}");
    }
    if let Some(cancel) = schedule.cancel {
        assert!(took <= cancel + TICK + jumped, "{took:?}, and canceled after {cancel:?}");
    }
    match outcome {
        Ok(number) => assert_eq!(number as usize, seen.begun.borrow().len()),
        Err(failed) => judge(schedule, &ctx, &seen, &failed),
    }
}

fn judge(schedule: &Schedule, ctx: &Context, seen: &Seen, failed: &RetryError<Failed>) {
    let begun = seen.begun.borrow();
    assert_eq!(failed.attempts() as usize, begun.len());
    assert!(begun.len() <= schedule.delays.len() + 1);
    assert_eq!(failed.elapsed(), failed.in_attempts() + failed.in_delays());
    assert_eq!(failed.elapsed(), begun.first().map_or(Duration::ZERO, Instant::elapsed));
    assert_eq!(failed.latest().len(), begun.len());
    let mut at = Duration::ZERO;
    for (attempt, begun_at) in failed.latest().zip(&*begun) {
        at += attempt.waited();
        assert_eq!(*begun_at - begun[0], at, "attempt {}", attempt.number());
        at += attempt.took();
    }
    assert!(at <= failed.elapsed());
    if let Failed::Own(number, _) = failed.error() {
        assert!(*number <= failed.attempts());
    }
    let own = match failed.error() {
        Failed::Own(_, outcome) => Some(*outcome),
        Failed::Stopped(_) => None,
    };
    match failed.why() {
        GaveUp::Ended(ended) => {
            assert!(ctx.is_done());
            assert_eq!(ended.to_string(), ctx.err().unwrap().to_string());
            if let Failed::Stopped(stopped) = failed.error() {
                assert!(stopped.cause().is_none_or(|cause| cause.to_string() == "enough"), "{stopped}");
            }
        }
        GaveUp::NotEnoughTime(short) => {
            assert!(!ctx.is_done() && short.left() < short.required());
            let delay = begun.len().checked_sub(1).map(|nth| schedule.delays[nth]);
            let pushed = if let Some(Outcome::Pushes(pushed)) = own { pushed } else { Duration::ZERO };
            let by_themselves = seen.own.borrow();
            let own_ones = failed.latest().filter(|attempt| by_themselves.contains(&attempt.number()));
            let quickest = own_ones.map(|attempt| attempt.took()).min().unwrap_or_default();
            let needs = if schedule.learns { schedule.least.max(quickest) } else { schedule.least };
            // The time required is that of the attempt, or of the delay and the attempt.
            let delay = delay.unwrap_or_default().max(pushed);
            let with_delay = if delay.is_zero() { needs } else { delay + needs.max(TICK) };
            assert!(
                [needs, with_delay].contains(&short.required()),
                "{short}, of {needs:?} and {delay:?}"
            );
        }
        GaveUp::NoDelayLeft => assert_eq!(begun.len(), schedule.delays.len() + 1),
        GaveUp::NotWorthIt => assert!(matches!(own, Some(Outcome::FailsForGood))),
        GaveUp::NotPermitted => assert_eq!(seen.permit_calls.get(), schedule.permits + 1),
        other => panic!("a reason that is new here: {other:?}"),
    }
}

#[test]
fn every_schedule_stays_within_its_budget_and_adds_up() {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcome = TestRunner::new(config).run(&schedules(), |schedule| {
        runtime.block_on(run(&schedule));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, schedule)) => panic!("{why}\n{schedule:#?}"),
        Err(other) => panic!("{other}"),
    }
}
