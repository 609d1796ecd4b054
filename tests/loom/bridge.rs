//! The borders to `CancellationToken`: what is cancelled with a context, and what cancels one.
//!
//! The tokens' own locks are std's, and held over nothing of ours, so that loom goes through our side
//! of it.

use loom::thread;
use tokio_util::sync::CancellationToken;

use super::{Roll, Waiter, chain, explore, one_story, same, story, why};
use crate::Context;

/// A scope goes while a token is asked for by the only other handle, which goes too.
#[test]
fn token_asked_for_against_drop_of_the_scope() {
    explore([4, 3], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let other = thread::spawn(move || ctx.cancellation_token());
        drop(scope);
        assert!(other.join().unwrap().is_cancelled(), "the context has ended");
    });
}

/// A token is asked for while the context ends: it is cancelled, then or at once.
fn token_against_cancel(levels: usize) {
    let (root, guard) = Context::background().with_cancel().split();
    let all = chain(&root, levels);
    let roll = Roll::of(&all);
    let ender = thread::spawn(move || guard.cancel_with("why"));
    let token = all[levels].cancellation_token();
    assert!(!token.is_cancelled() || root.is_done());
    ender.join().unwrap();
    assert!(token.is_cancelled(), "its context has ended");
    assert_eq!(why(&one_story(&all)), "why");
    drop((root, all));
    roll.is_gone();
}

#[test]
fn token_asked_for_against_cancel() {
    explore([4, 3], || token_against_cancel(0));
}

#[test]
fn token_asked_for_against_cancel_two_levels_up() {
    explore([4, 3], || token_against_cancel(2));
}

/// Two ask for the token of one context, and for that of its parent, at once; then it ends. Whoever
/// has a token and ends the context finds it cancelled.
#[test]
fn two_tokens_asked_for_at_once() {
    explore([3, 2], || {
        let root = Context::background().with_cancel();
        let child = chain(&root, 1).remove(1);
        let roll = Roll::of([&root, &child]);
        let other = thread::spawn({
            let child = child.clone();
            move || child.cancellation_token()
        });
        let [mine, parents] = [&child, &root].map(Context::cancellation_token);
        root.cancel_with("why");
        assert!(mine.is_cancelled() && parents.is_cancelled(), "the context has ended");
        assert!(other.join().unwrap().is_cancelled(), "the context has ended");
        one_story([&root, &child]);
        drop((root, child));
        roll.is_gone();
    });
}

/// A context goes while its token is asked for through its parent: nothing keeps it.
#[test]
fn token_asked_for_against_drop() {
    explore([4, 3], || {
        let root = Context::background().with_cancel();
        let child = chain(&root, 1).remove(1);
        let roll = Roll::of([&child]);
        let other = thread::spawn(move || child.cancellation_token());
        let mine = root.cancellation_token();
        let token = other.join().unwrap();
        roll.is_gone();
        assert!(!mine.is_cancelled() && !token.is_cancelled());
        root.cancel();
        assert!(mine.is_cancelled(), "the context has ended");
        assert!(token.is_cancelled(), "it is the parent's now");
    });
}

/// A foreign token is cancelled while the context it ends is asked, above and below.
#[test]
fn foreign_token_against_asking() {
    explore([4, 3], || {
        let foreign = CancellationToken::new();
        let ctx = Context::background().with_token(&foreign).detach();
        let all = chain(&ctx, 1);
        let roll = Roll::of(&all);
        let ender = thread::spawn({
            let (foreign, ctx) = (foreign.clone(), ctx.clone());
            move || {
                foreign.cancel();
                story(&ctx)
            }
        });
        if all[1].is_done() {
            one_story(&all);
        }
        let error = ender.join().unwrap();
        assert!(error.is_canceled());
        same(&error, &one_story(&all));
        drop((ctx, all));
        roll.is_gone();
    });
}

/// A foreign token is cancelled while the context's parent is, and while someone waits below.
#[test]
fn foreign_token_against_cancel_of_the_parent() {
    explore([4, 2], || {
        let foreign = CancellationToken::new();
        let (parent, ends) = Context::background().with_cancel().split();
        let ctx = parent.with_token(&foreign).detach();
        let below = chain(&ctx, 1).remove(1);
        let mut waiter = Waiter::on(&below);
        assert!(!waiter.poll());
        let ender = thread::spawn({
            let below = below.clone();
            move || {
                ends.cancel_with("why");
                story(&below)
            }
        });
        foreign.cancel();
        let mine = story(&below);
        same(&mine, &ender.join().unwrap());
        same(&mine, &story(&ctx));
        assert_eq!(why(&story(&parent)), "why");
        waiter.finish(&mine);
    });
}
