//! Work that is still running some time after the end of its context: it is logged, counted, and passed to a callback.
//!
//! One thread checks all registered work, several times within a grace period. Because it is not a task, it also works
//! when the runtime is stuck. No timer is set when a context ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::time::Instant;

use super::build::Watch;
use super::ends::Facts;
use super::metrics;
use super::snapshot::{End, Kind, Line, Poll};
use crate::registry::Record;
use crate::token::Token;
use crate::trace::shielded;

/// The minimum grace period.
const LEAST: Duration = Duration::from_millis(10);
/// The maximum time between two checks.
const MOST: Duration = Duration::from_secs(1);

impl Watch {
    /// Reports each piece of work that is still running when the grace period has passed since the end of its context.
    ///
    /// The report is a `WARN` event of `tracing` (target `tokio_ctx`) with the line that spawned the work, the line that
    /// ended its context, and the type of the cause. It is repeated whenever the time since the end has doubled. The work
    /// is counted in [`Totals::overstayed`](super::Totals::overstayed). A separate thread checks the registered work at
    /// least once a second, so work that blocks all threads of its runtime is reported as well.
    ///
    /// Another call replaces the grace period, and drops the callback of [`overstay_with`](Self::overstay_with).
    ///
    /// # Panics
    ///
    /// Panics if the system cannot create a thread, like [`std::thread::spawn`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let watch = tokio_ctx::watch::install();
    /// watch.overstay(Duration::from_secs(5));
    /// ```
    pub fn overstay(&self, grace: Duration) {
        self.overstay_with(grace, |_| {});
    }

    /// Like [`overstay`](Self::overstay), and also calls `f` for each report, on the watch's thread.
    ///
    /// `f` should return quickly. A panic of `f` is ignored.
    ///
    /// # Panics
    ///
    /// See [`overstay`](Self::overstay).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let watch = tokio_ctx::watch::install();
    /// watch.overstay_with(Duration::from_secs(5), |overstay| {
    ///     // task spawned at src/main.rs:12 is still running 5.003s after its end: context canceled at src/main.rs:88
    ///     eprintln!("{overstay}");
    /// });
    /// ```
    pub fn overstay_with(&self, grace: Duration, f: impl Fn(&Overstay) + Send + Sync + 'static) {
        static MONITOR: OnceLock<Thread> = OnceLock::new();
        let rules = Arc::new(Rules { grace: grace.max(LEAST), callback: Box::new(f) });
        let before = RULES.lock().unwrap_or_else(PoisonError::into_inner).replace(rules);
        drop(before);
        let watch = *self;
        let monitor = MONITOR.get_or_init(|| {
            let spawned =
                thread::Builder::new().name("tokio-ctx-watch".into()).spawn(move || watch.monitor());
            spawned.expect("the system can create a thread").thread().clone()
        });
        monitor.unpark();
    }

    fn monitor(self) {
        loop {
            let rules = RULES.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(rules) = rules else { return };
            let mut overstaying = HashMap::new();
            self.hub.table.for_each(|record| {
                if shielded(|| self.check(&record, &rules)) == Some(true) {
                    *overstaying.entry((record.kind, Line(record.line))).or_insert(0) += 1;
                }
            });
            metrics::overstaying(&overstaying);
            let pause = (rules.grace / 4).clamp(LEAST, MOST);
            shielded(|| drop(rules));
            thread::park_timeout(pause);
        }
    }

    /// Reports a record if a report is due. Returns whether the work has been running for longer than the grace period.
    fn check(&self, record: &Record, rules: &Rules) -> bool {
        if !record.kind.is_work() || record.is_over() {
            return false;
        }
        let Some(token) = record.subject.as_ref().and_then(Token::of_subject) else { return false };
        let now = Instant::now();
        let error = token.unnoticed_error(now);
        let over = error.as_ref().map(|error| now.saturating_duration_since(error.origin().ended_at()));
        let Some((error, over)) = error.zip(over).filter(|(_, over)| *over >= rules.grace) else {
            return false;
        };
        // Only this thread writes this value.
        let reported = record.reports.load(Ordering::Relaxed);
        if over >= rules.interval(reported) {
            record.reports.store(rules.intervals(over), Ordering::Relaxed);
            if reported == 0 {
                self.stats.overstayed.fetch_add(1, Ordering::Relaxed);
                metrics::overstayed(record.kind, Line(record.line));
            }
            let end = Facts::new(&error, self.stats.show_causes).to_end(now);
            drop((error, token));
            rules.report(&Overstay {
                kind: record.kind,
                line: Line(record.line),
                name: record.name(),
                end,
                over,
                is_first: reported == 0,
                poll: record.last_poll().map(|(ago, inside)| Poll { ago, inside }),
            });
        }
        true
    }
}

static RULES: Mutex<Option<Arc<Rules>>> = Mutex::new(None);

struct Rules {
    grace: Duration,
    callback: Box<dyn Fn(&Overstay) + Send + Sync>,
}

impl Rules {
    /// Returns the time after the end at which work is reported next, if it has been reported `reported` times.
    fn interval(&self, reported: u32) -> Duration {
        self.grace.saturating_mul(1_u32.checked_shl(reported).unwrap_or(u32::MAX))
    }

    /// Returns how many reports are due for work that has been running for this time since the end.
    fn intervals(&self, over: Duration) -> u32 {
        (1..32).find(|reported| self.interval(*reported) > over).unwrap_or(32)
    }

    fn report(&self, overstay: &Overstay) {
        #[cfg(feature = "tracing")]
        crate::trace::call(|| overstay.warn());
        shielded(|| (self.callback)(overstay));
    }
}

/// Work that is still running after the end of its context, as reported by [`Watch::overstay_with`].
///
/// Its [`Display`](fmt::Display) is one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overstay {
    /// The kind of work.
    pub kind: Kind,
    /// The line that spawned it.
    pub line: Line,
    /// Its name.
    pub name: Option<String>,
    /// How its context ended.
    pub end: End,
    /// The time since the end.
    pub over: Duration,
    /// Whether this is the first report of it.
    pub is_first: bool,
    /// Its last poll, if it is polled. `inside` distinguishes a busy loop from a future that is not woken.
    pub poll: Option<Poll>,
}

impl fmt::Display for Overstay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overstay { kind, line, end, over, poll, .. } = self;
        write!(f, "{kind} ")?;
        if let Some(name) = &self.name {
            write!(f, "{name} ")?;
        }
        // Milliseconds are precise enough.
        let over = Duration::from_millis(over.as_millis().try_into().unwrap_or(u64::MAX));
        write!(f, "spawned at {line} is still running {over:?} after its end: {}", end.text)?;
        match (&end.cause, end.cause_type) {
            (Some(cause), _) => write!(f, ": {cause}")?,
            (None, Some(name)) => write!(f, ": {name}")?,
            (None, None) => {}
        }
        match poll {
            Some(Poll { inside: true, ago }) => write!(f, "; inside a poll for {ago:.1?}"),
            Some(Poll { ago, .. }) => write!(f, "; last polled {ago:.1?} ago"),
            None => Ok(()),
        }
    }
}

#[cfg(feature = "tracing")]
impl Overstay {
    fn warn(&self) {
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        tracing::warn!(
            target: "tokio_ctx",
            kind = %self.kind,
            name = self.name.as_deref(),
            spawned_at = %self.line,
            how = %self.end.how,
            ended_at = %self.end.line,
            cause_type = self.end.cause_type,
            cause = self.end.cause.as_deref(),
            over_ms = millis(self.over),
            inside_poll = self.poll.map(|poll| poll.inside),
            polled_ms = self.poll.map(|poll| millis(poll.ago)),
            "still running after the end of its context"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double() {
        let rules = Rules { grace: Duration::from_secs(5), callback: Box::new(|_| {}) };
        assert_eq!([0, 1, 2].map(|reported| rules.interval(reported).as_secs()), [5, 10, 20]);
        assert_eq!(
            [5, 9, 10, 39, 40].map(|secs| rules.intervals(Duration::from_secs(secs))),
            [1, 1, 2, 3, 4]
        );
        assert_eq!(rules.intervals(Duration::MAX), 32);
        assert!(rules.interval(32) > Duration::from_secs(600 * 365 * 86_400));
    }
}
