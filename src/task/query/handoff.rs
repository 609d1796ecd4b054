//! Hands a query over from its caller, which polls it until its context ends, to a task, which cancels it.
//!
//! A future may be held without being polled: in a `select!` whose other branch is running, or in a buffer with a slow
//! consumer. Its query must not continue after the end of the context. Therefore the end does not wake the caller. It
//! moves the query into a task, which cancels it, waits for it, and stores the outcome here. There is no task before
//! that.
//!
//! The work is stored in [`State`]. To poll it, it is taken out, so that no foreign code runs under the lock:
//!
//! | state | the caller polls | the context ends | the caller drops the future |
//! |---|---|---|---|
//! | `Idle` | `Busy`, then `Idle` or `Over` | `InTask` | `Over`; the work is canceled in a task |
//! | `Busy`: the caller polls it | – | `Woken`; the caller spawns the task after its poll | – |
//! | `InTask`: a task has it | waits | – | `Over`; the task continues |
//! | `Done`: the task has finished it | `Over` | – | the outcome is dropped |
//!
//! Each transition happens under the lock, and takes the work out of the state. Therefore there is at most one task,
//! and either the caller or the task handles an end that occurs during a poll, never both. Without a runtime, the
//! caller does everything. A runtime that shuts down wakes the waits that use its timers. If the context has not ended, that
//! wakes the caller, which registers again.

use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Wake, Waker, ready};

use tokio::runtime::Handle;

use super::connection::Connection;
use super::work::{End, Work};
use crate::context::registered::Registered;
use crate::registry::Kind;
use crate::trace::shielded;

/// A query that has begun, shared by its caller and the task that cancels it.
pub(super) struct Handoff<C: Connection, T> {
    state: Mutex<State<C, T>>,
    // The runtime of the first poll, which the driver uses as well.
    runtime: Option<Handle>,
    place: &'static Location<'static>,
}

enum State<C: Connection, T> {
    /// Contains the waker of the caller's last poll, or `None` before the first.
    Idle(Box<Work<C, T>>, Option<Waker>),
    Busy,
    Woken,
    /// Contains the caller's waker.
    InTask(Option<Waker>),
    Done(End<C, T>),
    Over,
}

impl<C: Connection, T: Send + 'static> Handoff<C, T> {
    pub(super) fn new(work: Work<C, T>, place: &'static Location<'static>) -> Arc<Self> {
        let state = Mutex::new(State::Idle(Box::new(work), None));
        Arc::new(Handoff { state, runtime: Handle::try_current().ok(), place })
    }

    fn state(&self) -> MutexGuard<'_, State<C, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls the query for its caller.
    pub(super) fn poll(self: &Arc<Self>, cx: &mut TaskContext<'_>) -> Poll<End<C, T>> {
        let waker = cx.waker().clone();
        // The previous waker, which is dropped after the lock is released.
        let _replaced;
        let mut work = {
            let mut state = self.state();
            match mem::replace(&mut *state, State::Busy) {
                State::Idle(work, before) => {
                    _replaced = before;
                    work
                }
                State::InTask(before) => {
                    *state = State::InTask(Some(waker));
                    _replaced = before;
                    return Poll::Pending;
                }
                State::Done(end) => {
                    *state = State::Over;
                    return Poll::Ready(end);
                }
                State::Busy | State::Woken | State::Over => {
                    unreachable!("only one caller polls it, until it is ready")
                }
            }
        };
        // A panic from here on drops the work, which discards the connection.
        let end = Waker::from(self.clone());
        let is_bound = self.runtime.is_some();
        let polled = work.poll(cx, is_bound.then_some(&end));
        let mut state = self.state();
        if polled.is_ready() {
            *state = State::Over;
            return polled;
        }
        let is_woken = matches!(*state, State::Woken);
        if is_bound && (work.must_stop() || (is_woken && work.has_ended())) {
            *state = State::InTask(Some(waker));
            drop(state);
            self.finish(work);
        } else {
            *state = State::Idle(work, Some(waker));
            drop(state);
            if is_woken {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Cancels the query in a task, because its caller has dropped the future.
    pub(super) fn cancel(self: &Arc<Self>) {
        let was = mem::replace(&mut *self.state(), State::Over);
        match was {
            State::Idle(work, _) if self.runtime.is_some() || Handle::try_current().is_ok() => {
                work.cancel(self.place);
                self.finish(work);
            }
            // Without a runtime, the connection is discarded. A finished outcome returns its connection to its pool.
            was => {
                shielded(|| drop(was));
            }
        }
    }

    /// Spawns the task that runs the work to its end.
    fn finish(self: &Arc<Self>, work: Box<Work<C, T>>) {
        let registered = Registered::new(work.context(), Kind::Task, self.place);
        let task = registered.held_by(Finish { work: Some(work), handoff: self.clone() });
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    fn deliver(&self, end: End<C, T>) {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Over) {
            State::InTask(waker) => {
                *state = State::Done(end);
                drop(state);
                if let Some(waker) = waker {
                    shielded(|| waker.wake());
                }
            }
            // The caller has dropped the future.
            _ => {
                drop(state);
                shielded(|| drop(end));
            }
        }
    }
}

/// Called when the context ends, or has to be registered again.
impl<C: Connection, T: Send + 'static> Wake for Handoff<C, T> {
    fn wake(self: Arc<Self>) {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Over) {
            State::Idle(work, waker) if work.has_ended() => {
                *state = State::InTask(waker);
                drop(state);
                self.finish(work);
            }
            // A runtime is shutting down, with which the deadline is registered.
            State::Idle(work, waker) => {
                *state = State::Idle(work, None);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Busy => *state = State::Woken,
            other => *state = other,
        }
    }
}

/// The task of a query whose context has ended.
struct Finish<C: Connection, T: Send + 'static> {
    work: Option<Box<Work<C, T>>>,
    handoff: Arc<Handoff<C, T>>,
}

/// The work is in a box.
impl<C: Connection, T: Send + 'static> Unpin for Finish<C, T> {}

impl<C: Connection, T: Send + 'static> Future for Finish<C, T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some(work) = &mut self.work {
            // The poll panics if there is no time driver. The caller resumes the panic.
            let end = match catch_unwind(AssertUnwindSafe(|| work.poll(cx, None))) {
                Ok(polled) => ready!(polled),
                Err(payload) => Err(payload),
            };
            self.work = None;
            self.handoff.deliver(end);
        }
        Poll::Ready(())
    }
}

/// The task may be dropped with its runtime, while the caller runs in another one.
impl<C: Connection, T: Send + 'static> Drop for Finish<C, T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let lost = shielded(|| work.lost());
            self.handoff
                .deliver(lost.unwrap_or_else(|| Err(Box::new("a query panicked while it was dropped"))));
        }
    }
}
