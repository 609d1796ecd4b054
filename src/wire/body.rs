//! A body that ends with a context: the part that the bodies of both layers share.

use std::borrow::Borrow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, Waker};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

use super::open::Open;
use super::slot::Slot;
use crate::context::current::enter;
use crate::context::done::Wait;
use crate::context::{Context, Progress};
use crate::error::{BoxError, Error};
use crate::token::CLOCK_INTERVAL;

/// The result of a poll.
pub(crate) enum Step<D, E> {
    Frame(Frame<D>),
    /// A frame after which there are no others.
    Last(Frame<D>),
    Over,
    Failed(E),
    /// The context ended first; the body has been dropped.
    Ended(Error),
}

pub(crate) type StepOf<B> = Step<<B as Body>::Data, <B as Body>::Error>;

impl<D, E: Into<BoxError>> Step<D, E> {
    /// Converts the step to the result of `poll_frame`, and the error of the context with `ended`.
    #[inline]
    pub(crate) fn into_frame(
        self,
        ended: impl FnOnce(Error) -> BoxError,
    ) -> Option<Result<Frame<D>, BoxError>> {
        match self {
            Step::Frame(frame) | Step::Last(frame) => Some(Ok(frame)),
            Step::Over => None,
            Step::Failed(error) => Some(Err(error.into())),
            Step::Ended(error) => Some(Err(ended(error))),
        }
    }
}

/// The state of a body after its first poll.
pub(crate) enum Start<B: Body> {
    /// It is complete: these are its first frame, if it has two, and its last step.
    Whole(Option<B::Data>, StepOf<B>),
    /// It continues after these frames, which are in reverse order: the last one is sent first.
    Part(Pin<Box<B>>, Vec<Frame<B::Data>>),
}

impl<B: Body> Start<B> {
    /// Polls a body that is probably complete, so that it needs no registration with the context: once if its length is
    /// known, twice if it belongs to a gRPC response, where the trailers of a unary call follow its message. Other
    /// bodies are not polled here.
    pub(crate) fn poll(body: B, is_grpc: bool, cx: &mut task::Context<'_>) -> Start<B> {
        let is_polled = is_grpc || body.size_hint().exact().is_some();
        let mut body = Box::pin(body);
        let first = match if is_polled { poll_step(body.as_mut(), cx) } else { Poll::Pending } {
            Poll::Pending => return Start::Part(body, Vec::new()),
            Poll::Ready(Step::Frame(frame)) if is_grpc => frame,
            Poll::Ready(Step::Frame(frame)) => return Start::Part(body, vec![frame]),
            Poll::Ready(step) => return Start::Whole(None, step),
        };
        match poll_step(body.as_mut(), cx) {
            Poll::Pending => Start::Part(body, vec![first]),
            Poll::Ready(Step::Frame(second)) => Start::Part(body, vec![second, first]),
            Poll::Ready(step) => Start::Whole(first.into_data().ok(), step),
        }
    }
}

/// Polls a body, and determines whether the frame is its last one.
fn poll_step<B: Body>(mut body: Pin<&mut B>, cx: &mut task::Context<'_>) -> Poll<StepOf<B>> {
    body.as_mut().poll_frame(cx).map(|polled| match polled {
        Some(Ok(frame)) if frame.is_trailers() || body.is_end_stream() => Step::Last(frame),
        Some(Ok(frame)) => Step::Frame(frame),
        Some(Err(error)) => Step::Failed(error),
        None => Step::Over,
    })
}

/// Returns the number of bytes in a frame.
pub(crate) fn bytes<D: Buf>(frame: &Frame<D>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}

/// Returns the number of bytes that remain of a complete body.
pub(crate) fn hint<D: Buf, E>(first: Option<&D>, step: Option<&Step<D, E>>) -> SizeHint {
    let first = first.map_or(0, |data| data.remaining() as u64);
    match step {
        Some(Step::Last(frame) | Step::Frame(frame)) => SizeHint::with_exact(first + bytes(frame)),
        Some(Step::Failed(_) | Step::Ended(_)) => SizeHint::default(),
        Some(Step::Over) | None => SizeHint::with_exact(first),
    }
}

/// A body that is dropped when its context ends, even if it is not polled.
///
/// `C` owns the context. A complete body is dropped before `C`. An incomplete body is dropped after `C`, so that its
/// drop can observe how the context ended.
pub(crate) struct Bounded<B: Body, C: Borrow<Context>> {
    live: Option<Live<B, C>>,
    /// The registration of the request, after the body has ended.
    open: Option<Open>,
}

struct Live<B: Body, C: Borrow<Context>> {
    slot: Arc<Slot<Held<B>>>,
    /// The slot as a waker, registered with the context.
    bell: Waker,
    wait: Wait<C>,
    /// The current context while the body is polled; `None` leaves the current context unchanged.
    ctx: Option<Context>,
    /// Frames from the first polls, in reverse order: the last one is sent first.
    early: Vec<Frame<B::Data>>,
    /// The number of frames since the clock was last read.
    frames: u8,
    /// Whether the end also wakes a task that has received a frame, because a transport may be waiting for its peer.
    wakes: bool,
    /// Each frame is reported as progress.
    progress: Progress,
}

struct Held<B> {
    body: Pin<Box<B>>,
    // Dropped last, after everything that the request held.
    open: Option<Open>,
}

impl<B: Body + Send + 'static, C: Borrow<Context>> Bounded<B, C> {
    /// # Panics
    ///
    /// Panics if the context has a deadline and there is no time driver, as `Wait::poll` does.
    pub(crate) fn new(
        mut wait: Wait<C>,
        ctx: Option<Context>,
        body: Pin<Box<B>>,
        early: Vec<Frame<B::Data>>,
        open: Option<Open>,
        wakes: bool,
    ) -> Self {
        let progress = wait.ctx().progress();
        let (slot, bell) = Slot::registered(Held { body, open }, &mut wait);
        Bounded {
            live: Some(Live { slot, bell, wait, ctx, early, frames: 0, wakes, progress }),
            open: None,
        }
    }
}

impl<B: Body, C: Borrow<Context>> Bounded<B, C> {
    /// A frame that is ready wins over the end only if it is the last: a complete body is delivered, and a body that
    /// always has a frame ready ends with its context.
    pub(crate) fn poll_step(&mut self, cx: &mut task::Context<'_>) -> Poll<StepOf<B>> {
        let Some(live) = &mut self.live else { return Poll::Ready(Step::Over) };
        if let Some(frame) = live.early.pop() {
            live.progress.report_bytes(bytes(&frame));
            return Poll::Ready(Step::Frame(frame));
        }
        let ctx = live.slot.ctx();
        let Some((mut held, waker)) = live.slot.take() else {
            // A body that is lost is not reported as complete.
            return Poll::Ready(Step::Ended(ctx.err().expect("polled again after a panic")));
        };
        let at_work = held.open.as_ref().map(Open::at_work);
        let entered = live.ctx.as_mut().map(enter);
        let polled = poll_step(held.body.as_mut(), cx);
        drop((entered, at_work));
        if let Poll::Ready(Step::Frame(frame) | Step::Last(frame)) = &polled {
            live.progress.report_bytes(bytes(frame));
        }
        let step = match polled {
            Poll::Ready(Step::Frame(frame)) => {
                let waker = if live.wakes { Some(of_task(waker, cx)) } else { None };
                // The timer of the deadline ends the context. It cannot fire while a transport reads frame after frame
                // without a yield, so the clock is read now and then.
                live.frames = (live.frames + 1) % CLOCK_INTERVAL;
                let ended = if live.frames == 0 { ctx.err() } else { ctx.known_err() };
                match ended {
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
            Poll::Ready(step) => step,
            Poll::Pending => {
                // Polled each time, because the runtime may have changed.
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
        let entered = live.ctx.as_mut().map(enter);
        drop(body);
        drop(entered);
        self.open = open;
        Poll::Ready(step)
    }

    /// Releases the context of a body that has ended.
    pub(crate) fn finish(&mut self) {
        if let Some(Live { slot, bell, wait, ctx, .. }) = self.live.take() {
            // Dropped before the owner of the context: if the owner then has the last handle, the context need not be
            // ended.
            drop((slot, bell, ctx));
            drop(wait);
        }
        self.open = None;
    }

    /// Returns the owner of the context, while the body has not ended.
    pub(crate) fn owner_mut(&mut self) -> Option<&mut C> {
        self.live.as_mut().map(|live| live.wait.owner_mut())
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        // A body is allowed to report its end only when it is polled, so the slot need not be read here.
        self.live.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let Some(live) = &self.live else { return SizeHint::with_exact(0) };
        let mut hint = self.read_body(B::size_hint).unwrap_or_default();
        let early: u64 = live.early.iter().map(bytes).sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + early);
        }
        hint.set_lower(hint.lower() + early);
        hint
    }

    fn read_body<R>(&self, read: impl FnOnce(&B) -> R) -> Option<R> {
        self.live.as_ref()?.slot.read(|held| read(&held.body))
    }
}

/// Returns the waker to store, cloned only if the task has changed.
fn of_task(before: Option<Waker>, cx: &task::Context<'_>) -> Waker {
    before.filter(|waker| waker.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone())
}

/// Returns the error of a context that has ended.
fn why(ctx: &Context) -> Error {
    ctx.err().expect("an end is final")
}

impl<B: Body, C: Borrow<Context>> Drop for Bounded<B, C> {
    fn drop(&mut self) {
        if let Some(Live { slot, wait, .. }) = self.live.take() {
            // Taken out first, so that the end finds the slot empty.
            let held = slot.take();
            drop(wait);
            slot.ctx().sync_scope(|| drop(held));
        }
    }
}
