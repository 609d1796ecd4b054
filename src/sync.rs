//! Atomics, locks, the clock and timers. In loom models, those of loom and of the model replace them. With
//! `--cfg tokio_ctx_delays`, accesses to atomics and locks are delayed at random.

#[cfg(not(tokio_ctx_loom))]
mod imp {
    use std::pin::Pin;
    pub(crate) use std::sync::MutexGuard;
    use std::sync::PoisonError;
    #[cfg(not(tokio_ctx_delays))]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
    pub(crate) use std::sync::atomic::{Ordering, fence};
    use std::task::{Context, Waker};
    pub(crate) use std::thread::yield_now;
    pub(crate) use std::thread_local;

    use tokio::runtime::Handle;
    pub(crate) use tokio::runtime::Id as RuntimeId;
    use tokio::task::coop::{Unconstrained, unconstrained};
    use tokio::time::{Instant, Sleep, sleep_until};

    #[cfg(tokio_ctx_delays)]
    pub(crate) use super::delays::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

    /// A mutex that ignores poisoning, because no code that can panic runs while it is locked.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(std::sync::Mutex::new(value))
        }

        #[inline]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            #[cfg(test)]
            super::meter::LOCKS.with(super::meter::count);
            #[cfg(tokio_ctx_delays)]
            super::delays::delay();
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        #[inline]
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[inline]
    pub(crate) fn now() -> Instant {
        #[cfg(test)]
        super::meter::CLOCK_READS.with(super::meter::count);
        Instant::now()
    }

    /// Returns whether the clock of the current runtime is paused. A reading of a clock that is not paused lies between two
    /// readings of std's clock.
    pub(crate) fn is_paused() -> bool {
        let before = std::time::Instant::now();
        let now = Instant::now().into_std();
        now < before || std::time::Instant::now() < now
    }

    /// Returns the current runtime.
    #[inline]
    pub(crate) fn runtime() -> Option<RuntimeId> {
        Handle::try_current().ok().map(|handle| handle.id())
    }

    /// Returns the current runtime. Outside of one, panics like Tokio's timers.
    #[track_caller]
    pub(crate) fn require_runtime() -> RuntimeId {
        Handle::current().id()
    }

    /// Spawns a future on the current runtime.
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(future);
        }
    }

    /// A timer of the current runtime. It is polled outside of the cooperative budget of the task, which may be exhausted.
    pub(crate) struct Timer(Pin<Box<Unconstrained<Sleep>>>);

    impl Timer {
        /// # Panics
        ///
        /// Panics outside a runtime, or in one without a time driver, like `tokio::time::sleep`.
        #[track_caller]
        pub(crate) fn new(at: Instant) -> Timer {
            Timer(Box::pin(unconstrained(sleep_until(at))))
        }

        /// Starts the timer, which will wake `waker`. Returns false if its time has come.
        pub(crate) fn start(&mut self, waker: &Waker) -> bool {
            self.0.as_mut().poll(&mut Context::from_waker(waker)).is_pending()
        }
    }
}

#[cfg(tokio_ctx_delays)]
#[path = "../tests/delays/shim.rs"]
mod delays;

#[cfg(tokio_ctx_loom)]
#[path = "../tests/loom/shim.rs"]
mod imp;

pub(crate) use imp::*;

/// Counts what this thread does, for the tests of what it costs.
#[cfg(test)]
#[cfg(not(tokio_ctx_loom))]
pub(crate) mod meter {
    use std::cell::Cell;

    std::thread_local! {
        pub(crate) static LOCKS: Cell<usize> = const { Cell::new(0) };
        pub(crate) static CLOCK_READS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count(counter: &Cell<usize>) {
        counter.set(counter.get() + 1);
    }
}
