//! What is right, said plainly: one thread, nothing lazy, and every end worked out anew from the facts.
//!
//! A node is what can end: a derived context, whoever holds it. It keeps what was done to it and when,
//! and nothing that follows from that. [`Reference::ends`] draws the conclusion for all nodes, parents
//! before children: a node ends at the first of its own ends and its parents' ends.
//!
//! Which of two ends came first is certain but for three cases, in which either may be reported, and
//! from then on that one only:
//!
//! - A `CancellationToken` does not say when it was canceled: its end falls anywhere between the
//!   cancel and the first look at it.
//! - A scope's or guard's drop that stopped nobody is dated by the first to ask (see `Origin::ended_at`).
//! - Two parents of a merged context may have ended at the same instant before it was made, or may have
//!   the same deadline.

use std::time::Duration;

/// Nanoseconds since the case began; a deadline may lie before that.
pub type Nanos = i128;

/// Where a step stands in the order of all that happens.
///
/// At its instant, a deadline comes before whatever else happens there: turn 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub time: Nanos,
    pub turn: u32,
}

const NEVER: Moment = Moment { time: Nanos::MAX, turn: u32::MAX };

/// By what a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Deadline,
    Canceled,
    OwnerDropped,
    Token,
}

/// A possible end: of which node, by what, and between which two moments it came.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub origin: usize,
    pub how: How,
    earliest: Moment,
    latest: Moment,
    /// Whether it has a date; if not, the first to ask gives it one.
    dated: bool,
}

/// What an error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub how: How,
    pub cause: Option<String>,
    /// Where the cause lies in memory: all who are told of an end are given the same one.
    pub address: Option<usize>,
    pub made_at: u32,
    pub canceled_at: Option<u32>,
    pub budget: Option<Duration>,
    pub ended_at: Nanos,
}

/// A deadline as it was asked for.
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
    /// Those whose end is this one's: all parents, or, if some had ended at its birth, only those.
    parents: Vec<usize>,
    stillborn: bool,
    born: Moment,
    /// The line that made it.
    line: u32,
    /// Its own deadline, if that is the earliest on its path.
    limit: Option<Limit>,
    /// The earliest deadline on its path.
    deadline: Option<Nanos>,
    token: Option<usize>,
    /// Whether a `CancellationToken` can end it or an ancestor.
    below_token: bool,
    cancel: Option<Cancel>,
    was_derived_from: bool,
    /// Which node's end was reported for this one, and how.
    told: Option<(usize, Told)>,
}

#[derive(Default)]
pub struct Reference {
    nodes: Vec<Node>,
    /// When each `CancellationToken` was canceled.
    tokens: Vec<Option<Moment>>,
    time: Nanos,
    turn: u32,
    /// The possible ends of every node, as of now.
    ends: Vec<Vec<End>>,
}

// What is done.
impl Reference {
    pub fn now(&self) -> Nanos {
        self.time
    }

    pub fn advance(&mut self, by: Nanos) {
        self.time += by;
        self.conclude();
    }

    pub fn add_token(&mut self) {
        self.tokens.push(None);
    }

    pub fn cancel_token(&mut self, token: usize) {
        let at = self.next_moment();
        self.tokens[token].get_or_insert(at);
        self.conclude();
    }

    /// A new node below `parents`, none for a root; its number.
    pub fn derive(
        &mut self,
        parents: &[usize],
        limit: Option<Limit>,
        token: Option<usize>,
        line: u32,
    ) -> usize {
        let born = self.next_moment();
        for &parent in parents {
            self.nodes[parent].was_derived_from = true;
        }
        let inherited = parents.iter().filter_map(|&parent| self.nodes[parent].deadline).min();
        let limit = limit.filter(|limit| inherited.is_none_or(|inherited| limit.at < inherited));
        let deadline = limit.as_ref().map(|limit| limit.at).or(inherited);

        let derived_from = parents.to_vec();
        let below_token = token.is_some() || parents.iter().any(|&p| self.nodes[p].below_token);
        let ended: Vec<usize> = parents.iter().copied().filter(|&p| self.is_done(p)).collect();
        let stillborn = !ended.is_empty();
        let parents = if stillborn { ended } else { parents.to_vec() };
        self.nodes.push(Node {
            derived_from,
            parents,
            stillborn,
            born,
            line,
            limit,
            deadline,
            token,
            below_token,
            cancel: None,
            was_derived_from: false,
            told: None,
        });
        self.conclude();
        self.nodes.len() - 1
    }

    /// Cancels a node, unless it has ended: at a line, or by dropping its scope or guard.
    ///
    /// `waited_on`: somebody waits for its end, or has a token that is canceled then.
    pub fn cancel(&mut self, node: usize, line: Option<u32>, cause: Option<String>, waited_on: bool) {
        let at = self.next_moment();
        if self.is_done(node) {
            return;
        }
        let target = &mut self.nodes[node];
        let how = if line.is_some() { How::Canceled } else { How::OwnerDropped };
        // Of no concern to anybody yet, it is dated by the first to ask.
        let dated = line.is_some() || target.deadline.is_some() || target.was_derived_from || waited_on;
        target.cancel = Some(Cancel { at, how, line, cause, dated });
        self.conclude();
    }

    fn next_moment(&mut self) -> Moment {
        self.turn += 1;
        Moment { time: self.time, turn: self.turn }
    }
}

// What follows.
impl Reference {
    pub fn deadline(&self, node: usize) -> Option<Nanos> {
        self.nodes[node].deadline
    }

    pub fn is_done(&self, node: usize) -> bool {
        !self.ends[node].is_empty()
    }

    /// Which of all nodes are there still, if these have handles: they hold what they derive from.
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

    /// Whose a token handed out by a node is: its own as long as it is held or has ended, and then its
    /// first parent's.
    pub fn heir(&self, node: usize, held: &[bool]) -> Option<usize> {
        let mut heir = Some(node);
        while let Some(node) = heir.filter(|&node| !held[node] && !self.is_done(node)) {
            heir = self.nodes[node].parents.first().copied();
        }
        heir
    }

    /// Whether a task watches for its end once it has handed out a token: it can end without anybody
    /// ending it.
    pub fn is_watched(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        (node.deadline.is_some() || node.below_token) && !self.is_done(number)
    }

    /// Whether it has ended, and that cannot have gone unnoticed: what waits must have been woken.
    ///
    /// Tokio's timers fire at full milliseconds. Between a deadline and the next of these, it counts
    /// for who asks, but who waits may not have been told.
    pub fn is_noticed(&self, node: usize) -> bool {
        let unnoticed = |end: &End| {
            let millisecond = 1_000_000;
            let fires = (end.earliest.time + millisecond - 1).div_euclid(millisecond) * millisecond;
            end.how == How::Deadline && self.time < fires && self.nodes[end.origin].told.is_none()
        };
        self.ends[node].iter().any(|end| !unnoticed(end))
    }

    fn conclude(&mut self) {
        let mut all: Vec<Vec<End>> = Vec::with_capacity(self.nodes.len());
        for number in 0..self.nodes.len() {
            let node = &self.nodes[number];
            let mut ends = self.own_ends(number);
            for &parent in &node.parents {
                for &(mut end) in &all[parent] {
                    if node.stillborn && node.parents.len() > 1 {
                        end.earliest.turn = 0;
                        // Such an order is that of the dates.
                        end.latest.turn = u32::MAX;
                        if !end.dated {
                            end.latest = NEVER;
                        }
                    }
                    if ends.iter().all(|known: &End| known.origin != end.origin) {
                        ends.push(end);
                    }
                }
            }
            // The first end is one that no other certainly came before.
            if let Some(limit) = ends.iter().map(|end| end.latest).min() {
                ends.retain(|end| end.earliest <= limit);
            }
            if let Some((origin, told)) = &node.told {
                ends.retain(|end| end.origin == *origin);
                for end in &mut ends {
                    let time = told.ended_at;
                    let (first, last) = (Moment { time, turn: 0 }, Moment { time, turn: u32::MAX });
                    end.earliest = end.earliest.max(first);
                    end.latest = if end.dated { end.latest.min(last) } else { last };
                    end.dated = true;
                }
            }
            all.push(ends);
        }
        self.ends = all;
    }

    fn own_ends(&self, number: usize) -> Vec<End> {
        let node = &self.nodes[number];
        let mut ends = Vec::new();
        // Derived from an ended one it has that one's end, whatever happens to it.
        if node.stillborn {
            return ends;
        }
        if let Some(limit) = node.limit.as_ref().filter(|limit| limit.at <= self.time) {
            let at = Moment { time: limit.at, turn: 0 };
            let how = How::Deadline;
            ends.push(End { origin: number, how, earliest: at, latest: at, dated: true });
        }
        if let Some(Cancel { at, how, dated, .. }) = node.cancel {
            ends.push(End { origin: number, how, earliest: at, latest: at, dated });
        }
        if let (Some(at), None) = (node.token.and_then(|token| self.tokens[token]), &node.cancel) {
            let earliest = at.max(node.born);
            ends.push(End { origin: number, how: How::Token, earliest, latest: NEVER, dated: true });
        }
        let first = ends.iter().map(|end| end.latest).min();
        ends.retain(|end| first.is_none_or(|first| end.earliest <= first));
        ends
    }
}

// What is said.
impl Reference {
    /// Takes note of what was reported for a node; panics if that is not what happened.
    pub fn hear(&mut self, node: usize, told: &Told) {
        if let Some((_, before)) = &self.nodes[node].told {
            assert_eq!(told, before, "node {node} changed its story");
            return;
        }
        let right: Vec<usize> =
            (self.ends[node].iter()).filter(|end| self.tells(end, told)).map(|end| end.origin).collect();
        assert!(
            !right.is_empty(),
            "node {node} tells the wrong story:\n  told {told:#?}\n  right {:#?}",
            self.ends[node].iter().map(|end| (end, &self.nodes[end.origin])).collect::<Vec<_>>()
        );
        // Which of two that cannot be told apart is left open.
        if let [origin] = right[..] {
            self.note(node, origin, told);
            self.conclude();
        }
    }

    /// A node that ended with its parent tells the parent's story, so the parent's is known, too.
    fn note(&mut self, node: usize, origin: usize, told: &Told) {
        match &self.nodes[node].told {
            Some((_, before)) => return assert_eq!(told, before, "node {node} changed its story"),
            None => self.nodes[node].told = Some((origin, told.clone())),
        }
        if node == origin {
            return;
        }
        let mut from = self.nodes[node].parents.clone();
        from.retain(|&parent| self.ends[parent].iter().any(|end| end.origin == origin));
        if let [parent] = from[..] {
            self.note(parent, origin, told);
        }
    }

    fn tells(&self, end: &End, told: &Told) -> bool {
        let node = &self.nodes[end.origin];
        let cancel = node.cancel.as_ref().filter(|cancel| cancel.how == end.how);
        let cause = match end.how {
            How::Deadline => node.limit.as_ref().and_then(|limit| limit.cause.as_ref()),
            _ => cancel.and_then(|cancel| cancel.cause.as_ref()),
        };
        let latest = if end.dated { end.latest.time.min(self.time) } else { self.time };
        told.how == end.how
            && told.cause.as_ref() == cause
            && told.made_at == node.line
            && told.canceled_at == cancel.and_then(|cancel| cancel.line)
            && told.budget == node.limit.as_ref().map(|limit| limit.budget)
            && (end.earliest.time..=latest).contains(&told.ended_at)
    }
}
