//! [`Work`]: what an end defers until all tokens that end with it are closed.
//!
//! Wakers, subscribers and the drops of causes are foreign code. It runs while no lock is held and no token is `CLOSING`.
//!
//! Foreign code may end another context, whose end runs foreign code as well, and so on. With a `CancellationToken`
//! between every two contexts, this happens without any code of the user. Each end is nested in the one before, and a
//! long chain of them would overflow the stack. From a certain depth on, an end therefore leaves its work to the innermost
//! end that does not. All of it is done before the outermost end returns.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

use crate::pages::Pages;
use crate::sync::thread_local;
use crate::trace::shielded;

/// Ends that are nested in this many others leave their work.
const DEEPEST: usize = 16;

#[derive(Default)]
pub(crate) struct Work {
    /// The first waker, so that a single one needs no allocation.
    waker: Option<Waker>,
    pub(crate) wakers: Vec<Waker>,
    tasks: Vec<Task>,
}

type Task = Box<dyn FnOnce(&mut Work)>;

impl Work {
    #[inline]
    pub(crate) fn wake(&mut self, waker: Waker) {
        match &self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.wakers.push(waker),
        }
    }

    pub(crate) fn wake_all(&mut self, wakers: Pages<Waker>) {
        self.wakers.reserve(wakers.len());
        self.wakers.extend(wakers.into_iter());
    }

    pub(crate) fn defer(&mut self, task: impl FnOnce(&mut Work) + 'static) {
        self.tasks.push(Box::new(task));
    }

    /// Does all of it, now or at the end of the innermost call that is not nested too deep.
    #[inline]
    pub(crate) fn run(&mut self) {
        if self.waker.is_some() || !self.wakers.is_empty() || !self.tasks.is_empty() {
            self.run_nested();
        }
    }

    fn run_nested(&mut self) {
        let depth = DEPTH.with(Cell::get) + 1;
        if depth > DEEPEST {
            return leave(mem::take(self));
        }
        DEPTH.with(|nested| nested.set(depth));
        self.run_all();
        if depth == DEEPEST {
            while let Some(mut work) = next_left() {
                work.run_all();
            }
        }
        DEPTH.with(|nested| nested.set(depth - 1));
    }

    /// Does all of it. A panic is caught, and does not prevent the rest.
    fn run_all(&mut self) {
        loop {
            self.waker.take().map(|waker| shielded(|| waker.wake()));
            if self.wakers.is_empty() && self.tasks.is_empty() {
                return;
            }
            let mut wakers = mem::take(&mut self.wakers).into_iter();
            // Repeated after a panic, with the next waker.
            while shielded(|| wakers.by_ref().for_each(Waker::wake)).is_none() {}
            // A task can defer more work.
            mem::take(&mut self.tasks).into_iter().for_each(|task| _ = shielded(|| task(self)));
        }
    }
}

thread_local! {
    /// The number of calls of [`Work::run`] on this thread that have not returned.
    static DEPTH: Cell<usize> = Cell::default();
    /// The work that those that are nested too deep have left.
    static LEFT: RefCell<VecDeque<Work>> = RefCell::default();
}

#[cold]
fn leave(work: Work) {
    let mut work = Some(work);
    let _ends = LEFT.try_with(|left| left.borrow_mut().extend(work.take()));
    // The thread is ending.
    work.iter_mut().for_each(Work::run_all);
}

#[cold]
fn next_left() -> Option<Work> {
    LEFT.try_with(|left| left.borrow_mut().pop_front()).ok().flatten()
}
