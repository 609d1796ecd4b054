//! What is running now, and what was told to stop and is still here.
//!
//! *(the guide and the table of forms follow)*

mod build;
#[cfg(all(unix, feature = "signal"))]
mod dump;
mod ends;
mod json;
mod metrics;
mod millis;
mod overstay;
mod picture;
mod shutdowns;
mod snapshot;
mod stats;
mod text;
mod tree;

pub use build::{AlreadyInstalled, Builder, Watch, install};
pub use overstay::Overstay;
pub use snapshot::{
    AliveLine, End, EndedLine, Entry, FORMAT, How, Id, Kind, Late, LateClass, Lately, Line,
    NearlyOverdue, Phase, Poll, ShutdownState, Snapshot, State, Totals, WaitsFor,
};
pub use tree::Tree;
