//! The recipes for PostgreSQL: with its context, a query ends at the server too.
//!
//! They run against a server of their own, on a loopback port, where Debian's `postgresql` is installed; or
//! against the one that `TOKIO_CTX_POSTGRES` names, as `host=127.0.0.1 port=… user=…`. Without either they say so and do
//! nothing else.

#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use recipes::{sqlx as by_sqlx, tokio_postgres as by_tokio_postgres};
use sqlx::postgres::PgPoolOptions;
use tokio::time::{Instant, sleep};
use tokio_ctx::Context;
use tokio_postgres::{Client, NoTls};

use common::{HANG, ms};

/// A server; gone when dropped, with all it wrote.
struct Postgres {
    port: u16,
    place: PathBuf,
    server: Child,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Fast: it says goodbye to nobody, and leaves no process behind.
        Command::new("kill").args(["-INT", &self.server.id().to_string()]).status().ok();
        self.server.wait().ok();
        fs::remove_dir_all(&self.place).ok();
    }
}

/// The directory of Debian's `postgres` and `initdb`, the newest.
fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let directories = versions.flatten().map(|version| version.path().join("bin"));
    directories.filter(|bin| bin.join("initdb").exists()).max()
}

/// Who to run as: PostgreSQL does not run as root.
fn user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let said = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(said.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0_u32 {
        return None;
    }
    let named = |name| id(&["-u", name]).zip(id(&["-g", name]));
    named("postgres").or(named("nobody"))
}

impl Postgres {
    fn start() -> Option<Postgres> {
        let bin = binaries()?;
        // Free a moment ago, and nobody else asks for one by number.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = env::temp_dir().join(format!("tokio-ctx-postgres-{port}"));
        fs::create_dir(&place).unwrap();
        let user = user();
        let command = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command.current_dir(&place).stdout(Stdio::null()).stderr(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        if let Some((uid, gid)) = user {
            chown(&place, Some(uid), Some(gid)).unwrap();
        }
        let data = place.join("data");
        let made = command("initdb")
            .args(["--auth=trust", "--username=postgres", "--no-sync", "-D"])
            .arg(&data)
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        let server = command("postgres")
            .args([
                "-F",
                "-c",
                "statement_timeout=300s",
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-k",
            ])
            .args([&place, Path::new("-D"), &data])
            .spawn();
        Some(Postgres { port, place, server: server.unwrap() })
    }

    fn address(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }
}

/// A server and its address; the server is none of ours if it was named.
fn server() -> Option<(Option<Postgres>, String)> {
    if let Ok(address) = env::var("TOKIO_CTX_POSTGRES") {
        return Some((None, address));
    }
    let Some(postgres) = Postgres::start() else {
        eprintln!("skipped: no PostgreSQL (apt-get install postgresql, or TOKIO_CTX_POSTGRES)");
        return None;
    };
    let address = postgres.address();
    Some((Some(postgres), address))
}

async fn connect(address: &str) -> Client {
    let hang = Instant::now() + HANG;
    loop {
        match tokio_postgres::connect(address, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(Instant::now() < hang, "the server does not answer: {error}"),
        }
        sleep(ms(20)).await;
    }
}

fn part<'a>(address: &'a str, name: &str) -> &'a str {
    address.split(' ').find_map(|part| part.strip_prefix(name)).expect("host=, port= and user=")
}

/// Whether the server is at work on a query with these words in it.
async fn is_running(observer: &Client, words: &str) -> bool {
    let active = "SELECT count(*) FROM pg_stat_activity
                  WHERE state = 'active' AND pid <> pg_backend_pid() AND strpos(query, $1) > 0";
    observer.query_one(active, &[&words]).await.unwrap().get::<_, i64>(0) > 0
}

async fn until_running(observer: &Client, words: &str, running: bool) {
    let hang = Instant::now() + HANG;
    while is_running(observer, words).await != running {
        assert!(Instant::now() < hang, "it never came to running = {running}");
        sleep(ms(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokio_postgres_the_server_stops() {
    let Some((_server, address)) = server() else { return };
    let observer = connect(&address).await;
    let client = connect(&address).await;
    let at = format!("{}:{}", part(&address, "host="), part(&address, "port=")).parse().unwrap();

    // By a cancel.
    let ctx = Context::background().with_cancel();
    let (result, ()) =
        tokio::join!(by_tokio_postgres::query(&ctx, &client, at, "SELECT pg_sleep(3600)"), async {
            until_running(&observer, "pg_sleep(3600)", true).await;
            ctx.cancel();
        });
    assert!(by_tokio_postgres::is_canceled(&result.unwrap_err()));
    until_running(&observer, "pg_sleep(3600)", false).await;

    // By a deadline, of a query that computes; the connection is good for the next each time.
    for _ in 0..20 {
        let ctx = Context::background().with_timeout(ms(20));
        let runaway = "DO 'BEGIN LOOP END LOOP; END'";
        let result = by_tokio_postgres::query(&ctx, &client, at, runaway).await;
        assert!(by_tokio_postgres::is_canceled(&result.unwrap_err()));
        let rows = by_tokio_postgres::query(&Context::background(), &client, at, "SELECT 3").await;
        assert_eq!(rows.unwrap()[0].get::<_, i32>(0), 3);
    }
    assert!(!is_running(&observer, "LOOP").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_sqlx_the_server_stops() {
    let Some((_server, address)) = server() else { return };
    let observer = connect(&address).await;
    let [user, host, port] = ["user=", "host=", "port="].map(|name| part(&address, name));
    let url = format!("postgres://{user}@{host}:{port}/postgres");
    let pool = PgPoolOptions::new().max_connections(3).connect(&url).await.unwrap();

    let ctx = Context::background().with_cancel();
    let (result, ()) = tokio::join!(by_sqlx::query(&ctx, &pool, "SELECT pg_sleep(7200)"), async {
        until_running(&observer, "pg_sleep(7200)", true).await;
        ctx.cancel();
    });
    assert!(by_sqlx::is_canceled(&result.unwrap_err()));
    until_running(&observer, "pg_sleep(7200)", false).await;

    for _ in 0..20 {
        let ctx = Context::background().with_timeout(ms(20));
        let runaway = "DO 'BEGIN LOOP END LOOP; END'";
        let result = by_sqlx::query(&ctx, &pool, runaway).await;
        assert!(by_sqlx::is_canceled(&result.unwrap_err()));
        let rows = by_sqlx::query(&Context::background(), &pool, "SELECT 3").await;
        assert_eq!(rows.unwrap().len(), 1);
    }
    assert!(!is_running(&observer, "LOOP").await);
}
