//! Idle limits: reports against checks, and checks against other ends.

use loom::thread;

use super::{
    SECOND, WeakTokens, assert_all_done, assert_same, cause_text, explore, final_error, overdue_error,
};
use crate::Context;
use crate::sync::tick;

/// A thread reports progress while another one runs a check. The report is not lost.
#[test]
fn report_against_check() {
    explore([6, 4], || {
        let ctx = Context::background().with_idle(2 * SECOND).detach();
        let progress = ctx.progress();
        let reporter = thread::spawn(move || progress.report());
        tick();
        assert!(!ctx.is_done());
        reporter.join().unwrap();
        tick();
        assert!(!ctx.is_done(), "a report was lost");
        tick();
        tick();
        assert!(ctx.is_done());
    });
}

/// A thread reports progress while two others run checks, one of them in a query of a child.
#[test]
fn report_against_two_checks() {
    explore([4, 4], || {
        let ctx = Context::background().with_idle(2 * SECOND).detach();
        let below = ctx.with_cancel().detach();
        let progress = ctx.progress();
        tick();
        let checker = thread::spawn(move || below.is_done());
        progress.report();
        assert!(!ctx.is_done() && !checker.join().unwrap());
        tick();
        assert!(!ctx.is_done(), "a report was lost");
    });
}

/// Two threads run checks when the limit is exceeded. The context ends once.
#[test]
fn two_checks_at_once() {
    explore([4, 2], || {
        let ctx = Context::background().with_idle(SECOND).detach();
        let below = ctx.with_cancel().detach();
        let tokens = WeakTokens::of([&ctx, &below]);
        tick();
        let other = thread::spawn({
            let below = below.clone();
            move || overdue_error(&below)
        });
        let mine = overdue_error(&ctx);
        assert_same(&mine, &other.join().unwrap());
        assert!(mine.is_deadline_exceeded());
        assert_all_done([&ctx, &below]);
        drop((ctx, below));
        tokens.assert_dropped();
    });
}

/// A check ends the context while its scope cancels it. One of them wins, and all queries agree.
#[test]
fn check_against_cancel() {
    explore([4, 3], || {
        let (ctx, guard) = Context::background().with_idle(SECOND).split();
        let below = ctx.with_cancel().detach();
        let tokens = WeakTokens::of([&ctx, &below]);
        tick();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let mine = overdue_error(&below);
        assert_same(&mine, &overdue_error(&ctx));
        ender.join().unwrap();
        assert_same(&mine, &final_error(&ctx));
        assert!(mine.is_deadline_exceeded() || cause_text(&mine) == "why");
        drop((ctx, below));
        tokens.assert_dropped();
    });
}

/// The context is dropped while a query of a child runs a check. Nothing is left behind.
#[test]
fn check_against_drop() {
    explore([5, 3], || {
        let ctx = Context::background().with_idle(SECOND);
        let below = ctx.with_cancel().detach();
        let tokens = WeakTokens::of([ctx.context(), &below]);
        let dropper = thread::spawn(move || drop(ctx));
        tick();
        overdue_error(&below);
        dropper.join().unwrap();
        drop(below);
        tokens.assert_dropped();
    });
}
