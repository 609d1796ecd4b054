//! How a side's work is run: on this thread, on two, or as a future.

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

/// Far enough off that no deadline passes while anything is measured.
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

/// Two threads at once, each so many times; the time is that of one of them, by the wall, as to wait
/// for a lock takes no time of the thread.
///
/// If another program had one of the processors meanwhile, they were not two, and it is done again.
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

/// What one of several threads did at the same time.
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

    /// The same for a task, which stays on its thread while no other is idle.
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

/// One `await` after the other on a runtime, without a turn of its scheduler in between: the work of
/// the futures is the subject, not Tokio's run queue.
pub fn turns(mut op: impl AsyncFnMut() + 'static) -> Run {
    looped(async move |times| {
        let start = Clock::start();
        for _ in 0..times {
            op().await;
        }
        start.elapsed()
    })
}

/// The same, where the loop is part of the work.
pub fn looped(mut work: impl AsyncFnMut(u64) -> Duration + 'static) -> Run {
    Box::new(move |times| runtime().block_on(unconstrained(at_once(work(times)))))
}

/// The same, where the work goes through the scheduler.
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

/// As the only work of a `current_thread` runtime of its own.
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

/// By both workers of a runtime of its own at once, so many times each, beside so many tasks that are `idle`. The
/// time is the wall's, as with [`two_threads`].
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
            // Made in the runtime, and on its way before anything is measured.
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

/// Lets two tasks begin once they are on two threads.
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

/// One runtime for all sides.
///
/// It has a timer nearer than those that are measured, as any busy program does. Without one Tokio
/// wakes its driver, by a system call, for each timer that is registered, and that is what would be
/// measured.
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

/// Polls again at once whenever the future is pending.
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

/// Pending once, then ready: the other branch of a `select!`.
#[derive(Default)]
pub struct PendingOnce(bool);

impl Future for PendingOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The same, and has its task come to its turn again.
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
