//! Promise 10, memory: what many contexts needed is freed when they are dropped, even if one of them stays, and
//! the cost grows only with their number.
//!
//! With `TOKIO_CTX_FULL=1` the number is a million.

#[path = "common/alloc.rs"]
mod alloc;
mod common;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Waker;
use std::time::Duration;

use common::{Dice, LONG, current_thread, is_full, ms, poll, poll_once};
use tokio_ctx::{CancelScope, Context, DoneOwned};
use tokio_util::sync::CancellationToken;

static BACKGROUND: Context = Context::background();

/// Returns the CPU time of this thread, which does not depend on other work of the machine.
fn computed() -> Duration {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `clock_gettime` only writes to the given local.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(failed, 0, "this thread's clock");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }
}

/// Returns a million, or a fiftieth of it.
fn million() -> usize {
    if is_full() { 1_000_000 } else { 20_000 }
}

mod memory_is_freed {
    use super::*;

    /// The most that the remaining contexts and leftover capacity may use: a small part of what all needed.
    fn most(size: usize) -> isize {
        48 * 1024 + size as isize / 2
    }

    type Wait = Pin<Box<DoneOwned>>;

    fn wait_on(ctx: &Context) -> Wait {
        let mut wait = Box::pin(ctx.done_owned());
        assert!(poll(wait.as_mut(), Waker::noop()).is_pending());
        wait
    }

    /// One of many contexts; its wait is dropped before its scope.
    type Entry = (Wait, Option<CancelScope>);

    /// Adds the nth context.
    type Add = fn(&Context, usize) -> Entry;

    fn below(scope: CancelScope) -> Entry {
        (wait_on(&scope), Some(scope))
    }

    fn kinds() -> [(&'static str, Add); 7] {
        [
            ("waits", |root, _| (wait_on(root), None)),
            ("children", |root, _| below(root.with_cancel())),
            ("grandchildren", |root, _| {
                let parent = root.with_cancel().detach();
                below(parent.with_cancel())
            }),
            ("children with one deadline", |root, _| below(root.with_timeout(LONG))),
            ("children with deadlines from near to far", |root, nth| {
                // Not so near that they pass during the test.
                below(
                    root.with_timeout(LONG / 4 + ms(1 << (nth % 40)) + Duration::from_nanos(nth as u64)),
                )
            }),
            ("merges", |root, _| below(root.merge(&BACKGROUND.with_cancel().detach()))),
            ("children with a token", |root, _| below(root.with_token(&CancellationToken::new()))),
        ]
    }

    /// The order in which the contexts are dropped.
    #[derive(Clone, Copy, Debug)]
    enum Order {
        FirstFirst,
        LastFirst,
        Random,
        /// One is added for each that is dropped, once half of them exist.
        Flowing,
    }

    fn add_and_drop(root: &Context, size: usize, add: Add, order: Order) {
        let mut live = VecDeque::new();
        for nth in 0..size {
            live.push_back(add(root, nth));
            if matches!(order, Order::Flowing) && nth >= size / 2 {
                live.pop_front();
            }
        }
        match order {
            Order::FirstFirst | Order::Flowing => while live.pop_front().is_some() {},
            Order::LastFirst => while live.pop_back().is_some() {},
            Order::Random => {
                Dice::new(5).shuffle(live.make_contiguous());
                live.clear();
            }
        }
    }

    /// A root with two waits that stay, and a third one since the number of contexts was highest.
    fn stays_small(name: &str, add: Add, order: Order) {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let before = alloc::live();
        let root = BACKGROUND.with_timeout(LONG * 24 * 365 * 100);
        let _first = [wait_on(&root), wait_on(&root)];
        let mut last = Vec::new();
        for round in 0..3 {
            let size = if round == 0 { million() } else { million() / 10 };
            let half: Vec<_> = (0..size / 2).map(|nth| add(&root, nth)).collect();
            // Its position is behind all of theirs.
            last.push(wait_on(&root));
            add_and_drop(&root, size / 2, add, order);
            drop(half);
            let kept = alloc::live() - before;
            assert!(
                kept < most(million()),
                "{kept} bytes kept after {size} {name} were dropped, {order:?}, round {round}"
            );
        }
        root.cancel();
        assert!(last.iter_mut().all(|wait| poll(wait.as_mut(), Waker::noop()).is_ready()));
    }

    #[test]
    fn although_one_context_stays() {
        for (name, add) in kinds() {
            for order in [Order::FirstFirst, Order::LastFirst, Order::Random, Order::Flowing] {
                stays_small(name, add, order);
            }
        }
    }

    /// Returns the shortest duration of the end.
    fn shortest_end(mut prepare: impl FnMut(&Context)) -> Duration {
        let ends = (0..5).map(|_| {
            let root = BACKGROUND.with_cancel();
            let _waits = [wait_on(&root), wait_on(&root)];
            prepare(&root);
            let _last = wait_on(&root);
            let start = computed();
            root.cancel();
            computed() - start
        });
        ends.min().unwrap()
    }

    /// Empty lists are not walked.
    #[test]
    fn so_that_ending_the_remaining_contexts_is_quick() {
        let alone = shortest_end(|_| {});
        for (name, add) in &kinds()[..3] {
            let after = shortest_end(|root| add_and_drop(root, million(), *add, Order::Random));
            assert!(
                after < alone * 10 + Duration::from_micros(100),
                "{after:?} after {name}, not {alone:?}"
            );
        }
    }
}

mod linear {
    use super::*;

    const FEW: usize = 1_000;
    const TIMES: usize = 8;

    /// Returns the bytes that `f` allocates, and its shortest duration.
    fn cost(mut f: impl FnMut()) -> (usize, Duration) {
        let runs = (0..5).map(|_| {
            let (taken, start) = (alloc::taken(), computed());
            f();
            (alloc::taken() - taken, computed() - start)
        });
        runs.fold((usize::MAX, Duration::MAX), |a, b| (a.0.min(b.0), a.1.min(b.1)))
    }

    /// Derives one context from another.
    type Nest = fn(&Context) -> CancelScope;

    fn nests() -> [(&'static str, Nest); 7] {
        [
            ("with_cancel", |last| last.with_cancel()),
            ("with_token", |last| last.with_token(&CancellationToken::new())),
            ("with_token and with_timeout", |last| {
                let timed = last.with_token(&CancellationToken::new()).detach().with_timeout(LONG);
                timed.detach().with_cancel()
            }),
            ("merge on the left", |last| last.merge(&BACKGROUND.with_cancel().detach())),
            ("merge on the right", |last| BACKGROUND.with_cancel().detach().merge(last)),
            ("merge with a child of its own", |last| last.merge(&last.with_cancel().detach())),
            ("merge of tokens", |last| {
                let other = BACKGROUND.with_token(&CancellationToken::new()).detach();
                last.with_token(&CancellationToken::new()).detach().merge(&other)
            }),
        ]
    }

    /// Creates the context at the top.
    type Top = fn() -> CancelScope;

    /// Below an idle limit, every query has to find it.
    fn tops() -> [(&'static str, Top); 2] {
        [("", || BACKGROUND.with_cancel()), (" below an idle limit", || BACKGROUND.with_idle(LONG))]
    }

    fn nested(nest: Nest, levels: usize, top: &Context) -> Context {
        let mut last = top.clone();
        for _ in 0..levels {
            let next = nest(&last).detach();
            last = next;
        }
        last
    }

    /// Derived, queried, awaited by many, ended, dropped: eight times the levels cost eight times as much, and not
    /// many times that.
    #[test]
    fn in_the_number_of_levels_of_every_kind() {
        let runtime = current_thread();
        let _entered = runtime.enter();
        for (name, nest) in nests() {
            for waits in [0, 3] {
                for ends in [false, true] {
                    let life = |levels: usize| {
                        cost(|| {
                            let top = BACKGROUND.with_cancel();
                            let leaf = nested(nest, levels, &top);
                            assert!(!leaf.is_done());
                            for _ in 0..waits {
                                assert!(poll_once(leaf.done()).is_pending());
                            }
                            if ends {
                                top.cancel();
                                assert!(leaf.is_done());
                            } else {
                                top.detach();
                            }
                        })
                    };
                    let (few, many) = (life(FEW), life(TIMES * FEW));
                    let what = format!("{name}, {waits} waits, ended {ends}: {few:?} and {many:?}");
                    assert!(many.0 < few.0 * TIMES * 3 / 2, "bytes, {what}");
                    assert!(many.1 < few.1 * TIMES as u32 * 5, "time, {what}");
                }
            }
        }
    }

    /// Queries and new waits do not cost more at greater depth.
    #[test]
    fn and_constant_for_repeated_queries() {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let nests_below = |top| nests().map(|nest| (nest, top));
        for ((name, nest), (place, top)) in tops().into_iter().flat_map(nests_below) {
            let again = |levels: usize| {
                let top = top();
                let leaf = nested(nest, levels, &top);
                assert!(!leaf.is_done());
                assert!(poll_once(leaf.done()).is_pending());
                let query = cost(|| (0..1_000).for_each(|_| assert!(!leaf.is_done())));
                let wait =
                    cost(|| (0..1_000).for_each(|_| assert!(poll_once(leaf.done()).is_pending())));
                [query, wait]
            };
            for (few, many) in again(FEW).into_iter().zip(again(TIMES * FEW)) {
                let what = format!("{name}{place}: {few:?} and {many:?}");
                assert!(many.0 <= few.0 + 1024, "bytes, {what}");
                assert!(many.1 < few.1 * 5, "time, {what}");
            }
        }
    }

    /// A new wait below a token costs about the same as elsewhere.
    #[test]
    fn below_a_token_as_elsewhere() {
        let repeated_waits = |ctx: &Context| {
            let wait_once = || assert!(poll_once(ctx.done()).is_pending());
            wait_once();
            cost(|| (0..10_000).for_each(|_| wait_once()))
        };
        let token = CancellationToken::new();
        let plain = BACKGROUND.with_cancel();
        let bound = BACKGROUND.with_token(&token);
        let child = bound.with_cancel();
        let merged = child.merge(&plain);
        let elsewhere = repeated_waits(&plain);
        for (name, ctx) in [("itself", &bound), ("child", &child), ("merged", &merged)] {
            let below = repeated_waits(ctx);
            assert_eq!(below.0, 0, "{name} allocates");
            assert!(below.1 < elsewhere.1 * 3, "{name}: {below:?}, elsewhere {elsewhere:?}");
        }
    }

    /// The number of paths through these doubles at each level.
    #[test]
    fn and_independent_of_the_number_of_paths() {
        for derive in [
            (|last, _| last.merge(&last.with_cancel().detach()))
                as fn(&Context, &Context) -> CancelScope,
            |last, _| last.with_cancel().detach().merge(&last.with_cancel().detach()),
            |last, token| {
                let token = last.with_token(&CancellationToken::new()).detach().merge(token);
                last.with_timeout(LONG).detach().merge(&token.detach())
            },
        ] {
            for waited in [false, true] {
                let runtime = current_thread();
                let _entered = runtime.enter();
                let top = BACKGROUND.with_cancel();
                let token = BACKGROUND.with_token(&CancellationToken::new()).detach();
                let mut last = top.clone();
                for level in 0..100 {
                    let next = derive(&last, &token).detach();
                    last = next;
                    assert!(!last.is_done(), "level {level}");
                    assert!(!waited || poll_once(last.done()).is_pending());
                }
                top.cancel();
                assert!(last.is_done());
            }
        }
    }
}
