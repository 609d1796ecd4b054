//! The service: one correct handler, and three with a fault.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use tokio_ctx::{Context, Error};

pub fn router() -> Router {
    Router::new()
        .route("/order/{id}", get(order))
        .route("/report/{id}", get(report))
        .route("/thumbnail/{id}", get(thumbnail))
        .route("/subscribe/{id}", get(subscribe))
}

/// A correct handler: the tasks that it spawns stop with the request.
async fn order(Path(id): Path<u64>, ctx: Context) -> Result<String, Error> {
    let stock = ctx.spawn(query(10 + id % 20));
    let price = ctx.spawn(query(20 + id % 40));
    let (stock, price) = ctx.run(async { (stock.await, price.await) }).await?;
    Ok(format!("{} {}\n", stock.unwrap_or(Ok(0))?, price.unwrap_or(Ok(0))?))
}

/// Stands for a database query, which stops with its context.
async fn query(millis: u64) -> Result<u64, Error> {
    Context::current().sleep(Duration::from_millis(millis)).await?;
    Ok(millis)
}

/// The line of the spawn in `report`.
pub const REPORT: u32 = line!() + 4;

/// The first fault: a task that does not wait for the end of its context. It continues after the client has disconnected.
async fn report(Path(id): Path<u64>, ctx: Context) -> Result<String, StatusCode> {
    let report = ctx.spawn(rows_of_a_report(id));
    Ok(format!("{} rows\n", report.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?))
}

async fn rows_of_a_report(id: u64) -> u64 {
    // To fix it, use `ctx.run(…)`, or spawn the task with `spawn_bounded`.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    id
}

/// Ends the computation of thumbnails, so that the next step can run.
pub static DONE: AtomicBool = AtomicBool::new(false);
/// The line of the spawn in `thumbnail`.
pub const THUMBNAIL: u32 = line!() + 4;

/// The second fault: a computation that blocks its worker, and does not check its context.
async fn thumbnail(Path(id): Path<u64>, ctx: Context) -> Result<String, StatusCode> {
    let pixels = ctx.spawn(async move { pixels(id) });
    Ok(format!("{} pixels\n", pixels.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?))
}

fn pixels(id: u64) -> u64 {
    // To fix it, use `ctx.spawn_blocking(…)`, with `ctx.check()?` in the loop.
    let begun = Instant::now();
    while !DONE.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(1));
    }
    id
}

/// The subscriptions, which are never removed.
static SUBSCRIBERS: Mutex<Option<HashMap<u64, Context>>> = Mutex::new(None);

/// The third fault: it keeps the context of its request after the response.
async fn subscribe(ctx: Context) -> &'static str {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut subscribers = SUBSCRIBERS.lock().unwrap();
    // To fix it, store `ctx.without_cancel()`, or no context.
    subscribers.get_or_insert_default().insert(id, ctx);
    "subscribed\n"
}

/// Sends mails until it is canceled. A shutdown waits for it until the end of the grace period.
pub async fn mailer(ctx: Context) {
    while ctx.sleep(Duration::from_millis(100)).await.is_ok() {
        // A real mailer would send the next mail.
    }
}
