//! Pulses: reports and looks at the same time, and looks that race other ends.

use loom::thread;

use super::{Roll, SECOND, all_done, explore, one_story, same, story, why};
use crate::Context;
use crate::sync::tick;

/// A report comes while another thread looks: whichever is first, it is not lost.
#[test]
fn report_against_look() {
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

/// A report comes while two threads look, one of them from below.
#[test]
fn report_against_two_looks() {
    explore([4, 3], || {
        let ctx = Context::background().with_idle(2 * SECOND).detach();
        let below = ctx.with_cancel().detach();
        let progress = ctx.progress();
        tick();
        let looker = thread::spawn(move || below.is_done());
        progress.report();
        assert!(!ctx.is_done() && !looker.join().unwrap());
        tick();
        assert!(!ctx.is_done(), "a report was lost");
    });
}

/// Two threads look when the limit has been exceeded: the context ends once.
#[test]
fn two_looks_at_once() {
    explore([5, 3], || {
        let ctx = Context::background().with_idle(SECOND).detach();
        let below = ctx.with_cancel().detach();
        let roll = Roll::of([&ctx, &below]);
        tick();
        let other = thread::spawn({
            let below = below.clone();
            move || story(&below)
        });
        let mine = story(&ctx);
        same(&mine, &other.join().unwrap());
        assert!(mine.is_deadline_exceeded());
        all_done([&ctx, &below]);
        drop((ctx, below));
        roll.is_gone();
    });
}

/// A look ends the context as its scope cancels it: one of them wins, everywhere.
#[test]
fn look_against_cancel() {
    explore([5, 3], || {
        let (ctx, guard) = Context::background().with_idle(SECOND).split();
        let below = ctx.with_cancel().detach();
        let roll = Roll::of([&ctx, &below]);
        tick();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let mine = one_story([&below, &ctx]);
        ender.join().unwrap();
        same(&mine, &story(&ctx));
        assert!(mine.is_deadline_exceeded() || why(&mine) == "why");
        drop((ctx, below));
        roll.is_gone();
    });
}

/// The context goes while another thread looks from below: nothing is left of it.
#[test]
fn look_against_drop() {
    explore([5, 3], || {
        let ctx = Context::background().with_idle(SECOND);
        let below = ctx.with_cancel().detach();
        let roll = Roll::of([ctx.context(), &below]);
        let dropper = thread::spawn(move || drop(ctx));
        tick();
        story(&below);
        dropper.join().unwrap();
        drop(below);
        roll.is_gone();
    });
}
