//! Bad input: deadlines at the limits of the clock, ended parents, missing runtimes, and causes, wakers and
//! functions that panic. The tree stays intact, and other users of it are not affected.

mod common;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use common::{
    Cause, LONG, Wakes, answer, assert_same, current_thread, ended, ms, on_both, panic_text, paused,
    poll, poll_once, watched, word,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

mod deadlines {
    use super::*;

    /// The last instant that the clock can express.
    fn end_of_time() -> Instant {
        let mut at = Instant::now();
        let seconds = (0..64).rev().map(|power| Duration::from_secs(1 << power));
        let nanoseconds = (0..30).rev().map(|power| Duration::from_nanos(1 << power));
        for step in seconds.chain(nanoseconds) {
            at = at.checked_add(step).unwrap_or(at);
        }
        assert!(at.checked_add(Duration::from_nanos(1)).is_none());
        at
    }

    #[test]
    fn near_the_end_of_time_do_not_panic() {
        on_both(|| async {
            let last = end_of_time();
            let nanos = [0, 1, 999_999, 1_000_000, 999_999_999, 1_000_000_000, 1_000_000_001];
            let far = nanos.map(|nanos| last - Duration::from_nanos(nanos));
            let years = [1, 10, 100, 1_000].map(|years| {
                Instant::now().checked_add(Duration::from_secs(years * 365 * 24 * 3600)).unwrap_or(last)
            });
            for at in far.into_iter().chain(years) {
                for ctx in [BACKGROUND.with_deadline(at), BACKGROUND.with_deadline_cause(at, "far")] {
                    assert!(answer(&ctx).is_none(), "ended too soon");
                    assert!(ctx.deadline().is_none_or(|deadline| deadline == at));
                    assert!(ctx.remaining().is_none_or(|left| left > LONG));
                    let child = ctx.with_timeout(Duration::MAX);
                    let near = child.with_timeout(LONG);
                    assert!(near.remaining().is_some_and(|left| left <= LONG));
                    let merged = child.merge(&BACKGROUND);
                    // Two waits, because the second may use a different timer.
                    let waits = [tokio::spawn(merged.done_owned()), tokio::spawn(child.done_owned())];
                    assert!(poll_once(merged.run(std::future::pending::<()>())).is_pending());
                    tokio::task::yield_now().await;
                    assert!(waits.iter().all(|wait| !wait.is_finished()));
                    ctx.cancel_with(Cause("not that far"));
                    for wait in waits {
                        assert_eq!(word(&wait.await.unwrap()), Some("not that far"));
                    }
                    let text = format!("{ctx} {ctx:?} {:?}", ended(&ctx));
                    assert!(text.contains("not that far"));
                }
            }
        });
    }

    #[test]
    fn that_overflow_set_none() {
        let parent = BACKGROUND.with_timeout(LONG);
        for after in
            [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(u64::MAX / 2 + 1)]
        {
            for ctx in [BACKGROUND.with_timeout(after), BACKGROUND.with_timeout_cause(after, "never")] {
                assert!(answer(&ctx).is_none());
                assert_eq!(ctx.deadline(), None);
                ctx.cancel();
                assert!(ended(&ctx).is_canceled());
            }
            assert_eq!(parent.with_timeout(after).deadline(), parent.deadline());
        }
    }

    #[test]
    fn that_overflow_set_none_in_waits() {
        on_both(|| async {
            let scope = BACKGROUND.with_cancel();
            let ctx = scope.clone();
            let sleep = ctx.spawn({
                let ctx = ctx.clone();
                async move { ctx.sleep(Duration::MAX).await }
            });
            let within = ctx.spawn({
                let ctx = ctx.clone();
                async move { ctx.within(Duration::MAX, async |ctx: Context| ctx.done().await).await }
            });
            tokio::task::yield_now().await;
            assert!(!sleep.is_finished() && !within.is_finished());
            scope.cancel();
            assert!(sleep.await.unwrap().is_err());
            match within.await.unwrap() {
                Ok(error) | Err(error) => assert_same(&error, &ended(&ctx)),
            }
        });
    }

    #[test]
    fn of_zero_or_in_the_past_start_no_work() {
        let now = Instant::now();
        let longest_ago =
            [1_000_000, 3600, 1, 0].into_iter().find_map(|s| now.checked_sub(Duration::from_secs(s)));
        for ctx in [
            BACKGROUND.with_timeout(Duration::ZERO),
            BACKGROUND.with_deadline(now),
            BACKGROUND.with_deadline(longest_ago.unwrap()),
            BACKGROUND.with_timeout_cause(Duration::ZERO, "zero"),
            BACKGROUND.with_deadline_cause(longest_ago.unwrap(), "past"),
        ] {
            assert!(ended(&ctx).is_deadline_exceeded());
            assert_eq!(ctx.remaining(), Some(Duration::ZERO));
            let run = ctx.run(async { unreachable!("a dead context started work") });
            assert!(futures::executor::block_on(run).unwrap_err().is_deadline_exceeded());
        }
    }

    #[test]
    fn of_one_nanosecond_are_deadlines() {
        let ctx = BACKGROUND.with_timeout(Duration::from_nanos(1));
        let child = ctx.with_timeout(Duration::from_nanos(1));
        while !child.is_done() {
            thread::yield_now();
        }
        assert!(ended(&child).is_deadline_exceeded());
        assert_same(&ended(&child), &ended(&ctx));
    }
}

/// Every context derived from an ended one, directly or indirectly, has ended with the same error. Its
/// scope, waits and functions have no other effect.
#[test]
fn an_ended_parent_has_only_ended_children() {
    on_both(|| async {
        let dead = BACKGROUND.with_cancel();
        dead.cancel_with(Cause("dead"));
        let error = ended(&dead);
        let token = CancellationToken::new();
        let derive = |ctx: &Context| -> Vec<CancelScope> {
            vec![
                ctx.with_cancel(),
                ctx.with_timeout(Duration::ZERO),
                ctx.with_timeout(LONG),
                ctx.with_timeout(Duration::MAX),
                ctx.with_timeout_cause(Duration::ZERO, "mine"),
                ctx.with_deadline(Instant::now()),
                ctx.with_deadline_cause(Instant::now() + LONG, "mine"),
                ctx.merge(&Context::background()),
                Context::background().merge(ctx),
                ctx.with_token(&token),
                ctx.with_value(1).with_cancel(),
            ]
        };
        for child in derive(&dead) {
            for scope in derive(&child) {
                let grandchild = scope.clone();
                assert_same(&ended(&grandchild), &error);
                scope.cancel_with(Cause("too late"));
                drop(scope);
                assert_same(&ended(&grandchild), &error);
            }
            child.cancel();
            assert_same(&ended(&child), &error);
            assert_same(
                &child.within(LONG, async |_: Context| unreachable!()).await.unwrap_err(),
                &error,
            );
            assert_same(&child.sleep(ms(0)).await.unwrap_err(), &error);
            let (sender, receiver) = oneshot::channel();
            let handle = child.after_func(|| async { sender.send(()).unwrap() });
            receiver.await.unwrap();
            assert!(!handle.stop());
        }
        assert!(!token.is_cancelled());
    });
}

mod without_a_runtime {
    use super::*;

    fn assert_clear(text: &str) {
        assert!(text.contains("Tokio") && text.contains("runtime"), "not clear: {text}");
    }

    #[test]
    fn spawn_panics_with_the_reason() {
        let ctx = BACKGROUND.with_cancel();
        assert_clear(&panic_text(|| ctx.spawn(async {})));
        assert!(answer(&ctx).is_none());
        ctx.cancel();
        assert!(ended(&ctx).is_canceled());
        assert_clear(&panic_text(|| ctx.spawn(async {})));
    }

    #[test]
    fn after_func_panics_with_the_missing_driver() {
        let ctx = BACKGROUND.with_cancel();
        assert_clear(&panic_text(|| ctx.after_func(|| async { unreachable!() })));
        assert!(answer(&ctx).is_none());
        ctx.cancel();
        assert_clear(&panic_text(|| ctx.after_func(|| async { unreachable!() })));
        // A context that never ends needs no task, and therefore no runtime.
        BACKGROUND.after_func(|| async { unreachable!() });
    }

    /// A wait that panicked is removed from the tree. Other waits are not affected.
    #[test]
    fn a_wait_that_panicked_leaves_the_others() {
        let runtime = current_thread();
        let ctx = BACKGROUND.with_timeout(LONG);
        let (wakes, waker) = Wakes::new();
        let mut kept = Box::pin(ctx.done());
        {
            let _entered = runtime.enter();
            assert!(poll(kept.as_mut(), &waker).is_pending());
        }
        for _ in 0..10 {
            let (lost, lost_waker) = Wakes::new();
            assert_clear(&panic_text(|| poll(pin!(ctx.done()), &lost_waker)));
            drop(lost_waker);
            assert_eq!(Arc::strong_count(&lost), 1, "its waker was kept");
        }
        assert!(!ctx.is_done());
        ctx.cancel_with(Cause("all the same"));
        assert_eq!(wakes.count(), 1);
        assert_eq!(word(&ended(&ctx)), Some("all the same"));
    }

    /// A wait that is polled again by the same task, outside of a runtime or in one without a time driver, does not remain
    /// pending silently.
    #[test]
    fn a_wait_that_panicked_panics_again() {
        let without_timers = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for order in [[false, false], [false, true], [true, false], [true, true]] {
            let ctx = BACKGROUND.with_timeout(LONG);
            let (_wakes, waker) = Wakes::new();
            let mut wait = Box::pin(ctx.done());
            for inside in order {
                let _entered = inside.then(|| without_timers.enter());
                panic_text(|| poll(wait.as_mut(), &waker));
            }
            let error = paused().block_on(async { timeout(LONG * 2, wait).await.expect("no timer") });
            assert!(error.is_deadline_exceeded());
        }
    }

    /// The same for the first wait on a context, which registers the timer that later waits share.
    #[test]
    fn a_first_wait_that_panicked_does_not_lose_the_timer() {
        for tries in 0..3 {
            let ctx = BACKGROUND.with_timeout(LONG);
            let child = ctx.with_cancel();
            for _ in 0..tries {
                assert_clear(&panic_text(|| poll_once(child.done())));
            }
            let error = paused().block_on(async {
                timeout(LONG * 2, child.done()).await.expect("no timer is registered")
            });
            assert!(error.is_deadline_exceeded());
        }
    }
}

/// A cause that panics when it is formatted.
#[derive(Debug)]
struct PanicsOnDisplay;

impl fmt::Display for PanicsOnDisplay {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

impl std::error::Error for PanicsOnDisplay {}

/// Runs `f` with a subscriber, on this thread only, that formats every event.
fn with_formatting_subscriber<R>(f: impl FnOnce() -> R) -> R {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(std::io::sink)
        .finish();
    let _listening = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    f()
}

mod causes_that_panic {
    use super::*;

    #[test]
    fn end_a_tree_like_any_other() {
        for talkative in [false, true] {
            let check = || {
                let root = BACKGROUND.with_cancel();
                let child = root.with_cancel();
                let (wakes, waker) = Wakes::new();
                let mut waits = [root.done(), child.done(), child.done()].map(Box::pin);
                for wait in &mut waits {
                    assert!(poll(wait.as_mut(), &waker).is_pending());
                }
                // The panic may surface here, depending on the subscriber; nothing else may be affected.
                let _ = catch_unwind(AssertUnwindSafe(|| root.cancel_with(PanicsOnDisplay)));
                assert_eq!(wakes.count(), 3);
                for ctx in [&root, &child] {
                    assert!(ended(ctx).cause_as::<PanicsOnDisplay>().is_some());
                }
                for mut wait in waits {
                    assert!(poll(wait.as_mut(), &waker).is_ready());
                }
                root.cancel();
                assert!(root.with_cancel().is_done());
                assert_eq!(panic_text(|| ended(&root).to_string()), "unspeakable");
                assert!(format!("{:#?}", ended(&root)).contains("PanicsOnDisplay"));
            };
            if talkative { with_formatting_subscriber(check) } else { check() }
        }
    }

    #[test]
    fn of_a_deadline_do_not_affect_waiters() {
        for talkative in [false, true] {
            let check = || {
                paused().block_on(async {
                    let root = BACKGROUND.with_timeout_cause(ms(100), PanicsOnDisplay);
                    let child = root.with_cancel();
                    let waits: Vec<_> = (0..5)
                        .flat_map(|_| [&root, &child])
                        .map(|ctx| tokio::spawn(ctx.done_owned()))
                        .collect();
                    for wait in waits {
                        let error = wait.await.expect("the cause made a waiter panic");
                        assert!(error.cause_as::<PanicsOnDisplay>().is_some());
                    }
                    let ended_at_once = BACKGROUND.with_timeout_cause(ms(0), PanicsOnDisplay);
                    assert!(ended(&ended_at_once).is_deadline_exceeded());
                });
            };
            if talkative { with_formatting_subscriber(check) } else { check() }
        }
    }
}

/// Panics when woken, and counts how often.
struct PanicsWhenWoken(AtomicUsize);

impl PanicsWhenWoken {
    fn new() -> (Arc<PanicsWhenWoken>, Waker) {
        let wakes = Arc::new(PanicsWhenWoken(AtomicUsize::new(0)));
        (wakes.clone(), wakes.into())
    }
}

impl Wake for PanicsWhenWoken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("woken");
    }
}

mod wakers_that_panic {
    use super::*;

    /// The waker that panics is at every position among the others, at the root and below.
    #[test]
    fn do_not_prevent_other_waiters_from_being_woken() {
        for way in 0..3 {
            for bad_at in 0..6 {
                let scope = BACKGROUND.with_cancel();
                let root = scope.clone();
                let child = root.with_cancel();
                let grandchild = child.with_cancel();
                let (bad, bad_waker) = PanicsWhenWoken::new();
                let (wakes, waker) = Wakes::new();
                let contexts = [&root, &root, &child, &grandchild, &child, &grandchild];
                let mut waits = contexts.map(|ctx| Box::pin(ctx.done()));
                for (at, wait) in waits.iter_mut().enumerate() {
                    let waker = if at == bad_at { &bad_waker } else { &waker };
                    assert!(poll(wait.as_mut(), waker).is_pending());
                }
                let outcome = catch_unwind(AssertUnwindSafe(|| match way {
                    0 => scope.cancel(),
                    1 => scope.cancel_with(Cause("by way")),
                    _ => drop(scope),
                }));
                assert!(outcome.is_ok(), "the panic reached the call of cancel");
                assert_eq!(bad.0.load(Ordering::SeqCst), 1);
                assert_eq!(wakes.count(), 5, "panicking waker at {bad_at}");
                let error = ended(&root);
                for (ctx, mut wait) in contexts.into_iter().zip(waits) {
                    assert_same(&ended(ctx), &error);
                    assert!(poll(wait.as_mut(), &waker).is_ready());
                }
                assert!(grandchild.with_cancel().is_done());
            }
        }
    }

    #[test]
    fn may_be_several() {
        let root = BACKGROUND.with_cancel();
        let child = root.with_cancel();
        let (bad, bad_waker) = PanicsWhenWoken::new();
        let (wakes, waker) = Wakes::new();
        let mut waits: Vec<_> =
            (0..20).map(|at| Box::pin(if at % 2 == 0 { root.done() } else { child.done() })).collect();
        for (at, wait) in waits.iter_mut().enumerate() {
            assert!(poll(wait.as_mut(), if at % 3 == 0 { &bad_waker } else { &waker }).is_pending());
        }
        root.cancel();
        assert_eq!(bad.0.load(Ordering::SeqCst), 7);
        assert_eq!(wakes.count(), 13);
        assert!(root.is_done() && child.is_done());
    }

    /// A scope dropped by a panic ends its context; a second panic there would abort the process.
    #[test]
    fn do_not_abort_while_a_panic_unwinds() {
        let scope = BACKGROUND.with_cancel();
        let root = scope.clone();
        let (_bad, bad_waker) = PanicsWhenWoken::new();
        let (wakes, waker) = Wakes::new();
        let mut waits = [root.done(), root.done()].map(Box::pin);
        assert!(poll(waits[0].as_mut(), &bad_waker).is_pending());
        assert!(poll(waits[1].as_mut(), &waker).is_pending());
        let text = panic_text(|| {
            let _scope = scope;
            panic!("the first")
        });
        assert_eq!(text, "the first");
        assert_eq!(wakes.count(), 1);
        assert!(root.is_done());
    }

    /// The panicking waker is the only one, and is woken while another panic unwinds.
    #[test]
    fn may_be_the_only_one() {
        let scope = BACKGROUND.with_cancel();
        let root = scope.clone();
        let (bad, bad_waker) = PanicsWhenWoken::new();
        let mut wait = Box::pin(root.done());
        assert!(poll(wait.as_mut(), &bad_waker).is_pending());
        let text = panic_text(|| {
            let _scope = scope;
            panic!("the first")
        });
        assert_eq!(text, "the first");
        assert_eq!(bad.0.load(Ordering::SeqCst), 1);
        assert!(root.is_done());
    }

    /// Afterward the tree works as before: no lock is poisoned, and no count is wrong.
    #[test]
    fn leave_the_rest_of_the_tree_usable() {
        watched(|| {
            let root = BACKGROUND.with_cancel();
            for _ in 0..50 {
                let mut chain = vec![root.with_cancel()];
                for _ in 0..30 {
                    let next = chain.last().unwrap().with_cancel();
                    chain.push(next);
                }
                let (_bad, bad_waker) = PanicsWhenWoken::new();
                let mut wait = Box::pin(chain[30].done());
                assert!(poll(wait.as_mut(), &bad_waker).is_pending());
                chain[0].cancel();
                assert!(chain.iter().all(|ctx| ctx.is_done()));
                drop(wait);
            }
            assert!(answer(&root).is_none());
            let child = root.with_cancel();
            let waiter = thread::spawn({
                let child = child.clone();
                move || futures::executor::block_on(child.done())
            });
            root.cancel_with(Cause("still works"));
            assert_eq!(word(&waiter.join().unwrap()), Some("still works"));
        });
    }

    /// The deadline has passed, and a query detects this. The thread of the query then calls the wakers.
    #[test]
    fn called_by_a_query_leave_one_error() {
        let runtime = current_thread(); // not driven, so its timers do not fire
        let _entered = runtime.enter();
        // Retries with more time if the deadline passes before all waits are registered.
        for timeout in (2..12).map(|power| ms(1 << power)) {
            let root = BACKGROUND.with_timeout(timeout);
            let child = root.with_cancel();
            let (wakes, waker) = Wakes::new();
            let (_bad, bad_waker) = PanicsWhenWoken::new();
            let mut waits = [child.done(), root.done(), child.done()].map(Box::pin);
            let wakers = [&waker, &bad_waker, &waker];
            if waits.iter_mut().zip(wakers).any(|(wait, waker)| poll(wait.as_mut(), waker).is_ready()) {
                continue;
            }
            while Instant::now() < root.deadline().unwrap() {
                thread::yield_now();
            }
            let _ = catch_unwind(AssertUnwindSafe(|| child.is_done()));
            assert!(ended(&child).is_deadline_exceeded());
            assert_same(&ended(&child), &ended(&root));
            assert_eq!(wakes.count(), 2);
            return;
        }
        panic!("too slow, even with two seconds");
    }
}

mod functions_that_panic {
    use super::*;

    #[test]
    fn do_not_prevent_others_from_running() {
        on_both(|| async {
            let ctx = BACKGROUND.with_cancel();
            let child = ctx.with_cancel();
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
            let bad = ctx.after_func(|| async { panic!("in the function") });
            let (early, late) = (sender.clone(), sender.clone());
            let _one = ctx.after_func(move || async move { early.send(1).unwrap() });
            let _worse = ctx.after_func(|| -> std::future::Ready<()> { panic!("before its future") });
            let _two = child.after_func(move || async move { late.send(1).unwrap() });
            let wait = tokio::spawn(child.done_owned());
            tokio::task::yield_now().await;
            ctx.cancel_with(Cause("over"));
            drop(sender);
            assert_eq!(receiver.recv().await, Some(1));
            assert_eq!(receiver.recv().await, Some(1));
            assert_eq!(word(&wait.await.unwrap()), Some("over"));
            assert!(!bad.stop(), "it did start");
            assert_same(&ended(&child), &ended(&ctx));
            // Another function, on the ended context.
            let (again, ran) = oneshot::channel();
            let _third = ctx.after_func(|| async { again.send(()).unwrap() });
            ran.await.unwrap();
        });
    }
}

/// A value or cause whose drop panics. The panic surfaces where it is dropped, and nowhere else.
#[test]
fn a_value_or_cause_whose_drop_panics_leaves_the_tree_intact() {
    #[derive(Debug)]
    struct PanicsOnDrop;
    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("in drop");
            }
        }
    }
    impl fmt::Display for PanicsOnDrop {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("panics on drop")
        }
    }
    impl std::error::Error for PanicsOnDrop {}

    let root = BACKGROUND.with_cancel();
    let child = root.with_cancel();
    child.cancel();
    // Too late to have an effect, so it is dropped immediately.
    let text = panic_text(|| child.cancel_with(PanicsOnDrop));
    assert_eq!(text, "in drop");
    assert!(ended(&child).cause().is_none());

    let value = root.context().with_value(PanicsOnDrop);
    assert_eq!(panic_text(|| drop(value)), "in drop");
    assert!(answer(&root).is_none());
    root.cancel_with(Cause("fine"));
    assert_eq!(word(&ended(&root)), Some("fine"));
}
