//! How the work of a side is run: on this thread, on two threads, or as a future.

use std::cell::LazyCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;

use crate::clock::{Clock, preemptions};
use crate::row::Run;

/// Distant enough that no deadline passes during a measurement.
pub const FAR: Duration = Duration::from_secs(600);

#[inline]
pub fn timed(times: u64, mut op: impl FnMut()) -> Duration {
    let start = Clock::start();
    for _ in 0..times {
        op();
    }
    start.elapsed()
}

pub fn sync(mut op: impl FnMut() + 'static) -> Run {
    Box::new(move |times| timed(times, &mut op))
}

/// Runs the work on two threads at once, `times` times each. Returns the wall-clock time of one of them, because
/// waiting for a lock uses no CPU time.
///
/// Repeats the measurement if another program used one of the processors meanwhile.
pub fn two_threads<T: Sync + 'static>(shared: T, op: impl Fn(&T) + Sync + 'static) -> Run {
    Box::new(move |times| {
        let both = || {
            let start = Barrier::new(2);
            let one = || {
                start.wait();
                Lane::run(|| (0..times).for_each(|_| op(&shared)))
            };
            thread::scope(|scope| {
                let other = scope.spawn(one);
                [one(), other.join().expect("the other thread")]
            })
        };
        let mut lanes = both();
        for _ in 0..100 {
            if Lane::side_by_side(&lanes) {
                break;
            }
            lanes = both();
        }
        lanes.iter().map(Lane::took).sum::<Duration>() / 2
    })
}

/// What one of two concurrent threads did, and when.
struct Lane {
    start: Instant,
    end: Instant,
    thread: ThreadId,
    preempted: bool,
}

impl Lane {
    fn run(work: impl FnOnce()) -> Lane {
        let (before, start) = (preemptions(), Instant::now());
        work();
        Lane::since(start, before)
    }

    /// The same for a task, which stays on its thread while no other thread is idle.
    async fn run_async(work: impl Future<Output = ()>) -> Lane {
        let (before, start) = (preemptions(), Instant::now());
        work.await;
        Lane::since(start, before)
    }

    fn since(start: Instant, preemptions_before: i64) -> Lane {
        let preempted = preemptions() != preemptions_before;
        Lane { start, end: Instant::now(), thread: thread::current().id(), preempted }
    }

    fn took(&self) -> Duration {
        self.end - self.start
    }

    fn side_by_side([a, b]: &[Lane; 2]) -> bool {
        let together = a.end.min(b.end).saturating_duration_since(a.start.max(b.start));
        let all = a.end.max(b.end) - a.start.min(b.start);
        a.thread != b.thread && !a.preempted && !b.preempted && together > all.mul_f64(0.8)
    }
}

/// Runs one `await` after another on a runtime, without going through its scheduler, to measure the futures and not
/// Tokio's run queue.
pub fn iterations(mut op: impl AsyncFnMut() + 'static) -> Run {
    looped(async move |times| {
        let start = Clock::start();
        for _ in 0..times {
            op().await;
        }
        start.elapsed()
    })
}

/// The same for work that contains its own loop.
pub fn looped(mut work: impl AsyncFnMut(u64) -> Duration + 'static) -> Run {
    Box::new(move |times| runtime().block_on(unconstrained(at_once(work(times)))))
}

/// The same for work that goes through the scheduler.
pub fn scheduled(mut work: impl AsyncFnMut(u64) -> Duration + 'static) -> Run {
    Box::new(move |times| runtime().block_on(unconstrained(work(times))))
}

/// The same, in a task.
pub fn spawned<F>(work: impl Fn(u64) -> F + 'static) -> Run
where
    F: Future<Output = Duration> + Send + 'static,
{
    Box::new(move |times| {
        let task = work(times);
        runtime().block_on(async { tokio::spawn(unconstrained(task)).await.expect("no panic") })
    })
}

/// Runs it as the only work of a `current_thread` runtime of its own.
pub fn alone<F: Future>(work: impl Fn(u64) -> F + 'static) -> Run {
    let runtime = LazyCell::new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime")
    });
    Box::new(move |times| {
        let work = work(times);
        runtime.block_on(async {
            let start = Clock::start();
            work.await;
            start.elapsed()
        })
    })
}

/// Runs it on both workers of a runtime of its own at once, `times` times each, while a number of `idle` tasks wait. The
/// time is wall-clock time, as in [`two_threads`].
pub fn two_workers<F, I>(
    pending: usize,
    idle: impl Fn(Duration) -> I + 'static,
    work: impl Fn(u64) -> F + 'static,
) -> Run
where
    F: Future<Output = ()> + Send + 'static,
    I: Future<Output = ()> + Send + 'static,
{
    let runtime = LazyCell::new(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        for at in 0..pending {
            // Created in the runtime, and waiting before the measurement starts.
            let _entered = runtime.enter();
            runtime.spawn(idle(Duration::from_millis(at as u64)));
        }
        while runtime.metrics().global_queue_depth() > 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(100));
        runtime
    });
    Box::new(move |times| {
        let both = || {
            let places = Arc::new(Mutex::new([None; 2]));
            let lane = |at| {
                let (places, work) = (places.clone(), work(times));
                runtime.spawn(async move {
                    come_apart(&places, at).await;
                    Lane::run_async(work).await
                })
            };
            let lanes = [lane(0), lane(1)];
            runtime.block_on(async {
                let [one, other] = lanes;
                [one.await.expect("no panic"), other.await.expect("no panic")]
            })
        };
        let mut lanes = both();
        for _ in 0..20 {
            if Lane::side_by_side(&lanes) {
                break;
            }
            lanes = both();
        }
        lanes.iter().map(Lane::took).sum::<Duration>() / 2
    })
}

/// Lets two tasks start when they are on two threads.
async fn come_apart(places: &Mutex<[Option<ThreadId>; 2]>, at: usize) {
    for _ in 0..100_000 {
        let all = {
            let mut places = places.lock().expect("no panic");
            places[at] = Some(thread::current().id());
            *places
        };
        if matches!(all, [Some(one), Some(other)] if one != other) {
            break;
        }
        yield_now().await;
    }
}

/// Returns the runtime that all sides share.
///
/// It has a timer that is nearer than those that are measured, like any busy program. Otherwise Tokio would wake its
/// driver, by a system call, for each timer that is registered, and the measurement would be of that call.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            tokio::spawn(async {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        });
        runtime
    })
}

/// Polls again immediately whenever the future is pending.
pub async fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
        }
    })
    .await
}

/// Pending once, and then ready: the other branch of a `select!`.
#[derive(Default)]
pub struct PendingOnce(bool);

impl Future for PendingOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The same, and wakes its task, which goes through the scheduler again.
#[derive(Default)]
pub struct WakeOnce(bool);

impl Future for WakeOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
