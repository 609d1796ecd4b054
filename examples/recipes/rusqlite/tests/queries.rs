//! The recipe for SQLite: a query ends with its context, on the thread where it runs.

#[path = "../../../../tests/common/mod.rs"]
mod common;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use futures::FutureExt;
use http::{Request, StatusCode};
use recipe_rusqlite::{Database, Error, is_cancel};
use rusqlite::Connection;
use tokio::time::{Instant, timeout};
use tokio_ctx::Context;
use tokio_ctx::query::StoppedKind;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tower::ServiceExt;

use common::ms;

const RUNAWAY: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/// A query that takes about a millisecond.
const SHORT: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) SELECT count(*) FROM n";

fn background() -> Context {
    Context::background()
}

fn count(connection: &Connection, sql: &str) -> Result<u64, Error> {
    Ok(connection.query_row(sql, (), |row| row.get(0))?)
}

/// A database in a file, which is deleted when this is dropped.
struct File {
    db: Database,
    path: PathBuf,
}

impl File {
    fn new() -> Arc<File> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tokio-ctx-{}-{nth}.sqlite", std::process::id()));
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
        Arc::new(File { db: Database::new(&path), path })
    }

    /// Opens a connection that checks no context.
    fn other(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn rows(&self) -> u64 {
        count(&self.other(), "SELECT count(*) FROM t").unwrap()
    }

    async fn runaway(&self, ctx: &Context) -> Result<u64, Error> {
        self.db.query(ctx, |connection| count(connection, RUNAWAY)).await
    }

    async fn insert(&self, ctx: &Context) -> Result<usize, Error> {
        self.db.query(ctx, |connection| Ok(connection.execute("INSERT INTO t VALUES (1)", ())?)).await
    }

    async fn three(&self) -> Result<u64, Error> {
        self.db.query(&background(), |connection| count(connection, "SELECT 3")).await
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

fn kind<R: std::fmt::Debug>(result: Result<R, Error>) -> Option<StoppedKind> {
    match result {
        Err(Error::Stopped(stopped)) => Some(stopped.kind()),
        Err(Error::Context(_)) => None,
        other => panic!("{other:?}"),
    }
}

/// Returns how long after its deadline of 50 ms SQLite returned.
async fn overrun(file: &File) -> Duration {
    let ctx = background().with_timeout(ms(50));
    let (returned, at) = mpsc::channel();
    let result = file.db.query(&ctx, move |connection| {
        let result = count(connection, RUNAWAY);
        returned.send(Instant::now()).unwrap();
        assert!(is_cancel(result.as_ref().unwrap_err()));
        result
    });
    assert_eq!(kind(result.await), Some(StoppedKind::Canceled));
    at.recv().unwrap().saturating_duration_since(ctx.deadline().unwrap())
}

#[tokio::test]
async fn a_runaway_query_stops_within_20_ms_of_its_deadline() {
    let file = File::new();
    // On a busy machine a query may be late, but not every time.
    let mut overruns = Vec::new();
    for _ in 0..10 {
        overruns.push(overrun(&file).await);
        if overruns.last() < Some(&ms(20)) {
            println!("stopped {:?} after the deadline", overruns.last());
            return;
        }
    }
    panic!("too late: {overruns:?}");
}

#[tokio::test]
async fn an_ended_context_runs_no_query() {
    let file = File::new();
    let ctx = background().with_cancel();
    ctx.cancel();
    for _ in 0..20 {
        file.insert(&ctx).await.unwrap_err();
    }
    assert_eq!(file.rows(), 0);
}

/// The context ends while the query waits for a thread.
#[test]
fn a_context_that_ends_before_there_is_a_thread_runs_no_query() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let file = File::new();
        file.three().await.unwrap();
        let (release, released) = mpsc::channel::<()>();
        let holds = tokio::task::spawn_blocking(move || released.recv().unwrap());
        let ctx = background().with_timeout(ms(50));
        let (inserted, ()) = tokio::join!(file.insert(&ctx), async {
            ctx.done().await;
            release.send(()).unwrap();
        });
        inserted.unwrap_err();
        holds.await.unwrap();
        assert_eq!(file.rows(), 0);
        file.three().await.unwrap();
    });
}

#[tokio::test]
async fn the_wait_for_the_connection_ends_with_the_context() {
    let file = File::new();
    let first = background().with_cancel();
    let (holds, ()) = tokio::join!(file.runaway(&first), async {
        let begun = Instant::now();
        assert_eq!(kind(file.insert(&background().with_timeout(ms(50))).await), None);
        assert!(begun.elapsed() < ms(2_000), "{:?}", begun.elapsed());
        first.cancel();
    });
    assert_eq!(kind(holds), Some(StoppedKind::Canceled));
    assert_eq!(file.three().await.unwrap(), 3);
    assert_eq!(file.rows(), 0);
}

#[tokio::test]
async fn the_wait_for_a_lock_ends_with_the_context() {
    let file = File::new();
    let other = file.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..5 {
        let begun = Instant::now();
        let inserted = file.insert(&background().with_timeout(ms(50))).await;
        assert_eq!(kind(inserted), Some(StoppedKind::Canceled));
        assert!(begun.elapsed() >= ms(50) && begun.elapsed() < ms(2_000), "{:?}", begun.elapsed());
    }
    // Without an end it waits as long as necessary.
    let long = background();
    let (inserted, ()) = tokio::join!(file.insert(&long), async {
        tokio::time::sleep(ms(100)).await;
        other.execute_batch("COMMIT").unwrap();
    });
    assert_eq!(inserted.unwrap(), 1);
    assert_eq!(file.rows(), 1);
}

#[tokio::test]
async fn a_canceled_transaction_is_rolled_back() {
    let file = File::new();
    let transaction = |ctx: Context, file: Arc<File>| async move {
        file.db
            .query(&ctx, |connection| {
                let transaction = connection.transaction()?;
                transaction.execute("INSERT INTO t VALUES (1)", ())?;
                count(&transaction, RUNAWAY)?;
                Ok(transaction.commit()?)
            })
            .await
    };
    let ctx = background().with_timeout(ms(30));
    assert_eq!(kind(transaction(ctx.clone(), file.clone()).await), Some(StoppedKind::Canceled));
    assert!(timeout(ms(30), transaction(background(), file.clone())).await.is_err());
    file.three().await.unwrap();
    assert_eq!(file.rows(), 0);
}

/// The server's layer drops the handler at its deadline.
#[tokio::test]
async fn a_dropped_handler_leaves_a_working_connection() {
    async fn report(ctx: Context, State(file): State<Arc<File>>) -> StatusCode {
        // SQLite may be faster than the layer.
        assert_eq!(kind(file.runaway(&ctx).await), Some(StoppedKind::Canceled));
        StatusCode::GATEWAY_TIMEOUT
    }
    /// The handler does not check the deadline.
    async fn unaware(State(file): State<Arc<File>>) -> String {
        format!("{:?}", file.runaway(&background()).await)
    }
    let file = File::new();
    let layer = ServerLayer::new(background(), Inbound::new().max_budget(ms(30)));
    let app = Router::new()
        .route("/0", get(report))
        .route("/1", get(unaware))
        .layer(layer)
        .with_state(file.clone());
    for round in 0..20 {
        let request = Request::get(format!("/{}", round % 2)).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        for _ in 0..3 {
            assert_eq!(file.three().await.unwrap(), 3);
        }
    }
}

/// The end, or a drop, at about the time when the query returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_interrupt_affects_no_other_query() {
    let file = File::new();
    let begun = Instant::now();
    file.db.query(&background(), |connection| count(connection, SHORT)).await.unwrap();
    let takes = begun.elapsed().as_micros() as u64;
    for round in 0..600_u64 {
        let near = Duration::from_micros((round * 37) % (2 * takes));
        let ctx = background().with_timeout(near);
        let query = file.db.query(&ctx, |connection| count(connection, SHORT));
        if round % 3 == 0 {
            drop(timeout(near, query).await);
        } else if let Err(Error::Sqlite(error)) = query.await {
            panic!("round {round}: {error}");
        }
        for _ in 0..2 {
            let next = file.db.query(&background(), |connection| count(connection, SHORT)).await;
            assert_eq!(next.unwrap(), 3000, "round {round}");
        }
    }
}

#[tokio::test]
async fn a_query_that_panics_closes_its_connection() {
    let file = File::new();
    for _ in 0..5 {
        let ctx = background().with_timeout(ms(1));
        let panics = file.db.query(&ctx, |connection| -> Result<(), Error> {
            connection.execute("INSERT INTO t VALUES (1)", ())?;
            connection.execute_batch("BEGIN; INSERT INTO t VALUES (2)")?;
            panic!("a query panics")
        });
        // Otherwise there was no time to start it.
        if let Ok(result) = AssertUnwindSafe(panics).catch_unwind().await {
            result.unwrap_err();
        }
        let begun = Instant::now();
        while begun.elapsed() < ms(20) {
            file.db.query(&background(), |connection| count(connection, SHORT)).await.unwrap();
        }
    }
    assert!(file.rows() <= 5, "what was begun is undone");
}

/// A query that neither steps nor waits in SQLite cannot be stopped, and no other caller gets its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_query_is_still_running_is_not_used() {
    let file = File::new();
    let (release, released) = mpsc::channel::<()>();
    let (closed, is_closed) = mpsc::channel::<()>();
    let ctx = background().with_timeout(ms(50));
    let stuck = file.db.query(&ctx, move |connection| {
        let _closed = closed;
        connection.execute("CREATE TEMP TABLE mine (n INTEGER)", ())?;
        released.recv().unwrap();
        Ok(())
    });
    assert_eq!(kind(stuck.await), Some(StoppedKind::Unknown));
    let tables = "SELECT count(*) FROM sqlite_temp_master";
    let other = file.db.query(&background(), |connection| count(connection, tables)).await;
    assert_eq!(other.unwrap(), 0, "another connection");
    release.send(()).unwrap();
    is_closed.recv().unwrap_err();
    assert_eq!(file.three().await.unwrap(), 3);
}

#[test]
fn a_runtime_that_shuts_down_during_a_query_does_not_wait_for_it() {
    common::watched(|| {
        for round in 0..20 {
            let runtime =
                if round % 2 == 0 { common::current_thread() } else { common::multi_thread(2) };
            let (started, is_started) = mpsc::channel();
            let file = File::new();
            // The scope outlives the task, so that its drop does not stop the query.
            let scope = background().with_cancel();
            let ctx = scope.clone();
            runtime.spawn({
                let file = file.clone();
                async move {
                    let query = file.db.query(&ctx, move |connection| {
                        started.send(()).unwrap();
                        count(connection, RUNAWAY)
                    });
                    query.await
                }
            });
            runtime.block_on(async {
                while is_started.try_recv().is_err() {
                    tokio::time::sleep(ms(1)).await;
                }
            });
            drop(runtime);
        }
    });
}
