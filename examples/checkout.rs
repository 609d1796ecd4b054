//! A checkout in three steps under one deadline: which step is stopped when the time runs out, and what
//! the error says.
//!
//! ```text
//! cargo run --example checkout                       # 200 ms are enough
//! cargo run --example checkout -- --budget-ms 100    # 100 ms are not enough: exit status 1
//! ```

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tokio_ctx::{Context, Error};

const DEFAULT_BUDGET: Duration = Duration::from_millis(200);

/// The steps of a checkout, and how long each takes.
const STEPS: [(&str, Duration); 3] = [
    ("reserve the stock", Duration::from_millis(50)),
    ("charge the card", Duration::from_millis(80)),
    ("send the receipt", Duration::from_millis(40)),
];

#[tokio::main]
async fn main() -> ExitCode {
    let budget = match budget(std::env::args_os().skip(1).map(lossy)) {
        Ok(budget) => budget,
        Err(message) => {
            eprintln!("checkout: {message}");
            return ExitCode::from(2);
        }
    };

    println!("checkout with a budget of {budget:?}");
    let started = Instant::now();
    let ctx = Context::background().with_timeout(budget);
    match checkout(&ctx).await {
        Ok(()) => {
            println!("paid and sent after {} ms", started.elapsed().as_millis());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("failed after {} ms", started.elapsed().as_millis());
            eprintln!("checkout: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Performs the steps in order until `ctx` ends.
async fn checkout(ctx: &Context) -> Result<(), StepFailed> {
    for (step, takes) in STEPS {
        let started = Instant::now();
        // Stands for a call to another service. The steps do not know the deadline; the context does.
        let outcome = ctx.sleep(takes).await;
        let spent = started.elapsed().as_millis();
        match outcome {
            Ok(()) => println!("  {step:<18} done in {spent} ms"),
            Err(why) => {
                let takes = takes.as_millis();
                println!("  {step:<18} cut off after {spent} of {takes} ms");
                return Err(StepFailed { step, why });
            }
        }
    }
    Ok(())
}

/// The step that was stopped, and why.
#[derive(Debug)]
struct StepFailed {
    step: &'static str,
    why: Error,
}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.step, self.why)
    }
}

impl std::error::Error for StepFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

/// Parses the budget from the arguments, or returns an error message.
fn budget(mut args: impl Iterator<Item = String>) -> Result<Duration, String> {
    let mut budget = DEFAULT_BUDGET;
    while let Some(arg) = args.next() {
        if arg != "--budget-ms" {
            return Err(format!(
                "unknown argument {arg:?}; the only one is --budget-ms N, e.g. --budget-ms 200"
            ));
        }
        let value = args
            .next()
            .ok_or("--budget-ms needs a number of milliseconds after it, e.g. --budget-ms 200")?;
        let millis = value.parse().map_err(|_| {
            format!(
                "--budget-ms {value:?} is not a whole number of milliseconds; for example --budget-ms 200"
            )
        })?;
        budget = Duration::from_millis(millis);
    }
    Ok(budget)
}

/// Converts an argument that may not be Unicode, for the error message.
fn lossy(arg: std::ffi::OsString) -> String {
    arg.to_string_lossy().into_owned()
}
