//! The latch of an after-func: `stop` and the function's start race to end it, and one of them does.

use std::panic::Location;
use std::sync::Arc;

use loom::thread;

use super::{Roll, Waiter, explore, story};
use crate::Context;
use crate::token::Token;

/// What the watching task does, but for the task: told of the end it starts, unless it was stopped.
fn run_if_told(mut waiter: Waiter, latch: &Token) -> (Waiter, bool) {
    let runs = waiter.poll() && latch.trip();
    (waiter, runs)
}

#[test]
fn stop_against_run() {
    explore([5, 3], || {
        let (ctx, guard) = Context::background().with_cancel().split();
        let roll = Roll::of([&ctx]);
        let latch = Token::new(None, None, Location::caller());
        let waiter = Waiter::on(&ctx);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let task = thread::spawn({
            let latch = latch.clone();
            move || run_if_told(waiter, &latch)
        });
        let stopped = latch.trip();
        ender.join().unwrap();
        let (mut waiter, mut ran) = task.join().unwrap();
        if waiter.told.is_none() {
            (waiter, ran) = run_if_told(waiter, &latch);
        }
        assert!(stopped != ran, "stopped: {stopped}, ran: {ran}");
        assert!(!latch.trip());
        assert_eq!(Arc::strong_count(&latch), 1);
        waiter.finish(&story(&ctx));
        drop(ctx);
        roll.is_gone();
    });
}

#[test]
fn three_stop_at_once() {
    explore([5, 3], || {
        let latch = Token::new(None, None, Location::caller());
        let others = [(); 2].map(|()| {
            let latch = latch.clone();
            thread::spawn(move || latch.trip())
        });
        let mine = latch.trip();
        let theirs = others.map(|other| other.join().unwrap());
        assert_eq!([mine, theirs[0], theirs[1]].iter().filter(|won| **won).count(), 1);
    });
}
