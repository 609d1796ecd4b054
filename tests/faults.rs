//! Faults of foreign code that the tree calls, and of runtimes: panics, guards that are dropped during an
//! operation, shutdowns, clocks that jump. The tree stays intact, and nothing hangs.
//!
//! All tests run with a tracing subscriber that formats every event.

mod common;

#[path = "faults/causes.rs"]
mod causes;
#[path = "faults/clocks.rs"]
mod clocks;
#[path = "faults/functions.rs"]
mod functions;
#[path = "faults/places.rs"]
mod places;
#[path = "faults/runtimes.rs"]
mod runtimes;
#[path = "faults/values.rs"]
mod values;
#[path = "faults/wakers.rs"]
mod wakers;

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, Once};
use std::task::{RawWaker, RawWakerVTable, Waker};
use std::thread;

use common::{LONG, current_thread, poll_once, watched};
use tokio_ctx::Context;

static BACKGROUND: Context = Context::background();

/// Runs a test under a watchdog, and with a subscriber that formats every event.
fn faulty(test: impl FnOnce() + Send + 'static) {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_writer(std::io::sink)
            .init();
    });
    watched(test);
}

/// Uses contexts in every way on another thread, and waits for it. This would hang if the caller held one of
/// their locks.
fn use_from_elsewhere(contexts: &[Context]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = current_thread();
            let _entered = runtime.enter();
            for ctx in contexts {
                assert_eq!(ctx.is_done(), ctx.err().is_some());
                assert_eq!(ctx.is_done(), poll_once(ctx.done()).is_ready());
                let child = ctx.with_timeout(LONG);
                let merged = child.merge(&contexts[0]);
                let _pending = (poll_once(child.done()), poll_once(merged.done()));
                child.cancel_with("from elsewhere");
                assert!(child.is_done() && merged.is_done());
            }
        });
    });
}

/// A value or cause that runs a closure when it is dropped.
struct RunsOnDrop(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl RunsOnDrop {
    fn new(action: impl FnOnce() + Send + 'static) -> RunsOnDrop {
        RunsOnDrop(Mutex::new(Some(Box::new(action))))
    }
}

impl Drop for RunsOnDrop {
    fn drop(&mut self) {
        let action = self.0.lock().unwrap().take();
        action.into_iter().for_each(|action| action());
    }
}

/// What a waker does when it is cloned, woken and dropped.
#[derive(Default)]
struct Hooks {
    clone: Option<Hook>,
    wake: Option<Hook>,
    drop: Option<Hook>,
}

type Hook = Box<dyn Fn() + Send + Sync>;

impl Hooks {
    fn waker(self) -> Waker {
        // SAFETY: `VTABLE` is of `Arc<Hooks>`.
        unsafe { Waker::from_raw(raw(Arc::new(self))) }
    }
}

fn raw(hooks: Arc<Hooks>) -> RawWaker {
    RawWaker::new(Arc::into_raw(hooks).cast(), &VTABLE)
}

fn call(hook: &Option<Hook>) {
    if let Some(hook) = hook {
        hook();
    }
}

/// Each pointer owns a reference of an `Arc<Hooks>`, which is released only after the hook has returned.
static VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: the pointer is of `Arc::into_raw`, and its count stays with the original.
        let hooks = ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Hooks>()) });
        call(&hooks.clone);
        raw(Arc::clone(&hooks))
    },
    |data| {
        // SAFETY: as above, and the count is taken over.
        let hooks = unsafe { Arc::from_raw(data.cast::<Hooks>()) };
        call(&hooks.wake);
    },
    |data| {
        // SAFETY: as in `clone`.
        let hooks = ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Hooks>()) });
        call(&hooks.wake);
    },
    |data| {
        // SAFETY: as above, and the count is taken over.
        let hooks = unsafe { Arc::from_raw(data.cast::<Hooks>()) };
        call(&hooks.drop);
    },
);
