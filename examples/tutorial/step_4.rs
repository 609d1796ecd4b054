//! Several parts at once.

use std::time::Duration;

use tokio_ctx::{BoxError, Context, Group};

#[tokio::main]
async fn main() {
    let request = Context::background().with_timeout(Duration::from_secs(1));
    for shop in ["open", "closed"] {
        match load_page(&request, shop).await {
            Ok(parts) => println!("{shop}: {parts:?}"),
            Err(failed) => println!("{shop}: {failed}"),
        }
    }
}

async fn load_page(request: &Context, shop: &'static str) -> Result<Vec<String>, BoxError> {
    let (mut group, ctx) = Group::new(request);
    for (part, millis) in [("profile", 300), ("orders", 20)] {
        let ctx = ctx.clone();
        group.spawn(async move { fetch(&ctx, shop, part, millis).await });
    }
    group.join().await
}

async fn fetch(ctx: &Context, shop: &str, part: &str, millis: u64) -> Result<String, BoxError> {
    if let Err(stopped) = ctx.sleep(Duration::from_millis(millis)).await {
        println!("{part}: {stopped}");
        return Err(stopped.into());
    }
    match (shop, part) {
        ("closed", "orders") => Err("no orders today".into()),
        _ => Ok(part.to_uppercase()),
    }
}
