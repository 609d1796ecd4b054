//! Time spent well: a deadline that only shrinks is half of what a service needs, spending it is the other.
//!
//! | to | use |
//! |---|---|
//! | make attempts under one budget | [`Context::retry`](crate::Context::retry) |
//! | finish work that its waiter may leave | [`Context::shield`](crate::Context::shield) |
//! | share one piece of work among callers | [`Context::coalesce`](crate::Context::coalesce) |
//! | give a step a part of the time left | [`Context::with_share`](crate::Context::with_share) |
//! | keep some time for what comes after a step | [`Context::with_reserve`](crate::Context::with_reserve) |
//! | refuse a step that the time left is too short for | [`Context::require`](crate::Context::require) |
//! | clean up after the end, in time of its own | [`Context::run_then`](crate::Context::run_then) |
//!
//! This file hands names on.

mod coalesce;
mod retry;
mod run_then;
mod share;
mod shield;
mod story;

pub use coalesce::Coalescer;
pub use retry::Retry;
pub use story::{Attempt, GaveUp, RetryError};
