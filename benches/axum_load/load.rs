//! Load for a server, by `wrk` or by a client of its own, and its cost for the server.

use std::fs;
use std::net::SocketAddr;
use std::process::{self, Command};

#[path = "client.rs"]
mod client;

/// The result of a load.
pub struct Load {
    pub requests: f64,
    pub seconds: f64,
}

pub fn load(at: SocketAddr, path: &str, headers: &[&str], seconds: u64) -> Load {
    if has_wrk() { wrk(at, path, headers, seconds) } else { client::load(at, path, headers, seconds) }
}

/// Returns the CPU time, in microseconds, of the threads of a server's process. In this process, the first thread does
/// not count, because it sends the requests. Linux only.
pub fn busy(server: u32) -> Option<f64> {
    let sender = process::id();
    let mut nanos = 0.0;
    for thread in fs::read_dir(format!("/proc/{server}/task")).ok()?.flatten() {
        if server != sender || thread.file_name() != *sender.to_string() {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            nanos += text.split(' ').next()?.parse::<f64>().ok()?;
        }
    }
    Some(nanos / 1e3)
}

pub fn has_wrk() -> bool {
    Command::new("wrk").arg("-v").output().is_ok()
}

fn wrk(at: SocketAddr, path: &str, headers: &[&str], seconds: u64) -> Load {
    let url = format!("http://{at}{path}");
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c32", &format!("-d{seconds}s"), &url]);
    for header in headers {
        command.args(["-H", header]);
    }
    let text = command.output().expect("wrk runs").stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("Non-2xx"), "{text}");
    // "  20434 requests in 2.00s, 2.14MB read"
    let counted = text.lines().find_map(|line| line.split_once(" requests in "));
    let (requests, rest) = counted.unwrap_or_else(|| panic!("no count in: {text}"));
    let seconds = rest.split_once('s').map(|(seconds, _)| seconds.parse().expect("a number"));
    Load {
        requests: requests.trim().parse().expect("a number"),
        seconds: seconds.expect("how long it took"),
    }
}
