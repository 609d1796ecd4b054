//! What an end leaves to be done once all that ends with it is closed: all of it may run foreign code, so that no lock
//! is held, and no token counts as being closed.

use std::sync::Arc;
use std::task::Waker;

use super::end::Ending;
use super::{CAUSED, INHERITED, KEPT, MERGED, Token};
use crate::pages::Pages;
use crate::registry;
use crate::trace::{self, shielded};

#[derive(Default)]
pub(super) struct Work {
    /// Mostly there is one waker, which takes no allocation.
    waker: Option<Waker>,
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    wakers: Vec<Waker>,
    tasks: Vec<Box<dyn FnOnce(&mut Work)>>,
}

impl Work {
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub(super) fn wake(&mut self, waker: Waker) {
        match &self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.more().wakers.push(waker),
        }
    }

    /// Wakes these, and has room for so many more.
    pub(super) fn wake_all(&mut self, wakers: Pages<Waker>, more: usize) {
        if wakers.len() + more > 0 {
            self.more().wakers.reserve(wakers.len() + more);
            self.more().wakers.extend(wakers.into_iter());
        }
    }

    pub(super) fn later(&mut self, task: impl FnOnce(&mut Work) + 'static) {
        self.more().tasks.push(Box::new(task));
    }

    /// Whether ends are reported at all.
    pub(super) fn is_observed() -> bool {
        trace::listens() || registry::is_installed()
    }

    /// Reports an end, but neither that of a scope that is merely dropped, nor of what ends with its parent.
    pub(super) fn report(&mut self, token: &Token, ending: &Ending) {
        if !matches!(ending.kind, 0 | INHERITED) && Work::is_observed() {
            let (error, created_at) = (token.error(), token.created_at());
            self.later(move |_| {
                trace::ended(&error, created_at);
                #[cfg(feature = "watch")]
                registry::ended(&error, created_at);
            });
        }
    }

    /// Leaves a handle to be dropped, if that may run foreign code.
    pub(super) fn keep(&mut self, token: Arc<Token>) {
        if token.has(KEPT | CAUSED | MERGED) {
            self.later(move |_| drop(token));
        }
    }

    /// Does it, also if some of it panics: that is a matter of what panicked, and of the panic hook.
    pub(super) fn finish(mut self) {
        while self.waker.is_some() || self.more.is_some() {
            self.waker.take().map(|waker| shielded(|| waker.wake()));
            let Some(more) = self.more.take() else { return };
            more.wakers.into_iter().for_each(|waker| _ = shielded(|| waker.wake()));
            // A task may leave more to be done.
            more.tasks.into_iter().for_each(|task| _ = shielded(|| task(&mut self)));
        }
    }
}
