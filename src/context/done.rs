//! The futures that wait for the end.
//!
//! [`Wait`] is the one that all others are made of: it registers its task's waker in its token's list, and its
//! token's deadline with the runtime where it is polled. Dropped, it leaves the list.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll, Waker};

use futures_core::future::FusedFuture;
use pin_project_lite::pin_project;

use super::context::Context;
use crate::error::Error;
use crate::token::sync::{RuntimeId, require_runtime, runtime};
use crate::token::{Seat, UNCLOCKED};

impl Context {
    /// Resolves when it ends, to why: for `tokio::select!`. Go's `<-ctx.Done()`.
    ///
    /// Cancel-safe: it can be made, polled, dropped and made again at any rate, by any number of tasks,
    /// and leaves nothing behind. It never resolves for a context that never ends. tokio-util's
    /// `CancellationToken::cancelled`.
    ///
    /// # Panics
    ///
    /// When polled, if the context has a deadline and there is no Tokio runtime here, or one without a
    /// time driver.
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

    /// [`done`](Self::done), holding a clone of the context: for a task, or a struct.
    ///
    /// # Panics
    ///
    /// As [`done`](Self::done).
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
        seat: Seat,
        // Counts polls, most of which do not read the clock.
        polls: u8,
        ended: bool,
        // The address of the waker in the list. That one lives for as long as it is there, so that no other
        // task's can have the same address.
        waker: (usize, usize),
        // The runtime with which the deadline is registered.
        runtime: Option<RuntimeId>,
    }

    impl<C: Borrow<Context>> PinnedDrop for Wait<C> {
        fn drop(this: Pin<&mut Self>) {
            if this.seat != Seat::default() {
                if let Some(token) = this.ctx().token() {
                    token.leave(this.seat);
                }
            }
        }
    }
}

impl<C: Borrow<Context>> Wait<C> {
    pub(crate) fn new(ctx: C) -> Self {
        Wait { ctx, seat: Seat::default(), polls: 0, ended: false, waker: (0, 0), runtime: None }
    }

    pub(crate) fn ctx(&self) -> &Context {
        self.ctx.borrow()
    }

    fn is_terminated(&self) -> bool {
        self.ended
    }

    /// Resolves when the context ends. Polled again, it returns the same error again.
    #[inline]
    #[track_caller]
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        let Some(token) = self.ctx().token() else { return Poll::Pending };
        let is_undisturbed = token.is_undisturbed();
        if !is_undisturbed && token.ended() {
            return self.end();
        }
        // Polled again by the same task, it waits as it did.
        let stays = is_undisturbed && self.waker == address(cx.waker());
        if stays && !token.has_deadline() {
            return Poll::Pending;
        }
        self.look(cx, stays, true)
    }

    /// Registers no deadline: for what reads the clock when that has passed.
    pub(crate) fn poll_untimed(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        self.look(cx, false, false)
    }

    #[track_caller]
    fn look(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        stays: bool,
        timed: bool,
    ) -> Poll<Error> {
        let this = self.as_mut().project();
        let ctx: &Context = (*this.ctx).borrow();
        let Some(token) = ctx.token() else { return Poll::Pending };
        let timed = timed && token.has_deadline();
        // Asked at every poll: within a task as well, `Handle::enter` may have put another runtime here. Where there
        // is none, the one where it was polled before goes on.
        let here = if timed { runtime().or(*this.runtime) } else { None };
        let first = *this.seat == Seat::default();
        *this.polls = (*this.polls + 1) % UNCLOCKED;
        // In a loop that never lets its runtime go on, no timer fires.
        let is_overdue =
            || timed && (*this.polls == 0 || (first && token.is_turn_for_clock())) && token.is_done();
        let mut ended = (first && !token.link() && token.is_done()) || is_overdue();
        if !ended && (!stays || here != *this.runtime) {
            let waker = cx.waker().clone();
            // Some wakers' clones lie elsewhere: then the first one's address may soon be another's.
            let stays = waker.data() == cx.waker().data();
            *this.waker = address(if stays { cx.waker() } else { &waker });
            let entry = if first { token.enter_at_first(here) } else { None };
            ended = match token.register(this.seat, waker, here, entry) {
                None => true,
                Some(is_timed) if is_timed || !timed => false,
                Some(_) => token.register_deadline(here.unwrap_or_else(require_runtime)),
            };
        }
        *this.runtime = here;
        if ended { self.end() } else { Poll::Pending }
    }

    /// Not inline: an error is written once, where it is returned.
    #[inline(never)]
    fn end(self: Pin<&mut Self>) -> Poll<Error> {
        let this = self.project();
        *this.ended = true;
        let ctx: &Context = (*this.ctx).borrow();
        ctx.token().map_or(Poll::Pending, |token| Poll::Ready(token.error()))
    }
}

/// A waker's address: as long as the waker lives, its name.
fn address(waker: &Waker) -> (usize, usize) {
    (waker.data() as usize, std::ptr::from_ref(waker.vtable()) as usize)
}

pin_project! {
    /// Resolves when the context ends, to why it did. Made by [`Context::done`].
    ///
    /// Cancel-safe: dropped before it resolves it leaves nothing behind. For a context that never
    /// ends, such as the background, it never resolves.
    ///
    /// # Panics
    ///
    /// When first polled, if the context has a deadline and there is no Tokio runtime here, or one
    /// without a time driver, as [`tokio::time::sleep`] does.
    #[must_use = "futures do nothing unless polled"]
    pub struct Done<'a> {
        #[pin]
        wait: Wait<&'a Context>,
    }
}

pin_project! {
    /// [`Done`], owning its context, so that it can go into a task. Made by [`Context::done_owned`].
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
