//! Real threads: eight workers derive, end, query, wait and drop at random in one tree. When they are done, all
//! contexts must agree, all waiters must have been woken, and nothing may be left.
//!
//! It runs for ten seconds, or for `TOKIO_CTX_SECONDS`. A failure prints the seed of its round.
//! `TOKIO_CTX_SEED` starts with that seed, which repeats what each worker does, but not the interleaving.

mod common;

use std::env;
use std::fmt;
use std::pin::Pin;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Dice, LONG, Wakes, answer, multi_thread, poll};
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, yield_now};
use tokio_ctx::{AfterFunc, CancelScope, Context, DoneOwned, Error};
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 8;
/// The operations of each worker in a round, which also limits the number of contexts, besides the two roots.
const STEPS: usize = 40;
/// A round takes milliseconds.
const HANG: Duration = Duration::from_secs(60);

/// Identifies the cancel. Counted, so that a leaked token is detected by the error that it keeps.
struct Cause(usize, Arc<AtomicUsize>);

impl Cause {
    fn new(node: usize, alive: &Arc<AtomicUsize>) -> Cause {
        alive.fetch_add(1, Ordering::Relaxed);
        Cause(node, alive.clone())
    }
}

impl Drop for Cause {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Cause {}

/// A context of the tree, and its expected state.
struct Node {
    parents: Vec<usize>,
    foreign: bool,
    ctx: Mutex<Option<Context>>,
    scope: Mutex<Option<CancelScope>>,
    /// Its scope is being dropped, or has been.
    dropped: AtomicBool,
    /// A cancel of it has returned.
    canceled: AtomicBool,
    /// The first error that was reported.
    reported: OnceLock<Error>,
}

impl Node {
    fn ctx(&self) -> Option<Context> {
        self.ctx.lock().unwrap().clone()
    }

    /// Checks that the same error is reported every time.
    #[track_caller]
    fn report(&self, error: &Error) {
        let first = self.reported.get_or_init(|| error.clone());
        common::assert_same(first, error);
    }

    /// Returns whether it has ended, and checks that all queries agree.
    #[track_caller]
    fn query(&self, ctx: &Context) -> bool {
        let done = ctx.is_done();
        let error = ctx.err();
        assert!(!done || error.is_some(), "ended, and has no error");
        if let Some(error) = &error {
            assert!(ctx.is_done(), "has an error, and has not ended");
            self.report(error);
            self.report(&ctx.check().expect_err("has an error"));
        }
        error.is_some()
    }
}

/// The tree of a round, to which nodes are only added.
struct Tree {
    nodes: Vec<OnceLock<Node>>,
    count: AtomicUsize,
    foreign: Vec<CancellationToken>,
    alive: Arc<AtomicUsize>,
}

impl Tree {
    fn new() -> Tree {
        let tree = Tree {
            nodes: (0..2 + WORKERS * STEPS).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            foreign: (0..4).map(|_| CancellationToken::new()).collect(),
            alive: Arc::default(),
        };
        tree.add(vec![], false, Context::background().with_cancel());
        tree.add(vec![], false, Context::background().with_cancel());
        tree
    }

    fn add(&self, parents: Vec<usize>, foreign: bool, scope: CancelScope) {
        let node = Node {
            parents,
            foreign,
            ctx: Mutex::new(Some(scope.clone())),
            scope: Mutex::new(Some(scope)),
            dropped: AtomicBool::new(false),
            canceled: AtomicBool::new(false),
            reported: OnceLock::new(),
        };
        let place = self.count.fetch_add(1, Ordering::Relaxed);
        assert!(self.nodes[place].set(node).is_ok());
    }

    fn all(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(place, node)| Some((place, node.get()?)))
    }

    /// Returns a random node, preferring recent ones, so that the tree becomes deep.
    fn pick(&self, dice: &mut Dice) -> (usize, &Node) {
        loop {
            let count = self.count.load(Ordering::Relaxed);
            let place =
                if dice.roll(2) == 0 { dice.roll(count) } else { count - 1 - dice.roll(count.min(9)) };
            if let Some(node) = self.nodes[place].get() {
                return (place, node);
            }
        }
    }

    fn pick_live(&self, dice: &mut Dice) -> (usize, &Node, Context) {
        loop {
            let (place, node) = self.pick(dice);
            if let Some(ctx) = node.ctx() {
                return (place, node, ctx);
            }
        }
    }

    /// Cancels a node if its scope still exists.
    fn cancel(&self, place: usize, node: &Node) {
        let canceler = node.scope.lock().unwrap().as_ref().map(CancelScope::canceler);
        if let Some(canceler) = canceler {
            canceler.cancel_with(Cause::new(place, &self.alive));
            node.canceled.store(true, Ordering::Release);
        }
    }

    /// Returns which nodes a worker has canceled or dropped, or an ancestor of them.
    fn over(&self) -> Vec<bool> {
        let mut over = vec![false; self.nodes.len()];
        for (place, node) in self.all() {
            over[place] = node.canceled.load(Ordering::Acquire)
                || node.dropped.load(Ordering::Acquire)
                || node.parents.iter().any(|parent| over[*parent]);
        }
        over
    }

    /// Returns whether all of these are true of the node or of one of its ancestors.
    fn here_or_above(&self, place: usize, is: &dyn Fn(usize, &Node) -> bool) -> bool {
        let node = self.nodes[place].get().expect("added before its children");
        is(place, node) || node.parents.iter().any(|parent| self.here_or_above(*parent, is))
    }

    /// Checks that the end of a node, with this error, has a reason in the node or above it.
    fn explain(&self, place: usize, ctx: &Context, error: &Error) {
        let explained = match error.cause_as::<Cause>() {
            Some(cause) => self.here_or_above(place, &|above, _| above == cause.0),
            None if error.is_deadline_exceeded() => {
                let ended_at = error.origin().ended_at();
                ctx.deadline().is_some_and(|deadline| deadline <= ended_at)
                    && ended_at <= tokio::time::Instant::now()
            }
            None => self
                .here_or_above(place, &|_, node| node.foreign || node.dropped.load(Ordering::Acquire)),
        };
        assert!(explained, "node {place} ended without a reason: {error:?}");
    }
}

/// A wait that no task owns, and its last waker.
struct Parked {
    place: usize,
    done: Pin<Box<DoneOwned>>,
    wakes: Arc<Wakes>,
}

impl Parked {
    /// Polls on behalf of another task, and returns whether it has resolved.
    fn poll_again(&mut self, tree: &Tree) -> bool {
        let (wakes, waker) = Wakes::new();
        self.wakes = wakes;
        match poll(self.done.as_mut(), &waker) {
            std::task::Poll::Pending => false,
            std::task::Poll::Ready(error) => {
                tree.nodes[self.place].get().expect("it is waited on").report(&error);
                true
            }
        }
    }
}

/// What a worker leaves for the end of the round.
#[derive(Default)]
struct Left {
    waits: Vec<(usize, JoinHandle<Error>)>,
    parked: Vec<Parked>,
    cleanups: Vec<Cleanup>,
    tokens: Vec<(Context, CancellationToken)>,
}

struct Cleanup {
    handle: AfterFunc,
    ran: Arc<AtomicUsize>,
    stopped: bool,
}

async fn work(tree: Arc<Tree>, mut dice: Dice) -> Left {
    let mut left = Left::default();
    for _ in 0..STEPS {
        step(&tree, &mut dice, &mut left).await;
    }
    left
}

async fn step(tree: &Tree, dice: &mut Dice, left: &mut Left) {
    match dice.roll(24) {
        0..=4 => {
            let (place, _, ctx) = tree.pick_live(dice);
            tree.add(vec![place], false, ctx.with_cancel());
        }
        5 | 6 => {
            let (place, _, ctx) = tree.pick_live(dice);
            let after =
                if dice.roll(2) == 0 { LONG } else { Duration::from_micros(dice.roll(4_000) as u64) };
            let child = ctx.with_timeout(after);
            assert!(child.deadline() <= ctx.deadline().or(child.deadline()), "a deadline grew");
            tree.add(vec![place], false, child);
        }
        7 => {
            let (one, _, a) = tree.pick_live(dice);
            let (two, _, b) = tree.pick_live(dice);
            tree.add(vec![one, two], false, a.merge(&b));
        }
        8 => {
            let (place, _, ctx) = tree.pick_live(dice);
            let token = &tree.foreign[dice.roll(tree.foreign.len())];
            tree.add(vec![place], true, ctx.with_token(token));
        }
        9 if dice.roll(8) == 0 => tree.foreign[dice.roll(tree.foreign.len())].cancel(),
        // The two roots are kept until the end of the round.
        10 | 11 => {
            let (place, node) = tree.pick(dice);
            if place > 1 {
                tree.cancel(place, node);
                let ctx = node.ctx();
                assert!(
                    ctx.is_none_or(|ctx| node.query(&ctx)) || !node.canceled.load(Ordering::Acquire)
                );
            }
        }
        12 | 13 => {
            let (place, node) = tree.pick(dice);
            let scope = node.scope.lock().unwrap().take_if(|_| place > 1);
            if let Some(scope) = scope {
                match dice.roll(4) {
                    0 | 1 => drop(scope.detach()),
                    roll => {
                        node.dropped.store(true, Ordering::Release);
                        if roll == 2 { drop(scope) } else { drop(scope.split().1) }
                    }
                }
            }
        }
        14 | 15 => {
            let (place, node) = tree.pick(dice);
            let ctx = node.ctx.lock().unwrap().take_if(|_| place > 1);
            drop(ctx);
        }
        16 => {
            let (place, _, ctx) = tree.pick_live(dice);
            left.waits.push((place, tokio::spawn(async move { ctx.done_owned().await })));
        }
        17 => {
            let (place, _, ctx) = tree.pick_live(dice);
            let wakes = Wakes::new().0;
            let mut parked = Parked { place, done: Box::pin(ctx.done_owned()), wakes };
            if !parked.poll_again(tree) {
                left.parked.push(parked);
            }
        }
        18 if !left.parked.is_empty() => {
            let place = dice.roll(left.parked.len());
            if dice.roll(2) == 0 || left.parked[place].poll_again(tree) {
                left.parked.swap_remove(place);
            }
        }
        19 => {
            let (_, node, ctx) = tree.pick_live(dice);
            let nap = tokio::time::sleep(Duration::from_micros(dice.roll(1_500) as u64));
            if let Err(error) = ctx.run(nap).await {
                node.report(&error);
            }
        }
        20 => {
            let (_, _, ctx) = tree.pick_live(dice);
            let ran = Arc::new(AtomicUsize::new(0));
            let runs = ran.clone();
            let handle = ctx.after_func(move || async move {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            let stopped = dice.roll(3) == 0 && handle.stop();
            left.cleanups.push(Cleanup { handle, ran, stopped });
        }
        21 => {
            let (_, _, ctx) = tree.pick_live(dice);
            let token = ctx.cancellation_token();
            left.tokens.push((ctx, token));
        }
        22 => yield_now().await,
        // Once a call of `cancel` on a parent has returned, the child has ended.
        _ => {
            let (_, node, ctx) = tree.pick_live(dice);
            for parent in &node.parents {
                let parent = tree.nodes[*parent].get().expect("added before its children");
                let is_over = parent.canceled.load(Ordering::Acquire);
                assert!(
                    node.query(&ctx) || !is_over,
                    "the parent was canceled, and the child has not ended"
                );
            }
            node.query(&ctx);
        }
    }
}

async fn round(seed: u64) {
    let tree = Arc::new(Tree::new());
    let start = Arc::new(Barrier::new(WORKERS));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (tree, start) = (tree.clone(), start.clone());
            let dice = Dice::new(seed.wrapping_mul(WORKERS as u64).wrapping_add(worker as u64));
            tokio::spawn(async move {
                start.wait().await;
                work(tree, dice).await
            })
        })
        .collect();
    let mut left = Vec::new();
    for worker in workers {
        left.push(worker.await.expect("a worker failed"));
    }
    await_wakes(&tree, &left).await;
    check(&tree).await;
    end(&tree);
    await_wakes(&tree, &left).await;
    for (place, wait) in left.iter_mut().flat_map(|left| left.waits.drain(..)) {
        tree.nodes[place].get().expect("it is waited on").report(&wait.await.expect("only waits"));
    }
    check_ended(&tree);
    for left in left {
        finish(&tree, left).await;
    }
    let alive = tree.alive.clone();
    drop(tree);
    // Tasks and token watchers may still hold contexts.
    until(|| alive.load(Ordering::Relaxed) == 0).await;
}

/// Waits until the wakers of all parked waits that should be over have been called. A lost wake-up hangs here. Comes before
/// any query, because a query that finds the end also wakes what waits.
async fn await_wakes(tree: &Tree, left: &[Left]) {
    let over = tree.over();
    for parked in left.iter().flat_map(|left| &left.parked).filter(|parked| over[parked.place]) {
        until(|| parked.wakes.count() > 0).await;
    }
}

/// Checks, when all workers have finished, that a context has ended if and only if there is a reason.
async fn check(tree: &Tree) {
    let over = tree.over();
    let mut ended = vec![false; over.len()];
    for (place, node) in tree.all() {
        let ended_above = node.parents.iter().any(|parent| ended[*parent]);
        ended[place] = ended_above;
        let Some(ctx) = node.ctx() else { continue };
        assert!(node.query(&ctx) || !over[place], "node {place} should have ended");
        // A timer or a token watcher that has ended an ancestor may not have reached the node yet.
        until(|| node.query(&ctx) || !ended_above).await;
        if let Some(error) = ctx.err() {
            ended[place] = true;
            node.report(&error);
            tree.explain(place, &ctx, &error);
        }
    }
}

/// Ends the roots, which ends everything before the cancel returns.
fn end(tree: &Tree) {
    for place in [0, 1] {
        let root = tree.nodes[place].get().expect("the first to be added");
        assert!(!root.query(&root.ctx().expect("the roots stay")), "the end reached an ancestor");
        tree.cancel(place, root);
    }
}

/// Checks that all nodes have ended with the roots.
fn check_ended(tree: &Tree) {
    for (place, node) in tree.all() {
        let Some(ctx) = node.ctx() else { continue };
        assert!(ctx.is_done(), "node {place} outlived the roots");
        let error = answer(&ctx).expect("has ended");
        node.report(&error);
        tree.explain(place, &ctx, &error);
    }
}

/// Checks, after the end, that every wait resolves, and that nothing is left of dropped ones.
async fn finish(tree: &Tree, left: Left) {
    for mut parked in left.parked {
        let wakes = parked.wakes.clone();
        assert!(parked.poll_again(tree), "woken for nothing at node {}", parked.place);
        drop(parked);
        // The thread that has called the waker may not have dropped it yet.
        until(|| Arc::strong_count(&wakes) == 1).await;
    }
    for Cleanup { handle, ran, stopped } in left.cleanups {
        until(|| stopped || ran.load(Ordering::Relaxed) == 1).await;
        assert_eq!(ran.load(Ordering::Relaxed), usize::from(!stopped), "stopped, and ran");
        assert!(!handle.stop(), "stopped after it has run");
    }
    for (ctx, token) in left.tokens {
        assert!(ctx.is_done(), "its tree has ended");
        // A token watcher may need some time.
        until(|| token.is_cancelled()).await;
    }
}

async fn until(is: impl Fn() -> bool) {
    while !is() {
        yield_now().await;
    }
}

/// Ends the process if a round takes too long, because a thread that hangs does not fail by itself.
fn watchdog() -> mpsc::Sender<u64> {
    let (alive, words) = mpsc::channel();
    thread::spawn(move || {
        let mut seed = None;
        loop {
            match words.recv_timeout(HANG) {
                Ok(next) => seed = Some(next),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("HANG: no progress for {HANG:?} in the round of TOKIO_CTX_SEED={seed:?}");
                    process::abort();
                }
            }
        }
    });
    alive
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

#[test]
fn eight_threads_at_random() {
    run();
}

/// The same while snapshots are taken continuously. They change nothing, and keep nothing.
#[cfg(feature = "watch")]
#[test]
fn eight_threads_at_random_with_snapshots() {
    let watch = tokio_ctx::watch::install();
    let is_over = AtomicBool::new(false);
    let snapshots = thread::scope(|scope| {
        let snapshots = scope.spawn(|| {
            let mut snapshots = 0;
            while !is_over.load(Ordering::Relaxed) {
                check_snapshot(&watch.snapshot());
                snapshots += 1;
            }
            snapshots
        });
        let played = std::panic::catch_unwind(run);
        is_over.store(true, Ordering::Relaxed);
        let snapshots = snapshots.join().expect("a consistent snapshot");
        played.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        snapshots
    });
    println!("{snapshots} snapshots");
}

/// Checks that a snapshot taken during changes contains each entry once, and after its parent.
#[cfg(feature = "watch")]
fn check_snapshot(snapshot: &tokio_ctx::watch::Snapshot) {
    let mut met = std::collections::HashSet::new();
    for entry in &snapshot.entries {
        assert!(entry.parent.is_none_or(|parent| met.contains(&parent)), "before its parent: {entry:?}");
        assert!(met.insert(entry.id), "met twice: {entry:?}");
    }
    assert_eq!(snapshot.totals.seen, met.len());
}

fn run() {
    let time = Duration::from_secs(number("TOKIO_CTX_SECONDS").unwrap_or(10));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let first = number("TOKIO_CTX_SEED").unwrap_or(now.as_nanos() as u64 >> 10);
    println!("TOKIO_CTX_SEED={first}");
    let runtime = multi_thread(WORKERS);
    let alive = watchdog();
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < time {
        let seed = first.wrapping_add(rounds);
        alive.send(seed).expect("the watchdog is running");
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(round(seed));
        }));
        if let Err(panic) = played {
            eprintln!("failed in the round of TOKIO_CTX_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        rounds += 1;
    }
    println!("{rounds} rounds of {WORKERS} × {STEPS} steps in {:?}", begun.elapsed());
}
