//! Contexts in blocking code, on Tokio's blocking threads and on plain threads.

use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::context::Context;
use crate::context::done::Wait;
use crate::context::registered::Registered;
use crate::error::Error;
use crate::registry::Kind;

/// How often the clock is read within a runtime, where a test may have paused it.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// # Blocking code
impl Context {
    /// Runs a blocking function on a thread where blocking is allowed, with this context as its
    /// [`current`](Self::current) context. Like [`tokio::task::spawn_blocking`].
    ///
    /// A blocking function cannot be stopped from outside. Call [`check`](Self::check) in its loops, and use
    /// [`sleep_blocking`](Self::sleep_blocking). The function runs even if the context has ended before it
    /// starts. A runtime that is shut down waits for it.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime, like [`tokio::task::spawn_blocking`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// fn count_primes(below: u64) -> Result<usize, Error> {
    ///     let ctx = Context::current();
    ///     let mut primes = 0;
    ///     for n in 2..below {
    ///         ctx.check()?;
    ///         primes += usize::from((2..n).all(|d| n % d != 0));
    ///     }
    ///     Ok(primes)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// assert_eq!(ctx.spawn_blocking(|| count_primes(20)).await.unwrap().unwrap(), 8);
    /// let stopped = ctx.spawn_blocking(|| count_primes(u64::MAX)).await.unwrap();
    /// assert!(stopped.unwrap_err().is_deadline_exceeded());
    /// # }
    /// ```
    ///
    /// [`tokio::task::spawn_blocking`]: https://docs.rs/tokio/1/tokio/task/fn.spawn_blocking.html
    #[track_caller]
    pub fn spawn_blocking<F, R>(&self, f: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let ctx = self.clone();
        let registered = Registered::new(self, Kind::Blocking, Location::caller());
        let f = move || {
            let _polling = registered.polling();
            f()
        };
        tokio::task::spawn_blocking(move || ctx.sync_scope(f))
    }

    /// Blocks the current thread until the context ends, and returns its error. Go's `<-ctx.Done()`.
    ///
    /// Use it on plain threads and in [`spawn_blocking`](Self::spawn_blocking). It does not need a runtime,
    /// even if the context has a deadline. If the context never ends, it blocks forever. In a runtime whose
    /// clock is paused by a test, it follows that clock, with a delay of up to 100 ms.
    ///
    /// # Panics
    ///
    /// Panics in an async task, where blocking is not allowed. Use [`done`](Self::done) there.
    ///
    /// ```
    /// use std::thread;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let scope = Context::background().with_timeout(Duration::from_secs(60));
    /// let ctx = scope.clone();
    /// let ticker = thread::spawn(move || {
    ///     let stopped = ctx.done_blocking();
    ///     println!("ticker stopped: {stopped}");
    /// });
    ///
    /// scope.cancel();
    /// ticker.join().unwrap();
    /// ```
    #[track_caller]
    pub fn done_blocking(&self) -> Error {
        loop {
            // Without a limit, `block` always returns an error.
            if let Some(error) = self.block(None) {
                return error;
            }
        }
    }

    /// Blocks the current thread for the given time, unless the context ends first. An interruptible
    /// [`std::thread::sleep`].
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first.
    ///
    /// # Panics
    ///
    /// See [`done_blocking`](Self::done_blocking).
    ///
    /// ```
    /// use std::thread;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let scope = Context::background().with_cancel();
    /// let ctx = scope.clone();
    /// let poller = thread::spawn(move || {
    ///     let mut polls = 0;
    ///     while ctx.sleep_blocking(Duration::from_millis(10)).is_ok() {
    ///         polls += 1;
    ///     }
    ///     polls
    /// });
    ///
    /// scope.cancel();
    /// println!("polled {} times", poller.join().unwrap());
    /// ```
    #[track_caller]
    pub fn sleep_blocking(&self, d: Duration) -> Result<(), Error> {
        // A time beyond the range of the clock is no limit.
        self.block(Instant::now().checked_add(d)).map_or(Ok(()), Err)
    }

    /// Blocks the current thread until the context ends, or until the given time, when it returns `None`.
    ///
    /// A cancellation unparks the thread. The thread watches the time by itself, because there may be no timer.
    #[track_caller]
    fn block(&self, until: Option<Instant>) -> Option<Error> {
        must_be_allowed_to_block();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = task::Context::from_waker(&waker);
        let mut wait = pin!(Wait::new(self));
        loop {
            if let Poll::Ready(error) = wait.as_mut().poll_untimed(&mut cx) {
                return Some(error);
            }
            // Reads the clock after the waker has been registered.
            if let Some(error) = self.err() {
                return Some(error);
            }
            let now = Instant::now();
            let next_check = self.token().and_then(|token| token.next_check());
            match [until, self.deadline(), next_check].into_iter().flatten().min() {
                _ if until.is_some_and(|until| until <= now) => return None,
                Some(next) => park(next.saturating_duration_since(now)),
                None => thread::park(),
            }
        }
    }
}

fn park(left: Duration) {
    let in_runtime = Handle::try_current().is_ok();
    thread::park_timeout(if in_runtime { left.min(CHECK_INTERVAL) } else { left });
}

/// Panics in an async task, with Tokio's message.
#[track_caller]
fn must_be_allowed_to_block() {
    let (sender, receiver) = oneshot::channel::<()>();
    drop(sender);
    let _nothing = receiver.blocking_recv();
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
