//! A `CancellationToken` that ends a context: its waker against queries, cancel and drop.
//!
//! The locks of tokio-util are those of std, and nothing of this crate runs under them. Loom explores this crate's side. It
//! does not see the order that these locks establish. Where that matters, loads are exact, and there is no model of a
//! `cancel()` of the token while it is being attached.

use loom::thread;
use tokio_util::sync::CancellationToken;

use super::{
    Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error, explore,
    explore_exact, final_error, memberships, registrations,
};
use crate::Context;

/// The token is canceled while its context and a child are queried. When `cancel()` returns, both have ended.
#[test]
fn foreign_cancel_against_query() {
    explore([4, 3], || {
        let foreign = CancellationToken::new();
        let ctx = Context::background().with_token(&foreign).detach();
        let all = chain(&ctx, 1);
        let tokens = WeakTokens::of(&all);
        let ender = thread::spawn({
            let all = all.clone();
            move || {
                foreign.cancel();
                assert_all_done(all.iter().rev());
            }
        });
        let seen = all[1].err();
        ender.join().unwrap();
        let error = common_error(&all);
        assert!(error.is_canceled());
        seen.iter().for_each(|seen| assert_same(seen, &error));
        drop((ctx, all));
        tokens.assert_dropped();
    });
}

/// The parent is canceled while a token is attached to its child.
#[test]
fn cancel_of_the_parent_against_binding() {
    explore([4, 1], || {
        let foreign = CancellationToken::new();
        let (parent, guard) = Context::background().with_cancel().split();
        let middle = chain(&parent, 1).remove(1);
        let ender = thread::spawn(move || guard.cancel_with("why"));
        let ctx = middle.with_token(&foreign).detach();
        let mut waiter = Waiter::on(&ctx);
        waiter.poll();
        ender.join().unwrap();
        let error = common_error([&parent, &middle, &ctx]);
        assert_eq!(cause_text(&error), "why");
        waiter.finish(&error);
        assert_eq!(memberships(&ctx), 0, "still registered with the token");
        let tokens = WeakTokens::of([&ctx]);
        foreign.cancel();
        assert_same(&error, &final_error(&ctx));
        drop((parent, middle, ctx));
        tokens.assert_dropped();
    });
}

/// The token and the parent of the context are canceled at once, while something waits below.
#[test]
fn foreign_cancel_against_cancel_of_the_parent() {
    explore_exact(3, || {
        let foreign = CancellationToken::new();
        let (parent, ends) = Context::background().with_cancel().split();
        let ctx = parent.with_token(&foreign).detach();
        let below = chain(&ctx, 1).remove(1);
        let waiter = Waiter::waiting_on(&below);
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                ends.cancel_with("why");
                final_error(&below)
            }
        });
        foreign.cancel();
        let mine = final_error(&below);
        assert_same(&mine, &ender.join().unwrap());
        assert_same(&mine, &final_error(&ctx));
        assert_eq!(cause_text(&final_error(&parent)), "why");
        waiter.finish(&mine);
        assert_eq!(memberships(&ctx), 0, "still registered with the token");
    });
}

/// The token and the context are canceled at once, with a linked context two levels below. When either call returns, all
/// of them have ended.
#[test]
fn foreign_cancel_against_cancel() {
    explore_exact(4, || {
        let foreign = CancellationToken::new();
        let scope = Context::background().with_token(&foreign);
        let all = chain(&scope, 2);
        let tokens = WeakTokens::of(&all);
        let waiter = Waiter::waiting_on(&all[2]);
        let ender = thread::spawn({
            let all = all.clone();
            move || {
                foreign.cancel();
                assert_all_done(all.iter().rev());
            }
        });
        scope.cancel_with("why");
        assert_all_done(all.iter().rev());
        ender.join().unwrap();
        waiter.finish(&common_error(&all));
        drop((scope, all));
        tokens.assert_dropped();
    });
}

/// The token is canceled while the last handle of the context is dropped. Nothing of the context is left behind, and nothing
/// is registered with the token.
#[test]
fn foreign_cancel_against_drop() {
    explore([6, 4], || {
        let foreign = CancellationToken::new();
        let parent = Context::background().with_cancel();
        let ctx = parent.with_token(&foreign).detach();
        let tokens = WeakTokens::of([&ctx]);
        let ender = thread::spawn({
            let foreign = foreign.clone();
            move || foreign.cancel()
        });
        drop(ctx);
        ender.join().unwrap();
        tokens.assert_dropped();
        assert_eq!(registrations(&parent), 0);
        assert!(foreign.is_cancelled() && !parent.is_done());
    });
}

/// The same with a scope, while another handle is being dropped.
#[test]
fn foreign_cancel_against_drop_of_the_scope() {
    explore_exact(5, || {
        let foreign = CancellationToken::new();
        let scope = Context::background().with_token(&foreign);
        let ctx = scope.clone();
        let tokens = WeakTokens::of([&ctx]);
        let ender = thread::spawn(move || foreign.cancel());
        drop(scope);
        let error = final_error(&ctx);
        ender.join().unwrap();
        assert_same(&error, &final_error(&ctx));
        drop(ctx);
        tokens.assert_dropped();
    });
}

/// Three threads cancel the token, cancel the context, and drop its last handle.
#[test]
fn foreign_cancel_against_cancel_against_drop() {
    explore_exact(4, || {
        let foreign = CancellationToken::new();
        let (ctx, guard) = Context::background().with_token(&foreign).split();
        let tokens = WeakTokens::of([&ctx]);
        let waiter = Waiter::waiting_on(&ctx);
        let outside = thread::spawn(move || foreign.cancel());
        let ender = thread::spawn(move || guard.cancel_with("why"));
        drop(ctx);
        let wait = waiter.drop_wait();
        outside.join().unwrap();
        ender.join().unwrap();
        wait.assert_dropped();
        tokens.assert_dropped();
    });
}

/// One token ends a context and its child, while one of them is canceled.
#[test]
fn one_token_for_parent_and_child() {
    explore_exact(3, || {
        let foreign = CancellationToken::new();
        let parent = Context::background().with_token(&foreign);
        let child = parent.with_token(&foreign).detach();
        let waiter = Waiter::waiting_on(&child);
        let ender = thread::spawn({
            let child = child.clone();
            move || {
                foreign.cancel();
                final_error(&child)
            }
        });
        parent.cancel_with("why");
        let mine = final_error(&child);
        assert_same(&mine, &ender.join().unwrap());
        waiter.finish(&mine);
        final_error(&parent);
        assert_eq!(
            [parent.context(), &child].map(memberships),
            [0, 0],
            "still registered with the token"
        );
    });
}
