//! The service: one handler as it should be, and three with a fault.

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

/// As it should be: what it spawns stops with the request.
async fn order(Path(id): Path<u64>, ctx: Context) -> Result<String, Error> {
    let stock = ctx.spawn(query(10 + id % 20));
    let price = ctx.spawn(query(20 + id % 40));
    let (stock, price) = ctx.run(async { (stock.await, price.await) }).await?;
    Ok(format!("{} {}\n", stock.unwrap_or(Ok(0))?, price.unwrap_or(Ok(0))?))
}

/// Stands for a query to a database, which ends with its context.
async fn query(millis: u64) -> Result<u64, Error> {
    Context::current().sleep(Duration::from_millis(millis)).await?;
    Ok(millis)
}

/// The line of the spawn in `report`.
pub const REPORT: u32 = line!() + 4;

/// The first fault: a task that waits for something, and for its end not at all. It goes on when the client has left.
async fn report(Path(id): Path<u64>, ctx: Context) -> Result<String, StatusCode> {
    let report = ctx.spawn(rows_of_a_report(id));
    Ok(format!("{} rows\n", report.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?))
}

async fn rows_of_a_report(id: u64) -> u64 {
    // It should be `ctx.run(…)`, or the task one of `spawn_bounded`.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    id
}

/// Whether thumbnails are to be done with, so that the story can go on.
pub static DONE: AtomicBool = AtomicBool::new(false);
/// The line of the spawn in `thumbnail`.
pub const THUMBNAIL: u32 = line!() + 4;

/// The second fault: a computation that blocks its worker, and does not look at its context.
async fn thumbnail(Path(id): Path<u64>, ctx: Context) -> Result<String, StatusCode> {
    let pixels = ctx.spawn(async move { pixels(id) });
    Ok(format!("{} pixels\n", pixels.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?))
}

fn pixels(id: u64) -> u64 {
    // It should be `ctx.spawn_blocking(…)`, with a `ctx.check()?` in its loop.
    let begun = Instant::now();
    while !DONE.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(1));
    }
    id
}

/// The subscriptions. Nothing is ever taken out: the third fault.
static SUBSCRIBERS: Mutex<Option<HashMap<u64, Context>>> = Mutex::new(None);

/// It keeps the context of its request, which has ended with the answer.
async fn subscribe(ctx: Context) -> &'static str {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut subscribers = SUBSCRIBERS.lock().unwrap();
    // It should be `ctx.without_cancel()`, or no context at all.
    subscribers.get_or_insert_default().insert(id, ctx);
    "subscribed\n"
}

/// Sends mails until it is canceled; a shutdown waits for it, to the end of its grace.
pub async fn mailer(ctx: Context) {
    while ctx.sleep(Duration::from_millis(100)).await.is_ok() {
        // It would take one from its queue, and send it.
    }
}
