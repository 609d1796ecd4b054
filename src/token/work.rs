//! What an end leaves to be done once all that ends with it is closed: all of it may run foreign code, so that no lock
//! is held, and no token counts as being closed.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use super::end::Ending;
use super::{CAUSED, INHERITED, KEPT, MERGED, Token};
use crate::pages::Pages;
use crate::registry;
use crate::trace::{self, shielded};

pub(super) struct Work {
    /// Mostly there is one, which takes no allocation.
    waker: Option<Waker>,
    wakers: Vec<Waker>,
    tasks: Vec<Box<dyn FnOnce(&mut Work)>>,
    is_observed: bool,
}

impl Work {
    #[inline]
    pub(super) fn new() -> Work {
        let is_observed = trace::listens() || registry::is_installed();
        Work { waker: None, wakers: Vec::new(), tasks: Vec::new(), is_observed }
    }

    #[inline]
    pub(super) fn wake(&mut self, waker: Waker) {
        match &self.waker {
            None => self.waker = Some(waker),
            Some(_) => self.wakers.push(waker),
        }
    }

    pub(super) fn reserve(&mut self, wakers: usize) {
        self.wakers.reserve(wakers);
    }

    pub(super) fn wake_all(&mut self, wakers: Pages<Waker>) {
        self.wakers.reserve(wakers.len());
        self.wakers.extend(wakers.into_iter());
    }

    pub(super) fn later(&mut self, task: impl FnOnce(&mut Work) + 'static) {
        self.tasks.push(Box::new(task));
    }

    /// Reports an end, but neither that of a scope that is merely dropped, nor of what ends with its parent.
    #[inline]
    pub(super) fn report(&mut self, token: &Token, ending: &Ending) {
        if self.is_observed && !matches!(ending.kind, 0 | INHERITED) {
            let (error, created_at) = (token.error(), token.created_at());
            self.later(move |_| {
                trace::ended(&error, created_at);
                #[cfg(feature = "watch")]
                registry::ended(&error, created_at);
            });
        }
    }

    /// Leaves a handle to be dropped, if that may run foreign code.
    #[inline]
    pub(super) fn keep(&mut self, token: Arc<Token>) {
        if token.has(KEPT | CAUSED | MERGED) {
            self.later(move |_| drop(token));
        }
    }

    /// Does it, also if some of it panics: that is a matter of what panicked, and of the panic hook.
    #[inline]
    pub(super) fn finish(&mut self) {
        loop {
            if let Some(waker) = self.waker.take() {
                shielded(|| waker.wake());
            }
            if self.wakers.is_empty() && self.tasks.is_empty() {
                break;
            }
            // It may leave more to be done.
            self.finish_more();
        }
    }

    fn finish_more(&mut self) {
        for waker in mem::take(&mut self.wakers) {
            shielded(|| waker.wake());
        }
        for task in mem::take(&mut self.tasks) {
            shielded(|| task(self));
        }
    }
}
