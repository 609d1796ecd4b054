//! Reads and writes that end with a context.
//!
//! [`Context::io`] wraps anything that is [`AsyncRead`], [`AsyncWrite`], [`AsyncBufRead`] or [`AsyncSeek`],
//! and is all that itself. When the context ends, what waits on it fails, and so does all that is tried
//! afterwards, with an `io::Error` of kind `TimedOut` for a deadline and `Other` for a cancel, which has our
//! [`Error`] inside. Go's counterpart is `conn.SetDeadline` in a `context.AfterFunc`.
//!
//! ```
//! use std::io;
//! use std::time::Duration;
//! use tokio::io::{AsyncBufReadExt, BufReader};
//! use tokio_ctx::{Context, Error};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let ctx = Context::background().with_timeout(Duration::from_secs(30));
//! # let (connection, mut _peer) = tokio::io::duplex(64);
//! # tokio::io::AsyncWriteExt::write_all(&mut _peer, b"EHLO there\n").await.unwrap();
//! let mut lines = BufReader::new(ctx.io(connection)).lines();
//!
//! assert_eq!(lines.next_line().await.unwrap().unwrap(), "EHLO there");
//! // Nothing more is said.
//! let error = lines.next_line().await.unwrap_err();
//! assert_eq!(error.kind(), io::ErrorKind::TimedOut);
//! let ended = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
//! assert!(ended.is_deadline_exceeded());
//! # }
//! ```
//!
//! # When to use it
//!
//! For code that takes a stream and knows nothing of contexts: a codec, a TLS library, `tokio::io::copy`.
//! A single operation is bounded as well by `ctx.try_run(stream.read(&mut buf))`; so are dialling and
//! accepting, for which there are no helpers here, as they would say no more than
//! `ctx.try_run(TcpStream::connect(addr))` and `ctx.try_run(listener.accept())` do.
//!
//! # What holds
//!
//! The context is looked at before the stream is: once it has ended, the stream is not touched any more, so
//! that no byte is taken from it and then not given. [`get_mut`](Bounded::get_mut) and
//! [`into_inner`](Bounded::into_inner) lead to what is still there. No operation allocates after the first of
//! its direction that had to wait. An operation that completes leaves nothing of its task behind, so that a
//! stream may rest in a pool; one that is dropped while it waits leaves its waker, as on Tokio's own streams,
//! until the next of the same kind completes.
//!
//! Every byte that is read or written is progress for the [idle limits](Context::with_idle) of the context.
//!
//! # Traps
//!
//! - **Flushing and shutting down are operations too**, and refused after the end: they may have to wait
//!   for a peer that does not read. Dropping the stream closes it. To say goodbye even so, do it on
//!   [`get_mut`](Bounded::get_mut), under a context of its own.
//! - **A write that failed half-way**, say `write_all`, has written what it has written: the connection is
//!   of no more use to a protocol with frames.
//! - **Wrap outside or inside?** Buffering around this (`BufReader::new(ctx.io(stream))`) keeps giving what
//!   it has buffered after the end; this around buffering (`ctx.io(BufReader::new(stream))`) does not.
//! - **Files** are read and written on blocking threads; what has begun there goes on after the end.

use std::fmt;
use std::future::Future;
use std::io::{IoSlice, Result, SeekFrom};
use std::pin::Pin;
use std::task::{self, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use crate::context::refusal::Entry;
use crate::context::{Context, DoneOwned, Progress};
#[cfg(doc)]
use crate::error::Error;

impl Context {
    /// Wraps a reader, a writer, or both, so that all its operations end with this context.
    ///
    /// See the module [`io`](crate::io) for what holds.
    ///
    /// # Panics
    ///
    /// When it has to wait, as [`done`](Self::done).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::io::AsyncReadExt;
    /// use tokio::net::{TcpListener, TcpStream};
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let addr = listener.local_addr()?;
    /// let ctx = Context::background().with_timeout(Duration::from_millis(50));
    /// let mut silent = ctx.io(ctx.try_run(TcpStream::connect(addr)).await?);
    /// assert!(silent.read_u8().await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn io<T>(&self, stream: T) -> Bounded<T> {
        Bounded { stream, limits: Limits::new(self.clone()) }
    }
}

pin_project! {
    /// A reader or writer whose operations end with a context. Made by [`Context::io`].
    ///
    /// One task may read while another writes, as after [`tokio::io::split`]; both are told of the end.
    pub struct Bounded<T> {
        #[pin]
        stream: T,
        limits: Limits,
    }
}

/// The context, and the waits for its end. Each direction may be another task's.
struct Limits {
    ctx: Context,
    reading: Half,
    writing: Half,
    progress: Progress,
}

/// The wait of one direction, and the operations that it is for.
#[derive(Default)]
struct Half {
    wait: Option<Pin<Box<DoneOwned>>>,
    /// One bit for each operation that was pending when it was last polled.
    pending: u8,
    entry: Entry,
}

/// What is done on a stream, each with its bit in [`Half::pending`].
#[derive(Clone, Copy)]
enum Operation {
    Read = 1,
    Seek = 2,
    Write = 4,
    Flush = 8,
    Shutdown = 16,
}

impl Operation {
    fn reads(self) -> bool {
        matches!(self, Operation::Read | Operation::Seek)
    }
}

impl Half {
    /// Drops the waker that waits, if it is for this operation and for no other.
    fn leave(&mut self, operation: Operation, ctx: &Context) {
        let others = self.pending & !(operation as u8);
        if let (Some(wait), true, 0) = (&mut self.wait, self.pending != 0, others) {
            // In its place, so that the next operation allocates nothing.
            wait.set(ctx.done_owned());
        }
        self.pending = others;
    }
}

impl Limits {
    fn new(ctx: Context) -> Self {
        let progress = ctx.progress();
        Limits { ctx, reading: Half::default(), writing: Half::default(), progress }
    }

    /// Refuses an operation after the end, which nothing in its direction waits for any more.
    fn poll_check(&mut self, operation: Operation, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let Some(ended) = self.ctx.err() else { return Poll::Ready(Ok(())) };
        let half = if operation.reads() { &mut self.reading } else { &mut self.writing };
        ready!(half.entry.poll_refused(cx));
        *half = Half::default();
        Poll::Ready(Err(ended.into()))
    }

    /// Reports so many bytes that have gone through, if any.
    fn report(&self, bytes: usize) {
        if bytes > 0 {
            self.progress.report_bytes(bytes as u64);
        }
    }

    /// Reports what is through without a count of bytes.
    fn note<R>(&self, polled: &Poll<Result<R>>) {
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.progress.report();
        }
    }

    /// Returns what `polled` says, unless the operation has to wait: then the context's end, once it comes.
    ///
    /// An operation that is over takes its waker along, unless another of its direction still waits: a
    /// write may be pending while a flush is ready at once.
    fn bound<R>(
        &mut self,
        operation: Operation,
        polled: Poll<Result<R>>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Result<R>> {
        let Limits { ctx, reading, writing, .. } = self;
        let half = if operation.reads() { reading } else { writing };
        half.entry.note(&polled);
        if polled.is_ready() {
            half.leave(operation, ctx);
            return polled;
        }
        half.pending |= operation as u8;
        let wait = half.wait.get_or_insert_with(|| Box::pin(ctx.done_owned()));
        let ended = ready!(wait.as_mut().poll(cx));
        *half = Half::default();
        Poll::Ready(Err(ended.into()))
    }
}

impl<T> Bounded<T> {
    /// The stream.
    ///
    /// ```
    /// let reader = tokio_ctx::Context::background().io(&b"abc"[..]);
    /// assert_eq!(reader.get_ref().len(), 3);
    /// ```
    pub fn get_ref(&self) -> &T {
        &self.stream
    }

    /// The stream, unbounded: what is done on it does not end with the context.
    ///
    /// ```
    /// use tokio::io::AsyncReadExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let mut reader = ctx.io(&b"ab"[..]);
    /// ctx.cancel();
    /// assert!(reader.read_u8().await.is_err());
    /// assert_eq!(reader.get_mut().read_u8().await?, b'a');
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.stream
    }

    /// The stream, pinned and unbounded.
    ///
    /// ```
    /// use std::pin::pin;
    ///
    /// let reader = pin!(tokio_ctx::Context::background().io(&b"abc"[..]));
    /// assert_eq!(reader.get_pin_mut().len(), 3);
    /// ```
    pub fn get_pin_mut(self: Pin<&mut Self>) -> Pin<&mut T> {
        self.project().stream
    }

    /// Unwraps the stream, with all that has not been read.
    ///
    /// ```
    /// let reader = tokio_ctx::Context::background().io(&b"abc"[..]);
    /// assert_eq!(reader.into_inner(), b"abc");
    /// ```
    pub fn into_inner(self) -> T {
        self.stream
    }

    /// The context.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let reader = ctx.io(tokio::io::empty());
    /// ctx.cancel();
    /// assert!(reader.context().is_done());
    /// ```
    pub fn context(&self) -> &Context {
        &self.limits.ctx
    }
}

impl<T: AsyncRead> AsyncRead for Bounded<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Read, cx))?;
        let before = buf.filled().len();
        let polled = this.stream.poll_read(cx, buf);
        this.limits.report(buf.filled().len().saturating_sub(before));
        this.limits.bound(Operation::Read, polled, cx)
    }
}

impl<T: AsyncBufRead> AsyncBufRead for Bounded<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<&[u8]>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Read, cx))?;
        this.limits.bound(Operation::Read, this.stream.poll_fill_buf(cx), cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.project();
        this.limits.report(amount);
        this.stream.consume(amount);
    }
}

impl<T: AsyncSeek> AsyncSeek for Bounded<T> {
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> Result<()> {
        let this = self.project();
        this.limits.ctx.check()?;
        this.stream.start_seek(position)
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<u64>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Seek, cx))?;
        let polled = this.stream.poll_complete(cx);
        this.limits.note(&polled);
        this.limits.bound(Operation::Seek, polled, cx)
    }
}

impl<T: AsyncWrite> AsyncWrite for Bounded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Write, cx))?;
        let polled = this.stream.poll_write(cx, buf);
        this.limits.report(written(&polled));
        this.limits.bound(Operation::Write, polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Write, cx))?;
        let polled = this.stream.poll_write_vectored(cx, bufs);
        this.limits.report(written(&polled));
        this.limits.bound(Operation::Write, polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Flush, cx))?;
        let polled = this.stream.poll_flush(cx);
        this.limits.note(&polled);
        this.limits.bound(Operation::Flush, polled, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let this = self.project();
        ready!(this.limits.poll_check(Operation::Shutdown, cx))?;
        this.limits.bound(Operation::Shutdown, this.stream.poll_shutdown(cx), cx)
    }
}

fn written(polled: &Poll<Result<usize>>) -> usize {
    if let Poll::Ready(Ok(written)) = polled { *written } else { 0 }
}

impl<T: fmt::Debug> fmt::Debug for Bounded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Bounded");
        debug.field("stream", &self.stream).field("context", &self.limits.ctx).finish()
    }
}
