//! A body, until a context ends: what the bodies of both layers are made of.

use std::mem;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::context::done::Wait;
use crate::context::{Context, Progress};
use crate::error::Error;

pin_project! {
    pub(crate) struct Bounded<B> {
        ctx: Context,
        // Made when there is something to wait for, and boxed, so that pinning the body is all it takes.
        wait: Option<Pin<Box<Wait<Context>>>>,
        // Whether the wait is for a frame that is still to come.
        waits: bool,
        progress: Progress,
        // None: it is over, one way or the other.
        #[pin]
        body: Option<B>,
    }

    impl<B> PinnedDrop for Bounded<B> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            this.ctx.sync_scope(|| this.body.set(None));
        }
    }
}

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

impl<B: Body> Bounded<B> {
    pub(crate) fn new(ctx: Context, body: B) -> Self {
        let progress = ctx.progress();
        Bounded { ctx, wait: None, waits: false, progress, body: Some(body) }
    }

    /// What is ready goes first, but after the end nothing that more is to follow: a body that always has a
    /// frame ready ends as well, and one that is complete is not thrown away. A frame that has come takes its
    /// task's waker along: what sends it may take its time.
    pub(crate) fn poll_step(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Step<B::Data, B::Error>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(Step::Over) };
        let ctx = &*this.ctx;
        let polled = ctx.sync_scope(|| body.as_mut().poll_frame(cx));
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match frame.data_ref() {
                Some(data) => this.progress.report_bytes(data.remaining() as u64),
                None => this.progress.report(),
            }
        }
        let step = match polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() || body.is_end_stream() => {
                Step::Last(frame)
            }
            Poll::Ready(Some(Ok(frame))) => match ctx.err() {
                None => {
                    if mem::take(this.waits) {
                        // In its place, so that the next frame allocates nothing.
                        this.wait.iter_mut().for_each(|wait| wait.set(Wait::new(ctx.clone())));
                    }
                    return Poll::Ready(Step::Frame(frame));
                }
                Some(ended) => Step::Ended(ended),
            },
            Poll::Ready(Some(Err(error))) => Step::Failed(error),
            Poll::Ready(None) => Step::Over,
            Poll::Pending => {
                *this.waits = true;
                let wait = this.wait.get_or_insert_with(|| Box::pin(Wait::new(ctx.clone())));
                Step::Ended(ready!(wait.as_mut().poll(cx)))
            }
        };
        // Nobody waits any more: what comes of the context now need not wake this task.
        *this.wait = None;
        if let Step::Ended(_) = step {
            ctx.sync_scope(|| this.body.set(None));
        }
        Poll::Ready(step)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), B::size_hint)
    }
}
