//! A sleep until a time that may never come.

use std::future::pending;
use std::time::Duration;

use tokio::time::Instant;

/// Sleeps until a time, or forever without one.
pub(super) async fn sleep_until(at: Option<Instant>) {
    // Tokio's timer rounds up, which would overflow at the very end of the clock's range.
    match at.filter(|at| at.checked_add(Duration::from_secs(1)).is_some()) {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}
