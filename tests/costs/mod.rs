//! What an operation costs: how many locks it takes, and how often it reads the clock. These are counted and not timed, so
//! that a step that has become superfluous, or a shortcut that is no longer taken, fails a test.
//!
//! Allocations are counted in `tests/p10_no_leaks.rs`, and instructions in `benches/instructions`.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{self, Wake, Waker};
use std::thread::LocalKey;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::advance;

use crate::sync::meter::{CLOCK_READS, LOCKS};
use crate::token::Token;
use crate::{CancelScope, Context, Done};

const BACKGROUND: &Context = &Context::background();
const LONG: Duration = Duration::from_secs(100);
/// Every this many polls or waits, the clock is read.
const CLOCK_INTERVAL: usize = 64;

fn counted<R>(counter: &'static LocalKey<Cell<usize>>, f: impl FnOnce() -> R) -> usize {
    let before = counter.get();
    // The drop of the result is not counted.
    let _kept = f();
    counter.get() - before
}

fn locks<R>(f: impl FnOnce() -> R) -> usize {
    counted(&LOCKS, f)
}

fn clock_reads<R>(f: impl FnOnce() -> R) -> usize {
    counted(&CLOCK_READS, f)
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn token(ctx: &Context) -> &Arc<Token> {
    ctx.token().expect("not the background")
}

/// Returns `levels` contexts, each below the one before, and the first below `top`.
fn chain(top: &Context, levels: usize) -> Vec<Context> {
    let mut chain: Vec<Context> = Vec::new();
    for _ in 0..levels {
        let next = chain.last().unwrap_or(top).with_cancel().detach();
        chain.push(next);
    }
    chain
}

fn poll(wait: Pin<&mut Done<'_>>, waker: &Waker) -> bool {
    wait.poll(&mut task::Context::from_waker(waker)).is_ready()
}

fn poll_once(ctx: &Context) -> bool {
    poll(pin!(ctx.done()), Waker::noop())
}

/// A waker that differs from all others.
fn waker() -> Waker {
    struct Nothing(#[expect(dead_code, reason = "its address is the difference")] u8);
    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }
    Arc::new(Nothing(0)).into()
}

mod locks {
    use super::*;

    #[test]
    fn none_to_derive_query_and_drop() {
        let root = BACKGROUND.with_cancel();
        let derive: [fn(&Context) -> CancelScope; 2] =
            [|ctx| ctx.with_cancel(), |ctx| ctx.with_timeout(LONG)];
        for derive in derive {
            assert_eq!(locks(|| drop(derive(&root))), 0);
            let (a, b) = (derive(&root), derive(&root));
            assert_eq!(locks(|| (a.is_done(), a.err(), a.check(), a.remaining())), 0);
            assert_eq!(locks(|| a.cancel()), 0);
            assert_eq!(locks(|| (a.is_done(), a.err())), 0);
            assert_eq!(locks(|| drop(a)), 0);
            let (ctx, guard) = b.split();
            assert_eq!(locks(|| drop(guard)), 0);
            assert!(ctx.is_done());
        }
    }

    #[test]
    fn one_for_each_list_that_a_wait_enters_and_leaves() {
        let root = BACKGROUND.with_cancel();
        let ctx = root.with_cancel();
        let (one, two) = (waker(), waker());
        let mut wait = Box::pin(ctx.done());
        assert_eq!(locks(|| poll(wait.as_mut(), &one)), 2, "linked, and registered");
        assert_eq!(locks(|| poll(wait.as_mut(), &one)), 0, "polled again by the same task");
        assert_eq!(locks(|| poll(wait.as_mut(), &two)), 1, "polled by another task");
        let mut second = Box::pin(ctx.done());
        assert_eq!(locks(|| poll(second.as_mut(), &two)), 1, "the context is linked");
        assert_eq!(locks(|| drop(second)), 1);
        assert_eq!(locks(|| drop(ctx.done())), 0, "a wait that was not polled");
        assert_eq!(locks(|| root.cancel()), 2, "the root, and the child");
        assert_eq!(locks(|| assert!(poll(wait.as_mut(), &two))), 0, "woken");
        assert_eq!(locks(|| drop(wait)), 0, "the end has taken the waker");
        assert_eq!(locks(|| drop(ctx)), 0, "and the child from the list");
    }

    #[test]
    fn one_each_for_the_bucket_and_the_token_of_a_deadline() {
        let runtime = paused();
        let _entered = runtime.enter();
        let ctxs = [(); 2].map(|()| BACKGROUND.with_timeout(LONG));
        let mut waits = ctxs.each_ref().map(|ctx| Box::pin(ctx.done()));
        assert!(!poll(waits[0].as_mut(), Waker::noop()));
        assert_eq!(locks(|| poll(waits[1].as_mut(), Waker::noop())), 2, "the bucket exists");
        assert_eq!(locks(|| poll(waits[1].as_mut(), Waker::noop())), 0);
        let mut second = Box::pin(ctxs[1].done());
        assert_eq!(locks(|| poll(second.as_mut(), Waker::noop())), 1, "it is in the bucket");
    }

    #[test]
    fn none_to_close_a_path_without_waits() {
        let root = BACKGROUND.with_cancel();
        let path = chain(&root, 10);
        root.cancel();
        assert_eq!(locks(|| assert!(path[9].is_done())), 0);
        assert_eq!(locks(|| path[4].err()), 0);
    }

    /// Every 32nd level has a copy of the error, which is under the lock. The others find it above.
    #[test]
    fn at_most_one_to_read_an_error_at_any_depth() {
        let root = BACKGROUND.with_cancel();
        let path = chain(&root, 100);
        root.cancel();
        assert!(path[99].is_done());
        for (above, ctx) in path.iter().enumerate() {
            let expected = usize::from(above + 1 >= 32);
            assert_eq!(locks(|| ctx.err()), expected, "level {}", above + 1);
        }
    }
}

mod clock_reads {
    use super::*;

    #[test]
    fn none_without_a_deadline() {
        let root = BACKGROUND.with_cancel();
        let ctx = root.with_cancel();
        assert_eq!(clock_reads(|| (ctx.is_done(), poll_once(&ctx), ctx.err())), 0);
        assert_eq!(clock_reads(|| root.cancel()), 0, "nothing can be compared with this end");
        assert_eq!(clock_reads(|| ctx.is_done()), 0);
        assert_eq!(clock_reads(|| [ctx.err(), ctx.err()]), 1, "the first query of the error dates it");
        let (root, timed) = (BACKGROUND.with_cancel(), BACKGROUND.with_cancel());
        let _below = timed.with_timeout(LONG);
        assert_eq!([&root, &timed].map(|ctx| clock_reads(|| ctx.cancel())), [0, 1]);
    }

    /// A wait is polled again and again, or waits are made again and again, by a task that never yields.
    #[test]
    fn few_in_a_loop_that_waits_for_a_far_deadline() {
        let runtime = paused();
        let _entered = runtime.enter();
        let ctx = BACKGROUND.with_timeout(LONG);
        let mut wait = Box::pin(ctx.done());
        poll(wait.as_mut(), Waker::noop());
        let rounds = 10 * CLOCK_INTERVAL;
        let again = || (0..rounds).for_each(|_| assert!(!poll(wait.as_mut(), Waker::noop())));
        assert_eq!(clock_reads(again), 10);
        assert_eq!(clock_reads(|| (0..rounds).for_each(|_| assert!(!poll_once(&ctx)))), 10);
    }

    /// Both loops notice that the deadline has passed, although no timer fires.
    #[test]
    fn enough_in_a_loop_to_see_the_deadline() {
        let runtime = paused();
        let _entered = runtime.enter();
        for is_made_again in [false, true] {
            let ctx = BACKGROUND.with_timeout(LONG);
            let mut wait = Box::pin(ctx.done());
            assert!(!poll(wait.as_mut(), Waker::noop()));
            // Without running the runtime's timers.
            let _ready = pin!(advance(2 * LONG)).poll(&mut task::Context::from_waker(Waker::noop()));
            let ended = (0..CLOCK_INTERVAL).position(|_| match is_made_again {
                true => poll_once(&ctx),
                false => poll(wait.as_mut(), Waker::noop()),
            });
            assert!(ended.is_some(), "made again: {is_made_again}");
        }
    }
}

/// A query walks up at most 32 levels. Beyond that, it links the path, and the next one is short.
#[test]
fn a_long_walk_links_the_path() {
    for (levels, links) in [(1, false), (32, false), (33, true), (40, true)] {
        let root = BACKGROUND.with_cancel();
        let path = chain(&root, levels);
        assert!(!path[levels - 1].is_done());
        let is_linked = levels > 1 && token(&path[levels - 2]).is_linked();
        assert_eq!(is_linked, links, "{levels} levels");
    }
}

/// A wait that leaves the list is not woken, and enters again when it is polled.
#[cfg(all(feature = "tower", feature = "watch"))]
#[test]
fn a_wait_that_leaves_has_no_waker_in_the_list() {
    use crate::context::done::Wait;

    let ctx = BACKGROUND.with_cancel();
    let mut wait = Box::pin(Wait::new(ctx.context()));
    for _ in 0..2 {
        assert!(wait.as_mut().poll(&mut task::Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(token(&ctx).waiters(), 1);
        wait.remove_waker();
        assert_eq!(token(&ctx).waiters(), 0);
    }
    ctx.cancel();
    let error = wait.as_mut().poll(&mut task::Context::from_waker(Waker::noop()));
    assert!(matches!(error, task::Poll::Ready(error) if error.is_canceled()));
}
