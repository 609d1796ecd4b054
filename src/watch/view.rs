//! A limited part of a snapshot, as JSON.
//!
//! It is a snapshot with fewer lines and entries, so its JSON has the documented fields. In addition, it contains the
//! number of omitted lines, and the entries of the requested lists.

use std::collections::{HashMap, HashSet};
use std::panic::Location;

use serde::Serialize;

use super::query::{LineState, List, Open, Query};
use super::snapshot::{
    AliveLine, EndedLine, Entry, Id, Kind, Lately, Line, NearlyOverdue, ShutdownState, Snapshot,
};

/// The maximum number of ancestors that are listed with an entry.
const ABOVE: usize = 16;

/// A snapshot, with data that is computed once for all requests.
pub(super) struct Shown {
    all: Snapshot,
    /// The index of each entry.
    places: HashMap<Id, usize>,
    parents: Vec<Option<usize>>,
    /// Ended entries first, the longest first, then the oldest.
    order: Vec<usize>,
}

impl Shown {
    pub(super) fn new(all: Snapshot) -> Shown {
        let places = all.entries.iter().enumerate().map(|(at, entry)| (entry.id, at)).collect();
        let parents = all.parents();
        let mut order: Vec<usize> = (0..all.entries.len()).collect();
        order.sort_by_cached_key(|at| {
            let entry = &all.entries[*at];
            let ended = entry.end.as_ref().filter(|_| entry.is_work || entry.is_held).map(|end| end.ago);
            std::cmp::Reverse((ended, entry.age))
        });
        Shown { all, places, parents, order }
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.all
    }
}

#[derive(Serialize)]
pub(super) struct View {
    #[serde(flatten)]
    snapshot: Snapshot,
    left_out: LeftOut,
    opened: Vec<Opened>,
}

/// The number of lines that were omitted from each list, because there were more than requested.
#[derive(Serialize)]
struct LeftOut {
    ended: usize,
    nearly_overdue: usize,
    alive: usize,
    lately: usize,
    shutdowns: usize,
}

/// A requested list of entries.
#[derive(Serialize)]
struct Opened {
    key: String,
    total: usize,
    /// The first entries of the list.
    listed: Vec<Id>,
}

impl View {
    pub(super) fn new(shown: &Shown, query: &Query) -> View {
        let all = &shown.all;
        let found = query.text.as_deref().map(|text| Found::new(shown, text));
        let lines = Lines { found: found.as_ref(), most: query.lines };
        let (ended, more_ended) = lines.of(&all.ended, |found, line| found.has_ended(line));
        let (nearly_overdue, more_nearly) =
            lines.of(&all.nearly_overdue, |found, line| found.has_nearly(line));
        let (alive, more_alive) = lines.of(&all.alive, |found, line| found.has_alive(line));
        let (lately, more_lately) = lines.of(&all.lately, |found, line| found.has_lately(line));
        let (shutdowns, more_shutdowns) =
            lines.of(&all.shutdowns, |found, line| found.has_shutdown(line));

        let mut kept: HashSet<usize> = all.chosen(query.under, query.entries).into_iter().collect();
        let lists = Lists { shown, found: found.as_ref() };
        let opened = query.open.iter().map(|open| lists.open(open, &mut kept)).collect();
        let mut kept: Vec<usize> = kept.into_iter().collect();
        kept.sort_unstable();
        let entries: Vec<Entry> = kept.into_iter().map(|at| all.entries[at].clone()).collect();

        let mut totals = all.totals;
        totals.unlisted += all.entries.len() - entries.len();
        let snapshot = Snapshot {
            format: all.format,
            taken_at: all.taken_at,
            took: all.took,
            totals,
            ended,
            nearly_overdue,
            alive,
            lately,
            late: all.late.clone(),
            shutdowns,
            entries,
        };
        let left_out = LeftOut {
            ended: more_ended,
            nearly_overdue: more_nearly,
            alive: more_alive,
            lately: more_lately,
            shutdowns: more_shutdowns,
        };
        View { snapshot, left_out, opened }
    }
}

/// The filter of lines.
struct Lines<'a> {
    found: Option<&'a Found<'a>>,
    most: usize,
}

impl Lines<'_> {
    /// Returns the first lines that match, and the number of the others.
    fn of<T: Clone>(&self, all: &[T], is_found: impl Fn(&Found<'_>, &T) -> bool) -> (Vec<T>, usize) {
        let matching = || all.iter().filter(|line| self.found.is_none_or(|found| is_found(found, line)));
        let shown: Vec<T> = matching().take(self.most).cloned().collect();
        let more = matching().count() - shown.len();
        (shown, more)
    }
}

/// The matches of a text: entries, and the lines of these entries and of the descendants of a matching name.
struct Found<'a> {
    text: &'a str,
    entries: Vec<bool>,
    /// Includes whether it is work.
    ended: HashSet<(bool, Kind, Line)>,
    alive: HashSet<(Kind, Line)>,
    nearly: HashSet<Id>,
}

impl<'a> Found<'a> {
    fn new(shown: &Shown, text: &'a str) -> Found<'a> {
        let Shown { all, parents, .. } = shown;
        let mut found = Found {
            text,
            entries: Vec::with_capacity(all.entries.len()),
            ended: HashSet::new(),
            alive: HashSet::new(),
            nearly: HashSet::new(),
        };
        // There are few lines and kinds, and they are often those of the previous entry. There are many names.
        let mut lines: HashMap<(*const Location<'static>, Kind), bool> = HashMap::new();
        let mut last = None;
        // Entries below a request match by its name.
        let mut in_name: Vec<bool> = Vec::with_capacity(all.entries.len());
        for (entry, parent) in all.entries.iter().zip(parents) {
            let key = (std::ptr::from_ref(entry.line.location()), entry.kind);
            let in_line = last.filter(|(last, _)| *last == key).map(|(_, is_found)| is_found);
            let in_line = in_line.unwrap_or_else(|| {
                let is_in =
                    || contains(&entry.line.to_string(), text) || contains(entry.kind.as_str(), text);
                *lines.entry(key).or_insert_with(is_in)
            });
            last = Some((key, in_line));
            let is_named = entry.name.as_deref().is_some_and(|name| found.has(name));
            let is_found = in_line || is_named || found.is_in(entry);
            found.entries.push(is_found);
            in_name.push(is_named || parent.is_some_and(|parent| in_name[parent]));
            if is_found || in_name.last() == Some(&true) {
                found.nearly.insert(entry.id);
                if entry.end.is_none() {
                    found.alive.insert((entry.kind, entry.line));
                } else if entry.is_work || entry.is_held {
                    found.ended.insert((entry.is_work, entry.kind, entry.line));
                }
            }
        }
        found
    }

    fn is_in(&self, entry: &Entry) -> bool {
        let end = entry.end.as_ref();
        end.is_some_and(|end| self.has(end.how.as_str()) || self.has(&end.text))
            || end.and_then(|end| end.cause.as_deref()).is_some_and(|cause| self.has(cause))
    }

    fn has(&self, text: &str) -> bool {
        contains(text, self.text)
    }

    fn has_ended(&self, line: &EndedLine) -> bool {
        self.ended.contains(&(line.is_work, line.kind, line.line))
    }

    fn has_nearly(&self, line: &NearlyOverdue) -> bool {
        self.nearly.contains(&line.id)
    }

    fn has_alive(&self, line: &AliveLine) -> bool {
        self.alive.contains(&(line.kind, line.line))
    }

    fn has_lately(&self, line: &Lately) -> bool {
        self.has(&line.line.to_string())
            || self.has(line.how.as_str())
            || line.cause_type.is_some_and(|cause| self.has(cause))
    }

    fn has_shutdown(&self, shutdown: &ShutdownState) -> bool {
        let waits_for = |name: &Option<String>, line: Line| {
            name.as_deref().is_some_and(|name| self.has(name)) || self.has(&line.to_string())
        };
        waits_for(&None, shutdown.line)
            || shutdown.waits_for.iter().any(|work| waits_for(&work.name, work.line))
    }
}

/// Returns whether a text contains another, which is in lower case.
fn contains(text: &str, lower: &str) -> bool {
    if text.is_ascii() {
        // Most texts are ASCII, and there may be many. They are compared without a copy.
        let (text, lower) = (text.as_bytes(), lower.as_bytes());
        return text.windows(lower.len()).any(|part| part.eq_ignore_ascii_case(lower));
    }
    text.to_lowercase().contains(lower)
}

/// The lists of entries that can be requested.
struct Lists<'a> {
    shown: &'a Shown,
    found: Option<&'a Found<'a>>,
}

impl Lists<'_> {
    /// Keeps the first entries of a list, with some ancestors of each.
    fn open(&self, open: &Open, kept: &mut HashSet<usize>) -> Opened {
        let Shown { all, places, parents, order } = self.shown;
        let is_in = self.filter(&open.list);
        let mut list = order.iter().copied().filter(|at| is_in(*at));
        let first: Vec<usize> = list.by_ref().take(open.most).collect();
        let total = first.len() + list.count();
        // The parent of the list is included as well.
        let top = if let List::Below(id) = open.list { places.get(&id).copied() } else { None };
        for at in top.into_iter().chain(first.iter().copied()) {
            kept.extend(std::iter::successors(Some(at), |at| parents[*at]).take(ABOVE));
        }
        let listed = first.into_iter().map(|at| all.entries[at].id).collect();
        Opened { key: open.key.clone(), total, listed }
    }

    /// Returns a function that returns whether an entry is in a list.
    fn filter<'b>(&'b self, list: &'b List) -> Box<dyn Fn(usize) -> bool + 'b> {
        let Shown { all, places, parents, .. } = self.shown;
        match list {
            List::Top => Box::new(|at| parents[at].is_none()),
            List::Below(id) => match places.get(id) {
                Some(top) => Box::new(move |at| parents[at] == Some(*top)),
                None => Box::new(|_| false),
            },
            List::Found => Box::new(|at| self.found.is_some_and(|found| found.entries[at])),
            List::Line { state, kind, line } => Box::new(move |at| {
                let entry = &all.entries[at];
                let is_of_state = match state {
                    LineState::Ended => entry.is_work && entry.end.is_some(),
                    LineState::Held => entry.is_held,
                    LineState::Alive => entry.end.is_none(),
                };
                is_of_state && entry.kind.as_str() == kind && is_at(entry.line, line)
            }),
        }
    }
}

/// Returns whether the text denotes the line.
fn is_at(line: Line, text: &str) -> bool {
    let place = line.location();
    let number = text.strip_prefix(place.file()).and_then(|rest| rest.strip_prefix(':'));
    number.is_some_and(|number| number.parse() == Ok(place.line()))
}
