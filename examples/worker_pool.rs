//! The files of a directory, hashed by a pool of workers under a deadline.
//!
//! The walk is a stream, which is asked for a file only when a worker is free. Hashing blocks, so it is
//! done on Tokio's threads for that, and looks at the context between two blocks of a file. The first
//! file that cannot be read, or the deadline, ends the pool; then it says what was hashed so far.
//!
//! ```text
//! cargo run --example worker_pool                                 # this crate's sources
//! cargo run --example worker_pool -- --workers 8 --budget-ms 2000 /usr/include
//! ```
//!
//! Exit status 1: not all files were hashed. Without arguments it also shows what a deadline does to a
//! file without end, and fails if that is anything else.

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

/// Without arguments: this crate's sources, which must fit in, and a budget that cannot suffice.
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

/// Hashes every file below the directory; gives their paths in order, if that could be done in time.
async fn hash_all(options: &Options) -> Result<Vec<PathBuf>, BoxError> {
    let start = Instant::now();
    let ctx = Context::background().with_timeout(options.budget);
    let (done, hashed) = mpsc::channel();

    let pool = files(&options.directory).for_each_task(&ctx, options.workers, move |ctx, file| {
        let done = done.clone();
        async move {
            let file = file?;
            // The context goes along into the thread, which nothing else can stop.
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

/// The SHA-256 of all there is to read, in hexadecimal, unless the context ends first.
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

/// The files below a directory. Each step of the walk blocks, but not for long.
fn files(directory: &Path) -> impl Stream<Item = io::Result<PathBuf>> + use<> {
    stream::iter(walk(directory))
}

/// Walks a directory as far as it is asked to. Links are not followed.
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

/// What the arguments ask for; `None` if there are none.
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
