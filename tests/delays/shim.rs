//! Delays before each access to an atomic or a lock, at random, so that threads meet in states that otherwise last for
//! nanoseconds.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::atomic;
use std::thread::{sleep, yield_now};
use std::time::Duration;

/// Most accesses have none, one of 64 lets another thread run, and one of 1,024 takes up to two milliseconds.
pub(crate) fn delay() {
    std::thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    // No delay while the thread ends.
    let _drawn = STATE.try_with(|state| {
        let mut next = state.get();
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        state.set(next);
        match next % 1024 {
            0 => sleep(Duration::from_micros(next >> 32 & 2047)),
            drawn if drawn % 64 == 1 => yield_now(),
            _ => {}
        }
    });
}

macro_rules! atomics {
    ($($name:ident: $value:ty),*) => {$(
        #[derive(Default)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                $name(atomic::$name::new(value))
            }
        }

        impl Deref for $name {
            type Target = atomic::$name;

            fn deref(&self) -> &Self::Target {
                delay();
                &self.0
            }
        }
    )*};
}

atomics!(AtomicBool: bool, AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);
