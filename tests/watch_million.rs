//! Snapshots of a million contexts, while another thread derives, waits and drops below the same parent. The delay of that
//! thread is measured.
//!
//! This suite needs its own process, because its watch accepts millions of entries. There are a hundred thousand
//! contexts, or a million with `TOKIO_CTX_FULL=1`.

mod common;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use common::{SetOnDrop, is_full, poll};
use tokio_ctx::watch::Watch;
use tokio_ctx::{Context, DoneOwned};

fn waiting_on(ctx: &Context) -> Pin<Box<DoneOwned>> {
    let mut done = Box::pin(ctx.done_owned());
    assert!(poll(done.as_mut(), Waker::noop()).is_pending());
    done
}

#[test]
fn a_snapshot_of_many_contexts_does_not_delay_derives() {
    let crowd = if is_full() { 1_000_000 } else { 100_000 };
    let watch = Watch::builder().max_entries(3 * crowd).install().unwrap();
    let root = Context::background().with_cancel().named("crowd");
    let waits: Vec<_> = (0..crowd).map(|_| waiting_on(&root.with_cancel().detach())).collect();

    let is_over = AtomicBool::new(false);
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let deriving = scope.spawn(|| {
            let mut took = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let child = root.with_cancel();
                let wait = waiting_on(&child);
                drop((wait, child));
                took.push(begun.elapsed());
            }
            took
        });
        let over = SetOnDrop(&is_over);
        for _ in 0..3 {
            let snapshot = watch.snapshot();
            assert!(snapshot.entries.len() > crowd, "{}", snapshot.totals.seen);
            assert!(snapshot.alive[0].count >= crowd && snapshot.alive[0].waiters >= crowd);
            println!("{} entries in {:?}", snapshot.entries.len(), snapshot.took);
        }
        drop(over);
        deriving.join().unwrap()
    });
    took.sort();
    let [median, p99, p999] = [2, 100, 1000].map(|part| took[took.len() - 1 - (took.len() - 1) / part]);
    let longest = took[took.len() - 1];
    println!(
        "{} derives: median {median:?}, p99 {p99:?}, p99.9 {p999:?}, longest {longest:?}",
        took.len()
    );
    assert!(p99 < Duration::from_millis(1), "p99 {p99:?}");
    drop(waits);
    assert!(watch.snapshot().entries.len() <= 2);
}
