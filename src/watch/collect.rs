//! Collects a snapshot: from the registered entries up to the roots, and from there down the lists of children.
//!
//! Nothing is stopped, and one lock is held at a time, for about a thousand steps. A snapshot is therefore weakly
//! consistent. An entry that is registered or linked from before the start until after the end is in it once. An entry
//! that is added or removed in between may be in it. A context may be shown as alive while its parent is shown as ended,
//! because each is shown as it was when it was visited.
//!
//! A weak handle to each visited context is kept until the end of the collection. It ensures that no other context gets
//! the same address, which is used as the key, and it does not delay the drop of the token. A strong handle is held
//! only during the visit. It is not dropped while a lock is held, because it may be the last one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::Location;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant as RealInstant, SystemTime};

use tokio::time::Instant;

use super::ends::Facts;
use super::shutdowns;
use super::snapshot::{
    AliveLine, EndedLine, Entry, FORMAT, Id, Kind, Line, NearlyOverdue, Poll, Snapshot, State, Totals,
};
use super::stats::Stats;
use crate::registry::{Hub, Record};
use crate::token::Token;
use crate::trace::shielded;

/// The number of children that are copied each time a token's lock is held.
const BATCH: u32 = 1024;
/// The maximum number of entries that are listed as nearly overdue.
const NEARLY: usize = 100;
/// A context without work is listed as held when this time has passed since its end.
const HELD: Duration = Duration::from_secs(1);

pub(super) struct Collector<'a> {
    hub: &'a Hub,
    stats: &'a Stats,
    now: Instant,
    /// Each parent is before its children.
    nodes: Vec<Node>,
    /// The nodes of contexts, by the addresses of their tokens.
    known: HashMap<usize, usize>,
    /// The least number of tokens from these to the nearest node or root, if there was no room for all of them.
    too_long: HashMap<usize, (usize, Weak<Token>)>,
    unseen: usize,
    /// The records of shutdowns, with the ids of their nodes.
    shutdowns: Vec<(Arc<Record>, Id)>,
}

/// A context, or work that uses one.
struct Node {
    id: Id,
    parent: Option<usize>,
    /// `None` for work.
    token: Option<Weak<Token>>,
    kind: Kind,
    name: Option<String>,
    line: &'static Location<'static>,
    created_at: Option<Instant>,
    deadline: Option<Instant>,
    owns_deadline: bool,
    budget: Option<Duration>,
    waiters: usize,
    /// Whether the end of an ancestor would be stored in its own state.
    is_linked: bool,
    end: Option<Arc<Facts>>,
    poll: Option<Poll>,
    is_polled: bool,
    is_work: bool,
    /// Whether it, or a descendant, has work.
    has_work: bool,
    children: usize,
}

/// Drops a handle. This may run foreign code.
fn release<T>(handle: T) {
    shielded(|| drop(handle));
}

impl<'a> Collector<'a> {
    pub(super) fn snapshot(hub: &'a Hub, stats: &'a Stats) -> Snapshot {
        let (begun, taken_at) = (RealInstant::now(), SystemTime::now());
        let mut collector = Collector {
            hub,
            stats,
            now: Instant::now(),
            nodes: Vec::new(),
            known: HashMap::new(),
            too_long: HashMap::new(),
            unseen: 0,
            shutdowns: Vec::new(),
        };
        hub.table.for_each(|record| collector.add(&record));
        collector.walk();
        collector.propagate();
        let mut snapshot = collector.summary(taken_at);
        snapshot.took = begun.elapsed();
        snapshot
    }

    fn has_room(&self, more: usize) -> bool {
        self.nodes.len().saturating_add(more) <= self.stats.max_entries
    }

    /// Adds the work or the context of a record, and the ancestors of the context.
    fn add(&mut self, record: &Arc<Record>) {
        let token = record.subject.as_ref().and_then(Token::of_subject);
        let at = token.as_ref().and_then(|token| self.visit(token));
        let has_token = token.is_some();
        release(token);
        if record.kind.is_context() {
            if let Some(at) = at {
                self.merge(at, record);
            }
        } else if self.has_room(1) && (at.is_some() || !has_token) {
            let node = self.work(at, record);
            self.nodes.push(node);
        } else {
            self.unseen += 1;
        }
    }

    /// Adds the information of a record to the node of its context.
    fn merge(&mut self, at: usize, record: &Arc<Record>) {
        let node = &mut self.nodes[at];
        if record.kind == Kind::Shutdown {
            self.shutdowns.push((record.clone(), node.id));
        }
        if let Some(name) = record.name() {
            node.name = Some(node.name.take().map_or(name.clone(), |other| format!("{other}, {name}")));
        }
        // A named root is shown with the line that named it, a request with the line of its layer.
        if node.kind == Kind::Context || node.kind == Kind::Root {
            (node.kind, node.line) = (record.kind, record.line);
        }
        node.created_at = node.created_at.or(record.started);
        if record.kind.is_work() {
            (node.kind, node.line) = (record.kind, record.line);
            node.is_work = !record.is_over();
            (node.poll, node.is_polled) = poll(record);
        }
    }

    fn work(&self, at: Option<usize>, record: &Arc<Record>) -> Node {
        let (poll, is_polled) = poll(record);
        let ctx = at.map(|at| &self.nodes[at]);
        Node {
            id: record.id,
            parent: at,
            token: None,
            kind: record.kind,
            name: record.name(),
            line: record.line,
            created_at: record.started,
            deadline: ctx.and_then(|ctx| ctx.deadline),
            owns_deadline: false,
            budget: None,
            waiters: 0,
            is_linked: false,
            end: None,
            poll,
            is_polled,
            is_work: true,
            has_work: true,
            children: 0,
        }
    }

    /// Adds a context and its ancestors; returns `None` if there is no room.
    fn visit(&mut self, token: &Arc<Token>) -> Option<usize> {
        let mut path = Vec::new();
        let (mut above, mut next) = (None, Some(token));
        while let Some(token) = next {
            if let Some(at) = self.known.get(&address(token)) {
                above = Some(*at);
                break;
            }
            let length = self.too_long.get(&address(token)).map_or(1, |(length, _)| *length);
            if !self.has_room(path.len() + length) {
                self.unseen += 1;
                // Otherwise, each further entry below would walk up this path again.
                let lengths = (length + 1..).take(path.len());
                for (token, length) in path.into_iter().rev().zip(lengths) {
                    self.too_long.insert(address(token), (length, Arc::downgrade(token)));
                }
                return None;
            }
            path.push(token);
            next = token.parent();
        }
        for token in path.into_iter().rev() {
            let node = self.node_of(token, above);
            let at = self.nodes.len();
            self.known.insert(address(token), at);
            self.nodes.push(node);
            above = Some(at);
        }
        above
    }

    fn node_of(&self, token: &Arc<Token>, parent: Option<usize>) -> Node {
        let view = token.view();
        let show_causes = self.stats.show_causes;
        let is_due = view.deadline.is_some_and(|deadline| deadline <= self.now);
        // Otherwise, it inherits the end of its parent.
        let due = || {
            if token.may_be_due_alone() {
                shielded(|| token.due_error(self.now)).flatten()
            } else {
                None
            }
        };
        let error = view.end.or_else(due);
        let end = error.as_ref().map(|error| Arc::new(Facts::new(error, show_causes)));
        release(error);
        Node {
            id: id_of(address(token)),
            parent,
            token: Some(Arc::downgrade(token)),
            kind: Kind::Context,
            name: None,
            line: view.made_at,
            created_at: view.created_at,
            deadline: view.deadline,
            owns_deadline: view.owns_deadline,
            budget: if view.owns_deadline { token.budget() } else { None },
            waiters: view.waiters,
            is_linked: view.is_linked && !is_due,
            end,
            poll: None,
            is_polled: false,
            is_work: false,
            has_work: false,
            children: 0,
        }
    }

    /// Adds all linked descendants of the nodes.
    fn walk(&mut self) {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.nodes.len() {
            let mut token = self.nodes[at].token.as_ref().and_then(Weak::upgrade);
            let mut from = Some(0);
            while let (Some(parent), Some(place)) = (&token, from) {
                from = parent.children(place, BATCH, &mut found);
                // The parent is not held longer than necessary.
                if from.is_none() {
                    release(token.take());
                }
                for child in found.drain(..) {
                    self.add_child(&child);
                }
            }
            release(token);
            at += 1;
        }
    }

    fn add_child(&mut self, child: &Weak<Token>) {
        if self.known.contains_key(&child.as_ptr().addr()) {
            return;
        }
        if !self.has_room(1) {
            self.unseen += 1;
            return;
        }
        let child = child.upgrade();
        if let Some(child) = &child {
            self.visit(child);
        }
        release(child);
    }

    /// Propagates ends and budgets to descendants, and counts of children and work to ancestors.
    fn propagate(&mut self) {
        for at in 0..self.nodes.len() {
            let Some(parent) = self.nodes[at].parent else { continue };
            // Each parent is before its children.
            let (above, rest) = self.nodes.split_at_mut(at);
            let (parent, node) = (&mut above[parent], &mut rest[0]);
            parent.children += 1;
            if node.end.is_none() && !node.is_linked {
                node.end.clone_from(&parent.end);
            }
            if node.budget.is_none() && node.deadline == parent.deadline {
                node.budget = parent.budget;
            }
        }
        for at in (0..self.nodes.len()).rev() {
            let has_work = self.nodes[at].has_work || self.nodes[at].is_work;
            if let Some(parent) = self.nodes[at].parent.filter(|_| has_work) {
                self.nodes[parent].has_work = true;
            }
        }
    }

    fn summary(&self, taken_at: SystemTime) -> Snapshot {
        let stats = self.stats;
        Snapshot {
            format: FORMAT,
            taken_at,
            took: Duration::ZERO,
            totals: self.totals(),
            ended: self.ended(),
            nearly_overdue: self.nearly_overdue(),
            alive: self.alive(),
            lately: stats.lately(),
            late: stats.late(),
            shutdowns: shutdowns::states(&self.shutdowns, self.now, stats.show_causes),
            entries: self.nodes.iter().map(|node| self.entry(node)).collect(),
        }
    }

    fn totals(&self) -> Totals {
        let count = |filter: &dyn Fn(&&Node) -> bool| self.nodes.iter().filter(filter).count();
        Totals {
            seen: self.nodes.len(),
            work: count(&|node| node.is_work),
            alive: count(&|node| node.is_work && node.end.is_none()),
            ended: count(&|node| node.is_work && node.end.is_some()),
            held: count(&|node| self.is_held(node)),
            overstayed: self.stats.overstayed.load(std::sync::atomic::Ordering::Relaxed),
            unregistered: self.hub.table.left_out(),
            unseen: self.unseen,
            unlisted: 0,
        }
    }

    /// Returns whether it is a context that ended some time ago, and has no work.
    fn is_held(&self, node: &Node) -> bool {
        let ended = node.end.as_ref().map(|end| self.now.saturating_duration_since(end.ended_at));
        !node.has_work && !node.is_work && ended.is_some_and(|ago| ago >= HELD)
    }

    fn ended(&self) -> Vec<EndedLine> {
        let mut lines: HashMap<(bool, Kind, Line), Vec<&Node>> = HashMap::new();
        for node in self.nodes.iter().filter(|node| node.end.is_some()) {
            if node.is_work || self.is_held(node) {
                lines.entry((!node.is_work, node.kind, Line(node.line))).or_default().push(node);
            }
        }
        let line = |((is_held, kind, line), nodes): ((bool, Kind, Line), Vec<&Node>)| {
            let first =
                nodes.iter().copied().min_by_key(|node| node.end.as_ref().map(|end| end.ended_at))?;
            let end = first.end.as_ref()?.to_end(self.now);
            Some(EndedLine {
                line,
                kind,
                count: nodes.len(),
                inside: nodes.iter().filter(|node| node.poll.is_some_and(|poll| poll.inside)).count(),
                longest: end.ago,
                first: first.id,
                name: first.name.clone(),
                end,
                poll: first.poll,
                state: first.state(),
                is_work: !is_held,
            })
        };
        let mut ended: Vec<EndedLine> = lines.into_iter().filter_map(line).collect();
        ended.sort_by(|a, b| {
            b.is_work.cmp(&a.is_work).then(b.longest.cmp(&a.longest)).then(a.line.cmp(&b.line))
        });
        ended
    }

    fn nearly_overdue(&self) -> Vec<NearlyOverdue> {
        let is_candidate = |node: &&Node| node.end.is_none() && (node.is_work || node.owns_deadline);
        let nearly = |node: &Node| {
            let (budget, left) = (node.budget?, self.left(node)?);
            (left < budget / 10).then(|| NearlyOverdue {
                id: node.id,
                kind: node.kind,
                line: Line(node.line),
                name: node.name.clone(),
                left,
                budget,
            })
        };
        let mut nearly: Vec<_> = self.nodes.iter().filter(is_candidate).filter_map(nearly).collect();
        nearly.sort_by_key(|nearly| nearly.left);
        nearly.truncate(NEARLY);
        nearly
    }

    fn alive(&self) -> Vec<AliveLine> {
        let mut lines: HashMap<(Kind, Line), (AliveLine, Option<Instant>)> = HashMap::new();
        for node in self.nodes.iter().filter(|node| node.end.is_none()) {
            let (kind, line) = (node.kind, Line(node.line));
            let (sum, first) = lines.entry((kind, line)).or_insert_with(|| {
                let sum = AliveLine {
                    line,
                    kind,
                    count: 0,
                    oldest: None,
                    least_left: None,
                    budget: None,
                    waiters: 0,
                    name: node.name.clone(),
                    oldest_id: node.id,
                };
                (sum, None)
            });
            sum.count += 1;
            sum.waiters += node.waiters;
            if let Some(left) =
                self.left(node).filter(|left| sum.least_left.is_none_or(|least| *left < least))
            {
                (sum.least_left, sum.budget) = (Some(left), node.budget);
            }
            if node.created_at.is_some_and(|at| first.is_none_or(|first| at < first)) {
                *first = node.created_at;
                (sum.oldest_id, sum.oldest) = (node.id, self.age(node));
                sum.name.clone_from(&node.name);
            }
        }
        let mut alive: Vec<AliveLine> = lines.into_values().map(|(line, _)| line).collect();
        alive.sort_by(|a, b| b.count.cmp(&a.count).then((a.line, a.kind).cmp(&(b.line, b.kind))));
        alive
    }

    fn age(&self, node: &Node) -> Option<Duration> {
        node.created_at.map(|at| self.now.saturating_duration_since(at))
    }

    fn left(&self, node: &Node) -> Option<Duration> {
        node.deadline.map(|deadline| deadline.saturating_duration_since(self.now))
    }

    fn entry(&self, node: &Node) -> Entry {
        Entry {
            id: node.id,
            parent: node.parent.map(|parent| self.nodes[parent].id),
            kind: node.kind,
            name: node.name.clone(),
            line: Line(node.line),
            age: self.age(node),
            left: self.left(node),
            budget: node.budget,
            waiters: node.waiters,
            children: node.children,
            end: node.end.as_ref().map(|end| end.to_end(self.now)),
            poll: node.poll,
            is_work: node.is_work,
            is_held: self.is_held(node),
        }
    }
}

impl Node {
    fn state(&self) -> State {
        match self.poll {
            _ if !self.is_work => State::Held,
            Some(Poll { inside: true, .. }) => State::Busy,
            Some(_) => State::Waiting,
            None if self.is_polled => State::NeverPolled,
            None => State::Held,
        }
    }
}

/// Returns the last poll of a record, and whether it is of a kind that is polled.
fn poll(record: &Record) -> (Option<Poll>, bool) {
    let poll = record.last_poll().map(|(ago, inside)| Poll { ago, inside });
    // A ticket has no polls of its own: a task may hold it, or anything else.
    let is_polled = !matches!(record.kind, Kind::Ticket | Kind::AfterFunc | Kind::Process);
    (poll, is_polled)
}

fn address(token: &Arc<Token>) -> usize {
    Arc::as_ptr(token).addr()
}

/// Returns a number for each address, which does not reveal the address. The numbers of records are smaller.
fn id_of(address: usize) -> Id {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    const HALF: u64 = 1 << 52;
    HALF | (KEYS.get_or_init(RandomState::new).hash_one(address) & (HALF - 1))
}
