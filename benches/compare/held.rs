//! The memory of live contexts: their heap, and the handles and futures that are kept for them.

use std::hint::black_box;
use std::task::Waker;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_context::context::{Context as TheirContext, RefContext};
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

use crate::alloc::{counted, held};
use crate::derive::{Watched, reap, rooted, watch};
use crate::drive::{FAR, runtime};
use crate::report::thousands;
use crate::row::{GO, OURS, TIMEOUT, TOKEN, TOKIO_CONTEXT, WATCHER};
use crate::tree::Waits;

/// Enough that the memory of the runtime does not matter.
const LIVE: usize = 100_000;

struct Held {
    id: &'static str,
    work: &'static str,
    waited: bool,
    /// The target against Go.
    target: f64,
}

const ALL: [Held; 2] = [
    Held { id: "held-idle", work: "no waiter", waited: false, target: 2.0 },
    Held { id: "held-waiter", work: "one waiter", waited: true, target: 1.2 },
];

/// Returns a table, and the same as rows.
pub fn held_live() -> (Vec<Vec<String>>, Vec<Value>) {
    let head = ["bytes held by a live context with a timeout", "ours", "peer", "bytes", "ratio"];
    let mut lines = vec![head.map(String::from).to_vec()];
    let mut rows = list();
    for (held, row) in ALL.iter().zip(&mut rows) {
        let own = ours(LIVE, Some(FAR), held.waited);
        let mut sides = vec![json!({ "name": OURS, "bytes": own })];
        let mut first = [held.work.to_string(), thousands(own as u64)];
        for (name, bytes) in peers(held.waited) {
            let ratio = bytes / own;
            let [work, own] = std::mem::take(&mut first);
            lines.push(vec![work, own, name.into(), thousands(bytes as u64), format!("{ratio:.2}")]);
            sides.push(json!({ "name": name, "bytes": bytes, "ratio": ratio }));
        }
        row["sides"] = sides.into();
    }
    (lines, rows)
}

pub fn list() -> Vec<Value> {
    let row = |held: &Held| {
        let work = format!("bytes held by a live context with a timeout, {}", held.work);
        json!({ "id": held.id, "work": work, "sides": [], "targets": { GO: held.target } })
    };
    ALL.iter().map(row).collect()
}

/// Returns the heap size of a node, as counted by the allocator, and the size of the future that waits on one.
pub fn sizes() -> (Vec<Vec<String>>, Vec<Value>) {
    let head = ["bytes of one", "ours", "peer", "bytes", "ratio", "target", ""];
    let (root, token) = (rooted(), CancellationToken::new());
    let _runtime = runtime().enter();
    let parts = [
        ("size-node", "node", node(&root), TOKEN, token_node(&token), 128),
        ("size-wait", "wait", size_of_val(&root.done()), TOKEN, size_of_val(&token.cancelled()), 64),
        (
            "size-wait-timeout",
            "wait with a deadline",
            size_of_val(&root.done()),
            TIMEOUT,
            size_of_val(&tokio::time::timeout(FAR, token.cancelled())),
            64,
        ),
    ];
    let mut lines = vec![head.map(String::from).to_vec()];
    let mut rows = Vec::new();
    for (id, what, own, name, peer, most) in parts {
        let ratio = peer as f64 / own as f64;
        let verdict = if own <= most { "met" } else { "MISSED" };
        let numbers = [own.to_string(), name.into(), peer.to_string(), format!("{ratio:.2}")];
        let target = [format!("≤ {most}"), verdict.into()];
        lines.push([what.to_string()].into_iter().chain(numbers).chain(target).collect());
        rows.push(json!({
            "id": id,
            "work": format!("bytes of a {what}"),
            "sides": [
                { "name": OURS, "bytes": own },
                { "name": name, "bytes": peer, "ratio": ratio },
            ],
            "targets": {},
            "at_most_bytes": most,
        }));
    }
    (lines, rows)
}

fn node(parent: &Context) -> usize {
    counted(|| drop(black_box(parent.with_cancel()))).1 as usize
}

fn token_node(parent: &CancellationToken) -> usize {
    // The parent's list of children has been allocated by then.
    drop(parent.child_token());
    counted(|| drop(black_box(parent.child_token()))).1 as usize
}

/// Measures only our side, if this is one of these rows.
pub fn one(id: &str) -> Option<Value> {
    let held = ALL.iter().find(|held| held.id == id)?;
    Some(json!({ "name": OURS, "bytes": ours(LIVE, Some(FAR), held.waited) }))
}

fn peers(waited: bool) -> [(&'static str, f64); 3] {
    [(TIMEOUT, by_hand(LIVE, true, waited)), (WATCHER, watched(waited)), (TOKIO_CONTEXT, theirs(waited))]
}

pub fn ours(live: usize, limit: Option<Duration>, waited: bool) -> f64 {
    let parent = rooted();
    let derive = |_| match limit {
        None => parent.with_cancel(),
        Some(limit) => parent.with_timeout(limit),
    };
    each(live, || {
        let contexts: Vec<_> = (0..live).map(derive).collect();
        while_waiting(waited, contexts.iter().map(|ctx| ctx.done()))
    })
}

pub fn by_hand(live: usize, limited: bool, waited: bool) -> f64 {
    let parent = CancellationToken::new();
    each(live, || {
        if limited {
            let child = |_| (parent.child_token(), Instant::now() + FAR);
            let tokens: Vec<_> = (0..live).map(child).collect();
            let wait = tokens.iter().map(|(token, at)| timeout_at(*at, token.cancelled()));
            while_waiting(waited, wait)
        } else {
            let tokens: Vec<_> = (0..live).map(|_| parent.child_token()).collect();
            while_waiting(waited, tokens.iter().map(CancellationToken::cancelled))
        }
    })
}

fn watched(waited: bool) -> f64 {
    let parent = CancellationToken::new();
    each(LIVE, || {
        let mut live: Vec<Watched> = (0..LIVE).map(|_| watch(&parent, FAR)).collect();
        let all_tasks_run = || runtime().block_on(tokio::time::sleep(Duration::from_millis(300)));
        all_tasks_run();
        let bytes = while_waiting(waited, live.iter().map(|(token, _)| token.cancelled()));
        runtime().block_on(reap(&mut live));
        all_tasks_run();
        bytes
    })
}

fn theirs(waited: bool) -> f64 {
    each(LIVE, || {
        // Each under a parent of its own, because only one child of a parent can wait.
        let parents: Vec<_> = (0..LIVE).map(|_| RefContext::new()).collect();
        let before = held();
        let derive = |(parent, _): &_| TheirContext::with_parent(parent, Some(FAR));
        let mut contexts: Vec<_> = parents.iter().map(derive).collect();
        while_waiting(waited, contexts.iter_mut().map(|(ctx, _)| ctx.done())) - before
    })
}

/// Returns the bytes for each of `live` objects, of the total that `build` returns.
fn each(live: usize, build: impl FnOnce() -> i64) -> f64 {
    let _runtime = runtime().enter();
    let mut bytes = 0;
    counted(|| bytes = build());
    bytes as f64 / live as f64
}

/// Returns the live bytes while all of these wait, or none.
fn while_waiting<F: Future>(waited: bool, futures: impl Iterator<Item = F>) -> i64 {
    if !waited {
        return held();
    }
    let mut waits = Waits::new(futures);
    assert_eq!(waits.poll(Waker::noop()), 0);
    held()
}
