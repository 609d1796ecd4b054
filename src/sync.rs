//! The shim behind which loom takes the place of std, and of the clock, when the token is model-checked.

#[cfg(not(tokio_ctx_loom))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
    use std::sync::{MutexGuard, PoisonError};

    use tokio::time::Instant;

    /// A mutex without poison: nothing that can panic runs while one of ours is held.
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(std::sync::Mutex::new(value))
        }

        #[inline]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[inline]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }
}

#[cfg(tokio_ctx_loom)]
mod imp {
    use std::time::Duration;

    use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
    use tokio::time::Instant;

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    loom::lazy_static! {
        static ref START: Instant = Instant::now();
        static ref SECONDS: AtomicUsize = AtomicUsize::new(0);
    }

    /// The model's clock: it stands still until a model moves it.
    pub(crate) fn now() -> Instant {
        *START + Duration::from_secs(SECONDS.load(Ordering::Acquire) as u64)
    }

    /// Moves the model's clock on by a second.
    pub(crate) fn tick() {
        SECONDS.fetch_add(1, Ordering::AcqRel);
    }
}

pub(crate) use imp::*;
