//! The state of each shutdown. It is read from the list that its report is created from, so that the two agree.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::ends::Facts;
use super::snapshot::{Id, Line, Phase, ShutdownState, WaitsFor};
use crate::registry::{Record, brief};
use crate::task::shutdown::probe::{Probe, Running, Status};
use crate::token::Token;
use crate::trace::shielded;

/// The maximum number of names and lines in the list.
const MOST: usize = 100;

pub(super) fn states(
    records: &[(Arc<Record>, Id)],
    now: Instant,
    show_causes: bool,
) -> Vec<ShutdownState> {
    let state = |(record, id): &(Arc<Record>, Id)| {
        let status = record.probe.as_ref()?.downcast_ref::<Probe>()?.status();
        Some(state(record, *id, status, now, show_causes))
    };
    records.iter().filter_map(state).collect()
}

fn state(record: &Record, id: Id, status: Status, now: Instant, show_causes: bool) -> ShutdownState {
    let Status { soft, hard, is_aborting, is_over, grace, cleanup, overdue, running } = status;
    let end = |token: &Option<Arc<_>>| {
        let error = |token: &Arc<Token>| shielded(|| token.unnoticed_error(now)).flatten();
        let error = token.as_ref().and_then(error);
        let facts = error.as_ref().map(|error| Facts::new(error, show_causes));
        shielded(|| drop(error));
        facts
    };
    let (began, canceled) = (end(&soft), end(&hard));
    shielded(|| drop((soft, hard)));
    let (phase, begun, time) = match (&began, &canceled) {
        (_, Some(canceled)) if is_over => (Phase::Over, Some(canceled), None),
        (_, Some(canceled)) if is_aborting => {
            (Phase::Abort, Some(canceled), Some(cleanup.saturating_mul(2)))
        }
        (_, Some(canceled)) => (Phase::Hard, Some(canceled), Some(cleanup)),
        (Some(began), None) => (Phase::Soft, Some(began), Some(grace)),
        (None, None) => (Phase::Running, None, None),
    };
    let since = begun.map(|facts| now.saturating_duration_since(facts.ended_at));
    ShutdownState {
        id,
        line: Line(record.line),
        phase,
        since,
        left: time.zip(since).map(|(time, since)| time.saturating_sub(since)),
        why: began.map(|facts| facts.to_end(now)),
        running: running.len(),
        overdue,
        waits_for: waits_for(running),
    }
}

/// The number of pieces of work with a name and line, and how many of them are overdue.
type Counts = HashMap<(Option<Arc<str>>, Line), [usize; 2]>;

fn waits_for(running: Vec<Running>) -> Vec<WaitsFor> {
    let mut counts = Counts::new();
    for Running { name, spawned_at, is_overdue } in running {
        let [count, overdue] = counts.entry((name, Line(spawned_at))).or_default();
        *count += 1;
        *overdue += usize::from(is_overdue);
    }
    let mut all = Vec::with_capacity(counts.len());
    for ((name, line), [count, overdue]) in counts {
        all.push(WaitsFor { name: name.map(|name| brief(&name)), line, count, overdue });
    }
    all.sort_by(|a, b| {
        let first = (b.overdue, b.count).cmp(&(a.overdue, a.count));
        first.then(a.line.cmp(&b.line)).then_with(|| a.name.cmp(&b.name))
    });
    all.truncate(MOST);
    all
}
