//! The journal of all requests, and the table at the end.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tokio_ctx::wire::{RequestEnd, Travel};
use tokio_ctx::{Context, Error};

/// The number of a request, which the edge assigns and which is propagated to all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub u64);

impl RequestId {
    pub fn new() -> RequestId {
        static LAST: AtomicU64 = AtomicU64::new(0);
        RequestId(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Travel for RequestId {
    const NAME: &'static str = "x-request-id";
    fn encode(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }
    fn decode(text: &str) -> Option<Self> {
        text.parse().ok().map(RequestId)
    }
}

/// One request in one service, after it has ended.
pub struct Entry {
    pub request: u64,
    pub service: &'static str,
    pub given: Duration,
    pub came: Instant,
    pub over: Instant,
    pub end: Error,
}

impl Entry {
    pub fn took(&self) -> Duration {
        self.over - self.came
    }

    fn why(&self) -> String {
        let cause = self.end.cause().map(ToString::to_string).unwrap_or_default();
        match self.end.cause_as::<RequestEnd>() {
            Some(RequestEnd::Answered) => cause,
            _ if self.end.is_deadline_exceeded() => format!("stopped: deadline exceeded, {cause}"),
            _ => format!("stopped: {cause}"),
        }
    }
}

#[derive(Clone)]
pub struct Journal(UnboundedSender<Entry>);

impl Journal {
    pub fn new() -> (Journal, UnboundedReceiver<Entry>) {
        let (send, receive) = unbounded_channel();
        (Journal(send), receive)
    }

    /// Prints how much time the current request has, and records how it ends.
    pub fn request(&self, service: &'static str, ctx: &Context) {
        let given = ctx.remaining().unwrap_or_default();
        let request = ctx.value::<RequestId>().map_or(0, |id| id.0);
        println!("  {service:<7} request {request} was given {}", millis(given));
        let (journal, came) = (self.clone(), Instant::now());
        ctx.spawn(async move {
            let ctx = Context::current();
            let over = ctx.done().await.origin().ended_at();
            journal.over(service, &ctx, given, came, over);
        });
    }

    /// Records how and when a context has ended.
    pub fn over(
        &self,
        service: &'static str,
        ctx: &Context,
        given: Duration,
        came: Instant,
        over: Instant,
    ) {
        let request = ctx.value::<RequestId>().map_or(0, |id| id.0);
        if let Some(end) = ctx.err() {
            // Fails if the journal is no longer read.
            self.0.send(Entry { request, service, given, came, over, end }).ok();
        }
    }
}

pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub fn table(entries: &[Entry]) {
    println!("| request | service | given | over after | why | budget set at |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for entry in entries {
        let place = entry.end.origin().made_at();
        println!(
            "| {} | {} | {} | {} | {} | {}:{} |",
            entry.request,
            entry.service,
            millis(entry.given),
            millis(entry.took()),
            entry.why(),
            place.file(),
            place.line(),
        );
    }
}
