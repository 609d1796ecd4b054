//! Instructions of the most frequent operations, compared with the committed baseline, `instructions.json`:
//! `cargo bench --bench instructions` fails if an operation takes 10 % more, and `-- --update` writes a new baseline.
//! Callgrind counts, so the speed and the load of the machine do not matter.
//!
//! A baseline is valid for one compiler and one C library. After a change of either, update it.
//!
//! With `--features watch`, the same operations are counted in a build with a watch that is not installed, where a derive
//! takes only a few instructions more, and again with an installed watch (`watched-…`).

mod operations;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use operations::{ALL, TIMES};
use serde::{Deserialize, Serialize};

const MOST: f64 = 1.10;
/// The most that a derive and its drop may take more in a build with a watch that is not installed. Six are the watch's: a
/// load and a branch when the context is created, and a branch on whether it is a root. The others are calls that the
/// compiler does not inline in such a build.
const UNWATCHED: f64 = 20.0;
/// The operations to which this applies.
const DERIVES: [&str; 2] = ["derive-drop", "derive-timeout"];
const WATCHED: &str = "watched-";
const HAS_WATCH: bool = cfg!(feature = "watch");

#[derive(Serialize, Deserialize)]
struct Baseline {
    rustc: String,
    /// For each operation.
    instructions: BTreeMap<String, f64>,
}

fn main() -> ExitCode {
    let given: Vec<String> = env::args().skip(1).collect();
    let is_given = |arg: &str| given.iter().any(|given| given == arg);
    if is_given("--counted") {
        #[cfg(feature = "watch")]
        if is_given("--watched") {
            tokio_ctx::watch::install();
        }
        operations::run_all();
        ExitCode::SUCCESS
    } else if !is_given("--bench") {
        // `cargo test` would run it like this.
        ExitCode::SUCCESS
    } else if Command::new("valgrind").arg("--version").output().is_err() {
        println!("no valgrind, so no instructions are counted: apt-get install valgrind");
        if env::var("CI").is_ok_and(|ci| ci == "true") { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    } else {
        let now = Baseline { rustc: rustc(), instructions: count_all() };
        if is_given("--update") { update(&now) } else { compare(&now) }
    }
}

fn rustc() -> String {
    let rustc = env::var("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("--version").output().map(|output| output.stdout);
    String::from_utf8_lossy(&output.unwrap_or_default()).trim().into()
}

fn count_all() -> BTreeMap<String, f64> {
    let mut all = count(&["--counted"]);
    if HAS_WATCH {
        let watched = count(&["--counted", "--watched"]);
        all.extend(watched.into_iter().map(|(name, count)| (format!("{WATCHED}{name}"), count)));
    }
    all
}

/// Runs this program again, under callgrind.
fn count(arguments: &[&str]) -> BTreeMap<String, f64> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("callgrind.out");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured_*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().expect("this program"))
        .args(arguments)
        // The environment is on the stack, and its size moves the addresses below it.
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .output()
        .expect("valgrind runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let written = fs::read_to_string(out).expect("what callgrind wrote");
    let costs = costs(&written);
    let per_operation = |name| costs.get(name).map(|cost| *cost as f64 / TIMES as f64);
    let named = ALL.iter().map(|operation| operation.name);
    named.map(|name| (short(name), per_operation(name).expect("it was measured"))).collect()
}

fn short(name: &str) -> String {
    name.trim_start_matches("measured_").replace('_', "-")
}

/// Parses callgrind's format and returns the cost of each measured function, including its calls. The part of a
/// function starts with `fn=`; its lines contain positions and costs, and so do those of its calls.
fn costs(written: &str) -> BTreeMap<&str, u64> {
    let mut costs = BTreeMap::new();
    let mut current = None;
    for line in written.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            // A name is given where it is first used, here or as the name of a called function.
            current = ALL.iter().map(|operation| operation.name).find(|name| {
                let id = function.split(' ').next().unwrap_or_default();
                written.lines().any(|line| is_name(line, id, name))
            });
        } else if let (Some(name), Some(cost)) = (current, cost(line)) {
            *costs.entry(name).or_default() += cost;
        }
    }
    costs
}

fn is_name(line: &str, id: &str, name: &str) -> bool {
    let defined = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn="));
    let after = defined.and_then(|defined| defined.strip_prefix(id));
    after.is_some_and(|full| full.split("::").any(|part| part.trim_end() == name))
}

/// Parses `+3 17`: a position, relative to the last one, and a cost.
fn cost(line: &str) -> Option<u64> {
    let (place, cost) = line.split_once(' ')?;
    place.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)).then_some(())?;
    cost.parse().ok()
}

fn baseline() -> PathBuf {
    // Read at run time, so that a program that was built elsewhere finds its own baseline.
    let root = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    root.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("instructions.json")
}

/// Writes the rows of this build: those of an installed watch if it has one, and otherwise the others.
fn update(now: &Baseline) -> ExitCode {
    let is_own = |name: &str| name.starts_with(WATCHED) == HAS_WATCH;
    let before = read().map(|before| before.instructions).unwrap_or_default();
    let mut instructions = now.instructions.clone();
    instructions.retain(|name, _| is_own(name));
    instructions.extend(before.into_iter().filter(|(name, _)| !is_own(name)));
    let written = Baseline { rustc: now.rustc.clone(), instructions };
    let json = serde_json::to_string_pretty(&written).expect("it is plain") + "\n";
    fs::write(baseline(), json).expect("the baseline can be written");
    for (name, count) in &now.instructions {
        println!("{name}: {count:.1}");
    }
    ExitCode::SUCCESS
}

fn read() -> Option<Baseline> {
    serde_json::from_str(&fs::read_to_string(baseline()).ok()?).ok()
}

fn compare(now: &Baseline) -> ExitCode {
    let baseline = read().expect("a baseline; write it with `-- --update`");
    if baseline.rustc != now.rustc {
        println!("the baseline is of {}, this is {}\n", baseline.rustc, now.rustc);
    }
    println!("### Instructions\n");
    println!("| operation              | baseline | now     | change  |");
    println!("| ---------------------- | -------- | ------- | ------- |");
    let mut worse = Vec::new();
    for (name, count) in &now.instructions {
        let Some(before) = baseline.instructions.get(name) else {
            worse.push(format!("{name} is not in the baseline"));
            continue;
        };
        let change = count / before;
        let percent = (change - 1.0) * 100.0;
        println!("| {name:22} | {before:8.1} | {count:7.1} | {percent:+6.1}% |");
        if change > MOST {
            worse.push(format!("{name} takes {percent:.1}% more instructions than its baseline"));
        }
        let more = count - before;
        if HAS_WATCH && DERIVES.contains(&name.as_str()) && more > UNWATCHED {
            worse.push(format!("a watch that is not installed costs {name} {more:.1} instructions"));
        }
    }
    worse.iter().for_each(|what| eprintln!("{what}"));
    if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
