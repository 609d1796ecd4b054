//! Wakers that panic, drop guards, poll again or take their time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use tokio::time::timeout;
use tokio_ctx::{CancelGuard, CancelScope, DoneOwned};

use crate::common::{
    Cause, HANG, LONG, Wakes, assert_same, current_thread, ended, ms, multi_thread, panic_text, poll,
    watched, word,
};
use crate::{BACKGROUND, Hooks, faulty, use_from_elsewhere};

fn hook(f: impl Fn() + Send + Sync + 'static) -> Option<crate::Hook> {
    Some(Box::new(f))
}

fn drops(guard: CancelGuard) -> Option<crate::Hook> {
    let guard = Mutex::new(Some(guard));
    hook(move || {
        let guard = guard.lock().unwrap().take();
        drop(guard);
    })
}

/// A chain of 20 contexts and a wait on each, so that propagating an end takes several steps.
fn chain() -> Vec<CancelScope> {
    let mut chain = vec![BACKGROUND.with_cancel()];
    for level in 1..20 {
        let next = chain[level - 1].with_cancel();
        chain.push(next);
    }
    chain
}

/// A waker drops a guard: of the context that ends, of an ancestor, a descendant, and a sibling.
#[test]
fn that_drop_guards_change_no_error() {
    faulty(|| {
        for whose in 0..4 {
            let (root, root_guard) = BACKGROUND.with_cancel().split();
            let (ctx, guard) = root.with_cancel().split();
            let (below, below_guard) = ctx.with_cancel().split();
            let (sibling, sibling_guard) = root.with_cancel().split();
            let canceler = guard.canceler();
            let mut guards = [Some(guard), Some(root_guard), Some(below_guard), Some(sibling_guard)];
            let waker = Hooks { wake: drops(guards[whose].take().unwrap()), ..Hooks::default() }.waker();
            let (wakes, counting) = Wakes::new();
            let contexts = [&ctx, &below, &ctx, &root, &sibling];
            let mut waits = contexts.map(|ctx| Box::pin(ctx.done()));
            for (nth, wait) in waits.iter_mut().enumerate() {
                let waker = if nth == 0 { &waker } else { &counting };
                assert!(poll(wait.as_mut(), waker).is_pending());
            }
            canceler.cancel_with(Cause("once"));
            let error = ended(&ctx);
            assert_eq!(word(&error), Some("once"));
            assert_same(&ended(&below), &error);
            assert_eq!(root.is_done(), whose == 1);
            assert_eq!(sibling.is_done(), whose == 1 || whose == 3);
            let expected = 2 + usize::from(whose == 1) * 2 + usize::from(whose == 3);
            assert_eq!(wakes.count(), expected, "guard {whose}");
            for (ctx, mut wait) in contexts.into_iter().zip(waits) {
                match poll(wait.as_mut(), &counting) {
                    Poll::Ready(error) => assert_same(&error, &ended(ctx)),
                    Poll::Pending => assert!(!ctx.is_done()),
                }
            }
        }
    });
}

/// Cloned, woken and dropped while other threads use the tree: no lock of the tree is held meanwhile.
#[test]
fn may_wait_for_other_users_of_the_tree() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        for timed in [false, true] {
            let root = match timed {
                false => BACKGROUND.with_cancel(),
                true => BACKGROUND.with_timeout(LONG),
            };
            let child = root.with_cancel();
            let merged = child.merge(&root);
            let contexts = [root.clone(), child.clone(), merged.clone()];
            let calls = Arc::new(AtomicUsize::new(0));
            let busy = || {
                let (contexts, calls) = (contexts.clone(), calls.clone());
                hook(move || {
                    calls.fetch_add(1, Ordering::SeqCst);
                    use_from_elsewhere(&contexts);
                })
            };
            let wakers = [0, 1].map(|_| Hooks { clone: busy(), wake: busy(), drop: busy() }.waker());
            for ctx in &contexts {
                let mut waits = [ctx.done(), ctx.done(), ctx.done()].map(Box::pin);
                for waker in wakers.iter().chain(&wakers) {
                    for wait in &mut waits {
                        assert!(poll(wait.as_mut(), waker).is_pending());
                    }
                }
            }
            let mut kept: Vec<_> = contexts.iter().map(|ctx| Box::pin(ctx.done())).collect();
            for wait in &mut kept {
                assert!(poll(wait.as_mut(), &wakers[0]).is_pending());
            }
            root.cancel_with(Cause("busy"));
            assert!(contexts.iter().all(|ctx| word(&ended(ctx)) == Some("busy")));
            drop(kept);
            drop(wakers);
            assert!(calls.load(Ordering::SeqCst) > 50);
        }
    });
}

/// A waker that is dropped, because it is replaced or its wait is dropped, drops a guard.
#[test]
fn that_drop_guards_when_dropped_end_those_contexts() {
    faulty(|| {
        for replaced in [false, true] {
            for whose in 0..3 {
                let (root, root_guard) = BACKGROUND.with_cancel().split();
                let (ctx, guard) = root.with_cancel().split();
                let (below, below_guard) = ctx.with_cancel().split();
                let mut guards = [Some(root_guard), Some(guard), Some(below_guard)];
                let waker = {
                    let dropped = AtomicUsize::new(0);
                    let guard = drops(guards[whose].take().unwrap()).unwrap();
                    // The first to be dropped is the test's own.
                    let last = hook(move || match dropped.fetch_add(1, Ordering::SeqCst) {
                        0 => {}
                        _ => guard(),
                    });
                    Hooks { drop: last, ..Hooks::default() }.waker()
                };
                let mut wait = Box::pin(ctx.done_owned());
                assert!(poll(wait.as_mut(), &waker).is_pending());
                drop(waker);
                assert!(!below.is_done());
                if replaced {
                    let (wakes, counting) = Wakes::new();
                    let polled = poll(wait.as_mut(), &counting);
                    // Whether it is seen immediately or by a wake-up, the end must not be missed.
                    assert!(polled.is_ready() || wakes.count() == 1 || whose == 2);
                } else {
                    drop(wait);
                }
                assert_eq!(
                    [root.is_done(), ctx.is_done(), below.is_done()].map(u8::from),
                    match whose {
                        0 => [1, 1, 1],
                        1 => [0, 1, 1],
                        _ => [0, 0, 1],
                    }
                );
            }
        }
    });
}

/// Each waker ends the next context, whose waker ends the next one, and so on. With a token between every two contexts,
/// this happens without such wakers. When the first call returns, all have ended, and all waits have been woken.
#[test]
fn that_end_the_next_context_in_a_long_chain_do_not_overflow_the_stack() {
    const LENGTH: usize = 5_000;
    faulty(|| {
        let small = std::thread::Builder::new().stack_size(512 * 1024);
        let run = small.spawn(|| {
            for through_tokens in [false, true] {
                let (count, counting) = Wakes::new();
                let first = BACKGROUND.with_cancel();
                let (mut last, mut scopes, mut waits) = (first.clone(), Vec::new(), Vec::new());
                for _ in 0..LENGTH {
                    let next = match through_tokens {
                        false => BACKGROUND.with_cancel(),
                        true => BACKGROUND.with_token(&last.cancellation_token()),
                    };
                    let canceler = next.canceler();
                    let waker = match through_tokens {
                        false => {
                            Hooks { wake: hook(move || canceler.cancel()), ..Hooks::default() }.waker()
                        }
                        true => counting.clone(),
                    };
                    let mut wait = Box::pin(last.done_owned());
                    assert!(poll(wait.as_mut(), &waker).is_pending());
                    waits.push(wait);
                    last = next.clone();
                    scopes.push(next);
                }
                first.cancel();
                assert!(scopes.iter().all(|scope| scope.is_done()));
                assert_eq!(count.count(), if through_tokens { LENGTH } else { 0 });
            }
        });
        run.unwrap().join().unwrap();
    });
}

/// An executor that polls on the spot, drops the wait while it is woken, or starts another one.
#[test]
fn that_poll_drop_or_begin_waits_are_served() {
    faulty(|| {
        type Slot = Arc<Mutex<Option<Pin<Box<DoneOwned>>>>>;
        for what in 0..3 {
            let chain = chain();
            let leaf = &chain[19];
            let results = Arc::new(Mutex::new(Vec::new()));
            let slots: Vec<Slot> = (0..10).map(|_| Slot::default()).collect();
            let (wakes, counting) = Wakes::new();
            for (nth, slot) in slots.iter().enumerate() {
                let (all, results, counting) = (slots.clone(), results.clone(), counting.clone());
                let mine = slot.clone();
                let ctx = chain[nth * 2].clone();
                let wake = hook(move || match what {
                    0 => {
                        let mut wait = mine.lock().unwrap();
                        if let Poll::Ready(error) = poll(wait.as_mut().unwrap().as_mut(), &counting) {
                            results.lock().unwrap().push(error);
                        }
                    }
                    1 => {
                        for slot in &all {
                            let wait = slot.lock().unwrap().take();
                            drop(wait);
                        }
                    }
                    _ => {
                        let error = match poll(Box::pin(ctx.done()).as_mut(), &counting) {
                            Poll::Ready(error) => error,
                            Poll::Pending => panic!("woken, but not ended"),
                        };
                        results.lock().unwrap().push(error);
                    }
                });
                let waker = Hooks { wake, ..Hooks::default() }.waker();
                let mut wait = Box::pin(chain[nth * 2].done_owned());
                assert!(poll(wait.as_mut(), &waker).is_pending());
                *slot.lock().unwrap() = Some(wait);
            }
            chain[0].cancel_with(Cause("root"));
            let error = ended(leaf);
            let results = std::mem::take(&mut *results.lock().unwrap());
            assert_eq!(results.len(), if what == 1 { 0 } else { 10 });
            results.iter().for_each(|result| assert_same(result, &error));
            assert_eq!(wakes.count(), 0);
            // Otherwise the waits that the wakers hold would be a reference cycle.
            slots.iter().for_each(|slot| drop(slot.lock().unwrap().take()));
        }
    });
}

/// Panics when cloned or dropped, not only when woken. The panic surfaces there, and the next wait works.
#[test]
fn that_panic_when_cloned_or_dropped_leave_the_tree_intact() {
    faulty(|| {
        let runtime = current_thread();
        let _entered = runtime.enter();
        for timed in [false, true] {
            for others in [0, 2] {
                let ctx = match timed {
                    false => BACKGROUND.with_cancel(),
                    true => BACKGROUND.with_timeout(LONG),
                };
                let (wakes, counting) = Wakes::new();
                let mut other_waits: Vec<_> = (0..others).map(|_| Box::pin(ctx.done_owned())).collect();
                for wait in &mut other_waits {
                    assert!(poll(wait.as_mut(), &counting).is_pending());
                }
                let uncloneable = Hooks { clone: hook(|| panic!("cloned")), ..Hooks::default() }.waker();
                let mut wait = Box::pin(ctx.done_owned());
                assert_eq!(panic_text(|| poll(wait.as_mut(), &uncloneable)), "cloned");
                assert!(!ctx.is_done());
                assert!(poll(wait.as_mut(), &counting).is_pending());

                let armed = Arc::new(AtomicUsize::new(0));
                let undroppable = {
                    let armed = armed.clone();
                    let drop = hook(move || match armed.load(Ordering::SeqCst) {
                        0 => {}
                        _ => panic!("dropped"),
                    });
                    Hooks { drop, ..Hooks::default() }.waker()
                };
                // It is registered, and then replaced.
                let mut second = Box::pin(ctx.done_owned());
                assert!(poll(second.as_mut(), &undroppable).is_pending());
                armed.store(1, Ordering::SeqCst);
                let _thrown = catch_unwind(AssertUnwindSafe(|| poll(second.as_mut(), &counting)));
                armed.store(0, Ordering::SeqCst);
                assert!(poll(second.as_mut(), &counting).is_pending());
                // Or it is dropped with its wait.
                let mut third = Box::pin(ctx.done_owned());
                assert!(poll(third.as_mut(), &undroppable).is_pending());
                armed.store(1, Ordering::SeqCst);
                assert_eq!(panic_text(|| drop(third)), "dropped");
                armed.store(0, Ordering::SeqCst);

                let child = ctx.with_cancel();
                ctx.cancel_with(Cause("over"));
                assert_eq!(wakes.count(), 2 + others);
                assert_same(&ended(&child), &ended(&ctx));
            }
        }
    });
}

/// At a deadline Tokio's timer calls the waker, so the panic surfaces where that of a `Sleep` would. Waits
/// elsewhere are not affected.
#[test]
fn that_panic_at_a_deadline_affect_no_other_tree() {
    faulty(|| {
        for bad_waits in 1..4 {
            for bad_first in [true, false] {
                let elsewhere = multi_thread(2);
                let ctx = BACKGROUND.with_timeout(ms(30));
                let child = ctx.with_cancel();
                let begin = || {
                    let waits = [&ctx, &child, &child].map(|ctx| elsewhere.spawn(ctx.done_owned()));
                    elsewhere.block_on(tokio::task::yield_now());
                    waits
                };
                let early = if bad_first { None } else { Some(begin()) };
                let here = current_thread();
                let bad = Hooks { wake: hook(|| panic!("woken")), ..Hooks::default() }.waker();
                let mut waits: Vec<_> = (0..bad_waits).map(|_| Box::pin(child.done_owned())).collect();
                {
                    let _entered = here.enter();
                    for wait in &mut waits {
                        assert!(poll(wait.as_mut(), &bad).is_pending());
                    }
                }
                let good = early.unwrap_or_else(begin);
                // Drives the timers past the deadline. Whether the panic surfaces here is up to Tokio.
                let _driven = catch_unwind(AssertUnwindSafe(|| {
                    here.block_on(async { tokio::time::sleep_until(ctx.deadline().unwrap()).await });
                }));
                let mut errors = Vec::new();
                for wait in good {
                    let outcome = elsewhere.block_on(async { timeout(HANG, wait).await });
                    errors.push(outcome.expect("a waiter elsewhere hangs").unwrap());
                }
                errors.push(ended(&ctx));
                errors.push(ended(&child));
                errors.iter().for_each(|error| assert_same(error, &errors[0]));
                assert!(errors[0].is_deadline_exceeded());
                // Contexts that are derived and awaited afterward are not affected either.
                let next = BACKGROUND.with_cancel();
                let wait = elsewhere.spawn(next.done_owned());
                next.cancel();
                assert!(elsewhere.block_on(wait).unwrap().is_canceled());
            }
        }
    });
}

/// On the same runtime: a waker's panic on a worker does not prevent other waits from being woken, and does not
/// fail the task that cancels or drops its guard.
#[test]
fn that_panic_in_a_cancel_on_a_worker_leave_the_worker_running() {
    watched(|| {
        let runtime = multi_thread(1);
        for round in 0..20 {
            let (ctx, guard) = BACKGROUND.with_timeout(LONG).split();
            let bad = Hooks { wake: hook(|| panic!("woken")), ..Hooks::default() }.waker();
            let mut wait = Box::pin(ctx.done_owned());
            {
                let _entered = runtime.enter();
                assert!(poll(wait.as_mut(), &bad).is_pending());
            }
            let good: Vec<_> = (0..4).map(|_| runtime.spawn(ctx.done_owned())).collect();
            let canceler = runtime.spawn(async move {
                match round % 2 {
                    0 => guard.cancel_with(Cause("bad company")),
                    _ => drop(guard),
                }
            });
            runtime.block_on(async {
                assert!(canceler.await.is_ok(), "the panic reached the call of cancel");
                for wait in good {
                    let error = timeout(HANG, wait).await.expect("not woken").unwrap();
                    assert_eq!(word(&error), (round % 2 == 0).then_some("bad company"));
                }
            });
        }
    });
}

/// The payload of a waker's panic may itself panic when it is dropped.
#[test]
fn whose_panic_payload_panics_when_dropped_prevent_no_other_wake() {
    struct Payload;

    impl Drop for Payload {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    faulty(|| {
        for dropped in [false, true] {
            let scope = BACKGROUND.with_cancel();
            let ctx = scope.clone();
            let bad =
                Hooks { wake: hook(|| std::panic::panic_any(Payload)), ..Hooks::default() }.waker();
            let (wakes, good) = Wakes::new();
            let mut waits = [(); 5].map(|()| Box::pin(ctx.done_owned()));
            for (nth, wait) in waits.iter_mut().enumerate() {
                assert!(poll(wait.as_mut(), if nth % 2 == 0 { &bad } else { &good }).is_pending());
            }
            if dropped {
                drop(scope)
            } else {
                scope.cancel()
            }
            assert_eq!(wakes.count(), 2);
            assert!(ctx.is_done());
        }
    });
}

/// Wakers whose clones have other addresses, from a small pool of slots that are reused.
mod elsewhere {
    use std::sync::{Arc, Mutex, MutexGuard};
    use std::task::{RawWaker, RawWakerVTable, Waker};

    use crate::common::Wakes;

    type Place = Mutex<Option<Arc<Wakes>>>;

    static PLACES: [Place; 8] = [const { Mutex::new(None) }; 8];
    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, forget);

    fn at(place: *const ()) -> MutexGuard<'static, Option<Arc<Wakes>>> {
        let place = PLACES.iter().find(|known| std::ptr::from_ref::<Place>(known).cast() == place);
        place.expect("a slot of the pool").lock().unwrap()
    }

    fn raw(wakes: Arc<Wakes>) -> RawWaker {
        let free = PLACES.iter().find(|place| place.lock().unwrap().is_none());
        let place = free.expect("few are in use");
        *place.lock().unwrap() = Some(wakes);
        RawWaker::new(std::ptr::from_ref(place).cast(), &VTABLE)
    }

    pub fn waker(wakes: &Arc<Wakes>) -> Waker {
        // SAFETY: the functions keep to the contract, with a counted reference at each place.
        unsafe { Waker::from_raw(raw(wakes.clone())) }
    }

    unsafe fn clone(place: *const ()) -> RawWaker {
        let wakes = at(place).clone();
        raw(wakes.expect("in use"))
    }

    unsafe fn wake(place: *const ()) {
        let wakes = at(place).take();
        Waker::from(wakes.expect("in use")).wake();
    }

    unsafe fn wake_by_ref(place: *const ()) {
        let wakes = at(place).clone();
        Waker::from(wakes.expect("in use")).wake();
    }

    unsafe fn forget(place: *const ()) {
        let wakes = at(place).take();
        drop(wakes);
    }
}

/// The address of the first task's waker is reused by the second's while its clone is registered.
#[test]
fn whose_clones_have_other_addresses_are_not_confused() {
    for far in [None, Some(LONG)] {
        let runtime = current_thread();
        let _entered = runtime.enter();
        let scope = BACKGROUND.with_timeout(far);
        let mut wait = Box::pin(scope.done_owned());
        let [(first, _), (second, _)] = [Wakes::new(), Wakes::new()];

        let waker = elsewhere::waker(&first);
        let address = waker.data();
        assert!(poll(wait.as_mut(), &waker).is_pending());
        drop(waker);
        let waker = elsewhere::waker(&second);
        assert_eq!(waker.data(), address, "the slot is reused");
        assert!(poll(wait.as_mut(), &waker).is_pending());

        scope.cancel();
        assert_eq!(
            (first.count(), second.count()),
            (0, 1),
            "the task that waits is the one that is woken"
        );
    }
}
