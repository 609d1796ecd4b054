//! A watch reads a tree while it is closed, dropped and linked. It changes nothing, and reports no end that does not happen.

use std::sync::{Arc, Weak};

use loom::thread;

use super::{
    Waiter, WeakTokens, chain, common_error, explore, explore_exact, facts, registrations, token,
};
use crate::context::Context;
use crate::sync::now;
use crate::token::Token;

/// Returns the tokens that are linked below a context, as a snapshot visits them: one child each time the lock is held.
fn below(ctx: &Context) -> Vec<Weak<Token>> {
    let (mut found, mut at) = (vec![Arc::downgrade(token(ctx))], 0);
    while at < found.len() {
        let parent = found[at].upgrade();
        let mut from = Some(0);
        while let (Some(parent), Some(place)) = (&parent, from) {
            from = parent.children(place, 1, &mut found);
        }
        // The strong handle may be the last one. No lock is held when it is dropped.
        if let Some(parent) = &parent {
            parent.view();
        }
        at += 1;
    }
    found
}

/// An end that is read while it propagates is the end that all queries report afterwards.
#[test]
fn reading_against_cancel() {
    explore([3, 2], || {
        let (root, guard) = Context::background().with_cancel().split();
        let all = chain(&root, 2);
        let waiter = Waiter::waiting_on(&all[2]);
        let ender = thread::spawn(move || guard.cancel_with("over"));
        let seen: Vec<_> = all.iter().map(|ctx| token(ctx).unnoticed_error(now())).collect();
        below(&root);
        ender.join().unwrap();
        let error = common_error(&all);
        waiter.finish(&error);
        for seen in seen.into_iter().flatten() {
            assert_eq!(facts(&seen), facts(&error));
        }
        for ctx in &all {
            let end = token(ctx).unnoticed_error(now()).expect("it has ended");
            assert_eq!(facts(&end), facts(&error));
        }
    });
}

/// A path that is linked in the meantime is returned once, or not yet.
#[test]
fn reading_against_linking() {
    explore([5, 4], || {
        let root = Context::background().with_cancel();
        let all = chain(&root, 2);
        let leaf = all[2].clone();
        let linker = thread::spawn(move || Waiter::waiting_on(&leaf));
        let (met, end) = (below(&root), token(&all[2]).unnoticed_error(now()));
        assert!(met.len() <= 3 && end.is_none());
        let waiter = linker.join().unwrap();
        let met = below(&root);
        assert!(met.iter().zip(&all).all(|(met, ctx)| met.as_ptr() == Arc::as_ptr(token(ctx))));
        assert_eq!(met.len(), 3);
        assert_eq!(token(&all[2]).view().waiters, 1);
        waiter.drop_wait().assert_dropped();
    });
}

/// A context that is dropped while it is read is dropped with its last handle, which may be that of the watch.
#[test]
fn reading_against_drop() {
    explore([6, 6], || {
        let root = Context::background().with_cancel();
        let all = chain(&root, 2);
        let tokens = WeakTokens::of(&all[1..]);
        let waiter = Waiter::waiting_on(&all[2]);
        let dropper = thread::spawn(move || {
            let wait = waiter.drop_wait();
            drop(all);
            wait
        });
        below(&root);
        dropper.join().unwrap().assert_dropped();
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
    });
}

/// A scope is dropped while a watch holds its token. Nothing is left behind.
#[test]
fn reading_against_drop_of_the_scope() {
    explore_exact(8, || {
        let root = Context::background().with_cancel();
        let child = root.with_cancel();
        let waiter = Waiter::waiting_on(&child);
        let tokens = WeakTokens::of([child.context()]);
        let dropper = thread::spawn(move || {
            let wait = waiter.drop_wait();
            drop(child);
            wait
        });
        below(&root);
        dropper.join().unwrap().assert_dropped();
        assert!(!root.is_done());
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
    });
}
