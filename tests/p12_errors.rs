//! Promise 12, *errors answer the question*: one line with Go's words first, then where and why, with the
//! location of the caller. They convert into `std::io::Error`.

mod common;

use std::error::Error as _;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use common::{Cause, LONG, assert_same, ended, ms, word};
use tokio::time::{Instant, advance};
use tokio_ctx::{CancelScope, Context, Error, ErrorKind};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

const FILE: &str = file!();

#[test]
fn a_cancel_names_its_line() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let line = line!() - 1;
    assert_eq!(ended(&ctx).to_string(), format!("context canceled at {FILE}:{line}"));
}

#[test]
fn a_cancel_with_a_cause_names_both() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with("client hung up");
    let line = line!() - 1;
    assert_eq!(ended(&ctx).to_string(), format!("context canceled at {FILE}:{line}: client hung up"));
}

#[test]
fn a_canceler_names_its_own_line() {
    let ctx = BACKGROUND.with_cancel();
    let canceler = ctx.canceler();
    canceler.cancel();
    let line = line!() - 1;
    assert_eq!(ended(&ctx).to_string(), format!("context canceled at {FILE}:{line}"));

    let ctx = BACKGROUND.with_cancel();
    ctx.canceler().clone().cancel_with(String::from("lease lost"));
    let line = line!() - 1;
    assert_eq!(ended(&ctx).to_string(), format!("context canceled at {FILE}:{line}: lease lost"));
}

#[test]
fn a_dropped_scope_or_guard_names_the_line_that_made_the_context() {
    for split in [false, true] {
        let scope = BACKGROUND.with_cancel();
        let line = line!() - 1;
        let ctx = scope.clone();
        if split {
            drop(scope.split().1)
        } else {
            drop(scope)
        }
        let error = ended(&ctx);
        let expected = format!("context canceled: scope dropped, context made at {FILE}:{line}");
        assert_eq!(error.to_string(), expected);
        assert!(error.origin().canceled_at().is_none());
    }
}

#[test]
fn a_scope_dropped_under_a_waiter_or_a_deadline_has_the_same_error() {
    let ctx = BACKGROUND.with_cancel();
    let line = line!() - 1;
    let child = ctx.with_cancel();
    assert!(common::poll_once(child.done()).is_pending());
    drop(ctx);
    let expected = format!("context canceled: scope dropped, context made at {FILE}:{line}");
    assert_eq!(ended(&child).to_string(), expected);

    let scope = BACKGROUND.with_timeout(LONG);
    let line = line!() - 1;
    let ctx = scope.clone();
    drop(scope);
    let expected = format!("context canceled: scope dropped, context made at {FILE}:{line}");
    assert_eq!(ended(&ctx).to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_names_its_budget_and_the_line_that_set_it() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    let line = line!() - 1;
    let expected = format!("context deadline exceeded: 100ms budget set at {FILE}:{line}");
    assert_eq!(ctx.done().await.to_string(), expected);

    let ctx = BACKGROUND.with_timeout_cause(ms(1500), Cause("index too slow"));
    let line = line!() - 1;
    let expected =
        format!("context deadline exceeded: 1.5s budget set at {FILE}:{line}: index too slow");
    assert_eq!(ctx.done().await.to_string(), expected);

    let ctx = BACKGROUND.with_deadline(Instant::now() + ms(70));
    let line = line!() - 1;
    let expected = format!("context deadline exceeded: 70ms budget set at {FILE}:{line}");
    assert_eq!(ctx.done().await.to_string(), expected);

    let ctx = BACKGROUND.with_deadline_cause(Instant::now() + LONG, "closing time");
    let line = line!() - 1;
    let expected = format!("context deadline exceeded: 3600s budget set at {FILE}:{line}: closing time");
    assert_eq!(ctx.done().await.to_string(), expected);
}

#[test]
fn a_deadline_that_had_passed_when_set_still_names_its_line() {
    let ctx = BACKGROUND.with_timeout(Duration::ZERO);
    let line = line!() - 1;
    let text = ended(&ctx).to_string();
    assert!(text.starts_with("context deadline exceeded"), "{text}");
    assert!(text.ends_with(&format!("{FILE}:{line}")), "{text}");
}

/// Three timeouts on a path. The message names the one that was exceeded, at every level.
#[tokio::test(start_paused = true)]
async fn three_levels_down_the_budget_that_ran_out_is_named() {
    for short in 0..3 {
        let mut budgets = [ms(300), ms(400), ms(500)];
        budgets[short] = ms(20);
        let request = BACKGROUND.with_timeout(budgets[0]);
        let step = request.with_timeout(budgets[1]);
        let query = step.context().with_value("deep").with_timeout(budgets[2]);
        let line = line!() - 3 + short as u32;
        let error = query.run(std::future::pending::<()>()).await.unwrap_err();
        let expected = format!("context deadline exceeded: 20ms budget set at {FILE}:{line}");
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.origin().budget(), Some(ms(20)));
    }
}

#[test]
fn an_end_by_a_token_names_the_line() {
    let token = CancellationToken::new();
    let ctx = BACKGROUND.with_token(&token);
    let line = line!() - 1;
    token.cancel();
    let error = ended(&ctx);
    let text = format!("context canceled by the CancellationToken given at {FILE}:{line}");
    assert_eq!(error.to_string(), text);
    assert_eq!(error.origin().made_at().line(), line);
}

/// Every method that derives a context records the line of the caller, through all layers of this crate.
#[test]
fn every_derivation_records_the_callers_line() {
    let other = Context::background().with_value(1);
    let token = CancellationToken::new();
    let at = Instant::now() + LONG;
    let first = line!() + 2;
    let made = [
        BACKGROUND.with_cancel(),
        BACKGROUND.with_timeout(LONG),
        BACKGROUND.with_timeout_cause(LONG, "cause"),
        BACKGROUND.with_deadline(at),
        BACKGROUND.with_deadline_cause(at, "cause"),
        BACKGROUND.merge(&other),
        BACKGROUND.with_token(&token),
    ];
    for (offset, ctx) in made.into_iter().enumerate() {
        ctx.cancel();
        let error = ended(&ctx);
        let made_at = error.origin().made_at();
        assert_eq!((made_at.file(), made_at.line()), (FILE, first + offset as u32));
    }
}

#[track_caller]
fn stop(scope: &CancelScope) -> &'static Location<'static> {
    scope.cancel_with("from a helper");
    Location::caller()
}

/// A helper that is `#[track_caller]` propagates the line of its caller.
#[test]
fn the_line_passes_through_helpers_that_track_their_caller() {
    let ctx = BACKGROUND.with_cancel();
    let here = stop(&ctx);
    assert_eq!(ended(&ctx).origin().canceled_at(), Some(here));
}

#[test]
fn a_child_names_where_its_parent_was_canceled_not_itself() {
    let parent = BACKGROUND.with_cancel();
    let made = line!() - 1;
    let child = parent.with_cancel();
    parent.cancel_with("shutting down");
    let line = line!() - 1;
    let error = ended(&child);
    assert_eq!(error.to_string(), format!("context canceled at {FILE}:{line}: shutting down"));
    assert_eq!(error.origin().made_at().line(), made);
}

#[test]
fn everything_fits_on_one_line() {
    let canceled = BACKGROUND.with_cancel();
    canceled.cancel_with(Cause("why"));
    let late = BACKGROUND.with_timeout_cause(ms(0), Cause("slow"));
    let dropped = BACKGROUND.with_cancel().context().clone();
    for (ctx, go) in [
        (canceled.context(), "context canceled"),
        (late.context(), "context deadline exceeded"),
        (&dropped, "context canceled"),
    ] {
        let text = ended(ctx).to_string();
        assert!(text.starts_with(go), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_origin_has_the_time_of_the_end() {
    let start = Instant::now();
    // For a deadline: the deadline, however late it is observed.
    let ctx = BACKGROUND.with_timeout(ms(100));
    advance(ms(250)).await;
    assert_eq!(ended(&ctx).origin().ended_at(), start + ms(100));
    // For a cancel with a deadline on the path or below: the time of the cancel, however late it is observed.
    let ways: [fn(CancelScope); 3] = [|scope| scope.cancel(), |scope| scope.cancel_with("cause"), drop];
    for way in ways {
        let at = Instant::now();
        let bounded = BACKGROUND.with_timeout(ms(1000));
        let below = bounded.with_cancel();
        let above = BACKGROUND.with_cancel();
        drop(above.with_cancel().with_timeout(ms(1000)));
        let merged = BACKGROUND.with_cancel();
        drop(merged.merge(&bounded));
        for scope in [below, above, merged, bounded] {
            let (ctx, child) = (scope.clone(), scope.with_cancel());
            way(scope);
            advance(ms(1)).await;
            assert_eq!(ended(&child).origin().ended_at(), ended(&ctx).origin().ended_at());
            assert!(ended(&ctx).origin().ended_at() <= at + ms(3));
            assert!(ended(&ctx).origin().ended_at() < Instant::now());
        }
    }
    // Otherwise: the time of the first query, which does not change. With a cause, the error is created at the
    // end.
    for (way, known) in ways.into_iter().zip([false, true, false]) {
        let at = Instant::now();
        let scope = BACKGROUND.with_cancel();
        let (ctx, child) = (scope.clone(), scope.with_cancel());
        let wait = tokio::spawn(ctx.done_owned());
        way(scope);
        advance(ms(250)).await;
        let reported = ended(&child).origin().ended_at();
        assert_eq!(reported, if known { at } else { at + ms(250) });
        advance(ms(250)).await;
        assert_same(&wait.await.unwrap(), &ended(&ctx));
        assert_eq!(ended(&ctx).origin().ended_at(), reported);
    }
}

#[test]
fn the_origin_has_the_budget() {
    let ctx = BACKGROUND.with_timeout(Duration::new(12, 345_678_901));
    ctx.cancel();
    assert_eq!(ended(&ctx).origin().budget(), Some(Duration::new(12, 345_678_901)));
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    assert_eq!(ended(&ctx).origin().budget(), None);
    let ctx = BACKGROUND.with_timeout(Duration::ZERO);
    assert_eq!(ended(&ctx).origin().budget(), Some(Duration::ZERO));
}

#[test]
fn the_cause_is_in_the_line_and_can_be_downcast() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(io::Error::new(io::ErrorKind::BrokenPipe, "pipe gone"));
    let error = ended(&ctx);
    assert_eq!(error.cause().unwrap().to_string(), "pipe gone");
    assert!(error.source().is_none(), "the line contains it");
    assert_eq!(error.cause_as::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    assert!(error.cause_as::<Cause>().is_none());

    let ctx = BACKGROUND.with_cancel();
    ctx.cancel();
    let error = ended(&ctx);
    assert!(error.cause().is_none() && error.source().is_none() && error.cause_as::<Cause>().is_none());
}

#[test]
fn causes_may_be_errors_boxes_and_texts() {
    let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(Cause("boxed"));
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(boxed);
    assert_eq!(word(&ended(&ctx)), Some("boxed"));
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(format!("number {}", 7));
    assert_eq!(ended(&ctx).cause().unwrap().to_string(), "number 7");
}

/// The error of one context as the cause of another: both are printed, and both can be found.
#[test]
fn an_error_can_be_the_cause_of_another() {
    let scope = BACKGROUND.with_timeout_cause(ms(0), Cause("root of it"));
    let inner = scope.clone();
    drop(scope);
    let first = ended(&inner);
    let outer = BACKGROUND.with_cancel();
    outer.cancel_with(first.clone());
    let error = ended(&outer);
    assert!(error.is_canceled());
    assert_same(error.cause_as::<Error>().unwrap(), &first);
    assert!(error.to_string().ends_with(&format!(": {first}")));
    assert_eq!(word(&error), Some("root of it"), "along the chain of sources");
}

#[test]
fn debug_shows_the_kind_the_cause_and_the_place() {
    let ctx = BACKGROUND.with_cancel();
    ctx.cancel_with(Cause("in debug"));
    let line = line!() - 1;
    let text = format!("{:?}", ended(&ctx));
    assert_eq!(text, format!("context canceled at {FILE}:{line}: in debug"));
    let text = format!("{:#?}", ended(&ctx));
    for part in ["Canceled", "in debug", FILE, &line.to_string()] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let text = format!("{:#?}", ended(&BACKGROUND.with_timeout(ms(0))));
    assert!(text.contains("DeadlineExceeded"), "{text}");
}

#[test]
fn an_error_converts_like_any_other() {
    fn is_error<T: std::error::Error + Send + Sync + Clone + 'static>(error: &T) -> T {
        error.clone()
    }
    fn boxed(ctx: &Context) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        ctx.check()?;
        Ok(())
    }
    let ctx = BACKGROUND.with_cancel();
    assert!(boxed(&ctx).is_ok());
    ctx.cancel_with(Cause("why"));
    let error = ended(&ctx);
    assert_same(&is_error(&error), &error);
    let boxed = boxed(&ctx).unwrap_err();
    assert_same(boxed.downcast_ref::<Error>().unwrap(), &error);
    let shared: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
    assert!(shared.to_string().starts_with("context canceled"));
}

#[test]
fn kinds_compare_and_print() {
    let kinds = [ErrorKind::Canceled, ErrorKind::DeadlineExceeded];
    let copied = kinds;
    assert_eq!(kinds, copied);
    assert_ne!(kinds[0], kinds[1]);
    assert_eq!(format!("{kinds:?}"), "[Canceled, DeadlineExceeded]");
}

/// Code that only knows I/O errors must recognize a timeout, and the standard library must not retry.
#[test]
fn it_converts_into_an_io_error_that_is_not_retried() {
    fn read(ctx: &Context) -> io::Result<()> {
        ctx.check()?;
        Ok(())
    }
    let late = BACKGROUND.with_timeout_cause(ms(0), Cause("slow"));
    let canceled = BACKGROUND.with_cancel();
    canceled.cancel_with(Cause("gone"));
    let dropped = BACKGROUND.with_cancel().context().clone();
    for (ctx, kind) in [
        (late.context(), io::ErrorKind::TimedOut),
        (canceled.context(), io::ErrorKind::Other),
        (&dropped, io::ErrorKind::Other),
    ] {
        let error = read(ctx).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_ne!(error.kind(), io::ErrorKind::Interrupted);
        let inside = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
        assert_same(inside, &ended(ctx));
        assert_eq!(error.to_string(), ended(ctx).to_string());
        let back = error.into_inner().unwrap().downcast::<Error>().unwrap();
        assert_same(&back, &ended(ctx));
    }
}

#[test]
fn background_and_todo_and_derived_contexts_print_their_kind() {
    assert!(BACKGROUND.to_string().contains("background"));
    assert!(format!("{BACKGROUND:?}").contains("background"));
    let todo = Context::todo();
    assert!(todo.to_string().contains("todo") && !todo.to_string().contains("background"));
    assert!(format!("{todo:?}").contains("todo") && !format!("{todo:?}").contains("background"));
    assert_eq!(Context::default().to_string(), BACKGROUND.to_string());

    let ctx = BACKGROUND.with_timeout(LONG);
    let place = format!("{FILE}:{}", line!() - 1);
    assert!(ctx.to_string().contains(&place), "{ctx}");
    assert!(format!("{ctx:?}").contains(&place), "{ctx:?}");
    ctx.cancel_with(Cause("said so"));
    assert!(ctx.to_string().contains("said so"), "{ctx}");
    assert!(format!("{ctx:?}").contains("said so"), "{ctx:?}");
}
