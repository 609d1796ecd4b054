//! A row of the comparison: one piece of work, done by this crate and by each peer.

use std::time::Duration;

pub const OURS: &str = "tokio-ctx";
/// tokio-util's `CancellationToken`.
pub const TOKEN: &str = "tokio-util";
/// A token, combined with `tokio::time::timeout` or `sleep` by hand.
pub const TIMEOUT: &str = "token + timeout";
/// A token, and a number for a deadline that nothing waits for yet.
pub const NUMBER: &str = "token + number";
/// A token, with a task for each deadline that sleeps and then cancels.
pub const WATCHER: &str = "watcher task";
/// The crate of that name.
pub const TOKIO_CONTEXT: &str = "tokio-context";
/// A plain linked list of values, like Go's contexts.
pub const LIST: &str = "linear list";
/// Measured by `benches/compare-go`.
pub const GO: &str = "Go";

/// Does the work this many times, and returns how long it took.
pub type Run = Box<dyn FnMut(u64) -> Duration>;

pub struct Side {
    pub name: &'static str,
    pub run: Run,
    /// Iterations per sample; set by `measure`.
    pub times: u64,
    /// Nanoseconds per operation, one for each round.
    pub samples: Vec<f64>,
    /// Allocations and bytes per operation.
    pub taken: Option<(f64, f64)>,
}

/// The minimum ratio against that peer.
pub struct Target {
    pub against: &'static str,
    pub ratio: f64,
}

pub struct Row {
    pub id: String,
    pub work: String,
    /// The first side is ours.
    pub sides: Vec<Side>,
    pub targets: Vec<Target>,
    pub most_ns: Option<f64>,
    pub most_allocations: Option<f64>,
    /// Whether a side allocates only what the work needs, so that counting is meaningful.
    pub counts: bool,
}

impl Row {
    pub fn new(id: impl Into<String>, work: impl Into<String>, ours: Run) -> Row {
        let row = Row {
            id: id.into(),
            work: work.into(),
            sides: Vec::new(),
            targets: Vec::new(),
            most_ns: None,
            most_allocations: None,
            counts: true,
        };
        row.peer(OURS, ours)
    }

    pub fn peer(mut self, name: &'static str, run: Run) -> Row {
        self.sides.push(Side { name, run, times: 0, samples: Vec::new(), taken: None });
        self
    }

    pub fn target(mut self, against: &'static str, ratio: f64) -> Row {
        self.targets.push(Target { against, ratio });
        self
    }

    pub fn at_most_ns(mut self, most: f64) -> Row {
        self.most_ns = Some(most);
        self
    }

    pub fn at_most_allocations(mut self, most: f64) -> Row {
        self.most_allocations = Some(most);
        self
    }

    pub fn uncounted(mut self) -> Row {
        self.counts = false;
        self
    }
}
