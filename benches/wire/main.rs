//! What the layers of `wire` cost: `cargo bench --bench wire`, `-- --quick` for a short run, `-- --in-process` for the first table alone.
//!
//! In the process, a call of a service with them takes turns with the same call without, on the clock of
//! the thread. Over loopback, an axum server with them takes turns with the same server without, under `wrk` if there
//! is one. Medians over the rounds throughout.

mod grpc;
mod in_process;
mod over_loopback;

#[path = "../axum_load/load.rs"]
mod load;

fn main() {
    let given: Vec<String> = std::env::args().collect();
    if let [_, mode, row, calls] = &given[..] {
        if mode == "--counted" {
            return in_process::counted(row, calls);
        }
    }
    if !given.iter().any(|arg| arg == "--bench") {
        return println!("this takes a minute: cargo bench --bench wire");
    }
    let quick = given.iter().any(|arg| arg == "--quick");
    in_process::report(if quick { 11 } else { 101 });
    if given.iter().any(|arg| arg == "--in-process") {
        return;
    }
    over_loopback::report(if quick { 3 } else { 21 });
    grpc::report(if quick { 5 } else { 41 });
}

fn quartiles(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|part| samples[part * (samples.len() - 1) / 4])
}

/// By the middle half of the rounds: on a busy machine they may not agree.
fn verdict(met: [bool; 2]) -> &'static str {
    match met {
        [true, true] => "met",
        [false, false] => "MISSED",
        _ => "unclear",
    }
}
