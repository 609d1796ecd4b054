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
//! [`into_inner`](Bounded::into_inner) lead to what is still there. No operation allocates or makes a timer:
//! one wait for each direction, made when it first has to wait, lasts as long as the wrapper.
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
use std::io::{Error as IoError, IoSlice, Result, SeekFrom};
use std::pin::Pin;
use std::task::{self, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

#[cfg(doc)]
use crate::Error;
use crate::{Context, DoneOwned};

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
        Bounded { stream, limits: Limits { ctx: self.clone(), reading: None, writing: None } }
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

/// The context, and who waits for its end. Each direction may be another task's.
struct Limits {
    ctx: Context,
    reading: Option<Pin<Box<DoneOwned>>>,
    writing: Option<Pin<Box<DoneOwned>>>,
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl Limits {
    fn check(&self) -> Result<()> {
        Ok(self.ctx.check()?)
    }

    /// What an operation gave, unless it has to wait: then the context's end, should that come.
    fn bound<R>(
        &mut self,
        direction: Direction,
        operation: Poll<Result<R>>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Result<R>> {
        if operation.is_ready() {
            return operation;
        }
        let wait = match direction {
            Direction::Read => &mut self.reading,
            Direction::Write => &mut self.writing,
        };
        let wait = wait.get_or_insert_with(|| Box::pin(self.ctx.done_owned()));
        wait.as_mut().poll(cx).map(|ended| Err(IoError::from(ended)))
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
        this.limits.check()?;
        this.limits.bound(Direction::Read, this.stream.poll_read(cx, buf), cx)
    }
}

impl<T: AsyncBufRead> AsyncBufRead for Bounded<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<&[u8]>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Read, this.stream.poll_fill_buf(cx), cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        self.project().stream.consume(amount);
    }
}

impl<T: AsyncSeek> AsyncSeek for Bounded<T> {
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> Result<()> {
        let this = self.project();
        this.limits.check()?;
        this.stream.start_seek(position)
    }

    fn poll_complete(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<u64>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Read, this.stream.poll_complete(cx), cx)
    }
}

impl<T: AsyncWrite> AsyncWrite for Bounded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Write, this.stream.poll_write(cx, buf), cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Write, this.stream.poll_write_vectored(cx, bufs), cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Write, this.stream.poll_flush(cx), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        let this = self.project();
        this.limits.check()?;
        this.limits.bound(Direction::Write, this.stream.poll_shutdown(cx), cx)
    }
}

impl<T: fmt::Debug> fmt::Debug for Bounded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Bounded");
        debug.field("stream", &self.stream).field("context", &self.limits.ctx).finish()
    }
}
