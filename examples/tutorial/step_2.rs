//! A deadline over three calls.

use std::time::Duration;

use tokio_ctx::{Context, Error};

#[tokio::main]
async fn main() {
    let ctx = Context::background().with_timeout(Duration::from_millis(200));
    match load_page(&ctx).await {
        Ok(page) => println!("{page}"),
        Err(stopped) => println!("{stopped}"),
    }
}

async fn load_page(ctx: &Context) -> Result<String, Error> {
    let profile = fetch(ctx, "profile", 20).await?;
    let orders = fetch(ctx, "orders", 40).await?;
    let news = fetch(ctx, "news", 500).await?;
    Ok(format!("{profile}, {orders}, {news}"))
}

/// Stands for a call to another service, which takes `millis` to answer.
async fn fetch(ctx: &Context, what: &str, millis: u64) -> Result<String, Error> {
    println!("fetching {what}");
    ctx.run(tokio::time::sleep(Duration::from_millis(millis))).await?;
    Ok(what.to_uppercase())
}
