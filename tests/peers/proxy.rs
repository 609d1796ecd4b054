//! A proxy between client and server, which is a process with a configuration of its own.

use std::convert::Infallible;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_ctx::Context;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tower::{Layer, service_fn};

use crate::common::{HANG, ms};
use crate::wire::{Server, Version, serve};

/// A proxy, which is killed when dropped.
pub struct Proxy {
    pub at: SocketAddr,
    directory: PathBuf,
    _child: Child,
}

impl Proxy {
    /// Starts a proxy that listens on a port of its own. `configure` gets its address and an empty directory, and returns
    /// the command.
    pub async fn start(name: &str, configure: impl FnOnce(SocketAddr, &Path) -> Command) -> Proxy {
        // The port was free a moment ago, and no other test asks for a port by number.
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = std::env::temp_dir().join(format!("tokio-ctx-{name}-{}", at.port()));
        fs::create_dir_all(&directory).unwrap();
        let child = configure(at, &directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let proxy = Proxy { at, directory, _child: child };
        let hang = Instant::now() + HANG;
        while TcpStream::connect(at).await.is_err() {
            assert!(Instant::now() < hang, "{name} does not listen");
            sleep(ms(5)).await;
        }
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// A server that never responds, and reports the context of each request.
pub async fn upstream(inbound: Inbound) -> (Server, mpsc::UnboundedReceiver<Context>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    let service = service_fn(move |_: Request<Incoming>| {
        seen.send(Context::current()).unwrap();
        std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
    });
    let layer = ServerLayer::new(Context::background(), inbound);
    (serve(Version::Http1, layer.layer(service)).await, contexts)
}
