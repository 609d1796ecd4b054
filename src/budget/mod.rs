//! Time spent well: a deadline that only shrinks is half of what a service needs, spending it is the other.
//!
//! | to | use |
//! |---|---|
//! | make attempts under one budget | [`Context::retry`](crate::Context::retry) |
//! | give a step a part of the time left | [`Context::with_share`](crate::Context::with_share) |
//! | keep some time for what comes after a step | [`Context::with_reserve`](crate::Context::with_reserve) |
//! | refuse a step that the time left is too short for | [`Context::require`](crate::Context::require) |
//!
//! This file hands names on.

mod retry;
mod share;
mod story;

pub use retry::Retry;
pub use story::{Attempt, GaveUp, RetryError};
