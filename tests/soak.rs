//! Promise 10 over time: live memory stays constant, however many contexts have been derived and dropped.
//!
//! By default this is a quick check; `TOKIO_CTX_FULL=1` runs a million requests, ten million contexts and a
//! million iterations.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use common::{Cause, Drops, LONG, Wakes, current_thread, is_full, ms, multi_thread, poll, poll_once};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, yield_now};
use tokio_ctx::{CancelScope, Context, DoneOwned};
use tokio_util::sync::CancellationToken;

/// The allocated less the freed memory of a group of threads.
#[derive(Default)]
struct Account {
    bytes: AtomicIsize,
    blocks: AtomicIsize,
}

thread_local! {
    /// The account of this thread's test, which is shared by the test's threads.
    static ACCOUNT: Cell<Option<&'static Account>> = const { Cell::new(None) };
}

struct Counting;

fn count(bytes: isize, blocks: isize) {
    // Not available while the thread ends, when the counts are no longer used.
    if let Ok(Some(account)) = ACCOUNT.try_with(Cell::get) {
        account.bytes.fetch_add(bytes, Ordering::Relaxed);
        account.blocks.fetch_add(blocks, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize), -1);
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize, 0);
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Account {
    /// Creates an account, and assigns this thread to it.
    fn open() -> &'static Account {
        let account: &'static Account = Box::leak(Box::default());
        account.join();
        account
    }

    fn join(&'static self) {
        ACCOUNT.set(Some(self));
    }

    fn live(&self) -> (isize, isize) {
        (self.bytes.load(Ordering::SeqCst), self.blocks.load(Ordering::SeqCst))
    }
}

/// Returns `full` if `TOKIO_CTX_FULL` is set, and `quick` otherwise.
fn size(quick: usize, full: usize) -> usize {
    if is_full() { full } else { quick }
}

fn report(what: &str, start: Instant, before: (isize, isize), after: (isize, isize)) {
    println!(
        "{what}: {:.1} s, bytes {} -> {}, blocks {} -> {}",
        start.elapsed().as_secs_f64(),
        before.0,
        after.0,
        before.1,
        after.1
    );
}

static BACKGROUND: Context = Context::background();

/// Requests like those of the gateway: values, a budget, and three parts on their own tasks, two of them with a
/// shorter budget. Some finish, some are dropped by the client, and some run out of time.
mod requests {
    use super::*;

    struct Id(#[allow(dead_code)] u64);
    struct Tenant(#[allow(dead_code)] [u8; 64]);

    /// The number of kinds of requests.
    const FATES: usize = 8;

    #[derive(Clone, Copy)]
    enum Backend {
        Quick,
        /// Never answers, so that only the end of the context resumes the caller.
        Dead,
    }

    async fn backend(backend: Backend) -> u32 {
        for _ in 0..3 {
            yield_now().await;
        }
        match backend {
            Backend::Quick => 1,
            Backend::Dead => pending().await,
        }
    }

    async fn part(profile: Backend) -> u32 {
        Context::current().run(backend(profile)).await.unwrap_or(0)
    }

    async fn optional_part(budget: Duration, answer: Backend) -> u32 {
        let ctx = Context::current();
        let outcome = ctx
            .within(budget, async |step| {
                let call = step.with_value(Tenant([0; 64])).with_cancel();
                let inner = call.within(LONG, async |ctx| ctx.run(backend(answer)).await.unwrap_or(0));
                inner.await.unwrap_or(0)
            })
            .await;
        outcome.unwrap_or(0)
    }

    /// Performs one request under `server`; returns 3 if all of its parts were answered.
    async fn request(server: &Context, id: usize, cleanups: Arc<AtomicUsize>, seen: &Drops) -> u32 {
        use Backend::{Dead, Quick};
        let budget = if id % FATES == 1 { ms(1) } else { LONG };
        let values = server.with_value(Id(id as u64)).with_value(seen.counted());
        let scope = values.with_timeout_cause(budget, Cause("out of time"));
        let ctx = scope.clone();
        let (profile, optional) = match id % FATES {
            0 | 7 => (Quick, Quick),
            // Only the optional part is late.
            2 => (Quick, Dead),
            _ => (Dead, Dead),
        };
        let optional_budget = if id % FATES == 2 { ms(1) } else { LONG };
        let parts = [ctx.spawn(part(profile)), ctx.spawn(optional_part(optional_budget, optional))];
        let third = ctx.spawn(optional_part(LONG, profile));
        let cleanup = ctx.after_func(move || async move {
            cleanups.fetch_add(1, Ordering::Relaxed);
        });
        match id % FATES {
            3 => drop(scope),
            4 => {
                yield_now().await;
                scope.cancel_with(Cause("hung up"));
            }
            5 => {
                // The caller stops waiting.
                for _ in 0..3 {
                    assert!(poll_once(ctx.done()).is_pending());
                    yield_now().await;
                }
                scope.canceler().cancel();
            }
            6 => {
                let token = CancellationToken::new();
                let merged = ctx.merge(&server.with_token(&token));
                let bridge = merged.cancellation_token();
                yield_now().await;
                token.cancel();
                bridge.cancelled().await;
                scope.cancel();
            }
            7 => {
                let _stopped = cleanup.stop();
                scope.detach();
            }
            _ => {
                // Finished, or out of time: the scope is dropped with the request.
                let mut answers = third.await.unwrap();
                for part in parts {
                    answers += part.await.unwrap();
                }
                return answers;
            }
        }
        let mut answers = third.await.unwrap();
        for part in parts {
            answers += part.await.unwrap();
        }
        answers
    }

    /// Performs this many requests on a number of connections; returns when all their tasks have ended.
    async fn serve(server: &Context, requests: usize, seen: &Drops) {
        const CONNECTIONS: usize = 64;
        let cleanups = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        for connection in 0..CONNECTIONS {
            let (server, cleanups, seen) = (server.clone(), cleanups.clone(), seen.clone());
            connections.spawn(async move {
                for id in (connection..requests).step_by(CONNECTIONS) {
                    let answers = request(&server, id, cleanups.clone(), &seen).await;
                    match id % FATES {
                        0 | 7 => assert_eq!(answers, 3),
                        2 => assert_eq!(answers, 2),
                        _ => assert_eq!(answers, 0),
                    }
                }
            });
        }
        while let Some(connection) = connections.join_next().await {
            connection.unwrap();
        }
        // The functions after the end, the token watchers, and what they hold.
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            yield_now().await;
        }
        assert!(cleanups.load(Ordering::Relaxed) >= requests / FATES * (FATES - 1));
    }

    #[test]
    fn leave_nothing_on_two_workers() {
        let account = Account::open();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(|| account.join())
            .build()
            .unwrap();
        let server = BACKGROUND.with_cancel();
        let total = size(20_000, 1_000_000);
        let seen = Drops::default();
        let start = Instant::now();
        let mut early = (0, 0);
        for (round, requests) in [1_000, total].into_iter().enumerate() {
            runtime.block_on(serve(&server, requests, &seen));
            let live = account.live();
            if round == 0 {
                early = live;
            }
            assert_eq!(
                seen.count(),
                if round == 0 { requests } else { requests + 1_000 },
                "a context's values were kept, or dropped twice"
            );
            report(&format!("{requests} requests"), start, early, live);
        }
        let late = account.live();
        // Lazily initialized memory of Tokio's workers. A context is 200 bytes.
        let slack = 4 * 1024;
        assert!((late.0 - early.0).abs() < slack, "{} bytes grew to {}", early.0, late.0);
        assert!((late.1 - early.1).abs() < 16, "{} blocks grew to {}", early.1, late.1);
        assert!(!server.is_done());
    }
}

/// Many contexts under one root, a thousand at a time.
mod a_long_lived_root {
    use super::*;

    const ALIVE: usize = 1_000;

    /// The live objects of one context: the context, its scope, and possibly a wait.
    type Alive = (Context, Option<CancelScope>, Option<Pin<Box<DoneOwned>>>);

    fn derive(root: &Context, other: &Context, nth: usize) -> Alive {
        let scope = match nth % 6 {
            0 => root.with_cancel(),
            1 => root.with_timeout(LONG),
            2 => root.with_value(nth).with_timeout_cause(LONG, Cause("slow")),
            3 => root.merge(other),
            4 => {
                let mut scope = root.with_cancel();
                for _ in 0..9 {
                    scope = scope.detach().with_cancel();
                }
                scope
            }
            _ => other.with_deadline(tokio::time::Instant::now() + LONG * 2),
        };
        let ctx = scope.clone();
        let wait = (nth % 4 != 0).then(|| {
            let mut wait = Box::pin(ctx.done_owned());
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
            wait
        });
        match nth % 3 {
            0 => scope.cancel_with(Cause("done")),
            1 => return (scope.detach(), None, wait),
            _ => {}
        }
        (ctx, Some(scope), wait)
    }

    fn uses_constant_memory(name: &str, root: &Context, other: &Context) {
        let account = Account::open();
        let runtime = current_thread();
        let _entered = runtime.enter();
        let total = size(120_000, 10_080_000);
        let mut alive: VecDeque<Alive> = VecDeque::with_capacity(ALIVE + 1);
        let start = Instant::now();
        let mut samples = Vec::with_capacity(16);
        // A multiple of every period, so that the same kinds are alive at every sample.
        let period = total / 10;
        assert_eq!(period % (12 * ALIVE), 0);
        for nth in 0..=period * 10 {
            if nth % period == 0 && nth != 0 {
                samples.push(account.live());
            }
            alive.push_back(derive(root, other, nth));
            if alive.len() > ALIVE {
                alive.pop_front();
            }
        }
        report(&format!("{} contexts, {name}", period * 10), start, samples[0], samples[9]);
        assert!(samples.iter().all(|sample| *sample == samples[0]), "not flat: {samples:?}");
        drop(alive);
        assert!(!root.is_done());
    }

    #[test]
    fn uses_constant_memory_without_waits() {
        let root = BACKGROUND.with_cancel();
        uses_constant_memory("never waited on", &root, &BACKGROUND.with_value(1));
    }

    #[test]
    fn uses_constant_memory_with_a_deadline_and_waits() {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let root = BACKGROUND.with_timeout(LONG * 3);
        let other = BACKGROUND.with_timeout(LONG * 4);
        let mut waits = [root.done(), root.done(), other.done()].map(Box::pin);
        for wait in &mut waits {
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        }
        uses_constant_memory("root with a deadline, waited on", &root, &other);
    }

    #[test]
    fn uses_constant_memory_under_a_token() {
        let token = CancellationToken::new();
        let root = BACKGROUND.with_token(&token);
        let other = root.with_cancel();
        uses_constant_memory("under a CancellationToken", &root, &other);
    }

    /// Two threads at once, each with its own thousand. At the end, no memory of either is left.
    #[test]
    fn is_left_clean_by_two_threads() {
        let account = Account::open();
        let root = BACKGROUND.with_cancel();
        let runtime = Arc::new(multi_thread(1));
        let round = |contexts: usize| {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let _entered = runtime.enter();
                        // Memory that a thread keeps for itself is freed when it has ended, and is not checked here.
                        (0..100).for_each(|nth| drop(derive(&root, &BACKGROUND, nth)));
                        account.join();
                        let mut alive = VecDeque::new();
                        for nth in 0..contexts {
                            alive.push_back(derive(&root, &BACKGROUND, nth));
                            if alive.len() > ALIVE {
                                alive.pop_front();
                            }
                        }
                        drop(alive);
                        ACCOUNT.set(None);
                    });
                }
            });
            account.live()
        };
        let start = Instant::now();
        let (early, late) = (round(2_000), round(size(50_000, 1_000_000)));
        report("contexts from two threads", start, early, late);
        // The capacity that a list keeps, whichever thread was first.
        assert!((late.0 - early.0).abs() < 16 * 1024, "{early:?} grew to {late:?}");
        assert!((late.1 - early.1).abs() < 16, "{early:?} grew to {late:?}");
    }
}

/// `select!` in a loop: a wait is created, polled and dropped in each iteration.
mod a_select_loop {
    use super::*;

    async fn iterations(ctx: &Context, iterations: usize) {
        for _ in 0..iterations {
            tokio::select! {
                biased;
                error = ctx.done() => panic!("{error}"),
                () = yield_now() => {}
            }
        }
    }

    #[test]
    fn leaves_nothing() {
        let account = Account::open();
        let runtime = current_thread();
        let total = size(60_000, 1_000_000);
        let plain = BACKGROUND.with_cancel();
        let timed = plain.with_timeout(LONG);
        let below = timed.context().with_value(1).with_cancel();
        let merged = plain.merge(&timed);
        let contexts = [("plain", &plain), ("timed", &timed), ("below", &below), ("merged", &merged)];
        for others in [0, 1, 3] {
            runtime.block_on(async {
                let other_waits: Vec<_> =
                    (0..others).map(|_| tokio::spawn(below.done_owned())).collect();
                yield_now().await;
                for (name, ctx) in contexts {
                    iterations(ctx, 1_000).await;
                    let (start, before) = (Instant::now(), account.live());
                    iterations(ctx, total).await;
                    let after = account.live();
                    report(
                        &format!("{total} iterations, {name}, {others} other waits"),
                        start,
                        before,
                        after,
                    );
                    assert_eq!(after, before, "{name} with {others} other waits");
                }
                for task in other_waits {
                    task.abort();
                    assert!(task.await.unwrap_err().is_cancelled());
                }
            });
        }
    }

    /// Several tasks on two workers wait on one context in such loops.
    #[test]
    fn leaves_nothing_on_two_workers() {
        let account = Account::open();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(|| account.join())
            .build()
            .unwrap();
        let ctx = BACKGROUND.with_timeout(LONG);
        let round = |count: usize| {
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for _ in 0..4 {
                    let ctx = ctx.clone();
                    tasks.spawn(async move { iterations(&ctx, count / 4).await });
                }
                while let Some(task) = tasks.join_next().await {
                    task.unwrap();
                }
                while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                    yield_now().await;
                }
            });
            account.live()
        };
        let start = Instant::now();
        let (early, late) = (round(1_000), round(size(60_000, 1_000_000)));
        report("iterations of four tasks", start, early, late);
        assert!((late.0 - early.0).abs() < 4 * 1024, "{early:?} grew to {late:?}");
    }
}

/// A timeout of an hour, awaited, and dropped long before.
mod a_dropped_timeout_of_an_hour {
    use super::*;

    fn wait_and_drop(waits: usize, below: bool, waker: &Waker) {
        let ctx = BACKGROUND.with_timeout(LONG).detach();
        let child = ctx.with_cancel().detach();
        let waited = if below { &child } else { &ctx };
        let mut waiting: Vec<_> = (0..waits).map(|_| Box::pin(waited.done_owned())).collect();
        for wait in &mut waiting {
            assert!(poll(wait.as_mut(), waker).is_pending());
        }
    }

    #[test]
    fn holds_no_memory_and_no_waker() {
        let account = Account::open();
        let runtime = current_thread();
        let _entered = runtime.enter();
        let (wakes, waker) = Wakes::new();
        wait_and_drop(3, true, &waker);
        let before = account.live();
        for round in 0..size(50_000, 1_000_000) {
            wait_and_drop(round % 4, round % 3 == 0, &waker);
        }
        assert_eq!(account.live(), before);
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
        assert_eq!(wakes.count(), 0);
    }

    /// Returns how often a runtime goes to sleep during a day on a paused clock: once for each timer.
    fn sleeps_in_a_day(first: impl FnOnce()) -> usize {
        let sleeps = Arc::new(AtomicUsize::new(0));
        let counted = sleeps.clone();
        let runtime: Runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .on_thread_park(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .build()
            .unwrap();
        runtime.block_on(async {
            first();
            tokio::time::sleep(LONG * 24).await;
        });
        sleeps.load(Ordering::SeqCst)
    }

    #[test]
    fn holds_no_timer() {
        let idle = sleeps_in_a_day(|| {});
        let kept = sleeps_in_a_day(|| {
            let ctx = BACKGROUND.with_timeout(LONG).detach();
            let mut wait = Box::pin(ctx.done_owned());
            assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
            // Intentional: its timer stays.
            std::mem::forget(wait);
        });
        assert!(kept > idle, "a timer would not be seen: {kept} sleeps with one, {idle} without");
        for waits in 0..4 {
            for below in [false, true] {
                let sleeps = sleeps_in_a_day(|| wait_and_drop(waits, below, Waker::noop()));
                assert_eq!(sleeps, idle, "a timer was left by {waits} waits");
            }
        }
        // Canceled while the context still exists.
        let mut kept = None;
        let sleeps = sleeps_in_a_day(|| {
            let ctx = BACKGROUND.with_timeout(LONG);
            let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(ctx.done_owned())).collect();
            for wait in &mut waiting {
                assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
            }
            ctx.cancel();
            waiting.clear();
            kept = Some(ctx);
        });
        assert_eq!(sleeps, idle, "a timer outlived its context");
        assert!(kept.is_some_and(|ctx| ctx.is_done()));
    }
}
