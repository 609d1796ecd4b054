//! The public types of a snapshot, which the text, the JSON and the page show.

use std::fmt;
use std::panic::Location;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::millis::{ms, ms_or_null, unix_ms};
use crate::error::Place;
pub use crate::registry::Kind;
use crate::registry::named;

/// The version of the JSON format, in the field `format` of a [`Snapshot`]. It changes when a field is removed or its
/// meaning changes, and not when a field is added.
pub const FORMAT: u32 = 1;

/// Everything that is running at one time. Work whose context has ended comes first.
///
/// Created by [`Watch::snapshot`](super::Watch::snapshot). It is weakly consistent: the program continues while it is
/// taken, so two lines may be some milliseconds apart.
///
/// [`Display`](fmt::Display) prints it for a terminal of 100 columns. [`to_json`](Self::to_json) returns it as JSON. The
/// fields are those of the structs here: a duration is a number of milliseconds, in a field that ends in `_ms`; a line
/// of code is a string such as `src/main.rs:12`; an unknown value is `null`; an enum is a string in snake case. Ignore
/// unknown fields.
///
/// | field | content |
/// |---|---|
/// | `format` | the number [`FORMAT`] |
/// | `taken_at_ms` | when it was taken, in milliseconds since 1970 |
/// | `took_ms` | how long that took |
/// | `totals` | counts of all entries: [`Totals`] |
/// | `ended` | work that is still running after the end of its context: an array of [`EndedLine`], the longest first |
/// | `nearly_overdue` | work and contexts with less than a tenth of their budget left: an array of [`NearlyOverdue`], the least time left first |
/// | `alive` | work and contexts that have not ended, by line: an array of [`AliveLine`], the most frequent first |
/// | `lately` | contexts that ended in the last minutes: an array of [`Lately`], the most frequent first |
/// | `late` | how long work continued after the end of its context: an array of [`LateClass`], the shortest first |
/// | `shutdowns` | each [`Shutdown`](crate::Shutdown), with its phase: an array of [`ShutdownState`] |
/// | `entries` | the trees, as a flat array of [`Entry`], each after its parent |
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The version of the format: [`FORMAT`].
    pub format: u32,
    /// When it was taken.
    #[serde(rename = "taken_at_ms", serialize_with = "unix_ms")]
    pub taken_at: SystemTime,
    /// How long that took.
    #[serde(rename = "took_ms", serialize_with = "ms")]
    pub took: Duration,
    /// Counts of all entries.
    pub totals: Totals,
    /// *Ended, still running*: work whose context has ended, by the line that spawned it, the longest first. Contexts that
    /// are only held come after work.
    pub ended: Vec<EndedLine>,
    /// Work and contexts with less than a tenth of their budget left, the least time left first.
    pub nearly_overdue: Vec<NearlyOverdue>,
    /// Work and contexts that have not ended, by line, the most frequent first.
    pub alive: Vec<AliveLine>,
    /// Contexts that ended in the last minutes, by kind of end, line and type of cause, the most frequent first.
    pub lately: Vec<Lately>,
    /// How long work continued after the end of its context, by class of lateness, the shortest first.
    pub late: Vec<LateClass>,
    /// Each shutdown, with its phase.
    pub shutdowns: Vec<ShutdownState>,
    /// The trees, as a flat list. Each entry is after its parent.
    pub entries: Vec<Entry>,
}

/// Counts of all entries, whether they are listed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// `seen`: the number of contexts and pieces of work that were visited.
    pub seen: usize,
    /// `work`: how many of these are work: tasks, requests, blocking functions, processes, tickets.
    pub work: usize,
    /// `alive`: the number of pieces of work whose context has not ended.
    pub alive: usize,
    /// `ended`: the number of pieces of work that are still running although their context has ended.
    pub ended: usize,
    /// `held`: the number of contexts that have ended, have no work, and are still held.
    pub held: usize,
    /// `overstayed`: how many pieces of work have exceeded the grace period of [`overstay`](super::Watch::overstay) since the
    /// watch was installed.
    pub overstayed: u64,
    /// `unregistered`: how many entries have not been registered since the watch was installed, because
    /// [`max_entries`](super::Builder::max_entries) was reached.
    pub unregistered: u64,
    /// `unseen`: how many contexts were found and not visited, because `max_entries` was reached.
    pub unseen: usize,
    /// `unlisted`: how many visited entries have been left out of `entries`: see
    /// [`Snapshot::under`] and [`Snapshot::cut`].
    pub unlisted: usize,
}

/// Work of one kind and one line that is still running after the end of its context.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndedLine {
    /// `line`: the line that spawned it, or the line that created its context.
    pub line: Line,
    /// `kind`: the kind of entry.
    pub kind: Kind,
    /// `count`: the number of entries.
    pub count: usize,
    /// `inside`: how many of them are being polled, or are running a blocking function. If that takes long, it is a busy
    /// loop or a blocking call.
    pub inside: usize,
    /// `longest_ms`: the longest time since the end of the context.
    #[serde(rename = "longest_ms", serialize_with = "ms")]
    pub longest: Duration,
    /// `first`: the [`Entry::id`] of the entry whose context ended first.
    pub first: Id,
    /// `name`: the name of that entry.
    pub name: Option<String>,
    /// `end`: how the context of that entry ended.
    pub end: End,
    /// `poll`: the last poll of that entry, if it is polled.
    pub poll: Option<Poll>,
    /// `state`: the state of that entry.
    pub state: State,
    /// `is_work`: false for contexts that are only held.
    pub is_work: bool,
}

/// The state of a piece of work, according to its last poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// `busy`: it is being polled, or is running a blocking function.
    Busy,
    /// `waiting`: it is waiting for something other than the end of its context.
    Waiting,
    /// `never_polled`: it has not been polled since it was spawned. Its runtime is overloaded or blocked.
    NeverPolled,
    /// `held`: it is not polled. It is a context, a ticket or similar that something holds.
    Held,
}

/// Work, or a context, with less than a tenth of its budget left.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NearlyOverdue {
    /// `id`: its [`Entry::id`].
    pub id: Id,
    /// `kind`: the kind of entry.
    pub kind: Kind,
    /// `line`: the line that spawned or created it.
    pub line: Line,
    /// `name`: its name.
    pub name: Option<String>,
    /// `left_ms`: the time left.
    #[serde(rename = "left_ms", serialize_with = "ms")]
    pub left: Duration,
    /// `budget_ms`: the whole budget.
    #[serde(rename = "budget_ms", serialize_with = "ms")]
    pub budget: Duration,
}

/// Work or contexts of one kind and one line that have not ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AliveLine {
    /// `line`: the line that spawned or created them.
    pub line: Line,
    /// `kind`: the kind of entry.
    pub kind: Kind,
    /// `count`: the number of entries.
    pub count: usize,
    /// `oldest_ms`: the age of the oldest, if it is known. The age of a context that is not registered is known if it was
    /// created after the watch was installed.
    #[serde(rename = "oldest_ms", serialize_with = "ms_or_null")]
    pub oldest: Option<Duration>,
    /// `least_left_ms`: the least time left, if one of them has a deadline.
    #[serde(rename = "least_left_ms", serialize_with = "ms_or_null")]
    pub least_left: Option<Duration>,
    /// `budget_ms`: the whole budget of the one that has the least time left.
    #[serde(rename = "budget_ms", serialize_with = "ms_or_null")]
    pub budget: Option<Duration>,
    /// `waiters`: the number of futures that wait for their ends.
    pub waiters: usize,
    /// `name`: the name of the oldest.
    pub name: Option<String>,
    /// `oldest`: the [`Entry::id`] of the oldest.
    #[serde(rename = "oldest")]
    pub oldest_id: Id,
}

/// Contexts that ended by themselves in the last one to two minutes, with the same kind of end, line and type of cause.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Lately {
    /// `how`: how they ended.
    pub how: How,
    /// `line`: the line that created them.
    pub line: Line,
    /// `cause_type`: the type of the cause, if there was one.
    pub cause_type: Option<&'static str>,
    /// `count`: their number in the last minutes.
    pub count: u64,
    /// `total`: their number since the watch was installed.
    pub total: u64,
    /// `mean_lived_ms`: their mean lifetime, if it is known.
    #[serde(rename = "mean_lived_ms", serialize_with = "ms_or_null")]
    pub mean_lived: Option<Duration>,
    /// `max_lived_ms`: their longest lifetime, if it is known.
    #[serde(rename = "max_lived_ms", serialize_with = "ms_or_null")]
    pub max_lived: Option<Duration>,
    /// `last_ago_ms`: how long ago the last of them ended.
    #[serde(rename = "last_ago_ms", serialize_with = "ms")]
    pub last_ago: Duration,
}

/// Work that continued after the end of its context, for a time within the same bounds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LateClass {
    /// `up_to_ms`: the upper bound of this class; `null` in the last class, which has none.
    #[serde(rename = "up_to_ms", serialize_with = "ms_or_null")]
    pub up_to: Option<Duration>,
    /// `count`: the number since the watch was installed.
    pub count: u64,
    /// `last`: the last few, the most recent first.
    pub last: Vec<Late>,
}

/// A piece of work that continued after the end of its context.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Late {
    /// `kind`: the kind of work.
    pub kind: Kind,
    /// `line`: the line that spawned it.
    pub line: Line,
    /// `name`: its name.
    pub name: Option<String>,
    /// `how`: how its context ended.
    pub how: How,
    /// `late_ms`: the time from the end of the context to the end of the work.
    #[serde(rename = "late_ms", serialize_with = "ms")]
    pub late: Duration,
    /// `ago_ms`: how long ago the work ended.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
}

/// The state of a [`Shutdown`](crate::Shutdown). It agrees with the [report](crate::shutdown::Report).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ShutdownState {
    /// `id`: its [`Entry::id`].
    pub id: Id,
    /// `line`: the line that created it.
    pub line: Line,
    /// `phase`: its phase.
    pub phase: Phase,
    /// `since_ms`: how long ago this phase began; `null` in the first one.
    #[serde(rename = "since_ms", serialize_with = "ms_or_null")]
    pub since: Option<Duration>,
    /// `left_ms`: the time left in this phase, if it is limited.
    #[serde(rename = "left_ms", serialize_with = "ms_or_null")]
    pub left: Option<Duration>,
    /// `why`: the cause with which it began.
    pub why: Option<End>,
    /// `running`: the number of pieces of work that it waits for.
    pub running: usize,
    /// `overdue`: how many were still running when the hard context ended.
    pub overdue: usize,
    /// `waits_for`: the work that it waits for, by name and line: overdue work first, then the most frequent.
    pub waits_for: Vec<WaitsFor>,
}

/// Work with the same name and line that a shutdown waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitsFor {
    /// `name`: its name, if it has one.
    pub name: Option<String>,
    /// `line`: the line that spawned or tracked it.
    pub line: Line,
    /// `count`: the number of entries.
    pub count: usize,
    /// `overdue`: how many of them were still running when the hard context ended.
    pub overdue: usize,
}

/// The phase of a shutdown: see [the module](crate::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// `running`: it has not begun.
    Running,
    /// `soft`: no more work is accepted. Running work has the grace period to complete.
    Soft,
    /// `hard`: running work has been canceled, and cleans up.
    Hard,
    /// `abort`: the remaining tasks are aborted.
    Abort,
    /// `over`: the report has been returned.
    Over,
}

named!(Phase {
    Running => "running",
    Soft => "soft",
    Hard => "hard",
    Abort => "abort",
    Over => "over",
});

/// A context or a piece of work.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// `id`: its number, which is the same in all snapshots.
    pub id: Id,
    /// `parent`: the context of a task, or the parent of a context. For a merged context, the first of the two. `null` for
    /// a root.
    pub parent: Option<Id>,
    /// `kind`: the kind of entry.
    pub kind: Kind,
    /// `name`: the name from [`Context::named`](crate::Context::named) or [`Shutdown::named`](crate::Shutdown::named), the
    /// method and path of a request, or the program of a process. It is truncated to 120 characters, and contains no control
    /// characters. Escape it when you build a page from it.
    pub name: Option<String>,
    /// `line`: the line that spawned or created it.
    pub line: Line,
    /// `age_ms`: the time since then, if it is known.
    #[serde(rename = "age_ms", serialize_with = "ms_or_null")]
    pub age: Option<Duration>,
    /// `left_ms`: the time left until its deadline; 0 if the deadline has passed.
    #[serde(rename = "left_ms", serialize_with = "ms_or_null")]
    pub left: Option<Duration>,
    /// `budget_ms`: the whole budget of the context with this deadline.
    #[serde(rename = "budget_ms", serialize_with = "ms_or_null")]
    pub budget: Option<Duration>,
    /// `waiters`: the number of futures that wait for the end of this context itself.
    pub waiters: usize,
    /// `children`: the number of its direct children, listed or not.
    pub children: usize,
    /// `end`: how its context ended; `null` if it has not ended.
    pub end: Option<End>,
    /// `poll`: its last poll; `null` for a context, and for work that is not polled.
    pub poll: Option<Poll>,
    /// `is_work`: whether it is work, rather than only a context.
    pub is_work: bool,
    /// `is_held`: whether it is a context that ended more than a second ago, has no work, and is still held.
    pub is_held: bool,
}

/// The number of an entry. JavaScript can represent it exactly.
pub type Id = u64;

/// How a context ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct End {
    /// `how`: the kind of end.
    pub how: How,
    /// `line`: the line of the call that ended it, the line that set the deadline, or, for a dropped scope, the line that
    /// created its context.
    pub line: Line,
    /// `ago_ms`: how long ago.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
    /// `text`: the message of the error, without the cause.
    pub text: String,
    /// `cause_type`: the type of its cause, if it has one.
    pub cause_type: Option<&'static str>,
    /// `cause`: the text of the cause, truncated to 300 characters. `null` unless
    /// [`show_causes`](super::Builder::show_causes) is set, because it may contain user data.
    pub cause: Option<String>,
}

/// The kind of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum How {
    /// `deadline`: its deadline passed.
    Deadline,
    /// `canceled`: it was canceled by a call.
    Canceled,
    /// `dropped`: its scope was dropped.
    Dropped,
    /// `token`: a [`CancellationToken`](tokio_util::sync::CancellationToken) canceled it.
    Token,
    /// `client_left`: the client of a request disconnected before the response.
    ClientLeft,
    /// `request_dropped`: the server dropped a request before the response, usually because its client disconnected.
    RequestDropped,
    /// `failed`: the service, or a task of a group, failed or panicked.
    Failed,
    /// `shutdown`: the grace period of a shutdown had passed.
    Shutdown,
    /// `finished`: the work was complete: a request was answered, or a shutdown is over.
    Finished,
    /// `refused`: not an end, but an operation that was not started because its context had ended, or because too little time
    /// was left. It is only counted, in [`Snapshot::lately`].
    Refused,
}

named!(How {
    Deadline => "deadline",
    Canceled => "canceled",
    Dropped => "dropped",
    Token => "token",
    ClientLeft => "client_left",
    RequestDropped => "request_dropped",
    Failed => "failed",
    Shutdown => "shutdown",
    Finished => "finished",
    Refused => "refused",
});

/// The last poll of a task or request, or the call of a blocking function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Poll {
    /// `ago_ms`: how long ago the poll began.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
    /// `inside`: whether the poll has not returned yet. If that takes long, it is a busy loop, or it blocks its thread.
    pub inside: bool,
}

/// A line of code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line(pub(super) &'static Location<'static>);

impl Line {
    /// Returns its location.
    pub fn location(self) -> &'static Location<'static> {
        self.0
    }
}

/// `src/main.rs:12`.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Place(self.0), f)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
