//! Work that an end defers until all tokens that end with it are closed.
//!
//! Wakers, subscribers and the drops of causes are foreign code. It runs while no lock is held and no token is `CLOSING`.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use super::end::Ending;
use super::{HAS_CAUSE, HAS_ERROR, INHERITED, MERGED, Token};
use crate::pages::Pages;
use crate::registry;
use crate::trace::{self, shielded};

#[derive(Default)]
pub(super) struct Work {
    /// The first waker, so that a single one needs no allocation.
    waker: Option<Waker>,
    pub(super) wakers: Vec<Waker>,
    tasks: Vec<Task>,
}

type Task = Box<dyn FnOnce(&mut Work)>;

impl Work {
    #[inline]
    pub(super) fn wake(&mut self, waker: Waker) {
        match &self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.wakers.push(waker),
        }
    }

    pub(super) fn wake_all(&mut self, wakers: Pages<Waker>) {
        self.wakers.reserve(wakers.len());
        self.wakers.extend(wakers.into_iter());
    }

    pub(super) fn defer(&mut self, task: impl FnOnce(&mut Work) + 'static) {
        self.tasks.push(Box::new(task));
    }

    /// Returns whether a subscriber or a watch is notified of ends.
    pub(super) fn is_reported() -> bool {
        trace::listens() || registry::is_installed()
    }

    /// Reports an end, except that of a dropped scope, and of a token that ends with its parent.
    #[inline]
    pub(super) fn report(&mut self, token: &Token, ending: &Ending) {
        if !matches!(ending.kind, 0 | INHERITED) && Work::is_reported() {
            let (error, created_at) = (token.error(), token.created_at());
            self.defer(move |_| {
                trace::ended(&error, created_at);
                #[cfg(feature = "watch")]
                registry::ended(&error, created_at);
            });
        }
    }

    /// Defers the drop of a handle, if it can run foreign code.
    #[inline]
    pub(super) fn drop_later(&mut self, token: Arc<Token>) {
        if token.has(HAS_ERROR | HAS_CAUSE | MERGED) {
            self.defer(move |_| drop(token));
        }
    }

    /// Runs all of it. A panic is caught, and does not prevent the rest from running.
    pub(super) fn run(mut self) {
        loop {
            self.waker.take().map(|waker| shielded(|| waker.wake()));
            if self.wakers.is_empty() && self.tasks.is_empty() {
                return;
            }
            let mut wakers = mem::take(&mut self.wakers).into_iter();
            // Repeated after a panic, with the next waker.
            while shielded(|| wakers.by_ref().for_each(Waker::wake)).is_none() {}
            // A task can defer more work.
            mem::take(&mut self.tasks).into_iter().for_each(|task| _ = shielded(|| task(&mut self)));
        }
    }
}
