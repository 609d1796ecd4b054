//! A deadline as a date: for what rests in a queue, where the time that was left says nothing any more.
//!
//! The only place of this crate in which two machines' clocks are compared. So the receiver decides what to make of
//! it: how far the clocks may lie apart, and how much time a date can give at most.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderName;

use super::carrier::{self, Carrier};
use super::timeout::{BadHeader, Digits, Flaw, number};

/// A header that says by when something is to be done: milliseconds since 1970, for what rests in a queue.
///
/// Between live peers the time that is left needs no clocks that agree, and a
/// [`DeadlineHeader`](super::DeadlineHeader) is right. A message may lie for an hour before it is taken: that hour
/// counts with a date alone. The sender chooses it with [`Outbound::write_date`](super::Outbound::write_date), the
/// receiver believes it with [`Inbound::believe_date`](super::Inbound::believe_date). Of this type the sender uses
/// the name and the maximum, the receiver everything:
///
/// - the *maximum* is the most time that a date can give, however far in the future it is, so that neither a clock
///   that is wrong nor a stranger makes work that never ends. A sender writes no date beyond it;
/// - the *skew* is how far the receiver's clock may be ahead of the sender's, or behind: a date counts as passed only
///   when it lies further back than that, and each gives so much more time. It is zero unless it is set.
///
/// A date that has passed gives a context that has ended at birth, with the cause
/// [`Budget::Caller`](super::Budget): the message is not worth beginning. A date that is there twice, or is none,
/// is a bad header, and treated as such.
///
/// The clock is the system's, also in a test in which Tokio's is paused.
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

/// The year 33,658.
const MOST: u64 = 999_999_999_999_999;
const DIGITS: usize = 15;

impl DeadlineAt {
    /// A date in `x-deadline-unix-ms` that gives no more time than `max`, of clocks that agree.
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

    /// The same under another name.
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

    /// How far the clocks of sender and receiver may lie apart, as a leeway of the receiver.
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

    /// Its name.
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

    /// The time that is left until the date that is given, the leeway included.
    pub(crate) fn read_from(&self, carrier: &dyn Carrier) -> Result<Option<Duration>, BadHeader> {
        Ok(self.date(carrier)?.map(|date| date.saturating_add(self.skew).saturating_sub(since_1970())))
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The date itself, since 1970.
    pub(crate) fn date(&self, carrier: &dyn Carrier) -> Result<Option<Duration>, BadHeader> {
        let bad = |flaw| BadHeader::new(&self.name, flaw);
        let value = carrier::only(carrier, &self.name).map_err(|_| bad(Flaw::Repeated))?;
        let Some(value) = value else { return Ok(None) };
        let date = number(value, DIGITS).ok_or(bad(Flaw::Date))?;
        Ok(Some(Duration::from_millis(date)))
    }

    /// The date that this much time is left until.
    pub(crate) fn date_in(&self, left: Duration) -> Duration {
        since_1970().saturating_add(left.min(self.max))
    }

    pub(crate) fn text(date: Duration) -> Digits {
        Digits::new(u64::try_from(date.as_millis()).unwrap_or(MOST).min(MOST), None)
    }
}

/// Zero for a clock that has not been set.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
