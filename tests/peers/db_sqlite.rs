//! The recipe for SQLite: a runaway query stops with its context, as SQLite itself tells.

#[path = "../common/mod.rs"]
mod common;

use std::sync::{Arc, Mutex};

use recipes::sqlite;
use rusqlite::{Connection, Error};
use tokio::time::{Duration, Instant};
use tokio_ctx::Context;

use common::ms;

const RUNAWAY: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn count(connection: &Connection) -> Result<u64, Error> {
    connection.query_row(RUNAWAY, (), |row| row.get(0))
}

/// How long after its deadline of 50 ms SQLite took its last steps.
async fn overrun() -> Duration {
    let last_step = Arc::new(Mutex::new(Instant::now()));
    let ctx = Context::background().with_timeout(ms(50));
    let open = {
        let last_step = last_step.clone();
        move || {
            let connection = Connection::open_in_memory()?;
            let tick = move || {
                *last_step.lock().unwrap() = Instant::now();
                false
            };
            connection.progress_handler(100, Some(tick));
            Ok(connection)
        }
    };
    let error = sqlite::query(&ctx, open, count).await.unwrap_err();
    assert!(sqlite::is_interrupt(&error), "{error}");
    let last_step = *last_step.lock().unwrap();
    assert!(last_step > ctx.deadline().unwrap() - ms(50), "it ran");
    last_step.saturating_duration_since(ctx.deadline().unwrap())
}

#[tokio::test]
async fn a_runaway_query_stops_within_20_ms_of_its_deadline() {
    // A machine that is busy with something else may be late; not every time.
    let mut overruns = Vec::new();
    for _ in 0..10 {
        overruns.push(overrun().await);
        if overruns.last() < Some(&ms(20)) {
            println!("stopped {:?} after the deadline", overruns.last());
            return;
        }
    }
    panic!("too late: {overruns:?}");
}

#[tokio::test]
async fn a_query_that_is_done_in_time_is_left_alone() {
    let ctx = Context::background().with_cancel();
    let three = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM (VALUES (1), (2), (3))", (), |row| row.get(0))
    };
    let rows: u64 = sqlite::query(&ctx, Connection::open_in_memory, three).await.unwrap();
    assert_eq!(rows, 3);
    ctx.cancel();
}

#[tokio::test]
async fn an_end_before_the_query_begins_stops_it_all_the_same() {
    let ctx = Context::background().with_cancel();
    let canceler = ctx.canceler();
    let opened = move || {
        let connection = Connection::open_in_memory()?;
        canceler.cancel();
        Ok(connection)
    };
    let error = sqlite::query(&ctx, opened, count).await.unwrap_err();
    assert!(sqlite::is_interrupt(&error));
}

#[test]
fn a_runtime_that_shuts_down_amidst_a_query_does_not_wait_for_it() {
    let runtime = common::current_thread();
    let (started, is_started) = std::sync::mpsc::channel();
    // It outlives the task, so that the query is not stopped by the scope's drop.
    let scope = Context::background().with_cancel();
    let ctx = scope.clone();
    runtime.spawn(async move {
        let open = move || {
            let connection = Connection::open_in_memory()?;
            let mut started = Some(started);
            let tick = move || {
                if let Some(started) = started.take() {
                    started.send(()).unwrap();
                }
                false
            };
            connection.progress_handler(100, Some(tick));
            Ok(connection)
        };
        sqlite::query(&ctx, open, count).await
    });
    runtime.block_on(async {
        while is_started.try_recv().is_err() {
            tokio::time::sleep(ms(1)).await;
        }
    });
    drop(runtime);
}
