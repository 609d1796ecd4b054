//! The requirements for every PostgreSQL recipe, whatever its driver: `suite!` makes the tests of a [`Database`].
//!
//! `pg_stat_activity` shows what the server runs. Tests share one server, and find their own queries by a comment.

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

/// A recipe, and its connections.
pub trait Database: Clone + Send + Sync + 'static {
    /// Opens at most this many connections, if it can have more than one.
    fn open(server: &Server, connections: u32) -> impl Future<Output = Self> + Send;

    /// Runs a query, and returns the text in the first column of the first row.
    fn query(&self, ctx: &Context, sql: &str) -> impl Future<Output = Answer> + Send;

    /// Runs a query during which its own function panics.
    fn panic(&self, ctx: &Context, sql: &str, after: Duration) -> impl Future<Output = Answer> + Send;

    /// Runs one statement and commits it.
    fn commit(&self, ctx: &Context, sql: &str) -> impl Future<Output = Answer> + Send;
}

const RUNAWAY: &str = "DO 'BEGIN LOOP END LOOP; END'";

/// A cancel does not end this, except between two iterations of its loop.
const UNCANCELABLE: &str = "DO $$ BEGIN LOOP
    BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
END LOOP; END $$";

const PID: &str = "SELECT pg_backend_pid()::text";

/// The grace of the recipes.
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

    /// Returns the number of running queries that contain this text.
    async fn running(&self, words: &str) -> i64 {
        let active = "SELECT count(*) FROM pg_stat_activity
                      WHERE state = 'active' AND pid <> pg_backend_pid() AND strpos(query, $1) > 0";
        self.0.query_one(active, &[&words]).await.unwrap().get(0)
    }

    async fn until_running(&self, words: &str, running: i64) {
        let hang = Instant::now() + HANG;
        while self.running(words).await != running {
            assert!(Instant::now() < hang, "never reached running = {running}");
            sleep(ms(2)).await;
        }
    }

    /// Creates an empty table.
    async fn table(&self, name: &str) {
        let create = format!("DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (n int)");
        self.0.batch_execute(&create).await.unwrap();
    }

    /// Creates a table. Committing an insert into it takes this long.
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

/// Checks that the server canceled the query because its context had ended.
fn assert_canceled(answer: Answer) {
    let failure = answer.unwrap_err();
    assert_eq!(failure.kind, Some(StoppedKind::Canceled), "{failure:?}");
}

pub async fn the_server_stops<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let pid = db.query(&background(), PID).await.unwrap();

    // By a cancel.
    let ctx = background().with_cancel();
    let sql = sleeps("stops by a cancel");
    let (answer, ()) = tokio::join!(db.query(&ctx, &sql), async {
        observer.until_running("stops by a cancel", 1).await;
        ctx.cancel();
    });
    assert_canceled(answer);
    // By itself it would take an hour.
    observer.until_running("stops by a cancel", 0).await;

    // By a deadline, of a query that computes; the connection is good for the next each time.
    for _ in 0..20 {
        let answer = db.query(&background().with_timeout(ms(100)), RUNAWAY).await;
        assert_canceled(answer);
        assert_eq!(db.query(&background(), PID).await.unwrap(), pid, "the same connection");
    }
}

pub async fn an_ended_context_runs_nothing<D: Database>(server: Arc<Server>) {
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

/// With a pool of one connection, which is in use.
pub async fn the_wait_for_a_connection_counts<D: Database>(server: Arc<Server>) {
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

/// The layer drops the handler at its deadline.
pub async fn a_handler_that_is_dropped_leaves_a_connection_that_works<D: Database>(server: Arc<Server>) {
    async fn report<D: Database>(ctx: Context, State(db): State<D>) -> StatusCode {
        // The server may be faster than the layer.
        assert_canceled(db.query(&ctx, &sleeps("a handler")).await);
        StatusCode::GATEWAY_TIMEOUT
    }
    /// Does not know the deadline.
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
        // The next query on this connection waits until that one has ended, and is not canceled.
        for _ in 0..3 {
            assert_eq!(db.query(&background(), PID).await.unwrap(), pid, "the same connection");
        }
    }
    assert_eq!(observer.running("a handler").await, 0);
}

/// The context ends, or the future is dropped, at about the time when the query returns.
pub async fn a_late_cancel_hits_no_other_query<D: Database>(server: Arc<Server>) {
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
        // Started immediately, and long enough to be hit by a late cancel.
        for _ in 0..2 {
            let next = db.query(&background(), "SELECT pg_sleep(0.001)::text").await;
            assert!(next.is_ok(), "round {round}: {next:?}");
        }
    }
}

/// Repeated cancels do not affect the other connections of the same pool.
pub async fn a_cancel_hits_no_neighbor<D: Database>(server: Arc<Server>) {
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

/// Every connection of the pool runs a query that is canceled.
pub async fn a_full_pool_is_canceled<D: Database>(server: Arc<Server>) {
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

/// If the server ignores the cancel, the connection is closed and replaced.
pub async fn a_connection_whose_query_continues_is_closed<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let sql = format!("{UNCANCELABLE} /* uncancelable */");
    for _ in 0..10 {
        let pid = db.query(&background(), PID).await.unwrap();
        let begun = Instant::now();
        let failure = db.query(&background().with_timeout(ms(200)), &sql).await.unwrap_err();
        if failure.kind == Some(StoppedKind::Unknown) {
            assert!(begun.elapsed() >= GRACE && begun.elapsed() < GRACE * 3);
            assert_ne!(db.query(&background(), PID).await.unwrap(), pid, "another connection");
            // The server finds it closed.
            return observer.until_running("/* uncancelable */", 0).await;
        }
        assert!(failure.ended.is_some(), "{failure:?}");
    }
    panic!("the server has canceled the query");
}

/// The same, after a drop.
pub async fn a_connection_of_a_dropped_caller_is_closed_if_its_query_continues<D: Database>(
    server: Arc<Server>,
) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    let sql = format!("{UNCANCELABLE} /* uncancelable and dropped */");
    for _ in 0..10 {
        let pid = db.query(&background(), PID).await.unwrap();
        let ctx = background();
        assert!(timeout(ms(200), db.query(&ctx, &sql)).await.is_err());
        // Meanwhile no caller gets this connection.
        let waits = db.query(&background().with_timeout(ms(100)), PID).await;
        if db.query(&background(), PID).await.unwrap() != pid {
            assert!(waits.unwrap_err().ended.unwrap().is_deadline_exceeded());
            return observer.until_running("/* uncancelable and dropped */", 0).await;
        }
    }
    panic!("the server has canceled the query");
}

pub async fn a_query_that_panics_leaves_nothing_behind<D: Database>(server: Arc<Server>) {
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

pub async fn a_commit_that_is_sent_is_waited_for<D: Database>(server: Arc<Server>) {
    let (observer, db) = (Observer::of(&server).await, D::open(&server, 1).await);
    observer.slow_to_commit("sent", 0.5).await;
    db.query(&background(), PID).await.unwrap();

    let ctx = background().with_timeout(ms(200));
    db.commit(&ctx, "INSERT INTO sent VALUES (1)").await.unwrap();
    assert!(ctx.is_done(), "it ended during the commit");
    assert_eq!(observer.rows("sent").await, 1);

    // Also if its caller is dropped.
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

pub async fn a_commit_without_a_response_has_an_unknown_outcome<D: Database>(server: Arc<Server>) {
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

    // A commit whose connection is lost has no answer either.
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

/// A server used by one test, whose postmaster can be suspended. It then accepts neither connections nor cancels.
struct Suspendable(Server);

impl Suspendable {
    fn signal(&self, signal: &str) {
        let pid = self.0.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn suspend(&self) {
        self.signal("-STOP");
    }

    fn resume(&self) {
        self.signal("-CONT");
    }
}

impl Drop for Suspendable {
    fn drop(&mut self) {
        self.resume();
    }
}

pub async fn a_cancel_that_does_not_reach_the_server_is_bounded<D: Database>(_shared: Arc<Server>) {
    let Some(server) = Server::own().map(Suspendable) else { return };
    let db = D::open(&server.0, 1).await;
    let pid = db.query(&background(), PID).await.unwrap();
    server.suspend();
    let begun = Instant::now();
    let answer = db.query(&background().with_timeout(ms(500)), "SELECT 'done' FROM pg_sleep(1.5)").await;
    let took = begun.elapsed();
    server.resume();
    // A finished result is not discarded. The cancel may still arrive.
    assert_eq!(answer.unwrap(), "done");
    assert!(took >= ms(1_500) && took < GRACE * 2, "{took:?}");
    assert_ne!(db.query(&background(), PID).await.unwrap(), pid, "another connection");
}

/// The query returns while its cancel is on its way, every time.
pub async fn a_cancel_that_comes_late_hits_no_other_query<D: Database>(_shared: Arc<Server>) {
    let Some(server) = Server::own().map(Suspendable) else { return };
    let db = D::open(&server.0, 1).await;
    let mut pid = db.query(&background(), PID).await.unwrap();
    let mut late = 0;
    for round in 0..120 {
        server.suspend();
        let ctx = background().with_timeout(ms(30));
        let query = async {
            let query = db.query(&ctx, "SELECT 'done' FROM pg_sleep(0.04)");
            // Every third one is dropped meanwhile.
            if round % 3 == 0 { timeout(ms(35), query).await.ok() } else { Some(query.await) }
        };
        let (answer, ()) = tokio::join!(query, async {
            sleep(ms(70)).await;
            server.resume();
        });
        let next = db.query(&background(), "SELECT pg_backend_pid()::text FROM pg_sleep(0.01)").await;
        let next = next.unwrap_or_else(|failure| panic!("round {round}: {failure:?}"));
        match answer {
            Some(Ok(_done)) => {
                assert_eq!(next, pid, "round {round}: the same connection");
                late += 1;
            }
            // The query itself was late because the machine was busy.
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
            the_server_stops
            an_ended_context_runs_nothing
            the_wait_for_a_connection_counts
            a_handler_that_is_dropped_leaves_a_connection_that_works
            a_late_cancel_hits_no_other_query
            a_cancel_hits_no_neighbor
            a_full_pool_is_canceled
            a_connection_whose_query_continues_is_closed
            a_connection_of_a_dropped_caller_is_closed_if_its_query_continues
            a_query_that_panics_leaves_nothing_behind
            a_commit_that_is_sent_is_waited_for
            a_commit_after_the_end_is_not_sent
            a_commit_without_a_response_has_an_unknown_outcome
            a_cancel_that_does_not_reach_the_server_is_bounded
            a_cancel_that_comes_late_hits_no_other_query
        );
    };
}
