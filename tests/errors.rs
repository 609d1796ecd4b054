//! What an error prints, where it is found, and what it is: as programs see it that were written from the
//! documentation alone.

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::{Cause, assert_same, ended, ms};
use tokio::process::Command;
use tokio_ctx::process::CommandExt;
use tokio_ctx::shutdown::GraceOver;
use tokio_ctx::{BoxError, Context, Error, Shutdown};

/// An error that prints its own text, and has a source.
#[derive(Debug)]
struct Layer<E>(&'static str, E);

impl<E> fmt::Display for Layer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<E: StdError + 'static> StdError for Layer<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.1)
    }
}

fn canceled_with(cause: impl Into<BoxError>) -> Error {
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(cause);
    ended(&ctx)
}

fn expired() -> Error {
    ended(&Context::background().with_timeout(Duration::ZERO))
}

/// An error is a plain value: no larger than ten words, and a clone shares the cause.
#[test]
fn an_error_is_a_plain_value_that_shares_its_cause() {
    assert!(size_of::<Error>() <= 80, "{}", size_of::<Error>());
    let error = canceled_with(Cause("shared"));
    assert_same(&error, &error.clone());
    assert!(std::ptr::eq(error.cause_as::<Cause>().unwrap(), error.clone().cause_as().unwrap()));
}

/// As `anyhow`'s `{:#}`, and whatever prints a chain.
fn printed(error: impl StdError + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

#[track_caller]
fn assert_once(printed: &str, texts: &[&str]) {
    for text in texts {
        assert_eq!(printed.matches(text).count(), 1, "{text:?} in {printed:?}");
    }
}

#[test]
fn a_printed_chain_says_each_message_once() {
    let plain = || Cause("client hung up");
    let layered = || Layer("cache failed", Layer("disk failed", Cause("no space")));
    let texts = ["cache failed", "disk failed", "no space"];

    assert_once(&printed(canceled_with(plain())), &["context canceled at", "client hung up"]);
    assert_once(&printed(canceled_with(layered())), &texts);
    assert_once(&printed(canceled_with(io::Error::other(layered()))), &texts);
    assert_once(&printed(io::Error::from(canceled_with(layered()))), &texts);
    // An error as another's cause, and that one's.
    let nested = canceled_with(canceled_with(canceled_with(layered())));
    assert_once(&printed(nested.clone()), &texts);
    // Under errors that print only themselves.
    assert_once(&printed(Layer("request failed", nested)), &texts);
    assert_once(&printed(expired()), &["context deadline exceeded", "no time was left"]);
    // The chain goes on behind the cause.
    let error = canceled_with(layered());
    assert_eq!(error.source().unwrap().to_string(), "disk failed");
    assert!(canceled_with(plain()).source().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_printed_shutdown_says_each_message_once() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(50));
    let work = shutdown.spawn(async { Context::current().done().await });
    shutdown.begin(Layer("lost the database", Cause("no route")));
    let report = shutdown.wait().await;
    let stopped = work.await.unwrap();
    let texts = ["lost the database", "no route"];
    assert_once(&printed(stopped.clone()), &["grace of 50ms is over", texts[0], texts[1]]);
    assert_once(&printed(report.clone()), &["shut down in 50 ms", texts[0], texts[1]]);
    // What a chain says once, a search still meets.
    assert_same(stopped.cause_as::<GraceOver>().unwrap().why(), report.why());
    assert_eq!(stopped.cause_as::<Cause>().unwrap().0, "no route");
    assert_same(stopped.cause_as::<Error>().unwrap(), report.why());
    assert_same(Error::find(&report).unwrap(), report.why());
}

#[tokio::test]
async fn a_printed_process_error_says_each_message_once() {
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(Layer("not today", Cause("closed")));
    let error = Command::new("make").bounded_by(&ctx).status().await.unwrap_err();
    assert_same(Error::find(&error).unwrap(), &ended(&ctx));
    assert_eq!(format!("{error:?}"), format!("{error}\n\nCaused by:\n    closed"));
    assert_once(&printed(error), &["make: not started: ", "context canceled at", "not today", "closed"]);

    let missing = Command::new("no-such-program").bounded_by(&Context::background()).status().await;
    let missing = missing.unwrap_err();
    let reason = missing.to_string().split(": ").last().unwrap().to_string();
    assert_eq!(format!("{missing:?}"), missing.to_string());
    assert_once(&printed(missing), &[&reason]);
}

/// `async fn main() -> Result<(), Error>` prints `{:?}`.
#[tokio::test(start_paused = true)]
async fn debug_is_the_line_and_what_it_came_from() {
    let error = canceled_with(Cause("client hung up"));
    assert_eq!(format!("{error:?}"), error.to_string());
    assert_eq!(format!("{error:?}").lines().count(), 1);
    let error = canceled_with(Layer("a", Layer("b", Cause("c"))));
    assert_eq!(format!("{error:?}"), format!("{error}\n\nCaused by:\n    b\n    c"));
    // The fields, for who asks.
    let fields = format!("{:#?}", canceled_with(Cause("in fields")));
    for field in ["kind: Canceled", "in fields", "made_at", "ended_at", file!()] {
        assert!(fields.contains(field), "{field:?} in {fields}");
    }

    let shutdown = Shutdown::new(&Context::background());
    shutdown.begin("SIGTERM");
    let report = shutdown.wait().await;
    assert_eq!(format!("{report:?}"), report.to_string());
    assert!(format!("{report:#?}").contains("overdue: []"));
}

#[test]
fn the_contexts_error_is_found_wherever_it_went() {
    let error = expired();
    let boxed: BoxError = Box::new(error.clone());
    let through_io = io::Error::from(error.clone());
    let erased: Arc<dyn StdError + Send + Sync> = Arc::from(BoxError::from(error.clone()));
    let anyhow = anyhow::Error::from(io::Error::from(error.clone())).context("loading");

    let places: Vec<(&str, &(dyn StdError + 'static))> = vec![
        ("itself", &error),
        ("a box of any error", &*boxed),
        ("an io::Error", &through_io),
        ("anyhow", anyhow.as_ref()),
        ("an Arc of any error", &erased),
    ];
    for (place, chain) in places {
        assert_same(Error::find(chain).unwrap_or_else(|| panic!("not found in {place}")), &error);
    }

    fn assert_found(chain: impl StdError + 'static) {
        assert!(Error::find(&chain).is_some(), "{chain:?}");
    }
    assert_found(Arc::new(error.clone()));
    assert_found(Box::new(error.clone()));
    assert_found(Arc::new(io::Error::from(error.clone())));
    assert_found(Box::new(io::Error::from(error.clone())));
    assert_found(Layer("client library", io::Error::from(error.clone())));
    assert_found(Arc::new(Layer("client library", Arc::new(error.clone()))));
    assert_found(io::Error::other(io::Error::other(Arc::new(io::Error::from(error.clone())))));
    assert_found(io::Error::other(Layer("tls", Layer("http", io::Error::from(error)))));
}

#[test]
fn what_is_not_the_contexts_is_not_found() {
    assert!(Error::find(&io::Error::other("unplugged")).is_none());
    assert!(Error::find(&io::Error::from(io::ErrorKind::TimedOut)).is_none());
    assert!(Error::find(&Layer("a", Layer("b", Cause("c")))).is_none());
    assert!(Error::find(anyhow::anyhow!("elapsed").as_ref()).is_none());
}

#[test]
fn a_cause_is_found_in_whatever_holds_it() {
    let causes: Vec<BoxError> = vec![
        Box::new(Cause("deep")),
        Box::new(Arc::new(Cause("deep"))),
        Box::new(Box::new(Cause("deep"))),
        Box::new(io::Error::other(Cause("deep"))),
        Box::new(io::Error::other(Arc::new(Cause("deep")))),
        Box::new(Arc::new(io::Error::other(Cause("deep")))),
        Box::new(Layer("above", Arc::new(io::Error::other(Cause("deep"))))),
        Box::new(canceled_with(Layer("above", Cause("deep")))),
        Box::new(io::Error::from(canceled_with(Cause("deep")))),
        Box::new(Arc::<dyn StdError + Send + Sync>::from(BoxError::from(Cause("deep")))),
        anyhow::Error::new(Cause("deep")).context("above").into(),
        anyhow::Error::new(Cause("deep")).reallocate_into_boxed_dyn_error_without_backtrace(),
    ];
    for (nth, cause) in causes.into_iter().enumerate() {
        let error = canceled_with(cause);
        let found = error.cause_as::<Cause>();
        assert_eq!(found.map(|cause| cause.0), Some("deep"), "in {nth}: {error:?}");
        assert!(error.cause_as::<fmt::Error>().is_none());
    }
    // The error asked is not its own cause.
    assert!(canceled_with("text").cause_as::<Error>().is_none());
    assert!(expired().cause_as::<Cause>().is_none());
}

/// An error whose sources lead in a circle, of one or two.
#[derive(Debug)]
struct Circle(bool);

static CIRCLE: [Circle; 2] = [Circle(false), Circle(true)];

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}", self.0)
    }
}

impl StdError for Circle {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&CIRCLE[usize::from(!self.0)])
    }
}

#[derive(Debug)]
struct Own;

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("own")
    }
}

impl StdError for Own {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&Own)
    }
}

#[test]
fn a_chain_that_leads_back_to_itself_ends_the_search() {
    assert!(Error::find(&Circle(true)).is_none());
    assert!(Error::find(&Own).is_none());
    let error = canceled_with(Layer("before", Circle(false)));
    assert!(error.cause_as::<Circle>().is_some());
    assert!(error.cause_as::<fmt::Error>().is_none());
    assert!(format!("{error:?}").lines().count() < 10);
    assert!(format!("{:?}", canceled_with(Own)).lines().count() < 10);
}
