//! What a picture consists of: the public data, which the forms (text, JSON, page) print.

use std::fmt;
use std::panic::Location;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::millis::{ms, ms_or_null, unix_ms};
use crate::error::Place;
pub use crate::registry::Kind;

/// The version of the JSON format, which a [`Snapshot`] carries as `format`. A field that is added does not change
/// it; one that is removed, or whose meaning changes, does.
pub const FORMAT: u32 = 1;

/// A picture of what is running: first the culprits, then the rest.
///
/// Made by [`Watch::snapshot`](super::Watch::snapshot). It is weakly consistent: taken while everything goes on,
/// one lock at a time, so that two lines of it may be some milliseconds apart. [`Display`](fmt::Display) prints it
/// for a terminal of 100 columns, [`to_json`](Self::to_json) writes it as JSON, whose fields are those of the structs
/// here, with these rules: a duration is a number of milliseconds, in a field that ends in `_ms`; a line of code is a
/// string, `src/main.rs:12`; what is not known is `null`; an enum is a string in snake case. Unknown fields are to be
/// ignored.
///
/// | field | content |
/// |---|---|
/// | `format` | the number [`FORMAT`] |
/// | `taken_at_ms` | when it was taken, in milliseconds since 1970 |
/// | `took_ms` | how long it took to take it |
/// | `totals` | counts over all that was seen: [`Totals`] |
/// | `ended` | work that is still here after the end of its context: an array of [`EndedLine`], the longest first |
/// | `nearly_overdue` | what has less than a tenth of its budget left: an array of [`NearlyOverdue`], the least time left first |
/// | `alive` | what runs, by line: an array of [`AliveLine`], the most frequent first |
/// | `lately` | which contexts have ended in the last minutes: an array of [`Lately`], the most frequent first |
/// | `late` | how long work took to leave after its end: an array of [`LateClass`], one for each class, the shortest first |
/// | `shutdowns` | each [`Shutdown`](crate::Shutdown), with its phase: an array of [`ShutdownState`] |
/// | `entries` | the trees, flat: an array of [`Entry`]; one comes after its parent |
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The format's version: [`FORMAT`].
    pub format: u32,
    /// When it was taken.
    #[serde(rename = "taken_at_ms", serialize_with = "unix_ms")]
    pub taken_at: SystemTime,
    /// How long it took to take it.
    #[serde(rename = "took_ms", serialize_with = "ms")]
    pub took: Duration,
    /// Counts over all that was seen.
    pub totals: Totals,
    /// *Ended, still here*: work whose context has ended, by the line that spawned it; work before contexts that
    /// are merely held, then the longest first.
    pub ended: Vec<EndedLine>,
    /// What has less than a tenth of its budget left, the least time left first.
    pub nearly_overdue: Vec<NearlyOverdue>,
    /// What runs, by line, the most frequent first.
    pub alive: Vec<AliveLine>,
    /// Which contexts have ended in the last minutes, by how, line and cause, the most frequent first.
    pub lately: Vec<Lately>,
    /// How long work took to leave after the end of its context, by class of lateness, the shortest first.
    pub late: Vec<LateClass>,
    /// Each shutdown, with its phase.
    pub shutdowns: Vec<ShutdownState>,
    /// The trees, flat. An entry comes after its parent.
    pub entries: Vec<Entry>,
}

/// Counts over all that was seen, whatever of it is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// `seen`: how many contexts and pieces of work were looked at.
    pub seen: usize,
    /// `work`: how many of them are work: tasks, requests, blocking functions, processes, tickets.
    pub work: usize,
    /// `alive`: how many pieces of work have a context that has not ended.
    pub alive: usize,
    /// `ended`: how many pieces of work have a context that has ended, and are still here.
    pub ended: usize,
    /// `held`: how many contexts have ended, have no work of their own, and are still held.
    pub held: usize,
    /// `overstayed`: how often, since the watch was installed, work was still here when the grace of
    /// [`overstay`](super::Watch::overstay) was over.
    pub overstayed: u64,
    /// `unregistered`: how many, since the watch was installed, were not registered, as there were
    /// [`max_entries`](super::Builder::max_entries) already.
    pub unregistered: u64,
    /// `unseen`: how many contexts were known to be there and not looked at, as a picture has no more entries than that.
    pub unseen: usize,
    /// `unlisted`: how many of those that were looked at have been left out of `entries`: see
    /// [`Snapshot::under`] and [`Snapshot::cut`].
    pub unlisted: usize,
}

/// Work that is still here after the end of its context, of one kind and one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndedLine {
    /// `line`: the line that spawned it, or where there is no spawn the one that made it.
    pub line: Line,
    /// `kind`: what it is.
    pub kind: Kind,
    /// `count`: how many there are.
    pub count: usize,
    /// `inside`: how many of them are inside a poll, or run a function that blocks, right now: a loop that is busy, or a
    /// call that blocks.
    pub inside: usize,
    /// `longest_ms`: how long ago the context of the first of them ended.
    #[serde(rename = "longest_ms", serialize_with = "ms")]
    pub longest: Duration,
    /// `first`: the first to have ended, as an [`Entry::id`].
    pub first: Id,
    /// `name`: the name of the first.
    pub name: Option<String>,
    /// `end`: how the context of the first ended.
    pub end: End,
    /// `poll`: the last poll of the first, if it is polled.
    pub poll: Option<Poll>,
    /// `state`: what the first does, as far as its polls show.
    pub state: State,
    /// `is_work`: whether they are work, rather than contexts that something holds.
    pub is_work: bool,
}

/// What a piece of work does, as far as its polls show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// `busy`: it is inside a poll right now, or runs a function that blocks.
    Busy,
    /// `waiting`: it waits for something, and was not woken by the end or did not look at it.
    Waiting,
    /// `never_polled`: it was spawned and has not been polled yet: its runtime is overloaded, or stuck.
    NeverPolled,
    /// `held`: there is no work, or none that is polled: something keeps it.
    Held,
}

/// Something that has less than a tenth of its budget left.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NearlyOverdue {
    /// `id`: its [`Entry::id`].
    pub id: Id,
    /// `kind`: what it is.
    pub kind: Kind,
    /// `line`: the line that spawned or made it.
    pub line: Line,
    /// `name`: its name.
    pub name: Option<String>,
    /// `left_ms`: the time left.
    #[serde(rename = "left_ms", serialize_with = "ms")]
    pub left: Duration,
    /// `budget_ms`: the whole of it.
    #[serde(rename = "budget_ms", serialize_with = "ms")]
    pub budget: Duration,
}

/// All that is alive of one kind and one line.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AliveLine {
    /// `line`: the line that spawned or made them.
    pub line: Line,
    /// `kind`: what they are.
    pub kind: Kind,
    /// `count`: how many there are.
    pub count: usize,
    /// `oldest_ms`: the age of the oldest, if that is known: a context that is no registered entry has an age if it was made
    /// since the watch was installed.
    #[serde(rename = "oldest_ms", serialize_with = "ms_or_null")]
    pub oldest: Option<Duration>,
    /// `least_left_ms`: the least time left, if any has a deadline.
    #[serde(rename = "least_left_ms", serialize_with = "ms_or_null")]
    pub least_left: Option<Duration>,
    /// `budget_ms`: the whole budget of the one that has the least time left.
    #[serde(rename = "budget_ms", serialize_with = "ms_or_null")]
    pub budget: Option<Duration>,
    /// `waiters`: how many futures wait for their ends.
    pub waiters: usize,
    /// `name`: the name of the oldest.
    pub name: Option<String>,
    /// `oldest`: the oldest, as an [`Entry::id`].
    #[serde(rename = "oldest")]
    pub oldest_id: Id,
}

/// Contexts that have ended by themselves in the last one to two minutes, with one kind of end, of one line, with one type of
/// cause.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Lately {
    /// `how`: how they ended.
    pub how: How,
    /// `line`: the line that made them.
    pub line: Line,
    /// `cause_type`: the type of the cause, if there was one.
    pub cause_type: Option<&'static str>,
    /// `count`: how many in the last minutes.
    pub count: u64,
    /// `total`: how many since the watch was installed.
    pub total: u64,
    /// `mean_lived_ms`: for how long they had lived on average, if that is known of any.
    #[serde(rename = "mean_lived_ms", serialize_with = "ms_or_null")]
    pub mean_lived: Option<Duration>,
    /// `max_lived_ms`: for how long the one that lived longest had.
    #[serde(rename = "max_lived_ms", serialize_with = "ms_or_null")]
    pub max_lived: Option<Duration>,
    /// `last_ago_ms`: how long ago the last of them ended.
    #[serde(rename = "last_ago_ms", serialize_with = "ms")]
    pub last_ago: Duration,
}

/// Work that left so long after the end of its context.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LateClass {
    /// `up_to_ms`: the most lateness of this class; `null` in the last one, which has no bound.
    #[serde(rename = "up_to_ms", serialize_with = "ms_or_null")]
    pub up_to: Option<Duration>,
    /// `count`: how many since the watch was installed.
    pub count: u64,
    /// `last`: the last few, the latest first.
    pub last: Vec<Late>,
}

/// A piece of work that has left after the end of its context.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Late {
    /// `kind`: what it was.
    pub kind: Kind,
    /// `line`: the line that spawned it.
    pub line: Line,
    /// `name`: its name.
    pub name: Option<String>,
    /// `how`: how its context had ended.
    pub how: How,
    /// `late_ms`: how long after that it left.
    #[serde(rename = "late_ms", serialize_with = "ms")]
    pub late: Duration,
    /// `ago_ms`: how long ago it left.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
}

/// A [`Shutdown`](crate::Shutdown), as its [report](crate::shutdown::Report) would have it now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ShutdownState {
    /// `id`: its [`Entry::id`].
    pub id: Id,
    /// `line`: the line that made it.
    pub line: Line,
    /// `phase`: how far it is.
    pub phase: Phase,
    /// `since_ms`: how long ago this phase began, if it is not the first.
    #[serde(rename = "since_ms", serialize_with = "ms_or_null")]
    pub since: Option<Duration>,
    /// `left_ms`: how much of the phase's time is left, if it has one.
    #[serde(rename = "left_ms", serialize_with = "ms_or_null")]
    pub left: Option<Duration>,
    /// `why`: why it began.
    pub why: Option<End>,
    /// `running`: how many pieces of work it waits for.
    pub running: usize,
    /// `overdue`: how many were still at work when the hard context ended.
    pub overdue: usize,
    /// `waits_for`: what it waits for, by name and line, the most frequent first; those that are overdue before the others.
    pub waits_for: Vec<WaitsFor>,
}

/// Work that a shutdown waits for, of one name and one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitsFor {
    /// `name`: the name that it was given.
    pub name: Option<String>,
    /// `line`: the line that spawned or tracked it.
    pub line: Line,
    /// `count`: how many there are.
    pub count: usize,
    /// `overdue`: how many of them were at work when the hard context ended.
    pub overdue: usize,
}

/// The phase of a shutdown: see [the module](crate::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// `running`: it has not begun.
    Running,
    /// `soft`: no more work is taken; what is under way has the grace to end by itself.
    Soft,
    /// `hard`: what is under way is canceled, and cleans up.
    Hard,
    /// `abort`: what has not ended by then is aborted.
    Abort,
    /// `over`: it has been reported.
    Over,
}

impl Phase {
    /// Its name in JSON and in the text.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Soft => "soft",
            Phase::Hard => "hard",
            Phase::Abort => "abort",
            Phase::Over => "over",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A context or a piece of work.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// `id`: its number, the same in every snapshot for as long as it is here.
    pub id: Id,
    /// `parent`: the entry that it is under: the context of a task, the parent of a context; of a merged context the first of
    /// the two. `null` at the top.
    pub parent: Option<Id>,
    /// `kind`: what it is.
    pub kind: Kind,
    /// `name`: its name: given by [`Context::named`](crate::Context::named) or
    /// [`Shutdown::named`](crate::Shutdown::named), the method and path of a request, the program of a process. Cut to 120
    /// characters, without control characters. It is text, not markup: a page has to escape it.
    pub name: Option<String>,
    /// `line`: the line that spawned or made it.
    pub line: Line,
    /// `age_ms`: how long ago that was, if it is known.
    #[serde(rename = "age_ms", serialize_with = "ms_or_null")]
    pub age: Option<Duration>,
    /// `left_ms`: the time left until its deadline; 0 once that has passed.
    #[serde(rename = "left_ms", serialize_with = "ms_or_null")]
    pub left: Option<Duration>,
    /// `budget_ms`: the whole budget of the context that set this deadline.
    #[serde(rename = "budget_ms", serialize_with = "ms_or_null")]
    pub budget: Option<Duration>,
    /// `waiters`: how many futures wait for the end of this very context.
    pub waiters: usize,
    /// `children`: how many entries are directly below it, listed or not.
    pub children: usize,
    /// `end`: how its context ended; `null` while that has not.
    pub end: Option<End>,
    /// `poll`: its last poll; `null` for a context, and for what is not polled.
    pub poll: Option<Poll>,
    /// `is_work`: whether there is work to be waited for, rather than a context that something holds.
    pub is_work: bool,
    /// `is_held`: whether it is a context that ended more than a second ago, that nothing works in, and that is still held.
    pub is_held: bool,
}

/// A number that JavaScript can hold exactly.
pub type Id = u64;

/// How a context ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct End {
    /// `how`: the kind of end.
    pub how: How,
    /// `line`: the line of the call that ended it; of a deadline the one that set it, of a dropped scope the one that made its
    /// context.
    pub line: Line,
    /// `ago_ms`: how long ago.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
    /// `text`: the error's line, without its cause.
    pub text: String,
    /// `cause_type`: the type of its cause, if it has one.
    pub cause_type: Option<&'static str>,
    /// `cause`: the text of the cause, cut to 300 characters. It may hold user data, so it is `null` unless
    /// [`show_causes`](super::Builder::show_causes) allows it.
    pub cause: Option<String>,
}

/// The kind of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// `client_left`: the client of a request closed its connection before the answer.
    ClientLeft,
    /// `request_dropped`: what serves a request dropped it before the answer, usually because its client left.
    RequestDropped,
    /// `failed`: the service, or a task of a group, failed or panicked.
    Failed,
    /// `shutdown`: the grace of a shutdown was over.
    Shutdown,
    /// `finished`: the work was done: a request was answered, a shutdown is over.
    Finished,
    /// `refused`: no end, but an operation that was not begun, as its context had ended, or as too little time was left. Only
    /// counted, in [`Snapshot::lately`].
    Refused,
}

impl How {
    /// Its name in JSON, in the text and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            How::Deadline => "deadline",
            How::Canceled => "canceled",
            How::Dropped => "dropped",
            How::Token => "token",
            How::ClientLeft => "client_left",
            How::RequestDropped => "request_dropped",
            How::Failed => "failed",
            How::Shutdown => "shutdown",
            How::Finished => "finished",
            How::Refused => "refused",
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The last poll of a task or request, or the call of a function that blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Poll {
    /// `ago_ms`: how long ago the poll began.
    #[serde(rename = "ago_ms", serialize_with = "ms")]
    pub ago: Duration,
    /// `inside`: whether it is inside a poll right now: if so for long, it is busy, or blocks its thread.
    pub inside: bool,
}

/// A line of code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line(pub(super) &'static Location<'static>);

impl Line {
    /// Where it is.
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
