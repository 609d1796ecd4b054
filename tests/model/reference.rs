//! The reference: one thread, nothing lazy, and every end derived anew from the recorded facts.
//!
//! A node stands for a derived context, with any number of handles. It records what was done to it and when, and
//! nothing that follows from that. [`Reference::recompute`] derives the ends of all nodes, parents before
//! children: a node ends at the first of its own ends and its parents' ends.
//!
//! The order of two ends is certain except in three cases, in which either may be reported, and then always the
//! same one:
//!
//! - A `CancellationToken` does not record when it was canceled: its end lies anywhere between the cancel and the
//!   first query.
//! - The drop of a scope or guard that affects no waiter is dated by the first query (see `Origin::ended_at`).
//! - Two parents of a merged context may have ended at the same instant before it was made, or may have
//!   the same deadline.

use std::time::Duration;

/// Nanoseconds since the start of the case. A deadline may be earlier.
pub type Nanos = i128;

/// The position of a step in the order of all events.
///
/// A deadline comes before all other events of its instant: step 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub time: Nanos,
    pub step: u32,
}

/// The timers that a wait depends on.
#[derive(Clone, Copy, Debug)]
pub enum Timers {
    /// Those of a runtime that was started at the start of the case.
    InStep,
    /// Those of a runtime whose milliseconds start at another time.
    OutOfStep,
    /// Those of a runtime that does not run.
    Suspended,
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Deadline,
    Canceled,
    OwnerDropped,
    Token,
}

/// A possible end: of which node, how, and between which two moments.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub origin: usize,
    pub how: How,
    earliest: Moment,
    latest: Moment,
    /// Whether it has a date; otherwise the first query sets one.
    dated: bool,
}

/// The content of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub how: How,
    pub cause: Option<String>,
    /// The address of the cause, which is the same in all errors of one end.
    pub address: Option<usize>,
    pub made_at: u32,
    pub canceled_at: Option<u32>,
    pub budget: Option<Duration>,
    pub ended_at: Nanos,
}

/// A deadline as it was requested.
#[derive(Clone, Debug)]
pub struct Limit {
    pub at: Nanos,
    pub budget: Duration,
    pub cause: Option<String>,
}

#[derive(Clone, Debug)]
struct Cancel {
    at: Moment,
    how: How,
    line: Option<u32>,
    cause: Option<String>,
    dated: bool,
}

#[derive(Clone, Debug)]
struct Node {
    derived_from: Vec<usize>,
    /// The nodes whose end is this node's: all parents, or, if some had ended when it was created, only one of those.
    parents: Vec<usize>,
    ended_at_creation: bool,
    created_at: Moment,
    /// The line that derived it.
    line: u32,
    /// Its own deadline, if that is the earliest on its path.
    limit: Option<Limit>,
    /// The earliest deadline on its path.
    deadline: Option<Nanos>,
    token: Option<usize>,
    cancel: Option<Cancel>,
    /// Whether a descendant has, or had, a deadline.
    is_timed: bool,
    /// The node whose end was reported for this one, and the report.
    reported: Option<(usize, Reported)>,
}

#[derive(Default)]
pub struct Reference {
    nodes: Vec<Node>,
    /// When each `CancellationToken` was canceled.
    tokens: Vec<Option<Moment>>,
    time: Nanos,
    step: u32,
    /// The possible ends of every node at the current time.
    ends: Vec<Vec<End>>,
}

// Operations.
impl Reference {
    pub fn now(&self) -> Nanos {
        self.time
    }

    pub fn advance(&mut self, by: Nanos) {
        self.time += by;
        self.recompute();
    }

    pub fn add_token(&mut self) {
        self.tokens.push(None);
    }

    pub fn cancel_token(&mut self, token: usize) {
        let at = self.next_moment();
        self.tokens[token].get_or_insert(at);
        self.recompute();
    }

    /// Adds a node below `parents`, or a root without parents, and returns its number.
    pub fn derive(
        &mut self,
        parents: &[usize],
        limit: Option<Limit>,
        token: Option<usize>,
        line: u32,
    ) -> usize {
        let created_at = self.next_moment();
        let inherited = parents.iter().filter_map(|&parent| self.nodes[parent].deadline).min();
        let limit = limit.filter(|limit| inherited.is_none_or(|inherited| limit.at < inherited));
        let deadline = limit.as_ref().map(|limit| limit.at).or(inherited);

        if limit.is_some() || (parents.len() > 1 && deadline.is_some()) {
            self.mark_timed(parents);
        }
        let derived_from = parents.to_vec();
        let ended: Vec<usize> = parents.iter().copied().filter(|&p| self.is_done(p)).collect();
        let ended_at_creation = !ended.is_empty();
        // If both had ended before, it has the end of the first.
        let parents = if ended_at_creation { vec![ended[0]] } else { parents.to_vec() };
        self.nodes.push(Node {
            derived_from,
            parents,
            ended_at_creation,
            created_at,
            line,
            limit,
            deadline,
            token,
            cancel: None,
            is_timed: false,
            reported: None,
        });
        self.recompute();
        self.nodes.len() - 1
    }

    fn mark_timed(&mut self, parents: &[usize]) {
        for &parent in parents {
            if !self.nodes[parent].is_timed {
                self.nodes[parent].is_timed = true;
                self.mark_timed(&self.nodes[parent].derived_from.clone());
            }
        }
    }

    /// Cancels a node unless it has ended: at a line, or by dropping its scope or guard.
    pub fn cancel(&mut self, node: usize, line: Option<u32>, cause: Option<String>) {
        let at = self.next_moment();
        if self.is_done(node) {
            return;
        }
        let target = &mut self.nodes[node];
        let how = if line.is_some() { How::Canceled } else { How::OwnerDropped };
        // Without a deadline to compare it with, the first query dates it.
        let dated = cause.is_some() || target.deadline.is_some() || target.is_timed;
        target.cancel = Some(Cancel { at, how, line, cause, dated });
        self.recompute();
    }

    fn next_moment(&mut self) -> Moment {
        self.step += 1;
        Moment { time: self.time, step: self.step }
    }
}

// Derived state.
impl Reference {
    pub fn deadline(&self, node: usize) -> Option<Nanos> {
        self.nodes[node].deadline
    }

    pub fn is_done(&self, node: usize) -> bool {
        !self.ends[node].is_empty()
    }

    /// Returns which nodes still exist if these have handles. A node holds its ancestors.
    pub fn held(&self, handles: impl Iterator<Item = usize>) -> Vec<bool> {
        let mut held = vec![false; self.nodes.len()];
        handles.for_each(|node| held[node] = true);
        for node in (0..self.nodes.len()).rev() {
            if held[node] {
                self.nodes[node].derived_from.iter().for_each(|&parent| held[parent] = true);
            }
        }
        held
    }

    /// Returns the node whose end cancels the token that a node has returned: the node itself while it is held or
    /// has ended, and then its first parent.
    pub fn token_owner(&self, node: usize, held: &[bool]) -> Option<usize> {
        let mut token_owner = Some(node);
        while let Some(node) = token_owner.filter(|&node| !held[node] && !self.is_done(node)) {
            token_owner = self.nodes[node].parents.first().copied();
        }
        token_owner
    }

    /// Returns whether a task watches a node that has returned a token, because its end needs no call.
    pub fn is_watched(&self, number: usize) -> bool {
        self.nodes[number].deadline.is_some() && !self.is_done(number)
    }

    /// Returns whether a node has ended in such a way that its waits must have been woken.
    ///
    /// Tokio's timers fire at full milliseconds. Between a deadline and the next full millisecond, queries report the
    /// end, but waits may not have been woken.
    pub fn is_detectable(&self, node: usize, timers: Timers) -> bool {
        let undetected = |end: &End| {
            let (millisecond, at) = (1_000_000, end.earliest.time);
            let fires = match timers {
                Timers::InStep => (at + millisecond - 1).div_euclid(millisecond) * millisecond,
                Timers::OutOfStep => at + millisecond,
                Timers::Suspended => Nanos::MAX,
            };
            end.how == How::Deadline && self.time < fires && self.nodes[end.origin].reported.is_none()
        };
        self.ends[node].iter().any(|end| !undetected(end))
    }

    fn recompute(&mut self) {
        let mut all: Vec<Vec<End>> = Vec::with_capacity(self.nodes.len());
        for number in 0..self.nodes.len() {
            let node = &self.nodes[number];
            let mut ends = self.own_ends(number);
            for &parent in &node.parents {
                for &end in &all[parent] {
                    if ends.iter().all(|known: &End| known.origin != end.origin) {
                        ends.push(end);
                    }
                }
            }
            // The first end is one that no other end certainly precedes.
            if let Some(limit) = ends.iter().map(|end| end.latest).min() {
                ends.retain(|end| end.earliest <= limit);
            }
            if let Some((origin, reported)) = &node.reported {
                ends.retain(|end| end.origin == *origin);
                // The reported time of an end without a date is later than the end.
                for end in ends.iter_mut().filter(|end| end.dated) {
                    let time = reported.ended_at;
                    let (first, last) = (Moment { time, step: 0 }, Moment { time, step: u32::MAX });
                    end.earliest = end.earliest.max(first);
                    end.latest = end.latest.min(last);
                }
            }
            all.push(ends);
        }
        self.ends = all;
    }

    fn own_ends(&self, number: usize) -> Vec<End> {
        let node = &self.nodes[number];
        let mut ends = Vec::new();
        // A context derived from an ended one has the same end, whatever happens to it.
        if node.ended_at_creation {
            return ends;
        }
        if let Some(limit) = node.limit.as_ref().filter(|limit| limit.at <= self.time) {
            let at = Moment { time: limit.at, step: 0 };
            let how = How::Deadline;
            ends.push(End { origin: number, how, earliest: at, latest: at, dated: true });
        }
        if let Some(Cancel { at, how, dated, .. }) = node.cancel {
            ends.push(End { origin: number, how, earliest: at, latest: at, dated });
        }
        if let (Some(at), None) = (node.token.and_then(|token| self.tokens[token]), &node.cancel) {
            let earliest = at.max(node.created_at);
            ends.push(End { origin: number, how: How::Token, earliest, latest: earliest, dated: false });
        }
        let first = ends.iter().map(|end| end.latest).min();
        ends.retain(|end| first.is_none_or(|first| end.earliest <= first));
        ends
    }
}

// Reports.
impl Reference {
    /// Records what was reported for a node; panics if it differs from what happened.
    pub fn observe(&mut self, node: usize, reported: &Reported) {
        if let Some((_, before)) = &self.nodes[node].reported {
            assert_eq!(reported, before, "node {node} reported another error");
            return;
        }
        let right: Vec<usize> = (self.ends[node].iter())
            .filter(|end| self.explains(end, reported))
            .map(|end| end.origin)
            .collect();
        assert!(
            !right.is_empty(),
            "node {node} reported a wrong error:\n  reported {reported:#?}\n  possible {:#?}",
            self.ends[node].iter().map(|end| (end, &self.nodes[end.origin])).collect::<Vec<_>>()
        );
        // If two ends cannot be distinguished, both stay possible.
        if let [origin] = right[..] {
            self.record(node, origin, reported);
            self.recompute();
        }
    }

    /// Records the report also for the parent, if the node ended with it.
    fn record(&mut self, node: usize, origin: usize, reported: &Reported) {
        match &self.nodes[node].reported {
            Some((_, before)) => {
                return assert_eq!(reported, before, "node {node} reported another error");
            }
            None => self.nodes[node].reported = Some((origin, reported.clone())),
        }
        if node == origin {
            return;
        }
        let mut from = self.nodes[node].parents.clone();
        from.retain(|&parent| self.ends[parent].iter().any(|end| end.origin == origin));
        if let [parent] = from[..] {
            self.record(parent, origin, reported);
        }
    }

    fn explains(&self, end: &End, reported: &Reported) -> bool {
        let node = &self.nodes[end.origin];
        let cancel = node.cancel.as_ref().filter(|cancel| cancel.how == end.how);
        let cause = match end.how {
            How::Deadline => node.limit.as_ref().and_then(|limit| limit.cause.as_ref()),
            _ => cancel.and_then(|cancel| cancel.cause.as_ref()),
        };
        let latest = if end.dated { end.latest.time.min(self.time) } else { self.time };
        reported.how == end.how
            && reported.cause.as_ref() == cause
            && reported.made_at == node.line
            && reported.canceled_at == cancel.and_then(|cancel| cancel.line)
            && reported.budget == node.limit.as_ref().map(|limit| limit.budget)
            && (end.earliest.time..=latest).contains(&reported.ended_at)
    }
}
