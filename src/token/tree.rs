//! Linking a token to its parents, closing it with all that is linked below, and taking chains apart.

use std::sync::Arc;
use std::task::Waker;
use std::{iter, mem};

use super::deadline::Entry;
use super::end::{Ending, UNDATED};
use super::members::{Children, Inner};
use super::work::Work;
use super::{
    CLOSING, DATED, DISTURBED, ENDED, EXPIRED, INHERITED, KEPT, MERGED, OCCUPIED, TIMED, Token,
};
use crate::pages::Seat;
use crate::stamp::Stamp;
use crate::sync::{MutexGuard, Ordering, RuntimeId, yield_now};

// Linking.
impl Token {
    /// Enters the list of its parent, and that one its own parent's; false if an ancestor has ended.
    #[inline]
    pub(crate) fn link(self: &Arc<Self>) -> bool {
        match self.parent() {
            _ if self.is_linked() => true,
            Some(parent) if parent.is_linked() => parent.insert_child(self),
            _ => self.link_path(),
        }
    }

    /// Links the path from the top down, so that an end above reaches each token from the moment it is linked.
    #[cold]
    fn link_path(self: &Arc<Self>) -> bool {
        let ancestors = iter::successors(Some(self), |token| token.parent());
        let path: Vec<_> = ancestors.take_while(|token| !token.is_linked()).collect();
        // The top of the path has a parent, as a root is linked.
        path.into_iter()
            .rev()
            .all(|token| token.parent().is_none_or(|parent| parent.insert_child(token)))
    }

    /// Takes a child in; false if this token has ended.
    fn insert_child(&self, child: &Arc<Token>) -> bool {
        let Some(mut inner) = self.open() else { return false };
        if !child.is_linked() {
            let seat = inner.insert_child(Arc::downgrade(child));
            child.seat.store(seat.0, Ordering::Release);
        }
        true
    }

    /// Enters a merged token in both lists, unless either parent has ended. It is linked only when it is in both.
    pub(super) fn link_both(self: &Arc<Self>, other: &Arc<Token>) {
        if !other.link() {
            return;
        }
        let Some(mut inner) = other.open() else { return };
        let seat = inner.insert_child(Arc::downgrade(self));
        drop(inner);
        if let Some((_, place)) = &mut self.inner.lock().more().second {
            *place = seat;
        }
        self.link();
    }

    /// Locks the list, for what enters it; none if the token has ended.
    #[inline]
    pub(super) fn open(&self) -> Option<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock();
        (!self.set(OCCUPIED)).then_some(inner)
    }

    /// Enters a waiter at `seat`, or has the one there wake `waker` from now on, and stores `entry`, if that is of
    /// use. Returns whether its deadline, if it has one, is registered with the runtime `here`. `None`: the token
    /// has ended.
    #[inline(always)]
    pub(crate) fn register(
        &self,
        seat: &mut Seat,
        waker: Waker,
        here: Option<RuntimeId>,
        mut entry: Option<Entry>,
    ) -> Option<bool> {
        let mut inner = self.open()?;
        let _replaced = inner.register(seat, waker);
        self.store_entry(&mut inner, &mut entry);
        let is_timed = !self.has_deadline() || here.is_some_and(|here| inner.is_timed_in(here));
        drop(inner);
        Some(is_timed)
    }

    /// Takes a waiter out of the list.
    #[inline]
    pub(crate) fn leave(&self, seat: Seat) {
        if seat != Seat::default() && !self.ended() {
            let mut inner = self.inner.lock();
            let _waker = inner.remove_waiter(seat);
            let _entry = self.take_idle_entry(&mut inner);
            drop(inner);
        }
    }

    /// Takes a child out of the list.
    fn remove_child(&self, seat: Seat) {
        if seat != Seat::default() && !self.ended() {
            self.inner.lock().remove_child(seat);
        }
    }

    /// Whether it lives, and no waker has been taken out of its list.
    #[inline]
    pub(crate) fn is_undisturbed(&self) -> bool {
        !self.has(ENDED | DISTURBED)
    }
}

// Closing.
impl Token {
    /// Closes it and all that is linked below it; false if it had ended.
    pub(super) fn close_all(self: &Arc<Self>, ending: &mut Ending, work: &mut Work) -> bool {
        let Some(children) = self.close(ending, work) else { return false };
        if !children.is_empty() {
            Layer { token: self.clone(), children, bound: ending.bound }.close_below(work);
        }
        true
    }

    /// Closes this token alone, and returns the children that are to be closed; it is `CLOSING` if there are any.
    /// `None`: it had ended.
    #[inline]
    fn close(&self, ending: &mut Ending, work: &mut Work) -> Option<Children> {
        let state = self.state();
        if state & ENDED != 0 {
            return None;
        }
        // One that nothing waits on takes no lock.
        let is_alone = state & OCCUPIED == 0 && ending.error.is_none();
        let children = match is_alone && self.publish(state, ending, 0).is_ok() {
            true => Children::default(),
            false => self.close_locked(ending, work)?,
        };
        work.report(self, ending);
        Some(children)
    }

    fn close_locked(&self, ending: &mut Ending, work: &mut Work) -> Option<Children> {
        let mut inner = self.open()?;
        let _entry = Token::take_entry(&self.word, &mut inner);
        let children = inner.empty(work);
        let mut bits = if children.is_empty() { 0 } else { CLOSING };
        if let Some(error) = ending.error.take() {
            bits |= KEPT;
            inner.more().error = Some(error);
        }
        // One that is occupied ends under the lock only: what may change is `TIMED`.
        let mut state = self.state();
        while let Err(now) = self.publish(state, ending, bits) {
            state = now;
        }
        drop(inner);
        Some(children)
    }

    /// Sets the state of one that ends, once what tells of the end is stored; of two ends at once, either's is
    /// right. Else returns the state by now.
    #[inline(always)]
    pub(super) fn publish(&self, state: u16, ending: &mut Ending, bits: u16) -> Result<u16, u16> {
        if !matches!(ending.kind, INHERITED | EXPIRED) {
            if let Some(caller) = ending.caller {
                let _first = self.canceled_at.set(caller);
            }
            if state & TIMED != 0 && ending.bound == UNDATED {
                ending.bound = Stamp(Stamp::now().0 + 1);
            }
            if ending.bound != UNDATED {
                self.set_date(Stamp(ending.bound.0 - 1));
            }
        }
        let dated = if ending.bound == UNDATED { 0 } else { DATED };
        let ended = state | ENDED | ending.kind | dated | bits;
        self.state.compare_exchange(state, ended, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Waits until all its linked descendants have been closed, if another thread is about it. No foreign code
    /// runs there, and what waits does so for a token further down than all that it holds up: no circle, and
    /// not for long.
    pub(super) fn wait_until_closed(&self) {
        while self.has(CLOSING) {
            yield_now();
        }
    }
}

/// A token that has been closed, and is `CLOSING` until its children are.
struct Layer {
    token: Arc<Token>,
    children: Children,
    bound: Stamp,
}

impl Layer {
    /// Closes all children, depth first, with a stack of its own.
    fn close_below(mut self, work: &mut Work) {
        let mut above = Vec::new();
        loop {
            while let Some(child) = self.children.next() {
                let below = child.upgrade().and_then(|child| self.close_child(child, work));
                if let Some(below) = below {
                    above.push(mem::replace(&mut self, below));
                }
            }
            self.token.state.fetch_and(!CLOSING, Ordering::AcqRel);
            work.keep(self.token);
            let Some(next) = above.pop() else { break };
            self = next;
        }
    }

    /// Closes a child; the layer below, if that has children that are to be closed.
    #[inline]
    fn close_child(&self, child: Arc<Token>, work: &mut Work) -> Option<Layer> {
        if child.has(MERGED) && child.deadline < self.bound {
            // It had ended by its other path.
            let at = Stamp(self.bound.0 - 1);
            work.later(move |work| {
                child.close_path(at, work);
                work.keep(child);
            });
            return None;
        }
        let mut ending = child.ending_below(&self.token, self.bound);
        match child.close(&mut ending, work) {
            None => child.wait_until_closed(),
            Some(children) if children.is_empty() => {}
            Some(children) => return Some(Layer { token: child, children, bound: ending.bound }),
        }
        work.keep(child);
        None
    }
}

/// Leaves the lists of its parents and of its timers, and takes a chain of ancestors apart one by one, so that
/// its length never becomes stack depth.
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

/// Takes the last handles' tokens apart, `next` first.
#[cold]
fn take_apart(mut next: Option<Token>, second: Option<Arc<Token>>) {
    let mut pending = Vec::from_iter(second);
    loop {
        // Before the token goes: its cause's drop may panic, and the rest must go all the same.
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
    /// Leaves the timers and the lists of its parents, and returns these.
    #[inline]
    fn leave_lists(&mut self) -> (Option<Arc<Token>>, Option<Arc<Token>>) {
        let mut second = None;
        if self.state.load(Ordering::Relaxed) & OCCUPIED != 0 {
            let inner = self.inner.get_mut();
            let _entry = Token::take_entry(&self.word, inner);
            second = inner.more.as_mut().and_then(|more| more.second.take());
        }
        let leave = |(parent, seat): (Arc<Token>, Seat)| {
            parent.remove_child(seat);
            parent
        };
        let seat = Seat(self.seat.load(Ordering::Relaxed));
        (self.parent.take().map(|parent| leave((parent, seat))), second.map(leave))
    }
}
