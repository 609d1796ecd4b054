//! A pipeline over channels: a generator, two stages and a sink. When a stage fails, it cancels the
//! whole pipeline with its error as the cause. Each stage then prints why it stopped, and `main` gets
//! the original error with its type.
//!
//! ```text
//! cargo run --example pipeline
//! ```

use std::error::Error as StdError;
use std::fmt;
use std::num::ParseIntError;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinError;
use tokio_ctx::{Canceler, Context, Error};

/// The input: prices in cents. The sixth is not a number.
const PRICES: [&str; 9] = ["1250", "399", "8000", "75", "1999", "12,50", "640", "310", "5"];
const ARRIVAL: Duration = Duration::from_millis(5);
const TAX_PERCENT: u64 = 19;

#[tokio::main]
async fn main() -> ExitCode {
    match pipeline().await {
        Ok(outcomes) => report(&outcomes),
        Err(panic) => {
            eprintln!("pipeline: {panic}");
            ExitCode::FAILURE
        }
    }
}

/// The name of a stage, and how it ended.
type Outcome = (&'static str, Result<usize, Error>);

/// Starts all stages under one context, and waits for them.
async fn pipeline() -> Result<[Outcome; 4], JoinError> {
    let ctx = Context::background().with_cancel();
    // The channels are small, so that no stage runs far ahead of one that is about to fail.
    let (prices, to_parse) = channel(2);
    let (parsed, to_tax) = channel(2);
    let (taxed, to_print) = channel(2);

    let generate = ctx.spawn(generate(prices));
    let parse = ctx.spawn(stage(ctx.canceler(), to_parse, parsed, parse));
    let tax = ctx.spawn(stage(ctx.canceler(), to_tax, taxed, add_tax));
    let print = ctx.spawn(print(to_print));

    Ok([
        ("generate", generate.await?),
        ("parse", parse.await?),
        ("add tax", tax.await?),
        ("print", print.await?),
    ])
}

/// A record: its number, and its current value.
type Record<T> = (usize, T);

/// The generator: sends the prices, one every few milliseconds.
async fn generate(output: Sender<Record<&'static str>>) -> Result<usize, Error> {
    let ctx = Context::current();
    let mut sent = 0;
    for text in PRICES {
        ctx.sleep(ARRIVAL).await?;
        let record = (sent + 1, text);
        if ctx.run(output.send(record)).await?.is_err() {
            break;
        }
        sent += 1;
    }
    ctx.check().map(|()| sent)
}

/// A stage: applies `work` to each record and sends the result to the next stage. If it fails, it
/// cancels the pipeline.
async fn stage<In, Out>(
    canceler: Canceler,
    mut input: Receiver<Record<In>>,
    output: Sender<Record<Out>>,
    work: impl Fn(Record<In>) -> Result<Record<Out>, BadPrice>,
) -> Result<usize, Error> {
    let ctx = Context::current();
    let mut done = 0;
    while let Some(record) = ctx.run(input.recv()).await? {
        match work(record) {
            Ok(result) => {
                if ctx.run(output.send(result)).await?.is_err() {
                    break;
                }
            }
            Err(failure) => {
                // Canceled before this function returns and closes its channels. A stage whose channel
                // is closed can then check the context to find out whether this was the end of the
                // records.
                canceler.cancel_with(failure);
                break;
            }
        }
        done += 1;
    }
    ctx.check().map(|()| done)
}

fn parse((number, text): Record<&'static str>) -> Result<Record<u32>, BadPrice> {
    match text.parse() {
        Ok(cents) => Ok((number, cents)),
        Err(why) => Err(BadPrice { number, text, why }),
    }
}

fn add_tax((number, cents): Record<u32>) -> Result<Record<u64>, BadPrice> {
    Ok((number, u64::from(cents) * (100 + TAX_PERCENT) / 100))
}

/// The sink: prints what arrives.
async fn print(mut input: Receiver<Record<u64>>) -> Result<usize, Error> {
    let ctx = Context::current();
    let mut printed = 0;
    while let Some((number, cents)) = ctx.run(input.recv()).await? {
        println!("record {number}: {cents} cents with tax");
        printed += 1;
    }
    ctx.check().map(|()| printed)
}

/// Prints how each stage ended, and the cause.
fn report(outcomes: &[Outcome]) -> ExitCode {
    for (stage, outcome) in outcomes {
        match outcome {
            Ok(done) => println!("{stage}: finished, {done} records"),
            Err(why) => println!("{stage}: stopped: {why}"),
        }
    }
    let Some(why) = outcomes.iter().find_map(|(_, outcome)| outcome.as_ref().err()) else {
        println!("no stage was stopped");
        return ExitCode::SUCCESS;
    };
    // The cause is the original value, not a copy of its message.
    match why.cause_as::<BadPrice>() {
        Some(BadPrice { number, text, why }) => {
            println!("the failure behind it: record {number}, {text:?}: {why}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("pipeline: stopped by something other than a bad price: {why}");
            ExitCode::FAILURE
        }
    }
}

/// A record whose price is not a whole number of cents.
#[derive(Debug)]
struct BadPrice {
    number: usize,
    text: &'static str,
    why: ParseIntError,
}

impl fmt::Display for BadPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}: {:?} is not a whole number of cents", self.number, self.text)
    }
}

impl StdError for BadPrice {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.why)
    }
}
