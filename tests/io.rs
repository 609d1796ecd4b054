//! `Context::io`: what waits on a stream ends with the context, what is tried afterwards is refused, and no
//! byte is lost. On real sockets where that matters.

#![cfg(feature = "io")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Cursor, ErrorKind, IoSlice, SeekFrom};
use std::pin::{Pin, pin};
use std::task::{self, Poll, Waker};

use common::{
    Cause, LONG, Wakes, assert_same, ended, ms, on_both, panic_text, paused, poll, poll_once, word,
};
use tokio::io::{
    self, AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt,
    BufReader, BufWriter, DuplexStream,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_ctx::{Context, Error};

static BACKGROUND: Context = Context::background();

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

/// Each half may be another task's: both must be told.
#[test]
fn both_halves_are_told_of_the_end() {
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
async fn what_was_not_read_is_still_there() {
    let ctx = BACKGROUND.with_cancel();
    let (near, mut far) = connection().await;
    let mut near = ctx.io(near);
    far.write_all(b"abcdef").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'a');
    near.get_ref().readable().await.unwrap();
    ctx.cancel();
    // There is something to read, and it is not taken.
    assert!(near.read_u8().await.is_err());
    assert!(near.context().is_done());
    assert_eq!(near.get_mut().read_u8().await.unwrap(), b'b');
    drop(far);
    let mut rest = Vec::new();
    near.into_inner().read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"cdef");
}

/// One that never waits is looked at all the same.
#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_more_ends() {
    let ctx = BACKGROUND.with_cancel();
    let copy = io::copy(&mut ctx.io(io::repeat(1)), &mut io::sink()).await_with(|| ctx.cancel()).await;
    assert!(ours(&copy.unwrap_err()).is_canceled());

    let ctx = BACKGROUND.with_cancel();
    let copy = io::copy(&mut io::repeat(1), &mut ctx.io(io::sink())).await_with(|| ctx.cancel()).await;
    assert!(ours(&copy.unwrap_err()).is_canceled());
}

/// Does something between two polls of a future.
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
fn buffers_outside_keep_what_they_have() {
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

/// What a buffered writer could not write is still in it.
#[test]
fn what_was_not_flushed_is_still_there() {
    let ctx = BACKGROUND.with_cancel();
    let mut writer = ctx.io(BufWriter::new(Vec::new()));
    assert!(poll_once(writer.write_all(b"kept")).is_ready());
    ctx.cancel();
    assert!(matches!(poll_once(writer.flush()), Poll::Ready(Err(_))));
    let mut writer = writer.into_inner();
    assert!(poll_once(writer.flush()).is_ready());
    assert_eq!(writer.into_inner(), b"kept");
}

/// After the first wait of each direction none allocates, or makes a timer, which would.
#[test]
fn no_operation_allocates() {
    let runtime = paused();
    runtime.block_on(async {
        let ctx = BACKGROUND.with_timeout(LONG);
        let (near, mut far) = io::duplex(64);
        let mut near = ctx.io(near);
        let turn = async |near: &mut tokio_ctx::io::Bounded<DuplexStream>, far: &mut DuplexStream| {
            // A budget for each turn.
            tokio::task::yield_now().await;
            let mut byte = [0];
            assert!(poll_once(near.read_exact(&mut byte)).is_pending());
            assert!(poll_once(near.write_all(&[7; 65])).is_pending());
            far.read_exact(&mut [0; 64]).await.unwrap();
            far.write_all(&[1]).await.unwrap();
            near.read_exact(&mut byte).await.unwrap();
        };
        for _ in 0..10 {
            turn(&mut near, &mut far).await;
        }
        let before = ALLOCATIONS.get();
        for _ in 0..1_000 {
            turn(&mut near, &mut far).await;
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
    });
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
