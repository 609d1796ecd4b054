//! One service further.

use std::time::Duration;

use axum::{Router, extract::State, routing::get};
use tokio::net::TcpListener;
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{BoxError, Context, Error};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let search = serve(Router::new().route("/", get(search))).await?;
    let shop = serve(Router::new().route("/", get(shop)).with_state(search)).await?;

    let ctx = Context::background().with_timeout(Duration::from_secs(10));
    let user = ctx.canceler();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        user.cancel_with("the user closed the page");
    });
    let failed = fetch(&ctx, &shop).await.unwrap_err();
    // Gives the services time to notice.
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("client: {failed}");
    Ok(())
}

/// The first service: calls the second one.
async fn shop(State(search): State<String>, ctx: Context) -> String {
    println!("shop: {} ms left", ctx.remaining().unwrap().as_millis());
    fetch(&ctx, &search).await.unwrap_or_else(|failed| failed.to_string())
}

/// The second service: its query runs in a task of its own.
async fn search(ctx: Context) -> Result<String, Error> {
    let query = ctx.spawn_with(|ctx| async move {
        println!("search: {} ms left", ctx.remaining().unwrap().as_millis());
        let queried = ctx.sleep(Duration::from_secs(5)).await;
        if let Err(stopped) = &queried {
            println!("search: {stopped}");
        }
        queried
    });
    query.await.expect("the query does not panic")?;
    Ok("found".to_owned())
}

/// Sends the remaining time with the request, and drops the call when the context ends.
async fn fetch(ctx: &Context, url: &str) -> Result<String, BoxError> {
    let client = reqwest::Client::new();
    let mut request = client.get(url).build()?;
    ctx.inject(request.headers_mut())?;
    let answer = ctx.run(async { client.execute(request).await?.text().await });
    Ok(answer.await??)
}

/// Gives each request a context, and returns the address of the service.
async fn serve(app: Router) -> Result<String, BoxError> {
    let app = app.layer(ServerLayer::new(Context::background(), Inbound::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}
