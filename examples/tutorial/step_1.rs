//! Stop one task.

use std::time::Duration;

use tokio_ctx::Context;

#[tokio::main]
async fn main() {
    let ctx = Context::background().with_cancel();
    let ticking = tokio::spawn(tick(ctx.clone()));

    tokio::time::sleep(Duration::from_millis(250)).await;
    ctx.cancel();
    let ticks = ticking.await.unwrap();
    println!("stopped after {ticks} ticks");
}

/// Ticks every 100 ms until the context ends.
async fn tick(ctx: Context) -> u32 {
    let mut ticks = 0;
    while ctx.sleep(Duration::from_millis(100)).await.is_ok() {
        ticks += 1;
        println!("tick {ticks}");
    }
    ticks
}
