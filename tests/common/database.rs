//! The tests of the recipes for PostgreSQL, for all drivers. `suite!` makes the tests of a [`Database`].
//!
//! `pg_stat_activity` shows the queries that run at the server. The tests share one server, and find their own queries by
//! a comment.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use futures::FutureExt;
use futures::future::join_all;
use http::{Request, StatusCode};
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::Context;
use tokio_ctx::query::{Stopped, StoppedKind};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_postgres::{Client, NoTls};
use tower::ServiceExt;

use super::common::{HANG, ms};
use postgres::Server;

#[path = "postgres.rs"]
pub mod postgres;

/// The error of a query.
#[derive(Debug)]
pub struct Failure {
    pub text: String,
    pub kind: Option<StoppedKind>,
    pub ended: Option<tokio_ctx::Error>,
    pub may_have_committed: bool,
}

impl Failure {
    pub fn new(error: &(dyn std::error::Error + 'static), may_have_committed: bool) -> Failure {
        let mut text = error.to_string();
        let mut kind = None;
        let mut next = Some(error);
        while let Some(error) = next {
            text = format!("{text}: {error}");
            kind = kind.or(error.downcast_ref::<Stopped>().map(Stopped::kind));
            next = error.source();
        }
        Failure { text, kind, ended: tokio_ctx::Error::find(error).cloned(), may_have_committed }
    }
}

type Answer = Result<String, Failure>;

/// A recipe with its connections.
pub trait Database: Clone + Send + Sync + 'static {
    /// Opens at most this many connections, if the recipe supports more than one.
    fn open(server: &Server, connections: u32) -> impl Future<Output = Self> + Send;

    /// Returns the text in the first column of the first row.
    fn query(&self, ctx: &Context, sql: &str) -> impl Future<Output = Answer> + Send;

    /// Runs a query whose function panics while the query is in progress.
    fn panic(&self, ctx: &Context, sql: &str, after: Duration) -> impl Future<Output = Answer> + Send;

    /// Runs one statement and its commit.
    fn commit(&self, ctx: &Context, sql: &str) -> impl Future<Output = Answer> + Send;
}

const RUNAWAY: &str = "DO 'BEGIN LOOP END LOOP; END'";

/// A statement that catches cancels, except between two iterations of its loop.
const DEAF: &str = "DO $$ BEGIN LOOP
    BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
END LOOP; END $$";

const PID: &str = "SELECT pg_backend_pid()::text";

/// The grace period of the recipes.
const GRACE: Duration = ms(5_000);

fn background() -> Context {
    Context::background()
}

struct Observer(Client);

impl Observer {
    async fn of(server: &Server) -> Observer {
        let (client, connection) = tokio_postgres::connect(&server.address, NoTls).await.unwrap();
        tokio::spawn(connection);
        Observer(client)
    }

    /// Returns the number of running queries that contain these words.
    async fn running(&self, words: &str) -> i64 {
        let active = "SELECT count(*) FROM pg_stat_activity
                      WHERE state = 'active' AND pid <> pg_backend_pid() AND strpos(query, $1) > 0";
        self.0.query_one(active, &[&words]).await.unwrap().get(0)
    }

    async fn until_running(&self, words: &str, running: i64) {
        let hang = Instant::now() + HANG;
        while self.running(words).await != running {
            assert!(Instant::now() < hang, "it never came to running = {running}");
            sleep(ms(2)).await;
        }
    }

    /// Creates an empty table.
    async fn table(&self, name: &str) {
        let create = format!("DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (n int)");
        self.0.batch_execute(&create).await.unwrap();
    }

    /// Creates a table into which an insert takes this long to commit.
    async fn slow_to_commit(&self, name: &str, seconds: f64) {
        self.table(name).await;
        let slow = format!(
            "CREATE OR REPLACE FUNCTION {name}_slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {name} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION {name}_slow()"
        );
        self.0.batch_execute(&slow).await.unwrap();
    }

    async fn rows(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        self.0.query_one(&count, &[]).await.unwrap().get(0)
    }
}

fn sleeps(words: &str) -> String {
    format!("SELECT pg_sleep(3600)::text /* {words} */")
}

/// Checks that the server canceled the query because its context ended.
fn assert_canceled(answer: Answer) {
    let failure = answer.unwrap_err();
    assert_eq!(failure.kind, Some(StoppedKind::Canceled), "{failure:?}");
}

pub async fn a_query_ends_at_the_server<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let pid = db.query(&background(), PID).await.unwrap();

    // After a cancel.
    let ctx = background().with_cancel();
    let sql = sleeps("stops by a cancel");
    let (answer, ()) = tokio::join!(db.query(&ctx, &sql), async {
        observer.until_running("stops by a cancel", 1).await;
        ctx.cancel();
    });
    assert_canceled(answer);
    // Otherwise it would take an hour.
    observer.until_running("stops by a cancel", 0).await;

    // At a deadline, with a query that computes. The connection can be used again each time.
    for _ in 0..20 {
        let answer = db.query(&background().with_timeout(ms(100)), RUNAWAY).await;
        assert_canceled(answer);
        assert_eq!(db.query(&background(), PID).await.unwrap(), pid, "the same connection");
    }
}

pub async fn an_ended_context_runs_no_query<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    observer.table("ended").await;
    let ctx = background().with_cancel();
    ctx.cancel();
    for _ in 0..20 {
        let failure = db.query(&ctx, "INSERT INTO ended VALUES (1)").await.unwrap_err();
        assert!(failure.ended.unwrap().is_canceled());
        let failure = db.commit(&ctx, "INSERT INTO ended VALUES (2)").await.unwrap_err();
        assert!(!failure.may_have_committed);
    }
    assert_eq!(observer.rows("ended").await, 0);
}

/// With a pool of one connection, and with a server that accepts none.
pub async fn the_wait_for_a_connection_ends_with_the_context<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let first = background().with_cancel();
    let holds = {
        let (db, ctx) = (db.clone(), first.clone());
        tokio::spawn(async move { db.query(&ctx, &sleeps("holds the connection")).await })
    };
    observer.until_running("holds the connection", 1).await;
    let begun = Instant::now();
    let failure = db.query(&background().with_timeout(ms(50)), PID).await.unwrap_err();
    assert!(failure.ended.unwrap().is_deadline_exceeded());
    assert!(begun.elapsed() < ms(2_000), "{:?}", begun.elapsed());
    first.cancel();
    assert_canceled(holds.await.unwrap());
    db.query(&background(), PID).await.unwrap();
}

/// The server's layer drops the handler at its deadline.
pub async fn a_dropped_handler_leaves_a_working_connection<D: Database>(server: Arc<Server>) {
    async fn report<D: Database>(ctx: Context, State(db): State<D>) -> StatusCode {
        // The server may be faster than the layer.
        assert_canceled(db.query(&ctx, &sleeps("a handler")).await);
        StatusCode::GATEWAY_TIMEOUT
    }
    /// The handler does not check the deadline.
    async fn unaware<D: Database>(State(db): State<D>) -> String {
        db.query(&background(), &sleeps("a handler")).await.unwrap_or_else(|failure| failure.text)
    }
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let pid = db.query(&background(), PID).await.unwrap();
    let layer = ServerLayer::new(background(), Inbound::new().max_budget(ms(200)));
    let app = Router::new().route("/0", get(report::<D>)).route("/1", get(unaware::<D>));
    let app = app.layer(layer).with_state(db.clone());
    for round in 0..20 {
        let request = Request::get(format!("/{}", round % 2)).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        // The next query on this connection waits for the end of the previous one, and is not canceled.
        for _ in 0..3 {
            assert_eq!(db.query(&background(), PID).await.unwrap(), pid, "the same connection");
        }
    }
    assert_eq!(observer.running("a handler").await, 0);
}

/// The end, or a drop, at about the time when the query returns.
pub async fn a_late_cancel_affects_no_other_query<D: Database>(server: Arc<Server>) {
    let db = D::open(&server, 1).await;
    db.query(&background(), PID).await.unwrap();
    for round in 0..240_u64 {
        let near = Duration::from_micros(2_000 + (round * 37) % 4_000);
        let ctx = background().with_timeout(near);
        let query = db.query(&ctx, "SELECT pg_sleep(0.002)::text");
        if round % 3 == 0 {
            drop(timeout(near, query).await);
        } else if let Err(failure) = query.await {
            assert!(failure.ended.is_some(), "round {round}: {failure:?}");
        }
        // It starts at once, and is long enough to be affected by a late cancel.
        for _ in 0..2 {
            let next = db.query(&background(), "SELECT pg_sleep(0.001)::text").await;
            assert!(next.is_ok(), "round {round}: {next:?}");
        }
    }
}

/// Other queries of the same pool run while one is canceled repeatedly.
pub async fn a_cancel_affects_no_other_connection<D: Database>(server: Arc<Server>) {
    let db = D::open(&server, 4).await;
    let neighbors = (0..2).map(|_| {
        let db = db.clone();
        tokio::spawn(async move {
            for _ in 0..60 {
                db.query(&background(), "SELECT pg_sleep(0.005)::text").await.unwrap();
            }
        })
    });
    let neighbors: Vec<_> = neighbors.collect();
    for _ in 0..30 {
        let answer = db.query(&background().with_timeout(ms(60)), RUNAWAY).await;
        assert!(answer.unwrap_err().ended.is_some());
    }
    for neighbor in neighbors {
        neighbor.await.unwrap();
    }
}

/// All connections of a pool are in use by queries that have to be canceled.
pub async fn the_queries_of_a_full_pool_are_canceled<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 3).await);
    let begun = Instant::now();
    let ctx = background().with_timeout(ms(300));
    let sql = sleeps("a full pool");
    let answers = join_all((0..9).map(|_| db.query(&ctx, &sql))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap_err().ended.is_some()));
    assert!(begun.elapsed() < GRACE, "{:?}", begun.elapsed());
    observer.until_running("a full pool", 0).await;
    db.query(&background(), PID).await.unwrap();
}

/// If the server ignores cancels, the connection is closed, and replaced by another one.
pub async fn a_connection_whose_query_is_still_running_is_closed<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let sql = format!("{DEAF} /* deaf */");
    for _ in 0..10 {
        let pid = db.query(&background(), PID).await.unwrap();
        let begun = Instant::now();
        let failure = db.query(&background().with_timeout(ms(200)), &sql).await.unwrap_err();
        if failure.kind == Some(StoppedKind::Unknown) {
            assert!(begun.elapsed() >= GRACE && begun.elapsed() < GRACE * 3);
            assert_ne!(db.query(&background(), PID).await.unwrap(), pid, "another connection");
            // The server notices that the connection is closed.
            return observer.until_running("/* deaf */", 0).await;
        }
        assert!(failure.ended.is_some(), "{failure:?}");
    }
    panic!("it is not deaf");
}

/// The same after the caller has dropped the future.
pub async fn a_stuck_query_without_its_caller_closes_the_connection<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let sql = format!("{DEAF} /* deaf and dropped */");
    for _ in 0..10 {
        let pid = db.query(&background(), PID).await.unwrap();
        let ctx = background();
        assert!(timeout(ms(200), db.query(&ctx, &sql)).await.is_err());
        // Meanwhile no other caller gets the connection.
        let waits = db.query(&background().with_timeout(ms(100)), PID).await;
        if db.query(&background(), PID).await.unwrap() != pid {
            assert!(waits.unwrap_err().ended.unwrap().is_deadline_exceeded());
            return observer.until_running("/* deaf and dropped */", 0).await;
        }
    }
    panic!("it is not deaf");
}

pub async fn a_query_that_panics_closes_its_connection<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    for _ in 0..5 {
        let pid = db.query(&background(), PID).await.unwrap();
        let (ctx, sql) = (background(), sleeps("panics"));
        let panicked = AssertUnwindSafe(db.panic(&ctx, &sql, ms(50))).catch_unwind().await;
        assert!(panicked.is_err());
        observer.until_running("/* panics */", 0).await;
        assert_ne!(db.query(&background(), PID).await.unwrap(), pid, "another connection");
    }
    for _ in 0..20 {
        db.query(&background(), "SELECT pg_sleep(0.002)::text").await.unwrap();
    }
}

pub async fn a_commit_in_progress_is_waited_for<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    observer.slow_to_commit("sent", 0.5).await;
    db.query(&background(), PID).await.unwrap();

    let ctx = background().with_timeout(ms(200));
    db.commit(&ctx, "INSERT INTO sent VALUES (1)").await.unwrap();
    assert!(ctx.is_done(), "it ended amid the commit");
    assert_eq!(observer.rows("sent").await, 1);

    // Also after its caller has dropped the future.
    let ctx = background();
    assert!(timeout(ms(200), db.commit(&ctx, "INSERT INTO sent VALUES (2)")).await.is_err());
    db.query(&background(), PID).await.unwrap();
    assert_eq!(observer.rows("sent").await, 2);
}

pub async fn a_commit_after_the_end_is_not_sent<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    observer.table("unsent").await;
    let insert = "INSERT INTO unsent SELECT 1 FROM pg_sleep(3600)";
    let failure = db.commit(&background().with_timeout(ms(200)), insert).await.unwrap_err();
    assert!(failure.ended.is_some() && !failure.may_have_committed, "{failure:?}");
    db.query(&background(), PID).await.unwrap();
    assert_eq!(observer.rows("unsent").await, 0);
}

pub async fn a_commit_without_a_response_is_reported<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    observer.slow_to_commit("unanswered", 12.0).await;
    db.query(&background(), PID).await.unwrap();
    let ctx = background().with_timeout(ms(200));
    let failure = db.commit(&ctx, "INSERT INTO unanswered VALUES (1)").await.unwrap_err();
    assert_eq!(
        (failure.kind, failure.may_have_committed),
        (Some(StoppedKind::Unknown), true),
        "{failure:?}"
    );

    // A commit whose connection is lost has no response either.
    observer.slow_to_commit("lost", 3600.0).await;
    let ctx = background();
    let kill = async {
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_locks USING (pid)
                    WHERE relation = 'lost'::regclass AND query = 'COMMIT' AND wait_event = 'PgSleep'";
        while observer.0.execute(kill, &[]).await.unwrap() == 0 {
            sleep(ms(2)).await;
        }
    };
    let (answer, ()) = tokio::join!(db.commit(&ctx, "INSERT INTO lost VALUES (1)"), kill);
    let failure = answer.unwrap_err();
    assert!(failure.may_have_committed, "{failure:?}");
}

/// A server for one test, whose postmaster can be stopped, so that it accepts neither connections nor cancels.
struct Halting(Server);

impl Halting {
    fn signal(&self, signal: &str) {
        let pid = self.0.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn halt(&self) {
        self.signal("-STOP");
    }

    fn go_on(&self) {
        self.signal("-CONT");
    }
}

impl Drop for Halting {
    fn drop(&mut self) {
        self.go_on();
    }
}

pub async fn a_cancel_that_does_not_arrive_is_bounded<D: Database>(_shared: Arc<Server>) {
    let Some(server) = Server::own().map(Halting) else { return };
    let db = D::open(&server.0, 1).await;
    let pid = db.query(&background(), PID).await.unwrap();
    server.halt();
    let begun = Instant::now();
    let answer = db.query(&background().with_timeout(ms(50)), "SELECT 'done' FROM pg_sleep(1)").await;
    let took = begun.elapsed();
    server.go_on();
    // The result is returned, and the connection is not, because the cancel may still arrive.
    assert_eq!(answer.unwrap(), "done");
    assert!(took >= ms(1_000) && took < GRACE * 2, "{took:?}");
    assert_ne!(db.query(&background(), PID).await.unwrap(), pid, "another connection");
}

/// Each query returns while its cancel is in transit.
pub async fn a_cancel_in_transit_affects_no_other_query<D: Database>(_shared: Arc<Server>) {
    let Some(server) = Server::own().map(Halting) else { return };
    let db = D::open(&server.0, 1).await;
    let mut pid = db.query(&background(), PID).await.unwrap();
    let mut late = 0;
    for round in 0..120 {
        server.halt();
        let ctx = background().with_timeout(ms(30));
        let query = async {
            let query = db.query(&ctx, "SELECT 'done' FROM pg_sleep(0.04)");
            // Every third future is dropped meanwhile.
            if round % 3 == 0 { timeout(ms(35), query).await.ok() } else { Some(query.await) }
        };
        let (answer, ()) = tokio::join!(query, async {
            sleep(ms(70)).await;
            server.go_on();
        });
        let next = db.query(&background(), "SELECT pg_backend_pid()::text FROM pg_sleep(0.01)").await;
        let next = next.unwrap_or_else(|failure| panic!("round {round}: {failure:?}"));
        match answer {
            Some(Ok(_done)) => {
                assert_eq!(next, pid, "round {round}: the same connection");
                late += 1;
            }
            // On a busy machine the query itself may have been late.
            Some(Err(failure)) => assert!(failure.ended.is_some(), "round {round}: {failure:?}"),
            None => {}
        }
        pid = next;
    }
    println!("{late} cancels came late");
}

/// Makes the tests of one [`Database`].
#[macro_export]
macro_rules! suite {
    ($database:ty: $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(server) = database::postgres::Server::shared() {
                    database::$test::<$database>(server).await;
                }
            }
        )*
    };
    ($database:ty) => {
        suite!($database:
            a_query_ends_at_the_server
            an_ended_context_runs_no_query
            the_wait_for_a_connection_ends_with_the_context
            a_dropped_handler_leaves_a_working_connection
            a_late_cancel_affects_no_other_query
            a_cancel_affects_no_other_connection
            the_queries_of_a_full_pool_are_canceled
            a_connection_whose_query_is_still_running_is_closed
            a_stuck_query_without_its_caller_closes_the_connection
            a_query_that_panics_closes_its_connection
            a_commit_in_progress_is_waited_for
            a_commit_after_the_end_is_not_sent
            a_commit_without_a_response_is_reported
            a_cancel_that_does_not_arrive_is_bounded
            a_cancel_in_transit_affects_no_other_query
        );
    };
}
