//! Tracing costs nothing without a listener: the same work under several subscribers, each in a process of its own,
//! because a subscriber affects the whole process.

use std::hint::black_box;
use std::io::sink;
use std::process::Command;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::derive::rooted;
use crate::drive::sync;
use crate::measure::median;
use crate::report::nanos;
use crate::row::Row;

const SUBSCRIBERS: [(&str, &str); 4] = [
    ("none", "none"),
    ("info", "INFO"),
    ("off", "DEBUG, without this crate"),
    ("debug", "DEBUG, not written anywhere"),
];

pub fn row() -> Row {
    let parent = rooted();
    let ours = sync(move || {
        let ctx = black_box(&parent).with_cancel();
        ctx.cancel_with("client hung up");
        black_box(&ctx);
    });
    Row::new("derive-cancel-cause", "derive, cancel with a cause, drop", ours)
}

/// Installs this subscriber in the process.
pub fn listen(subscriber: &str) {
    let everything = tracing_subscriber::fmt::layer().with_writer(sink);
    let registry = tracing_subscriber::registry().with(everything);
    let ours = |level| Targets::new().with_default(LevelFilter::DEBUG).with_target("tokio_ctx", level);
    match subscriber {
        "info" => registry.with(LevelFilter::INFO).init(),
        "off" => registry.with(ours(LevelFilter::OFF)).init(),
        "debug" => registry.with(ours(LevelFilter::DEBUG)).init(),
        _ => {}
    }
}

pub fn table(quick: bool) -> Vec<Vec<String>> {
    let mut samples = [const { Vec::new() }; SUBSCRIBERS.len()];
    for _ in 0..if quick { 3 } else { 15 } {
        for ((subscriber, _), samples) in SUBSCRIBERS.iter().zip(&mut samples) {
            samples.push(in_a_process(subscriber));
        }
    }
    let mut lines =
        vec![["subscriber", "derive, cancel with a cause, drop, ns"].map(String::from).to_vec()];
    for ((_, name), samples) in SUBSCRIBERS.iter().zip(&samples) {
        lines.push(vec![name.to_string(), nanos(median(samples))]);
    }
    lines
}

fn in_a_process(subscriber: &str) -> f64 {
    let mut this = Command::new(std::env::current_exe().expect("this program"));
    let done = this.args(["--one", &row().id, "--listen", subscriber]).output().expect("it runs");
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).expect("a line of JSON");
    answer["ns"].as_f64().expect("a number")
}
