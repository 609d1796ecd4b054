//! A load generator for machines without `wrk`: keep-alive connections, each with one request at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Load;

const CONNECTIONS: usize = 32;

pub fn load(at: SocketAddr, path: &str, headers: &[&str], seconds: u64) -> Load {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\n{headers}\r\n");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let start = Instant::now();
        let until = start + Duration::from_secs(seconds);
        let connection = |_| tokio::spawn(send_requests(at, request.clone(), until));
        let connections: Vec<_> = (0..CONNECTIONS).map(connection).collect();
        let mut answers = 0;
        for connection in connections {
            answers += connection.await.expect("no panic");
        }
        Load { requests: answers as f64, seconds: start.elapsed().as_secs_f64() }
    })
}

/// Answers are small, so each arrives in one read.
async fn send_requests(at: SocketAddr, request: String, until: Instant) -> u64 {
    let mut connection = TcpStream::connect(at).await.expect("it listens");
    let mut answer = [0; 1024];
    let mut answers = 0;
    while Instant::now() < until {
        connection.write_all(request.as_bytes()).await.expect("it reads");
        let length = connection.read(&mut answer).await.expect("it answers");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        answers += 1;
    }
    answers
}
