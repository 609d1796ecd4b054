//! What an end leaves to be done once all that ends with it is closed: all of it may run foreign code, so that no lock
//! is held, and no token counts as being closed.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::deadline::{Entry, leave};
use super::end::Ending;
use super::interop::Foreign;
use super::members::Pages;
use super::{CAUSED, KEPT, MERGED, Stamp, Token};
use crate::error::Error;
use crate::registry;
use crate::trace::{self, shielded};

pub(super) struct Work {
    /// Mostly there is one, which takes no allocation.
    waker: Option<Waker>,
    wakers: Vec<Waker>,
    pub(super) chores: Vec<Chore>,
    is_told: bool,
}

pub(super) enum Chore {
    Cancel(Arc<CancellationToken>),
    Report(Box<(Error, Option<Instant>)>),
    /// A merged token that had ended by its other path when an end reached it, and a time by which it had.
    Settle(Arc<Token>, Stamp),
    Deregister(#[expect(dead_code, reason = "held to be dropped")] Foreign),
    Leave(Entry),
    Drop(#[expect(dead_code, reason = "held to be dropped")] Arc<Token>),
}

impl Work {
    #[inline]
    pub(super) fn new() -> Work {
        let is_told = trace::listens() || registry::is_installed();
        Work { waker: None, wakers: Vec::new(), chores: Vec::new(), is_told }
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

    #[inline]
    pub(super) fn report(&mut self, token: &Token, ending: &Ending) {
        if self.is_told && ending.is_reported() {
            self.chores.push(Chore::Report(Box::new((token.error(), token.born_at()))));
        }
    }

    /// Leaves a handle to be dropped, if that may run foreign code.
    #[inline]
    pub(super) fn keep(&mut self, token: Arc<Token>) {
        if token.has(KEPT | CAUSED | MERGED) {
            self.chores.push(Chore::Drop(token));
        }
    }

    /// Does it, also if some of it panics: that is a matter of what panicked, and of the panic hook.
    #[inline]
    pub(super) fn finish(&mut self) {
        loop {
            if let Some(waker) = self.waker.take() {
                shielded(|| waker.wake());
            }
            if self.wakers.is_empty() && self.chores.is_empty() {
                break;
            }
            // It may leave more to be done.
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        for waker in mem::take(&mut self.wakers) {
            shielded(|| waker.wake());
        }
        for chore in mem::take(&mut self.chores) {
            shielded(|| match chore {
                Chore::Cancel(outer) => outer.cancel(),
                Chore::Report(end) => {
                    trace::ended(&end.0, end.1);
                    #[cfg(feature = "watch")]
                    registry::ended(&end.0, end.1);
                }
                Chore::Settle(token, at) => {
                    token.close_path(at, self);
                    self.keep(token);
                }
                Chore::Leave(entry) => leave([entry]),
                Chore::Deregister(_) | Chore::Drop(_) => {}
            });
        }
    }
}
