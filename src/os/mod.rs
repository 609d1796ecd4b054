//! Signals and child processes.

#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "signal")]
pub mod signal;
