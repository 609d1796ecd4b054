//! Promise 10 at its limits: trees a million deep and a million wide on a small stack, and the longest delay of
//! a concurrent query.
//!
//! By default the sizes are a tenth of that; `TOKIO_CTX_FULL=1` uses the full sizes.

mod common;

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Cause, Dice, Drops, LONG, Wakes, assert_same, current_thread, ended, is_full, ms, on_a_small_stack,
    poll, poll_once, word,
};
use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Returns a million, or a tenth of it.
fn million() -> usize {
    if is_full() { 1_000_000 } else { 100_000 }
}

/// The order in which the handles of a chain are dropped.
#[derive(Clone, Copy, Debug)]
enum Order {
    RootFirst,
    LeafFirst,
    Shuffled,
}

const ORDERS: [Order; 3] = [Order::RootFirst, Order::LeafFirst, Order::Shuffled];

fn drop_in(order: Order, mut handles: Vec<CancelScope>) {
    match order {
        Order::RootFirst => handles.drain(..).for_each(drop),
        Order::LeafFirst => while handles.pop().is_some() {},
        Order::Shuffled => {
            Dice::new(7).shuffle(&mut handles);
            handles.drain(..).for_each(drop);
        }
    }
}

/// Derives the next level; gets the last context, its level, the top of the chain, and an unrelated context.
type Derive = fn(&Context, usize, &Context, &Context) -> CancelScope;

fn derivations() -> [(&'static str, usize, Derive); 8] {
    struct Level(#[allow(dead_code)] usize);
    let hundred_thousand = million() / 10;
    [
        ("with_cancel", million(), |last, _, _, _| last.with_cancel()),
        // Every deadline is earlier than its parent's, so that each level has its own.
        ("with_timeout", million(), |last, level, _, _| {
            last.with_timeout(LONG * 100 - ms(level as u64))
        }),
        ("with_timeout_cause", hundred_thousand, |last, level, _, _| {
            last.with_timeout_cause(LONG * 100 - ms(level as u64), Cause("slow"))
        }),
        ("with_value", million(), |last, level, _, _| last.with_value(Level(level)).with_cancel()),
        ("with_token", hundred_thousand / 10, |last, level, _, _| match level % 100 {
            0 => last.with_token(&CancellationToken::new()),
            _ => last.with_cancel(),
        }),
        ("merge on the left", hundred_thousand, |last, _, _, other| last.merge(other)),
        ("merge on the right", hundred_thousand, |last, _, _, other| other.merge(last)),
        ("merge on both sides", hundred_thousand, |last, level, top, other| match level % 4 {
            0 => top.merge(last),
            1 => last.with_timeout(LONG),
            2 => last.merge(other),
            _ => other.merge(last),
        }),
    ]
}

/// Builds a chain below `top`, and returns all scopes.
fn chain(derive: Derive, levels: usize, top: &Context, other: &Context) -> Vec<CancelScope> {
    let mut chain: Vec<CancelScope> = Vec::with_capacity(levels);
    for level in 0..levels {
        let next = derive(chain.last().map_or(top, |last| last), level, top, other);
        chain.push(next);
    }
    chain
}

/// Derives a chain, waits on the leaf, cancels the root, queries, and drops.
fn drops_a_chain(name: &'static str) {
    on_a_small_stack(move || {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let (_, levels, derive) =
            derivations().into_iter().find(|(found, ..)| *found == name).expect("a derivation");
        for order in ORDERS {
            for waited in [true, false] {
                let start = Instant::now();
                let top = BACKGROUND.with_cancel();
                let other = BACKGROUND.with_timeout(LONG * 200);
                let chain = chain(derive, levels, &top, &other);
                let leaf = chain[levels - 1].clone();
                let (wakes, waker) = Wakes::new();
                let mut wait = Box::pin(leaf.done_owned());
                if waited {
                    assert!(poll(wait.as_mut(), &waker).is_pending());
                }
                assert!(!leaf.is_done());
                top.cancel_with(Cause("root"));
                assert_eq!(wakes.count(), usize::from(waited));
                assert!(poll(wait.as_mut(), &waker).is_ready());
                let error = ended(&leaf);
                assert_eq!(word(&error), Some("root"));
                assert!(chain.iter().rev().all(|ctx| ctx.is_done()));
                assert_same(&ended(&chain[levels / 2]), &error);
                drop((leaf, wait));
                drop_in(order, chain);
                assert!(!other.is_done());
                println!(
                    "{name}, {levels} deep, waited {waited}, dropped {order:?}: {:.2} s",
                    start.elapsed().as_secs_f64()
                );
            }
        }
        // Never ended, with all scopes detached. Dropping the leaf's handle then frees the whole chain.
        for order in ORDERS {
            let drops = Drops::default();
            let top = BACKGROUND.with_value(drops.counted()).with_cancel().detach();
            let other = BACKGROUND.with_timeout(LONG * 200);
            let chain = chain(derive, levels, &top, &other);
            let mut contexts: Vec<_> = chain.into_iter().map(CancelScope::detach).collect();
            assert!(poll_once(contexts[levels - 1].done()).is_pending());
            drop(top);
            match order {
                Order::RootFirst => contexts.drain(..).for_each(drop),
                Order::LeafFirst => while contexts.pop().is_some() {},
                Order::Shuffled => {
                    Dice::new(9).shuffle(&mut contexts);
                    contexts.clear();
                }
            }
            assert_eq!(drops.count(), 1, "dropped {order:?}");
        }
    });
}

mod deep {
    use super::*;

    #[test]
    fn with_cancel() {
        drops_a_chain("with_cancel");
    }

    #[test]
    fn with_a_deadline_at_each_level() {
        drops_a_chain("with_timeout");
    }

    #[test]
    fn with_a_deadline_and_a_cause_at_each_level() {
        drops_a_chain("with_timeout_cause");
    }

    #[test]
    fn with_a_value_at_each_level() {
        drops_a_chain("with_value");
    }

    #[test]
    fn below_many_tokens() {
        drops_a_chain("with_token");
    }

    #[test]
    fn with_merges_on_the_left() {
        drops_a_chain("merge on the left");
    }

    #[test]
    fn with_merges_on_the_right() {
        drops_a_chain("merge on the right");
    }

    #[test]
    fn with_merges_on_both_sides() {
        drops_a_chain("merge on both sides");
    }

    /// A waiter at every level. One cancel wakes all of them.
    #[test]
    fn with_a_waiter_at_each_level() {
        on_a_small_stack(|| {
            let top = BACKGROUND.with_cancel();
            let chain = chain(|last, _, _, _| last.with_cancel(), million(), &top, &top);
            let (wakes, waker) = Wakes::new();
            let mut waits: Vec<_> = chain.iter().map(|ctx| Box::pin(ctx.done())).collect();
            for wait in &mut waits {
                assert!(poll(wait.as_mut(), &waker).is_pending());
            }
            top.cancel();
            assert_eq!(wakes.count(), million());
        });
    }

    /// A deadline in the middle: descendants have ended, and ancestors have not.
    #[test]
    fn ended_in_the_middle_by_a_deadline() {
        on_a_small_stack(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let top = BACKGROUND.with_cancel();
                let derive: Derive = |last, level, _, _| match level == million() / 2 {
                    true => last.with_timeout(LONG),
                    false => last.with_cancel(),
                };
                let chain = chain(derive, million(), &top, &top);
                let leaf = &chain[million() - 1];
                assert!(leaf.done().await.is_deadline_exceeded());
                assert!(chain[million() / 2..].iter().all(|ctx| ctx.is_done()));
                assert!(!chain[..million() / 2].iter().any(|ctx| ctx.is_done()));
            });
        });
    }

    /// Dropped from both ends at once, so that either thread may drop the last handle.
    #[test]
    fn dropped_by_two_threads() {
        on_a_small_stack(|| {
            for waited in [false, true] {
                for values in [false, true] {
                    let drops = Drops::default();
                    let top = BACKGROUND.with_value(drops.counted()).with_cancel().detach();
                    let derive: Derive = match values {
                        false => |last, _, _, _| last.with_cancel(),
                        true => |last, level, _, _| last.with_value(level).with_cancel(),
                    };
                    let mut upper = chain(derive, million(), &top, &top);
                    if waited {
                        assert!(poll_once(upper[million() - 1].done()).is_pending());
                    }
                    drop(top);
                    let lower = upper.split_off(million() / 2);
                    let start = Arc::new(Barrier::new(2));
                    let other = thread::Builder::new().stack_size(2 * 1024 * 1024).spawn({
                        let start = start.clone();
                        move || {
                            start.wait();
                            drop_in(Order::RootFirst, upper);
                        }
                    });
                    start.wait();
                    drop_in(Order::LeafFirst, lower);
                    other.unwrap().join().unwrap();
                    assert_eq!(drops.count(), 1);
                }
            }
        });
    }
}

/// Random kinds of contexts: each kind holds its ancestors in a different way, so a chain of them is freed in
/// a different way.
mod mixed {
    use super::*;

    struct Level(usize);

    /// How the chain ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Way {
        /// Scope by scope; each drop cancels the descendants.
        Dropped,
        /// Without an end, because the scopes were detached.
        Detached,
        /// After the root was canceled.
        Canceled,
        /// After a token bound near the root was canceled.
        Token,
        /// After all deadlines have passed.
        Expired,
    }

    /// The order in which the handles are dropped.
    #[derive(Clone, Copy, Debug)]
    enum From {
        Top,
        Bottom,
        Middle,
        Random,
    }

    const ORDERS: [From; 4] = [From::Top, From::Bottom, From::Middle, From::Random];

    fn drop_from<T>(order: From, mut handles: Vec<T>) {
        match order {
            From::Top => handles.drain(..).for_each(drop),
            From::Bottom => while handles.pop().is_some() {},
            From::Middle => {
                let below = handles.split_off(handles.len() / 2);
                for (above, below) in handles.into_iter().rev().zip(below) {
                    drop((above, below));
                }
            }
            From::Random => {
                Dice::new(11).shuffle(&mut handles);
                handles.drain(..).for_each(drop);
            }
        }
    }

    struct Chain {
        top: CancelScope,
        token: CancellationToken,
        scopes: Vec<CancelScope>,
        /// The last level that has a value.
        valued: Option<usize>,
        /// The number of causes and values that count their drop, and the count.
        causes: usize,
        dropped: Drops,
    }

    impl Chain {
        /// Each deadline is slightly earlier than all above it, so that each applies to its own level.
        fn new(levels: usize, dice: &mut Dice) -> Chain {
            let start = tokio::time::Instant::now();
            let earlier = |level: usize| start + LONG * 100 - ms(level as u64);
            let dropped = Drops::default();
            let top = BACKGROUND.with_value(dropped.counted()).with_cancel();
            let (token, far) = (CancellationToken::new(), BACKGROUND.with_timeout(LONG * 200).detach());
            let mut scopes = vec![top.with_token(&token)];
            let (mut valued, mut causes) = (None, 0);
            for level in 1..levels {
                let last = &scopes[level - 1];
                let next = match dice.roll(12) {
                    0..=2 => last.with_cancel(),
                    3 => last.with_timeout(earlier(level) - tokio::time::Instant::now()),
                    4 => last.with_deadline(earlier(level)),
                    5 => {
                        causes += 1;
                        last.with_deadline_cause(earlier(level), dropped.counted())
                    }
                    6 => {
                        valued = Some(level);
                        last.context().with_value(Level(level)).with_cancel()
                    }
                    7 => last.merge(&far),
                    8 => far.merge(last),
                    9 => last.merge(&scopes[dice.roll(level)]),
                    10 => last.with_token(&CancellationToken::new()),
                    _ => last.with_token(&token),
                };
                scopes.push(next);
            }
            Chain { top, token, scopes, valued, causes, dropped }
        }

        fn leaf(&self) -> &Context {
            &self.scopes[self.scopes.len() - 1]
        }
    }

    async fn go(way: Way, order: From, waited: bool, levels: usize, seed: usize) {
        let began = Instant::now();
        let chain = Chain::new(levels, &mut Dice::new(seed as u64));
        let leaf = chain.leaf().with_cancel().detach();
        assert_eq!(leaf.value::<Level>().map(|level| level.0), chain.valued);
        let (wakes, waker) = Wakes::new();
        let mut wait = Box::pin(leaf.done_owned());
        if waited {
            assert!(poll(wait.as_mut(), &waker).is_pending());
        }
        assert!(!leaf.is_done());
        match way {
            Way::Dropped | Way::Detached => {}
            Way::Canceled => chain.top.cancel_with(Cause("root")),
            Way::Token => chain.token.cancel(),
            Way::Expired => tokio::time::advance(LONG * 101).await,
        }
        if !matches!(way, Way::Dropped | Way::Detached) {
            assert!(!waited || wakes.count() > 0, "the leaf was not woken");
            assert!(poll(wait.as_mut(), &waker).is_ready());
            let error = ended(&leaf);
            match way {
                Way::Canceled => assert_eq!(word(&error), Some("root")),
                Way::Token => assert!(error.is_canceled() && word(&error).is_none(), "{error}"),
                _ => assert!(error.is_deadline_exceeded(), "{error}"),
            }
            let ended = chain.scopes.iter().rev().filter(|ctx| ctx.is_done()).count();
            // With deadlines, the contexts above the uppermost one have not ended.
            assert!(
                ended == levels || (way == Way::Expired && ended > levels / 2),
                "{ended} have ended"
            );
        }
        drop((wait, leaf));
        let Chain { top, token, mut scopes, causes, dropped, .. } = chain;
        assert!(dropped.count() == 0);
        if way == Way::Detached {
            drop(top.detach());
            drop_from(order, scopes.drain(..).map(CancelScope::detach).collect());
        } else {
            drop(top);
            drop_from(order, scopes);
        }
        assert_eq!(dropped.count(), causes + 1);
        drop(token);
        println!(
            "{way:?} from {order:?}, {levels} deep, waited {waited}: {:.2} s",
            began.elapsed().as_secs_f64()
        );
    }

    fn drops_a_mixed_chain(way: Way) {
        for (seed, order) in ORDERS.into_iter().enumerate() {
            for waited in [false, true] {
                on_a_small_stack(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .start_paused(true)
                        .build()
                        .unwrap();
                    runtime.block_on(go(way, order, waited, million(), 2 * seed + usize::from(waited)));
                });
            }
        }
    }

    #[test]
    fn dropped_scope_by_scope() {
        drops_a_mixed_chain(Way::Dropped);
    }

    #[test]
    fn dropped_without_an_end() {
        drops_a_mixed_chain(Way::Detached);
    }

    #[test]
    fn canceled_at_the_root() {
        drops_a_mixed_chain(Way::Canceled);
    }

    #[test]
    fn canceled_by_a_token() {
        drops_a_mixed_chain(Way::Token);
    }

    #[test]
    fn ended_by_deadlines() {
        drops_a_mixed_chain(Way::Expired);
    }

    /// The minimal case: alternating deadlines and cancels. A context with a deadline is also held by the
    /// descendants that inherit the deadline.
    #[test]
    fn alternating_deadlines_and_cancels() {
        let derivations: [Derive; 2] = [
            |last, level, _, _| match level % 2 {
                0 => last.with_timeout(LONG * 100 - ms(level as u64)),
                _ => last.with_cancel(),
            },
            |last, level, _, _| match level % 2 {
                0 => last.with_cancel(),
                _ => last.with_timeout(LONG * 100 - ms(level as u64)),
            },
        ];
        for (derive, order) in
            derivations.into_iter().flat_map(|derive| ORDERS.map(|order| (derive, order)))
        {
            on_a_small_stack(move || {
                let chain = chain(derive, million(), &BACKGROUND, &BACKGROUND);
                assert!(!chain[million() - 1].is_done());
                drop_from(order, chain.into_iter().map(CancelScope::detach).collect());
            });
        }
    }
}

/// The time that this thread has waited for a processor, in nanoseconds, as counted by Linux: a delay that is
/// unrelated to the code under test. Zero on other systems.
struct RunQueue(Option<File>);

impl RunQueue {
    fn of_this_thread() -> RunQueue {
        RunQueue(File::open("/proc/thread-self/schedstat").ok())
    }

    fn waited(&self) -> Duration {
        let mut text = [0; 64];
        let read = match self.0.as_ref() {
            Some(mut file) => file.rewind().and_then(|()| file.read(&mut text)).unwrap_or(0),
            None => 0,
        };
        let mut fields = text[..read].split(|byte| *byte == b' ').skip(1);
        let nanos = fields.next().and_then(|field| std::str::from_utf8(field).ok()?.parse().ok());
        Duration::from_nanos(nanos.unwrap_or(0))
    }
}

/// The longest duration of a query: in wall-clock time, and without the wait for a processor.
#[derive(Clone, Copy, Debug, Default)]
struct Stall {
    wall: Duration,
    own: Duration,
    queries: usize,
}

/// Queries until `stop` is set, and returns the longest duration of a query.
fn query_until(stop: &AtomicBool, queried: &AtomicUsize, query: &dyn Fn()) -> Stall {
    let queue = RunQueue::of_this_thread();
    let mut longest = Stall::default();
    let mut before = queue.waited();
    while !stop.load(Ordering::Acquire) {
        let start = Instant::now();
        query();
        let wall = start.elapsed();
        let after = queue.waited();
        let own = wall.saturating_sub(after.saturating_sub(before));
        before = after;
        longest.wall = longest.wall.max(wall);
        longest.own = longest.own.max(own);
        longest.queries += 1;
        queried.store(longest.queries, Ordering::Release);
    }
    longest
}

/// Queries on another thread while `disturb` runs. Returns how long `disturb` took, and the longest query.
fn disturbed(query: impl Fn() + Send + 'static, disturb: impl FnOnce()) -> (Duration, Stall) {
    let stop = Arc::new(AtomicBool::new(false));
    let queried = Arc::new(AtomicUsize::new(0));
    let reader = {
        let (stop, queried) = (stop.clone(), queried.clone());
        thread::spawn(move || query_until(&stop, &queried, &query))
    };
    while queried.load(Ordering::Acquire) < 100 {
        thread::yield_now();
    }
    let start = Instant::now();
    disturb();
    let took = start.elapsed();
    // As many queries again, to include what `disturb` left behind.
    let enough = queried.load(Ordering::Acquire) + 100;
    while queried.load(Ordering::Acquire) < enough {
        thread::yield_now();
    }
    stop.store(true, Ordering::Release);
    (took, reader.join().unwrap())
}

/// Serializes the measurements, because concurrent ones would affect each other.
static MEASURING: Mutex<()> = Mutex::new(());

/// No query is blocked while a million contexts end: not for a thousandth of the time that this takes, however
/// large the tree is.
mod wide {
    use super::*;

    struct Fan {
        root: CancelScope,
        children: Vec<CancelScope>,
        wakes: Arc<Wakes>,
        waker: Waker,
        /// Twenty levels below the first child.
        deep: Context,
    }

    impl Fan {
        /// Derives a million children. Each will be waited on.
        fn new(deadline: bool) -> Fan {
            let root = match deadline {
                false => BACKGROUND.with_cancel(),
                true => BACKGROUND.with_timeout(LONG),
            };
            let children: Vec<_> = (0..million()).map(|_| root.with_cancel()).collect();
            let (wakes, waker) = Wakes::new();
            let deep = below(&children[0], 20);
            Fan { root, children, wakes, waker, deep }
        }

        fn child(&self, nth: usize) -> Context {
            self.children[nth].clone()
        }
    }

    type Ask = Box<dyn Fn() + Send>;

    /// Returns the name and the query of each reader.
    fn readers(fan: &Fan) -> Vec<(&'static str, Ask)> {
        let last = fan.child(million() - 1);
        let first = fan.child(0);
        let middle = fan.child(million() / 2);
        let (root, queried_root, parent) = (fan.root.clone(), fan.root.clone(), fan.root.clone());
        let (unrelated, merged) = unrelated();
        let deep = fan.deep.clone();
        let waited = fan.child(million() / 3);
        let runtime = tokio::runtime::Handle::current();
        let wait = move || {
            let _entered = runtime.enter();
            _ = black_box(poll_once(waited.done()));
        };
        vec![
            ("is_done of the last child", Box::new(move || _ = black_box(last.is_done()))),
            ("err of the first child", Box::new(move || _ = black_box(first.err()))),
            ("check of a child", Box::new(move || _ = black_box(middle.check()))),
            ("is_done of the root", Box::new(move || _ = black_box(root.is_done()))),
            ("err of the root", Box::new(move || _ = black_box(queried_root.err()))),
            ("derive from the root", Box::new(move || _ = black_box(parent.with_cancel()))),
            ("wait on a child, once", Box::new(wait)),
            ("is_done 20 deep", Box::new(move || _ = black_box(deep.is_done()))),
            ("is_done 1000 deep elsewhere", Box::new(move || assert!(!unrelated.is_done()))),
            ("is_done of a merge elsewhere", Box::new(move || assert!(!merged.is_done()))),
        ]
    }

    /// Returns the last of `levels` contexts below `top`.
    fn below(top: &Context, levels: usize) -> Context {
        let mut last = top.clone();
        for _ in 0..levels {
            let next = last.with_cancel().detach();
            last = next;
        }
        last
    }

    /// Returns contexts that are unrelated to the fan: 1000 levels deep, and a merged one below that.
    fn unrelated() -> (Context, Context) {
        let deep = below(&BACKGROUND, 1_000);
        let other = BACKGROUND.with_cancel().detach();
        let merged = deep.merge(&other).detach();
        (deep, merged)
    }

    /// Measures a reader for the same time without a disturbance.
    fn control(time: Duration) -> Stall {
        let ctx = BACKGROUND.with_cancel();
        let (_, stall) = disturbed(
            move || _ = black_box(ctx.is_done()),
            || {
                // Busy, like a cancel.
                let start = Instant::now();
                while start.elapsed() < time {
                    black_box(start);
                }
            },
        );
        stall
    }

    /// Checks the limit of 1 ms. Debug builds and busy machines get more, but far less than the cancel takes. The
    /// delay of the control is attributed to the machine.
    fn judge(what: &str, took: Duration, stall: Stall, control: Stall) -> bool {
        println!(
            "{what}: took {:.1} ms; longest stall {:.3} ms (wall {:.3} ms) of {} queries; \
             control {:.3} ms (wall {:.3} ms)",
            took.as_secs_f64() * 1e3,
            stall.own.as_secs_f64() * 1e3,
            stall.wall.as_secs_f64() * 1e3,
            stall.queries,
            control.own.as_secs_f64() * 1e3,
            control.wall.as_secs_f64() * 1e3,
        );
        let allowed = if cfg!(debug_assertions) { ms(10) } else { ms(1) };
        stall.own <= allowed.max(control.own * 2)
    }

    fn no_reader_is_blocked_by_a_cancel(deadline: bool) {
        let _alone = MEASURING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        on_a_small_stack(move || {
            let runtime = current_thread();
            let _entered = runtime.enter();
            let (mut next, mut failures) = (0, 0);
            loop {
                let fan = Fan::new(deadline);
                let mut readers = readers(&fan);
                if next == readers.len() {
                    break;
                }
                let (name, query) = readers.swap_remove(next);
                let mut waits: Vec<_> =
                    fan.children.iter().map(|child| Box::pin(child.done())).collect();
                for wait in &mut waits {
                    assert!(poll(wait.as_mut(), &fan.waker).is_pending());
                }
                let (took, stall) = disturbed(query, || fan.root.cancel_with(Cause("root")));
                assert_eq!(fan.wakes.count(), million());
                // A reader that the cancel blocks is blocked in every attempt; a pause of the machine is not repeated.
                if judge(&format!("cancel, {name}"), took, stall, control(took)) {
                    (next, failures) = (next + 1, 0);
                } else {
                    failures += 1;
                    assert!(failures < 3, "cancel, {name}: blocked for {:?} of {took:?}", stall.own);
                }
                let error = ended(&fan.root);
                assert_same(&ended(&fan.children[million() / 2]), &error);
                assert_same(&ended(&fan.deep), &error);
                assert!(waits.iter_mut().all(|wait| poll(wait.as_mut(), &fan.waker).is_ready()));
            }
        });
    }

    #[test]
    fn no_reader_is_blocked_by_a_cancel_of_a_million() {
        no_reader_is_blocked_by_a_cancel(false);
    }

    #[test]
    fn no_reader_is_blocked_by_a_cancel_of_a_million_with_a_deadline() {
        no_reader_is_blocked_by_a_cancel(true);
    }

    /// A million waits are registered, and a million are dropped.
    #[test]
    fn no_reader_is_blocked_while_a_million_waits_come_and_go() {
        let _alone = MEASURING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        on_a_small_stack(|| {
            for (nth, name) in ["is_done of the last child", "err of the first child"].iter().enumerate()
            {
                let Fan { root, children, waker, .. } = Fan::new(false);
                let mut children: Vec<_> = children.into_iter().map(CancelScope::detach).collect();
                let queried = [million() - 1, 0].map(|nth| children[nth].clone());
                let [last, first] = queried;
                let query = move || {
                    if nth == 0 { assert!(!last.is_done()) } else { assert!(first.err().is_none()) }
                };
                let (came, stall) = disturbed(query.clone(), || {
                    for child in &children {
                        assert!(poll(std::pin::pin!(child.done()), &waker).is_pending());
                    }
                });
                assert!(judge(&format!("waits are registered, {name}"), came, stall, control(came)));
                let (went, stall) = disturbed(query, || children.clear());
                assert!(judge(&format!("waits are dropped, {name}"), went, stall, control(went)));
                assert!(!root.is_done());
                root.cancel();
            }
        });
    }

    /// Two threads drop the fan while a third one cancels. Every wait is woken once, or was dropped before.
    #[test]
    fn dropped_by_two_threads_while_it_is_canceled() {
        on_a_small_stack(|| {
            let fan = Fan::new(false);
            let mut waits: Vec<_> =
                fan.children.iter().map(|child| Box::pin(child.done_owned())).collect();
            for wait in &mut waits {
                assert!(poll(wait.as_mut(), &fan.waker).is_pending());
            }
            let other = waits.split_off(million() / 2);
            let start = Arc::new(Barrier::new(3));
            thread::scope(|scope| {
                for mut waits in [waits, other] {
                    let start = start.clone();
                    scope.spawn(move || {
                        start.wait();
                        while waits.pop().is_some() {}
                    });
                }
                start.wait();
                fan.root.cancel_with(Cause("root"));
            });
            assert!(fan.wakes.count() <= million());
            assert!(fan.children.iter().all(|child| child.is_done()));
            let Fan { wakes, waker, .. } = fan;
            drop(waker);
            assert_eq!(Arc::strong_count(&wakes), 1, "a waker was kept");
        });
    }
}
