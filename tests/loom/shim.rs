//! Replaces std by loom, and Tokio's clock, runtimes and timers by those of the model.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

pub(crate) use loom::sync::MutexGuard;
use loom::sync::atomic;
pub(crate) use loom::sync::atomic::{Ordering, fence};
pub(crate) use loom::thread::yield_now;
pub(crate) use loom::thread_local;
use tokio::time::Instant;

pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap()
    }
}

std::thread_local! {
    static STALE: Cell<bool> = const { Cell::new(false) };
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether loads may return stale values, as the memory model allows. This causes many more orders.
#[cfg(test)]
pub(crate) fn allow_stale_loads(allow: bool) {
    // All threads of a model are one of the system's.
    STALE.set(allow);
}

/// In loom, a load can hide the previous load from the store that follows, so that the order in which the store is first is
/// not explored (loom's issues 166 and 392). A read-modify-write does not have this effect. A load is therefore one, and
/// returns the latest value, or it is preceded by one on a neighbor of the atomic, which orders nothing else.
macro_rules! atomic {
    ($name:ident, $value:ty, $none:expr, $($rmw:ident),*) => {
        pub(crate) struct $name {
            value: atomic::$name,
            neighbor: atomic::$name,
        }

        #[allow(dead_code)] // Not every type uses every method.
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                let [value, neighbor] = [value, $none].map(atomic::$name::new);
                $name { value, neighbor }
            }

            fn at(&self) -> &atomic::$name {
                if STALE.get() {
                    self.neighbor.fetch_or($none, Ordering::Relaxed);
                }
                &self.value
            }

            /// A relaxed load happens under the lock of the stores, or in the last owner. Loom does not model that the count
            /// of an `Arc` synchronizes the last owner, so such a load returns the latest value.
            pub(crate) fn load(&self, order: Ordering) -> $value {
                match STALE.get() && order != Ordering::Relaxed {
                    true => self.at().load(order),
                    false => self.value.fetch_or($none, order),
                }
            }

            /// A swap, because loom does not order a store after a read-modify-write that it has not observed.
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.at().swap(value, order);
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.at().compare_exchange(current, new, success, failure)
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut next: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut value = self.load(failure);
                while let Some(new) = next(value) {
                    match self.compare_exchange(value, new, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(present) => value = present,
                    }
                }
                Err(value)
            }

            $(
                pub(crate) fn $rmw(&self, value: $value, order: Ordering) -> $value {
                    self.at().$rmw(value, order)
                }
            )*
        }
    };
}

atomic!(AtomicBool, bool, false, swap);
atomic!(AtomicU8, u8, 0,);
atomic!(AtomicU16, u16, 0, fetch_or, fetch_and);
atomic!(AtomicU32, u32, 0, fetch_add, fetch_sub);
atomic!(AtomicU64, u64, 0,);

loom::lazy_static! {
    static ref START: Instant = Instant::now();
    static ref SECONDS: AtomicU32 = AtomicU32::new(0);
    static ref DRIVERS: Mutex<Drivers> = Mutex::new(Drivers::default());
}

/// The time drivers of all runtimes.
#[derive(Default)]
struct Drivers {
    begun: u64,
    timers: Vec<(u64, RuntimeId, Instant, Waker)>,
    shut_down: Vec<RuntimeId>,
}

loom::thread_local! {
    static RUNTIME: Cell<Option<RuntimeId>> = Cell::new(None);
}

/// Returns the time of the model, which only [`tick`] advances.
pub(crate) fn now() -> Instant {
    *START + Duration::from_secs(SECONDS.load(Ordering::Acquire).into())
}

/// Advances the clock by a second.
#[cfg(test)]
pub(crate) fn tick() {
    SECONDS.fetch_add(1, Ordering::AcqRel);
}

/// Sets whether the clock is that of a runtime whose time is paused.
#[cfg(test)]
pub(crate) fn pause(paused: bool) {
    PAUSED.set(paused);
}

pub(crate) fn is_paused() -> bool {
    PAUSED.get()
}

pub(crate) type RuntimeId = u8;

/// Returns the runtime that this thread has entered.
pub(crate) fn runtime() -> Option<RuntimeId> {
    RUNTIME.with(Cell::get)
}

pub(crate) fn require_runtime() -> RuntimeId {
    runtime().expect("a model enters a runtime before it waits on a deadline")
}

#[cfg(test)]
pub(crate) fn enter_runtime(id: RuntimeId) {
    RUNTIME.with(|runtime| runtime.set(Some(id)));
}

/// Runs a task at once, or drops it if the runtime has been shut down. The tasks of the models never wait.
pub(crate) fn spawn(future: impl Future<Output = ()>) {
    let is_shut_down = DRIVERS.lock().shut_down.contains(&require_runtime());
    if !is_shut_down {
        let polled = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_ready());
    }
}

/// Replaces Tokio's timer. The model fires it.
pub(crate) struct Timer {
    id: u64,
    at: Instant,
}

/// The message of Tokio's panic if the runtime has been shut down.
pub(crate) const SHUT_DOWN: &str = "the model's runtime is being shutdown";

impl Timer {
    pub(crate) fn new(at: Instant) -> Timer {
        Timer { id: 0, at }
    }

    pub(crate) fn start(&mut self, waker: &Waker) -> bool {
        let runtime = require_runtime();
        let mut drivers = DRIVERS.lock();
        let (is_early, is_shut_down) = (self.at > now(), drivers.shut_down.contains(&runtime));
        if is_early && !is_shut_down {
            drivers.begun += 1;
            self.id = drivers.begun;
            drivers.timers.push((self.id, runtime, self.at, waker.clone()));
        }
        drop(drivers);
        assert!(!is_shut_down, "{SHUT_DOWN}");
        is_early
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // A model that fails drops its statics outside of the model.
        if self.id > 0 && !std::thread::panicking() {
            let mut drivers = DRIVERS.lock();
            let timer = drivers.timers.iter().position(|(id, ..)| *id == self.id);
            let timer = timer.map(|timer| drivers.timers.swap_remove(timer));
            drop(drivers);
            drop(timer);
        }
    }
}

/// Fires the timers of the current runtime whose time has come, or all of them if it shuts down. From then on, no timer
/// can be started in it.
#[cfg(test)]
pub(crate) fn fire_timers(shut_down: bool) {
    let (now, here) = (now(), runtime());
    let mut drivers = DRIVERS.lock();
    if shut_down {
        drivers.shut_down.extend(here);
    }
    let all = std::mem::take(&mut drivers.timers);
    let due = |at: Instant, runtime| (shut_down || at <= now) && Some(runtime) == here;
    let (fired, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, id, at, _)| due(*at, *id));
    drivers.timers = rest;
    drop(drivers);
    fired.into_iter().for_each(|(.., waker)| waker.wake());
}

/// Returns the number of timers of the current runtime that have not fired.
#[cfg(test)]
pub(crate) fn count_timers() -> usize {
    DRIVERS.lock().timers.iter().filter(|(_, id, ..)| Some(*id) == runtime()).count()
}
