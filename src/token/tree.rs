//! Linking a token to its parents, registering waiters, closing a subtree, and dropping chains without recursion.

use std::sync::Arc;
use std::task::Waker;
use std::{iter, mem};

use super::deadline::Entry;
use super::end::{Ending, UNDATED};
use super::members::{Children, Inner};
use super::{
    CLOSING, DATED, DEADLINE_BELOW, ENDED, EXPIRED, HAS_CAUSE, HAS_ERROR, INHERITED, MERGED, OCCUPIED,
    Token, WAKERS_TAKEN,
};
use crate::pages::Key;
use crate::stamp::Stamp;
use crate::sync::{MutexGuard, Ordering, RuntimeId, yield_now};
use crate::trace;
use crate::work::Work;

// Linking.
impl Token {
    /// Links the token and its ancestors. Returns false if one of them has ended. Then this token has ended as well, and
    /// will never be linked.
    #[inline]
    pub(crate) fn link(self: &Arc<Self>) -> bool {
        match self.parent() {
            _ if self.is_linked() => true,
            Some(parent) if parent.is_linked() => parent.insert_child(self),
            _ => self.link_path(),
        }
    }

    /// Links the path from the top down, so that from the moment a token is linked, the end of any ancestor reaches it.
    #[cold]
    fn link_path(self: &Arc<Self>) -> bool {
        let ancestors = iter::successors(Some(self), |token| token.parent());
        let path: Vec<_> = ancestors.take_while(|token| !token.is_linked()).collect();
        // The top of the path has a parent, because a root counts as linked.
        path.into_iter()
            .rev()
            .all(|token| token.parent().is_none_or(|parent| parent.insert_child(token)))
    }

    /// Inserts a child into the list. Returns false if this token has ended and the child is not in the list.
    ///
    /// If another thread inserted the child before the end, it is linked, and may not have been closed yet. Only without it in
    /// the list, nothing below it is linked, and a query below finds this end.
    fn insert_child(&self, child: &Arc<Token>) -> bool {
        let Some(mut inner) = self.lock_unless_ended() else { return child.is_linked() };
        debug_assert!(self.is_linked(), "linked from the top down");
        if !child.is_linked() {
            let key = inner.insert_child(Arc::downgrade(child));
            child.key.store(key.0, Ordering::Release);
        }
        true
    }

    /// Links a merged token to both parents, unless one of them has ended. It counts as linked only when it is in both lists.
    pub(super) fn link_both(self: &Arc<Self>, other: &Arc<Token>) {
        if !other.link() {
            return;
        }
        let Some(mut inner) = other.lock_unless_ended() else { return };
        let key = inner.insert_child(Arc::downgrade(self));
        drop(inner);
        if let Some((_, place)) = &mut self.inner.lock().more().second {
            *place = key;
        }
        self.link();
    }

    /// Locks the lists for an insertion. Returns `None` if the token has ended.
    #[inline]
    pub(super) fn lock_unless_ended(&self) -> Option<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock();
        (!self.set(OCCUPIED)).then_some(inner)
    }

    /// Registers a waker, in place of the one at `key` if there is one. Stores `entry`, if the deadline is not registered
    /// in its runtime yet.
    ///
    /// Returns whether the deadline, if there is one, is registered in the runtime `here`, or `None` if the token has
    /// ended.
    #[inline(always)]
    pub(crate) fn register(
        &self,
        key: &mut Key,
        waker: Waker,
        here: Option<RuntimeId>,
        mut entry: Option<Entry>,
    ) -> Option<bool> {
        let mut inner = self.lock_unless_ended()?;
        debug_assert!(self.is_linked(), "the end of an ancestor would not reach the waiter");
        let Inner { waiter, more, .. } = &mut *inner;
        let _replaced =
            key.insert_or_replace(waiter, || &mut more.get_or_insert_default().waiters, waker);
        self.store_entry(&mut inner, &mut entry);
        let is_timed = !self.has_deadline() || here.is_some_and(|here| inner.is_timed_in(here));
        drop(inner);
        Some(is_timed)
    }

    /// Deregisters a waker.
    #[inline]
    pub(crate) fn deregister(&self, key: Key) {
        if key != Key::default() && !self.ended() {
            let mut inner = self.inner.lock();
            let _waker = inner.remove_waiter(key);
            let _entries = self.take_entries_if_idle(&mut inner);
            drop(inner);
        }
    }

    /// Removes a child from the list.
    fn remove_child(&self, key: Key) {
        if key != Key::default() && !self.ended() {
            self.inner.lock().remove_child(key);
        }
    }

    /// Returns whether the token has not ended, and no waker has been removed by anything but its own wait.
    #[inline]
    pub(crate) fn is_registration_valid(&self) -> bool {
        !self.has(ENDED | WAKERS_TAKEN)
    }
}

// Closing.
impl Token {
    /// Closes the token and all linked descendants. Returns false if it had ended.
    pub(super) fn close_all(self: &Arc<Self>, ending: &mut Ending, work: &mut Work) -> bool {
        let Some(children) = self.close(ending, work) else { return false };
        if !children.is_empty() {
            Closing { token: self.clone(), children, next: 0, bound: ending.bound }.close_below(work);
        }
        true
    }

    /// Closes this token alone, and returns the children that have to be closed next. If there are any, it is `CLOSING`.
    /// Returns `None` if it had ended.
    #[inline]
    fn close(&self, ending: &mut Ending, work: &mut Work) -> Option<Children> {
        let state = self.state();
        if state & ENDED != 0 {
            return None;
        }
        // Without waiters and children, no lock is needed.
        let is_alone = state & OCCUPIED == 0 && ending.error.is_none();
        let children = match is_alone && self.publish(state, ending, 0).is_ok() {
            true => Children::default(),
            false => self.close_locked(ending, work)?,
        };
        self.report(ending, work);
        Some(children)
    }

    #[inline]
    fn close_locked(&self, ending: &mut Ending, work: &mut Work) -> Option<Children> {
        let mut inner = self.lock_unless_ended()?;
        let _entries = Token::take_entries(&self.key_or_end, &mut inner);
        let children = inner.empty(work);
        let mut bits = if children.is_empty() { 0 } else { CLOSING };
        if let Some(error) = ending.error.take() {
            bits |= HAS_ERROR;
            inner.more().error = Some(error);
        }
        // Other threads cannot end an occupied token without the lock, but they can set `DEADLINE_BELOW`.
        let mut state = self.state();
        while let Err(now) = self.publish(state, ending, bits) {
            state = now;
        }
        drop(inner);
        Some(children)
    }

    /// Stores the line and the time of the end, then sets `ENDED`. Returns the present state as the error if the state
    /// has changed. If two threads end a token at once, the line of either may be stored, and the time if it is not occupied.
    #[inline(always)]
    pub(super) fn publish(&self, state: u16, ending: &mut Ending, bits: u16) -> Result<u16, u16> {
        if !matches!(ending.kind, INHERITED | EXPIRED) {
            if let Some(caller) = ending.caller {
                let _first = self.canceled_at.set(caller);
            }
            if state & DEADLINE_BELOW != 0 && ending.bound == UNDATED {
                ending.bound = Stamp(Stamp::now().0 + 1);
            }
            if ending.bound != UNDATED {
                let at = Stamp(ending.bound.0 - 1);
                match state & OCCUPIED {
                    0 => _ = self.set_date(at),
                    // Under the lock. Replaces the time of a thread that found the token not occupied and was too late,
                    // because the children are compared with this one.
                    _ => self.key_or_end.store(at.0, Ordering::Relaxed),
                }
            }
        }
        let dated = if ending.bound == UNDATED { 0 } else { DATED };
        let ended = state | ENDED | ending.kind | dated | bits;
        self.state.compare_exchange(state, ended, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Reports the end, except that of a dropped scope, and of a token that ends with its parent.
    #[inline]
    fn report(&self, ending: &Ending, work: &mut Work) {
        if !matches!(ending.kind, 0 | INHERITED) && trace::reports_ends() {
            let (error, created_at) = (self.error(), self.created_at());
            work.defer(move |_| {
                trace::ended(&error, created_at);
                #[cfg(feature = "watch")]
                crate::registry::ended(&error, created_at);
            });
        }
    }

    /// Defers the drop of this handle, if it can run foreign code.
    #[inline]
    fn drop_later(self: Arc<Self>, work: &mut Work) {
        if self.has(HAS_ERROR | HAS_CAUSE | MERGED) {
            work.defer(move |_| drop(self));
        }
    }

    /// Waits until all linked descendants are closed, if another thread is closing them.
    ///
    /// The wait is short, because that thread runs no foreign code. It cannot deadlock, because a thread that is closing a
    /// subtree waits only for tokens further down.
    pub(crate) fn wait_until_closed(&self) {
        while self.has(CLOSING) {
            yield_now();
        }
    }
}

/// A token that is `CLOSING`, and the children that have to be closed.
struct Closing {
    token: Arc<Token>,
    children: Children,
    /// The key of the next child. Not in `children`, which two registers return.
    next: u32,
    bound: Stamp,
}

impl Closing {
    /// Closes all descendants, depth first, with a stack on the heap.
    fn close_below(mut self, work: &mut Work) {
        let mut above = Vec::new();
        loop {
            while let Some(child) = self.children.take_next(&mut self.next) {
                let below = child.upgrade().and_then(|child| self.close_child(child, work));
                if let Some(below) = below {
                    above.push(mem::replace(&mut self, below));
                }
            }
            self.token.state.fetch_and(!CLOSING, Ordering::AcqRel);
            self.token.drop_later(work);
            let Some(next) = above.pop() else { break };
            self = next;
        }
    }

    /// Closes a child, and returns it if it has children that have to be closed.
    fn close_child(&self, child: Arc<Token>, work: &mut Work) -> Option<Closing> {
        if child.has(MERGED) && child.deadline < self.bound {
            // The deadline of the other parent was earlier.
            work.defer(move |work| {
                child.close_path(child.deadline, work);
                child.drop_later(work);
            });
            return None;
        }
        let mut ending = child.ending_below(&self.token, self.bound);
        match child.close(&mut ending, work) {
            None => child.wait_until_closed(),
            Some(children) if children.is_empty() => {}
            Some(children) => {
                return Some(Closing { token: child, children, next: 0, bound: ending.bound });
            }
        }
        child.drop_later(work);
        None
    }
}

/// Removes the token from the lists of its parents and from its bucket. A chain of ancestors that is dropped with it is
/// dropped one by one, so that a long chain does not overflow the stack.
impl Drop for Token {
    #[inline]
    fn drop(&mut self) {
        let (parent, second) = self.leave_lists();
        let parent = parent.and_then(Arc::into_inner);
        if parent.is_some() || second.is_some() {
            take_apart(parent, second);
        }
    }
}

/// Drops `next` and all ancestors of which this was the last handle.
#[cold]
fn take_apart(mut next: Option<Token>, second: Option<Arc<Token>>) {
    let mut pending = Vec::from_iter(second);
    loop {
        // The parents are taken out before the token is dropped. The drop of its cause may panic, and its ancestors must
        // be dropped in this case as well.
        while let Some(mut token) = next.take() {
            let (parent, second) = token.leave_lists();
            pending.extend(second);
            next = parent.and_then(Arc::into_inner);
        }
        let Some(other) = pending.pop() else { break };
        next = Arc::into_inner(other);
    }
}

impl Token {
    /// Removes the token from its bucket and from the lists of its parents, and returns these.
    #[inline(always)]
    fn leave_lists(&mut self) -> (Option<Arc<Token>>, Option<Arc<Token>>) {
        let mut second = None;
        if self.state.load(Ordering::Relaxed) & OCCUPIED != 0 {
            let inner = self.inner.get_mut();
            let _entries = Token::take_entries(&self.key_or_end, inner);
            second = inner.more.as_mut().and_then(|more| more.second.take());
        }
        let leave = |(parent, key): (Arc<Token>, Key)| {
            parent.remove_child(key);
            parent
        };
        let key = Key(self.key.load(Ordering::Relaxed));
        (self.parent.take().map(|parent| leave((parent, key))), second.map(leave))
    }
}
