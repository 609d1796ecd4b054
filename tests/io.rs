//! `Context::io`: pending operations end with the context, later ones are refused, and no byte is lost. On
//! real sockets where that matters.

#![cfg(feature = "io")]

#[path = "common/alloc.rs"]
mod alloc;
mod common;

use std::io::{Cursor, ErrorKind, IoSlice, SeekFrom};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{self, Poll, Waker};

use common::{
    Cause, LONG, Wakes, assert_same, ended, ms, on_both, panic_text, paused, poll, poll_once, word,
};
use tokio::io::{
    self, AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt, AsyncWrite,
    AsyncWriteExt, BufReader, BufWriter, DuplexStream, ReadBuf,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_ctx::io::Bounded;
use tokio_ctx::{CancelScope, Context, Error};

static BACKGROUND: Context = Context::background();

fn ours(error: &io::Error) -> &Error {
    error.get_ref().expect("an error inside").downcast_ref().expect("ours")
}

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (ours, theirs) = tokio::join!(connect, listener.accept());
    (ours.unwrap(), theirs.unwrap().0)
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_ends_at_the_deadline() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    let (near, _far) = io::duplex(8);
    let mut near = ctx.io(near);
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_same(ours(&error), &ended(&ctx));
    let again = near.read_u8().await.unwrap_err();
    assert_same(ours(&again), ours(&error));
}

#[test]
fn a_read_that_waits_ends_with_a_cancel() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (near, _far) = connection().await;
        let mut near = ctx.io(near);
        let read = tokio::spawn(async move { near.read_u8().await });
        tokio::task::yield_now().await;
        ctx.cancel_with(Cause("hung up"));
        let error = read.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other);
        assert_eq!(word(ours(&error)), Some("hung up"));
    });
}

#[test]
fn a_write_that_waits_ends_with_a_cancel() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (near, _far) = connection().await;
        let mut near = ctx.io(near);
        let write = tokio::spawn(async move {
            let block = vec![0; 1 << 20];
            // The peer never reads.
            loop {
                if let Err(error) = near.write_all(&block).await {
                    return error;
                }
            }
        });
        tokio::time::sleep(ms(20)).await;
        ctx.cancel_with(Cause("enough"));
        assert_eq!(word(ours(&write.await.unwrap())), Some("enough"));
    });
}

/// The halves can belong to different tasks. Both must be woken.
#[test]
fn both_halves_are_woken_at_the_end() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let (near, _far) = io::duplex(1);
        let (mut reader, mut writer) = io::split(ctx.io(near));
        let read = tokio::spawn(async move { reader.read_u8().await.unwrap_err() });
        let write = tokio::spawn(async move { writer.write_all(b"more than fits").await.unwrap_err() });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        ctx.cancel();
        assert!(ours(&read.await.unwrap()).is_canceled());
        assert!(ours(&write.await.unwrap()).is_canceled());
    });
}

#[test]
fn a_wait_that_moves_to_another_task_is_woken_there() {
    let ctx = BACKGROUND.with_cancel();
    let (near, _far) = io::duplex(1);
    let mut near = ctx.io(near);
    let ((one, first), (two, second)) = (Wakes::new(), Wakes::new());
    assert!(poll(pin!(near.read_u8()), &first).is_pending());
    assert!(poll(pin!(near.read_u8()), &second).is_pending());
    ctx.cancel();
    assert_eq!((one.count(), two.count()), (0, 1));
    assert!(poll_once(near.read_u8()).is_ready());
}

#[tokio::test]
async fn unread_data_is_kept() {
    let ctx = BACKGROUND.with_cancel();
    let (near, mut far) = connection().await;
    let mut near = ctx.io(near);
    far.write_all(b"abcdef").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'a');
    near.get_ref().readable().await.unwrap();
    ctx.cancel();
    // There is data to read, and it is not taken.
    assert!(near.read_u8().await.is_err());
    assert!(near.context().is_done());
    assert_eq!(near.get_mut().read_u8().await.unwrap(), b'b');
    drop(far);
    let mut rest = Vec::new();
    near.into_inner().read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"cdef");
}

/// An operation that never waits is checked as well.
#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_more_ends() {
    let ctx = BACKGROUND.with_cancel();
    let copy = io::copy(&mut ctx.io(io::repeat(1)), &mut io::sink()).await_with(|| ctx.cancel()).await;
    assert!(ours(&copy.unwrap_err()).is_canceled());

    let ctx = BACKGROUND.with_cancel();
    let copy = io::copy(&mut io::repeat(1), &mut ctx.io(io::sink())).await_with(|| ctx.cancel()).await;
    assert!(ours(&copy.unwrap_err()).is_canceled());
}

/// Runs a function between two polls of a future.
trait AwaitWith: Future + Sized {
    async fn await_with(self, between: impl FnOnce()) -> Self::Output {
        let mut future = pin!(self);
        let mut between = Some(between);
        std::future::poll_fn(|cx| {
            let polled = future.as_mut().poll(cx);
            if polled.is_pending() {
                if let Some(between) = between.take() {
                    between();
                }
            }
            polled
        })
        .await
    }
}

impl<F: Future> AwaitWith for F {}

#[test]
fn everything_is_refused_after_the_end() {
    let ctx = BACKGROUND.with_cancel();
    let mut file = ctx.io(Cursor::new(vec![1, 2, 3]));
    ctx.cancel();
    let refused = |operation: Poll<io::Result<()>>| match operation {
        Poll::Ready(Err(error)) => assert!(ours(&error).is_canceled()),
        other => panic!("{other:?}"),
    };
    refused(poll_once(async { file.read_u8().await.map(drop) }));
    refused(poll_once(async { file.fill_buf().await.map(drop) }));
    refused(poll_once(async { file.seek(SeekFrom::Start(1)).await.map(drop) }));
    refused(poll_once(file.write_all(b"x")));
    refused(poll_once(async { file.write_vectored(&[IoSlice::new(b"x")]).await.map(drop) }));
    refused(poll_once(file.flush()));
    refused(poll_once(file.shutdown()));
    assert_eq!(file.into_inner(), Cursor::new(vec![1, 2, 3]));
}

#[test]
fn before_the_end_everything_is_passed_on() {
    on_both(|| async {
        let ctx = BACKGROUND.with_timeout(LONG);
        let mut file = ctx.io(Cursor::new(b"one\ntwo\n".to_vec()));
        let mut line = String::new();
        assert_eq!(file.read_line(&mut line).await.unwrap(), 4);
        assert_eq!(file.seek(SeekFrom::Start(0)).await.unwrap(), 0);
        file.write_all(b"won").await.unwrap();
        file.flush().await.unwrap();
        file.shutdown().await.unwrap();
        assert_eq!(file.into_inner().into_inner(), b"won\ntwo\n");
    });
}

#[test]
fn vectored_writes_stay_vectored() {
    struct Asks(bool);
    impl AsyncWrite for Asks {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            unreachable!("it was given several")
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }
        fn is_write_vectored(&self) -> bool {
            self.0
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    for is in [false, true] {
        let mut writer = BACKGROUND.io(Asks(is));
        assert_eq!(writer.is_write_vectored(), is);
        let bufs = [IoSlice::new(b"ab"), IoSlice::new(b"c")];
        let mut cx = task::Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut writer).poll_write_vectored(&mut cx, &bufs), Poll::Ready(Ok(3))));
    }
}

#[test]
fn buffers_outside_keep_their_data() {
    let ctx = BACKGROUND.with_cancel();
    let mut lines = BufReader::new(ctx.io(&b"one\ntwo"[..]));
    let mut line = String::new();
    assert!(poll_once(lines.read_line(&mut line)).is_ready());
    ctx.cancel();
    assert!(matches!(poll_once(lines.read_u8()), Poll::Ready(Ok(b't'))));

    let ctx = BACKGROUND.with_cancel();
    let mut lines = ctx.io(BufReader::new(&b"one\ntwo"[..]));
    assert!(poll_once(lines.read_line(&mut line)).is_ready());
    ctx.cancel();
    assert!(matches!(poll_once(lines.read_u8()), Poll::Ready(Err(_))));
    assert_eq!(lines.get_ref().buffer(), b"two");
    let mut cx = task::Context::from_waker(Waker::noop());
    let pinned = pin!(lines);
    pinned.get_pin_mut().poll_fill_buf(&mut cx).map(drop).is_ready().then_some(()).unwrap();
}

/// A buffered writer keeps what it could not write.
#[test]
fn unflushed_data_is_kept() {
    let ctx = BACKGROUND.with_cancel();
    let mut writer = ctx.io(BufWriter::new(Vec::new()));
    assert!(poll_once(writer.write_all(b"kept")).is_ready());
    ctx.cancel();
    assert!(matches!(poll_once(writer.flush()), Poll::Ready(Err(_))));
    let mut writer = writer.into_inner();
    assert!(poll_once(writer.flush()).is_ready());
    assert_eq!(writer.into_inner(), b"kept");
}

/// After the first wait of each direction, no operation allocates or creates a timer, which would allocate.
#[test]
fn no_operation_allocates() {
    let runtime = paused();
    runtime.block_on(async {
        let ctx = BACKGROUND.with_timeout(LONG);
        let (near, mut far) = io::duplex(64);
        let mut near = ctx.io(near);
        let exchange = async |near: &mut Bounded<DuplexStream>, far: &mut DuplexStream| {
            // A fresh cooperative budget for each iteration.
            tokio::task::yield_now().await;
            let mut byte = [0];
            assert!(poll_once(near.read_exact(&mut byte)).is_pending());
            assert!(poll_once(near.write_all(&[7; 65])).is_pending());
            far.read_exact(&mut [0; 64]).await.unwrap();
            far.write_all(&[1]).await.unwrap();
            near.read_exact(&mut byte).await.unwrap();
        };
        for _ in 0..10 {
            exchange(&mut near, &mut far).await;
        }
        let before = alloc::allocations();
        for _ in 0..1_000 {
            exchange(&mut near, &mut far).await;
        }
        assert_eq!(alloc::allocations() - before, 0);
    });
}

/// A finished operation keeps no waker: a connection in a pool may live as long as the context, and would keep
/// the memory of the last task that used it.
mod an_operation_that_is_over_keeps_no_waker {
    use super::*;

    /// Polls once, and checks that a ready operation leaves no waker.
    #[track_caller]
    fn over<F: Future>(operation: F, wakes: &Arc<Wakes>, waker: &Waker) -> F::Output {
        let Poll::Ready(output) = poll(pin!(operation), waker) else { panic!("it still waits") };
        assert_eq!(Arc::strong_count(wakes), 2, "a waker was kept");
        output
    }

    fn contexts() -> [CancelScope; 3] {
        let parent = BACKGROUND.with_timeout(LONG * 2).detach();
        [BACKGROUND.with_cancel(), BACKGROUND.with_timeout(LONG), parent.with_cancel()]
    }

    /// The waker of a task keeps the memory of the task.
    #[tokio::test]
    async fn of_a_task_that_is_gone() {
        // Tokio boxes a future that is larger than two of these, and frees the box earlier.
        const TASK: usize = 1024;
        let ctx = BACKGROUND.with_timeout(LONG);
        let (near, mut far) = io::duplex(64);
        let mut pooled = ctx.io(near);
        // The allocation of the wait stays.
        assert!(poll_once(pooled.read_u8()).is_pending());
        let before = alloc::live();
        for _ in 0..2 {
            let task = tokio::spawn(async move {
                let kept_across = [0_u8; TASK];
                pooled.read_u8().await.unwrap();
                assert_eq!(std::hint::black_box(kept_across)[0], 0);
                pooled
            });
            tokio::task::yield_now().await;
            assert!(alloc::live() - before > TASK as isize);
            far.write_all(b"x").await.unwrap();
            pooled = task.await.unwrap();
            let kept = alloc::live() - before;
            assert!(kept < TASK as isize, "{kept} bytes are kept by {pooled:?}");
        }
    }

    #[tokio::test]
    async fn of_reads_and_writes() {
        for ctx in contexts() {
            let (near, mut far) = io::duplex(4);
            let mut near = ctx.io(near);
            let (wakes, waker) = Wakes::new();
            for _ in 0..3 {
                tokio::task::yield_now().await;
                let mut bytes = [0; 2];
                let mut read = pin!(near.read_exact(&mut bytes));
                assert!(poll(read.as_mut(), &waker).is_pending());
                assert!(Arc::strong_count(&wakes) > 2, "it does not wait");
                far.write_all(b"ab").await.unwrap();
                over(read, &wakes, &waker).unwrap();

                let mut write = pin!(near.write_all(b"abcde"));
                assert!(poll(write.as_mut(), &waker).is_pending());
                assert!(Arc::strong_count(&wakes) > 2, "it does not wait");
                far.read_exact(&mut [0; 4]).await.unwrap();
                over(write, &wakes, &waker).unwrap();
                far.read_exact(&mut [0; 1]).await.unwrap();
            }
            // The end of the stream is a result as well.
            let mut read = pin!(near.read_u8());
            assert!(poll(read.as_mut(), &waker).is_pending());
            drop(far);
            assert_eq!(over(read, &wakes, &waker).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }

    /// An operation that was ended by a cancel or a deadline keeps no waker either.
    #[tokio::test(start_paused = true)]
    async fn of_one_that_the_context_ended() {
        for (ctx, cancels) in contexts().into_iter().zip([true, false, true]) {
            let (near, _far) = io::duplex(1);
            let (mut reader, mut writer) = io::split(ctx.io(near));
            let ((reads, read_waker), (writes, write_waker)) = (Wakes::new(), Wakes::new());
            let mut read = pin!(reader.read_u8());
            let mut write = pin!(writer.write_all(b"ab"));
            assert!(poll(read.as_mut(), &read_waker).is_pending());
            assert!(poll(write.as_mut(), &write_waker).is_pending());
            if cancels {
                ctx.cancel();
            } else {
                tokio::time::advance(LONG + ms(1)).await;
            }
            assert!(reads.count() > 0 && writes.count() > 0, "not woken");
            let Poll::Ready(read) = poll(read, &read_waker) else { panic!("it still waits") };
            assert_eq!(ours(&read.unwrap_err()).is_canceled(), cancels);
            // The duplex stream keeps wakers that it no longer needs.
            assert!(Arc::strong_count(&reads) <= 3, "a waker was kept");
            let Poll::Ready(write) = poll(write, &write_waker) else { panic!("it still waits") };
            assert_eq!(ours(&write.unwrap_err()).is_canceled(), cancels);
            assert!(Arc::strong_count(&writes) <= 3, "a waker was kept");
        }
    }

    /// Returns whether each operation is ready, and keeps no waker.
    struct Gates {
        write: bool,
        flush: bool,
        read: bool,
        seek: bool,
    }

    fn gate<T>(open: bool, value: T) -> Poll<io::Result<T>> {
        if open { Poll::Ready(Ok(value)) } else { Poll::Pending }
    }

    impl AsyncWrite for Gates {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            gate(self.write, buf.len())
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            gate(self.flush, ())
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            gate(self.flush, ())
        }
    }

    impl AsyncRead for Gates {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            gate(self.read, ())
        }
    }

    impl AsyncSeek for Gates {
        fn start_seek(self: Pin<&mut Self>, _: SeekFrom) -> io::Result<()> {
            Ok(())
        }
        fn poll_complete(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<u64>> {
            gate(self.seek, 0)
        }
    }

    /// A task may wait for a write while another operation of the same direction is ready, such as a flush of a
    /// socket. The pending one is woken by the end.
    #[test]
    fn but_another_pending_one_is_woken() {
        let shut = || Gates { write: false, flush: false, read: false, seek: false };
        type Operation = fn(Pin<&mut Bounded<Gates>>, &mut task::Context<'_>) -> bool;
        let write: Operation = |io, cx| io.poll_write(cx, b"x").is_pending();
        let vectored: Operation =
            |io, cx| io.poll_write_vectored(cx, &[IoSlice::new(b"x")]).is_pending();
        let flush: Operation = |io, cx| io.poll_flush(cx).is_pending();
        let shutdown: Operation = |io, cx| io.poll_shutdown(cx).is_pending();
        let read: Operation = |io, cx| io.poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending();
        let seek: Operation = |io, cx| io.poll_complete(cx).is_pending();
        type Open = fn(&mut Gates);
        let opens_flush: Open = |gates| gates.flush = true;
        let opens_write: Open = |gates| gates.write = true;
        let opens_seek: Open = |gates| gates.seek = true;
        let opens_read: Open = |gates| gates.read = true;
        let pairs = [
            (write, opens_flush, flush),
            (vectored, opens_flush, shutdown),
            (flush, opens_write, write),
            (shutdown, opens_write, vectored),
            (read, opens_seek, seek),
            (seek, opens_read, read),
        ];
        for (waits, opens, completes) in pairs {
            let ctx = BACKGROUND.with_cancel();
            let (wakes, waker) = Wakes::new();
            let mut cx = task::Context::from_waker(&waker);
            let mut io = pin!(ctx.io(shut()));
            assert!(waits(io.as_mut(), &mut cx));
            opens(io.as_mut().get_pin_mut().get_mut());
            assert!(!completes(io.as_mut(), &mut cx));
            ctx.cancel();
            assert_eq!(wakes.count(), 1, "what still waits was not woken");
        }
    }
}

#[test]
fn dropped_while_it_waits_it_leaves_nothing() {
    let ctx = BACKGROUND.with_cancel();
    let (near, _far) = io::duplex(1);
    let mut near = ctx.io(near);
    let (wakes, waker) = Wakes::new();
    assert!(poll(pin!(near.read_u8()), &waker).is_pending());
    drop(near);
    ctx.cancel();
    assert_eq!(wakes.count(), 0);
}

#[test]
fn a_context_that_never_ends_costs_no_runtime() {
    let (near, _far) = io::duplex(1);
    assert!(poll_once(BACKGROUND.io(near).read_u8()).is_pending());
    let ctx = BACKGROUND.with_timeout(LONG);
    let (near, _far) = io::duplex(1);
    let mut near = ctx.io(near);
    let text = panic_text(|| poll_once(near.read_u8()).is_pending());
    assert!(text.contains("there is no reactor running"), "{text}");
}

#[test]
fn debug_shows_both() {
    let reader = BACKGROUND.io(io::empty());
    let text = format!("{reader:?}");
    assert!(text.starts_with("Bounded { stream: ") && text.contains("background"), "{text}");
}
