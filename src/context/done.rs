//! `done`: futures that wait for the end of a context.
//!
//! All futures that wait contain a [`Wait`]. It registers the waker of its task in the list of its token, and
//! the deadline of the token with the runtime where it is polled. When dropped, it removes its waker from the
//! list.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll, Waker};

use futures_core::future::FusedFuture;
use pin_project_lite::pin_project;

use super::context::Context;
use crate::bucket::Timed;
use crate::error::Error;
use crate::sync::{RuntimeId, require_runtime, runtime};
use crate::token::{CLOCK_INTERVAL, Key, Token};

/// # Wait
impl Context {
    /// Waits until the context ends, and returns its error. Go's `<-ctx.Done()`, for use in `tokio::select!`.
    ///
    /// For a context that never ends, the future never resolves. tokio-util's `CancellationToken::cancelled`.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. The future can be created, polled and dropped any number of times, by any
    /// number of tasks, and leaves nothing behind.
    ///
    /// # Panics
    ///
    /// The future panics when polled if the context has a deadline, and there is no Tokio runtime with a time
    /// driver.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::{sync::mpsc, time::timeout};
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(10));
    /// let (_jobs, mut queue) = mpsc::channel::<u32>(8);
    ///
    /// let stopped = loop {
    ///     tokio::select! {
    ///         stopped = ctx.done() => break stopped,
    ///         Some(job) = queue.recv() => println!("job {job}"),
    ///     }
    /// };
    /// assert!(stopped.is_deadline_exceeded());
    /// # }
    /// ```
    pub fn done(&self) -> Done<'_> {
        Done::new(self)
    }

    /// Like [`done`](Self::done), but the future owns a clone of the context, so that it can be spawned or
    /// stored.
    ///
    /// # Panics
    ///
    /// See [`done`](Self::done).
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let watcher = tokio::spawn(ctx.done_owned());
    /// ctx.cancel();
    /// assert!(watcher.await.unwrap().is_canceled());
    /// # }
    /// ```
    pub fn done_owned(&self) -> DoneOwned {
        DoneOwned::new(self.clone())
    }
}

pin_project! {
    pub(crate) struct Wait<C: Borrow<Context>> {
        ctx: C,
        key: Key,
        // Counts polls, because only some of them read the clock.
        polls: u8,
        ended: bool,
        // The address of the waker in the list. As long as that waker is alive, no waker of another task can
        // have the same address.
        waker: (usize, usize),
        // The runtime with which the deadline is registered.
        runtime: Option<RuntimeId>,
    }

    impl<C: Borrow<Context>> PinnedDrop for Wait<C> {
        fn drop(this: Pin<&mut Self>) {
            this.deregister();
        }
    }
}

impl<C: Borrow<Context>> Wait<C> {
    pub(crate) fn new(ctx: C) -> Self {
        Wait { ctx, key: Key::default(), polls: 0, ended: false, waker: (0, 0), runtime: None }
    }

    pub(crate) fn ctx(&self) -> &Context {
        self.ctx.borrow()
    }

    #[cfg(feature = "tower")]
    pub(crate) fn owner_mut(&mut self) -> &mut C {
        &mut self.ctx
    }

    #[inline]
    fn deregister(&self) {
        if let Some(token) = self.ctx().token() {
            token.deregister(self.key);
        }
    }

    /// Removes the waker from the list. The wait registers again when it is polled.
    #[cfg(feature = "tower")]
    pub(crate) fn remove_waker(&mut self) {
        self.deregister();
        (self.key, self.waker, self.runtime) = (Key::default(), (0, 0), None);
    }

    fn is_terminated(&self) -> bool {
        self.ended
    }

    /// Resolves when the context ends. Returns the same error when polled again.
    #[inline]
    #[track_caller]
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        let Some(token) = self.ctx().token() else { return Poll::Pending };
        let is_registration_valid = token.is_registration_valid();
        if !is_registration_valid && token.ended() {
            return self.end();
        }
        // Polled again by the same task: the registration is still valid.
        let stays = is_registration_valid && self.waker == address(cx.waker());
        if stays && !token.needs_timer() {
            return Poll::Pending;
        }
        self.poll_wait(cx, stays, true)
    }

    /// Polls without registering the deadline, for callers that read the clock themselves.
    pub(crate) fn poll_untimed(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        self.poll_wait(cx, false, false)
    }

    #[track_caller]
    fn poll_wait(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        stays: bool,
        timed: bool,
    ) -> Poll<Error> {
        let this = self.as_mut().project();
        let ctx: &Context = (*this.ctx).borrow();
        let Some(token) = ctx.token() else { return Poll::Pending };
        let is_checked = timed && token.is_checked();
        let timed = timed && token.needs_timer();
        // Determined at every poll, because `Handle::enter` can change the runtime within a task. Without a
        // runtime, the one of the previous poll stays.
        let here = if timed { runtime().or(*this.runtime) } else { None };
        let first = *this.key == Key::default();
        *this.polls = (*this.polls + 1) % CLOCK_INTERVAL;
        // No timer fires in a loop that never yields to its runtime, so the clock is read now and then.
        let is_overdue =
            || timed && (*this.polls == 0 || (first && token.should_read_clock())) && token.is_done();
        let mut ended = (first && !token.link() && token.is_done()) || is_overdue();
        if !ended && (!stays || here != *this.runtime) {
            let waker = cx.waker().clone();
            // If the clone has another address, the address of the original may soon be reused by another
            // waker.
            let stays = waker.data() == cx.waker().data();
            let registered = address(if stays { cx.waker() } else { &waker });
            // If one of the calls below panics, the next poll repeats them.
            *this.waker = (0, 0);
            let entry = if first { token.enter_bucket(here) } else { None };
            ended = match token.register(this.key, waker, here, entry) {
                None => true,
                Some(is_timed) if is_timed || !timed => false,
                Some(_) => token.register_deadline(here.unwrap_or_else(require_runtime)),
            };
            if is_checked && !ended {
                here.unwrap_or_else(require_runtime);
                token.check_idle_limits();
                ended = token.is_done();
            }
            *this.waker = registered;
        }
        *this.runtime = here;
        if ended { self.end() } else { Poll::Pending }
    }

    /// Not inlined, so that the error is written directly to where it is returned.
    #[inline(never)]
    fn end(self: Pin<&mut Self>) -> Poll<Error> {
        let this = self.project();
        *this.ended = true;
        let ctx: &Context = (*this.ctx).borrow();
        ctx.token().map_or(Poll::Pending, |token| Poll::Ready(token.error()))
    }
}

impl Token {
    /// Returns whether a wait needs a timer.
    #[inline]
    pub(super) fn needs_timer(&self) -> bool {
        self.has_deadline() || self.is_checked()
    }
}

/// Returns the address of a waker, which identifies it for as long as it is alive.
fn address(waker: &Waker) -> (usize, usize) {
    (waker.data() as usize, std::ptr::from_ref(waker.vtable()) as usize)
}

pin_project! {
    /// Future for [`Context::done`], which resolves to the error of the context when it ends.
    ///
    /// It is cancel-safe. For a context that never ends, such as the background, it never resolves.
    ///
    /// # Panics
    ///
    /// Panics when polled if the context has a deadline, and there is no Tokio runtime with a time driver.
    #[must_use = "futures do nothing unless polled"]
    pub struct Done<'a> {
        #[pin]
        wait: Wait<&'a Context>,
    }
}

pin_project! {
    /// Future for [`Context::done_owned`]: like [`Done`], but owns its context.
    #[must_use = "futures do nothing unless polled"]
    pub struct DoneOwned {
        #[pin]
        wait: Wait<Context>,
    }
}

impl<'a> Done<'a> {
    pub(crate) fn new(ctx: &'a Context) -> Self {
        Done { wait: Wait::new(ctx) }
    }
}

impl DoneOwned {
    pub(crate) fn new(ctx: Context) -> Self {
        DoneOwned { wait: Wait::new(ctx) }
    }
}

impl Future for Done<'_> {
    type Output = Error;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        self.project().wait.poll(cx)
    }
}

impl Future for DoneOwned {
    type Output = Error;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        self.project().wait.poll(cx)
    }
}

impl FusedFuture for Done<'_> {
    fn is_terminated(&self) -> bool {
        self.wait.is_terminated()
    }
}

impl FusedFuture for DoneOwned {
    fn is_terminated(&self) -> bool {
        self.wait.is_terminated()
    }
}

impl fmt::Debug for Done<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Done").field(self.wait.ctx()).finish()
    }
}

impl fmt::Debug for DoneOwned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DoneOwned").field(self.wait.ctx()).finish()
    }
}
