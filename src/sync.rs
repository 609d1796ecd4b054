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
    use std::cell::Cell;
    use std::time::Duration;

    use loom::sync::MutexGuard;
    use loom::sync::atomic;
    pub(crate) use loom::sync::atomic::Ordering;
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

    thread_local! {
        static STALE: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether loads may take a stale value, as the memory model allows: far more to try.
    #[cfg(test)]
    pub(crate) fn allow_stale_loads(allow: bool) {
        // All threads of a model are one of the system's.
        STALE.set(allow);
    }

    /// To loom a load, of the same or of a third thread, hides the one before it from the store that
    /// follows, and the order in which the store comes first is never tried (its issues 166 and 392). A
    /// read-modify-write hides nothing: either a load is one, and takes the latest value, or one on a
    /// neighbour of the atomic goes before it, which orders nothing else.
    macro_rules! atomic {
        ($name:ident, $value:ty, $none:expr, $($rmw:ident),*) => {
            pub(crate) struct $name {
                value: atomic::$name,
                neighbour: atomic::$name,
            }

            #[allow(dead_code)] // Not each of them has use for every method.
            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    let [value, neighbour] = [value, $none].map(atomic::$name::new);
                    $name { value, neighbour }
                }

                fn at(&self) -> &atomic::$name {
                    if STALE.get() {
                        self.neighbour.fetch_or($none, Ordering::Relaxed);
                    }
                    &self.value
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    if STALE.get() { self.at().load(order) } else { self.value.fetch_or($none, order) }
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.at().store(value, order);
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

                $(
                    pub(crate) fn $rmw(&self, value: $value, order: Ordering) -> $value {
                        self.at().$rmw(value, order)
                    }
                )*
            }
        };
    }

    atomic!(AtomicBool, bool, false, swap);
    atomic!(AtomicU8, u8, 0, fetch_or);
    atomic!(AtomicUsize, usize, 0, fetch_add, fetch_sub);

    /// A seat, which is read under its parent's lock, or by the last owner. That the count of an `Arc`
    /// brings the last owner up to date loom cannot see: a load always takes the latest value.
    pub(crate) struct AtomicU32(atomic::AtomicU32);

    impl AtomicU32 {
        pub(crate) fn new(value: u32) -> Self {
            AtomicU32(atomic::AtomicU32::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.0.fetch_or(0, order)
        }

        pub(crate) fn store(&self, value: u32, order: Ordering) {
            self.0.store(value, order);
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
    #[cfg(test)]
    pub(crate) fn tick() {
        SECONDS.fetch_add(1, Ordering::AcqRel);
    }
}

pub(crate) use imp::*;
