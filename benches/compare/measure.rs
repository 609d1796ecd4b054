//! Rounds and medians.

use std::time::{Duration, Instant};

use crate::alloc::counted;
use crate::row::{Row, Run, Side};

#[derive(Clone, Copy)]
pub struct Plan {
    /// The minimum length of a sample. Short, so that most samples are not interrupted on a busy machine.
    pub sample: Duration,
    /// How often the whole table is measured, so that a temporary load of the machine affects all rows alike.
    pub passes: usize,
    /// How long all sides of a row are measured in turns, in each pass.
    pub row: Duration,
}

impl Plan {
    pub const FULL: Plan =
        Plan { sample: Duration::from_millis(2), passes: 5, row: Duration::from_millis(500) };
    pub const QUICK: Plan =
        Plan { sample: Duration::from_millis(1), passes: 1, row: Duration::from_millis(200) };
}

pub fn measure(rows: &mut [Row], plan: Plan) {
    for side in rows.iter_mut().flat_map(|row| &mut row.sides) {
        side.times = calibrate(&mut side.run, plan.sample);
    }
    for pass in 0..plan.passes {
        eprintln!("pass {} of {}", pass + 1, plan.passes);
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

/// Alternates the direction, so that no side is always first.
fn go_round(sides: &mut [Side], round: usize) {
    let last = sides.len() - 1;
    for at in 0..sides.len() {
        let side = &mut sides[if round % 2 == 0 { at } else { last - at }];
        let took = (side.run)(side.times);
        side.samples.push(took.as_nanos() as f64 / side.times as f64);
    }
}

/// Returns how many iterations make a sample.
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
    // Memory that is kept between runs, such as the capacity of a list, has been allocated by now.
    let (allocations, bytes) = counted(|| {
        (side.run)(side.times);
    });
    let times = side.times as f64;
    side.taken = Some((allocations as f64 / times, bytes as f64 / times));
}

/// Returns NaN if there are no samples.
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

/// The time of a peer over ours, as the median over the rounds, in each of which both are measured under the same
/// conditions.
pub struct Ratio {
    pub median: f64,
    /// The quartiles: half of the rounds lie between these.
    quartiles: [f64; 2],
}

impl Ratio {
    pub fn of(ours: &[f64], peer: &[f64]) -> Ratio {
        let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| peer / ours).collect();
        let quartiles = [0.25, 0.75].map(|part| quantile(&ratios, part));
        Ratio { median: median(&ratios), quartiles }
    }

    /// Returns whether a target is met, or `None` if the rounds disagree.
    pub fn reaches(&self, target: f64) -> Option<bool> {
        let [low, high] = self.quartiles.map(|quartile| quartile >= target);
        (low == high).then_some(low)
    }
}
