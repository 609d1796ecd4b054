//! What a watch sees: what was told to stop and is still here, what runs, and what has ended lately.
//!
//! The watch is the process's, and tests run side by side: each looks for its own lines and names.

use std::future::pending;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_ctx::watch::{self, Entry, How, Kind, Snapshot, State, Watch};
use tokio_ctx::{Context, Group, Shutdown};

#[track_caller]
fn here(lines_above: u32) -> String {
    let here = Location::caller();
    format!("{}:{}", here.file(), here.line() - lines_above)
}

fn by_line<'a>(snapshot: &'a Snapshot, line: &str) -> Vec<&'a Entry> {
    snapshot.entries.iter().filter(|entry| entry.line.to_string() == line).collect()
}

fn by_name<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Entry {
    let found = snapshot.entries.iter().find(|entry| entry.name.as_deref() == Some(name));
    found.unwrap_or_else(|| panic!("{name} is not in the picture"))
}

#[tokio::test]
async fn a_task_that_ignores_its_end_is_among_the_first() {
    let watch = watch::install();
    let ctx = Context::background().with_cancel();
    let started = Arc::new(Notify::new());
    let start = started.clone();
    let task = ctx.spawn(async move {
        start.notify_one();
        pending::<()>().await
    });
    let line = here(4);
    started.notified().await;
    assert!(watch.snapshot().ended.iter().all(|ended| ended.line.to_string() != line));
    ctx.cancel_with("hung up");
    let canceled = here(1);

    let snapshot = watch.snapshot();
    let ended = snapshot.ended.iter().find(|ended| ended.line.to_string() == line).unwrap();
    assert_eq!((ended.kind, ended.count, ended.inside), (Kind::Task, 1, 0));
    assert_eq!(ended.state, State::Waiting);
    assert_eq!(ended.end.how, How::Canceled);
    assert_eq!(ended.end.line.to_string(), canceled);
    assert!(ended.end.text.starts_with("context canceled at "), "{}", ended.end.text);
    assert_eq!(ended.end.cause, None, "a cause is hidden");
    task.abort();
    let _ = task.await;
    assert!(by_line(&watch.snapshot(), &line).is_empty());
}
