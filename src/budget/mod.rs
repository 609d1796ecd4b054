//! Ways to spend a deadline: retries, idle limits, shared work, reserves and queues.
//!
//! All of them stay within the deadline of one context. The guide
//! [Spending a budget](../guide/spending_a_budget/index.html) shows each of them next to the hand-written code that it
//! replaces.
//!
//! | to | use |
//! |---|---|
//! | make attempts under one budget | [`Context::retry`](crate::Context::retry) |
//! | limit the time without progress | [`Context::with_idle`](crate::Context::with_idle), [`Context::progress`](crate::Context::progress) |
//! | finish work even if its caller gives up | [`Context::shield`](crate::Context::shield) |
//! | share one piece of work between callers | [`Context::coalesce`](crate::Context::coalesce) |
//! | give a step a part of the time left | [`Context::with_share`](crate::Context::with_share) |
//! | keep some time for what comes after a step | [`Context::with_reserve`](crate::Context::with_reserve) |
//! | refuse a step that the time left is too short for | [`Context::require`](crate::Context::require) |
//! | skip overdue items of a queue | [`Context::carry`](crate::Context::carry), [`Queue`] |
//! | clean up after the end | [`Context::run_then`](crate::Context::run_then) |

// This file only re-exports names. The page of `Context` in the documentation lists its methods in the order of these
// modules. Blank lines keep them from being sorted.

mod history;
mod retry;
mod retry_error;

mod idle;

mod share;

mod shield;

mod coalesce;

mod queue;

mod run_then;

pub use crate::context::Progress;
pub use crate::context::idle_limit::NoProgress;
pub use coalesce::Coalescer;
pub use history::Attempt;
pub use queue::{Carried, Queue, Skipped};
pub use retry::Retry;
pub use retry_error::{GaveUp, RetryError};
