//! A row of the comparison: one piece of work, done by us and by each peer.

use std::time::Duration;

pub const OURS: &str = "tokio-ctx";
/// tokio-util's `CancellationToken`.
pub const TOKEN: &str = "tokio-util";
/// A token, with `tokio::time::timeout` or `sleep` glued to it by hand.
pub const TIMEOUT: &str = "token + timeout";
/// A token, with a number beside it for a deadline that nothing waits for yet.
pub const NUMBER: &str = "a token and a number";
/// A token, with a task per deadline that sleeps and then cancels.
pub const WATCHER: &str = "watcher task";
/// The crate of that name.
pub const TOKIO_CONTEXT: &str = "tokio-context";
/// A plain linked list of values, as Go's contexts are one.
pub const LIST: &str = "linear list";
/// Measured by `benches/compare-go`.
pub const GO: &str = "Go";

/// Does the work so many times and says how long that took.
pub type Run = Box<dyn FnMut(u64) -> Duration>;

pub struct Side {
    pub who: &'static str,
    pub run: Run,
    /// Times per sample; found by `measure`.
    pub times: u64,
    /// Nanoseconds per operation, one for each round.
    pub samples: Vec<f64>,
    /// Allocations and bytes per operation.
    pub taken: Option<(f64, f64)>,
}

/// At least this many times as fast as that peer.
pub struct Target {
    pub against: &'static str,
    pub ratio: f64,
}

pub struct Row {
    pub id: String,
    pub work: String,
    /// The first is ours.
    pub sides: Vec<Side>,
    pub targets: Vec<Target>,
    pub most_ns: Option<f64>,
    pub most_allocations: Option<f64>,
    /// Whether a side allocates only what the work needs, so that counting says something.
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

    pub fn peer(mut self, who: &'static str, run: Run) -> Row {
        self.sides.push(Side { who, run, times: 0, samples: Vec::new(), taken: None });
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
