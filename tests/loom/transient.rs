//! The state in which an ancestor is `CLOSING`, and a linked context below it has not been closed yet.
//!
//! One thread cancels the root. Another one links the context in the middle, from a leaf of its own. Meanwhile, the third one
//! uses a second leaf, whose path is refused, linked, or has been linked by the other thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;
use tokio_util::sync::CancellationToken;

use super::after::{after, poll_woken, runtime};
use super::{
    SECOND, Waiter, WeakTokens, assert_all_done, assert_same, cause_text, chain, common_error,
    explore_exact, final_error, in_runtime, memberships, overdue_error, registrations, shut_down,
};
use crate::Context;
use crate::sync::{enter_runtime, tick};

/// All contexts, when the root has ended, and the wait of the thread that linked.
struct Ended {
    all: Vec<Context>,
    waiter: Waiter,
}

/// Calls `f` with a leaf and its sibling, while the root ends and another thread waits on the sibling for the first time.
fn while_the_root_ends<T>(f: impl FnOnce(&Context, &Context) -> T) -> (T, Ended) {
    let (root, guard) = Context::background().with_cancel().split();
    let middle = chain(&root, 1).remove(1);
    let [mine, other] = [(); 2].map(|()| chain(&middle, 1).remove(1));
    let mut waiter = Waiter::on(&other);
    let linker = thread::spawn(move || {
        waiter.poll();
        waiter
    });
    let ender = thread::spawn({
        let leaves = [mine.clone(), other.clone()];
        move || {
            // Takes no lock, unless the root is linked to a child.
            guard.cancel();
            assert_all_done(&leaves);
        }
    });
    let result = f(&mine, &other);
    ender.join().unwrap();
    let waiter = linker.join().unwrap();
    (result, Ended { all: vec![root, middle, mine, other], waiter })
}

impl Ended {
    /// Checks and drops all of them.
    fn finish(self) {
        let error = common_error(&self.all);
        assert!(error.is_canceled());
        self.waiter.finish(&error);
        let tokens = WeakTokens::of(&self.all);
        drop(self.all);
        tokens.assert_dropped();
    }
}

/// A wait that moves to another task is woken there, or is over.
#[test]
fn wait_changes_task_while_the_root_ends() {
    explore_exact(2, || {
        let (waiter, ended) = while_the_root_ends(|leaf, _| {
            let mut waiter = Waiter::on(leaf);
            waiter.poll();
            waiter.change_task();
            waiter.poll();
            waiter
        });
        waiter.finish(&common_error(&ended.all));
        ended.finish();
    });
}

/// A wait on a child that is derived in the meantime is woken, or over at once.
#[test]
fn derive_and_wait_while_the_root_ends() {
    explore_exact(2, || {
        let ((child, waiter), ended) = while_the_root_ends(|leaf, _| {
            let child = chain(leaf, 1).remove(1);
            let mut waiter = Waiter::on(&child);
            waiter.poll();
            (child, waiter)
        });
        waiter.finish(&common_error(ended.all.iter().chain([&child])));
        drop(child);
        ended.finish();
    });
}

/// A query that walks up far links the path. A wait after it is woken, or over at once.
#[test]
fn long_walk_and_wait_while_the_root_ends() {
    explore_exact(2, || {
        let ((below, waiter), ended) = while_the_root_ends(|leaf, _| {
            let below = chain(leaf, 3);
            let has_ended = below[3].is_done();
            let mut waiter = Waiter::on(&below[3]);
            assert!(waiter.poll() || !has_ended, "two answers");
            (below, waiter)
        });
        waiter.finish(&common_error(ended.all.iter().chain(&below)));
        drop(below);
        ended.finish();
    });
}

/// A merged context ends with the root above either of its parents, and is removed from the list of the one that has not
/// ended.
fn merge(of: fn(leaf: &Context, sibling: &Context, apart: &Context) -> Context) {
    let apart = Context::background().with_cancel().detach();
    let ((both, waiter), ended) = while_the_root_ends(|leaf, sibling| {
        let both = of(leaf, sibling, &apart);
        let mut waiter = Waiter::on(&both);
        waiter.poll();
        (both, waiter)
    });
    waiter.finish(&common_error(ended.all.iter().chain([&both])));
    drop(both);
    assert!(!apart.is_done());
    assert_eq!(registrations(&apart), 0);
    ended.finish();
}

#[test]
fn merge_with_the_first_parent_while_the_root_ends() {
    explore_exact(2, || merge(|leaf, _, apart| leaf.merge(apart).detach()));
}

#[test]
fn merge_with_the_second_parent_while_the_root_ends() {
    explore_exact(2, || merge(|leaf, _, apart| apart.merge(leaf).detach()));
}

/// The other thread links the second parent.
#[test]
fn merge_of_siblings_while_the_root_ends() {
    explore_exact(2, || merge(|leaf, sibling, _| leaf.merge(sibling).detach()));
}

/// A context with a `CancellationToken` ends with the root. Nothing is registered with the token afterwards.
#[test]
fn with_token_while_the_root_ends() {
    explore_exact(2, || {
        let foreign = CancellationToken::new();
        let ((ctx, waiter), ended) = while_the_root_ends(|leaf, _| {
            let ctx = leaf.with_token(&foreign).detach();
            let mut waiter = Waiter::on(&ctx);
            waiter.poll();
            (ctx, waiter)
        });
        waiter.finish(&common_error(ended.all.iter().chain([&ctx])));
        assert_eq!(memberships(&ctx), 0, "still registered with the token");
        foreign.cancel();
        drop(ctx);
        ended.finish();
    });
}

/// The `CancellationToken` is canceled as well. One of the two ends is that of the context.
#[test]
fn with_canceled_token_while_the_root_ends() {
    explore_exact(2, || {
        let ((ctx, error), ended) = while_the_root_ends(|leaf, _| {
            let foreign = CancellationToken::new();
            let ctx = leaf.with_token(&foreign).detach();
            foreign.cancel();
            let error = final_error(&ctx);
            (ctx, error)
        });
        assert_same(&error, &final_error(&ctx));
        assert!(error.is_canceled());
        drop(ctx);
        ended.finish();
    });
}

/// A `CancellationToken` of a context is canceled only if the context has ended, and by the time the root has.
#[test]
fn cancellation_token_while_the_root_ends() {
    explore_exact(2, || {
        let (token, ended) = while_the_root_ends(|leaf, _| {
            let token = leaf.cancellation_token();
            assert!(!token.is_cancelled() || leaf.is_done(), "canceled before its context has ended");
            token
        });
        assert!(token.is_cancelled(), "its context has ended");
        ended.finish();
    });
}

/// A function that is registered in the meantime runs.
#[test]
fn after_func_while_the_root_ends() {
    explore_exact(2, || {
        let runtime = runtime();
        let ((after, runs), ended) = while_the_root_ends(|leaf, _| after(leaf, &runtime));
        poll_woken(&runtime);
        assert_eq!(runs.load(Ordering::Relaxed), 1, "the end has not woken its task");
        assert!(!after.stop(), "the context has ended");
        drop(runtime);
        ended.finish();
    });
}

/// It runs unless it is stopped.
#[test]
fn after_func_is_stopped_while_the_root_ends() {
    explore_exact(2, || {
        let runtime = runtime();
        let ((runs, stopped), ended) = while_the_root_ends(|leaf, _| {
            let (after, runs) = after(leaf, &runtime);
            (runs, after.stop())
        });
        poll_woken(&runtime);
        assert_eq!(runs.load(Ordering::Relaxed), usize::from(!stopped), "stopped: {stopped}");
        drop(runtime);
        ended.finish();
    });
}

/// The leaf is dropped as soon as a wait has linked it. Nothing keeps it alive.
#[test]
fn leaf_is_dropped_while_the_root_ends() {
    explore_exact(2, || {
        let ((tokens, wait), ended) = while_the_root_ends(|leaf, _| {
            let child = chain(leaf, 1).remove(1);
            let mut waiter = Waiter::on(&child);
            waiter.poll();
            (WeakTokens::of([&child]), waiter.drop_wait())
        });
        wait.assert_dropped();
        tokens.assert_dropped();
        ended.finish();
    });
}

/// The root and a context below it are canceled while the path of a leaf is linked. When either call returns, what is below
/// has ended, and the end has woken the wait.
fn two_cancels_against_link(levels_between: usize, levels_below: usize) {
    let (root, ends_root) = Context::background().with_cancel().split();
    let above = chain(&root, levels_between);
    let (middle, ends_middle) = above[levels_between].with_cancel().split();
    let below = chain(&middle, levels_below);
    let tokens = WeakTokens::of(above.iter().chain(&below));
    let mut waiter = Waiter::on(&below[levels_below]);
    let first = thread::spawn({
        let below = below.clone();
        move || {
            ends_root.cancel_with("root");
            assert_all_done(below.iter().rev());
        }
    });
    let second = thread::spawn({
        let below = below.clone();
        move || {
            ends_middle.cancel_with("middle");
            assert_all_done(below.iter().rev());
        }
    });
    waiter.poll();
    first.join().unwrap();
    second.join().unwrap();
    let error = common_error(&below);
    assert!(["root", "middle"].contains(&cause_text(&error).as_str()));
    assert_eq!(cause_text(&common_error(&above)), "root");
    waiter.finish(&error);
    drop((root, above, middle, below));
    tokens.assert_dropped();
}

#[test]
fn cancels_of_parent_and_grandparent_against_link() {
    explore_exact(2, || two_cancels_against_link(0, 1));
}

#[test]
fn cancels_two_levels_apart_against_link() {
    explore_exact(2, || two_cancels_against_link(1, 1));
}

#[test]
fn cancels_above_a_long_path_against_link() {
    explore_exact(2, || two_cancels_against_link(0, 3));
}

/// The deadline of the root has passed. A query ends the root, while two threads link leaves below.
#[test]
fn waits_while_a_query_notices_a_deadline() {
    explore_exact(2, || {
        let timed = Context::background().with_timeout(SECOND).detach();
        let middle = chain(&timed, 1).remove(1);
        let leaves = [(); 3].map(|()| chain(&middle, 1).remove(1));
        let [mut mine, mut other] = [0, 1].map(|leaf| Waiter::on(&leaves[leaf]));
        tick();
        let linker = in_runtime(1, move || {
            other.poll();
            other
        });
        let query = thread::spawn({
            let leaf = leaves[2].clone();
            move || overdue_error(&leaf)
        });
        enter_runtime(1);
        mine.poll();
        let seen = query.join().unwrap();
        let other = linker.join().unwrap();
        let error = common_error(leaves.iter().chain([&middle, &timed]));
        assert_same(&seen, &error);
        mine.finish(&error);
        other.finish(&error);
        shut_down([1]);
    });
}

/// A waker that counts the contexts that have not ended when it is called.
struct Outlived(Vec<Context>, Arc<AtomicUsize>);

impl std::task::Wake for Outlived {
    fn wake(self: Arc<Self>) {
        let alive = self.0.iter().filter(|ctx| !ctx.is_done()).count();
        self.1.fetch_add(alive, Ordering::Relaxed);
    }
}

/// Wakers are called when all contexts have ended, also those that another thread has linked in the meantime.
#[test]
fn waker_observes_all_ends() {
    explore_exact(2, || {
        let outlived = Arc::new(AtomicUsize::new(0));
        let (done, ended) = while_the_root_ends(|leaf, sibling| {
            let mut done = Box::pin(leaf.done_owned());
            let waker = Outlived(vec![leaf.clone(), sibling.clone()], outlived.clone());
            let waker = Arc::new(waker).into();
            let _polled = done.as_mut().poll(&mut std::task::Context::from_waker(&waker));
            done
        });
        assert_eq!(outlived.load(Ordering::Relaxed), 0, "a waker is called before all have ended");
        drop(done);
        ended.finish();
    });
}
