//! What is still running? A service with three faults, under load, and a watch that names the lines of the faults.
//!
//! `/order/{id}` is correct. The other routes have faults that keep a service from shutting down, or keep a core busy
//! for clients that disconnected long ago: `/report` does not check its context, `/thumbnail` blocks its worker, and
//! `/subscribe` leaks the context of its request.
//!
//! Without arguments, the program finds one fault after the other in the text of the watch, shuts the service down, and
//! checks each step:
//!
//! ```text
//! cargo run --example watch
//! ```
//!
//! With `--serve`, it runs until Ctrl-C or SIGTERM, so that you can open the page. The shutdown then takes five seconds:
//!
//! ```text
//! cargo run --example watch -- --serve 9000
//! xdg-open http://127.0.0.1:9000/        # the page, which shows the shutdown after Ctrl-C
//! curl http://127.0.0.1:9000/text
//! kill -USR1 $(pgrep -x watch)           # the same text, on stderr
//! ```
//!
//! This file contains the setup. `watch/service.rs` contains the service with its faults, `watch/load.rs` its clients, and
//! `watch/steps.rs` the steps.

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
#[path = "watch/steps.rs"]
mod steps;

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
    // Before anything else, because contexts and tasks from before are not tracked.
    let watch = watch::install();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let done = runtime.map_err(BoxError::from).and_then(|runtime| {
        let done = runtime.block_on(run(watch, port));
        // Dropping the runtime would wait for the tasks that do not stop.
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

/// Runs until a signal, or, without a port for the watch, runs the steps.
async fn run(watch: Watch, port: Option<u16>) -> Result<(), BoxError> {
    let page = serve_watch(watch, port.unwrap_or(0))?;
    println!("the watch at http://{page}/");
    if port.is_none() {
        return steps::run(watch, page).await;
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
    // It does not stop within the grace period.
    shop.named("mailer").spawn(service::mailer(shutdown.hard().clone()));
    shop.spawn(axum::serve(listener, app).with_graceful_shutdown(shutdown.begun()).into_future());
    Ok(at)
}

/// Serves the watch on a separate port and runtime, so that it responds during a shutdown, and when handlers block all
/// workers of the service.
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
        // An error means that the rest of the program has ended.
        let _ = failed.send(served);
    })?;
    match failure.try_recv() {
        Ok(served) => Err(format!("the watch cannot be served: {served:?}").into()),
        Err(_) => Ok(at),
    }
}

/// Returns the port in the arguments, if there is one.
fn port(mut args: impl Iterator<Item = String>) -> Result<Option<u16>, String> {
    let Some(arg) = args.next() else { return Ok(None) };
    let value = args.next();
    match (arg.as_str(), value.as_deref().map(str::parse), args.next()) {
        ("--serve", Some(Ok(port)), None) => Ok(Some(port)),
        ("--serve", None, None) => Ok(Some(9000)),
        _ => Err("the only argument is --serve, with an optional port: --serve 9000".to_owned()),
    }
}
