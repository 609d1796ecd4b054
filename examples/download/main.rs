//! A download under one budget: retries, an idle limit, and a progress bar.
//!
//! The server, part of this example and on loopback, refuses, closes the connection early, and stalls before it
//! delivers. The client has one budget for all of this. Each attempt continues where the last one stopped. The
//! response's body reports its bytes to the idle limit, so a download may take long as long as it progresses. At the
//! end, the example prints how the time was spent.
//!
//! ```text
//! cargo run --example download                       # 20 s are enough
//! cargo run --example download -- --budget-ms 700    # 700 ms are not: exit status 1
//! ```
//!
//! Without arguments it does both, and fails if the file differs from the server's, or if an error does not name the
//! reason.

mod server;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::header::{RANGE, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use tokio_ctx::budget::{GaveUp, NoProgress, RetryError};
use tokio_ctx::wire::{ClientLayer, Outbound};
use tokio_ctx::{BoxError, Context, Error};
use tower::{ServiceBuilder, ServiceExt};

const BUDGET: Duration = Duration::from_secs(20);
/// An attempt without progress for this long is given up.
const IDLE: Duration = Duration::from_millis(500);

/// Why an attempt failed.
#[derive(Debug)]
enum Failed {
    /// The server has answered with this status, and possibly how long to wait.
    Status(StatusCode, Option<Duration>),
    /// The connection broke, or the context ended the body.
    Broken(BoxError),
    File(io::Error),
    Stopped(Error),
}

impl From<Error> for Failed {
    fn from(stopped: Error) -> Self {
        Failed::Stopped(stopped)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Status(status, Some(after)) => write!(f, "{status}, again in {after:?}"),
            Failed::Status(status, None) => write!(f, "{status}"),
            Failed::Broken(error) => write!(f, "{error}"),
            Failed::File(error) => write!(f, "{error}"),
            Failed::Stopped(stopped) => write!(f, "{stopped}"),
        }
    }
}

impl std::error::Error for Failed {}

/// One attempt, for the summary at the end.
struct Entry {
    begun: Instant,
    over: Instant,
    bytes: u64,
    outcome: String,
}

struct Download {
    url: String,
    file: PathBuf,
    bar: ProgressBar,
    account: Mutex<Vec<Entry>>,
}

impl Download {
    /// Downloads the file, or what is missing of it, within the context's budget.
    async fn run(&self, ctx: &Context) -> Result<(), RetryError<Failed>> {
        let delays =
            ExponentialBuilder::default().with_min_delay(Duration::from_millis(50)).with_max_times(5);
        let download = ctx
            .retry(delays.build(), |ctx, _| async move { self.attempt(&ctx).await })
            .when(|error| match error {
                Failed::Status(status, _) => status.is_server_error(),
                Failed::File(_) => false,
                Failed::Broken(_) | Failed::Stopped(_) => true,
            })
            .retry_after(|error| match error {
                Failed::Status(_, after) => *after,
                _ => None,
            });
        download.await
    }

    /// Makes one attempt, and records it.
    async fn attempt(&self, ctx: &Context) -> Result<(), Failed> {
        let (begun, before) = (Instant::now(), self.bar.position());
        let fetched = self.fetch(ctx).await;
        let outcome = match &fetched {
            Ok(()) => "complete".into(),
            Err(failed) => failed.to_string(),
        };
        let bytes = self.bar.position() - before;
        let entry = Entry { begun, over: Instant::now(), bytes, outcome };
        self.account.lock().expect("nothing panics there").push(entry);
        fetched
    }

    async fn fetch(&self, ctx: &Context) -> Result<(), Failed> {
        let ctx = ctx.with_idle(IDLE);
        let mut file =
            OpenOptions::new().append(true).create(true).open(&self.file).map_err(Failed::File)?;
        let have = file.metadata().map_err(Failed::File)?.len();
        self.bar.set_position(have);

        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let client = ServiceBuilder::new().layer(ClientLayer::new(Outbound::new())).service(client);
        let request = Request::get(&self.url)
            .header(RANGE, format!("bytes={have}-"))
            .extension(ctx.context().clone())
            .body(Empty::new())
            .expect("a proper URL");
        let response = client.oneshot(request).await.map_err(Failed::Broken)?;
        if !response.status().is_success() {
            let after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok());
            let after = after.and_then(|after| after.parse().ok()).map(Duration::from_secs);
            return Err(Failed::Status(response.status(), after));
        }
        let mut body = pin!(response.into_body());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Failed::Broken)?.into_data() else { continue };
            // Written to the page cache, which takes microseconds, so a blocking call is fine.
            file.write_all(&data).map_err(Failed::File)?;
            self.bar.inc(data.len() as u64);
        }
        Ok(())
    }

    /// Prints how the time was spent.
    fn print_summary(&self, took: Duration, budget: Duration) {
        let millis = |time: Duration| format!("{} ms", time.as_millis());
        println!("{} of a budget of {}:", millis(took), millis(budget));
        let (mut in_attempts, mut in_delays, mut last) = (Duration::ZERO, Duration::ZERO, None);
        for (nth, entry) in self.account.lock().expect("nothing panics there").iter().enumerate() {
            if let Some(last) = last {
                println!("  {:>9}  delay", millis(entry.begun - last));
                in_delays += entry.begun - last;
            }
            let (took, kilobytes) = (entry.over - entry.begun, entry.bytes / 1_000);
            println!("  {:>9}  attempt {}, {kilobytes} kB: {}", millis(took), nth + 1, entry.outcome);
            in_attempts += took;
            last = Some(entry.over);
        }
        println!("  {} in attempts, {} in delays\n", millis(in_attempts), millis(in_delays));
    }
}

/// Downloads the file with this budget.
async fn download(budget: Duration, file: &Path) -> io::Result<Result<(), RetryError<Failed>>> {
    let addr = server::start().await?;
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}");
    let bar = ProgressBar::new(server::LENGTH as u64).with_style(style.expect("a proper template"));
    let (url, account) = (format!("http://{addr}/file"), Mutex::new(Vec::new()));
    let download = Download { url, file: file.to_owned(), bar, account };

    let begun = Instant::now();
    let ctx = Context::background().with_timeout(budget);
    let done = download.run(&ctx).await;
    download.bar.finish_and_clear();
    download.print_summary(begun.elapsed(), budget);
    Ok(done)
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let budget = match (args.next().as_deref(), args.next().map(|millis| millis.parse())) {
        (None, _) => None,
        (Some("--budget-ms"), Some(Ok(millis))) => Some(Duration::from_millis(millis)),
        _ => {
            eprintln!("usage: download [--budget-ms MILLISECONDS]");
            return ExitCode::from(2);
        }
    };
    let file = std::env::temp_dir().join(format!("tokio-ctx-download-{}", std::process::id()));
    let outcome = match budget {
        Some(budget) => match download(budget, &file).await {
            Ok(done) => done.map_err(|failed| failed.to_string()),
            Err(error) => Err(error.to_string()),
        },
        None => itself(&file).await,
    };
    let _removed = fs::remove_file(&file);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("download: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Checks a download with enough time, and one with too little.
async fn itself(file: &Path) -> Result<(), String> {
    let done = download(BUDGET, file).await.map_err(|error| error.to_string())?;
    done.map_err(|failed| format!("{BUDGET:?} should be enough: {failed}"))?;
    let got = fs::read(file).map_err(|error| error.to_string())?;
    let expected = Vec::from_iter((0..server::LENGTH).map(server::byte));
    if got != expected {
        return Err(format!("{} bytes, which are not those of the server", got.len()));
    }
    fs::remove_file(file).map_err(|error| error.to_string())?;

    // The server asks to wait for a second.
    let short = Duration::from_millis(700);
    let done = download(short, file).await.map_err(|error| error.to_string())?;
    let gave_up = done.expect_err("there is no time for a second attempt");
    println!("{gave_up}\n");
    let GaveUp::NotEnoughTime(why) = gave_up.why() else { return Err(format!("{:?}", gave_up.why())) };
    if gave_up.attempts() != 1 || why.left() > short {
        return Err(format!("{gave_up:?}"));
    }

    // The stall alone, which the error describes completely.
    let stalled = stalled().await;
    println!("{stalled}");
    match stalled.cause_as::<NoProgress>().map(|cause| (cause.limit(), cause.bytes())) {
        Some((IDLE, Some(5_000))) => Ok(()),
        other => Err(format!("the error should contain the progress: {other:?}")),
    }
}

/// Reads from a peer that sends five thousand bytes and then stalls.
async fn stalled() -> Error {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let ctx = Context::background().with_timeout(BUDGET);
    let ctx = ctx.with_idle(IDLE);
    let (here, mut there) = tokio::io::duplex(8_192);
    there.write_all(&[7; 5_000]).await.expect("the bytes fit into the buffer");
    let mut body = pin!(here);
    let mut buf = [0; 1_024];
    let progress = ctx.progress();
    loop {
        match ctx.run(body.read(&mut buf)).await {
            Ok(read) => progress.report_bytes(read.unwrap_or(0) as u64),
            Err(ended) => return ended,
        }
    }
}
