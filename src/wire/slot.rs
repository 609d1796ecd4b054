//! What is let go at a context's end, whether it is polled then or not.
//!
//! A transport that can send no more does not poll what it is to send, and a stream that is held is not polled
//! either: an error at the next poll would come too late for what they hold. So that lies in a slot, which its user
//! and the context share: the user takes it out to poll it, and puts it back. The slot is also what the context's end
//! wakes: it empties itself then.
//!
//! # Why nothing stays, and nothing is lost
//!
//! `held`, `has_ended` and `waker` are under one lock, under which nothing foreign runs: what is taken out is polled and
//! dropped outside of it.
//!
//! 1. *What is in the slot at the end goes.* The end sets `has_ended`, and then a task empties the slot.
//! 2. *What is out at the end goes.* It cannot be put back once `has_ended` is set: its user drops it.
//! 3. *No task sleeps through the end.* The waker is stored in the step that puts back, which fails after the end; and
//!    the end takes out the waker in the step that sets `has_ended`.
//!
//! It goes on a task of its own, as [`after_func`](crate::Context::after_func) runs: what wakes may be a thread that
//! cancels a crowd, or the time driver. Where there is no runtime, it goes there and then. The user that is woken, and
//! polls before that task, drops it itself.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::context::Context;
use crate::token::sync::{Mutex, spawn};

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
    pub(crate) fn new(ctx: Context, held: T) -> Slot<T> {
        Slot { ctx, room: Mutex::new(Room { held: Some(held), waker: None, has_ended: false }) }
    }

    pub(crate) fn ctx(&self) -> &Context {
        &self.ctx
    }

    /// Takes out what is held, and the waker of its task; nothing, if the end, or another user, was first.
    pub(crate) fn take(&self) -> Option<(T, Option<Waker>)> {
        let mut room = self.room.lock();
        Some((room.held.take()?, room.waker.take()))
    }

    /// Puts it back, and has the end wake `waker`; returns it if the end has come.
    pub(crate) fn put(&self, held: T, waker: Option<Waker>) -> Result<(), T> {
        let mut room = self.room.lock();
        if room.has_ended {
            return Err(held);
        }
        (room.held, room.waker) = (Some(held), waker);
        Ok(())
    }

    /// Drops what is held, with the context as the current one.
    fn empty(&self) {
        let taken = self.take();
        self.ctx.sync_scope(|| drop(taken));
    }
}

impl<T: Send + 'static> Wake for Slot<T> {
    fn wake(self: Arc<Self>) {
        // Else the runtime is going away that its deadline is registered with: its user registers it elsewhere.
        let has_ended = self.ctx.is_done();
        let mut room = self.room.lock();
        room.has_ended |= has_ended;
        let (is_held, waker) = (room.held.is_some(), room.waker.take());
        drop(room);
        if has_ended && is_held {
            let emptied = Emptied(self);
            spawn(async move { drop(emptied) });
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Empties a slot when dropped: also where the task is that holds it never runs.
struct Emptied<T>(Arc<Slot<T>>);

impl<T> Drop for Emptied<T> {
    fn drop(&mut self) {
        self.0.empty();
    }
}
