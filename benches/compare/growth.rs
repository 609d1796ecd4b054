//! How the costs grow: with the number of siblings, the depth, and the numbers of contexts and of waiters.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use tokio::time::{advance, timeout};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::derive::rooted;
use crate::drive::{FAR, runtime, timed};
use crate::held;
use crate::measure::median;
use crate::query::{chain, tokens};
use crate::report::{nanos, thousands};
use crate::tree::{Waits, last_awake};

/// A table under a heading.
pub struct Table(pub &'static str, pub Vec<Vec<String>>);

pub fn tables(quick: bool) -> Vec<Table> {
    let sizes: &[usize] = if quick { &[1, 1_000] } else { &[1, 1_000, 1_000_000] };
    let depths: &[usize] =
        if quick { &[1, 100] } else { &[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000] };
    let live = if quick { 10_000 } else { 1_000_000 };
    let _runtime = runtime().enter();
    vec![
        Table("Live siblings: ns per derive, cancel, drop", siblings(sizes)),
        Table("Depth: ns", depth(depths)),
        Table("Bytes per live context", memory(live)),
        Table("Delay of another task's timer while many deadlines pass: ms", late(live)),
        Table("One deadline, waited on by many", waiters(&[1, 100, 10_000])),
    ]
}

fn lines(head: &[&str]) -> Vec<Vec<String>> {
    vec![head.iter().map(|cell| cell.to_string()).collect()]
}

fn siblings(sizes: &[usize]) -> Vec<Vec<String>> {
    let mut lines = lines(&[
        "siblings",
        "ours",
        "ours, siblings waited on",
        "ours, all waited on",
        "tokio-util",
        "tokio-util, siblings waited on",
        "tokio-util, all waited on",
    ]);
    for &size in sizes {
        let mut line = vec![thousands(size as u64)];
        line.extend(beside_ours(size).map(nanos));
        line.extend(beside_tokens(size).map(nanos));
        lines.push(line);
    }
    lines
}

fn beside_ours(size: usize) -> [f64; 3] {
    let parent = rooted();
    let siblings: Vec<_> = (0..size).map(|_| parent.with_cancel()).collect();
    let plain = || drop(black_box(parent.with_cancel()));
    let waited = || {
        let ctx = parent.with_cancel();
        poll_once(ctx.done());
    };
    let idle = typical(plain);
    let mut waits = Waits::new(siblings.iter().map(|sibling| sibling.done()));
    waits.poll(Waker::noop());
    [idle, typical(plain), typical(waited)]
}

fn beside_tokens(size: usize) -> [f64; 3] {
    let parent = CancellationToken::new();
    let siblings: Vec<_> = (0..size).map(|_| parent.child_token()).collect();
    let plain = || drop(black_box(parent.child_token().drop_guard()));
    let waited = || {
        let guard = parent.child_token().drop_guard();
        poll_once(guard.token().cancelled());
    };
    let idle = typical(plain);
    let mut waits = Waits::new(siblings.iter().map(CancellationToken::cancelled));
    waits.poll(Waker::noop());
    [idle, typical(plain), typical(waited)]
}

fn poll_once(future: impl Future) {
    let mut cx = TaskContext::from_waker(Waker::noop());
    assert!(pin!(future).poll(&mut cx).is_pending());
}

/// Returns the nanoseconds of one operation, as the median of many samples.
fn typical(mut op: impl FnMut()) -> f64 {
    const TIMES: u64 = 2_000;
    let sample = |_| timed(TIMES, &mut op).as_nanos() as f64 / TIMES as f64;
    median(&(0..101).map(sample).collect::<Vec<_>>())
}

fn depth(depths: &[usize]) -> Vec<Vec<String>> {
    let mut lines = lines(&[
        "depth",
        "is_done",
        "is_done, waited on",
        "is_done, tokio-util",
        "drop from the root, per level",
        "drop from the leaf, per level",
        "drop of the leaf that holds all, per level",
        "tokio-util, from the root",
        "tokio-util, from the leaf",
    ]);
    for &depth in depths {
        let mut line = vec![thousands(depth as u64)];
        line.extend(is_done(depth).map(nanos));
        line.extend(drops(depth).map(|took| nanos(took / depth as f64)));
        lines.push(line);
    }
    lines
}

fn is_done(depth: usize) -> [f64; 3] {
    let chain = chain(depth);
    let leaf = &chain[depth - 1];
    let walked = typical(|| assert!(!black_box(leaf).is_done()));
    let mut wait = pin!(leaf.done());
    let _pending = wait.as_mut().poll(&mut TaskContext::from_waker(Waker::noop()));
    let waited = typical(|| assert!(!black_box(leaf).is_done()));
    let tokens = tokens(depth);
    let token = typical(|| assert!(!black_box(&tokens[depth - 1]).is_cancelled()));
    take_apart(tokens);
    [walked, waited, token]
}

fn take_apart(mut tokens: Vec<CancellationToken>) {
    while tokens.pop().is_some() {}
}

/// Returns the nanoseconds for all levels. The scopes are detached, so that only the drop is measured.
fn drops(depth: usize) -> [f64; 5] {
    let contexts = || chain(depth).into_iter().map(CancelScope::detach).collect::<Vec<_>>();
    let leaf_alone = || contexts().pop();
    let from_leaf = |mut chain: Vec<Context>| while chain.pop().is_some() {};
    [
        dropping(depth, contexts, drop),
        dropping(depth, contexts, from_leaf),
        dropping(depth, leaf_alone, drop),
        dropping(depth, || tokens(depth), drop),
        dropping(depth, || tokens(depth), take_apart),
    ]
}

fn dropping<T>(depth: usize, make: impl Fn() -> T, drop: impl Fn(T)) -> f64 {
    let rounds = (1_000_000 / depth).clamp(5, 101);
    // Many short chains at a time, because reading the clock takes as long as one drop.
    let chains = (1_000 / depth).max(1);
    let sample = |_| {
        let chains: Vec<T> = (0..chains).map(|_| make()).collect();
        let (start, count) = (Clock::start(), chains.len());
        chains.into_iter().for_each(&drop);
        start.elapsed().as_nanos() as f64 / count as f64
    };
    median(&(0..rounds).map(sample).collect::<Vec<_>>())
}

fn memory(live: usize) -> Vec<Vec<String>> {
    let mut lines = lines(&["contexts", "kind", "ours", "ours, waited on", "token", "token, waited on"]);
    for (kind, limit) in [("cancel", None), ("timeout", Some(FAR))] {
        let mut line = vec![thousands(live as u64), kind.to_string()];
        let bytes = [
            held::ours(live, limit, false),
            held::ours(live, limit, true),
            held::by_hand(live, limit.is_some(), false),
            held::by_hand(live, limit.is_some(), true),
        ];
        line.extend(bytes.map(|bytes| thousands(bytes as u64)));
        lines.push(line);
    }
    lines
}

fn late(count: usize) -> Vec<Vec<String>> {
    let mut lines = lines(&[
        "contexts",
        "one deadline above all",
        "one deadline each",
        "cancel() from a task",
        "Tokio: one timer each",
    ]);
    let after = Duration::from_micros(2 * count as u64) + Duration::from_millis(200);
    let above = largest_delay(after, move || {
        let root = Context::background().with_timeout(after);
        let children: Vec<_> = (0..count).map(|_| root.with_cancel()).collect();
        let mut waits = Waits::new(children.iter().map(|child| child.done_owned()));
        waits.poll(Waker::noop());
        (Box::new((root, children, waits)), || {})
    });
    let each = largest_delay(after, move || {
        let root = Context::background().with_cancel();
        let children: Vec<_> = (0..count).map(|_| root.with_timeout(after)).collect();
        let mut waits = Waits::new(children.iter().map(|child| child.done_owned()));
        waits.poll(Waker::noop());
        (Box::new((root, children, waits)), || {})
    });
    let canceled = largest_delay(after, move || {
        let root = Context::background().with_cancel();
        let canceler = root.canceler();
        let children: Vec<_> = (0..count).map(|_| root.with_cancel()).collect();
        let mut waits = Waits::new(children.iter().map(|child| child.done_owned()));
        waits.poll(Waker::noop());
        (Box::new((root, children, waits)), move || canceler.cancel())
    });
    let timers = largest_delay(after, move || {
        let at = tokio::time::Instant::now() + after;
        let mut waits = Waits::new((0..count).map(|_| tokio::time::sleep_until(at)));
        waits.poll(Waker::noop());
        (Box::new(waits), || {})
    });
    let mut line = vec![thousands(count as u64)];
    line.extend([above, each, canceled, timers].map(|late| format!("{:.1}", late.as_secs_f64() * 1e3)));
    lines.push(line);
    lines
}

/// Returns the largest delay of a task that sleeps for a millisecond at a time on a runtime of two workers: from when
/// `make` has returned until after the end, which comes `after` the start. The median of five runs.
fn largest_delay<T: Send + 'static, E: FnOnce() + Send + 'static>(
    after: Duration,
    make: impl Fn() -> (Box<T>, E) + Copy + Send + 'static,
) -> Duration {
    let once = |_| {
        let run = move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async move {
                let start = std::time::Instant::now();
                let (contexts, end) = make();
                tokio::spawn(async move {
                    tokio::time::sleep_until((start + after).into()).await;
                    end();
                });
                let ticks = tokio::spawn(async move {
                    let mut late = Duration::ZERO;
                    while start.elapsed() < after + Duration::from_millis(300) {
                        let before = std::time::Instant::now();
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        late = late.max(before.elapsed().saturating_sub(Duration::from_millis(1)));
                    }
                    late
                });
                let late = ticks.await.expect("no panic");
                drop(contexts);
                late
            })
        };
        std::thread::spawn(run).join().expect("no panic")
    };
    let mut late: Vec<Duration> = (0..5).map(once).collect();
    late.sort_unstable();
    late[2]
}

fn waiters(counts: &[usize]) -> Vec<Vec<String>> {
    let mut lines = lines(&[
        "waiters",
        "ours: first poll, ns each",
        "drop, ns each",
        "deadline until the last runs, ns each",
        "token + timeout: first poll, ns each",
        "drop, ns each",
        "deadline until the last runs, ns each",
    ]);
    let waits: Vec<_> = counts.iter().map(|&count| begin_and_stop(count)).collect();
    // Last, because reading the clock is slower once Tokio's clock has been paused.
    for (&count, [ours, by_hand]) in counts.iter().zip(waits) {
        let mut line = vec![thousands(count as u64)];
        line.extend(ours.map(nanos));
        line.push(nanos(expiry_ours(count)));
        line.extend(by_hand.map(nanos));
        line.push(nanos(expiry_by_hand(count)));
        lines.push(line);
    }
    lines
}

fn begin_and_stop(count: usize) -> [[f64; 2]; 2] {
    // Many at a time, because reading the clock takes as long as one wait.
    let many = (1_000 / count).max(1);
    let contexts: Vec<_> = (0..many).map(|_| Context::background().with_timeout(FAR)).collect();
    let tokens: Vec<_> = (0..many).map(|_| CancellationToken::new()).collect();
    [
        waiting(many * count, |at| contexts[at / count].done()),
        waiting(many * count, |at| timeout(FAR, tokens[at / count].cancelled())),
    ]
}

fn waiting<F: Future>(count: usize, wait: impl Fn(usize) -> F) -> [f64; 2] {
    let (mut begun, mut stopped) = (Vec::new(), Vec::new());
    let each = |start: Clock| start.elapsed().as_nanos() as f64 / count as f64;
    for _ in 0..51 {
        let mut waits = Waits::new((0..count).map(&wait));
        let start = Clock::start();
        assert_eq!(waits.poll(Waker::noop()), 0);
        begun.push(each(start));
        let start = Clock::start();
        drop(waits);
        stopped.push(each(start));
    }
    [median(&begun), median(&stopped)]
}

const SOON: Duration = Duration::from_secs(60);

fn expiry_ours(count: usize) -> f64 {
    expiry(count, async |count| {
        let ctx = Context::background().with_timeout(SOON);
        last_awake(count, || ctx.done_owned(), async || advance(SOON).await).await.after
    })
}

fn expiry_by_hand(count: usize) -> f64 {
    expiry(count, async |count| {
        let token = CancellationToken::new();
        let at = tokio::time::Instant::now() + SOON;
        let wait = || {
            let token = token.clone();
            async move { tokio::time::timeout_at(at, token.cancelled()).await }
        };
        last_awake(count, wait, async || advance(SOON).await).await.after
    })
}

/// On a clock that is advanced: from the deadline, and not from the next millisecond of the timer.
fn expiry(count: usize, measure: impl AsyncFn(usize) -> Duration + Copy + Send + 'static) -> f64 {
    let rounds = (20_000 / count).clamp(7, 201);
    let sample = |_| {
        let run = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
            runtime.block_on(measure(count)).as_nanos() as f64 / count as f64
        };
        // A separate thread, because this one is inside another runtime.
        std::thread::spawn(run).join().expect("no panic")
    };
    median(&(0..rounds).map(sample).collect::<Vec<_>>())
}
