//! A PostgreSQL for tests: Debian's, on a loopback port of its own, gone with the last test that uses it.
//!
//! `TOKIO_CTX_POSTGRES` names another one, as `host=127.0.0.1 port=… user=…`. Without either a test says that it is skipped, and
//! how to run it.

#![allow(dead_code)] // Every suite is a crate of its own and uses its part of this.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// A server; gone when dropped, with all it wrote.
pub struct Server {
    /// `host=… port=… user=…`
    pub address: String,
    own: Option<(Child, PathBuf)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some((server, place)) = &mut self.own else { return };
        // Immediate: what still runs is none of this test's business.
        Command::new("kill").args(["-QUIT", &server.id().to_string()]).status().ok();
        server.wait().ok();
        fs::remove_dir_all(place).ok();
    }
}

impl Server {
    /// The server that tests of this suite share, or the one that is named.
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

    /// A server that this test alone uses.
    pub fn own() -> Option<Server> {
        Server::start(false)
    }

    /// The process of an own server.
    pub fn pid(&self) -> u32 {
        self.own.as_ref().unwrap().0.id()
    }

    /// A server that takes TLS connections alone, with a certificate for `localhost` that it has signed itself.
    pub fn with_tls() -> Option<Server> {
        Server::start(true)
    }

    fn start(tls: bool) -> Option<Server> {
        let Some(bin) = binaries() else {
            eprintln!("skipped: no PostgreSQL (apt-get install postgresql, or TOKIO_CTX_POSTGRES)");
            return None;
        };
        // Free a moment ago, and nothing else asks for one by number.
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
            let mut asked = Command::new(bin.join("pg_isready"));
            asked.args(["-h", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null());
            if asked.status().unwrap().success() {
                return;
            }
            assert!(Instant::now() < hang, "the server does not come up");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The certificate, of a server with TLS.
    pub fn certificate(&self) -> PathBuf {
        self.own.as_ref().unwrap().1.join("data/server.crt")
    }

    /// A part of the address, by its name with `=`.
    pub fn part(&self, name: &str) -> &str {
        self.address.split(' ').find_map(|part| part.strip_prefix(name)).expect("host=, port= and user=")
    }

    pub fn url(&self) -> String {
        let [user, host, port] = ["user=", "host=", "port="].map(|name| self.part(name));
        format!("postgres://{user}@{host}:{port}/postgres")
    }
}

/// The directory of Debian's `postgres` and `initdb`, the newest.
fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let directories = versions.flatten().map(|version| version.path().join("bin"));
    directories.filter(|bin| bin.join("initdb").exists()).max()
}

/// The user to run as: PostgreSQL does not run as root.
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
