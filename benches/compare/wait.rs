//! Waits: iterations of a `select!` loop with a future that is pending once.
//!
//! An iteration polls both branches twice. It creates and drops the wait for the end, unless this is pinned outside
//! the loop.

use std::hint::black_box;
use std::pin::pin;
use std::time::Duration;

use tokio::select;
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_context::context::{Context as TheirContext, RefContext};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::derive::{Watched, reap, rooted, watch};
use crate::drive::{
    FAR, PendingOnce, WakeOnce, alone, at_once, iterations, looped, scheduled, spawned, two_workers,
};
use crate::report::thousands;
use crate::row::{GO, Row, Run, TIMEOUT, TOKEN, TOKIO_CONTEXT, WATCHER};

pub fn rows() -> Vec<Row> {
    vec![
        remade(),
        remade_deadline(),
        pinned(),
        pinned_deadline(),
        in_a_task(),
        derived(),
        derived_timeout(),
        derived_timeout_scheduled(),
        derived_timeout_by_two_workers(0, 1.6),
        derived_timeout_by_two_workers(10_000, 1.3),
    ]
}

fn remade() -> Row {
    Row::new("turn", "select! iteration, new done()", ours(rooted()))
        .peer(TOKEN, token_remade())
        .target(TOKEN, 1.5)
}

fn remade_deadline() -> Row {
    let ctx = Context::background().with_timeout(FAR);
    Row::new("turn-deadline", "select! iteration, new done(), distant deadline", ours(ctx))
        .peer(TIMEOUT, by_hand_remade())
        .peer(TOKEN, token_remade())
        .target(TIMEOUT, 3.0)
        .target(TOKEN, 1.0)
}

fn ours(ctx: CancelScope) -> Run {
    iterations(async move || {
        select! {
            _ = black_box(&ctx).done() => unreachable!(),
            () = PendingOnce::default() => {}
        }
    })
}

fn token_remade() -> Run {
    let token = CancellationToken::new();
    iterations(async move || {
        select! {
            () = black_box(&token).cancelled() => unreachable!(),
            () = PendingOnce::default() => {}
        }
    })
}

fn by_hand_remade() -> Run {
    let token = CancellationToken::new();
    let at = tokio::time::Instant::now() + FAR;
    iterations(async move || {
        select! {
            () = black_box(&token).cancelled() => unreachable!(),
            done = timeout_at(at, PendingOnce::default()) => black_box(done).expect("far"),
        }
    })
}

fn pinned() -> Row {
    Row::new("turn-pinned", "select! iteration, done() pinned outside the loop", ours_pinned(rooted()))
        .peer(TOKEN, token_pinned())
        .target(TOKEN, 1.9)
}

fn pinned_deadline() -> Row {
    let ctx = Context::background().with_timeout(FAR);
    Row::new(
        "turn-pinned-deadline",
        "select! iteration, done() pinned, distant deadline",
        ours_pinned(ctx),
    )
    .peer(TIMEOUT, by_hand_pinned())
    .peer(TOKEN, token_pinned())
    .target(TIMEOUT, 1.9)
}

fn ours_pinned(ctx: CancelScope) -> Run {
    looped(async move |times| {
        let mut done = pin!(ctx.done());
        let start = Clock::start();
        for _ in 0..times {
            select! {
                _ = &mut done => unreachable!(),
                () = PendingOnce::default() => {}
            }
        }
        start.elapsed()
    })
}

fn token_pinned() -> Run {
    let token = CancellationToken::new();
    looped(async move |times| {
        let mut canceled = pin!(token.cancelled());
        let start = Clock::start();
        for _ in 0..times {
            select! {
                () = &mut canceled => unreachable!(),
                () = PendingOnce::default() => {}
            }
        }
        start.elapsed()
    })
}

fn by_hand_pinned() -> Run {
    let token = CancellationToken::new();
    looped(async move |times| {
        let mut canceled = pin!(token.cancelled());
        let mut late = pin!(sleep_until(tokio::time::Instant::now() + FAR));
        let start = Clock::start();
        for _ in 0..times {
            select! {
                () = &mut canceled => unreachable!(),
                () = &mut late => unreachable!(),
                () = PendingOnce::default() => {}
            }
        }
        start.elapsed()
    })
}

/// As in a program: the task goes through Tokio's run queue between the two polls of each iteration.
fn in_a_task() -> Row {
    let ctx = rooted();
    let ours = spawned(move |times| {
        let ctx = ctx.clone();
        async move {
            let start = Clock::start();
            for _ in 0..times {
                select! {
                    _ = ctx.done() => unreachable!(),
                    () = WakeOnce::default() => {}
                }
            }
            start.elapsed()
        }
    });
    let token = CancellationToken::new();
    let peer = spawned(move |times| {
        let token = token.clone();
        async move {
            let start = Clock::start();
            for _ in 0..times {
                select! {
                    () = token.cancelled() => unreachable!(),
                    () = WakeOnce::default() => {}
                }
            }
            start.elapsed()
        }
    });
    Row::new("turn-task", "select! iteration, new done(), through the scheduler", ours).peer(TOKEN, peer)
}

fn derived() -> Row {
    let parent = rooted();
    let ours = iterations(async move || {
        let ctx = black_box(&parent).with_cancel();
        select! {
            _ = black_box(&ctx).done() => unreachable!(),
            () = PendingOnce::default() => {}
        }
        ctx.cancel();
    });
    let parent = CancellationToken::new();
    let token = iterations(async move || {
        let guard = black_box(&parent).child_token().drop_guard();
        select! {
            () = black_box(guard.token()).cancelled() => unreachable!(),
            () = PendingOnce::default() => {}
        }
    });
    Row::new("derive-turn", "derive, wait for one iteration, cancel, drop", ours)
        .peer(TOKEN, token)
        .peer(TOKIO_CONTEXT, theirs(None))
        .target(TOKEN, 1.4)
}

fn derived_timeout() -> Row {
    let parent = rooted();
    let ours = iterations(async move || {
        let ctx = black_box(&parent).with_timeout(FAR);
        select! {
            _ = black_box(&ctx).done() => unreachable!(),
            () = PendingOnce::default() => {}
        }
    });
    let parent = CancellationToken::new();
    let by_hand = iterations(async move || {
        let guard = black_box(&parent).child_token().drop_guard();
        select! {
            () = black_box(guard.token()).cancelled() => unreachable!(),
            done = timeout(FAR, PendingOnce::default()) => black_box(done).expect("far"),
        }
    });
    Row::new("derive-timeout-turn", "derive with a timeout, wait for one iteration, drop", ours)
        .peer(TIMEOUT, by_hand)
        .peer(WATCHER, watched())
        .peer(TOKIO_CONTEXT, theirs(Some(FAR)))
        .target(TIMEOUT, 1.3)
        .target(GO, 2.0)
}

/// One request after another on a `current_thread` runtime without other timers: each iteration wakes the driver by
/// a system call, and so does each timer that is the nearest one.
fn derived_timeout_scheduled() -> Row {
    let parent = rooted();
    let ours = alone(move |times| one_shots(parent.clone(), times));
    let parent = CancellationToken::new();
    let by_hand = alone(move |times| one_shots_by_hand(parent.clone(), times));
    let work = "derive with a timeout, wait for one iteration, drop, on a current_thread runtime";
    Row::new("derive-timeout-turn-current-thread", work, ours)
        .peer(TIMEOUT, by_hand)
        .target(TIMEOUT, 1.15)
}

/// The same on both workers of a runtime at once, for one parent, while a number of tasks wait for deadlines of their
/// own. Each side has its own runtime, and registers these deadlines in its own way.
fn derived_timeout_by_two_workers(pending: usize, target: f64) -> Row {
    let parent = rooted();
    let idle = move |at| {
        let ctx = Context::background().with_timeout(FAR + at);
        async move { drop(ctx.done().await) }
    };
    let ours = two_workers(pending, idle, move |times| one_shots(parent.clone(), times));
    let parent = CancellationToken::new();
    let idle = move |at| {
        let token = CancellationToken::new();
        async move { drop(timeout(FAR + at, token.cancelled()).await) }
    };
    let by_hand = two_workers(pending, idle, move |times| one_shots_by_hand(parent.clone(), times));
    let work = format!(
        "derive with a timeout, wait for one iteration, drop, by 2 workers, {} other deadlines pending",
        thousands(pending as u64)
    );
    Row::new(format!("derive-timeout-turn-2-workers-{pending}"), work, ours)
        .peer(TIMEOUT, by_hand)
        .target(TIMEOUT, target)
        .uncounted()
}

async fn one_shots(parent: Context, times: u64) {
    for _ in 0..times {
        let ctx = black_box(&parent).with_timeout(FAR);
        select! {
            _ = black_box(&ctx).done() => unreachable!(),
            () = WakeOnce::default() => {}
        }
    }
}

async fn one_shots_by_hand(parent: CancellationToken, times: u64) {
    for _ in 0..times {
        let guard = black_box(&parent).child_token().drop_guard();
        select! {
            () = black_box(guard.token()).cancelled() => unreachable!(),
            done = timeout(FAR, WakeOnce::default()) => black_box(done).expect("far"),
        }
    }
}

fn watched() -> Run {
    const BATCH: u64 = 64;
    let parent = CancellationToken::new();
    let mut live: Vec<Watched> = Vec::with_capacity(BATCH as usize);
    scheduled(async move |times| {
        let start = Clock::start();
        for at in 0..times {
            let (token, watcher) = watch(&parent, FAR);
            at_once(async {
                select! {
                    () = black_box(&token).cancelled() => unreachable!(),
                    () = PendingOnce::default() => {}
                }
            })
            .await;
            live.push((token, watcher));
            if at % BATCH == BATCH - 1 || at == times - 1 {
                reap(&mut live).await;
            }
        }
        start.elapsed()
    })
}

fn theirs(limit: Option<Duration>) -> Run {
    let (parent, _handle) = RefContext::new();
    iterations(async move || {
        let _keep = &_handle;
        let (mut ctx, handle) = TheirContext::with_parent(black_box(&parent), limit);
        select! {
            () = black_box(&mut ctx).done() => unreachable!(),
            () = PendingOnce::default() => {}
        }
        handle.cancel();
    })
}
