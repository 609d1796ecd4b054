//! What an error prints, where it is found, and what it contains, from a user's point of view.

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Cause, CountsDrop, Drops, assert_same, ended, ms, on_a_small_stack, panic_text};
use tokio::process::Command;
use tokio_ctx::process::CommandExt;
use tokio_ctx::shutdown::GraceOver;
use tokio_ctx::{BoxError, Context, Error, Group, Shutdown};

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

/// An error is a plain value of at most ten words, and clones share the cause.
#[test]
fn an_error_is_a_plain_value_that_shares_its_cause() {
    assert!(size_of::<Error>() <= 80, "{}", size_of::<Error>());
    let error = canceled_with(Cause("shared"));
    assert_same(&error, &error.clone());
    assert!(std::ptr::eq(error.cause_as::<Cause>().unwrap(), error.clone().cause_as().unwrap()));
}

/// Prints a chain like `anyhow`'s `{:#}`.
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
fn a_printed_chain_contains_each_message_once() {
    let plain = || Cause("client hung up");
    let layered = || Layer("cache failed", Layer("disk failed", Cause("no space")));
    let texts = ["cache failed", "disk failed", "no space"];

    assert_once(&printed(canceled_with(plain())), &["context canceled at", "client hung up"]);
    assert_once(&printed(canceled_with(layered())), &texts);
    assert_once(&printed(canceled_with(io::Error::other(layered()))), &texts);
    assert_once(&printed(io::Error::from(canceled_with(layered()))), &texts);
    // An error as the cause of another one, and of a third.
    let nested = canceled_with(canceled_with(canceled_with(layered())));
    assert_once(&printed(nested.clone()), &texts);
    // Inside errors that print only themselves.
    assert_once(&printed(Layer("request failed", nested)), &texts);
    assert_once(&printed(expired()), &["context deadline exceeded", "no time was left"]);
    // The chain continues behind the cause.
    let error = canceled_with(layered());
    assert_eq!(error.source().unwrap().to_string(), "disk failed");
    assert!(canceled_with(plain()).source().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_printed_shutdown_contains_each_message_once() {
    let shutdown = Shutdown::new(&Context::background()).grace(ms(50));
    let work = shutdown.spawn(async { Context::current().done().await });
    shutdown.begin(Layer("lost the database", Cause("no route")));
    let report = shutdown.wait().await;
    let stopped = work.await.unwrap();
    let texts = ["lost the database", "no route"];
    assert_once(&printed(stopped.clone()), &["grace period of 50ms is over", texts[0], texts[1]]);
    assert_once(&printed(report.clone()), &["shut down in 50 ms", texts[0], texts[1]]);
    // A search finds errors that are printed once.
    assert_same(stopped.cause_as::<GraceOver>().unwrap().why(), report.why());
    assert_eq!(stopped.cause_as::<Cause>().unwrap().0, "no route");
    assert_same(stopped.cause_as::<Error>().unwrap(), report.why());
    assert_same(Error::find(&report).unwrap(), report.why());
}

#[tokio::test]
async fn a_printed_process_error_contains_each_message_once() {
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
async fn debug_is_the_line_and_its_sources() {
    let error = canceled_with(Cause("client hung up"));
    assert_eq!(format!("{error:?}"), error.to_string());
    assert_eq!(format!("{error:?}").lines().count(), 1);
    let error = canceled_with(Layer("a", Layer("b", Cause("c"))));
    assert_eq!(format!("{error:?}"), format!("{error}\n\nCaused by:\n    b\n    c"));
    // The fields, on request.
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
fn the_contexts_error_is_found_in_every_wrapper() {
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
fn other_errors_are_not_found() {
    assert!(Error::find(&io::Error::other("unplugged")).is_none());
    assert!(Error::find(&io::Error::from(io::ErrorKind::TimedOut)).is_none());
    assert!(Error::find(&Layer("a", Layer("b", Cause("c")))).is_none());
    assert!(Error::find(anyhow::anyhow!("elapsed").as_ref()).is_none());
}

#[test]
fn a_cause_is_found_in_every_wrapper() {
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
    // An error is not its own cause.
    assert!(canceled_with("text").cause_as::<Error>().is_none());
    assert!(expired().cause_as::<Cause>().is_none());
}

/// Errors whose sources form a cycle of one or two.
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

/// The inner errors that this crate's errors do not return as their source, directly and inside other errors
/// that hide them.
#[tokio::test(start_paused = true)]
async fn the_contexts_error_is_found_in_every_error_of_the_crate() {
    let ctx = Context::background().with_cancel();
    ctx.cancel_with(Layer("client hung up", Cause("reset")));
    let end = ended(&ctx);

    let process = || async { Command::new("make").bounded_by(&ctx).status().await.unwrap_err() };
    let shutdown = Shutdown::new(&ctx);
    let report = || async { shutdown.wait().await };
    let unfit = || ctx.require(ms(1)).unwrap_err();
    let mut found: Vec<Box<dyn StdError>> = vec![
        Box::new(process().await),
        Box::new(Arc::new(process().await)),
        Box::new(io::Error::from(process().await)),
        Box::new(Layer("building", io::Error::from(process().await))),
        Box::new(report().await),
        Box::new(io::Error::other(report().await)),
        Box::new(unfit()),
        Box::new(Box::new(unfit())),
        Box::new(io::Error::other(unfit())),
        Box::new(io::Error::from(unfit())),
        Box::new(Error::from(unfit())),
    ];
    // Aborted tasks of a group add their lines.
    let (group, _ctx) = Group::<(), Error>::new(&ctx);
    let mut group = group.grace(Duration::ZERO);
    group.spawn(std::future::pending());
    found.push(Box::new(group.join().await.unwrap_err()));
    for (nth, error) in found.iter().enumerate() {
        let inner = Error::find(&**error).unwrap_or_else(|| panic!("not found in {nth}: {error}"));
        assert!(inner.is_canceled() && inner.origin().canceled_at() == end.origin().canceled_at());
        assert_eq!(inner.cause_as::<Cause>(), Some(&Cause("reset")), "{nth}: {error}");
        assert_once(&format!("{error:?}"), &["context canceled at", "client hung up", "reset"]);
    }

    // The others see the text of a failed task; the error itself is returned by `join`.
    let (mut group, ctx) = Group::<(), io::Error>::new(&Context::background());
    group.spawn(async { Err(expired().into()) });
    let seen = ctx.done().await;
    assert_once(&printed(seen.clone()), &["context canceled at", "failed: context deadline exceeded"]);
    assert!(Error::find(&group.join().await.unwrap_err()).unwrap().is_deadline_exceeded());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_lack_of_time_contains_each_message_once() {
    let ctx = Context::background().with_timeout(ms(500));
    let short = ctx.require(ms(600)).unwrap_err();
    assert_once(&printed(short.clone()), &["not enough time left", "budget set at"]);
    assert_once(&printed(Error::from(short)), &["not enough time left", "budget set at"]);
    ctx.cancel_with(Layer("client hung up", Cause("reset")));
    let ended = ctx.require(ms(1)).unwrap_err();
    assert_once(&printed(ended), &["not enough time left", "client hung up", "reset"]);
}

const LINKS: usize = 200_000;

/// Each error is the cause of the next one, wrapped by `wrap`.
fn chained(first: BoxError, wrap: impl Fn(Error) -> BoxError) -> Error {
    let mut error = canceled_with(first);
    for _ in 0..LINKS {
        error = canceled_with(wrap(error));
    }
    error
}

/// A loop that passes each error to the next context.
#[test]
fn a_chain_of_hundreds_of_thousands_is_printed_searched_and_freed() {
    on_a_small_stack(|| {
        let drops = Drops::default();
        let error = chained(Box::new(Layer("bottom", Counted(drops.counted()))), |error| error.into());
        let text = error.to_string();
        assert!(text.ends_with(": bottom"));
        assert_eq!(text.matches("context canceled at").count(), LINKS + 1);
        assert_eq!(format!("{error:?}"), format!("{text}\n\nCaused by:\n    counted"));
        assert!(format!("{error:#?}").contains("bottom"));
        assert_eq!(error.source().unwrap().to_string(), "counted");
        assert!(error.cause_as::<Counted>().is_some());
        assert!(error.cause_as::<fmt::Error>().is_none());
        // A clone keeps the whole chain, and so does a link in the middle.
        let clone = error.clone();
        drop(error);
        let mut middle = &clone;
        for _ in 0..LINKS / 2 {
            middle = middle.cause_as().unwrap();
        }
        let middle = middle.clone();
        drop(clone);
        assert_eq!(drops.count(), 0);
        drop(middle);
        assert_eq!(drops.count(), 1);
    });
}

/// With any type between one error and the next.
#[test]
fn a_chain_of_errors_in_others_is_freed() {
    let between: [fn(Error) -> BoxError; 6] = [
        |error| Box::new(Layer("between", error)),
        |error| Box::new(io::Error::from(error)),
        |error| Box::new(Arc::new(Layer("between", Box::new(error)))),
        |error| anyhow::Error::new(error).context("between").into(),
        |error| Box::new(Layer("between", Held(Some(error.clone()), vec![error]))),
        |error| {
            let ctx = Context::background().with_cancel();
            ctx.cancel_with(error);
            Box::new(ctx.require(ms(1)).unwrap_err())
        },
    ];
    for wrap in between {
        on_a_small_stack(move || {
            let drops = Drops::default();
            let error = chained(Box::new(Counted(drops.counted())), wrap);
            assert!(error.cause().is_some_and(|cause| !cause.is::<Error>()));
            assert_eq!(drops.count(), 0);
            // Also inside the error of a context.
            let ctx = Context::background().with_cancel();
            ctx.cancel_with(error);
            drop(ctx);
            assert_eq!(drops.count(), 1);
        });
    }
}

/// On many threads, each of which may drop the last reference to a link.
#[test]
fn a_chain_that_threads_share_is_freed_once() {
    let drops = Drops::default();
    let mut error = canceled_with(Counted(drops.counted()));
    let mut shares = vec![Vec::new(), Vec::new(), Vec::new()];
    for nth in 0..LINKS / 4 {
        error = canceled_with(error);
        shares[nth % 3].push(error.clone());
    }
    drop(error);
    let threads = shares
        .into_iter()
        .map(|share| thread::Builder::new().stack_size(256 * 1024).spawn(move || drop(share)).unwrap());
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(drops.count(), 1);
}

/// A cause whose drop panics does not affect the rest of the chain, nor later chains.
#[test]
fn a_cause_that_panics_when_dropped_leaves_nothing_behind() {
    let drops = Drops::default();
    let layers = |drops: &Drops| {
        let bottom = canceled_with(Counted(drops.counted()));
        let error = canceled_with(Layer("above", Breaks(Some(canceled_with(Breaks(Some(bottom)))))));
        canceled_with(error)
    };
    let error = layers(&drops);
    assert_eq!(panic_text(move || drop(error)), "broken");
    assert_eq!(drops.count(), 1);
    drop(canceled_with(Counted(drops.counted())));
    assert_eq!(drops.count(), 2);
    // While another panic unwinds.
    let error = layers(&drops);
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _error = error;
        panic!("first");
    }));
    assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"first"));
    assert_eq!(drops.count(), 3);
}

struct Counted(#[allow(dead_code, reason = "counts its drop")] CountsDrop);

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counted")
    }
}

impl StdError for Counted {}

/// Contains errors and does not return them.
#[derive(Debug)]
struct Held(
    #[allow(dead_code, reason = "to be dropped")] Option<Error>,
    #[allow(dead_code, reason = "to be dropped")] Vec<Error>,
);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("held")
    }
}

impl StdError for Held {}

/// Panics when dropped.
#[derive(Debug)]
struct Breaks(#[allow(dead_code, reason = "to be dropped")] Option<Error>);

impl fmt::Display for Breaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaks")
    }
}

impl StdError for Breaks {}

impl Drop for Breaks {
    fn drop(&mut self) {
        panic!("broken");
    }
}
