//! Helpers of several suites: wakers that count, causes with an identity, both flavors of runtime, and a
//! watchdog.

#![allow(dead_code)] // Every suite is a crate of its own and uses a part of this.

use std::fmt;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{self, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_ctx::{Context, Error};

/// How long a test may take before it counts as hung. No test takes a tenth of this.
pub const HANG: Duration = Duration::from_secs(300);

/// An hour: a deadline that no test reaches on the real clock.
pub const LONG: Duration = Duration::from_secs(3600);

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A cause that prints one text. Not zero-sized, so that each has a distinct address.
#[derive(Debug, PartialEq, Eq)]
pub struct Cause(pub &'static str);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Cause {}

/// Returns the text of an error's [`Cause`], if it has one.
pub fn word(error: &Error) -> Option<&'static str> {
    error.cause_as::<Cause>().map(|cause| cause.0)
}

/// Returns whether two errors are the same: the same kind, the identical cause, and the same origin.
pub fn same(a: &Error, b: &Error) -> bool {
    let address = |e: &Error| e.cause().map(|cause| std::ptr::from_ref(cause).cast::<()>());
    let place = |e: &Error| e.origin().canceled_at().map(std::ptr::from_ref);
    a.kind() == b.kind()
        && address(a) == address(b)
        && std::ptr::eq(a.origin().made_at(), b.origin().made_at())
        && place(a) == place(b)
        && a.origin().budget() == b.origin().budget()
        && a.origin().ended_at() == b.origin().ended_at()
}

#[track_caller]
pub fn assert_same(a: &Error, b: &Error) {
    assert!(same(a, b), "two different errors:\n  {a:?}\n  {b:?}");
}

/// Queries a context in all four ways, checks that they agree, and returns the result.
#[track_caller]
pub fn answer(ctx: &Context) -> Option<Error> {
    let done = ctx.is_done();
    let err = ctx.err();
    let check = ctx.check();
    let waited = match poll_once(ctx.done()) {
        Poll::Ready(error) => Some(error),
        Poll::Pending => None,
    };
    assert_eq!(done, err.is_some(), "is_done and err disagree");
    assert_eq!(done, check.is_err(), "is_done and check disagree");
    assert_eq!(done, waited.is_some(), "is_done and done disagree");
    if let Some(err) = &err {
        assert_same(err, &check.unwrap_err());
        assert_same(err, &waited.unwrap());
    }
    err
}

/// Does the same for a context that must have ended, and returns its error.
#[track_caller]
pub fn ended(ctx: &Context) -> Error {
    answer(ctx).expect("the context should have ended")
}

/// A waker that counts its wake-ups.
pub struct Wakes(AtomicUsize);

impl Wakes {
    pub fn new() -> (Arc<Wakes>, Waker) {
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        (wakes.clone(), wakes.into())
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn poll<F: Future + ?Sized>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut task::Context::from_waker(waker))
}

/// Polls a future once, with a waker that does nothing, and drops it.
pub fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    poll(std::pin::pin!(future), Waker::noop())
}

/// Lets the tasks of a current-thread runtime run until none is ready.
pub async fn run_ready_tasks() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Counts how many of its [`CountsDrop`] values have been dropped.
#[derive(Clone, Default)]
pub struct Drops(Arc<AtomicUsize>);

impl Drops {
    pub fn counted(&self) -> CountsDrop {
        CountsDrop(self.0.clone())
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl fmt::Display for CountsDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counts its drop")
    }
}

impl std::error::Error for CountsDrop {}

pub fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A runtime with a paused clock, which advances to the next timer when no task is ready.
pub fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Runs a test on a paused clock.
pub fn on_paused<F: Future<Output = ()>>(test: F) {
    paused().block_on(test);
}

pub fn multi_thread(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

/// Runs a test on both flavors of runtime, on the real clock, and fails if it hangs.
pub fn on_both<F>(test: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    watched(move || {
        current_thread().block_on(test());
        multi_thread(2).block_on(test());
    });
}

/// Runs `f` on a separate thread, and panics if it does not return in time.
pub fn watched<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    watched_on(thread::Builder::new(), f)
}

/// Does the same with the default stack size of Rust's threads and Tokio's workers.
pub fn on_a_small_stack<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    watched_on(thread::Builder::new().stack_size(2 * 1024 * 1024), f)
}

fn watched_on<R: Send + 'static>(thread: thread::Builder, f: impl FnOnce() -> R + Send + 'static) -> R {
    let (finished, wait) = mpsc::channel::<()>();
    let thread = thread.spawn(move || {
        let _finished = finished; // dropped on return and on panic alike
        f()
    });
    match wait.recv_timeout(HANG) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hung for {HANG:?}"),
        _ => thread.unwrap().join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
    }
}

/// Returns whether the tests run with their full sizes, which take longer.
pub fn is_full() -> bool {
    std::env::var_os("TOKIO_CTX_FULL").is_some_and(|set| set != "0")
}

/// Spins until `answer` returns true, and yields so that the awaited threads can run.
pub fn spin_until(mut answer: impl FnMut() -> bool) {
    for attempt in 1_u64.. {
        if answer() {
            return;
        }
        if attempt % 64 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Sets a flag when it is dropped, by a panic as well, so that a thread that runs until then ends.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Returns the panic message of `f`; panics if `f` does not panic.
#[track_caller]
pub fn panic_text<R>(f: impl FnOnce() -> R) -> String {
    let Err(panic) = panic::catch_unwind(AssertUnwindSafe(f)) else {
        panic!("should have panicked");
    };
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic with a text")).to_owned(),
    }
}

/// A small xorshift generator, for random choices that can be reproduced.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.roll(i + 1));
        }
    }
}
