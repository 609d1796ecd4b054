//! A hyper server that is part of a shutdown.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_ctx::Shutdown;

use super::client::answer;

/// Accepts connections until the soft context ends. The shutdown waits for the accept loop and for the
/// connections.
pub fn start(listener: TcpListener, shutdown: &Shutdown) {
    let http = shutdown.named("hyper");
    http.spawn(accept(listener, http.clone()));
}

async fn accept(listener: TcpListener, http: Shutdown) {
    while let Ok(accepted) = http.soft().run(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let connection = http.named(peer.to_string());
                connection.spawn(serve(stream, http.clone()));
            }
            Err(error) => {
                // For example, too many open files. Waits until some have been closed.
                eprintln!("hyper: accept: {error}");
                let _ended = http.soft().sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // The listener is dropped here, so new connections are refused.
}

/// Serves a connection. When the soft context ends, finishes only the request in progress.
async fn serve(stream: TcpStream, http: Shutdown) {
    let service = service_fn(|request| respond(request, &http));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _soft_end = http.soft().done() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        eprintln!("hyper: {error}");
    }
}

/// Makes each request a named part of the shutdown, which is canceled when the hard context ends.
async fn respond(request: Request<Incoming>, http: &Shutdown) -> Result<Response<String>, Infallible> {
    let request_line = format!("{} {}", request.method(), request.uri().path());
    let work = http.named(request_line).track(answer(request.uri().path()));
    let mut response = Response::new(String::new());
    match http.hard().run(work).await {
        Ok(text) => *response.body_mut() = text,
        Err(stopped) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *response.body_mut() = stopped.to_string();
        }
    }
    Ok(response)
}
