//! What is still running? A service under load that has three faults, and a watch that names their lines.
//!
//! `/order/{id}` is as it should be. The others are not, in the three ways that keep a service from shutting down, or burn
//! a core for clients that left long ago: `/report` ignores its end, `/thumbnail` blocks its worker, `/subscribe` leaks the
//! context of its request.
//!
//! Without arguments it lets the load run, finds one fault after the other in the text of the watch, drains, and
//! checks each step:
//!
//! ```text
//! cargo run --example watch
//! ```
//!
//! Or it stays up, until Ctrl-C or SIGTERM, for a look at the page and at a drain that takes five seconds:
//!
//! ```text
//! cargo run --example watch -- --serve 9000
//! xdg-open http://127.0.0.1:9000/        # the page; it shows the drain after Ctrl-C as well
//! curl http://127.0.0.1:9000/text
//! kill -USR1 $(pgrep -x watch)           # the same text, on stderr
//! ```
//!
//! This file sets it up. Beside it, `watch/service.rs` has the service with its faults, `watch/load.rs` its clients, and
//! `watch/story.rs` what is found.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_ctx::signal::until_termination;
use tokio_ctx::watch::{self, Watch};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context, Shutdown};

#[path = "watch/load.rs"]
mod load;
#[path = "watch/service.rs"]
mod service;
#[path = "watch/story.rs"]
mod story;

/// How long a request may take.
const BUDGET: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let port = match port(std::env::args().skip(1)) {
        Ok(port) => port,
        Err(message) => {
            eprintln!("watch: {message}");
            return ExitCode::from(2);
        }
    };
    // Before anything else: what is derived or spawned before is not seen.
    let watch = watch::install();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let done = runtime.map_err(BoxError::from).and_then(|runtime| {
        let done = runtime.block_on(run(watch, port));
        // What ignores its end would keep a runtime that is dropped from being gone.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Stays up until a signal; without a port for the watch, goes through the story.
async fn run(watch: Watch, port: Option<u16>) -> Result<(), BoxError> {
    let page = serve_watch(watch, port.unwrap_or(0))?;
    println!("the watch at http://{page}/");
    if port.is_none() {
        return story::run(watch, page).await;
    }
    #[cfg(unix)]
    watch.dump_on(tokio_ctx::signal::Signal::USR1)?;
    let until_signal = until_termination(&Context::background())?;
    let shutdown = Shutdown::new(&until_signal).grace(10 * BUDGET).cleanup(10 * BUDGET);
    let shop = serve(&shutdown).await?;
    println!("the service at http://{shop}/");
    let load = load::Load::start(shop, load::Faults::Now)?;
    shutdown.soft().done().await;
    load.stop();
    println!("{}", shutdown.wait().await);
    Ok(())
}

/// Serves the service until the shutdown begins, and returns its address.
async fn serve(shutdown: &Shutdown) -> Result<SocketAddr, BoxError> {
    let shop = shutdown.named("shop");
    let layer = ServerLayer::with_shutdown(&shop, Inbound::new().max_budget(BUDGET));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let at = listener.local_addr()?;
    let app = service::router().layer(layer);
    // It sends what is left in its queue, which takes longer than the grace.
    shop.named("mailer").spawn(service::mailer(shutdown.hard().clone()));
    shop.spawn(axum::serve(listener, app).with_graceful_shutdown(shutdown.begun()).into_future());
    Ok(at)
}

/// Serves the watch on a port and a runtime of its own, so that it answers during a drain, and also when handlers block
/// every worker of the service.
fn serve_watch(watch: Watch, port: u16) -> Result<SocketAddr, BoxError> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (failed, failure) = mpsc::channel();
    thread::Builder::new().name("watch".to_owned()).spawn(move || {
        let served = runtime.block_on(async {
            let routes: Router = watch.routes();
            let listener = TcpListener::from_std(listener)?;
            axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>()).await
        });
        // An error: the rest of the program has ended.
        let _ = failed.send(served);
    })?;
    match failure.try_recv() {
        Ok(served) => Err(format!("the watch cannot be served: {served:?}").into()),
        Err(_) => Ok(at),
    }
}

/// The port that the arguments ask for, if any, or what is wrong with them.
fn port(mut args: impl Iterator<Item = String>) -> Result<Option<u16>, String> {
    let Some(arg) = args.next() else { return Ok(None) };
    let value = args.next();
    match (arg.as_str(), value.as_deref().map(str::parse), args.next()) {
        ("--serve", Some(Ok(port)), None) => Ok(Some(port)),
        ("--serve", None, None) => Ok(Some(9000)),
        _ => Err("the only argument is --serve, with a port or without: --serve 9000".to_owned()),
    }
}
