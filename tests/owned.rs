//! Futures that can be spawned or stored, futures of `()`, tasks that receive their context, and handles
//! that may cross a `catch_unwind`.

mod common;

use std::future::{Future, pending};
use std::io;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::time::Duration;

use common::{Cause, Drops, LONG, assert_same, ended, ms, poll_once, word};
use futures::future::FusedFuture;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelGuard, CancelScope, Canceler, Context, Error, Group, Shutdown};

fn spawnable<F: Future + Send + 'static>(future: F) -> F {
    future
}

/// The context is a temporary, which is dropped before the first poll.
#[tokio::test(start_paused = true)]
async fn within_borrows_nothing() {
    let step = spawnable(Context::background().within(ms(30), async |_| pending::<()>().await));
    assert!(tokio::spawn(step).await.unwrap().unwrap_err().is_deadline_exceeded());
    let step = spawnable(Context::background().within(None, async |ctx: Context| ctx.is_done()));
    assert!(!tokio::spawn(step).await.unwrap().unwrap());
    let step = Context::background()
        .with_value(7_u8)
        .within(ms(30), |ctx: Context| async move { ctx.value::<u8>().copied() });
    assert_eq!(step.await.unwrap(), Some(7));
    // The closure may borrow.
    let local = String::from("borrowed");
    let read = Context::background().within(ms(30), async |_| local.len()).await;
    assert_eq!(read.unwrap(), local.len());
}

#[derive(Debug)]
enum Failure {
    Ended(Error),
    Own,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ended(error)
    }
}

/// The error of the step and the end of its context have the same type, whichever comes first.
#[tokio::test(start_paused = true)]
async fn try_within_is_one_flat_result() {
    let ctx = Context::background();
    let limit = ms(30);
    // The step notices the end itself.
    let noticed = ctx.try_within(limit, async |ctx| Ok::<(), Failure>(ctx.sleep(LONG).await?)).await;
    // The step does not notice the end.
    let stopped = ctx.try_within(limit, async |_| pending::<Result<(), Failure>>().await).await;
    for (which, result) in [noticed, stopped].into_iter().enumerate() {
        match result {
            Err(Failure::Ended(error)) => assert!(error.is_deadline_exceeded(), "{which}: {error}"),
            other => panic!("{which}: {other:?}"),
        }
    }
    let own = ctx.try_within(limit, async |_| Err::<(), _>(Failure::Own)).await;
    assert!(matches!(own, Err(Failure::Own)));
    let value = ctx.try_within(limit, async |_| Ok::<_, Failure>(3)).await;
    assert_eq!(value.unwrap(), 3);
    // With an ended parent, nothing starts, and the error is the parent's.
    let dead = ctx.with_cancel();
    dead.cancel();
    let refused = dead.try_within(limit, async |_| -> io::Result<()> { unreachable!() }).await;
    assert_same(Error::find(&refused.unwrap_err()).unwrap(), &ended(&dead));
    // It can be spawned, and records the caller's line.
    let step = spawnable(Context::background().try_within(limit, async |ctx| {
        ctx.check()?;
        Err::<(), Error>(ctx.done().await)
    }));
    let line = line!() - 4;
    let error = tokio::spawn(step).await.unwrap().unwrap_err();
    assert_eq!(error.origin().made_at().line(), line);
}

#[tokio::test(start_paused = true)]
async fn run_owned_goes_into_a_task() {
    // On a context, the scope is not moved.
    let scope = Context::background().with_cancel();
    let drops = Drops::default();
    let held = drops.counted();
    let work = async move {
        let _held = held;
        pending::<()>().await
    };
    let task = tokio::spawn(spawnable(scope.context().run_owned(work)));
    yield_now().await;
    assert_eq!(drops.count(), 0);
    scope.cancel_with(Cause("enough"));
    assert_eq!(word(&task.await.unwrap().unwrap_err()), Some("enough"));
    assert_eq!(drops.count(), 1);
    // On a scope, the scope is moved, and ends with the step.
    let step = spawnable(Context::background().with_timeout(ms(30)).run_owned(pending::<()>()));
    assert!(tokio::spawn(step).await.unwrap().unwrap_err().is_deadline_exceeded());
    let scope = Context::background().with_cancel();
    let seen = scope.clone();
    assert_eq!(scope.run_owned(async { 3 }).await.unwrap(), 3);
    assert!(seen.is_done());
    // If it ended before, nothing starts.
    let refused = seen.run_owned(async { unreachable!() }).await;
    let error: Error = refused.map(|(): ()| ()).unwrap_err();
    assert_same(&error, &ended(&seen));
    // A result that is ready takes precedence.
    let scope = Context::background().with_cancel();
    let canceler = scope.canceler();
    assert_eq!(scope.run_owned(async move { canceler.cancel() }).await.unwrap(), ());
}

#[cfg(feature = "tracing")]
#[tokio::test(start_paused = true)]
async fn run_in_span_goes_into_a_task() {
    let ctx = Context::background().with_timeout(ms(30));
    let task = tokio::spawn(spawnable(ctx.run_in_span(tracing::info_span!("work"), pending::<()>())));
    assert!(task.await.unwrap().unwrap_err().is_deadline_exceeded());
}

#[tokio::test(start_paused = true)]
async fn ended_resolves_to_nothing() {
    fn signal<F: Future<Output = ()> + Send + 'static>(signal: F) -> F {
        signal
    }
    let ctx = Context::background().with_cancel();
    let waiting = tokio::spawn(signal(ctx.ended_owned()));
    yield_now().await;
    assert!(poll_once(ctx.ended()).is_pending());
    assert!(!ctx.ended().is_terminated() && !ctx.ended_owned().is_terminated());
    ctx.cancel();
    waiting.await.unwrap();
    assert!(poll_once(ctx.ended()).is_ready());
    let timed = Context::background().with_timeout(ms(40));
    let start = Instant::now();
    timed.ended().await;
    assert_eq!(start.elapsed(), ms(40));
    assert!(poll_once(Context::background().ended()).is_pending());
    // In the form that servers take.
    let shutdown = Shutdown::new(&Context::background());
    let server = signal(shutdown.soft().ended_owned());
    shutdown.begin("over");
    server.await;
}

#[tokio::test(start_paused = true)]
async fn spawn_bounded_stops_its_task_at_the_end() {
    let ctx = Context::background().with_value(7_u8).with_cancel();
    let drops = Drops::default();
    let held = drops.counted();
    let task = ctx.spawn_bounded(async move {
        let _held = held;
        assert_eq!(Context::current().value::<u8>(), Some(&7));
        pending::<()>().await
    });
    yield_now().await;
    assert_eq!(drops.count(), 0);
    ctx.cancel_with(Cause("enough"));
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(drops.count(), 1);
    assert_same(&error, &ended(&ctx));
    // The result, or the error of an ended context.
    let alive = Context::background();
    assert_eq!(alive.spawn_bounded(async { 3 }).await.unwrap().unwrap(), 3);
    let polled = ctx.spawn_bounded(async { unreachable!() }).await.unwrap();
    assert!(polled.map(|(): ()| ()).is_err());
    // The scope stays with its owner; the task does not keep it from ending.
    let scope = Context::background().with_cancel();
    let task = scope.spawn_bounded(pending::<()>());
    drop(scope);
    assert!(task.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn spawn_with_passes_the_context_to_the_task() {
    let ctx = Context::background().with_value(7_u8).with_cancel();
    let (started, has_started) = oneshot::channel();
    let local = std::rc::Rc::new(7_u8); // The closure need not be `Send`: it is called here.
    let task = ctx.spawn_with(|ctx| {
        let local = *local;
        async move {
            assert_eq!(ctx.value::<u8>(), Some(&local));
            assert_eq!(Context::current().value::<u8>(), Some(&local));
            started.send(()).unwrap();
            let error = ctx.done().await;
            yield_now().await; // The end does not stop it.
            error
        }
    });
    has_started.await.unwrap();
    ctx.cancel();
    assert_same(&task.await.unwrap(), &ended(&ctx));
}

#[tokio::test(start_paused = true)]
async fn keeping_deadline_keeps_all_but_the_cancel() {
    let parent = Context::background().with_cancel();
    let request = parent.with_timeout(ms(100)).with_value("alice");
    let line = line!() - 1;
    let kept = request.keeping_deadline();
    parent.cancel_with("client hung up");
    assert!(request.is_done() && !kept.is_done());
    // Also for a context that was canceled before.
    let late = request.keeping_deadline();
    for ctx in [&kept, &late] {
        assert_eq!(ctx.deadline(), request.deadline());
        assert_eq!(ctx.value::<&str>(), Some(&"alice"));
        assert!(ctx.err().is_none());
    }
    let start = Instant::now();
    let error = kept.done().await;
    assert_eq!(start.elapsed(), ms(100));
    assert!(error.is_deadline_exceeded());
    // It names the line and the timeout of the context that set the deadline, as the request's error does; also
    // far below, from a merge, and repeatedly.
    let origin = error.origin();
    assert_eq!((origin.made_at().line(), origin.budget()), (line, Some(ms(100))));
    let below = request.with_timeout(Duration::from_secs(60)).detach().with_cancel().keeping_deadline();
    let merged = Context::background().with_cancel().merge(&kept).keeping_deadline();
    for ctx in [late.keeping_deadline(), below, merged] {
        assert_eq!(ended(&ctx).to_string(), error.to_string());
        assert_eq!(ended(&ctx).origin().ended_at(), origin.ended_at());
    }
    // A deadline that has passed is kept, and without a deadline there is none.
    advance(ms(50)).await;
    assert!(request.keeping_deadline().err().unwrap().is_deadline_exceeded());
    let free = parent.context().with_value(1_u8).keeping_deadline();
    assert!(free.deadline().is_none() && free.err().is_none());
    assert_eq!(free.value::<u8>(), Some(&1));
    assert!(Context::todo().keeping_deadline().to_string().contains("todo"));
}

#[test]
fn handles_cross_a_catch_unwind() {
    fn safe<T: UnwindSafe + RefUnwindSafe>() {}
    safe::<Context>();
    safe::<CancelScope>();
    safe::<CancelGuard>();
    safe::<Canceler>();
    safe::<Error>();
    safe::<Shutdown>();
    safe::<Group<std::cell::Cell<u8>, Error>>();
    safe::<tokio_ctx::AfterFunc>();
    safe::<tokio_ctx::shutdown::Ticket>();
    safe::<tokio_ctx::shutdown::Report>();
    safe::<tokio_ctx::budget::Progress>();
    safe::<tokio_ctx::DoneOwned>();
    #[cfg(feature = "watch")]
    safe::<tokio_ctx::watch::Watch>();

    let scope = Context::background().with_timeout(Duration::from_secs(60));
    let caught = catch_unwind(|| {
        let child = scope.with_cancel();
        child.cancel();
        panic!("a handler's");
    });
    assert!(caught.is_err());
    assert!(!scope.is_done());
    // A task that unwinds drops what it owns.
    let seen = scope.clone();
    let unwound = catch_unwind(move || {
        let _scope = scope;
        panic!("with the scope");
    });
    assert!(unwound.is_err() && seen.is_done());
    let _also = catch_unwind(AssertUnwindSafe(|| ()));
}
