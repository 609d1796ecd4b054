//! Structured concurrency: groups of tasks, shutdowns, and blocking code.
//!
//! This file only re-exports names.

mod blocking;
pub mod group;
mod pool;
pub mod query;
pub mod shutdown;
mod sleep;
mod stream;

pub use group::Group;
pub use shutdown::Shutdown;
pub use stream::StreamExt;
