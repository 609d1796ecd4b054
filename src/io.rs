//! Readers and writers that end with a context.
//!
//! [`Context::io`] wraps a type that implements [`AsyncRead`], [`AsyncWrite`], [`AsyncBufRead`] or
//! [`AsyncSeek`], and implements the same traits. When the context ends, pending and later operations fail with
//! an `io::Error` that contains the context's [`Error`]. Its kind is `TimedOut` for a deadline, and `Other`
//! otherwise. In Go, one calls `conn.SetDeadline` in a `context.AfterFunc`.
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
//! // The peer sends nothing more.
//! let error = lines.next_line().await.unwrap_err();
//! assert_eq!(error.kind(), io::ErrorKind::TimedOut);
//! let ended = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
//! assert!(ended.is_deadline_exceeded());
//! # }
//! ```
//!
//! # When to use it
//!
//! Use it for code that takes a stream and knows nothing about contexts: a codec, a TLS library,
//! `tokio::io::copy`. For a single operation, `ctx.try_run(stream.read(&mut buf))` is sufficient, and so are
//! `ctx.try_run(TcpStream::connect(addr))` and `ctx.try_run(listener.accept())`.
//!
//! # Guarantees
//!
//! - The context is checked before each operation. Once it has ended, the stream is no longer accessed, so no
//!   byte is read and then lost. [`get_mut`](Bounded::get_mut) and [`into_inner`](Bounded::into_inner) give
//!   access to the rest.
//! - Only the first operation in each direction that has to wait allocates.
//! - An operation that has completed keeps no waker, so a stream can be stored in a pool. An operation that is
//!   dropped while it waits keeps its waker until the next operation of the same kind completes, as in Tokio's
//!   own streams.
//!
//! Every byte that is read or written is progress for the [idle limits](Context::with_idle) of the context.
//!
//! # Traps
//!
//! - **Flushing and shutting down** are operations as well, and fail after the end, because they may have to
//!   wait for a peer that does not read. Dropping the stream closes it. To send a final message, use
//!   [`get_mut`](Bounded::get_mut) with another context.
//! - **A write that fails halfway**, for example `write_all`, may have written part of the data. The
//!   connection can then no longer be used for a protocol with frames.
//! - **Order of wrapping.** `BufReader::new(ctx.io(stream))` still returns buffered data after the end;
//!   `ctx.io(BufReader::new(stream))` does not.
//! - **Files** are read and written on blocking threads. An operation that has begun there continues after the
//!   end.
//!
//! [`AsyncRead`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncRead.html
//! [`AsyncWrite`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWrite.html
//! [`AsyncBufRead`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncBufRead.html
//! [`AsyncSeek`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncSeek.html

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

/// # Readers and writers
impl Context {
    /// Wraps a reader or writer so that its operations end with this context.
    ///
    /// See the module [`io`](crate::io).
    ///
    /// # Panics
    ///
    /// Operations that have to wait panic under the conditions of [`done`](Self::done).
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
    /// A reader or writer whose operations end with a context. Returned by [`Context::io`].
    ///
    /// One task can read while another writes, for example after [`tokio::io::split`]. Both are woken when the
    /// context ends.
    ///
    /// [`tokio::io::split`]: https://docs.rs/tokio/1/tokio/io/fn.split.html
    pub struct Bounded<T> {
        #[pin]
        stream: T,
        limits: Limits,
    }
}

/// The context, and the waits for its end. The two directions can belong to different tasks.
struct Limits {
    ctx: Context,
    reading: Half,
    writing: Half,
    progress: Progress,
}

/// The wait of one direction, and the operations that are pending.
#[derive(Default)]
struct Half {
    wait: Option<Pin<Box<DoneOwned>>>,
    /// One bit for each operation that was pending when it was last polled.
    pending: u8,
    entry: Entry,
}

/// The operations of a stream, each with its bit in [`Half::pending`].
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
    /// Drops the registered waker, if it is for this operation only.
    fn drop_waker(&mut self, operation: Operation, ctx: &Context) {
        let others = self.pending & !(operation as u8);
        if let (Some(wait), true, 0) = (&mut self.wait, self.pending != 0, others) {
            // Replaced in place, so that the next operation does not allocate.
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

    /// Refuses an operation after the end. Drops the wait of its direction.
    fn poll_check(&mut self, operation: Operation, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let Some(ended) = self.ctx.err() else { return Poll::Ready(Ok(())) };
        let half = if operation.reads() { &mut self.reading } else { &mut self.writing };
        ready!(half.entry.poll_refused(cx));
        *half = Half::default();
        Poll::Ready(Err(ended.into()))
    }

    /// Reports `bytes` as progress, if there are any.
    fn report(&self, bytes: usize) {
        if bytes > 0 {
            self.progress.report_bytes(bytes as u64);
        }
    }

    /// Reports an operation without a number of bytes as progress, if it has completed.
    fn report_completion<R>(&self, polled: &Poll<Result<R>>) {
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.progress.report();
        }
    }

    /// Returns the result of `polled`. If the operation is pending, waits for the end of the context as well.
    ///
    /// When an operation completes, its waker is removed, unless another operation of the same direction is
    /// pending: a write can be pending while a flush is ready.
    fn bound<R>(
        &mut self,
        operation: Operation,
        polled: Poll<Result<R>>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Result<R>> {
        let Limits { ctx, reading, writing, .. } = self;
        let half = if operation.reads() { reading } else { writing };
        half.entry.record(&polled);
        if polled.is_ready() {
            half.drop_waker(operation, ctx);
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
    /// Returns a reference to the stream.
    ///
    /// ```
    /// let reader = tokio_ctx::Context::background().io(&b"abc"[..]);
    /// assert_eq!(reader.get_ref().len(), 3);
    /// ```
    pub fn get_ref(&self) -> &T {
        &self.stream
    }

    /// Returns a mutable reference to the stream. Operations on it do not end with the context.
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

    /// Returns a pinned mutable reference to the stream. Operations on it do not end with the context.
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

    /// Returns the stream.
    ///
    /// ```
    /// let reader = tokio_ctx::Context::background().io(&b"abc"[..]);
    /// assert_eq!(reader.into_inner(), b"abc");
    /// ```
    pub fn into_inner(self) -> T {
        self.stream
    }

    /// Returns the context.
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
        this.limits.report_completion(&polled);
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
        this.limits.report_completion(&polled);
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
