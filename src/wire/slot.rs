//! A value that is dropped when a context ends, even if nothing polls it.
//!
//! A transport does not poll a body while its peer accepts no more data, and a stream that is held is not polled either.
//! An error at the next poll would come too late for what the body holds. Therefore the body is kept in a slot, which
//! its user and the context share: the user takes the value out, polls it, and puts it back. The slot is a waker as
//! well, registered with the context: when the context ends, it empties itself. The registration of a request whose
//! response is complete is kept in the same way.
//!
//! # Why every value is dropped, and no wake-up is lost
//!
//! One lock protects `held`, `has_ended` and `waker`. No foreign code runs under it: values are polled and dropped after
//! they were taken out.
//!
//! 1. *A value that is in the slot when the context ends is dropped.* The end sets `has_ended` and spawns a task that
//!    empties the slot.
//! 2. *A value that is out when the context ends is dropped.* `put` fails once `has_ended` is set, and the user drops
//!    the value.
//! 3. *The user's task is woken.* `put` stores the waker, and fails after the end; the end takes the waker in the same
//!    step in which it sets `has_ended`. `read` leaves the waker in the slot, because its user does not learn of the end.
//!    The task is woken before the value is dropped, which may panic.
//!
//! The task is spawned because the thread that ends the context may have many others to wake, or be the time driver.
//! Without a runtime the value is dropped right there. If the user polls before the task runs, that poll drops the
//! value.

use std::borrow::Borrow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Wake, Waker};

use crate::context::Context;
use crate::context::done::Wait;
use crate::sync::{Mutex, spawn};
use crate::trace::shielded;

pub(crate) struct Slot<T> {
    ctx: Context,
    room: Mutex<Room<T>>,
}

struct Room<T> {
    held: Option<T>,
    waker: Option<Waker>,
    has_ended: bool,
}

impl<T> Slot<T> {
    fn new(ctx: Context, held: T) -> Slot<T> {
        Slot { ctx, room: Mutex::new(Room { held: Some(held), waker: None, has_ended: false }) }
    }

    /// Makes a slot that empties itself when the context of this wait ends, and the waker that is registered for that.
    ///
    /// # Panics
    ///
    /// Panics if the context has a deadline and there is no time driver, as `Wait::poll` does.
    pub(crate) fn registered<C: Borrow<Context>>(held: T, wait: &mut Wait<C>) -> (Arc<Slot<T>>, Waker)
    where
        T: Send + 'static,
    {
        let slot = Arc::new(Slot::new(wait.ctx().clone(), held));
        let bell = Waker::from(slot.clone());
        if Pin::new(wait).poll(&mut TaskContext::from_waker(&bell)).is_ready() {
            bell.wake_by_ref();
        }
        (slot, bell)
    }

    pub(crate) fn ctx(&self) -> &Context {
        &self.ctx
    }

    /// Takes the value out, and the waker of its task. `None` after the end, or while another user has it.
    pub(crate) fn take(&self) -> Option<(T, Option<Waker>)> {
        let mut room = self.room.lock();
        Some((room.held.take()?, room.waker.take()))
    }

    /// Puts the value back, and stores the waker for the end. Returns the value if the context has ended.
    pub(crate) fn put(&self, held: T, waker: Option<Waker>) -> Result<(), T> {
        let mut room = self.room.lock();
        if room.has_ended {
            return Err(held);
        }
        (room.held, room.waker) = (Some(held), waker);
        Ok(())
    }

    /// Calls `f` with the value, which is out meanwhile. `None` after the end, or while another user has it.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let held = self.room.lock().held.take()?;
        let result = f(&held);
        let mut room = self.room.lock();
        if room.has_ended {
            drop(room);
            self.ctx.sync_scope(|| drop(held));
        } else {
            room.held = Some(held);
        }
        Some(result)
    }

    /// Drops the value, with the context as the current one.
    fn empty(&self) {
        let taken = self.take();
        self.ctx.sync_scope(|| drop(taken));
    }
}

impl<T: Send + 'static> Wake for Slot<T> {
    fn wake(self: Arc<Self>) {
        // If it has not ended, the runtime with which the deadline is registered is shutting down. The user is then
        // woken, and registers the deadline again.
        let has_ended = self.ctx.is_done();
        let mut room = self.room.lock();
        room.has_ended |= has_ended;
        let (is_held, waker) = (room.held.is_some(), room.waker.take());
        drop(room);
        let emptied = (has_ended && is_held).then(|| Emptied(self));
        if let Some(waker) = waker {
            shielded(|| waker.wake());
        }
        if let Some(emptied) = emptied {
            spawn(async move { drop(emptied) });
        }
    }
}

/// Empties a slot when dropped, so that the slot is emptied even if the task never runs.
struct Emptied<T>(Arc<Slot<T>>);

impl<T> Drop for Emptied<T> {
    fn drop(&mut self) {
        self.0.empty();
    }
}
