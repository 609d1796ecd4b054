//! The recipe for tokio-postgres with a real server: a query ends with its context at the server.

#![cfg(unix)]

#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../../tests/common/database.rs"]
mod database;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use recipe_tokio_postgres::{Database, Error, committed};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_ctx::Context;
use tokio_ctx::query::StoppedKind;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use common::ms;
use database::Failure;
use database::postgres::Server;

#[derive(Clone)]
struct TokioPostgres(Arc<Database<NoTls>>);

fn text(rows: Vec<Row>) -> String {
    rows.first().map(|row| row.get(0)).unwrap_or_default()
}

fn failure(error: Error) -> Failure {
    Failure::new(&error, error.may_have_committed())
}

impl database::Database for TokioPostgres {
    async fn open(server: &Server, _one: u32) -> Self {
        TokioPostgres(Arc::new(Database::new(server.address.parse().unwrap(), NoTls)))
    }

    async fn query(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = self
            .0
            .query(ctx, |client| Box::pin(async move { Ok(text(client.query(&sql, &[]).await?)) }));
        query.await.map_err(failure)
    }

    async fn panic(&self, ctx: &Context, sql: &str, after: Duration) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let query = self.0.query(ctx, move |client| {
            Box::pin(async move {
                tokio::select! {
                    rows = client.query(&sql, &[]) => Ok(text(rows?)),
                    () = sleep(after) => panic!("a query panics"),
                }
            })
        });
        query.await.map_err(failure)
    }

    async fn commit(&self, ctx: &Context, sql: &str) -> Result<String, Failure> {
        let sql = sql.to_owned();
        let transaction = self.0.transact(ctx, |client, commit| {
            Box::pin(async move {
                let transaction = client.transaction().await?;
                let rows = transaction.query(&sql, &[]).await?;
                committed(commit.send(transaction.commit()).await?)?;
                Ok(text(rows))
            })
        });
        transaction.await.map_err(failure)
    }
}

suite!(TokioPostgres);

/// Counts the connections for which TLS is requested.
#[derive(Clone)]
struct Counted(MakeRustlsConnect, Arc<AtomicUsize>);

impl MakeTlsConnect<TcpStream> for Counted {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        assert_eq!(domain, "localhost");
        self.1.fetch_add(1, Ordering::Relaxed);
        MakeTlsConnect::<TcpStream>::make_tls_connect(&mut self.0, domain)
    }
}

/// The cancel uses the same TLS as the query, and refuses a server with another certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_has_the_tls_of_the_query() {
    let Some(server) = Server::with_tls() else { return };
    let mut roots = rustls::RootCertStore::empty();
    let certificate = std::fs::read(server.certificate()).unwrap();
    roots.add(certificate_of(&certificate)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.unwrap().with_root_certificates(roots).with_no_client_auth();
    let connections = Arc::new(AtomicUsize::new(0));
    let tls = Counted(MakeRustlsConnect::new(tls), connections.clone());

    let address = server.address.replace("127.0.0.1", "localhost") + " sslmode=require";
    let db = Database::new(address.parse().unwrap(), tls);
    for round in 1..=20 {
        let ctx = Context::background().with_timeout(ms(100));
        let query = db.query(&ctx, |client| {
            Box::pin(async move { Ok(client.execute("SELECT pg_sleep(3600)", &[]).await?) })
        });
        let stopped = match query.await {
            Err(Error::Stopped(stopped)) => stopped,
            other => panic!("it sleeps: {other:?}"),
        };
        assert_eq!(stopped.kind(), StoppedKind::Canceled);
        // One connection, and at least one cancel each.
        assert!(connections.load(Ordering::Relaxed) > round);
        let next = Context::background();
        let next = db.query(&next, |client| {
            Box::pin(async move {
                Ok(text(
                    client
                        .query("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
                        .await?,
                ))
            })
        });
        assert_eq!(next.await.unwrap(), "true");
    }
}

/// Reads the content of a PEM file.
fn certificate_of(pem: &[u8]) -> rustls::pki_types::CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap()
}
