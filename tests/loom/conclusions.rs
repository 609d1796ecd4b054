//! Permanent conclusions from what another thread is still doing.
//!
//! A bit or a link that one thread sees may be one step of another thread that has not finished. These models stop that
//! thread between its steps.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Wake, Waker};

use loom::thread;

use super::{SECOND, explore_exact};
use crate::sync;
use crate::{Context, Error, Shutdown};

/// Two threads derive a context with a deadline below the same parent. Once one of them has returned, the end of each ancestor
/// has a time, whatever the other one is doing, and is compared with the deadline.
#[test]
fn an_end_is_dated_once_a_deadline_is_below() {
    explore_exact(2, || {
        let root = Context::background().with_cancel();
        let parent = root.with_cancel().detach();
        let other = thread::spawn({
            let parent = parent.clone();
            move || drop(parent.with_timeout(2 * SECOND).detach())
        });
        let child = parent.with_timeout(SECOND);
        sync::tick();
        root.cancel();
        let error = child.err().expect("its deadline has passed");
        assert!(error.is_deadline_exceeded(), "{error}, after the deadline had passed");
        other.join().unwrap();
    });
}

/// A context asks for more time than is left, while its parent is canceled. The parent has ended, the context has not yet,
/// and there is not enough time in either case.
#[test]
fn time_is_short_while_the_parent_ends() {
    explore_exact(3, || {
        let timed = Context::background().with_timeout(SECOND);
        let (parent, guard) = timed.with_cancel().split();
        let ctx = parent.with_cancel().detach();
        assert!(ctx.token().expect("not the background").link());
        let ender = thread::spawn(move || guard.cancel());
        let short = ctx.require(2 * SECOND).expect_err("a second is left at most");
        assert!(short.set_at().is_some() || short.context_error().is_some_and(Error::is_canceled));
        ender.join().unwrap();
    });
}

/// Two threads cancel a context, and a third step makes the first of them lose. The time of the end is the one that the deadline
/// of the child was compared with.
#[test]
fn a_child_expires_before_the_time_of_its_parents_end() {
    explore_exact(2, || {
        let (parent, guard) = Context::background().with_timeout(5 * SECOND).split();
        let child = parent.with_timeout(SECOND);
        let first = thread::spawn({
            let canceler = guard.canceler();
            move || canceler.cancel()
        });
        // Fails if the parent has ended.
        child.token().expect("not the background").link();
        sync::tick();
        guard.cancel();
        first.join().unwrap();
        let [parent, child] = [&parent, child.context()].map(|ctx| ctx.err().expect("has ended"));
        let (ended_at, by) = (child.origin().ended_at(), parent.origin().ended_at());
        assert!(ended_at <= by, "{child}, but its parent had ended by then");
    });
}

/// Two threads force a shutdown. When either call returns, all work has been canceled.
#[test]
fn a_second_force_waits_for_the_first() {
    explore_exact(2, || {
        let shutdown = Shutdown::new(&Context::background());
        let work = shutdown.hard().with_cancel();
        assert!(work.token().expect("not the background").link());
        let first = thread::spawn({
            let shutdown = shutdown.clone();
            move || shutdown.force("first")
        });
        shutdown.force("second");
        assert!(work.is_done(), "outlives the call");
        first.join().unwrap();
    });
}

/// A runtime shuts down while a context is canceled. A wait in another runtime, which is not polled any more after the shutdown has
/// woken it, is woken by the end as well.
#[test]
fn a_shutdown_elsewhere_does_not_deregister_a_wait() {
    explore_exact(2, || {
        let (ctx, guard) = Context::background().with_timeout(2 * SECOND).split();
        let wakes = Arc::new(CallsAtEnd { ctx: ctx.clone(), count: AtomicUsize::new(0) });
        let mut wait = Box::pin(ctx.done_owned());
        let waker = Waker::from(wakes.clone());
        for runtime in [1, 2] {
            sync::enter_runtime(runtime);
            assert!(wait.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
        }
        let first = thread::spawn(|| {
            sync::enter_runtime(1);
            sync::fire_timers(true);
        });
        guard.cancel();
        first.join().unwrap();
        assert!(wakes.count.load(Ordering::Relaxed) > 0, "a lost wake-up");
        drop(wait);
        sync::fire_timers(true);
    });
}

/// A waker that counts the calls after the end of a context.
struct CallsAtEnd {
    ctx: Context,
    count: AtomicUsize,
}

impl Wake for CallsAtEnd {
    fn wake(self: Arc<Self>) {
        if self.ctx.token().is_some_and(|token| token.ended()) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The deadline of one parent of a merged context has passed, and nothing has noticed. Two threads cancel the other parent. The first
/// one closes the merged context last. When the second call returns, it has ended as well, by the deadline.
#[test]
fn a_second_cancel_returns_before_a_merged_context_is_closed() {
    explore_exact(2, || {
        let (parent, guard) = Context::background().with_cancel().split();
        let timed = Context::background().with_timeout(SECOND);
        let merged = parent.merge(&timed).detach();
        let below = merged.with_cancel().detach();
        assert!(below.token().expect("not the background").link());
        sync::tick();
        let first = thread::spawn({
            let canceler = guard.canceler();
            move || canceler.cancel()
        });
        guard.cancel();
        for ctx in [&below, &merged] {
            let error = ctx.err().expect("outlives the call");
            assert!(error.is_deadline_exceeded(), "{error}, after the deadline had passed");
        }
        first.join().unwrap();
        assert!(below.err().is_some_and(|error| error.is_deadline_exceeded()));
    });
}
