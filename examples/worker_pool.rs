//! Hashes the files of a directory with a limited number of tasks, under a deadline.
//!
//! A stream walks the directory, and is polled for a file only when a task can be started for it.
//! Hashing blocks, so it runs on Tokio's blocking threads, and checks the context after each block of a
//! file. If a file cannot be read, or the deadline passes, the remaining tasks are canceled, and the
//! hashes so far are printed.
//!
//! ```text
//! cargo run --example worker_pool                                 # the source code of this crate
//! cargo run --example worker_pool -- --workers 8 --budget-ms 2000 /usr/include
//! ```
//!
//! The exit status is 1 if not all files were hashed. Without arguments, the example also hashes a file
//! that never ends, and fails if the deadline does not stop this.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use futures::{Stream, stream};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_ctx::{BoxError, Context, StreamExt as _};

const BLOCK: usize = 64 * 1024;

struct Options {
    directory: PathBuf,
    workers: usize,
    budget: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return itself().await,
        Err(message) => {
            eprintln!("worker_pool: {message}");
            return ExitCode::from(2);
        }
    };
    match hash_all(&options).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("worker_pool: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Runs without arguments: hashes the source code of this crate, and then a file that never ends.
async fn itself() -> ExitCode {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let enough = Options { directory, workers: 4, budget: Duration::from_secs(60) };
    let all = hash_all(&enough).await;
    let mut expected: Vec<_> = walk(&enough.directory).filter_map(Result::ok).collect();
    expected.sort();
    match all {
        Ok(hashed) if hashed == expected => {}
        other => return unexpected(&format!("{other:?} instead of all files")),
    }

    let start = Instant::now();
    let ctx = Context::background().with_timeout(Duration::from_millis(100));
    let endless = spawn_blocking(move || digest(&ctx, io::repeat(0))).await;
    match endless {
        Ok(Err(stopped)) if stopped.kind() == io::ErrorKind::TimedOut => {
            println!("a file without end: {stopped}, after {} ms", start.elapsed().as_millis());
            ExitCode::SUCCESS
        }
        other => unexpected(&format!("{other:?} of a file without end")),
    }
}

fn unexpected(what: &str) -> ExitCode {
    eprintln!("worker_pool: {what}");
    ExitCode::FAILURE
}

/// Hashes all files below the directory, and returns their paths in order.
async fn hash_all(options: &Options) -> Result<Vec<PathBuf>, BoxError> {
    let start = Instant::now();
    let ctx = Context::background().with_timeout(options.budget);
    let (done, hashed) = mpsc::channel();

    let pool = files(&options.directory).for_each_task(&ctx, options.workers, move |ctx, file| {
        let done = done.clone();
        async move {
            let file = file?;
            // Only the context can stop a blocking thread.
            let hashing = spawn_blocking(move || {
                let digest = digest(&ctx, File::open(&file)?)?;
                println!("{digest}  {}", file.display());
                io::Result::Ok(file)
            });
            done.send(hashing.await??)?;
            Ok(())
        }
    });
    let outcome = pool.await;

    let mut hashed: Vec<PathBuf> = hashed.iter().collect();
    hashed.sort();
    println!("{} files hashed in {} ms", hashed.len(), start.elapsed().as_millis());
    outcome.map(|()| hashed)
}

/// Returns the SHA-256 hash of a reader in hexadecimal, unless the context ends first.
fn digest(ctx: &Context, mut from: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        ctx.check()?;
        match from.read(&mut block)? {
            0 => return Ok(format!("{:x}", hasher.finalize())),
            read => hasher.update(&block[..read]),
        }
    }
}

/// Returns a stream of the files below a directory. Each step blocks for a short time.
fn files(directory: &Path) -> impl Stream<Item = io::Result<PathBuf>> + use<> {
    stream::iter(walk(directory))
}

/// Walks a directory lazily, without following links.
fn walk(directory: &Path) -> impl Iterator<Item = io::Result<PathBuf>> + use<> {
    let mut to_visit = vec![Ok(directory.to_owned())];
    std::iter::from_fn(move || {
        loop {
            let path: PathBuf = match to_visit.pop()? {
                Ok(path) => path,
                Err(error) => return Some(Err(error)),
            };
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() => match fs::read_dir(&path) {
                    Ok(entries) => to_visit.extend(entries.map(|entry| Ok(entry?.path()))),
                    Err(error) => return Some(Err(in_words("list", &path, error))),
                },
                Ok(found) if found.is_file() => return Some(Ok(path)),
                Ok(_neither) => {}
                Err(error) => return Some(Err(in_words("look at", &path, error))),
            }
        }
    })
}

fn in_words(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {what} {}: {error}", path.display()))
}

/// Parses the arguments. Returns `None` if there are none.
fn options(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let mut options = Options { directory: PathBuf::new(), workers: 4, budget: Duration::from_secs(60) };
    let mut any = false;
    while let Some(arg) = args.next() {
        any = true;
        match arg.to_str() {
            Some("--workers") => {
                options.workers = number(args.next(), "--workers needs how many, from 1 up, e.g. 8")?
            }
            Some("--budget-ms") => {
                let millis = number(args.next(), "--budget-ms needs milliseconds, from 1 up, e.g. 500")?;
                options.budget = Duration::from_millis(millis as u64);
            }
            Some(flag) if flag.starts_with('-') => {
                return Err(format!("unknown option {flag}; there are --workers N and --budget-ms N"));
            }
            _ if options.directory.as_os_str().is_empty() => options.directory = arg.into(),
            _ => return Err("one directory at a time".to_owned()),
        }
    }
    if any && options.directory.as_os_str().is_empty() {
        return Err("which directory? Give one after the options, e.g. src".to_owned());
    }
    Ok(any.then_some(options))
}

fn number(value: Option<OsString>, otherwise: &str) -> Result<usize, String> {
    let number = value.as_ref().and_then(|value| value.to_str()?.parse().ok());
    match (number.filter(|number| *number > 0), value) {
        (Some(number), _) => Ok(number),
        (None, Some(value)) => Err(format!("{otherwise}, not {value:?}")),
        (None, None) => Err(otherwise.to_owned()),
    }
}
