//! The client: what happens when a server is shut down.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_ctx::shutdown::Fate;
use tokio_ctx::{BoxError, Context, Shutdown};

/// How long the slow answer takes, which is less than the grace period.
const SLOW: Duration = Duration::from_millis(200);
const GRACE: Duration = Duration::from_millis(1200);
const CLEANUP: Duration = Duration::from_millis(400);
/// The time limit of the client. Without a fault, nothing takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of requests that a handler has started, in all servers.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// The handlers of both servers: one is slow, and one hangs.
pub async fn answer(path: &str) -> String {
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    match path {
        "/slow" => sleep(SLOW).await,
        _ => pending().await,
    }
    format!("{path} is done\n")
}

/// Starts a server, sends both requests, shuts the server down meanwhile, and checks the results.
pub async fn check(name: &str, start: fn(TcpListener, &Shutdown)) -> Result<(), BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let shutdown = Shutdown::new(&Context::background()).grace(GRACE).cleanup(CLEANUP);
    start(listener, &shutdown);
    // Ignores the context.
    shutdown.named("mailer").spawn(pending::<()>());

    let before = UNDER_WAY.load(Ordering::SeqCst);
    let slow = tokio::spawn(get(address, "/slow"));
    let stuck = tokio::spawn(get(address, "/stuck"));
    timeout(PATIENCE, async {
        while UNDER_WAY.load(Ordering::SeqCst) < before + 2 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await?;

    let begun = Instant::now();
    shutdown.begin("new version deployed");
    let phases = async { tokio::join!(shutdown.wait(), refused(address), slow, stuck) };
    let (report, refused_at, slow, stuck) = timeout(PATIENCE, phases).await?;
    let after = |at: Instant| (at - begun).as_millis();

    println!("{name}: new connections refused after {} ms", after(refused_at));
    let (slow, slow_at) = slow??;
    expect(slow.starts_with("HTTP/1.1 200 OK"), "the slow request to be answered", &slow)?;
    println!("{name}: /slow answered after {} ms: {}", after(slow_at), first_line(&slow));
    let (stuck, stuck_at) = stuck??;
    expect(stuck.starts_with("HTTP/1.1 503 "), "the stuck request to be turned away", &stuck)?;
    println!("{name}: /stuck canceled after {} ms: {}", after(stuck_at), last_line(&stuck));
    println!("{name}: {report}");

    expect(refused_at < stuck_at, "refusals within the grace", &after(refused_at))?;
    expect(slow_at < stuck_at, "an answer within the grace", &after(slow_at))?;
    let fate = |name: &str| {
        let overdue = report.overdue().iter().find(|overdue| overdue.name() == Some(name));
        overdue.map(|overdue| overdue.fate())
    };
    let names = [format!("{name}/GET /slow"), format!("{name}/GET /stuck"), "mailer".into()];
    let fates = names.map(|name| fate(&name));
    expect(fates == [None, Some(Fate::Canceled), Some(Fate::Aborted)], "other fates", &fates)
}

/// Requests a path on a new connection. Returns the response, and the time when it was complete.
async fn get(address: SocketAddr, path: &'static str) -> io::Result<(String, Instant)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok((response, Instant::now()))
}

/// Connects repeatedly until a connection is refused.
async fn refused(address: SocketAddr) -> Instant {
    while TcpStream::connect(address).await.is_ok() {
        sleep(Duration::from_millis(1)).await;
    }
    Instant::now()
}

fn expect(holds: bool, what: &str, instead: &dyn std::fmt::Debug) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("expected {what}, but it was {instead:?}").into()) }
}

fn first_line(response: &str) -> &str {
    response.lines().next().unwrap_or_default()
}

fn last_line(response: &str) -> &str {
    response.lines().last().unwrap_or_default()
}
