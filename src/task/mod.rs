//! Structured work: tasks that are waited for, and code that blocks.
//!
//! This file hands names on.

mod blocking;
pub mod group;
mod pool;
pub mod query;
pub mod shutdown;
mod stream;

pub use group::Group;
pub use shutdown::Shutdown;
pub use stream::StreamExt;
