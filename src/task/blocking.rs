//! Contexts for code that blocks: on Tokio's blocking threads, and on plain ones.

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
use crate::error::Error;

/// Within a runtime the clock may be one that a test moves: it is looked at so often at least.
const LOOK: Duration = Duration::from_millis(100);

impl Context {
    /// Runs a function that blocks on a thread for such, with this context as
    /// [`current`](Self::current): [`tokio::task::spawn_blocking`] in [`sync_scope`](Self::sync_scope).
    ///
    /// The function is told of the end; it is not stopped by it, and nothing can stop it from outside:
    /// have it [`check`](Self::check) in its loops, sleep with [`sleep_blocking`](Self::sleep_blocking),
    /// and bound what it calls. It runs even if the context has ended when its turn comes. A runtime that
    /// is shut down waits for it.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, as [`tokio::task::spawn_blocking`].
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
    #[track_caller]
    pub fn spawn_blocking<F, R>(&self, f: F) -> JoinHandle<R>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let ctx = self.clone();
        #[cfg(feature = "test-util")]
        let f = {
            let entry = crate::context::census::Entry::new(self, std::panic::Location::caller());
            move || {
                let _entry = entry;
                f()
            }
        };
        tokio::task::spawn_blocking(move || ctx.sync_scope(f))
    }

    /// Blocks this thread until the context ends, and tells why it did. Go's `<-ctx.Done()`.
    ///
    /// For plain threads and for [`spawn_blocking`](Self::spawn_blocking); it takes no runtime, also not
    /// for a deadline. A context that never ends blocks forever. Where a test has paused the clock of the
    /// runtime it is called in, it follows that clock, with up to 100 ms of delay.
    ///
    /// # Panics
    ///
    /// In a task, which must not block its thread: [`done`](Self::done) is for there. As
    /// [`blocking_recv`](tokio::sync::oneshot::Receiver::blocking_recv).
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
    ///     println!("the ticker stops: {stopped}");
    /// });
    ///
    /// scope.cancel();
    /// ticker.join().unwrap();
    /// ```
    #[track_caller]
    pub fn done_blocking(&self) -> Error {
        loop {
            // Without a limit it does not return empty-handed.
            if let Some(error) = self.block(None) {
                return error;
            }
        }
    }

    /// Blocks this thread for this long, unless the context ends first: [`std::thread::sleep`] that can be
    /// interrupted.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it ended first.
    ///
    /// # Panics
    ///
    /// As [`done_blocking`](Self::done_blocking).
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
        // What the clock cannot express is no limit.
        self.block(Instant::now().checked_add(d)).map_or(Ok(()), Err)
    }

    /// Blocks this thread until the context ends, or it is that late: then there is no error.
    ///
    /// The end wakes it like any waiter; of the time it takes care itself, as there may be no timer here.
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
            // Entered in the list of who is told of the end, it looks at the clock.
            if let Some(error) = self.err() {
                return Some(error);
            }
            let now = Instant::now();
            let look = self.token().and_then(|token| token.next_look());
            match [until, self.deadline(), look].into_iter().flatten().min() {
                _ if until.is_some_and(|until| until <= now) => return None,
                Some(next) => park(next.saturating_duration_since(now)),
                None => thread::park(),
            }
        }
    }
}

fn park(left: Duration) {
    let in_runtime = Handle::try_current().is_ok();
    thread::park_timeout(if in_runtime { left.min(LOOK) } else { left });
}

/// Panics in a task, with Tokio's own words.
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
