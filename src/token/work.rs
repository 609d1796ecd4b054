//! What an end leaves to be done once all that ends with it is closed: nothing of it is the engine's own, so that no
//! lock is held, and no token counts as being closed.

use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::deadline::{Bucket, Entry};
use super::end::Ending;
use super::interop::{Bridge, Foreign};
use super::members::{Member, Members};
use super::{CAUSED, KEPT, MERGED, Stamp, Token};
use crate::error::Error;
use crate::registry;
use crate::trace::{self, shielded};

/// What is left to be done once everything is closed. All of it may run foreign code.
pub(super) struct Work {
    pub(super) wakers: Few<Waker>,
    pub(super) bridges: Vec<Bridge>,
    pub(super) entries: Vec<Entry>,
    pub(super) foreign: Vec<Foreign>,
    /// Merged tokens that had ended by their other path when an end reached them, and when that was.
    pub(super) forked: Vec<(Arc<Token>, Stamp)>,
    /// Tokens whose drop may run foreign code.
    handles: Vec<Arc<Token>>,
    is_told: bool,
    ends: Vec<(Error, Option<Instant>)>,
}

impl Work {
    #[inline]
    pub(super) fn new() -> Work {
        Work {
            wakers: Few { first: None, more: Vec::new() },
            bridges: Vec::new(),
            entries: Vec::new(),
            foreign: Vec::new(),
            forked: Vec::new(),
            handles: Vec::new(),
            is_told: trace::listens() || registry::is_installed(),
            ends: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn report(&mut self, token: &Token, ending: &Ending) {
        if self.is_told && ending.is_reported() {
            self.ends.push((token.error(), token.born_at()));
        }
    }

    #[inline]
    pub(super) fn wake(&mut self, members: Members) {
        if let Some(Member::Waiter(waker)) = members.first {
            self.wakers.push(waker);
        }
    }

    #[inline]
    pub(super) fn keep(&mut self, token: Arc<Token>) {
        if token.has(KEPT | CAUSED | MERGED) {
            self.handles.push(token);
        }
    }

    /// Does it, also if some of it panics: that is a matter of what panicked, and of the panic hook.
    #[inline]
    pub(super) fn finish(mut self) {
        while let Some((token, at)) = self.forked.pop() {
            token.close_path(Some(at), &mut self);
            self.handles.push(token);
        }
        for waker in self.wakers.first.into_iter().chain(self.wakers.more) {
            shielded(|| waker.wake());
        }
        for bridge in self.bridges {
            shielded(|| bridge.cancel());
        }
        Bucket::leave_all(&self.entries);
        for (error, born) in &self.ends {
            trace::ended(error, *born);
            #[cfg(feature = "watch")]
            registry::ended(error, *born);
        }
        if !self.handles.is_empty() || !self.foreign.is_empty() {
            shielded(|| drop((self.handles, self.foreign)));
        }
    }
}

/// Mostly one, which takes no allocation.
pub(super) struct Few<T> {
    first: Option<T>,
    more: Vec<T>,
}

impl<T> Few<T> {
    #[inline]
    pub(super) fn push(&mut self, item: T) {
        match &self.first {
            None => self.first = Some(item),
            Some(_) => self.more.push(item),
        }
    }
}
