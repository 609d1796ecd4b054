//! A slow and unreliable server of one file: it refuses the first request, closes the connection of the second, stalls
//! in the third, and answers the fourth.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;

/// The length of the file.
pub const LENGTH: usize = 2_000_000;
const CHUNK: usize = 16 * 1024;
/// The interval between chunks of 16 kB: about four megabytes per second.
const PACE: Duration = Duration::from_millis(4);

/// Returns the byte at this position of the file.
pub fn byte(at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

/// Serves the file until the process ends.
pub async fn start() -> io::Result<SocketAddr> {
    let app = Router::new().route("/file", get(file)).with_state(Arc::new(AtomicU32::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(addr)
}

async fn file(
    State(requests): State<Arc<AtomicU32>>,
    headers: HeaderMap,
) -> Result<Response, Infallible> {
    let nth = requests.fetch_add(1, Ordering::Relaxed) + 1;
    if nth == 1 {
        return Ok((StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response());
    }
    let from = headers
        .get(RANGE)
        .and_then(|range| range.to_str().ok())
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.unwrap_or(0).min(LENGTH);
    let chunks = (from..LENGTH)
        .step_by(CHUNK)
        .map(|at| Ok::<_, io::Error>(Bytes::from_iter((at..LENGTH.min(at + CHUNK)).map(byte))));
    let chunks = stream::iter(chunks).then(async |chunk| {
        tokio::time::sleep(PACE).await;
        chunk
    });
    let body = match nth {
        2 => {
            let broken = stream::iter([Err(io::Error::other("the disk is full of holes"))]);
            Body::from_stream(chunks.take(40).chain(broken))
        }
        3 => Body::from_stream(chunks.take(50).chain(stream::pending())),
        _ => Body::from_stream(chunks),
    };
    let mut response = (StatusCode::PARTIAL_CONTENT, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (LENGTH - from).into());
    let range = format!("bytes {from}-{}/{LENGTH}", LENGTH - 1);
    headers.insert(CONTENT_RANGE, range.try_into().expect("digits"));
    Ok(response)
}
