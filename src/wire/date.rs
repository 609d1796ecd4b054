//! A deadline as an absolute time, for messages that wait in a queue, where the remaining time goes stale.
//!
//! This is the only place in the crate that compares the clocks of two machines. The receiver therefore sets how far
//! the clocks may differ, and the longest remaining time that it accepts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderName;

use super::carrier::{self, Carrier};
use super::timeout::{BadHeader, Digits, Flaw, number};

/// A header with the deadline as an absolute time, in milliseconds since 1970, for messages that wait in a queue.
///
/// Between two services that are connected, use a [`DeadlineHeader`](super::DeadlineHeader): it contains the
/// remaining time, and the clocks need not agree. In a queue a message may wait for an hour, and only an absolute
/// time accounts for that. The sender writes it with [`Outbound::write_date`](super::Outbound::write_date), and the
/// receiver reads it with [`Inbound::believe_date`](super::Inbound::believe_date). The settings are:
///
/// - The *maximum*: the longest remaining time that the receiver accepts, however far in the future the date is. It
///   bounds the work for a message from a peer that is hostile or has a wrong clock. The sender writes no later date.
/// - The *skew*: how far the two clocks may differ. The receiver adds it to every date, so that a date counts as
///   passed only when it is older than the skew. The default is zero.
///
/// For a date that has passed, the context has already ended, with the cause [`Budget::Caller`](super::Budget). A
/// date that is malformed, or given more than once, is a bad header, as for the other deadline headers.
///
/// The date is compared with the system clock, also in a test that pauses Tokio's clock.
///
/// ```
/// use std::collections::HashMap;
/// use std::time::Duration;
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{DeadlineAt, Inbound, Outbound};
///
/// let date = DeadlineAt::new(Duration::from_secs(3600)).skew(Duration::from_secs(1));
///
/// // The producer …
/// let mut properties = HashMap::<String, String>::new();
/// let ctx = Context::background().with_timeout(Duration::from_secs(60));
/// ctx.inject_with(&mut properties, &Outbound::new().write_date(date.clone()))?;
///
/// // … and the consumer, later.
/// let inbound = Inbound::new().believe_date(date);
/// let ctx = Context::background().extract(&properties, &inbound)?;
/// assert!(ctx.remaining().unwrap() <= Duration::from_secs(61));
///
/// properties.insert("x-deadline-unix-ms".into(), "1700000000000".into());
/// assert!(Context::background().extract(&properties, &inbound)?.is_done());
/// # Ok::<(), tokio_ctx::BoxError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadlineAt {
    name: HeaderName,
    max: Duration,
    skew: Duration,
}

static USUAL: HeaderName = HeaderName::from_static("x-deadline-unix-ms");

/// The largest number of 15 digits, in the year 33,658.
const MOST: u64 = 999_999_999_999_999;
const DIGITS: usize = 15;

impl DeadlineAt {
    /// Makes a setting for the header `x-deadline-unix-ms`, with this maximum and without skew.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::wire::DeadlineAt;
    ///
    /// assert_eq!(DeadlineAt::new(Duration::from_secs(60)).name(), "x-deadline-unix-ms");
    /// ```
    pub fn new(max: Duration) -> DeadlineAt {
        DeadlineAt { name: USUAL.clone(), max, skew: Duration::ZERO }
    }

    /// Sets the name of the header.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderName;
    /// use tokio_ctx::wire::DeadlineAt;
    ///
    /// let date = DeadlineAt::new(Duration::from_secs(60)).named(HeaderName::from_static("expires-at"));
    /// assert_eq!(date.name(), "expires-at");
    /// ```
    pub fn named(mut self, name: HeaderName) -> DeadlineAt {
        self.name = name;
        self
    }

    /// Sets how far the clocks of sender and receiver may differ.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::wire::DeadlineAt;
    ///
    /// let _date = DeadlineAt::new(Duration::from_secs(60)).skew(Duration::from_millis(500));
    /// ```
    pub fn skew(mut self, skew: Duration) -> DeadlineAt {
        self.skew = skew;
        self
    }

    /// Returns the name of the header.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::wire::DeadlineAt;
    ///
    /// assert_eq!(DeadlineAt::new(Duration::MAX).name(), "x-deadline-unix-ms");
    /// ```
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    pub(crate) fn usual_name() -> &'static HeaderName {
        &USUAL
    }

    /// Returns the remaining time until the date in the header, including the skew.
    pub(crate) fn read_from(&self, carrier: &dyn Carrier) -> Result<Option<Duration>, BadHeader> {
        Ok(self.date(carrier)?.map(|date| date.saturating_add(self.skew).saturating_sub(since_1970())))
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// Returns the date in the header, since 1970.
    pub(crate) fn date(&self, carrier: &dyn Carrier) -> Result<Option<Duration>, BadHeader> {
        let bad = |flaw| BadHeader::new(&self.name, flaw);
        let value = carrier::only(carrier, &self.name).map_err(|_| bad(Flaw::Repeated))?;
        let Some(value) = value else { return Ok(None) };
        let date = number(value, DIGITS).ok_or_else(|| bad(Flaw::Date))?;
        Ok(Some(Duration::from_millis(date)))
    }

    /// Returns the date to which this much time remains.
    pub(crate) fn date_in(&self, left: Duration) -> Duration {
        since_1970().saturating_add(left.min(self.max))
    }

    pub(crate) fn text(date: Duration) -> Digits {
        Digits::new(u64::try_from(date.as_millis()).unwrap_or(MOST).min(MOST), None)
    }
}

/// Returns the time since 1970; zero if the clock is before that.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
