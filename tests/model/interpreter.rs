//! Runs a script of operations on real contexts and on the reference, and compares everything that is observable.
//!
//! A script consists of bytes: one for the policy, then four for each operation, a code and three operands.
//! Every sequence of bytes is a valid script, so that proptest and a fuzzer can share this code.
//!
//! Contexts are awaited on two runtimes: the first one runs the script, and the second one is started when an
//! operation needs it. Both have a paused clock, and the clock of the second follows that of the first. The second
//! runtime may be suspended, so that its timers do not fire, and may be shut down at any time, with pending waits.
//!
//! A query may detect an end. Therefore a script also says when to query: after every step, or only when it has an
//! operation for it, and in which order. At the end, everything is queried. What is observable without a query is
//! compared after every step.

use std::future::Future;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;
use tokio_ctx::{CancelGuard, CancelScope, Canceler, Context, DoneOwned, Error, ErrorKind};
use tokio_util::sync::CancellationToken;

use crate::reference::{How, Limit, Nanos, Reference, Reported, Timers};

const MILLI: Nanos = 1_000_000;
/// Beyond the range of Tokio's timers.
const FAR: Duration = Duration::from_secs(300 * 365 * 86_400);
/// Half of the range of Tokio's timer wheel, which is the largest step by which its clock may advance at once.
const LARGEST_ADVANCE: Duration = Duration::from_millis(1 << 35);
const EXTERNALS: usize = 3;
/// The maximum numbers of objects that are kept.
const MOST_CONTEXTS: usize = 24;
const MOST_WAITS: usize = 24;
const MOST_NODES: usize = 400;

/// One step. An operand selects one of the existing objects, modulo their number. Without any, the step is skipped.
///
/// `Deepen` derives a chain of children, of which only the last is kept, with the owners of all or of none.
/// `without_budget` polls when the task's cooperative budget is exhausted. `…Elsewhere` is on the second runtime.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    WithCancel { of: u8, line: u8 },
    WithDeadline { of: u8, at: u8, cause: bool },
    WithTimeout { of: u8, after: u8, cause: bool },
    WithValue { of: u8, key: u8, value: u8 },
    WithoutCancel { of: u8 },
    Merge { of: u8, other: u8 },
    WithToken { of: u8, token: u8 },
    Deepen { of: u8, levels: u8, keep_owners: bool },
    CloneContext { of: u8 },
    DropContext { which: u8 },
    HandOutToken { of: u8 },
    CancelHandedOut { which: u8 },
    CancelToken { which: u8 },
    Cancel { which: u8, line: u8, cause: bool },
    CancelByCanceler { which: u8, line: u8, cause: bool },
    MakeCanceler { which: u8 },
    DropCanceler { which: u8 },
    DropOwner { which: u8 },
    Detach { which: u8 },
    Advance { by: u8 },
    AdvanceToDeadline { of: u8, offset: u8 },
    Wait { of: u8, without_budget: bool },
    PollAgain { which: u8, without_budget: bool, same_waker: bool },
    DropWait { which: u8 },
    WaitOnce { of: u8 },
    Query { of: u8, first: u8 },
    QueryAll { order: u8, first: u8 },
    WaitElsewhere { of: u8, without_budget: bool },
    PollElsewhere { which: u8, without_budget: bool, same_waker: bool },
    WaitOnceElsewhere { of: u8 },
    WithScaledTimeout { of: u8, scale: u8, cause: bool },
    Jump { scale: u8 },
    AdvancePartway { of: u8, eighths: u8 },
    SuspendOrResumeElsewhere,
    DropElsewhere,
}

impl Op {
    pub fn decode([code, a, b, c]: [u8; 4]) -> Op {
        let odd = |byte: u8| byte % 2 == 1;
        match code {
            240..=242 => return Op::WaitElsewhere { of: a, without_budget: odd(b) },
            243..=244 => {
                return Op::PollElsewhere { which: a, without_budget: odd(b), same_waker: odd(c) };
            }
            245 => return Op::WaitOnceElsewhere { of: a },
            246..=248 => return Op::WithScaledTimeout { of: a, scale: b, cause: odd(c) },
            249..=250 => return Op::Jump { scale: a },
            251..=253 => return Op::AdvancePartway { of: a, eighths: b },
            254 => return Op::SuspendOrResumeElsewhere,
            255 => return Op::DropElsewhere,
            _ => {}
        }
        match code % 48 {
            0..=2 => Op::WithCancel { of: a, line: b },
            3..=5 => Op::WithDeadline { of: a, at: b, cause: odd(c) },
            6..=8 => Op::WithTimeout { of: a, after: b, cause: odd(c) },
            9 => Op::WithValue { of: a, key: b, value: c },
            10 => Op::WithoutCancel { of: a },
            11..=13 => Op::Merge { of: a, other: b },
            14..=15 => Op::WithToken { of: a, token: b },
            16 => Op::Deepen { of: a, levels: b, keep_owners: odd(c) },
            17 => Op::CloneContext { of: a },
            18..=19 => Op::DropContext { which: a },
            20 => Op::HandOutToken { of: a },
            21 => Op::CancelHandedOut { which: a },
            22 => Op::CancelToken { which: a },
            23..=25 => Op::Cancel { which: a, line: b, cause: odd(c) },
            26 => Op::CancelByCanceler { which: a, line: b, cause: odd(c) },
            27 => Op::MakeCanceler { which: a },
            28 => Op::DropCanceler { which: a },
            29..=30 => Op::DropOwner { which: a },
            31 => Op::Detach { which: a },
            32..=34 => Op::Advance { by: a },
            35..=37 => Op::AdvanceToDeadline { of: a, offset: b },
            38..=40 => Op::Wait { of: a, without_budget: odd(b) },
            41..=42 => Op::PollAgain { which: a, without_budget: odd(b), same_waker: odd(c) },
            43 => Op::DropWait { which: a },
            44 => Op::WaitOnce { of: a },
            45..=46 => Op::Query { of: a, first: b },
            _ => Op::QueryAll { order: a, first: b },
        }
    }
}

/// Which queries run without an operation, and in which order everything is dropped at the end.
#[derive(Clone, Copy, Debug)]
pub struct Policy(pub u8);

impl Policy {
    fn queries_after_every_step(self) -> bool {
        self.0 % 4 == 0
    }
}

/// Runs a script given as bytes, and ignores incomplete operations at its end.
pub fn run_bytes(script: &[u8]) {
    if let Some((&policy, rest)) = script.split_first() {
        run(Policy(policy), rest.chunks_exact(4).map(|op| Op::decode([op[0], op[1], op[2], op[3]])));
    }
}

/// Runs a script; panics if anything differs from the reference.
pub fn run(policy: Policy, script: impl IntoIterator<Item = Op>) {
    let here = paused();
    let mut elsewhere = None;
    let mut world = here.block_on(async { World::new() });
    for op in script {
        world.step_elsewhere(op, &here, &mut elsewhere);
        here.block_on(world.step(op));
        if let Some(runtime) = elsewhere.as_ref().filter(|_| !world.is_suspended) {
            runtime.block_on(run_ready_tasks());
        }
        here.block_on(async {
            if policy.queries_after_every_step() {
                world.query_all(policy.0 / 4, policy.0 / 16);
            }
            world.compare_unqueried();
        });
    }
    here.block_on(async {
        world.query_all(policy.0 / 4, policy.0 / 16);
        world.compare_unqueried();
        world.drop_all(policy.0 / 4);
    });
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// A context and its expected state: its node, or none if it never ends, and its values.
#[derive(Clone)]
struct Live {
    ctx: Context,
    node: Option<usize>,
    /// By type, nearest first.
    values: Vec<(u8, u8)>,
}

/// A wait that was polled at least once.
struct Waiting {
    done: Pin<Box<DoneOwned>>,
    node: Option<usize>,
    wakes: Arc<Wakes>,
    /// Whether it has resolved.
    over: bool,
    /// Whether it was last polled on the second runtime.
    elsewhere: bool,
}

struct Handed {
    token: CancellationToken,
    node: Option<usize>,
    /// Whether the script has canceled it, rather than the end of the context.
    canceled: bool,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct ValueA(u8);
struct ValueB(u8);
struct ValueC(Box<u8>);

struct World {
    start: Instant,
    reference: Reference,
    contexts: Vec<Live>,
    owners: Vec<(Owner, usize)>,
    cancelers: Vec<(Canceler, usize)>,
    externals: Vec<CancellationToken>,
    handed: Vec<Handed>,
    waits: Vec<Waiting>,
    /// The second runtime, if it is running.
    elsewhere: Option<Handle>,
    /// Whether the timers of the second runtime do not fire.
    is_suspended: bool,
    /// Whether the current operation runs on the second runtime.
    is_elsewhere: bool,
    /// Numbers budgets and causes, so that they are distinct.
    count: u32,
    nodes: usize,
}

impl World {
    fn new() -> World {
        let mut reference = Reference::default();
        (0..EXTERNALS).for_each(|_| reference.add_token());
        let background = Live { ctx: Context::background(), node: None, values: Vec::new() };
        World {
            start: Instant::now(),
            reference,
            contexts: vec![background],
            owners: Vec::new(),
            cancelers: Vec::new(),
            externals: (0..EXTERNALS).map(|_| CancellationToken::new()).collect(),
            handed: Vec::new(),
            waits: Vec::new(),
            elsewhere: None,
            is_suspended: false,
            is_elsewhere: false,
            count: 0,
            nodes: 0,
        }
    }

    fn nanos(&self, at: Instant) -> Nanos {
        let nanos = |duration: Duration| duration.as_nanos() as Nanos;
        nanos(at.saturating_duration_since(self.start)) - nanos(self.start.saturating_duration_since(at))
    }

    fn next_cause(&mut self, wanted: bool) -> Option<String> {
        self.count += 1;
        wanted.then(|| format!("cause {}", self.count))
    }

    /// Returns the context that an operand selects: often one of the latest, so that trees become deep.
    fn pick(&self, operand: u8) -> Live {
        let (latest, operand) = (operand % 2 == 0, usize::from(operand / 2));
        let all = self.contexts.len();
        let among = if latest { all.min(3) } else { all };
        self.contexts[all - 1 - operand % among].clone()
    }

    fn keep(&mut self, ctx: Context, node: Option<usize>, values: Vec<(u8, u8)>) {
        if self.contexts.len() == MOST_CONTEXTS {
            self.contexts.remove(1);
        }
        self.contexts.push(Live { ctx, node, values });
    }

    /// Registers a derived context that was made at `line`.
    fn adopt(&mut self, from: &[&Live], made: Made, limit: Option<Limit>, token: Option<usize>) -> Live {
        let (scope, line) = made;
        let mut parents: Vec<usize> = from.iter().filter_map(|live| live.node).collect();
        parents.dedup();
        let node = self.reference.derive(&parents, limit, token, line);
        self.nodes += 1;
        let ctx = scope.clone();
        self.owners.push((Owner::of(scope, self.nodes), node));
        // Looked up in the first context, then in the second. Only the nearest value of a key is observable, and
        // keeping all would need much memory for merges of merges.
        let mut values: Vec<(u8, u8)> = Vec::new();
        for &(key, value) in from.iter().flat_map(|live| &live.values) {
            if !values.iter().any(|(known, _)| *known == key) {
                values.push((key, value));
            }
        }
        Live { ctx, node: Some(node), values }
    }

    async fn step(&mut self, op: Op) {
        match op {
            _ if self.nodes >= MOST_NODES => {}
            Op::WithCancel { of, line } => {
                let from = self.pick(of);
                let made = with_cancel(&from.ctx, line);
                let live = self.adopt(&[&from], made, None, None);
                self.keep(live.ctx, live.node, live.values);
            }
            Op::WithDeadline { of, at, cause } => {
                let (now, from) = (Instant::now(), self.pick(of));
                let cause = self.next_cause(cause);
                let at = match at % 4 {
                    0 => now - Duration::from_millis(u64::from(at / 4)),
                    // Not so far in the future that `Instant` overflows.
                    _ => now + self.budget(at / 4).min(FAR),
                };
                let budget = at.saturating_duration_since(now);
                let limit = Limit { at: self.nanos(at), budget, cause: cause.clone() };
                let made = match cause {
                    None => (from.ctx.with_deadline(at), line!()),
                    Some(cause) => (from.ctx.with_deadline_cause(at, cause), line!()),
                };
                let live = self.adopt(&[&from], made, Some(limit), None);
                self.keep(live.ctx, live.node, live.values);
            }
            Op::WithTimeout { of, after, cause } => {
                let after = self.budget(after);
                self.with_timeout(of, after, cause);
            }
            Op::WithValue { of, key, value } => {
                let Live { ctx, node, mut values } = self.pick(of);
                let key = key % 3;
                values.insert(0, (key, value));
                let ctx = match key {
                    0 => ctx.with_value(ValueA(value)),
                    1 => ctx.with_value(ValueB(value)),
                    _ => ctx.with_value(ValueC(Box::new(value))),
                };
                self.keep(ctx, node, values);
            }
            Op::WithoutCancel { of } => {
                let Live { ctx, values, .. } = self.pick(of);
                self.keep(ctx.without_cancel(), None, values);
            }
            Op::Merge { of, other } => {
                let (from, other) = (self.pick(of), self.pick(other));
                let made = (from.ctx.merge(&other.ctx), line!());
                let live = self.adopt(&[&from, &other], made, None, None);
                self.keep(live.ctx, live.node, live.values);
            }
            Op::WithToken { of, token } => {
                let (from, token) = (self.pick(of), usize::from(token) % EXTERNALS);
                let made = (from.ctx.with_token(&self.externals[token]), line!());
                let live = self.adopt(&[&from], made, None, Some(token));
                self.keep(live.ctx, live.node, live.values);
            }
            Op::Deepen { of, levels, keep_owners } => {
                let mut from = self.pick(of);
                for level in 0..levels % 20 + 1 {
                    let made = with_cancel(&from.ctx, level);
                    from = self.adopt(&[&from], made, None, None);
                    if !keep_owners {
                        self.owners.pop().unwrap().0.detach();
                    }
                }
                self.keep(from.ctx, from.node, from.values);
            }
            Op::CloneContext { of } => {
                let Live { ctx, node, values } = self.pick(of);
                self.keep(ctx, node, values);
            }
            Op::DropContext { which } => {
                // The background stays, so that there is always a context to derive from.
                if self.contexts.len() > 1 {
                    let which = 1 + usize::from(which) % (self.contexts.len() - 1);
                    self.contexts.remove(which);
                }
            }
            Op::HandOutToken { of } => {
                let Live { ctx, node, .. } = self.pick(of);
                self.handed.push(Handed { token: ctx.cancellation_token(), node, canceled: false });
            }
            Op::CancelHandedOut { which } => {
                if let Some(which) = place(which, &self.handed) {
                    self.handed[which].token.cancel();
                    self.handed[which].canceled = true;
                }
            }
            Op::CancelToken { which } => {
                let which = usize::from(which) % EXTERNALS;
                self.externals[which].cancel();
                self.reference.cancel_token(which);
            }
            Op::Cancel { which, line, cause } => {
                let cause = self.next_cause(cause);
                if let Some(which) = place(which, &self.owners) {
                    let (owner, node) = &self.owners[which];
                    let (line, node) = (cancel(owner, line, cause.clone()), *node);
                    self.reference.cancel(node, Some(line), cause);
                }
            }
            Op::CancelByCanceler { which, line, cause } => {
                let cause = self.next_cause(cause);
                if let Some(which) = place(which, &self.cancelers) {
                    let (canceler, node) = &self.cancelers[which];
                    let (line, node) = (cancel_by(canceler, line, cause.clone()), *node);
                    self.reference.cancel(node, Some(line), cause);
                }
            }
            Op::MakeCanceler { which } => {
                if let Some(which) = place(which, &self.owners) {
                    let (owner, node) = &self.owners[which];
                    self.cancelers.push((owner.canceler(), *node));
                }
            }
            Op::DropCanceler { which } => {
                if let Some(which) = place(which, &self.cancelers) {
                    self.cancelers.remove(which);
                }
            }
            Op::DropOwner { which } => {
                if let Some(which) = place(which, &self.owners) {
                    self.drop_owner(which);
                }
            }
            Op::Detach { which } => {
                if let Some(which) = place(which, &self.owners) {
                    self.owners.remove(which).0.detach();
                }
            }
            Op::Advance { by } => {
                let by = match by % 8 {
                    0 => Duration::from_micros(250),
                    1 => Duration::from_nanos(u64::from(by)),
                    2 if by > 200 => Duration::from_secs(365 * 86_400),
                    2 => Duration::from_secs(u64::from(by)),
                    _ => Duration::from_millis(u64::from(by / 8)),
                };
                self.advance(by).await;
            }
            Op::AdvanceToDeadline { of, offset } => {
                let to = self.pick(of).node.and_then(|node| self.reference.deadline(node));
                let by = to.unwrap_or_default() + [0, 0, 1, -1][usize::from(offset % 4)];
                let by = by - self.reference.now();
                // Not to the end of the clock.
                if (1..4_000_000 * 1_000 * MILLI).contains(&by) {
                    self.advance(Duration::from_nanos(by as u64)).await;
                }
            }
            Op::Wait { of, without_budget } => self.wait(of, without_budget),
            Op::PollAgain { which, without_budget, same_waker } => {
                self.poll_again(which, without_budget, same_waker)
            }
            Op::DropWait { which } => {
                if let Some(which) = place(which, &self.waits) {
                    self.drop_wait(which);
                }
            }
            Op::WaitOnce { of } => self.wait_once(of),
            Op::Query { of, first } => {
                let Live { ctx, node, .. } = self.pick(of);
                self.query(&ctx, node, first);
            }
            Op::QueryAll { order, first } => self.query_all(order, first),
            Op::WithScaledTimeout { of, scale, cause } => {
                let after = Duration::from_millis(1 << (scale % 40)) + Duration::from_nanos(self.odd());
                self.with_timeout(of, after, cause);
            }
            Op::Jump { scale } => {
                let by = Duration::from_millis(1 << (scale % 36));
                self.advance(by + Duration::from_nanos(u64::from(scale / 36))).await;
            }
            Op::AdvancePartway { of, eighths } => {
                let to = self.pick(of).node.and_then(|node| self.reference.deadline(node));
                let left = to.unwrap_or_default() - self.reference.now();
                let by = left * Nanos::from(eighths % 8 + 1) / 8;
                if (1..=LARGEST_ADVANCE.as_nanos() as Nanos).contains(&by) {
                    self.advance(Duration::from_nanos(by as u64)).await;
                }
            }
            Op::WaitElsewhere { .. }
            | Op::PollElsewhere { .. }
            | Op::WaitOnceElsewhere { .. }
            | Op::SuspendOrResumeElsewhere
            | Op::DropElsewhere => {}
        }
        // A task watches the context of a returned token.
        if !self.handed.is_empty() {
            self.reassign_tokens();
            run_ready_tasks().await;
        }
    }

    fn with_timeout(&mut self, of: u8, after: Duration, cause: bool) {
        let from = self.pick(of);
        let cause = self.next_cause(cause);
        let at = self.reference.now() + after.as_nanos() as Nanos;
        let limit = (after != Duration::MAX).then(|| Limit { at, budget: after, cause: cause.clone() });
        let made = match cause {
            None => (from.ctx.with_timeout(after), line!()),
            Some(cause) => (from.ctx.with_timeout_cause(after, cause), line!()),
        };
        let live = self.adopt(&[&from], made, limit, None);
        self.keep(live.ctx, live.node, live.values);
    }

    /// Creates a wait, and polls it.
    fn wait(&mut self, of: u8, without_budget: bool) {
        let Live { ctx, node, .. } = self.pick(of);
        if self.waits.len() < MOST_WAITS {
            let done = Box::pin(ctx.done_owned());
            let wakes = Arc::default();
            self.waits.push(Waiting { done, node, wakes, over: false, elsewhere: false });
            self.poll(self.waits.len() - 1, without_budget);
        }
    }

    fn poll_again(&mut self, which: u8, without_budget: bool, same_waker: bool) {
        let Some(which) = place(which, &self.waits) else { return };
        let before = self.waits[which].wakes.clone();
        if !same_waker {
            self.waits[which].wakes = Arc::default();
        }
        self.poll(which, without_budget);
        // The replaced waker is not kept, except by a resolved wait until it is dropped.
        if !same_waker && !self.waits[which].over {
            assert_eq!(Arc::strong_count(&before), 1, "a replaced waker was kept");
        }
    }

    fn wait_once(&mut self, of: u8) {
        let Live { ctx, node, .. } = self.pick(of);
        let wakes = Arc::default();
        let polled = poll(pin!(ctx.done()), &wakes);
        assert_eq!(Arc::strong_count(&wakes), 1, "a wait that was dropped left its waker");
        self.compare_poll(node, polled);
    }

    /// Returns zero, some milliseconds (often the same), a unique time, a distant time, or the maximum.
    fn budget(&mut self, operand: u8) -> Duration {
        self.count += 1;
        match operand % 8 {
            0 if operand < 16 => Duration::ZERO,
            0 if operand < 24 => Duration::MAX,
            0 if operand < 32 => FAR,
            0..=4 => Duration::from_millis(u64::from(operand / 8)),
            _ => Duration::from_nanos(u64::from(operand / 8) * 1_000_000 + u64::from(self.count)),
        }
    }

    /// Returns zero in half of the calls, and otherwise a unique number.
    fn odd(&mut self) -> u64 {
        self.count += 1;
        u64::from(self.count) * u64::from(self.count % 2)
    }

    /// Advances both clocks. The timers of the second runtime fire later, when it runs.
    async fn advance(&mut self, by: Duration) {
        if let Some(elsewhere) = &self.elsewhere {
            let _entered = elsewhere.enter();
            let _moved = poll(pin!(tokio::time::advance(by)), &Arc::default());
        }
        tokio::time::advance(by).await;
        self.reference.advance(by.as_nanos() as Nanos);
        run_ready_tasks().await;
    }

    /// Passes the tokens returned by a context that is gone to its parent.
    fn reassign_tokens(&mut self) {
        let contexts = self.contexts.iter().filter_map(|live| live.node);
        let owners = self.owners.iter().map(|(_, node)| *node);
        let cancelers = self.cancelers.iter().map(|(_, node)| *node);
        let waits = self.waits.iter().filter_map(|wait| wait.node);
        // A task watches the contexts that can end without a call.
        let handed = self.handed.iter().filter_map(|handed| handed.node);
        let watched = handed.filter(|&node| self.reference.is_watched(node));
        let handles = contexts.chain(owners).chain(cancelers).chain(waits).chain(watched);
        let held = self.reference.held(handles);
        for handed in &mut self.handed {
            handed.node = handed.node.and_then(|node| self.reference.token_owner(node, &held));
        }
    }

    fn drop_owner(&mut self, which: usize) {
        let (owner, node) = self.owners.remove(which);
        drop(owner);
        self.reference.cancel(node, None, None);
    }

    fn drop_wait(&mut self, which: usize) {
        let Waiting { done, wakes, .. } = self.waits.remove(which);
        drop(done);
        assert_eq!(Arc::strong_count(&wakes), 1, "a wait that was dropped left its waker");
    }
}

// On the second runtime.
impl World {
    /// Performs the operations that have to run outside of the first runtime.
    fn step_elsewhere(&mut self, op: Op, here: &Runtime, runtime: &mut Option<Runtime>) {
        if self.nodes >= MOST_NODES {
            return;
        }
        match op {
            Op::WaitElsewhere { of, without_budget } => {
                self.elsewhere(here, runtime, |world| world.wait(of, without_budget));
            }
            Op::PollElsewhere { which, without_budget, same_waker } => {
                self.elsewhere(here, runtime, |world| {
                    world.poll_again(which, without_budget, same_waker)
                });
            }
            Op::WaitOnceElsewhere { of } => self.elsewhere(here, runtime, |world| world.wait_once(of)),
            Op::SuspendOrResumeElsewhere => self.is_suspended = !self.is_suspended,
            Op::DropElsewhere => {
                *runtime = None;
                self.elsewhere = None;
                self.is_suspended = false;
                here.block_on(async { self.move_waits_here() });
            }
            _ => {}
        }
    }

    /// Runs an operation on the second runtime. If that is suspended, the runtime is only entered.
    fn elsewhere(
        &mut self,
        here: &Runtime,
        runtime: &mut Option<Runtime>,
        what: impl FnOnce(&mut World),
    ) {
        let runtime = runtime.get_or_insert_with(|| self.start_elsewhere(here));
        self.is_elsewhere = true;
        if self.is_suspended {
            here.block_on(async {
                let _entered = runtime.enter();
                what(self);
            });
        } else {
            runtime.block_on(async { what(self) });
        }
        self.is_elsewhere = false;
    }

    /// Starts a second runtime, whose clock shows the same time as that of the first.
    fn start_elsewhere(&mut self, here: &Runtime) -> Runtime {
        let runtime = paused();
        let now = |runtime: &Runtime| runtime.block_on(async { Instant::now() });
        // A paused clock cannot go back. Whole milliseconds, so that the timers of the first runtime stay aligned.
        let ahead = now(&runtime).saturating_duration_since(now(here));
        if !ahead.is_zero() {
            here.block_on(self.advance(Duration::from_millis(ahead.as_millis() as u64 + 1)));
        }
        let to = now(here);
        runtime.block_on(async {
            while Instant::now() < to {
                tokio::time::advance(LARGEST_ADVANCE.min(to - Instant::now())).await;
            }
        });
        self.elsewhere = Some(runtime.handle().clone());
        runtime
    }

    /// Polls the waits that the end of the second runtime has woken, which must include all that used its timers.
    fn move_waits_here(&mut self) {
        for which in 0..self.waits.len() {
            let Waiting { node, wakes, over, elsewhere, .. } = &mut self.waits[which];
            let deadline = node.and_then(|node| self.reference.deadline(node));
            let was_woken = wakes.count() > 0;
            let lost = !*over && *elsewhere && deadline.is_some() && !was_woken;
            assert!(!lost, "wait {which} on {node:?} was not woken when its runtime shut down");
            *elsewhere = false;
            if was_woken && !*over {
                self.poll(which, false);
            }
        }
    }
}

// Compare.
impl World {
    /// Compares what is observable without a query.
    fn compare_unqueried(&self) {
        let now = Instant::now();
        assert_eq!(self.nanos(now), self.reference.now(), "the clocks differ");
        for Live { ctx, node, values } in &self.contexts {
            let deadline = node.and_then(|node| self.reference.deadline(node));
            assert_eq!(ctx.deadline().map(|at| self.nanos(at)), deadline, "deadline of {node:?}");
            let left = deadline.map(|at| (at - self.reference.now()).max(0));
            let remaining = ctx.remaining().map(|left| left.as_nanos() as Nanos);
            assert_eq!(remaining, left, "time left of {node:?}");
            let nearest = |key| values.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
            assert_eq!(ctx.value::<ValueA>().map(|a| a.0), nearest(0), "value of {node:?}");
            assert_eq!(ctx.value::<ValueB>().map(|b| b.0), nearest(1), "value of {node:?}");
            assert_eq!(ctx.value::<ValueC>().map(|c| *c.0), nearest(2), "value of {node:?}");
        }
        for (place, Waiting { node, wakes, over, elsewhere, .. }) in self.waits.iter().enumerate() {
            if *over {
                continue;
            }
            if !node.is_some_and(|node| self.reference.is_done(node)) {
                assert_eq!(wakes.count(), 0, "wait {place} on {node:?} was woken without an end");
            }
            let timers = self.timers(*elsewhere);
            if node.is_some_and(|node| self.reference.is_detectable(node, timers)) {
                assert!(wakes.count() > 0, "wait {place} on {node:?}, which has ended, was not woken");
            }
        }
        for Handed { token, node, canceled } in &self.handed {
            if *canceled || node.is_some_and(|node| self.reference.is_detectable(node, Timers::InStep)) {
                assert!(token.is_cancelled(), "the token of {node:?} was not canceled");
            } else if !node.is_some_and(|node| self.reference.is_done(node)) {
                assert!(!token.is_cancelled(), "the token of {node:?} was canceled without an end");
            }
        }
    }

    fn query_all(&mut self, order: u8, first: u8) {
        let count = self.contexts.len();
        for place in 0..count {
            let place = match order % 4 {
                0 => place,
                1 => count - 1 - place,
                _ => (place * 5 + usize::from(order)) % count,
            };
            let Live { ctx, node, .. } = self.contexts[place].clone();
            self.query(&ctx, node, first.wrapping_add(place as u8));
        }
    }

    /// Queries a context in all ways, starting with `first`.
    fn query(&mut self, ctx: &Context, node: Option<usize>, first: u8) {
        for query in 0..4 {
            let reported = match (first.wrapping_add(query)) % 4 {
                0 => {
                    let done = node.is_some_and(|node| self.reference.is_done(node));
                    assert_eq!(ctx.is_done(), done, "is_done of {node:?}");
                    continue;
                }
                1 => ctx.err(),
                2 => ctx.check().err(),
                // A wait may be late, unless the end was reported.
                _ => {
                    let polled = poll(pin!(ctx.done()), &Arc::default());
                    self.compare_poll(node, polled);
                    continue;
                }
            };
            self.compare(node, reported);
        }
    }

    fn compare(&mut self, node: Option<usize>, reported: Option<Error>) {
        let done = node.is_some_and(|node| self.reference.is_done(node));
        assert_eq!(reported.is_some(), done, "whether {node:?} has ended, reported {reported:?}");
        if let (Some(node), Some(error)) = (node, reported) {
            self.reference.observe(node, &self.reported_by(&error));
        }
    }

    fn compare_poll(&mut self, node: Option<usize>, polled: Poll<Error>) {
        let timers = self.timers(self.is_elsewhere);
        let detectable = node.is_some_and(|node| self.reference.is_detectable(node, timers));
        match polled {
            Poll::Ready(error) => self.compare(node, Some(error)),
            Poll::Pending => assert!(!detectable, "a wait on {node:?}, which has ended, is pending"),
        }
    }

    /// Returns which timers a wait depends on.
    fn timers(&self, elsewhere: bool) -> Timers {
        match elsewhere {
            false => Timers::InStep,
            true if self.is_suspended => Timers::Suspended,
            true => Timers::OutOfStep,
        }
    }

    fn poll(&mut self, which: usize, without_budget: bool) {
        let wait = &mut self.waits[which];
        wait.elsewhere = self.is_elsewhere;
        wait.wakes.0.store(0, Ordering::Relaxed);
        if without_budget {
            // Exhausts the cooperative budget of the task.
            let mut polls = 0;
            while poll(pin!(tokio::task::coop::consume_budget()), &Arc::default()).is_ready() {
                polls += 1;
                assert!(polls < 10_000, "the budget has no end");
            }
        }
        let polled = poll(wait.done.as_mut(), &wait.wakes);
        let (node, again) = (wait.node, wait.over);
        wait.over |= polled.is_ready();
        assert!(!again || polled.is_ready(), "a wait on {node:?} that had resolved is pending");
        self.compare_poll(node, polled);
    }

    fn reported_by(&self, error: &Error) -> Reported {
        let origin = error.origin();
        let text = error.to_string();
        let how = match error.kind() {
            ErrorKind::DeadlineExceeded => How::Deadline,
            _ if text.starts_with("context canceled: scope dropped") => How::OwnerDropped,
            _ if text.starts_with("context canceled by the CancellationToken") => How::Token,
            _ => How::Canceled,
        };
        let line = |place: &Location<'_>| {
            assert!(place.file().ends_with("interpreter.rs"), "{place}");
            place.line()
        };
        Reported {
            how,
            cause: error.cause().map(ToString::to_string),
            address: error.cause().map(|cause| std::ptr::from_ref(cause).cast::<()>().addr()),
            made_at: line(origin.made_at()),
            canceled_at: origin.canceled_at().map(line),
            budget: origin.budget(),
            ended_at: self.nanos(origin.ended_at()),
        }
    }

    /// Drops all owners, waits and contexts, in one of several orders.
    fn drop_all(mut self, order: u8) {
        for round in 0..3 {
            match (round + order) % 3 {
                0 => {
                    while !self.owners.is_empty() {
                        self.drop_owner(if order % 2 == 0 { 0 } else { self.owners.len() - 1 });
                        self.reassign_tokens();
                        self.compare_unqueried();
                    }
                }
                1 => {
                    while !self.waits.is_empty() {
                        self.drop_wait(if order % 2 == 0 { 0 } else { self.waits.len() - 1 });
                        self.reassign_tokens();
                    }
                }
                _ => {
                    while !self.contexts.is_empty() {
                        self.contexts.remove(if order % 2 == 0 { 0 } else { self.contexts.len() - 1 });
                        self.reassign_tokens();
                    }
                }
            }
        }
    }
}

/// Returns the position that an operand selects in a list.
fn place<T>(operand: u8, list: &[T]) -> Option<usize> {
    (!list.is_empty()).then(|| usize::from(operand) % list.len())
}

/// Lets timers fire, and the woken tasks run.
async fn run_ready_tasks() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

fn poll<F: Future>(future: Pin<&mut F>, wakes: &Arc<Wakes>) -> Poll<F::Output> {
    future.poll(&mut task::Context::from_waker(&Waker::from(wakes.clone())))
}

/// What a constructor returned, and the line that called it.
type Made = (CancelScope, u32);

/// Ends a context when it is dropped: its scope, or for every other context the guard split from it.
enum Owner {
    Scope(CancelScope),
    Guard(CancelGuard),
}

impl Owner {
    fn of(scope: CancelScope, nth: usize) -> Owner {
        if nth % 2 == 0 { Owner::Scope(scope) } else { Owner::Guard(scope.split().1) }
    }

    #[track_caller]
    fn cancel(&self) {
        match self {
            Owner::Scope(scope) => scope.cancel(),
            Owner::Guard(guard) => guard.cancel(),
        }
    }

    #[track_caller]
    fn cancel_with(&self, cause: String) {
        match self {
            Owner::Scope(scope) => scope.cancel_with(cause),
            Owner::Guard(guard) => guard.cancel_with(cause),
        }
    }

    fn canceler(&self) -> Canceler {
        match self {
            Owner::Scope(scope) => scope.canceler(),
            Owner::Guard(guard) => guard.canceler(),
        }
    }

    fn detach(self) {
        match self {
            Owner::Scope(scope) => drop(scope.detach()),
            Owner::Guard(guard) => guard.detach(),
        }
    }
}

// Each on several lines, so that the line in an error identifies the call.

fn with_cancel(ctx: &Context, line: u8) -> Made {
    match line % 3 {
        0 => (ctx.with_cancel(), line!()),
        1 => (ctx.with_cancel(), line!()),
        _ => (ctx.with_cancel(), line!()),
    }
}

macro_rules! cancel_here {
    ($handle:expr, $cause:expr) => {{
        match $cause {
            None => $handle.cancel(),
            Some(cause) => $handle.cancel_with(cause),
        }
        line!()
    }};
}

fn cancel(owner: &Owner, line: u8, cause: Option<String>) -> u32 {
    match line % 3 {
        0 => cancel_here!(owner, cause),
        1 => cancel_here!(owner, cause),
        _ => cancel_here!(owner, cause),
    }
}

fn cancel_by(canceler: &Canceler, line: u8, cause: Option<String>) -> u32 {
    match line % 3 {
        0 => cancel_here!(canceler, cause),
        1 => cancel_here!(canceler, cause),
        _ => cancel_here!(canceler, cause),
    }
}
