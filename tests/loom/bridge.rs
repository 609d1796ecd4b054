//! A `CancellationToken` that is canceled with a context.
//!
//! The locks of tokio-util are those of std, and nothing of this crate runs under them. Loom explores this crate's side.

use loom::thread;

use super::{WeakTokens, cause_text, chain, common_error, drop_elsewhere, explore, explore_exact};
use crate::Context;

/// A scope is dropped while the only other handle creates a token, and is dropped as well.
#[test]
fn token_created_against_drop_of_the_scope() {
    // Exact loads: loom does not see what the count of an `Arc` orders.
    explore_exact(8, || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let other = thread::spawn(move || ctx.cancellation_token());
        drop_elsewhere(scope).join().unwrap();
        assert!(other.join().unwrap().is_cancelled(), "the context has ended");
    });
}

/// A token is created while the context ends. It is canceled at once, or by the end.
fn token_against_cancel(levels: usize) {
    let (root, guard) = Context::background().with_cancel().split();
    let all = chain(&root, levels);
    let tokens = WeakTokens::of(&all);
    let ender = thread::spawn(move || guard.cancel_with("why"));
    let token = all[levels].cancellation_token();
    ender.join().unwrap();
    assert!(token.is_cancelled(), "its context has ended");
    assert_eq!(cause_text(&common_error(&all)), "why");
    drop((root, all));
    tokens.assert_dropped();
}

#[test]
fn token_created_against_cancel() {
    explore([8, 5], || token_against_cancel(0));
}

#[test]
fn token_created_against_cancel_two_levels_up() {
    explore([4, 1], || token_against_cancel(2));
}

/// Two threads create tokens of a context and of its parent at once. Then the context ends, and the token is canceled.
#[test]
fn two_tokens_created_at_once() {
    explore([3, 1], || {
        let root = Context::background().with_cancel();
        let child = chain(&root, 1).remove(1);
        let tokens = WeakTokens::of([&root, &child]);
        let other = thread::spawn({
            let child = child.clone();
            move || child.cancellation_token()
        });
        let [mine, parents] = [&child, &root].map(Context::cancellation_token);
        root.cancel_with("why");
        assert!(mine.is_cancelled() && parents.is_cancelled(), "the context has ended");
        assert!(other.join().unwrap().is_cancelled(), "the context has ended");
        common_error([&root, &child]);
        drop((root, child));
        tokens.assert_dropped();
    });
}

/// A context is dropped while a token of its parent is created. Nothing keeps the context alive.
#[test]
fn token_created_against_drop() {
    explore([8, 5], || {
        let root = Context::background().with_cancel();
        let child = chain(&root, 1).remove(1);
        let tokens = WeakTokens::of([&child]);
        let other = thread::spawn(move || child.cancellation_token());
        let mine = root.cancellation_token();
        let token = other.join().unwrap();
        tokens.assert_dropped();
        assert!(!mine.is_cancelled() && !token.is_cancelled());
        root.cancel();
        assert!(mine.is_cancelled(), "the context has ended");
        assert!(token.is_cancelled(), "it is the parent's now");
    });
}
