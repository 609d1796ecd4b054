//! Loom models of the engine: every order of the threads, up to a bound of preemptions.
//!
//! Each file contains the models of one topic. A model has two or three threads, one tree, and two or three operations at
//! the same time. It asserts what the design promises:
//!
//! - When a call of `cancel()` returns, every descendant has ended, even if the call was the second one. During the call, a
//!   parent may have ended while a linked child has not.
//! - When one query has reported that a context has ended, all queries do, with the same error.
//! - A pending wait is woken when the context ends, by the end itself. A query after it would wake the wait as well, so
//!   [`final_error`] and what is built on it fail if they wake anything.
//! - Nothing is left behind: no token, no waker, no timer.
//!
//! `shim.rs` replaces the clock, the runtimes and their timers. `enter_runtime` sets the runtime of a thread, `tick`
//! advances the clock, and `fire_timers` does what the time driver of the current runtime does when it runs or shuts
//! down.
//!
//! ```text
//! RUSTFLAGS="--cfg tokio_ctx_loom -C debug-assertions" CARGO_TARGET_DIR=target/loom \
//!     cargo test -p tokio-ctx --features watch --lib --release loom_models
//! ```
//!
//! With `-- --nocapture`, each model prints the number of orders that were explored. `LOOM_MAX_PREEMPTIONS` overrides the
//! bound of each model, and `LOOM_MAX_DURATION` limits its seconds.

use std::cell::Cell;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, Weak};
use std::task::{self, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::token::Token;
use crate::{CancelScope, Context, DoneOwned, Error, sync};

mod after;
mod bridge;
mod bucket;
mod cancel;
mod conclusions;
mod deadline;
mod derive;
mod drops;
mod foreign;
mod idle_limit;
mod link;
mod merge;
mod moves;
mod rivals;
mod runtimes;
mod second;
mod transient;
mod wake;
#[cfg(feature = "watch")]
mod watch;

const SECOND: Duration = Duration::from_secs(1);

/// Explores `model` with up to `preemptions[0]` preemptions, and then, with loads that may be stale, with up to
/// `preemptions[1]`.
fn explore<F: Fn() + Send + Sync + Copy + 'static>(preemptions: [usize; 2], model: F) {
    explore_with(false, preemptions[0], model);
    explore_with(true, preemptions[1], model);
}

/// The same without stale loads, which cause too many orders with three threads or with timers.
fn explore_exact<F: Fn() + Send + Sync + Copy + 'static>(preemptions: usize, model: F) {
    explore_with(false, preemptions, model);
}

fn explore_with<F: Fn() + Send + Sync + Copy + 'static>(stale: bool, preemptions: usize, model: F) {
    let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    let name = name.rsplit_once("loom_models::").map_or(name, |(_, name)| name);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    let bound = *builder.preemption_bound.get_or_insert(preemptions);
    epoch();
    let orders = Arc::new(AtomicUsize::new(0));
    let (begun, counter) = (Instant::now(), orders.clone());
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        sync::allow_stale_loads(stale);
        sync::pause(false);
        // Initializes the statics before the threads start, because their initialization would order the threads.
        wait_for_room();
        sync::now();
        sync::fire_timers(false);
        registrations(&Context::background().with_cancel());
        model();
    });
    let (orders, seconds) = (orders.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    let loads = if stale { "stale" } else { "exact" };
    println!("{orders:>7} orders, {loads} loads, {bound} preemptions, {seconds:>5.1} s: {name}");
}

/// Returns when the first stamp of the engine was created.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let seen = Arc::new(Mutex::new(None));
        let epoch = seen.clone();
        loom::model(move || {
            sync::now();
            *epoch.lock().unwrap() = Some(Instant::now());
            drop(Context::background().with_timeout(SECOND));
        });
        let epoch = seen.lock().unwrap();
        epoch.expect("the model ran")
    })
}

/// The width in nanoseconds of the slot of a deadline that is a second away.
const WIDTH: i128 = 1 << 26;
/// The value of the first stamp.
const BIAS: i128 = 100 * 365 * 86_400 * 1_000_000_000;

/// Returns what is left of the slot at the given time.
fn room_in_slot(at: Instant) -> i128 {
    let since = at.duration_since(epoch()).as_nanos() as i128;
    WIDTH - (since + BIAS).rem_euclid(WIDTH)
}

/// Waits until the time is not close to the border of two slots, so that all orders of a model use the same slots.
fn wait_for_room() {
    const MARGIN: i128 = 200_000;
    while !(MARGIN..WIDTH - MARGIN).contains(&room_in_slot(Instant::now() + SECOND)) {}
}

/// Returns a deadline shortly after the next tick, in a slot that begins before the tick. The timer fires at the tick, and
/// moves the deadline.
fn soon_after_a_tick() -> tokio::time::Instant {
    let tick = sync::now() + SECOND;
    let room = u64::try_from(room_in_slot(tick.into_std()) / 2).expect("some room");
    tick + Duration::from_nanos(room.min(4_000_000))
}

/// Runs `f` on a thread of a runtime.
fn in_runtime<T: 'static>(
    id: sync::RuntimeId,
    f: impl FnOnce() -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    loom::thread::spawn(move || {
        sync::enter_runtime(id);
        f()
    })
}

/// Advances the clock, and fires the timers.
fn tick_and_fire() {
    sync::tick();
    sync::fire_timers(false);
}

thread_local! {
    static EXPECTS_SHUTDOWN: Cell<bool> = const { Cell::new(false) };
}

/// Polls a wait in a runtime that may have been shut down. Returns whether this panics for that reason.
fn panics_in_shutdown(waiter: &mut Waiter) -> bool {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<String>();
            let is_expected = text.is_some_and(|text| text.contains(sync::SHUT_DOWN));
            if !(is_expected && EXPECTS_SHUTDOWN.get()) {
                report(info);
            }
        }));
    });
    EXPECTS_SHUTDOWN.set(true);
    let polled = panic::catch_unwind(AssertUnwindSafe(|| waiter.poll()));
    EXPECTS_SHUTDOWN.set(false);
    match polled {
        Ok(ended) => assert!(!ended, "ended too early"),
        Err(panic) => {
            assert!(panic.downcast::<String>().is_ok_and(|text| text.contains(sync::SHUT_DOWN)));
            return true;
        }
    }
    false
}

/// Shuts down these runtimes. A model that has started timers has to.
fn shut_down(runtimes: impl IntoIterator<Item = sync::RuntimeId>) {
    for id in runtimes {
        sync::enter_runtime(id);
        sync::fire_timers(true);
    }
}

/// Returns the root, and a chain below it with the given number of levels.
fn chain(root: &Context, levels: usize) -> Vec<Context> {
    let mut all = vec![root.clone()];
    for level in 0..levels {
        let child = all[level].with_cancel().detach();
        all.push(child);
    }
    all
}

/// Drops a scope on another thread. The drop reads the count of an `Arc`, which loom does not model. On a thread of its own,
/// loom explores an order in which everything else is first.
fn drop_elsewhere(scope: CancelScope) -> loom::thread::JoinHandle<()> {
    loom::thread::spawn(move || drop(scope))
}

/// Returns the number of waiters and linked children of a context.
fn registrations(ctx: &Context) -> usize {
    let (token, mut children) = (token(ctx), Vec::new());
    token.children(0, u32::MAX, &mut children);
    if token.ended() { 0 } else { token.waiters() + children.len() }
}

/// Returns the number of lists that contain a context: those of its parents, and buckets.
fn memberships(ctx: &Context) -> usize {
    Arc::weak_count(token(ctx))
}

fn token(ctx: &Context) -> &Arc<Token> {
    ctx.token().expect("not the background")
}

/// A waker that counts.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl CountingWaker {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        WAKES.with(|wakes| wakes.set(wakes.get() + 1));
    }
}

// Loom's, because all threads of a model are one of the system's.
sync::thread_local! {
    /// The number of wakers that this thread has called.
    static WAKES: Cell<usize> = Cell::new(0);
}

/// Runs a check after an end. Asserts that it wakes nothing: a query that finds the end of an ancestor ends what is below, and
/// so would hide that the end itself has not reached a wait.
#[track_caller]
fn without_wakes<R>(check: impl FnOnce() -> R) -> R {
    let before = WAKES.with(Cell::get);
    let result = check();
    assert_eq!(WAKES.with(Cell::get), before, "the end has not woken a wait, but the check has");
    result
}

/// A task that waits for the end.
struct Waiter {
    done: Pin<Box<DoneOwned>>,
    waker: Arc<CountingWaker>,
    /// The number of wake-ups before the last poll.
    wakes_before_poll: usize,
    error: Option<Error>,
}

impl Waiter {
    fn on(ctx: &Context) -> Waiter {
        let done = Box::pin(ctx.done_owned());
        Waiter { done, waker: Arc::default(), wakes_before_poll: 0, error: None }
    }

    /// Creates a waiter, and polls it once.
    #[track_caller]
    fn waiting_on(ctx: &Context) -> Waiter {
        let mut waiter = Waiter::on(ctx);
        assert!(!waiter.poll(), "ended too early");
        waiter
    }

    /// Polls once, and returns whether the wait is over.
    fn poll(&mut self) -> bool {
        self.wakes_before_poll = self.waker.count();
        let waker = Waker::from(self.waker.clone());
        if let Poll::Ready(error) = self.done.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            self.error = Some(error);
        }
        self.error.is_some()
    }

    /// Moves the wait to another task, from the next poll on.
    fn change_task(&mut self) {
        self.waker = Arc::default();
    }

    /// Returns whether the wait is over, or was woken since the last poll.
    fn is_woken(&self) -> bool {
        self.error.is_some() || self.waker.count() > self.wakes_before_poll
    }

    /// After the end: asserts that the wait is over, or was woken since the last poll, and that nothing is left behind.
    #[track_caller]
    fn finish(mut self, error: &Error) {
        if self.error.is_none() {
            assert!(self.is_woken(), "a lost wake-up");
            assert!(without_wakes(|| self.poll()), "a spurious wake-up");
        }
        assert_same(error, self.error.as_ref().expect("it is over"));
        self.drop_wait().assert_dropped();
    }

    /// Drops the wait.
    fn drop_wait(self) -> DroppedWait {
        DroppedWait(self.waker)
    }
}

/// The waker of a dropped waiter, which another thread may be about to call.
#[must_use]
struct DroppedWait(Arc<CountingWaker>);

impl DroppedWait {
    #[track_caller]
    fn assert_dropped(self) {
        assert_eq!(Arc::strong_count(&self.0), 1, "a waker left behind");
    }
}

#[track_caller]
fn assert_same(a: &Error, b: &Error) {
    assert_eq!(facts(a), facts(b), "two errors: {a}, and {b}");
}

/// Returns the content of an error, with the addresses of its lines and of its cause.
fn facts(error: &Error) -> impl PartialEq + std::fmt::Debug {
    let origin = error.origin();
    (
        error.kind(),
        ptr::from_ref(origin.made_at()),
        origin.canceled_at().map(ptr::from_ref),
        (origin.budget(), origin.ended_at()),
        error.cause().map(|cause| ptr::from_ref(cause).cast::<()>()),
    )
}

/// Asserts that the end of an ancestor has reached a context that is linked. Comes before any query.
#[track_caller]
fn assert_reached(ctx: &Context) {
    let token = token(ctx);
    assert!(token.ended() || !token.is_linked(), "linked, but the end has not reached it");
}

/// Queries a context that has ended, by an end that has returned, in all ways.
#[track_caller]
fn final_error(ctx: &Context) -> Error {
    assert_reached(ctx);
    without_wakes(|| overdue_error(ctx))
}

/// The same for a context that has a deadline or an idle limit that has passed. The query may be the first to notice, and
/// then wakes what waits.
#[track_caller]
fn overdue_error(ctx: &Context) -> Error {
    assert!(ctx.is_done(), "has not ended");
    let error = ctx.err().expect("ended, and so has an error");
    assert_same(&error, &ctx.check().expect_err("as err says"));
    let mut waiter = Waiter::on(ctx);
    assert!(waiter.poll(), "still waits after the end");
    waiter.finish(&error);
    error
}

/// Asserts that all of them have ended with the same error.
#[track_caller]
fn common_error<'a>(all: impl IntoIterator<Item = &'a Context>) -> Error {
    let mut errors = all.into_iter().map(final_error);
    let first = errors.next().expect("at least one");
    errors.for_each(|other| assert_same(&first, &other));
    first
}

/// Asserts that all of these have ended, after a `cancel()` above has returned.
#[track_caller]
fn assert_all_done<'a>(all: impl IntoIterator<Item = &'a Context>) {
    for (place, ctx) in all.into_iter().enumerate() {
        assert_reached(ctx);
        assert!(without_wakes(|| ctx.is_done()), "descendant {place} outlives the end");
    }
}

/// Returns the text of the cause, or "" if there is none.
fn cause_text(error: &Error) -> String {
    error.cause().map(ToString::to_string).unwrap_or_default()
}

/// Remembers contexts, to assert that nothing keeps them alive.
struct WeakTokens(Vec<Weak<Token>>);

impl WeakTokens {
    fn of<'a>(all: impl IntoIterator<Item = &'a Context>) -> WeakTokens {
        WeakTokens(all.into_iter().filter_map(|ctx| ctx.token().map(Arc::downgrade)).collect())
    }

    /// Asserts that all tokens have been dropped.
    #[track_caller]
    fn assert_dropped(self) {
        assert!(self.0.iter().all(|token| token.strong_count() == 0), "a token left behind");
    }
}
