//! `Context::require`: work that does not fit into the time left is refused, with the line that set the
//! deadline.

mod common;

use std::error::Error as _;
use std::io;
use std::time::Duration;

use common::{Cause, LONG, ms, word};
use tokio::time::advance;
use tokio_ctx::{Context, Error, ErrorKind, NotEnoughTime};

static BACKGROUND: Context = Context::background();

const FILE: &str = file!();

#[tokio::test(start_paused = true)]
async fn there_is_enough_up_to_the_last_nanosecond() {
    let ctx = BACKGROUND.with_timeout(ms(100));
    advance(ms(40)).await;
    assert!(ctx.require(Duration::ZERO).is_ok());
    assert!(ctx.require(ms(60)).is_ok());
    assert!(ctx.require(ms(60) + Duration::from_nanos(1)).is_err());
    assert!(ctx.require(Duration::MAX).is_err());
    assert!(!ctx.is_done(), "a refusal ends nothing");
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_there_is_always_enough() {
    let plain = BACKGROUND.with_cancel();
    let endless = BACKGROUND.with_timeout(Duration::MAX);
    let freed = BACKGROUND.with_timeout(ms(1)).detach().without_cancel();
    for ctx in [&BACKGROUND, &*plain, &*endless, &freed] {
        assert!(ctx.require(Duration::MAX).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_has_the_time_left_and_the_line_of_the_budget() {
    let parent = BACKGROUND.with_timeout(ms(500));
    let place = line!() - 1;
    // The budget is set neither by the later deadline below, nor by a context without a deadline of its own.
    let later = parent.with_timeout(LONG);
    let child = later.with_cancel();
    let merged = BACKGROUND.merge(&child);
    advance(ms(200)).await;
    for ctx in [&parent, &later, &child, &merged] {
        let short = ctx.require(Duration::from_secs(2)).unwrap_err();
        assert_eq!((short.required(), short.left()), (Duration::from_secs(2), ms(300)));
        let set_at = short.set_at().unwrap();
        assert_eq!((set_at.file(), set_at.line()), (FILE, place));
        assert!(short.context_error().is_none() && short.source().is_none());
        let text = format!(
            "not enough time left: 2s required, 300ms left of the 500ms budget set at {FILE}:{place}"
        );
        assert_eq!((short.to_string(), format!("{short:?}")), (text.clone(), text));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_context_has_no_time_for_anything() {
    let canceled = BACKGROUND.with_timeout(LONG);
    canceled.cancel_with(Cause("hung up"));
    let short = canceled.require(Duration::ZERO).unwrap_err();
    assert_eq!(short.left(), Duration::ZERO);
    assert!(short.set_at().is_none());
    assert_eq!(word(short.context_error().unwrap()), Some("hung up"));
    assert_eq!(short.to_string(), format!("not enough time left: {}", canceled.err().unwrap()));
    assert_eq!(format!("{short:?}"), short.to_string());
    assert!(format!("{short:#?}").contains("required: 0ns"), "{short:#?}");
    assert!(short.source().is_none(), "the line contains everything");

    let expired = BACKGROUND.with_timeout(ms(10));
    let place = line!() - 1;
    advance(ms(10)).await;
    let short = expired.require(Duration::ZERO).unwrap_err();
    assert_eq!(short.set_at().unwrap().line(), place);
    assert!(short.context_error().unwrap().is_deadline_exceeded());
}

#[tokio::test(start_paused = true)]
async fn it_converts_where_a_function_returns_an_error() {
    fn step(ctx: &Context) -> Result<(), Error> {
        Ok(ctx.require(ms(200))?)
    }
    fn read(ctx: &Context) -> io::Result<()> {
        Ok(ctx.require(ms(200))?)
    }
    let ctx = BACKGROUND.with_timeout(ms(100));
    let place = line!() - 1;
    let error = step(&ctx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(Some(error.origin().ended_at()), ctx.deadline());
    assert_eq!(error.cause_as::<NotEnoughTime>().unwrap().left(), ms(100));
    let text = format!(
        "context deadline exceeded: 100ms budget set at {FILE}:{place}: \
         not enough time left: 200ms required, 100ms left"
    );
    assert_eq!(error.to_string(), text);
    assert_eq!(read(&ctx).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(!ctx.is_done());

    ctx.cancel_with(Cause("hung up"));
    assert_eq!(word(&step(&ctx).unwrap_err()), Some("hung up"));
}

#[test]
fn it_works_outside_a_runtime() {
    let ctx = BACKGROUND.with_timeout(LONG);
    assert!(ctx.require(ms(1)).is_ok());
    assert!(ctx.require(LONG * 2).is_err());
}

#[cfg(feature = "axum")]
#[test]
fn it_responds_like_a_deadline() {
    use axum::response::IntoResponse;

    let short = BACKGROUND.with_timeout(ms(500)).require(LONG).unwrap_err();
    assert_eq!(short.into_response().status(), 504);
}

#[cfg(feature = "tonic")]
#[test]
fn it_becomes_the_status_of_a_deadline() {
    let short = BACKGROUND.with_timeout(ms(500)).require(LONG).unwrap_err();
    assert_eq!(tonic::Status::from(short).code(), tonic::Code::DeadlineExceeded);
}
