//! The costs of the layers of `wire`: `cargo bench --bench wire` takes two minutes, with `-- --quick` less than one, and
//! with `-- --in-process` it prints the first table alone. It writes its progress to standard error.
//!
//! In the process, a call of a service with the layers takes turns with the same call without them, by the CPU time of
//! the thread. Over loopback, an axum server with the layers takes turns with the same server without them, under `wrk`
//! if that is installed, and so does a gRPC client with its server. All figures are medians over the rounds.

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
        return println!("takes two minutes: cargo bench --bench wire");
    }
    let quick = given.iter().any(|arg| arg == "--quick");
    eprintln!("calls in the process");
    in_process::report(if quick { 11 } else { 101 });
    if given.iter().any(|arg| arg == "--in-process") {
        return;
    }
    eprintln!("an axum server over loopback");
    over_loopback::report(if quick { 3 } else { 9 });
    eprintln!("a gRPC echo");
    grpc::report(if quick { 5 } else { 21 });
}

fn quartiles(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|part| samples[part * (samples.len() - 1) / 4])
}

/// Compares the quartiles with the target. On a busy machine they may be on both sides of it.
fn verdict(met: [bool; 2]) -> &'static str {
    match met {
        [true, true] => "met",
        [false, false] => "MISSED",
        _ => "unclear",
    }
}
