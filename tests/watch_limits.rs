//! A watch under attack: more entries than it accepts, names with markup, causes of megabytes, causes that panic.
//!
//! This suite needs its own process, because its watch accepts only a hundred entries, and shows causes.

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Instant;

use common::poll;
use tokio::runtime::{Builder, Runtime};
use tokio_ctx::watch::{Snapshot, Watch};
use tokio_ctx::{BoxError, CancelScope, Context};

const MOST: usize = 100;

/// How often [`Endless`] has printed.
static PRINTED: AtomicUsize = AtomicUsize::new(0);

/// A cause that would print for a minute.
#[derive(Debug)]
struct Endless;

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for _ in 0..1_000_000_000 {
            PRINTED.fetch_add(1, Ordering::Relaxed);
            f.write_str("<script>\u{202e}\n")?;
        }
        Ok(())
    }
}

impl StdError for Endless {}

#[derive(Debug)]
struct Panics;

impl fmt::Display for Panics {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a cause that cannot be printed")
    }
}

impl StdError for Panics {}

impl Drop for Panics {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a cause that cannot be dropped")
        }
    }
}

#[test]
fn the_number_of_entries_and_the_length_of_texts_are_limited() {
    let watch = Watch::builder().max_entries(MOST).show_causes(true).install().unwrap();
    let runtime = Builder::new_current_thread().build().unwrap();
    let entered = runtime.enter();
    roots_are_limited(watch);
    descendants_are_limited(watch);
    names_are_limited(watch);
    drop(entered);
    causes_are_limited(watch, &runtime);
    causes_may_panic(watch, &runtime);
    assert!(watch.snapshot().entries.is_empty());
}

/// More roots than the maximum number of entries.
fn roots_are_limited(watch: Watch) {
    let roots: Vec<_> = (0..10 * MOST).map(|_| Context::background().with_cancel()).collect();
    let full = watch.snapshot();
    assert_eq!(full.entries.len(), MOST);
    assert_eq!(full.totals.unregistered, 9 * MOST as u64);
    assert!(full.to_string().contains("900 not registered"), "{full}");
    drop(roots);
    assert!(watch.snapshot().entries.is_empty(), "dropped contexts make room");
}

/// More children of a context, and a context with more ancestors, than a snapshot visits.
fn descendants_are_limited(watch: Watch) {
    let root = Context::background().with_cancel().named("wide");
    let children: Vec<_> = (0..10 * MOST).map(|_| root.with_cancel()).collect();
    let wait = |child: &CancelScope| {
        let mut done = Box::pin(child.done_owned());
        assert!(poll(done.as_mut(), Waker::noop()).is_pending());
        done
    };
    let waits: Vec<_> = children.iter().map(wait).collect();
    let wide = watch.snapshot();
    assert_eq!(wide.entries.len(), MOST);
    assert_eq!(wide.totals.unseen, 9 * MOST + 1);
    drop((waits, children));

    let mut leaf = root.clone();
    for _ in 0..10 * MOST {
        leaf = leaf.with_cancel().detach();
    }
    let _bottom = leaf.named("bottom");
    let deep = watch.snapshot();
    assert!(deep.entries.len() <= MOST && deep.totals.unseen > 0);
}

fn names_are_limited(watch: Watch) {
    let name = "<img src=x onerror=alert(1)>\u{1b}[2J\r\u{61c}\u{202e}".repeat(100_000);
    let _hostile = Context::background().with_cancel().named(&name);
    let seen = watch.snapshot();
    let shown = seen.entries[0].name.clone().unwrap();
    assert_eq!(shown.chars().count(), 121);
    assert!(shown.starts_with("<img src=x onerror=alert(1)> [2J   <img"), "{shown}");
    assert!(!shown.contains(|char: char| char.is_control() || "\u{61c}\u{202e}".contains(char)));
    let text = seen.to_string();
    assert!(text.lines().all(|line| line.chars().count() <= 100 && !line.contains('\u{1b}')), "{text}");
}

/// Returns a snapshot with a task whose context has ended with this cause, and the scope of that context.
fn ended_with(watch: Watch, runtime: &Runtime, cause: impl Into<BoxError>) -> (Snapshot, CancelScope) {
    runtime.block_on(async {
        let scope = Context::background().with_cancel();
        let task = scope.spawn(std::future::pending::<()>());
        scope.cancel_with(cause);
        let seen = watch.snapshot();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        (seen, scope)
    })
}

fn causes_are_limited(watch: Watch, runtime: &Runtime) {
    let begun = Instant::now();
    let (seen, _scope) = ended_with(watch, runtime, Endless);
    let cause = seen.ended[0].end.cause.clone().unwrap();
    assert_eq!(cause.chars().count(), 301);
    assert!(cause.starts_with("<script>  <script>"), "{cause}");
    assert!(PRINTED.load(Ordering::Relaxed) < 1_000, "the formatting continued");
    assert!(begun.elapsed().as_secs() < 10);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&seen.to_json()).unwrap()["ended"][0]["end"]["cause"],
        cause
    );

    let (seen, _scope) = ended_with(watch, runtime, "x".repeat(16 << 20));
    let longest = seen.to_json().len();
    assert!(longest < 100_000, "{longest} bytes");
}

fn causes_may_panic(watch: Watch, runtime: &Runtime) {
    let (seen, scope) = ended_with(watch, runtime, Panics);
    let panicky = seen.ended.iter().find(|ended| ended.end.cause.as_deref() == Some(""));
    assert!(panicky.is_some(), "{seen}");
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(scope)));
}
