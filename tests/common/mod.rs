//! What several suites share: wakers that count, causes with an identity, both runtime flavours and a
//! watchdog.

#![allow(dead_code)] // Every suite is a crate of its own and uses its part of this.

use std::fmt;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{self, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_ctx::{Context, Error};

/// How long a test may take before it counts as hung. Nothing here takes a tenth of it.
pub const HANG: Duration = Duration::from_secs(300);

/// An hour: a deadline that no test lives to see on the real clock.
pub const LONG: Duration = Duration::from_secs(3600);

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A cause that says one word. Not zero-sized, so that each has an address of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Cause(pub &'static str);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Cause {}

/// The word of an error's [`Cause`], if it has one.
pub fn word(error: &Error) -> Option<&'static str> {
    error.cause_as::<Cause>().map(|cause| cause.0)
}

/// Whether two errors tell the same story: the same kind, the very same cause, the same origin.
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
    assert!(same(a, b), "two stories:\n  {a:?}\n  {b:?}");
}

/// Asks a context in all four ways, insists on one answer, and gives it.
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

/// The same, of a context that must have ended.
#[track_caller]
pub fn ended(ctx: &Context) -> Error {
    answer(ctx).expect("the context should have ended")
}

/// Counts its wake-ups.
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

/// Polls a future once, with nobody to wake, and drops it.
pub fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    poll(std::pin::pin!(future), Waker::noop())
}

/// Raises a flag, or rather a count, when it is dropped.
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

/// One whose clock stands still, and leaps to the next timer when there is nothing else to do.
pub fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

pub fn multi_thread(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

/// Runs a test on both flavours of runtime, on the real clock, and fails if it hangs.
pub fn on_both<F>(test: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    watched(move || {
        current_thread().block_on(test());
        multi_thread(2).block_on(test());
    });
}

/// Runs `f` on a thread of its own and fails loudly if it does not come back.
pub fn watched<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let (finished, wait) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let _finished = finished; // dropped on return and on panic alike
        f()
    });
    match wait.recv_timeout(HANG) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hung for {HANG:?}"),
        _ => thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
    }
}

/// Asks until the answer is yes, as closely as can be without starving those it waits for.
pub fn spin_until(mut answer: impl FnMut() -> bool) {
    for asked in 1_u64.. {
        if answer() {
            return;
        }
        if asked % 64 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// What `f` says when it panics; panics if it does not.
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

/// Small, fast and always the same: a xorshift generator for tests that choose at random.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `sides`.
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
