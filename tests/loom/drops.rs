//! An end against the drop of a context that it should reach. Nothing is left behind.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;

use super::{
    SECOND, Waiter, WeakTokens, assert_same, cause_text, chain, common_error, drop_elsewhere, explore,
    final_error, registrations, token,
};
use crate::{Canceler, Context};

/// A child and its waiter are dropped while the root ends.
#[test]
fn cancel_against_drop_of_a_waiting_child() {
    explore([6, 5], || {
        let (root, guard) = Context::background().with_cancel().split();
        let child = root.with_cancel().detach();
        let tokens = WeakTokens::of([&root, &child]);
        let mut waiter = Waiter::on(&child);
        assert!(!waiter.poll());
        let ender = thread::spawn(move || guard.cancel_with("why"));
        drop(child);
        let wait = waiter.drop_wait();
        ender.join().unwrap();
        assert_eq!(cause_text(&final_error(&root)), "why");
        wait.assert_dropped();
        drop(root);
        tokens.assert_dropped();
    });
}

/// Two children are dropped at once. They are removed from the list of the root, which does not end.
#[test]
fn drop_of_two_children_at_once() {
    explore([6, 4], || {
        let root = Context::background().with_cancel();
        let pair = [root.with_cancel(), root.with_cancel()].map(|scope| {
            let child = scope.detach();
            Waiter::waiting_on(&child).drop_wait().assert_dropped();
            child
        });
        let tokens = WeakTokens::of(&pair);
        assert_eq!(registrations(&root), 2);
        let [one, two] = pair;
        let dropper = thread::spawn(move || drop(one));
        drop(two);
        dropper.join().unwrap();
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
        assert!(!root.is_done());
    });
}

/// A child is dropped while another child of the same parent is linked for the first time.
#[test]
fn drop_of_a_child_against_link_of_another() {
    explore([6, 4], || {
        let root = Context::background().with_cancel();
        let all = chain(&root, 1);
        let (one, two) = (chain(&all[1], 1).remove(1), chain(&all[1], 1).remove(1));
        Waiter::waiting_on(&one).drop_wait().assert_dropped();
        let dropper = thread::spawn(move || drop(one));
        let mut waiter = Waiter::on(&two);
        assert!(!waiter.poll());
        dropper.join().unwrap();
        assert_eq!(registrations(&root), 1);
        assert_eq!(registrations(&all[1]), 1);
        root.cancel_with("why");
        waiter.finish(&common_error(all.iter().chain([&two])));
    });
}

/// The last handle of the parent is dropped while the root ends. The end still reaches the child.
#[test]
fn cancel_against_drop_of_the_parent() {
    explore([8, 7], || {
        let (root, guard) = Context::background().with_cancel().split();
        let parent = root.with_cancel().detach();
        let child = parent.with_cancel().detach();
        let tokens = WeakTokens::of([&root, &parent, &child]);
        let mut waiter = Waiter::on(&child);
        assert!(!waiter.poll());
        let ender = thread::spawn(move || {
            guard.cancel_with("why");
            drop(guard);
        });
        drop(parent);
        waiter.poll();
        ender.join().unwrap();
        let error = common_error([&root, &child]);
        waiter.finish(&error);
        drop((root, child));
        tokens.assert_dropped();
    });
}

/// A thread drops a whole branch, from the parent to the child, while the root ends.
#[test]
fn cancel_against_drop_of_a_whole_branch() {
    explore([6, 5], || {
        let (root, guard) = Context::background().with_cancel().split();
        let mut all = chain(&root, 2);
        let tokens = WeakTokens::of(&all);
        Waiter::waiting_on(&all[2]).drop_wait().assert_dropped();
        let ender = thread::spawn(move || guard.cancel_with("why"));
        drop(all.remove(1));
        drop(all.remove(1));
        ender.join().unwrap();
        assert_eq!(cause_text(&final_error(&root)), "why");
        drop((root, all));
        tokens.assert_dropped();
    });
}

/// Two threads drop two branches, whose common parent has no other handle. One of them drops the parent.
#[test]
fn drop_of_two_branches_with_a_parent_in_common() {
    explore([6, 4], || {
        let root = Context::background().with_cancel();
        let mut all = chain(&root, 1);
        let [one, two] = [(); 2].map(|()| chain(&all[1], 1).remove(1));
        let tokens = WeakTokens::of([&all[1], &one, &two]);
        [&one, &two]
            .into_iter()
            .for_each(|child| Waiter::waiting_on(child).drop_wait().assert_dropped());
        all.truncate(1);
        let dropper = thread::spawn(move || drop(one));
        drop(two);
        dropper.join().unwrap();
        assert_eq!(registrations(&root), 0);
        tokens.assert_dropped();
    });
}

/// A scope is dropped while a canceler of the same context is used. There is one end.
#[test]
fn drop_of_the_scope_against_cancel() {
    explore([3, 1], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let canceler = scope.canceler();
        let ender = thread::spawn({
            let ctx = ctx.clone();
            move || {
                canceler.cancel_with("why");
                final_error(&ctx)
            }
        });
        drop_elsewhere(scope).join().unwrap();
        let mine = final_error(&ctx);
        let theirs = ender.join().unwrap();
        assert_same(&mine, &theirs);
        assert_same(&mine, &final_error(&ctx));
    });
}

/// The same without a cause, so that no clock is read.
#[test]
fn drop_of_the_scope_against_plain_cancel() {
    explore([3, 2], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let canceler = scope.canceler();
        let ender = thread::spawn({
            let ctx = ctx.clone();
            move || {
                canceler.cancel();
                final_error(&ctx)
            }
        });
        drop_elsewhere(scope).join().unwrap();
        let mine = final_error(&ctx);
        assert_same(&mine, &ender.join().unwrap());
    });
}

/// A scope is dropped while a child is derived from the only other handle. The child ends in any case.
#[test]
fn drop_of_the_scope_against_derive_from_its_clone() {
    explore([8, 4], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let other = thread::spawn(move || {
            let child = ctx.with_cancel().detach();
            drop(ctx);
            let mut waiter = Waiter::on(&child);
            waiter.poll();
            (child, waiter)
        });
        drop_elsewhere(scope).join().unwrap();
        let (child, waiter) = other.join().unwrap();
        waiter.finish(&final_error(&child));
        let tokens = WeakTokens::of([&child]);
        drop(child);
        tokens.assert_dropped();
    });
}

/// A scope is dropped while the only other handle is cloned and dropped. The clone has ended.
#[test]
fn drop_of_the_scope_against_clone() {
    explore([7, 8], || {
        let scope = Context::background().with_cancel();
        let ctx = scope.clone();
        let other = thread::spawn(move || {
            let clone = ctx.clone();
            drop(ctx);
            let seen = clone.err();
            (clone, seen)
        });
        drop_elsewhere(scope).join().unwrap();
        let (clone, seen) = other.join().unwrap();
        let error = final_error(&clone);
        seen.iter().for_each(|seen| assert_same(seen, &error));
        let tokens = WeakTokens::of([&clone]);
        drop(clone);
        tokens.assert_dropped();
    });
}

/// A scope is dropped while the only other handle, which waits, is dropped. Nothing is left behind.
#[test]
fn drop_of_the_scope_against_drop_of_a_waiter() {
    explore([7, 7], || {
        let scope = Context::background().with_cancel();
        let tokens = WeakTokens::of([scope.context()]);
        let waiter = Waiter::waiting_on(&scope);
        let other = thread::spawn(move || waiter.drop_wait());
        drop_elsewhere(scope).join().unwrap();
        other.join().unwrap().assert_dropped();
        tokens.assert_dropped();
    });
}

/// A scope without other handles is dropped, and removed from the list of its parent, while the parent ends.
#[test]
fn drop_of_an_unshared_scope_against_cancel_of_the_parent() {
    explore([6, 5], || {
        let (parent, ends) = Context::background().with_cancel().split();
        let scope = parent.with_cancel();
        let tokens = WeakTokens::of([&parent, scope.context()]);
        Waiter::waiting_on(&scope).drop_wait().assert_dropped();
        let ender = thread::spawn(move || ends.cancel_with("why"));
        drop(scope);
        ender.join().unwrap();
        assert_eq!(cause_text(&final_error(&parent)), "why");
        drop(parent);
        tokens.assert_dropped();
    });
}

/// A guard is dropped while its context is linked, and while the parent ends.
#[test]
fn drop_of_the_guard_against_link_against_cancel_of_the_parent() {
    explore([3, 0], || {
        let (parent, ends) = Context::background().with_cancel().split();
        let (child, guard) = parent.with_cancel().split();
        let tokens = WeakTokens::of([&parent, &child]);
        let mut waiter = Waiter::on(&child);
        let ender = thread::spawn(move || ends.cancel_with("why"));
        let dropper = thread::spawn(move || drop(guard));
        waiter.poll();
        ender.join().unwrap();
        dropper.join().unwrap();
        assert_eq!(cause_text(&final_error(&parent)), "why");
        waiter.finish(&final_error(&child));
        drop((parent, child));
        tokens.assert_dropped();
    });
}

/// A cause whose drop cancels a context, like foreign code, and is counted.
struct CancelingCause(Canceler, Arc<AtomicUsize>);

impl fmt::Display for CancelingCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancels")
    }
}

impl fmt::Debug for CancelingCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelingCause")
    }
}

impl std::error::Error for CancelingCause {}

impl Drop for CancelingCause {
    fn drop(&mut self) {
        self.0.cancel();
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// The last handle of a linked child is dropped while the end of the parent holds the child as well. A cause that is dropped
/// with it is dropped once, and while no lock is held and no token is `CLOSING`: its drop waits until the parent is closed.
fn drop_of_the_last_handle_against_the_parents_end(child: fn(&Context, CancelingCause) -> Context) {
    let parent = Context::background().with_cancel();
    let drops = Arc::new(AtomicUsize::new(0));
    let sibling = Waiter::waiting_on(&chain(&parent, 1)[1]);
    let child = child(&parent, CancelingCause(parent.canceler(), drops.clone()));
    let tokens = WeakTokens::of([parent.context(), &child]);
    assert!(token(&child).is_linked());
    let ender = thread::spawn({
        let canceler = parent.canceler();
        move || canceler.cancel()
    });
    // Loom does not order the count of an `Arc`, but these loads: that of the parent against the whole end, and that of the
    // child against the steps in which the end holds it.
    let _ended = [token(&parent), token(&child)].map(|token| token.ended());
    drop(child);
    ender.join().unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    sibling.finish(&final_error(&parent));
    drop(parent);
    tokens.assert_dropped();
}

#[test]
fn drop_of_an_ended_child_against_the_parents_end() {
    explore([6, 4], || {
        drop_of_the_last_handle_against_the_parents_end(|parent, cause| {
            let scope = parent.with_cancel();
            assert!(token(&scope).link());
            scope.cancel_with(cause);
            scope.detach()
        });
    });
}

#[test]
fn drop_of_a_child_with_a_preset_cause_against_the_parents_end() {
    explore([6, 4], || {
        drop_of_the_last_handle_against_the_parents_end(|parent, cause| {
            let child = parent.with_timeout_cause(SECOND, cause).detach();
            assert!(token(&child).link());
            child
        });
    });
}

/// The cause is that of the second parent, of which the merged context has the last handle.
#[test]
fn drop_of_a_merged_child_against_the_parents_end() {
    explore([6, 4], || {
        drop_of_the_last_handle_against_the_parents_end(|parent, cause| {
            let merged = parent.merge(&Context::background().with_timeout_cause(SECOND, cause).detach());
            merged.cancel();
            merged.detach()
        });
    });
}
