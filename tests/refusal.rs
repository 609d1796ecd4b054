//! Refusals: an operation that is ready immediately because its context has ended consumes cooperative
//! budget, and yields if none is left.

mod common;

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use common::{LONG, current_thread, ended, ms, poll_once, watched};
use futures::{StreamExt as _, stream};
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::Command;
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio::task::yield_now;
use tokio_ctx::process::CommandExt as _;
use tokio_ctx::{Context, Error, FutureExt as _, Group, StreamExt as _};

const BACKGROUND: Context = Context::background();

/// Loops over the operation under an ended context, bounded by another that a second task ends.
fn lets_others_run<R>(what: &'static str, operation: impl AsyncFn(&Context) -> R + Send + 'static) {
    watched(move || {
        current_thread().block_on(async {
            let dead = BACKGROUND.with_cancel();
            dead.cancel();
            let bound = BACKGROUND.with_cancel();
            let canceler = bound.canceler();
            tokio::spawn(async move { canceler.cancel() });
            let mut polls = 0_u64;
            let looping = async {
                loop {
                    operation(&dead).await;
                    polls += 1;
                }
            };
            let error = bound.run(looping).await.map(|(): ()| ()).unwrap_err();
            assert!(error.is_canceled(), "{what}");
            assert!(polls > 1, "{what}: a refusal is not withheld while there is budget");
            assert!(polls < 1_000, "{what}: {polls} polls before another task ran");
        });
    });
}

#[test]
fn runs_that_are_refused_let_others_run() {
    lets_others_run("run", async |ctx| ctx.run(async {}).await.unwrap_err());
    lets_others_run("run_owned", async |ctx| ctx.run_owned(async {}).await.unwrap_err());
    lets_others_run("a scope's run_owned", async |ctx| {
        ctx.with_cancel().run_owned(async {}).await.unwrap_err()
    });
    lets_others_run("try_run", async |ctx| {
        ctx.try_run(async { Ok::<_, io::Error>(()) }).await.unwrap_err()
    });
    lets_others_run("within", async |ctx| ctx.within(LONG, async |_| ()).await.unwrap_err());
    lets_others_run("try_within", async |ctx| {
        ctx.try_within(LONG, async |_| Ok::<_, Error>(())).await.unwrap_err()
    });
    lets_others_run("within no time", async |_| {
        BACKGROUND.within(ms(0), async |_| ()).await.unwrap_err()
    });
    lets_others_run("sleep", async |ctx| ctx.sleep(LONG).await.unwrap_err());
    lets_others_run("bounded_by", async |ctx| async {}.bounded_by(ctx).await.unwrap_err());
    lets_others_run("run_in_span", async |ctx| {
        ctx.run_in_span(tracing::Span::none(), async {}).await.unwrap_err()
    });
}

#[test]
fn streams_that_are_refused_let_others_run() {
    lets_others_run("bounded_by", async |ctx| {
        assert!(stream::iter([1]).bounded_by(ctx).next().await.is_none());
    });
    lets_others_run("checked_by", async |ctx| {
        assert!(stream::iter([1]).checked_by(ctx).next().await.unwrap().is_err());
    });
    lets_others_run("try_bounded_by", async |ctx| {
        let items = stream::iter([Ok::<_, io::Error>(1)]);
        assert!(items.try_bounded_by(ctx).next().await.unwrap().is_err());
    });
    // The same stream, polled repeatedly after its end.
    watched(|| {
        current_thread().block_on(async {
            let dead = BACKGROUND.with_cancel();
            dead.cancel();
            let bound = BACKGROUND.with_timeout(ms(20));
            let mut ended = stream::pending::<u8>().bounded_by(&dead);
            let looping = async {
                loop {
                    assert!(ended.next().await.is_none());
                }
            };
            assert!(bound.run(looping).await.map(|(): ()| ()).is_err());
        });
    });
}

#[test]
fn io_that_is_refused_lets_others_run() {
    lets_others_run("read", async |ctx| ctx.io(&b"abc"[..]).read_u8().await.unwrap_err());
    lets_others_run("fill_buf", async |ctx| {
        ctx.io(BufReader::new(&b"abc"[..])).fill_buf().await.map(drop).unwrap_err()
    });
    lets_others_run("write", async |ctx| ctx.io(tokio::io::sink()).write(b"abc").await.unwrap_err());
    lets_others_run("flush", async |ctx| ctx.io(tokio::io::sink()).flush().await.unwrap_err());
    lets_others_run("shutdown", async |ctx| ctx.io(tokio::io::sink()).shutdown().await.unwrap_err());
    lets_others_run("seek", async |ctx| {
        ctx.io(io::Cursor::new([1, 2])).seek(io::SeekFrom::Start(1)).await.unwrap_err()
    });
    // One wrapper, used repeatedly.
    watched(|| {
        current_thread().block_on(async {
            let dead = BACKGROUND.with_cancel();
            let (ours, _theirs) = tokio::io::duplex(8);
            let mut io = dead.io(ours);
            assert!(poll_once(io.read_u8()).is_pending());
            dead.cancel();
            let bound = BACKGROUND.with_timeout(ms(20));
            let looping = async {
                loop {
                    io.read_u8().await.unwrap_err();
                    io.write_u8(1).await.unwrap_err();
                }
            };
            assert!(bound.run(looping).await.map(|(): ()| ()).is_err());
        });
    });
}

#[test]
fn slots_and_processes_that_are_refused_let_others_run() {
    lets_others_run("a group's slot", async |ctx| {
        let (group, _ctx) = Group::<(), Error>::new(ctx);
        assert!(!group.limit(1).spawn(async { Ok(()) }).await);
    });
    lets_others_run("for_each_task", async |ctx| {
        let pool = stream::iter([1]).for_each_task(ctx, 2, |_, _| async { Ok::<_, Error>(()) });
        pool.await.unwrap_err()
    });
    lets_others_run("status", async |ctx| {
        Command::new("true").bounded_by(ctx).status().await.unwrap_err()
    });
    lets_others_run("output", async |ctx| {
        Command::new("true").bounded_by(ctx).output().await.unwrap_err()
    });
}

#[test]
fn calls_that_are_refused_let_others_run() {
    use tokio_ctx::wire::{ClientLayer, Outbound};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    type Body = http_body_util::Empty<bytes::Bytes>;
    let call =
        service_fn(async |_: http::Request<Body>| Ok::<_, io::Error>(http::Response::new(Body::new())));
    lets_others_run("a call", async move |ctx| {
        let client = ClientLayer::new(Outbound::new()).layer(call);
        let refused = ctx.scope(client.oneshot(http::Request::new(Body::new()))).await;
        assert!(Error::find(&*refused.map(drop).unwrap_err()).is_some());
    });
}

/// A server that is called in a loop does not spin either.
#[test]
fn requests_that_are_refused_let_others_run() {
    use tokio_ctx::wire::{Inbound, ServerLayer};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    type Body = http_body_util::Empty<bytes::Bytes>;
    let handler =
        service_fn(async |_: http::Request<Body>| Ok::<_, io::Error>(http::Response::new(Body::new())));
    lets_others_run("a request", async move |ctx| {
        let server = ServerLayer::new(ctx.clone(), Inbound::new()).layer(handler);
        let refused = server.oneshot(http::Request::new(Body::new())).await.unwrap();
        assert!(refused.status().is_server_error());
    });
}

/// The loop runs under the context that it ignores.
#[test]
fn a_loop_that_ignores_its_contexts_end_is_ended_by_it() {
    watched(|| {
        current_thread().block_on(async {
            let ctx = BACKGROUND.with_timeout(ms(20));
            let ran = Arc::new(AtomicBool::new(false));
            let flag = ran.clone();
            let other = tokio::spawn(async move { flag.store(true, Ordering::SeqCst) });
            let looping = ctx.run(async {
                loop {
                    let _ = ctx.sleep(ms(5)).await;
                }
            });
            assert!(looping.await.map(|(): ()| ()).unwrap_err().is_deadline_exceeded());
            other.await.unwrap();
            assert!(ran.load(Ordering::SeqCst));
        });
    });
}

/// The same under Tokio's own bound, from a retry loop.
#[test]
fn a_retry_loop_is_ended_by_a_timeout_around_it() {
    watched(|| {
        current_thread().block_on(async {
            let ctx = BACKGROUND.with_timeout(ms(0));
            let retry = async { while ctx.within(ms(5), async |_| Ok::<(), ()>(())).await.is_err() {} };
            assert!(tokio::time::timeout(ms(30), retry).await.is_err());
        });
    });
}

async fn use_up_budget() {
    while has_budget_remaining() {
        consume_budget().await;
    }
}

/// Polls the future with no budget left, as another future of the same task may cause, in every poll.
async fn starved<F: Future>(future: F, polls: &AtomicUsize) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        polls.fetch_add(1, Ordering::SeqCst);
        let mut hog = pin!(use_up_budget());
        assert!(hog.as_mut().poll(cx).is_ready());
        assert!(!has_budget_remaining());
        future.as_mut().poll(cx)
    })
    .await
}

/// Another future that uses up the budget in every poll does not withhold a refusal forever.
#[tokio::test]
async fn a_refusal_yields_once() {
    let dead = BACKGROUND.with_cancel();
    dead.cancel();
    let work = async |polls: &AtomicUsize| {
        assert!(starved(dead.run(pending::<()>()), polls).await.is_err());
        assert_eq!(polls.swap(0, Ordering::SeqCst), 2);
        let mut items = stream::pending::<u8>().checked_by(&dead);
        assert!(starved(items.next(), polls).await.unwrap().is_err());
        assert_eq!(polls.swap(0, Ordering::SeqCst), 2);
        assert!(starved(dead.io(&b"a"[..]).read_u8(), polls).await.is_err());
        assert_eq!(polls.swap(0, Ordering::SeqCst), 2);
        let (group, _ctx) = Group::<(), Error>::new(&dead);
        assert!(!starved(group.limit(1).spawn(async { Ok(()) }), polls).await);
        assert_eq!(polls.swap(0, Ordering::SeqCst), 2);
    };
    tokio::time::timeout(LONG, work(&AtomicUsize::new(0))).await.unwrap();
}

/// An end that is seen on a later poll, and `done` and `ended`, are free.
#[tokio::test]
async fn an_end_is_never_withheld() {
    let check = async {
        for late in [false, true] {
            let ctx = BACKGROUND.with_cancel();
            let (ours, _theirs) = tokio::io::duplex(8);
            let mut io = ctx.io(ours);
            let mut items = stream::pending::<u8>().checked_by(&ctx);
            let mut run = pin!(ctx.run(pending::<()>()));
            let mut next = pin!(items.next());
            let mut read = pin!(io.read_u8());
            let mut step = pin!(ctx.within(LONG, async |_| pending::<()>().await));
            if late {
                assert!(futures::poll!(run.as_mut()).is_pending());
                assert!(futures::poll!(next.as_mut()).is_pending());
                assert!(futures::poll!(read.as_mut()).is_pending());
                assert!(futures::poll!(step.as_mut()).is_pending());
            }
            ctx.cancel();
            use_up_budget().await;
            assert!(!has_budget_remaining());
            // These observe it immediately, with no budget left.
            assert!(futures::poll!(pin!(ctx.done())).is_ready());
            assert!(futures::poll!(pin!(ctx.done_owned())).is_ready());
            assert!(futures::poll!(pin!(ctx.ended())).is_ready());
            assert!(futures::poll!(pin!(ctx.ended_owned())).is_ready());
            assert!(!has_budget_remaining());
            assert_eq!(futures::poll!(run.as_mut()).is_ready(), late);
            assert_eq!(futures::poll!(next.as_mut()).is_ready(), late);
            assert_eq!(futures::poll!(read.as_mut()).is_ready(), late);
            assert_eq!(futures::poll!(step.as_mut()).is_ready(), late);
            yield_now().await;
            if !late {
                // Having yielded once, they now return the refusal.
                assert!(matches!(futures::poll!(run.as_mut()), Poll::Ready(Err(_))));
                assert!(futures::poll!(next.as_mut()).is_ready());
                assert!(futures::poll!(read.as_mut()).is_ready());
                assert!(futures::poll!(step.as_mut()).is_ready());
            }
            ended(&ctx);
        }
    };
    check.await;
}

/// Outside of a runtime there is no budget, and no task to yield to.
#[test]
fn a_refusal_outside_a_runtime_is_ready_at_once() {
    let dead = BACKGROUND.with_cancel();
    dead.cancel();
    for _ in 0..1_000 {
        assert!(matches!(poll_once(dead.run(async {})), Poll::Ready(Err(_))));
    }
}
