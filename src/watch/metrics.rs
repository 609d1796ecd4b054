//! Metrics through the `metrics` crate. The labels are kinds and lines of the program, so their number is bounded.
//!
//! A recorder is foreign code. It is called while no lock is held, and its panics are ignored.

use std::collections::HashMap;

use super::snapshot::{Kind, Line};

#[cfg(not(feature = "metrics"))]
mod imp {
    use std::time::Duration;

    use super::{HashMap, Kind, Line};
    use crate::watch::snapshot::How;

    pub(in super::super) fn describe() {}

    pub(in super::super) fn registered(_: Kind, _: Line) -> bool {
        false
    }

    pub(in super::super) fn work_ended(_: Kind, _: Line) {}

    pub(in super::super) fn ended(_: How, _: Line) {}

    pub(in super::super) fn late(_: How, _: Duration) {}

    pub(in super::super) fn overstayed(_: Kind, _: Line) {}

    pub(in super::super) fn overstaying(_: &HashMap<(Kind, Line), u32>) {}
}

#[cfg(feature = "metrics")]
mod imp {
    use std::cell::{Cell, RefCell};
    use std::hash::Hash;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

    use super::{HashMap, Kind, Line};
    use crate::trace::shielded;
    use crate::watch::snapshot::How;

    type ByLine<T> = HashMap<(Kind, Line), T>;

    thread_local! {
        /// Handles that this thread has requested from the recorder, so that an event needs no lock and no allocation.
        static ALIVE: RefCell<ByLine<Gauge>> = RefCell::default();
        static ENDED: RefCell<HashMap<(How, Line), Counter>> = RefCell::default();
        static LATE: RefCell<HashMap<How, Histogram>> = RefCell::default();
    }

    thread_local! {
        /// Whether this thread is calling a recorder.
        static INSIDE: Cell<bool> = const { Cell::new(false) };
        /// What was registered before the call of the recorder, and has left during it.
        static LEFT: RefCell<Vec<(Kind, Line)>> = RefCell::default();
    }

    /// Calls the recorder, unless it is being called already, which returns `None`: contexts that it uses itself are not
    /// counted. That could recurse forever, and the recorder may hold a lock.
    fn once<R>(f: impl FnOnce() -> R) -> Option<R> {
        if INSIDE.replace(true) {
            return None;
        }
        let result = f();
        let next = || LEFT.try_with(|left| left.borrow_mut().pop()).ok().flatten();
        while let Some((kind, line)) = next() {
            call(&ALIVE, (kind, line), || alive(kind, line), |gauge| gauge.decrement(1.0));
        }
        INSIDE.set(false);
        Some(result)
    }

    /// Calls `f` with the handle of a key. Returns whether it did so without a panic, or `None` if the recorder is being
    /// called already.
    fn with<K: Copy + Eq + Hash, H: Clone>(
        handles: &'static std::thread::LocalKey<RefCell<HashMap<K, H>>>,
        key: K,
        ask: impl FnOnce() -> H,
        f: impl FnOnce(H),
    ) -> Option<bool> {
        once(|| call(handles, key, ask, f))
    }

    /// Requests the handle once for each thread. Returns whether there was no panic.
    fn call<K: Copy + Eq + Hash, H: Clone>(
        handles: &'static std::thread::LocalKey<RefCell<HashMap<K, H>>>,
        key: K,
        ask: impl FnOnce() -> H,
        f: impl FnOnce(H),
    ) -> bool {
        let done = shielded(|| {
            let known = handles.try_with(|handles| handles.borrow().get(&key).cloned());
            let handle = match known {
                Ok(Some(handle)) => handle,
                Ok(None) => {
                    let handle = ask();
                    let kept = handle.clone();
                    let replaced = handles.try_with(|handles| handles.borrow_mut().insert(key, kept));
                    drop(replaced);
                    handle
                }
                // The thread is ending.
                Err(_) => ask(),
            };
            f(handle);
        });
        done.is_some()
    }

    fn alive(kind: Kind, line: Line) -> Gauge {
        gauge!("tokio_ctx_alive", "kind" => kind.as_str(), "line" => line.to_string())
    }

    pub(in super::super) fn describe() {
        use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

        let describe = || {
            describe_gauge!("tokio_ctx_alive", "Registered work and contexts, by kind and line");
            describe_counter!(
                "tokio_ctx_ended_total",
                "Contexts that ended, by kind of end and by line"
            );
            describe_counter!(
                "tokio_ctx_overstayed_total",
                "Work that exceeded the grace period after the end of its context"
            );
            describe_gauge!(
                "tokio_ctx_overstaying",
                "Work that is running for longer than the grace period after the end of its context"
            );
            describe_histogram!(
                "tokio_ctx_lateness_seconds",
                Unit::Seconds,
                "Time from the end of a context to the end of its work"
            );
        };
        once(|| shielded(describe));
    }

    /// Returns whether it is counted. Only then, `work_ended` is called.
    pub(in super::super) fn registered(kind: Kind, line: Line) -> bool {
        with(&ALIVE, (kind, line), || alive(kind, line), |gauge| gauge.increment(1.0)) == Some(true)
    }

    pub(in super::super) fn work_ended(kind: Kind, line: Line) {
        if with(&ALIVE, (kind, line), || alive(kind, line), |gauge| gauge.decrement(1.0)).is_none() {
            let _ends = LEFT.try_with(|left| left.borrow_mut().push((kind, line)));
        }
    }

    pub(in super::super) fn ended(how: How, line: Line) {
        let ask =
            || counter!("tokio_ctx_ended_total", "how" => how.as_str(), "line" => line.to_string());
        with(&ENDED, (how, line), ask, |counter| counter.increment(1));
    }

    pub(in super::super) fn late(how: How, late: Duration) {
        let ask = || histogram!("tokio_ctx_lateness_seconds", "how" => how.as_str());
        with(&LATE, how, ask, |histogram| histogram.record(late.as_secs_f64()));
    }

    pub(in super::super) fn overstayed(kind: Kind, line: Line) {
        let count = || {
            let line = line.to_string();
            counter!("tokio_ctx_overstayed_total", "kind" => kind.as_str(), "line" => line).increment(1);
        };
        once(|| shielded(count));
    }

    /// Sets the number of overstaying pieces of work for each line, and zero for lines that were reported before.
    pub(in super::super) fn overstaying(staying: &ByLine<u32>) {
        static KNOWN: Mutex<Option<ByLine<Gauge>>> = Mutex::new(None);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let set = || {
            for &(kind, line) in staying.keys() {
                known.entry((kind, line)).or_insert_with(|| {
                    gauge!("tokio_ctx_overstaying", "kind" => kind.as_str(), "line" => line.to_string())
                });
            }
            for (key, gauge) in &known {
                gauge.set(f64::from(staying.get(key).copied().unwrap_or(0)));
            }
        };
        once(|| shielded(set));
        *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}

pub(super) use imp::*;
