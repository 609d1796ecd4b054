//! A body, until a context ends: what the bodies of both layers are made of.

use std::borrow::Borrow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, Waker};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

use super::open::Open;
use super::slot::Slot;
use crate::context::done::Wait;
use crate::context::{Context, Progress};
use crate::error::Error;

/// What came of a poll.
pub(crate) enum Step<D, E> {
    Frame(Frame<D>),
    /// A frame after which there is none.
    Last(Frame<D>),
    Over,
    Failed(E),
    /// The context ended first; the body has been dropped.
    Ended(Error),
}

pub(crate) type StepOf<B> = Step<<B as Body>::Data, <B as Body>::Error>;

/// What is known of a body after its first poll.
pub(crate) enum Start<B: Body> {
    /// All that was to come of it.
    Whole(StepOf<B>),
    /// There is more, after this frame if there is one.
    Part(Pin<Box<B>>, Option<Frame<B::Data>>),
}

impl<B: Body> Start<B> {
    /// Polls a body that says how long it is: mostly it has all of that at hand, and nothing of it need be kept for the
    /// context to let go. What has no known length is left to its reader.
    pub(crate) fn poll(body: B, cx: &mut task::Context<'_>) -> Start<B> {
        let is_sized = body.size_hint().exact().is_some();
        let mut body = Box::pin(body);
        match if is_sized { body.as_mut().poll_frame(cx) } else { Poll::Pending } {
            Poll::Pending => Start::Part(body, None),
            Poll::Ready(None) => Start::Whole(Step::Over),
            Poll::Ready(Some(Err(error))) => Start::Whole(Step::Failed(error)),
            Poll::Ready(Some(Ok(frame))) if is_last(&frame, &*body) => Start::Whole(Step::Last(frame)),
            Poll::Ready(Some(Ok(frame))) => Start::Part(body, Some(frame)),
        }
    }
}

fn is_last<B: Body>(frame: &Frame<B::Data>, body: &B) -> bool {
    frame.is_trailers() || body.is_end_stream()
}

/// The bytes of a frame.
pub(crate) fn bytes<D: Buf>(frame: &Frame<D>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}

/// How much is to come if this is all.
pub(crate) fn hint<D: Buf, E>(step: Option<&Step<D, E>>) -> SizeHint {
    match step {
        Some(Step::Last(frame) | Step::Frame(frame)) => SizeHint::with_exact(bytes(frame)),
        Some(Step::Failed(_) | Step::Ended(_)) => SizeHint::default(),
        Some(Step::Over) | None => SizeHint::with_exact(0),
    }
}

/// A body that is dropped at its context's end, also if it is not polled then.
///
/// `C`, what owns the context, is dropped after the body that has come to its end, but before one that has not: what
/// that does when it is dropped may look at why.
pub(crate) struct Bounded<B: Body, C: Borrow<Context>> {
    live: Option<Live<B, C>>,
    /// Of a body that is over.
    open: Option<Open>,
}

struct Live<B: Body, C: Borrow<Context>> {
    slot: Arc<Slot<Held<B>>>,
    /// What the context's end wakes: the slot.
    bell: Waker,
    wait: Wait<C>,
    first: Option<Frame<B::Data>>,
    /// Whether the end wakes the task also after a frame. A transport that has one may wait for its peer.
    wakes: bool,
    /// A frame is progress.
    progress: Progress,
}

struct Held<B> {
    body: Pin<Box<B>>,
    // Last: the work is over when all that it held is gone.
    open: Option<Open>,
}

impl<B: Body + Send + 'static, C: Borrow<Context>> Bounded<B, C> {
    /// # Panics
    ///
    /// As `Wait::poll`: with a deadline, without a time driver.
    pub(crate) fn new(
        mut wait: Wait<C>,
        body: Pin<Box<B>>,
        first: Option<Frame<B::Data>>,
        open: Option<Open>,
        wakes: bool,
    ) -> Self {
        let progress = wait.ctx().progress();
        let slot = Arc::new(Slot::new(wait.ctx().clone(), Held { body, open }));
        let bell = Waker::from(slot.clone());
        if Pin::new(&mut wait).poll(&mut task::Context::from_waker(&bell)).is_ready() {
            bell.wake_by_ref();
        }
        Bounded { live: Some(Live { slot, bell, wait, first, wakes, progress }), open: None }
    }
}

impl<B: Body, C: Borrow<Context>> Bounded<B, C> {
    /// What is ready goes first, but after the end nothing that more is to follow: a body that always has a
    /// frame ready ends as well, and one that is complete is not thrown away.
    pub(crate) fn poll_step(&mut self, cx: &mut task::Context<'_>) -> Poll<StepOf<B>> {
        let Some(live) = &mut self.live else { return Poll::Ready(Step::Over) };
        if let Some(frame) = live.first.take() {
            live.progress.report_bytes(bytes(&frame));
            return Poll::Ready(Step::Frame(frame));
        }
        let ctx = live.slot.ctx();
        let Some((mut held, waker)) = live.slot.take() else {
            return Poll::Ready(ctx.err().map_or(Step::Over, Step::Ended));
        };
        let polled = {
            let _at_work = held.open.as_ref().map(Open::at_work);
            ctx.sync_scope(|| held.body.as_mut().poll_frame(cx))
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            live.progress.report_bytes(bytes(frame));
        }
        let step = match polled {
            Poll::Ready(Some(Ok(frame))) if is_last(&frame, &*held.body) => Step::Last(frame),
            Poll::Ready(Some(Ok(frame))) => {
                let waker = if live.wakes { Some(of_task(waker, cx)) } else { None };
                match ctx.err() {
                    Some(ended) => Step::Ended(ended),
                    None => match live.slot.put(held, waker) {
                        Ok(()) => return Poll::Ready(Step::Frame(frame)),
                        Err(rejected) => {
                            held = rejected;
                            Step::Ended(why(ctx))
                        }
                    },
                }
            }
            Poll::Ready(Some(Err(error))) => Step::Failed(error),
            Poll::Ready(None) => Step::Over,
            Poll::Pending => {
                // Here, as the runtime may be another one.
                let bell = &mut task::Context::from_waker(&live.bell);
                match Pin::new(&mut live.wait).poll(bell) {
                    Poll::Ready(ended) => Step::Ended(ended),
                    Poll::Pending => match live.slot.put(held, Some(of_task(waker, cx))) {
                        Ok(()) => return Poll::Pending,
                        Err(rejected) => {
                            held = rejected;
                            Step::Ended(why(ctx))
                        }
                    },
                }
            }
        };
        let Held { body, open } = held;
        ctx.sync_scope(|| drop(body));
        self.open = open;
        Poll::Ready(step)
    }

    /// Lets go of the context. The body is over.
    pub(crate) fn finish(&mut self) {
        if let Some(Live { slot, bell, mut wait, .. }) = self.live.take() {
            wait.leave();
            let held = slot.take();
            slot.ctx().sync_scope(|| drop(held));
            // All handles of the context but the owner's: what nothing else sees needs no end.
            drop((slot, bell));
            drop(wait);
        }
        self.open = None;
    }

    /// What owns the context, while the body is not over.
    pub(crate) fn owner_mut(&mut self) -> Option<&mut C> {
        self.live.as_mut().map(|live| live.wait.owner_mut())
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        // One that the end has taken has still to say so.
        self.look(B::is_end_stream).unwrap_or(self.live.is_none())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let Some(live) = &self.live else { return SizeHint::with_exact(0) };
        let mut hint = self.look(B::size_hint).unwrap_or_default();
        let first = live.first.as_ref().map_or(0, bytes);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }

    fn look<R>(&self, ask: impl FnOnce(&B) -> R) -> Option<R> {
        let slot = &self.live.as_ref()?.slot;
        let (held, waker) = slot.take()?;
        let answer = ask(&held.body);
        if let Err(held) = slot.put(held, waker) {
            slot.ctx().sync_scope(|| drop(held));
        }
        Some(answer)
    }
}

/// The waker to store: cloned if it is another task's than before.
fn of_task(before: Option<Waker>, cx: &task::Context<'_>) -> Waker {
    before.filter(|waker| waker.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone())
}

/// Why a context has ended that a slot knows to have.
fn why(ctx: &Context) -> Error {
    ctx.err().expect("an end is final")
}

impl<B: Body, C: Borrow<Context>> Drop for Bounded<B, C> {
    fn drop(&mut self) {
        if let Some(Live { slot, wait, .. }) = self.live.take() {
            // Taken out first, so that the end that is to come finds nothing.
            let held = slot.take();
            drop(wait);
            slot.ctx().sync_scope(|| drop(held));
        }
    }
}
