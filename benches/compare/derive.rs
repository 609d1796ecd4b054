//! Derive, cancel, drop.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tokio_context::context::{Context as TheirContext, RefContext};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::drive::{FAR, scheduled, sync, two_threads};
use crate::row::{GO, NUMBER, Row, Run, TOKEN, TOKIO_CONTEXT, WATCHER};

pub fn rows() -> Vec<Row> {
    vec![
        dropped(),
        canceled(),
        timeout(),
        timeout_held(),
        dropped_by_two_threads(),
        canceled_by_two_threads(),
        clone(),
    ]
}

fn dropped() -> Row {
    let parent = rooted();
    let ours = sync(move || {
        let ctx = black_box(&parent).with_cancel();
        black_box(&ctx);
    });
    let parent = CancellationToken::new();
    let token = sync(move || {
        let guard = black_box(&parent).child_token().drop_guard();
        black_box(guard.token());
    });
    Row::new("derive-drop", "derive, scope dropped", ours)
        .peer(TOKEN, token)
        .peer(TOKIO_CONTEXT, theirs(|_handle| {}))
        .target(TOKEN, 2.0)
        .target(GO, 2.5)
        .at_most_allocations(1.0)
}

fn canceled() -> Row {
    let parent = rooted();
    let ours = sync(move || {
        let ctx = black_box(&parent).with_cancel();
        black_box(&ctx);
        ctx.cancel();
    });
    let parent = CancellationToken::new();
    let token = sync(move || {
        let child = black_box(&parent).child_token();
        black_box(&child).cancel();
    });
    Row::new("derive-cancel", "derive, cancel, drop", ours)
        .peer(TOKEN, token)
        .peer(TOKIO_CONTEXT, theirs(|handle| handle.cancel()))
        .target(TOKEN, 1.2)
        .target(GO, 2.5)
        .at_most_allocations(1.0)
}

fn timeout() -> Row {
    let parent = rooted();
    let ours = sync(move || {
        let ctx = black_box(&parent).with_timeout(FAR);
        black_box(&ctx);
    });
    let parent = CancellationToken::new();
    // By hand, there is no timer before the first wait: a deadline is a number next to the token.
    let by_hand = sync(move || {
        let guard = black_box(&parent).child_token().drop_guard();
        black_box((guard.token(), Instant::now() + FAR));
    });
    let (parent, _handle) = RefContext::new();
    let theirs = sync(move || {
        let _keep = &_handle;
        black_box(TheirContext::with_parent(black_box(&parent), Some(FAR)));
    });
    Row::new("derive-timeout", "derive with a timeout, scope dropped", ours)
        .peer(NUMBER, by_hand)
        .peer(WATCHER, watched())
        .peer(TOKIO_CONTEXT, theirs)
        .target(NUMBER, 1.3)
        .target(GO, 4.0)
        .at_most_allocations(1.0)
}

/// As when a task with the context outlives the scope: the end can be observed.
fn timeout_held() -> Row {
    let parent = rooted();
    let ours = sync(move || {
        let ctx = black_box(&parent).with_timeout(FAR);
        let other = black_box(ctx.clone());
        drop(ctx);
        black_box(&other);
    });
    let parent = CancellationToken::new();
    let by_hand = sync(move || {
        let guard = black_box(&parent).child_token().drop_guard();
        let other = black_box((guard.token().clone(), Instant::now() + FAR));
        drop(guard);
        black_box(&other);
    });
    Row::new("derive-timeout-held", "the same, with another handle", ours)
        .peer(NUMBER, by_hand)
        .target(NUMBER, 1.0)
        .at_most_allocations(1.0)
}

/// A task for each deadline, aborted when the work is done. In batches, so that the scheduler's time is that of the
/// watchers, and not of the loop that creates them.
fn watched() -> Run {
    const BATCH: u64 = 64;
    let parent = CancellationToken::new();
    let mut live = Vec::with_capacity(BATCH as usize);
    scheduled(async move |times| {
        let start = Clock::start();
        for at in 0..times {
            live.push(watch(&parent, FAR));
            if at % BATCH == BATCH - 1 || at == times - 1 {
                reap(&mut live).await;
            }
        }
        start.elapsed()
    })
}

pub type Watched = (CancellationToken, tokio::task::AbortHandle);

pub fn watch(parent: &CancellationToken, after: Duration) -> Watched {
    let token = black_box(parent).child_token();
    let at = tokio::time::Instant::now() + after;
    let watcher = tokio::spawn({
        let token = token.clone();
        async move {
            sleep_until(at).await;
            token.cancel();
        }
    });
    (token, watcher.abort_handle())
}

pub async fn reap(live: &mut Vec<Watched>) {
    // The watchers start to sleep,
    tokio::task::yield_now().await;
    for (token, watcher) in live.drain(..) {
        token.cancel();
        watcher.abort();
    }
    // and are aborted.
    tokio::task::yield_now().await;
}

fn dropped_by_two_threads() -> Row {
    let ours = two_threads(rooted(), |parent| {
        let ctx = black_box(parent).with_cancel();
        black_box(&ctx);
    });
    let token = two_threads(CancellationToken::new(), |parent| {
        let guard = black_box(parent).child_token().drop_guard();
        black_box(guard.token());
    });
    Row::new("derive-2-threads", "derive, scope dropped, by 2 threads under one parent", ours)
        .peer(TOKEN, token)
        .target(TOKEN, 4.0)
        .target(GO, 2.5)
        .uncounted()
}

fn canceled_by_two_threads() -> Row {
    let ours = two_threads(rooted(), |parent| {
        let ctx = black_box(parent).with_cancel();
        black_box(&ctx).cancel();
    });
    let token = two_threads(CancellationToken::new(), |parent| {
        let child = black_box(parent).child_token();
        black_box(&child).cancel();
    });
    let work = "derive, cancel, drop, by 2 threads under one parent";
    Row::new("derive-cancel-2-threads", work, ours).peer(TOKEN, token).target(TOKEN, 3.0).uncounted()
}

fn clone() -> Row {
    let ctx = rooted();
    let ours = sync(move || {
        black_box(black_box(ctx.context()).clone());
    });
    let token = CancellationToken::new();
    let token = sync(move || {
        black_box(black_box(&token).clone());
    });
    let (ctx, _handle) = RefContext::new();
    let theirs = sync(move || {
        let _keep = &_handle;
        black_box(black_box(&ctx).clone());
    });
    Row::new("clone", "clone, drop", ours)
        .peer(TOKEN, token)
        .peer(TOKIO_CONTEXT, theirs)
        .target(TOKEN, 3.0)
}

fn theirs(cancel: impl Fn(tokio_context::context::Handle) + 'static) -> Run {
    let (parent, _handle) = RefContext::new();
    sync(move || {
        let _keep = &_handle;
        let (ctx, handle) = TheirContext::with_parent(black_box(&parent), None);
        black_box(&ctx);
        cancel(handle);
    })
}

pub fn rooted() -> CancelScope {
    Context::background().with_cancel()
}
