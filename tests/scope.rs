//! `CancelScope`: a context that ends when the scope is dropped, and `clone`, `canceler`, `detach` and
//! `split`.

mod common;

use std::borrow::Borrow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Cause, HANG, LONG, assert_same, ended, ms, on_both, word};
use tokio::sync::oneshot;
use tokio::time::{Instant, advance, timeout};
use tokio_ctx::{CancelGuard, CancelScope, Context, Error};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Checks that the drop of a scope ended the context, and that the error names the line that derived it.
#[track_caller]
fn assert_dropped(error: &Error, made_at: u32) {
    assert!(error.is_canceled());
    assert!(error.origin().canceled_at().is_none(), "a drop has no line: {error}");
    assert_eq!(error.origin().made_at().line(), made_at);
    let text = format!("context canceled: scope dropped, context made at {}:{made_at}", file!());
    assert_eq!(error.to_string(), text);
}

// Types and traits.

#[test]
fn a_scope_is_as_large_as_a_context() {
    assert_eq!(size_of::<CancelScope>(), size_of::<Context>());
    assert_eq!(size_of::<Option<CancelScope>>(), size_of::<Option<Context>>());
}

#[test]
fn a_scope_can_be_used_like_a_context() {
    fn sendable<T: Send + Sync + Unpin + 'static>() {}
    fn by_reference(ctx: &Context) -> Option<Duration> {
        ctx.remaining()
    }
    fn as_reference(ctx: impl AsRef<Context>) -> bool {
        ctx.as_ref().is_done()
    }
    fn borrowed<C: Borrow<Context>>(ctx: &C) -> bool {
        ctx.borrow().is_done()
    }
    sendable::<CancelScope>();
    let scope = BACKGROUND.with_timeout(LONG);
    assert!(by_reference(&scope).is_some());
    assert!(!as_reference(scope.with_cancel()));
    assert!(!as_reference(&scope));
    assert!(!borrowed(&scope));
    let in_a_box: Box<CancelScope> = Box::new(scope);
    assert!(by_reference(&in_a_box).is_some());
    let shared = Arc::new(*in_a_box);
    assert!(by_reference(&shared).is_some());
}

#[tokio::test(start_paused = true)]
async fn it_is_printed_like_its_context() {
    let scope = BACKGROUND.with_timeout(LONG).with_value(7_u8);
    let text = scope.to_string();
    assert!(text.starts_with("context made at tests/scope.rs:"), "{text}");
    assert!(text.ends_with(" left"), "{text}");
    scope.cancel_with("enough");
    assert_eq!(scope.to_string(), scope.context().to_string());
    assert_eq!(format!("{scope:?}"), format!("CancelScope({:?})", scope.context()));
}

// Drop.

#[test]
fn its_drop_ends_a_clone() {
    let scope = BACKGROUND.with_cancel();
    let made_at = line!() - 1;
    let ctx = scope.clone();
    assert!(!ctx.is_done());
    drop(scope);
    assert_dropped(&ended(&ctx), made_at);
}

#[test]
fn its_drop_ends_a_child() {
    let scope = BACKGROUND.with_timeout(LONG);
    let made_at = line!() - 1;
    let child = scope.with_timeout(ms(10_000)).with_value("child");
    let grandchild = child.with_cancel();
    drop(scope);
    assert_dropped(&ended(&child), made_at);
    assert_same(&ended(&child), &ended(&grandchild));
}

#[test]
fn its_drop_is_seen_through_a_canceler_a_value_and_a_token() {
    // A context with a value, which is another handle.
    let scope = BACKGROUND.with_cancel();
    let made_at = line!() - 1;
    let valued = scope.context().with_value("alice");
    drop(scope);
    assert_dropped(&ended(&valued), made_at);

    // A canceler is not a context, and has no effect after the end.
    let scope = BACKGROUND.with_cancel();
    let canceler = scope.canceler();
    drop(scope);
    canceler.cancel_with(Cause("late"));

    // The token is the only observer.
    let scope = BACKGROUND.with_cancel();
    let token = scope.cancellation_token();
    assert!(!token.is_cancelled());
    drop(scope);
    assert!(token.is_cancelled(), "the context was dropped, and its token was not cancelled");
}

#[test]
fn its_drop_wakes_waiters() {
    on_both(|| async {
        let scope = BACKGROUND.with_timeout(LONG);
        let made_at = line!() - 1;
        let waiting = tokio::spawn(scope.done_owned());
        let child = scope.with_cancel();
        let below = tokio::spawn(child.done_owned());
        tokio::task::yield_now().await;
        drop(scope);
        for waiting in [waiting, below] {
            let error = timeout(HANG, waiting).await.expect("it was not woken").unwrap();
            assert_dropped(&error, made_at);
        }
    });
}

#[test]
fn its_drop_runs_registered_functions() {
    on_both(|| async {
        let scope = BACKGROUND.with_cancel();
        let (sender, receiver) = oneshot::channel();
        scope.after_func(|| async { sender.send(()).unwrap() });
        drop(scope);
        timeout(HANG, receiver).await.expect("it did not run").unwrap();
    });
}

/// A cause whose reference count shows whether its context is still alive.
#[derive(Debug)]
struct Held(Arc<()>);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held {} times", Arc::strong_count(&self.0))
    }
}

impl std::error::Error for Held {}

#[test]
fn a_function_after_the_end_does_not_keep_the_context() {
    on_both(|| async {
        let held = Arc::new(());
        let scope = BACKGROUND.with_cancel();
        let (begin, begun) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        scope.after_func(|| async {
            begin.send(()).unwrap();
            let _ = stopped.await;
        });
        scope.cancel_with(Held(held.clone()));
        drop(scope);
        timeout(HANG, begun).await.expect("it did not run").unwrap();
        assert_eq!(Arc::strong_count(&held), 1, "the context was kept");
        drop(stop);
    });
}

#[test]
fn its_drop_drops_a_future_that_was_to_end_it() {
    on_both(|| async {
        let (held, gone) = oneshot::channel::<()>();
        let scope = BACKGROUND.with_cancel_when(async move {
            let _held = held;
            std::future::pending::<Cause>().await
        });
        tokio::task::yield_now().await;
        drop(scope);
        timeout(HANG, gone).await.expect("the future was kept").unwrap_err();
    });
}

/// A handle that is dropped on another thread may leave a bridge behind, which the drop must not overlook.
#[test]
fn its_drop_never_misses_a_token_that_is_created_meanwhile() {
    for round in 0..5_000 {
        let scope = BACKGROUND.with_cancel();
        let ctx = scope.clone();
        let start = AtomicUsize::new(0);
        let meet = || {
            start.fetch_add(1, Ordering::AcqRel);
            while start.load(Ordering::Acquire) < 2 {
                thread::yield_now();
            }
        };
        let token = thread::scope(|threads| {
            let bridging = threads.spawn(|| {
                meet();
                let token = ctx.cancellation_token();
                drop(ctx);
                token
            });
            meet();
            if round % 2 == 0 {
                thread::yield_now();
            }
            drop(scope);
            bridging.join().unwrap()
        });
        assert!(token.is_cancelled(), "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_end_applies() {
    // A deadline that has passed before the drop, even without a waiter.
    let scope = BACKGROUND.with_timeout(ms(10));
    let ctx = scope.clone();
    advance(ms(11)).await;
    drop(scope);
    assert!(ended(&ctx).is_deadline_exceeded());

    // The end of a parent.
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_cancel();
    let ctx = child.clone();
    parent.cancel_with(Cause("first"));
    drop(child);
    assert_eq!(word(&ended(&ctx)), Some("first"));

    // Its own cancel, and one after the drop.
    let scope = BACKGROUND.with_cancel();
    let (ctx, canceler) = (scope.clone(), scope.canceler());
    scope.cancel_with(Cause("its own"));
    drop(scope);
    canceler.cancel_with(Cause("late"));
    assert_eq!(word(&ended(&ctx)), Some("its own"));
}

#[test]
fn its_drop_touches_neither_parent_nor_siblings() {
    let parent = BACKGROUND.with_cancel();
    let sibling = parent.with_timeout(LONG);
    let scope = parent.with_timeout(LONG);
    let ctx = scope.clone();
    drop(scope);
    assert!(ctx.is_done());
    assert!(!sibling.is_done() && !parent.is_done());
}

// Cancel.

#[test]
fn a_cancel_names_its_line_and_its_cause() {
    let scope = BACKGROUND.with_cancel();
    let child = scope.with_cancel();
    scope.cancel();
    let here = line!() - 1;
    let canceled_at = |error: &Error| error.origin().canceled_at().map(Location::line);
    assert_eq!(canceled_at(&ended(&child)), Some(here));
    assert!(ended(&scope).cause().is_none());

    let scope = BACKGROUND.with_timeout(LONG);
    scope.cancel_with(Cause("enough"));
    assert_eq!(canceled_at(&ended(&scope)), Some(line!() - 1));
    assert_eq!(word(&ended(&scope)), Some("enough"));
    scope.cancel_with(Cause("twice"));
    assert_eq!(word(&ended(&scope)), Some("enough"));

    let scope = BACKGROUND.with_cancel();
    let canceler = scope.canceler();
    let (first, second) = (canceler.clone(), canceler);
    drop(first);
    assert!(!scope.is_done(), "a canceler that is dropped has no effect");
    thread::spawn(move || second.cancel_with(Cause("from afar"))).join().unwrap();
    assert_eq!(word(&ended(&scope)), Some("from afar"));
}

// Detach and split.

#[tokio::test(start_paused = true)]
async fn detached_it_is_left_to_its_parent_and_its_deadline() {
    let parent = BACKGROUND.with_cancel();
    let scope = parent.with_cancel();
    let canceler = scope.canceler();
    let ctx = scope.detach();
    assert!(!ctx.is_done());
    drop(parent);
    assert!(ended(&ctx).is_canceled());
    canceler.cancel();

    let ctx = BACKGROUND.with_timeout(ms(10)).with_value("alice").detach();
    assert_eq!(ctx.value(), Some(&"alice"));
    assert!(!ctx.is_done());
    assert!(timeout(HANG, ctx.done()).await.unwrap().is_deadline_exceeded());

    let scope = BACKGROUND.with_cancel();
    let canceler = scope.canceler();
    let ctx = scope.detach();
    canceler.cancel_with(Cause("it can be canceled even so"));
    assert!(ctx.is_done());
}

#[test]
fn split_the_guard_ends_the_context() {
    let (ctx, guard) = BACKGROUND.with_timeout(LONG).with_value("alice").split();
    let made_at = line!() - 1;
    assert_eq!(ctx.value(), Some(&"alice"));
    assert!(!ctx.is_done());
    drop(guard);
    assert_dropped(&ended(&ctx), made_at);

    let (ctx, guard) = BACKGROUND.with_cancel().split();
    guard.cancel_with(Cause("by the guard"));
    assert_eq!(word(&ended(&ctx)), Some("by the guard"));

    let (ctx, guard) = BACKGROUND.with_cancel().split();
    guard.canceler().cancel_with(Cause("by its canceler"));
    assert_eq!(word(&ended(&ctx)), Some("by its canceler"));

    let (ctx, guard) = BACKGROUND.with_cancel().split();
    guard.detach();
    assert!(!ctx.is_done());

    // Only the guard keeps a context alive of which a child is left.
    let (ctx, guard) = BACKGROUND.with_cancel().split();
    let child = ctx.with_cancel();
    drop(ctx);
    assert!(!child.is_done());
    drop(guard);
    assert!(child.is_done());
}

// Values.

#[test]
fn with_a_value_it_keeps_its_owner() {
    let scope = BACKGROUND.with_timeout(LONG);
    let made_at = line!() - 1;
    let before = scope.clone();
    let scope = scope.with_value("alice").with_value(7_u32);
    assert!(!scope.is_done(), "the value ended it");
    assert_eq!((scope.value(), scope.value()), (Some(&"alice"), Some(&7_u32)));
    assert!(before.value::<u32>().is_none(), "a clone that was there before has the value");
    drop(scope);
    assert_dropped(&ended(&before), made_at);
}

#[test]
fn a_value_on_its_context_leaves_it_in_place() {
    let service = BACKGROUND.with_cancel();
    let connections: Vec<Context> = (0..3_u32).map(|peer| service.context().with_value(peer)).collect();
    for (peer, connection) in (0_u32..).zip(&connections) {
        assert_eq!(connection.value(), Some(&peer));
        assert!(!connection.is_done());
    }
    assert!(service.value::<u32>().is_none());
    drop(service);
    assert!(connections.iter().all(Context::is_done));
}

// Optional timeouts.

#[tokio::test(start_paused = true)]
async fn a_timeout_may_be_none() {
    assert_eq!(BACKGROUND.with_timeout(None).deadline(), None);
    assert_eq!(BACKGROUND.with_timeout(Duration::MAX).deadline(), None);
    let limit = Some(ms(50));
    assert_eq!(BACKGROUND.with_timeout(limit).remaining(), limit);
    assert!(BACKGROUND.with_timeout(Some(Duration::ZERO)).is_done());

    // The parent's deadline applies, and its line is in the error.
    let parent = BACKGROUND.with_timeout(ms(10));
    let made_at = line!() - 1;
    let child = parent.with_timeout(None);
    assert_eq!(child.deadline(), parent.deadline());
    assert_eq!(child.done().await.origin().made_at().line(), made_at);

    // It can be canceled, and dropping it ends it.
    let child = BACKGROUND.with_timeout(None);
    let ctx = child.clone();
    drop(child);
    assert!(ended(&ctx).is_canceled());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_with_a_cause_or_of_a_step_may_be_none() {
    let ctx = BACKGROUND.with_timeout_cause(Some(Duration::ZERO), Cause("late"));
    assert_eq!(word(&ended(&ctx)), Some("late"));
    let ctx = BACKGROUND.with_timeout_cause(None, Cause("never"));
    assert!(!ctx.is_done() && ctx.deadline().is_none());

    let deadline = BACKGROUND.within(None, async |step| step.deadline()).await;
    assert_eq!(deadline.unwrap(), None);
    let late = BACKGROUND.within(Some(ms(5)), async |_| std::future::pending::<()>().await).await;
    assert!(late.unwrap_err().is_deadline_exceeded());
}

// Methods that derive.

#[tokio::test]
async fn every_method_that_derives_returns_one_that_ends_when_dropped() {
    let parent = BACKGROUND.with_cancel();
    let token = CancellationToken::new();
    let never = std::future::pending::<Cause>;
    let scopes = [
        parent.with_cancel(),
        parent.with_timeout(LONG),
        parent.with_timeout_cause(LONG, Cause("late")),
        parent.with_deadline(Instant::now() + LONG),
        parent.with_deadline_cause(Instant::now() + LONG, Cause("late")),
        parent.merge(&BACKGROUND),
        parent.merge(&BACKGROUND.with_cancel().detach()),
        parent.with_token(&token),
        parent.with_cancel_when(never()),
        #[cfg(feature = "http")]
        parent.extract(&http::HeaderMap::new(), &tokio_ctx::wire::Inbound::new()).unwrap(),
    ];
    for (nth, scope) in scopes.into_iter().enumerate() {
        let ctx = scope.clone();
        assert!(!ctx.is_done(), "maker {nth}");
        drop(scope);
        let error = ended(&ctx);
        let text = error.to_string();
        assert!(
            text.starts_with("context canceled: scope dropped, context made at tests/scope.rs:"),
            "{text}"
        );
    }
    assert!(!parent.is_done() && !token.is_cancelled());
}

// Tasks.

#[test]
fn moved_into_a_task_it_ends_with_it() {
    on_both(|| async {
        // The task returns.
        let scope = BACKGROUND.with_cancel();
        let made_at = line!() - 1;
        let ctx = scope.clone();
        tokio::spawn(async move { scope.run(async {}).await }).await.unwrap().unwrap();
        assert_dropped(&ended(&ctx), made_at);

        // The task is aborted where it awaits.
        let scope = BACKGROUND.with_cancel();
        let made_at = line!() - 1;
        let ctx = scope.clone();
        let task = tokio::spawn(async move { scope.done().await });
        tokio::task::yield_now().await;
        assert!(!ctx.is_done());
        task.abort();
        assert_dropped(&timeout(HANG, ctx.done()).await.unwrap(), made_at);

        // The task panics.
        let scope = BACKGROUND.with_cancel();
        let made_at = line!() - 1;
        let ctx = scope.clone();
        let task = tokio::spawn(async move {
            let _scope = scope;
            panic!("on purpose");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_dropped(&ended(&ctx), made_at);
    });
}

#[test]
fn dropped_during_the_wake_it_causes_it_ends_once() {
    on_both(|| async {
        // The waiting task owns the scope of a child, which does not own the parent.
        let scope = BACKGROUND.with_cancel();
        let child = scope.with_timeout(LONG);
        let ctx = child.clone();
        let task = tokio::spawn(async move { child.done().await });
        tokio::task::yield_now().await;
        scope.cancel_with(Cause("parent"));
        assert_eq!(word(&timeout(HANG, task).await.unwrap().unwrap()), Some("parent"));
        assert_eq!(word(&ended(&ctx)), Some("parent"));
    });
}

// Temporaries.

#[test]
fn a_context_derived_from_a_temporary_has_ended_and_names_the_line() {
    let child = BACKGROUND.with_timeout(LONG).with_cancel();
    assert_dropped(&ended(&child), line!() - 1);

    let clone = BACKGROUND.with_timeout(LONG).clone();
    assert_dropped(&ended(&clone), line!() - 1);

    let valued = BACKGROUND.with_timeout(LONG).context().with_value("alice");
    assert_dropped(&ended(&valued), line!() - 1);
    assert_eq!(valued.value(), Some(&"alice"));

    fn bounded(ctx: &Context) -> Context {
        ctx.with_timeout(LONG).clone()
    }
    assert_dropped(&ended(&bounded(&BACKGROUND)), line!() - 2);

    // In a call over several lines, it is the line of the method that derived the scope.
    #[rustfmt::skip]
    let child = BACKGROUND
        .with_timeout(LONG)
        .with_cancel();
    assert_dropped(&ended(&child), line!() - 2);
}

#[tokio::test(start_paused = true)]
async fn a_step_bounded_in_one_expression() {
    let parent = BACKGROUND.with_timeout(ms(1_000));
    assert_eq!(parent.with_timeout(ms(10)).run(async { 1 }).await.unwrap(), 1);
    let begun = Instant::now();
    let late = parent.with_timeout(ms(10)).run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(late.origin().made_at().line(), line!() - 1);
    assert_eq!(begun.elapsed(), ms(10));
    assert!(!parent.is_done());

    // As an argument, for the duration of the call.
    async fn load(ctx: &Context) -> Result<u32, Error> {
        ctx.sleep(ms(5)).await?;
        Ok(7)
    }
    assert_eq!(load(&parent.with_timeout(ms(10))).await.unwrap(), 7);
    assert!(load(&parent.with_timeout(ms(2))).await.unwrap_err().is_deadline_exceeded());

    // In `join!` and `select!`, with `within`.
    let (first, second) = tokio::join!(
        parent.within(ms(10), async |ctx| load(&ctx).await),
        parent.within(ms(2), async |ctx| load(&ctx).await),
    );
    assert_eq!(first.unwrap().unwrap(), 7);
    assert!(second.and_then(|loaded| loaded).unwrap_err().is_deadline_exceeded());
}

// Stored scopes.

#[test]
fn it_may_live_in_a_struct_an_option_and_a_vector() {
    struct Session {
        ctx: CancelScope,
        parts: Vec<CancelScope>,
    }
    let ctx = BACKGROUND.with_cancel();
    let parts = (0..3).map(|_| ctx.with_cancel()).collect();
    let mut session = Session { ctx, parts };
    let seen: Vec<Context> = session.parts.iter().map(|part| part.context().clone()).collect();
    session.parts.truncate(1);
    assert!(!seen[0].is_done() && seen[1].is_done() && seen[2].is_done());

    // The replaced scope has ended.
    let old = session.ctx.clone();
    session.ctx = BACKGROUND.with_cancel();
    assert!(old.is_done() && !session.ctx.is_done());

    let mut slot: Option<(Context, CancelGuard)> = Some(session.ctx.split());
    let (ctx, _) = slot.as_ref().unwrap();
    let ctx = ctx.clone();
    assert!(!ctx.is_done());
    slot.take();
    assert!(ctx.is_done());
}

#[test]
fn it_may_be_a_value_of_another_context() {
    // A scope is an ordinary value: it ends when its owner is dropped.
    let inner = BACKGROUND.with_cancel();
    let seen = inner.clone();
    let outer = BACKGROUND.with_cancel().with_value(inner);
    let carrier = outer.clone();
    drop(outer);
    assert!(!seen.is_done());
    drop(carrier);
    assert!(seen.is_done());
}
