//! Why and where work was stopped.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio_ctx::{Context, Error};

#[tokio::main]
async fn main() {
    let ctx = Context::background().with_timeout(Duration::from_secs(10));
    let disk = ctx.canceler();
    tokio::spawn(async move { disk.cancel_with(DiskFull { free_bytes: 512 }) });

    let failed = download(&ctx).await.unwrap_err();
    println!("download failed: {failed}");

    let stopped = Error::find(&failed).expect("the context stopped it");
    println!("kind: {:?}", stopped.kind());
    if let Some(full) = stopped.cause_as::<DiskFull>() {
        println!("free: {} bytes", full.free_bytes);
    }
}

/// Returns an `io::Error`, like code that was written without contexts in mind.
async fn download(ctx: &Context) -> io::Result<()> {
    ctx.sleep(Duration::from_secs(5)).await?;
    Ok(())
}

#[derive(Debug)]
struct DiskFull {
    free_bytes: u64,
}

impl fmt::Display for DiskFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk is full")
    }
}

impl std::error::Error for DiskFull {}
