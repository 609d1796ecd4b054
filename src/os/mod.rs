//! What the operating system has a part in: signals and child processes.

#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "signal")]
pub mod signal;
