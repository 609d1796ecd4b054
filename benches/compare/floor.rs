//! Lower bounds on this machine: the cost of the parts that any implementation needs.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::sync::{Arc, Mutex};

use crate::drive::sync;
use crate::measure::{Plan, calibrate, median};
use crate::report::nanos;
use crate::row::Run;

pub fn table(plan: Plan) -> Vec<Vec<String>> {
    let mut lines = vec![vec!["part".to_string(), "ns".to_string()]];
    for (part, mut run) in parts() {
        let times = calibrate(&mut run, plan.sample);
        let sample = |_| run(times).as_nanos() as f64 / times as f64;
        let samples: Vec<f64> = (0..101).map(sample).collect();
        lines.push(vec![part.into(), nanos(median(&samples))]);
    }
    lines
}

fn parts() -> Vec<(&'static str, Run)> {
    let (number, lock) = (AtomicUsize::new(0), Mutex::new(0));
    let shared = Arc::new(0);
    vec![
        ("malloc and free of 128 bytes", each(|| Box::new([0_u8; 128]))),
        ("std::time::Instant::now()", each(std::time::Instant::now)),
        ("tokio::time::Instant::now()", each(tokio::time::Instant::now)),
        ("an atomic add", each(move || number.fetch_add(1, AcqRel))),
        ("an Arc cloned and dropped", each(move || shared.clone())),
        ("a Mutex locked and unlocked", each(move || *black_box(&lock).lock().expect("no panic") += 1)),
    ]
}

fn each<T>(part: impl Fn() -> T + 'static) -> Run {
    sync(move || {
        black_box(part());
    })
}
