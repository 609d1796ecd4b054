//! Which ends are `tracing` events, a subscriber that panics, and what `#[tracing::instrument]` records of
//! a context.
#![cfg(feature = "tracing")]

mod common;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, Once};

use bytes::Bytes;
use common::{Cause, LONG, Wakes, ended, ms, poll};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::time::advance;
use tokio_ctx::wire::{DeadlineHeader, Inbound, ServerLayer};
use tokio_ctx::{Context, Shutdown, testing};
use tower::{Layer as _, ServiceExt, service_fn};
use tracing::field::{Field, Visit};
use tracing::span::Attributes;
use tracing::subscriber::Interest;
use tracing::{Event, Id, Metadata, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt as _};

static BACKGROUND: Context = Context::background();

thread_local! {
    /// The fields of the events and new spans of this thread. Every test has a thread of its own.
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static PANICS: Cell<Panics> = const { Cell::new(Panics::Never) };
}

/// Where the subscriber panics on this thread.
#[derive(Clone, Copy, PartialEq)]
enum Panics {
    Never,
    Enabled,
    /// With a payload that panics when dropped.
    EnabledTwice,
    Event,
}

thread_local! {
    /// Whether the subscriber uses contexts itself.
    static USES_CONTEXTS: Cell<bool> = const { Cell::new(false) };
}

fn use_contexts() {
    if USES_CONTEXTS.get() {
        let ctx = BACKGROUND.with_timeout(LONG);
        let child = ctx.with_cancel();
        ctx.cancel_with(Cause("from the subscriber"));
        assert!(child.is_done());
    }
}

struct Capture;

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload of a subscriber");
    }
}

#[derive(Default)]
struct Reader(String);

impl Visit for Reader {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{field}={value:?};");
    }
}

impl<S: Subscriber> Layer<S> for Capture {
    /// Evaluated every time; otherwise the first result of `enabled` is cached.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        use_contexts();
        match PANICS.get() {
            Panics::Enabled if metadata.target() == "tokio_ctx" => panic!("a subscriber"),
            Panics::EnabledTwice if metadata.target() == "tokio_ctx" => panic::panic_any(Bomb),
            _ => true,
        }
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: LayerContext<'_, S>) {
        let mut reader = Reader::default();
        attributes.record(&mut reader);
        SEEN.with_borrow_mut(|seen| seen.push(reader.0));
    }

    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        if event.metadata().target() != "tokio_ctx" {
            return;
        }
        use_contexts();
        assert!(PANICS.get() != Panics::Event, "a subscriber");
        let mut reader = Reader::default();
        event.record(&mut reader);
        SEEN.with_borrow_mut(|seen| seen.push(reader.0));
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
}

#[track_caller]
fn no_event() {
    let seen = SEEN.take();
    assert!(seen.is_empty(), "{seen:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_answered_is_no_event() {
    listen();
    for body in ["", "some text"] {
        let watching = Mutex::new(None);
        let service = service_fn(async |request: Request<()>| {
            // Something has to observe the end; otherwise there is none.
            let ctx = request.extensions().get::<Context>().unwrap();
            *watching.lock().unwrap() = Some(tokio::spawn(ctx.done_owned()));
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(body)))
        });
        let inbound = Inbound::new().max_budget(LONG);
        let service = ServerLayer::new(Context::background(), inbound).layer(service);
        let response = service.oneshot(Request::new(())).await.unwrap();
        response.into_body().collect().await.unwrap();
        let watching = watching.lock().unwrap().take().unwrap();
        assert!(watching.await.unwrap().to_string().ends_with(": request answered"));
        no_event();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ended_abnormally_is_an_event() {
    listen();
    let service = service_fn(async |request: Request<()>| {
        let ctx = request.extensions().get::<Context>().unwrap().clone();
        ctx.spawn(async { Context::current().done().await });
        std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>().await
    });
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let mut left = Box::pin(layer.layer(service).oneshot(Request::new(())));
    assert!(common::poll_once(&mut left).is_pending());
    drop(left);
    let seen = SEEN.take();
    assert!(seen.len() == 1 && seen[0].contains("cause=request dropped;"), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_one_event_with_its_cause() {
    listen();
    let shutdown = Shutdown::new(&BACKGROUND).grace(ms(50)).cleanup(ms(10));
    let _requests = (shutdown.hard().with_cancel(), shutdown.soft().with_cancel());
    shutdown.begin(Cause("new version"));
    assert!(shutdown.wait().await.is_clean());
    let seen = SEEN.take();
    assert!(seen.len() == 1 && seen[0].contains("cause=new version;"), "{seen:?}");
}

/// The end of the grace period is another event, of the hard context. The timers behind it emit none.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_grace_period_is_one_more_event() {
    listen();
    let shutdown = Shutdown::new(&BACKGROUND).grace(ms(50)).cleanup(ms(10));
    let _never_dropped = shutdown.ticket();
    shutdown.begin(Cause("new version"));
    assert_eq!(shutdown.wait().await.overdue().len(), 1);
    let seen = SEEN.take();
    assert!(seen.len() == 2 && seen[1].contains("cause=grace period of 50ms is over"), "{seen:#?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_test_is_no_event() {
    listen();
    testing::scope(async |test| {
        test.spawn(async { Context::current().done().await });
        tokio::task::yield_now().await;
    })
    .await;
    no_event();
}

/// For example, to export events with a timeout. The ends of its own contexts are no events, because each of them would
/// cause another one.
#[test]
fn a_subscriber_may_use_contexts_itself() {
    listen();
    USES_CONTEXTS.set(true);
    BACKGROUND.with_cancel().cancel_with(Cause("once"));
    USES_CONTEXTS.set(false);
    let seen = SEEN.take();
    assert!(seen.len() == 1 && seen[0].contains("cause=once;"), "{seen:#?}");
    BACKGROUND.with_cancel().cancel_with(Cause("again"));
    assert_eq!(SEEN.take().len(), 1);
}

/// Waiters are woken, the context has ended, and the caller does not notice the panic.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_loses_only_the_event() {
    listen();
    for panics in [Panics::Enabled, Panics::EnabledTwice, Panics::Event] {
        PANICS.set(panics);
        let parent = BACKGROUND.with_timeout(ms(100));
        let child = parent.with_cancel();
        let mut waits: Vec<_> = [&*parent, &*child].map(|ctx| Box::pin(ctx.done_owned())).into();
        let (wakes, waker) = Wakes::new();
        for wait in &mut waits {
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        parent.cancel_with(Cause("all"));
        assert_eq!(wakes.count(), 2);
        assert!(ended(&child).is_canceled());

        let late = BACKGROUND.with_timeout(ms(10));
        let waiting = tokio::spawn(late.done_owned());
        tokio::task::yield_now().await;
        advance(ms(11)).await;
        assert!(waiting.await.unwrap().is_deadline_exceeded());

        let headers = [("grpc-timeout", "nonsense")].map(|(name, text)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(text))
        });
        let inbound = Inbound::new().believe([DeadlineHeader::Grpc]);
        assert!(BACKGROUND.extract(&headers.into_iter().collect::<http::HeaderMap>(), &inbound).is_ok());
        PANICS.set(Panics::Never);
        no_event();
    }
    let outside = panic::catch_unwind(AssertUnwindSafe(|| BACKGROUND.with_cancel().cancel()));
    assert!(outside.is_ok());
    assert_eq!(SEEN.take().len(), 1, "the next event is emitted");
}

#[tracing::instrument]
fn handle(ctx: &Context, id: u32) {}

/// `#[tracing::instrument]` records `Debug` by default.
#[tokio::test(start_paused = true)]
async fn an_instrumented_function_records_a_context_in_one_short_line() {
    listen();
    let ctx = BACKGROUND.with_timeout(ms(250)).with_value("hunter2");
    let place = format!("{}:{}", file!(), line!() - 1);
    advance(std::time::Duration::from_nanos(1_234_567)).await;
    handle(&ctx, 7);
    let mut seen = SEEN.take();
    assert_eq!(seen.pop().unwrap(), format!("ctx=Context({place}, 248ms left);id=7;"));

    ctx.cancel_with(format!("{}\nand\nmore", "long ".repeat(1_000)));
    SEEN.take();
    handle(&ctx, 7);
    let text = SEEN.take().pop().unwrap();
    assert!(text.starts_with("ctx=Context(canceled at "), "{text}");
    assert!(text.len() < 250 && !text.contains('\n') && text.contains('…'), "{text}");

    assert_eq!(format!("{BACKGROUND:?} {:?}", Context::todo()), "Context(background) Context(todo)");
    let fields = format!("{ctx:#?}");
    assert!(
        fields.contains("made_at") && fields.contains("&str") && !fields.contains("hunter2"),
        "{fields}"
    );
}
