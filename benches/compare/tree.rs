//! Many contexts at once: chains, fan-outs, waiters.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, preemptions};
use crate::derive::rooted;
use crate::drive::{FAR, runtime, scheduled, sync};
use crate::row::{GO, Row, Run, TIMEOUT, TOKEN};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::from([(1, 1.0), (10, 1.2), (100, 1.3), (1_000, 1.5)].map(chain));
    rows.extend([10, 1_000, 100_000].map(fan_out));
    rows.extend([10, 1_000, 100_000].map(fan_out_deadline));
    rows.extend([first_woken(), expired()]);
    rows.extend([1, 100, 10_000].map(wake));
    rows
}

/// Dropped from the last to the first, as when calls return.
fn chain((depth, target): (usize, f64)) -> Row {
    let ours = sync(move || {
        let mut chain = Vec::with_capacity(depth);
        chain.push(rooted());
        while chain.len() < depth {
            chain.push(chain[chain.len() - 1].with_cancel());
        }
        chain[0].cancel();
        assert!(chain[depth - 1].is_done());
        while chain.pop().is_some() {}
    });
    let token = sync(move || {
        let mut chain = Vec::with_capacity(depth);
        chain.push(CancellationToken::new());
        while chain.len() < depth {
            chain.push(chain[chain.len() - 1].child_token());
        }
        chain[0].cancel();
        assert!(chain[depth - 1].is_cancelled());
        while chain.pop().is_some() {}
    });
    let row =
        Row::new(format!("chain-{depth}"), format!("chain of {depth}, root canceled, dropped"), ours)
            .peer(TOKEN, token)
            .target(TOKEN, target);
    // No target for Go's shortest chain, in which a map is allocated for the first child only.
    if depth == 1 { row } else { row.target(GO, 4.0) }
}

fn fan_out(width: usize) -> Row {
    let ours = sync(move || {
        let root = rooted();
        let children: Vec<_> = (0..width).map(|_| root.with_cancel()).collect();
        let waits = Waits::new(children.iter().map(|child| child.done()));
        waits.through(|| root.cancel());
    });
    let token = sync(move || {
        let root = CancellationToken::new();
        let children: Vec<_> = (0..width).map(|_| root.child_token()).collect();
        let waits = Waits::new(children.iter().map(CancellationToken::cancelled));
        waits.through(|| root.cancel());
    });
    let work = format!("{width} children, each waited on, root canceled, dropped");
    Row::new(format!("fan-out-{width}"), work, ours).peer(TOKEN, token).target(TOKEN, 1.0)
}

/// Requests, each with its own deadline and a waiter, when the server stops.
fn fan_out_deadline(width: usize) -> Row {
    let ours = sync(move || {
        let _runtime = runtime().enter();
        let root = rooted();
        let children: Vec<_> = (0..width).map(|_| root.with_timeout(FAR)).collect();
        let waits = Waits::new(children.iter().map(|child| child.done()));
        waits.through(|| root.cancel());
    });
    let by_hand = sync(move || {
        let _runtime = runtime().enter();
        let root = CancellationToken::new();
        let children: Vec<_> = (0..width).map(|_| root.child_token()).collect();
        let limited = |child| tokio::time::timeout(FAR, CancellationToken::cancelled(child));
        let waits = Waits::new(children.iter().map(limited));
        waits.through(|| root.cancel());
    });
    let work = format!("{width} children with a timeout, each waited on, root canceled, dropped");
    Row::new(format!("fan-out-timeout-{width}"), work, ours).peer(TIMEOUT, by_hand).target(TIMEOUT, 1.05)
}

/// From the cancel until the first of very many children is woken. All descendants have ended by then, which takes
/// most of the time.
fn first_woken() -> Row {
    const WIDTH: usize = 300_000;
    let ours = several(|| {
        let root = rooted();
        let children: Vec<_> = (0..WIDTH).map(|_| root.with_cancel()).collect();
        let waits = Waits::new(children.iter().map(|child| child.done()));
        waits.first_woken(|| root.cancel())
    });
    let token = several(|| {
        let root = CancellationToken::new();
        let children: Vec<_> = (0..WIDTH).map(|_| root.child_token()).collect();
        let waits = Waits::new(children.iter().map(CancellationToken::cancelled));
        waits.first_woken(|| root.cancel())
    });
    Row::new("first-woken", "from cancel until the first of 300,000 children is woken", ours)
        .peer(TOKEN, token)
        .uncounted()
}

/// Tasks whose deadlines pass one after another: the cost of moving a deadline to narrower slots.
fn expired() -> Row {
    const TASKS: u64 = 50_000;
    let after = |at| Duration::from_millis(20 + at * 480 / TASKS);
    let ours = scheduled(async move |times| {
        let start = Clock::start();
        for _ in 0..times {
            let root = rooted();
            let tasks = (0..TASKS).map(|at| {
                let ctx = root.with_timeout(after(at));
                tokio::spawn(async move { drop(ctx.done().await) })
            });
            all(tasks.collect()).await;
        }
        start.elapsed()
    });
    let by_hand = scheduled(async move |times| {
        let start = Clock::start();
        for _ in 0..times {
            let root = CancellationToken::new();
            let tasks = (0..TASKS).map(|at| {
                let (child, after) = (root.child_token(), after(at));
                tokio::spawn(async move { drop(tokio::time::timeout(after, child.cancelled()).await) })
            });
            all(tasks.collect()).await;
        }
        start.elapsed()
    });
    let work = "50,000 tasks whose deadlines pass within half a second";
    Row::new("expired", work, ours).peer(TIMEOUT, by_hand)
}

async fn all(tasks: Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// Runs the work several times, and measures a part of each run.
fn several(once: impl Fn() -> Duration + 'static) -> Run {
    Box::new(move |times| (0..times).map(|_| once()).sum())
}

/// Futures that are polled in place.
pub struct Waits<F>(Vec<F>);

impl<F: Future> Waits<F> {
    pub fn new(futures: impl Iterator<Item = F>) -> Self {
        Waits(futures.collect())
    }

    /// Polls each future once, and returns how many are ready.
    pub fn poll(&mut self, waker: &Waker) -> usize {
        let mut cx = TaskContext::from_waker(waker);
        let poll = |future: &mut F| {
            // SAFETY: the future lies in a vector that is neither resized nor taken apart before it is dropped.
            let future = unsafe { Pin::new_unchecked(future) };
            black_box(&future.poll(&mut cx)).is_ready()
        };
        self.0.iter_mut().map(poll).filter(|ready| *ready).count()
    }

    fn through(mut self, cancel: impl FnOnce()) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert_eq!(self.poll(&waker), 0);
        cancel();
        assert_eq!(woken.0.load(Relaxed), self.0.len());
        assert_eq!(self.poll(&waker), self.0.len());
    }

    fn first_woken(mut self, cancel: impl FnOnce()) -> Duration {
        let woken = Arc::new(First::default());
        let waker = Waker::from(woken.clone());
        assert_eq!(self.poll(&waker), 0);
        let start = Clock::start();
        woken.start.set(start).expect("once");
        cancel();
        *woken.after.get().expect("one is woken")
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Records when it is woken for the first time.
#[derive(Default)]
struct First {
    start: OnceLock<Clock>,
    after: OnceLock<Duration>,
}

impl Wake for First {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.after.get_or_init(|| self.start.get().map(Clock::elapsed).unwrap_or_default());
    }
}

/// From the cancel until the last of the tasks that wait on one context runs.
fn wake(tasks: usize) -> Row {
    let ours = scheduled(async move |times| {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            took += undisturbed(async || {
                let ctx = Context::background().with_cancel();
                let wait = || ctx.done_owned();
                last_awake(tasks, wait, async || ctx.cancel()).await
            })
            .await;
        }
        took
    });
    let token: Run = scheduled(async move |times| {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            took += undisturbed(async || {
                let token = CancellationToken::new();
                let wait = || token.clone().cancelled_owned();
                last_awake(tasks, wait, async || token.cancel()).await
            })
            .await;
        }
        took
    });
    Row::new(format!("wake-{tasks}"), format!("from cancel until the last of {tasks} tasks runs"), ours)
        .peer(TOKEN, token)
        .target(TOKEN, 1.0)
        .uncounted()
}

/// Repeats the measurement if another program used the processor meanwhile.
async fn undisturbed(mut measure: impl AsyncFnMut() -> Awake) -> Duration {
    let mut awake = measure().await;
    for _ in 0..20 {
        if !awake.preempted {
            break;
        }
        awake = measure().await;
    }
    awake.after
}

pub struct Awake {
    pub after: Duration,
    preempted: bool,
}

/// Runs everything on one thread, that of the runtime.
pub async fn last_awake<F>(tasks: usize, wait: impl Fn() -> F, end: impl AsyncFnOnce()) -> Awake
where
    F: Future<Output: Send> + Send + 'static,
{
    let waiting = Arc::new(AtomicUsize::new(0));
    let (last, awake) = oneshot::channel();
    let last = Arc::new(std::sync::Mutex::new(Some(last)));
    for _ in 0..tasks {
        let (waiting, last, wait) = (waiting.clone(), last.clone(), wait());
        tokio::spawn(async move {
            waiting.fetch_add(1, Relaxed);
            wait.await;
            if waiting.fetch_sub(1, Relaxed) == 1 {
                let last = last.lock().expect("no panic").take();
                last.expect("one is the last").send(Instant::now()).expect("waited for");
            }
        });
    }
    while waiting.load(Relaxed) != tasks {
        yield_now().await;
    }
    let (before, start) = (preemptions(), Instant::now());
    end().await;
    let after = awake.await.expect("it ended") - start;
    Awake { after, preempted: preemptions() != before }
}
