//! Rounds and medians.

use std::time::{Duration, Instant};

use crate::alloc::counted;
use crate::row::{Row, Run, Side};

#[derive(Clone, Copy)]
pub struct Plan {
    /// How long a sample is to take at least. Short, so that most samples of a busy machine are whole.
    pub sample: Duration,
    /// How often the whole table is gone through, so that what else the machine does for a while
    /// falls on all rows alike.
    pub laps: usize,
    /// How long, each lap, all sides of a row are measured one after the other.
    pub row: Duration,
}

impl Plan {
    pub const FULL: Plan =
        Plan { sample: Duration::from_millis(2), laps: 5, row: Duration::from_millis(500) };
    pub const QUICK: Plan =
        Plan { sample: Duration::from_millis(1), laps: 1, row: Duration::from_millis(200) };
}

pub fn measure(rows: &mut [Row], plan: Plan) {
    for side in rows.iter_mut().flat_map(|row| &mut row.sides) {
        side.times = calibrate(&mut side.run, plan.sample);
    }
    for lap in 0..plan.laps {
        eprintln!("lap {} of {}", lap + 1, plan.laps);
        for row in &mut *rows {
            let start = Instant::now();
            let mut rounds = 0;
            while rounds < 3 || start.elapsed() < plan.row {
                go_round(&mut row.sides, rounds);
                rounds += 1;
            }
        }
    }
    for row in rows.iter_mut().filter(|row| row.counts) {
        row.sides.iter_mut().for_each(count);
    }
}

/// There and back in turns, so that none is always the first.
fn go_round(sides: &mut [Side], round: usize) {
    let last = sides.len() - 1;
    for at in 0..sides.len() {
        let side = &mut sides[if round % 2 == 0 { at } else { last - at }];
        let took = (side.run)(side.times);
        side.samples.push(took.as_nanos() as f64 / side.times as f64);
    }
}

/// How many times make a sample.
pub fn calibrate(run: &mut Run, sample: Duration) -> u64 {
    let mut times = 1;
    loop {
        let took = run(times);
        if took >= sample {
            return times;
        }
        let wanted = sample.as_nanos() as f64 / (took.as_nanos() as f64).max(1.0) * 1.1;
        times = (times as f64 * wanted.clamp(1.5, 10.0)).ceil() as u64;
    }
}

pub fn count(side: &mut Side) {
    // What lives on from one run to the next, such as a list's room, is there by now.
    let (allocations, bytes) = counted(|| {
        (side.run)(side.times);
    });
    let times = side.times as f64;
    side.taken = Some((allocations as f64 / times, bytes as f64 / times));
}

/// Not a number, if there are none.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = part * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    (at(place.floor()) + at(place.ceil())) / 2.0
}

/// How many times as long as us it took a peer: over the rounds, in each of which both had the same
/// machine.
pub struct Ratio {
    pub median: f64,
    /// In half of the rounds it lay between these.
    quartiles: [f64; 2],
}

impl Ratio {
    pub fn of(ours: &[f64], peer: &[f64]) -> Ratio {
        let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| peer / ours).collect();
        let quartiles = [0.25, 0.75].map(|part| quantile(&ratios, part));
        Ratio { median: median(&ratios), quartiles }
    }

    /// Whether a target is met; `None`: the rounds do not agree.
    pub fn reaches(&self, target: f64) -> Option<bool> {
        let [low, high] = self.quartiles.map(|quartile| quartile >= target);
        (low == high).then_some(low)
    }
}
