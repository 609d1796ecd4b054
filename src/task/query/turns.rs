//! Whose turn it is to poll a query: its caller's until the end, and then a task's of its own.
//!
//! A future that is held and not polled, in a `select!` whose other branch is at work, or in a buffer whose
//! consumer is slow, must not keep its query at work after the end. So the end does not wake the caller: it moves the
//! query into a task, which cancels it, waits, and leaves the outcome here. No task is made before that.
//!
//! The work lies in [`State`], whence the one that polls it takes it, so that no foreign code runs under the lock:
//!
//! | state | the caller polls | the end comes | the caller drops it |
//! |---|---|---|---|
//! | `Idle` | `Busy`, then `Idle` or over | `Elsewhere` | ended, in a task |
//! | `Busy`: the caller is at it | – | `Ended`: the caller then makes the task | – |
//! | `Elsewhere`: a task has it | waits | – | `Over`: the task goes on |
//! | `Done`: the task has finished it | over | – | dropped |
//!
//! Each transition is under the lock, and each takes the work away from where it lay: so there is one task at most, and
//! an end that comes while the caller polls is seen by one of the two. Without a runtime, the caller does it all.

use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Wake, Waker, ready};

use tokio::runtime::Handle;

use super::connection::Connection;
use super::work::{End, Work};
use crate::context::enter::Entry;
use crate::registry::Kind;
use crate::trace::shielded;

/// A query that has begun, between its caller and the task that sees to its end.
pub(super) struct Turns<C: Connection, T> {
    state: Mutex<State<C, T>>,
    // Where it was polled first: the driver's home.
    runtime: Option<Handle>,
    place: &'static Location<'static>,
}

enum State<C: Connection, T> {
    /// With the waker of the caller's last poll, `None` before the first.
    Idle(Box<Work<C, T>>, Option<Waker>),
    Busy,
    Ended,
    /// With the caller's waker.
    Elsewhere(Option<Waker>),
    Done(End<C, T>),
    Over,
}

impl<C: Connection, T: Send + 'static> Turns<C, T> {
    pub(super) fn new(work: Work<C, T>, place: &'static Location<'static>) -> Arc<Self> {
        let state = Mutex::new(State::Idle(Box::new(work), None));
        Arc::new(Turns { state, runtime: Handle::try_current().ok(), place })
    }

    fn state(&self) -> MutexGuard<'_, State<C, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller's turn.
    pub(super) fn poll(self: &Arc<Self>, cx: &mut TaskContext<'_>) -> Poll<End<C, T>> {
        let waker = cx.waker().clone();
        // To be dropped behind the lock: the waker of the poll before.
        let _replaced;
        let mut work = {
            let mut state = self.state();
            match mem::replace(&mut *state, State::Busy) {
                State::Idle(work, before) => {
                    _replaced = before;
                    work
                }
                State::Elsewhere(before) => {
                    *state = State::Elsewhere(Some(waker));
                    _replaced = before;
                    return Poll::Pending;
                }
                State::Done(end) => {
                    *state = State::Over;
                    return Poll::Ready(end);
                }
                State::Busy | State::Ended | State::Over => {
                    unreachable!("polled by one caller, until it is ready")
                }
            }
        };
        // What panics from here on takes the work along, and with it the connection.
        let end = Waker::from(self.clone());
        let is_bound = self.runtime.is_some();
        let polled = work.poll(cx, is_bound.then_some(&end));
        let mut state = self.state();
        if polled.is_ready() {
            *state = State::Over;
            return polled;
        }
        if is_bound && (work.must_stop() || matches!(*state, State::Ended)) {
            *state = State::Elsewhere(Some(waker));
            drop(state);
            self.finish(work);
        } else {
            *state = State::Idle(work, Some(waker));
        }
        Poll::Pending
    }

    /// The caller has gone.
    pub(super) fn abandon(self: &Arc<Self>) {
        let was = mem::replace(&mut *self.state(), State::Over);
        match was {
            State::Idle(work, _) if self.runtime.is_some() || Handle::try_current().is_ok() => {
                work.abandon(self.place);
                self.finish(work);
            }
            // Without a runtime the connection is discarded; what is done is given back.
            was => {
                shielded(|| drop(was));
            }
        }
    }

    /// Sees the work to its end in a task.
    fn finish(self: &Arc<Self>, work: Box<Work<C, T>>) {
        let entry = Entry::new(work.context(), Kind::Task, self.place);
        let task = entry.held_by(Finish { work: Some(work), turns: self.clone() });
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    fn deliver(&self, end: End<C, T>) {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Over) {
            State::Elsewhere(waker) => {
                *state = State::Done(end);
                drop(state);
                if let Some(waker) = waker {
                    shielded(|| waker.wake());
                }
            }
            // Its caller has gone.
            _ => {
                drop(state);
                shielded(|| drop(end));
            }
        }
    }
}

/// The end of the context.
impl<C: Connection, T: Send + 'static> Wake for Turns<C, T> {
    fn wake(self: Arc<Self>) {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Over) {
            State::Idle(work, waker) => {
                *state = State::Elsewhere(waker);
                drop(state);
                self.finish(work);
            }
            State::Busy => *state = State::Ended,
            other => *state = other,
        }
    }
}

/// The task of a query whose context has ended.
struct Finish<C: Connection, T: Send + 'static> {
    work: Option<Box<Work<C, T>>>,
    turns: Arc<Turns<C, T>>,
}

/// The work is in a box of its own.
impl<C: Connection, T: Send + 'static> Unpin for Finish<C, T> {}

impl<C: Connection, T: Send + 'static> Future for Finish<C, T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some(work) = &mut self.work {
            // Without a time driver it panics, of which the caller is to hear.
            let end = match catch_unwind(AssertUnwindSafe(|| work.poll(cx, None))) {
                Ok(polled) => ready!(polled),
                Err(payload) => Err(payload),
            };
            self.work = None;
            self.turns.deliver(end);
        }
        Poll::Ready(())
    }
}

/// With its runtime: the caller may be in another one.
impl<C: Connection, T: Send + 'static> Drop for Finish<C, T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let lost = shielded(|| work.lost());
            self.turns
                .deliver(lost.unwrap_or_else(|| Err(Box::new("a query panicked as it was dropped"))));
        }
    }
}
