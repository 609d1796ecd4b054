//! Work that an end defers until all tokens that end with it are closed.
//!
//! Wakers, subscribers and the drops of causes are foreign code. It runs while no lock is held and no token is `CLOSING`.

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
    more: Option<Box<More>>,
}

type Task = Box<dyn FnOnce(&mut Work)>;

#[derive(Default)]
struct More {
    wakers: Vec<Waker>,
    tasks: Vec<Task>,
}

impl Work {
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    #[inline]
    pub(super) fn wake(&mut self, waker: Waker) {
        match &self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.more().wakers.push(waker),
        }
    }

    /// Wakes all of these, and reserves room for `more` further ones.
    pub(super) fn wake_all(&mut self, wakers: Pages<Waker>, more: usize) {
        let present = &mut self.more().wakers;
        present.reserve(wakers.len() + more);
        present.extend(wakers.into_iter());
    }

    pub(super) fn defer(&mut self, task: impl FnOnce(&mut Work) + 'static) {
        self.more().tasks.push(Box::new(task));
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
    pub(super) fn drop_later(&mut self, token: Arc<Token>) {
        if token.has(HAS_ERROR | HAS_CAUSE | MERGED) {
            self.defer(move |_| drop(token));
        }
    }

    /// Runs all of it. A panic is caught, and does not prevent the rest from running.
    pub(super) fn run(mut self) {
        while self.waker.is_some() || self.more.is_some() {
            self.waker.take().map(|waker| shielded(|| waker.wake()));
            let Some(more) = self.more.take() else { return };
            more.wakers.into_iter().for_each(|waker| _ = shielded(|| waker.wake()));
            // A task can defer more work.
            more.tasks.into_iter().for_each(|task| _ = shielded(|| task(&mut self)));
        }
    }
}
