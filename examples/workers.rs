//! Two workers that tick until a deadline stops both. Each prints why it stopped.
//!
//! ```text
//! cargo run --example workers
//! ```

use std::error::Error;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_ctx::Context;

const TICK: Duration = Duration::from_millis(30);
const BUDGET: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let ctx = Context::background().with_timeout(BUDGET);

    // `spawn` makes the context the current one of each task.
    let workers = ["ada", "grace"].map(|name| ctx.spawn(work(name, started)));
    for worker in workers {
        worker.await?;
    }

    println!("both stopped after {} ms", started.elapsed().as_millis());
    Ok(())
}

/// Ticks until the current context is done.
async fn work(name: &'static str, started: Instant) {
    let ctx = Context::current();
    let mut ticks = interval_at(started + TICK, TICK);
    // A worker that is delayed does not catch up on the ticks that it has missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut ticked = 0;
    loop {
        tokio::select! {
            // Checks the branches from top to bottom, so that there is no tick after the end.
            biased;
            why = ctx.done() => {
                println!("{name:>5}: stopping after {ticked} ticks: {why}");
                return;
            }
            now = ticks.tick() => {
                ticked += 1;
                println!("{name:>5}: tick {ticked} at {} ms", (now - started).as_millis());
            }
        }
    }
}
