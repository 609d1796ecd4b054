//! A PostgreSQL server for tests: Debian's, on its own loopback port, stopped after the last test that uses it.
//!
//! `TOKIO_CTX_POSTGRES` names another one, as `host=127.0.0.1 port=… user=…`. Without either, a test prints that
//! it is skipped, and how to run it.

#![allow(dead_code)] // Every suite is a crate of its own and uses a part of this.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// A server. Dropping it stops the process and removes its files.
pub struct Server {
    /// `host=… port=… user=…`
    pub address: String,
    own: Option<(Child, PathBuf)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some((server, place)) = &mut self.own else { return };
        // An immediate shutdown does not wait for sessions.
        Command::new("kill").args(["-QUIT", &server.id().to_string()]).status().ok();
        server.wait().ok();
        fs::remove_dir_all(place).ok();
    }
}

impl Server {
    /// Returns the server that the tests of this suite share, or the one in `TOKIO_CTX_POSTGRES`.
    pub fn shared() -> Option<Arc<Server>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        if let Ok(address) = env::var("TOKIO_CTX_POSTGRES") {
            return Some(Arc::new(Server { address, own: None }));
        }
        let mut shared = SHARED.lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Server::start(false)?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Starts a server for this test only.
    pub fn own() -> Option<Server> {
        Server::start(false)
    }

    /// Returns the process ID of a server that this process has started.
    pub fn pid(&self) -> u32 {
        self.own.as_ref().unwrap().0.id()
    }

    /// Starts a server that accepts only TLS connections, with a self-signed certificate for `localhost`.
    pub fn with_tls() -> Option<Server> {
        Server::start(true)
    }

    fn start(tls: bool) -> Option<Server> {
        let Some(bin) = binaries() else {
            eprintln!("skipped: no PostgreSQL (apt-get install postgresql, or TOKIO_CTX_POSTGRES)");
            return None;
        };
        // The port was free a moment ago, and nothing else requests a specific port.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = env::temp_dir().join(format!("tokio-ctx-postgres-{port}"));
        fs::create_dir(&place).unwrap();
        let user = user();
        let command = |program: PathBuf| {
            let mut command = Command::new(program);
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
        let mut initdb = command(bin.join("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "-D"]).arg(&data);
        assert!(initdb.status().unwrap().success(), "initdb failed");
        let mut postgres = command(bin.join("postgres"));
        postgres.args(["-F", "-c", "statement_timeout=300s", "-c", "max_connections=200"]);
        if tls {
            let mut certificate = command("openssl".into());
            certificate.args(["req", "-new", "-x509", "-days", "9", "-nodes", "-subj", "/CN=localhost"]);
            certificate.args([
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ]);
            certificate.args(["-keyout", "data/server.key", "-out", "data/server.crt"]);
            assert!(certificate.status().unwrap().success(), "openssl failed");
            let mut only = command("sh".into());
            only.args(["-c", "echo hostssl all all 127.0.0.1/32 trust > data/pg_hba.conf"]);
            assert!(only.status().unwrap().success());
            postgres.args(["-c", "ssl=on"]);
        }
        postgres.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k"]);
        let server = postgres.args([&place, Path::new("-D"), &data]).spawn().unwrap();
        let server = Server {
            address: format!("host=127.0.0.1 port={port} user=postgres"),
            own: Some((server, place)),
        };
        server.until_ready(&bin, port);
        Some(server)
    }

    fn until_ready(&self, bin: &Path, port: u16) {
        let hang = Instant::now() + crate::common::HANG;
        loop {
            let mut ready = Command::new(bin.join("pg_isready"));
            ready.args(["-h", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null());
            if ready.status().unwrap().success() {
                return;
            }
            assert!(Instant::now() < hang, "the server does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the path of the certificate of a TLS server.
    pub fn certificate(&self) -> PathBuf {
        self.own.as_ref().unwrap().1.join("data/server.crt")
    }

    /// Returns a part of the address, by its name including `=`.
    pub fn part(&self, name: &str) -> &str {
        self.address.split(' ').find_map(|part| part.strip_prefix(name)).expect("host=, port= and user=")
    }

    pub fn url(&self) -> String {
        let [user, host, port] = ["user=", "host=", "port="].map(|name| self.part(name));
        format!("postgres://{user}@{host}:{port}/postgres")
    }
}

/// Returns the newest of Debian's directories with `postgres` and `initdb`.
fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let directories = versions.flatten().map(|version| version.path().join("bin"));
    directories.filter(|bin| bin.join("initdb").exists()).max()
}

/// Returns the user to run as, because PostgreSQL does not run as root.
fn user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0_u32 {
        return None;
    }
    let named = |name| id(&["-u", name]).zip(id(&["-g", name]));
    named("postgres").or(named("nobody"))
}
