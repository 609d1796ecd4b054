//! The tracing event of a context that has ended by itself, and `run_in_span`, which runs a future with a
//! context and in a span.
#![cfg(feature = "tracing")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::sync::Once;

use common::{Cause, LONG, assert_same, ended, ms, poll, poll_once, word};
use futures::FutureExt as _;
use tokio::time::advance;
use tokio_ctx::{Context, Error};
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber, field, info_span};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

static BACKGROUND: Context = Context::background();

const FILE: &str = file!();

/// An event, with its spans, outermost first.
#[derive(Clone, Debug)]
struct Seen {
    level: Level,
    target: String,
    spans: Vec<String>,
    fields: Fields,
}

type Fields = BTreeMap<String, String>;

thread_local! {
    /// The events of this thread. Every test runs on a thread of its own.
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
    /// The recorded fields of spans, by name.
    static RECORDED: RefCell<Vec<(String, Fields)>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

#[derive(Default)]
struct Reader(Fields);

impl Visit for Reader {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let mut reader = Reader::default();
        attributes.record(&mut reader);
        let name = context.span(id).unwrap().name().to_owned();
        RECORDED.with_borrow_mut(|recorded| recorded.push((name, reader.0)));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: LayerContext<'_, S>) {
        let mut reader = Reader::default();
        values.record(&mut reader);
        let name = context.span(id).unwrap().name().to_owned();
        RECORDED.with_borrow_mut(|recorded| recorded.push((name, reader.0)));
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        if event.metadata().target() != "tokio_ctx" {
            return;
        }
        let mut reader = Reader::default();
        event.record(&mut reader);
        let spans = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        SEEN.with_borrow_mut(|seen| {
            seen.push(Seen {
                level: *event.metadata().level(),
                target: event.metadata().target().to_owned(),
                spans: spans.map(|span| span.name().to_owned()).collect(),
                fields: reader.0,
            });
        });
    }
}

/// Installs one subscriber for all threads, because tracing caches its interest.
fn listen() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Capture);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
    SEEN.take();
    RECORDED.take();
}

/// Returns the one event since the last call.
#[track_caller]
fn one_event() -> Seen {
    let mut seen = SEEN.take();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    seen.remove(0)
}

#[track_caller]
fn no_event() {
    let seen = SEEN.take();
    assert!(seen.is_empty(), "{seen:#?}");
}

#[track_caller]
fn assert_place(event: &Seen, field: &str, line: u32) {
    assert_eq!(event.fields[field], format!("{FILE}:{line}"), "{field}");
}

fn number(fields: &Fields, name: &str) -> f64 {
    fields[name].parse().unwrap_or_else(|_| panic!("{name} is {:?}", fields[name]))
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_an_event_with_all_its_fields() {
    listen();
    let ctx = BACKGROUND.with_timeout(ms(500));
    let made = line!() - 1;
    advance(ms(40)).await;
    ctx.cancel_with(Cause("hung up"));
    let canceled = line!() - 1;
    let event = one_event();
    assert_eq!(event.level, Level::DEBUG);
    assert_eq!(event.target, "tokio_ctx");
    assert_eq!(event.fields["kind"], "Canceled");
    assert_eq!(event.fields["cause"], "hung up");
    assert_eq!(number(&event.fields, "budget_ms"), 500.0);
    assert_eq!(number(&event.fields, "lived_ms"), 40.0);
    assert_place(&event, "derived_at", made);
    assert_place(&event, "canceled_at", canceled);
    assert!(ended(&ctx).is_canceled());
    no_event();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_an_event_with_all_its_fields() {
    listen();
    let ctx = BACKGROUND.with_timeout_cause(ms(100), Cause("too slow"));
    let made = line!() - 1;
    ctx.done().await;
    let event = one_event();
    assert_eq!(event.level, Level::DEBUG);
    assert_eq!(event.fields["kind"], "DeadlineExceeded");
    assert_eq!(event.fields["cause"], "too slow");
    assert_eq!(number(&event.fields, "budget_ms"), 100.0);
    assert_eq!(number(&event.fields, "lived_ms"), 100.0);
    assert_place(&event, "derived_at", made);
    assert!(!event.fields.contains_key("canceled_at"), "{event:?}");
}

#[tokio::test(start_paused = true)]
async fn missing_fields_are_left_out() {
    listen();
    let ctx = BACKGROUND.with_cancel();
    advance(ms(70)).await;
    ctx.cancel();
    let fields = one_event().fields;
    assert!(!fields.contains_key("cause") && !fields.contains_key("budget_ms"), "{fields:?}");
    assert_eq!(number(&fields, "lived_ms"), 70.0);
}

#[tokio::test(start_paused = true)]
async fn a_scopes_unobserved_drop_is_no_event() {
    listen();
    let scope = BACKGROUND.with_cancel();
    let ctx = scope.clone();
    drop(scope);
    assert!(ctx.is_done());
    let ctx = BACKGROUND.with_timeout(LONG);
    let child = ctx.with_cancel();
    assert!(poll_once(child.done()).is_pending());
    drop(ctx);
    assert!(ended(&child).is_canceled());
    no_event();
}

#[tokio::test(start_paused = true)]
async fn only_the_one_that_ended_itself_is_an_event() {
    listen();
    let parent = BACKGROUND.with_cancel();
    let made = line!() - 1;
    let child = parent.with_timeout(LONG);
    let grandchild = child.with_cancel();
    let merged = BACKGROUND.merge(&grandchild);
    assert!(poll_once(merged.done()).is_pending());
    parent.cancel_with(Cause("all"));
    for ctx in [&parent, &child, &grandchild, &merged] {
        assert_eq!(word(&ended(ctx)), Some("all"));
    }
    child.cancel_with(Cause("too late"));
    let event = one_event();
    assert_eq!(event.fields["cause"], "all");
    assert_place(&event, "derived_at", made);
    // They end from the start, with their parent.
    parent.with_timeout(ms(0)).cancel();
    no_event();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_one_event_however_many_observe_it() {
    listen();
    let parent = BACKGROUND.with_timeout(ms(100));
    let child = parent.with_cancel();
    let waits: Vec<_> = (0..5)
        .flat_map(|_| [tokio::spawn(child.done_owned()), tokio::spawn(parent.done_owned())])
        .collect();
    for wait in waits {
        wait.await.unwrap();
    }
    assert!(child.is_done() && parent.is_done() && child.with_cancel().is_done());
    assert_eq!(one_event().fields["kind"], "DeadlineExceeded");
}

/// Without a waiter, the event is emitted when the end is first observed, with the time when it happened.
#[tokio::test(start_paused = true)]
async fn an_unobserved_deadline_is_an_event_when_it_is_detected() {
    listen();
    let parent = BACKGROUND.with_timeout(ms(100));
    let child = parent.with_cancel();
    advance(ms(250)).await;
    no_event();
    child.cancel();
    let event = one_event();
    assert_eq!(event.fields["kind"], "DeadlineExceeded");
    assert_eq!(number(&event.fields, "lived_ms"), 100.0);
    assert!(child.is_done() && parent.is_done());
    no_event();
}

/// A deadline of a child that passed before the cancel of its parent: two ends, two events.
#[tokio::test(start_paused = true)]
async fn two_that_ended_by_themselves_are_two_events() {
    listen();
    let parent = BACKGROUND.with_cancel();
    let child = parent.with_timeout(ms(100));
    assert!(poll_once(child.done()).is_pending());
    advance(ms(150)).await;
    parent.cancel();
    assert!(ended(&child).is_deadline_exceeded() && ended(&parent).is_canceled());
    let mut kinds: Vec<_> = SEEN.take().into_iter().map(|seen| seen.fields["kind"].clone()).collect();
    kinds.sort();
    assert_eq!(kinds, ["Canceled", "DeadlineExceeded"]);
}

#[test]
fn a_tokens_end_is_one_event() {
    listen();
    let token = CancellationToken::new();
    let ctx = BACKGROUND.with_token(&token);
    let child = ctx.with_cancel();
    token.cancel();
    assert!(child.is_done() && ctx.is_done());
    let event = one_event();
    assert_eq!(event.fields["kind"], "Canceled");
    assert!(!event.fields.contains_key("canceled_at"), "{event:?}");
}

/// When the event is emitted, every thread can see the end.
#[test]
fn a_second_cancel_is_no_event() {
    listen();
    let scope = BACKGROUND.with_cancel();
    let _ctx = scope.clone();
    scope.cancel();
    one_event();
    scope.cancel();
    scope.cancel_with(Cause("late"));
    drop(scope);
    no_event();
}

#[test]
fn the_event_is_in_the_span_of_the_end() {
    listen();
    let span = info_span!("request");
    span.in_scope(|| {
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel();
    });
    assert_eq!(one_event().spans, ["request"]);
}

#[tokio::test(start_paused = true)]
async fn run_in_span_runs_in_the_context_and_in_the_span() {
    listen();
    let ctx = BACKGROUND.with_value("carried").with_timeout(ms(80));
    let span = info_span!("step", id = 7, deadline_ms = field::Empty);
    let (value, name) = ctx
        .run_in_span(span, async {
            tokio::task::yield_now().await;
            let value = Context::current().value::<&str>().copied();
            (value, tracing::Span::current().metadata().map(|metadata| metadata.name()))
        })
        .await
        .unwrap();
    assert_eq!((value, name), (Some("carried"), Some("step")));
    assert!(tracing::Span::current().is_none());
    assert!(Context::current().value::<&str>().is_none());
    let recorded = RECORDED.take();
    let deadline = recorded.iter().find_map(|(name, fields)| {
        (name == "step" && fields.contains_key("deadline_ms")).then(|| number(fields, "deadline_ms"))
    });
    assert_eq!(deadline, Some(80.0));
}

#[tokio::test(start_paused = true)]
async fn run_in_span_is_bounded_by_the_context() {
    listen();
    let scope = BACKGROUND.with_timeout(ms(80));
    let ctx = scope.clone();
    let error = ctx.run_in_span(info_span!("slow"), pending::<()>()).await.unwrap_err();
    assert_same(&error, &ended(&ctx));
    // A shared timer is in no span.
    assert_eq!(one_event().spans.last(), None);
    drop(scope);

    let work = async { unreachable!("a dead context started work") };
    let error = ctx.run_in_span(info_span!("dead"), work).await.unwrap_err();
    assert_same(&error, &ended(&ctx));
}

/// The recorded status of the last span, for this crate and for OpenTelemetry.
#[track_caller]
fn status() -> (String, Option<String>) {
    let mut fields: Fields = RECORDED.take().into_iter().flat_map(|(_, fields)| fields).collect();
    (fields.remove("status").expect("a status"), fields.remove("otel.status_code"))
}

fn step() -> tracing::Span {
    info_span!("step", status = field::Empty, "otel.status_code" = field::Empty)
}

#[tokio::test(start_paused = true)]
async fn a_spans_status_distinguishes_all_outcomes() {
    listen();
    let assert_status = |word: &str, code: Option<&str>| {
        assert_eq!(status(), (word.to_owned(), code.map(str::to_owned)));
    };
    let error = Some("ERROR");
    BACKGROUND.run_in_span(step(), async {}).await.unwrap();
    assert_status("done", None);
    BACKGROUND.try_run_in_span(step(), async { Ok::<_, std::io::Error>(()) }).await.unwrap();
    assert_status("done", None);
    let broken = async { Err::<(), _>(std::io::Error::other("broken")) };
    BACKGROUND.try_run_in_span(step(), broken).await.unwrap_err();
    assert_status("failed", error);

    // The end, also if the step has seen it and returns it.
    let timed = BACKGROUND.with_timeout(ms(10));
    timed.run_in_span(step(), pending::<()>()).await.unwrap_err();
    assert_status("deadline exceeded", error);
    let scope = BACKGROUND.with_cancel();
    let ctx = scope.clone();
    let passes_on = async move {
        scope.cancel();
        scope.check().map_err(std::io::Error::from)
    };
    ctx.try_run_in_span(step(), passes_on).await.unwrap_err();
    assert_status("canceled", None);
    ctx.run_in_span(step(), async {}).await.unwrap_err();
    assert_status("canceled", None);
    ctx.try_run_in_span(step(), async { Ok::<_, Error>(()) }).await.unwrap_err();
    assert_status("canceled", None);

    // Dropped before and after the first poll.
    drop(BACKGROUND.run_in_span(step(), async {}));
    assert_status("dropped", None);
    let mut waits = Box::pin(BACKGROUND.run_in_span(step(), pending::<()>()));
    assert!(poll(waits.as_mut(), std::task::Waker::noop()).is_pending());
    assert!(RECORDED.take().iter().all(|(_, fields)| !fields.contains_key("status")));
    drop(waits);
    assert_status("dropped", None);
    let panics = BACKGROUND.run_in_span(step(), async { panic!("broken") });
    assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert_status("panicked", error);
}

/// Without the field, without a deadline, and with a disabled span.
#[tokio::test(start_paused = true)]
async fn run_in_span_takes_any_span() {
    listen();
    let timed = BACKGROUND.with_timeout(ms(80));
    let plain = BACKGROUND.with_cancel();
    for ctx in [&timed, &plain, &BACKGROUND] {
        assert_eq!(ctx.run_in_span(info_span!("bare"), async { 1 }).await.unwrap(), 1);
        assert_eq!(ctx.run_in_span(tracing::Span::none(), async { 2 }).await.unwrap(), 2);
    }
    let span = info_span!("no deadline", deadline_ms = field::Empty);
    assert_eq!(plain.run_in_span(span, async { 3 }).await.unwrap(), 3);
    let recorded = RECORDED.take();
    assert!(recorded.iter().all(|(_, fields)| !fields.contains_key("deadline_ms")), "{recorded:?}");
}
