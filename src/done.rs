//! The futures that wait for the end, and the deadline's timer.
//!
//! [`Wait`] is the one that all others are made of: it sits in its token's list with its task's waker,
//! and sees to it that a timer ends the token at the deadline. That is a [`Sleep`] inside it if it is
//! the first to wait on that deadline, and the token's own alarm otherwise. Dropped, it leaves the list.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, Waker, ready};

use futures_core::future::FusedFuture;
use pin_project_lite::pin_project;
use tokio::runtime::{self, Handle};
use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::token::{Seat, Token, UNCLOCKED};
use crate::{Context, Error};

pin_project! {
    pub(crate) struct Wait<C: Borrow<Context>> {
        ctx: C,
        seat: Seat,
        // Whose waker sits there: its address, as nothing but a name.
        waker: (usize, usize),
        ended: bool,
        timer: Timer,
        // The runtime whose timer that is.
        runtime: Option<runtime::Id>,
        // The `CancellationToken`s that can end it.
        foreign: Option<Box<Foreign>>,
        // Counts polls, most of which do not look at the clock.
        turns: u8,
        // Unconstrained, so that a neighbour which has used up the task's budget does not hide the end.
        #[pin]
        sleep: Option<Unconstrained<Sleep>>,
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

/// Which timer a [`Wait`] counts on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Timer {
    Unset,
    Own,
    /// The token's.
    Alarm,
}

impl<C: Borrow<Context>> Wait<C> {
    pub(crate) fn new(ctx: C) -> Self {
        Wait {
            ctx,
            seat: Seat::default(),
            waker: (0, 0),
            ended: false,
            timer: Timer::Unset,
            runtime: None,
            foreign: None,
            turns: 0,
            sleep: None,
        }
    }

    pub(crate) fn ctx(&self) -> &Context {
        self.ctx.borrow()
    }

    fn is_terminated(&self) -> bool {
        self.ended
    }

    /// Resolves when the context ends. Polled again, it gives the same error again.
    #[inline]
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        let Some(token) = self.ctx().token() else { return Poll::Pending };
        // Polled again by the same task, it waits as it did.
        let stays = token.is_undisturbed() && self.waker == name_of(cx.waker());
        if stays && token.deadline().is_none() && !token.is_foreign() {
            return Poll::Pending;
        }
        self.look(cx, stays, true)
    }

    /// Without a timer: for who looks at the clock when the deadline has passed.
    pub(crate) fn poll_untimed(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Error> {
        self.look(cx, false, false)
    }

    fn look(self: Pin<&mut Self>, cx: &mut task::Context<'_>, stays: bool, timed: bool) -> Poll<Error> {
        let mut this = self.project();
        let ctx: &Context = (*this.ctx).borrow();
        let Some(token) = ctx.token() else { return Poll::Pending };
        // Not even a task keeps to its runtime, if one lends it another's timers.
        let here = if token.deadline().is_some() { here() } else { None };
        let over = match *this.seat == Seat::default() {
            true => enter(token, here, this.foreign),
            false => token.ended(),
        };
        if over
            || !(stays
                || sit(token, this.seat, this.waker, cx.waker(), (this.timer, this.runtime), here))
            || (token.is_foreign() && poll_foreign(token, this.foreign, cx).is_ready())
            || (timed
                && token.deadline().is_some()
                && (is_overdue(token, this.turns)
                    || poll_timer(token, (this.timer, this.runtime), this.sleep.as_mut(), here, cx)
                        .is_ready()))
        {
            *this.ended = true;
            return Poll::Ready(token.error());
        }
        Poll::Pending
    }
}

/// In a box, as few have any.
struct Foreign(Vec<Pin<Box<WaitForCancellationFutureOwned>>>);

/// A [`Wait`]'s timer, and the runtime that it is of.
type Chosen<'a> = (&'a mut Timer, &'a mut Option<runtime::Id>);

/// Sees to it that the token will be told of its ancestors' end; true if it has ended.
#[inline]
fn enter(token: &Arc<Token>, here: Option<runtime::Id>, foreign: &mut Option<Box<Foreign>>) -> bool {
    if token.ended() || (!token.link() && token.is_done()) {
        return true;
    }
    if token.is_foreign() {
        let tokens = token.foreign_tokens().into_iter();
        let tokens = tokens.map(|token| Box::pin(token.cancelled_owned()));
        *foreign = Some(Box::new(Foreign(tokens.collect())));
    }
    // A timer tells the time without a look at the clock, from now and then apart; but here must be one.
    token.deadline().is_some() && (here.is_none() || token.is_turn_for_clock()) && token.is_done()
}

fn here() -> Option<runtime::Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Has the token wake `waker` when it ends; false if it has.
#[inline]
fn sit(
    token: &Arc<Token>,
    seat: &mut Seat,
    sitting: &mut (usize, usize),
    waker: &Waker,
    (timer, runtime): Chosen<'_>,
    here: Option<runtime::Id>,
) -> bool {
    *sitting = name_of(waker);
    let Some(armed) = token.join(seat, waker.clone(), here) else { return false };
    if here.is_some() && *timer == Timer::Unset {
        let owner = token.deadline_owner();
        if armed || (!Arc::ptr_eq(owner, token) && owner.is_armed_here(here)) {
            (*timer, *runtime) = (Timer::Alarm, here);
        }
    }
    true
}

/// A waker's address, which is its own for as long as it sits in the list.
fn name_of(waker: &Waker) -> (usize, usize) {
    (waker.data() as usize, std::ptr::from_ref(waker.vtable()) as usize)
}

fn poll_foreign(
    token: &Token,
    foreign: &mut Option<Box<Foreign>>,
    cx: &mut task::Context<'_>,
) -> Poll<()> {
    let mut tokens = foreign.iter_mut().flat_map(|foreign| &mut foreign.0);
    let cancelled = tokens.any(|token| token.as_mut().poll(cx).is_ready());
    if cancelled && token.is_done() { Poll::Ready(()) } else { Poll::Pending }
}

/// Looks at the clock now and then: in a loop that never lets its runtime go on no timer fires.
fn is_overdue(token: &Token, turns: &mut u8) -> bool {
    *turns = (*turns + 1) % UNCLOCKED;
    *turns == 0 && token.is_done()
}

/// Resolves when the deadline has passed, or the token has ended otherwise.
#[track_caller]
fn poll_timer(
    token: &Arc<Token>,
    (timer, runtime): Chosen<'_>,
    sleep: Pin<&mut Option<Unconstrained<Sleep>>>,
    here: Option<runtime::Id>,
    cx: &mut task::Context<'_>,
) -> Poll<()> {
    let Some(deadline) = token.deadline() else { return Poll::Pending };
    match *timer {
        Timer::Own => {}
        Timer::Alarm if !token.is_roused() && (here.is_none() || *runtime == here) => {
            return Poll::Pending;
        }
        Timer::Unset if token.deadline_owner().is_first_timer() => *timer = Timer::Own,
        Timer::Unset | Timer::Alarm => {
            (*timer, *runtime) = (Timer::Alarm, here);
            if token.deadline_owner().arm(here) {
                return if token.ended() { Poll::Ready(()) } else { Poll::Pending };
            }
            (*timer, *runtime) = (Timer::Own, None);
        }
    }
    ready!(poll_sleep(sleep, runtime, here, deadline, cx));
    token.expire_now(deadline);
    Poll::Ready(())
}

/// Polls the waiter's own timer, which is of the runtime that the waiter is on.
#[track_caller]
fn poll_sleep(
    mut sleep: Pin<&mut Option<Unconstrained<Sleep>>>,
    runtime: &mut Option<runtime::Id>,
    here: Option<runtime::Id>,
    deadline: Instant,
    cx: &mut task::Context<'_>,
) -> Poll<()> {
    if sleep.is_none() || (here.is_some() && *runtime != here) {
        *runtime = here;
        sleep.set(Some(unconstrained(sleep_until(deadline))));
    }
    match sleep.as_mut().as_pin_mut() {
        Some(sleep) => sleep.poll(cx),
        None => Poll::Pending,
    }
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
