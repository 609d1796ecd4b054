//! Linking a token to its parents, closing it with all that is linked below, and taking chains apart.

use std::sync::Arc;
use std::task::Waker;
use std::{iter, mem};

use super::deadline::{Entry, leave};
use super::end::Ending;
use super::members::{Children, Inner, Seat};
use super::sync::{MutexGuard, Ordering, RuntimeId, yield_now};
use super::work::{Chore, Work};
use super::{CLOSING, DISTURBED, ENDED, EXPIRED, KEPT, MERGED, OCCUPIED, Stamp, Token};
use crate::error::Error;
use crate::trace::shielded;

// Linking.
impl Token {
    /// Enters the list of its parent, and that one its own parent's; false if an ancestor has ended.
    #[inline]
    pub(crate) fn link(self: &Arc<Self>) -> bool {
        match &self.parent {
            _ if self.is_linked() => true,
            Some(parent) if parent.is_linked() => parent.admit(self),
            _ => self.link_path(),
        }
    }

    /// Links the path from the top down, so that an end above reaches each token from the moment it is linked.
    #[cold]
    fn link_path(self: &Arc<Self>) -> bool {
        let path: Vec<_> = self.ancestors().take_while(|token| !token.is_linked()).collect();
        // The top of the path has a parent, as a root is linked.
        path.into_iter()
            .rev()
            .all(|token| token.parent.as_ref().is_none_or(|parent| parent.admit(token)))
    }

    /// This token, its parent, and so on; of a merged token's parents the first.
    #[inline]
    pub(super) fn ancestors(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Token>> {
        iter::successors(Some(self), |token| token.parent.as_ref())
    }

    #[cold]
    pub(super) fn link_parent(&self) {
        let _linked = self.parent.as_ref().is_none_or(Token::link);
    }

    /// Takes a child in; false if this token has ended.
    fn admit(&self, child: &Arc<Token>) -> bool {
        let Some(mut inner) = self.open() else { return false };
        if child.seat.load(Ordering::Relaxed) == 0 {
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
        (!self.note(OCCUPIED)).then_some(inner)
    }

    /// Enters a waiter at `seat`, or has the one there wake `waker` from now on, and keeps `entry`, if that is of
    /// use. Returns whether its deadline, if it has one, is registered with the runtime `here`. `None`: the token
    /// has ended.
    #[inline(always)]
    pub(crate) fn register(
        &self,
        seat: &mut Seat,
        waker: Waker,
        here: Option<RuntimeId>,
        entry: Option<Entry>,
    ) -> Option<bool> {
        let Some(mut inner) = self.open() else {
            leave(entry);
            return None;
        };
        let _replaced = inner.register(seat, waker);
        let spare = entry.and_then(|entry| self.keep(&mut inner, entry));
        let is_timed = !self.has_deadline() || here.is_some_and(|here| inner.is_timed_in(here));
        drop(inner);
        leave(spare);
        Some(is_timed)
    }

    /// Takes a waiter out of the list.
    #[inline]
    pub(crate) fn leave(&self, seat: Seat) {
        if seat != Seat::default() && !self.ended() {
            let mut inner = self.inner.lock();
            let waker = inner.remove_waiter(seat);
            if inner.bucket.is_some() {
                let entry = self.idle_entry(&mut inner);
                drop(inner);
                leave(entry);
            } else {
                drop(inner);
            }
            drop(waker);
        }
    }

    /// Takes a child out of the list.
    #[inline]
    fn dismiss(&self, seat: Seat) {
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
    #[inline]
    pub(super) fn close_all(
        self: &Arc<Self>,
        ending: &mut Ending,
        error: Option<Box<Error>>,
        work: &mut Work,
    ) -> bool {
        let closed = self.close(ending, error, work);
        if let Closed::Above(children) = closed {
            Layer { token: self.clone(), children, bound: ending.bound }.close_below(work);
            return true;
        }
        matches!(closed, Closed::Alone)
    }

    /// Ends one that has no more than a waiter, and returns that: it leaves nothing else to be done.
    #[inline]
    pub(super) fn close_simple(&self, ending: &mut Ending) -> Option<Option<Waker>> {
        let mut inner = self.has(OCCUPIED).then(|| self.inner.lock());
        let state = self.state.load(Ordering::Acquire);
        let is_simple = inner.as_ref().map_or(state & OCCUPIED == 0, |inner| inner.is_simple());
        let closed = is_simple && state & ENDED == 0 && self.publish(state, ending, 0).is_ok();
        closed.then(|| inner.as_mut()?.waiter.take())
    }

    /// Closes this token alone.
    #[inline]
    fn close(&self, ending: &mut Ending, error: Option<Box<Error>>, work: &mut Work) -> Closed {
        let state = self.state.load(Ordering::Acquire);
        if state & ENDED != 0 {
            return Closed::Before;
        }
        // One that nothing waits on takes no lock.
        let closed =
            match state & OCCUPIED == 0 && error.is_none() && self.publish(state, ending, 0).is_ok() {
                true => Closed::Alone,
                false => self.close_locked(ending, error, work),
            };
        work.report(self, ending);
        closed
    }

    #[inline]
    fn close_locked(
        &self,
        ending: &mut Ending,
        mut error: Option<Box<Error>>,
        work: &mut Work,
    ) -> Closed {
        let Some(mut inner) = self.open() else { return Closed::Before };
        let entry = Token::take_entry(&self.word, &mut inner);
        let children = inner.empty(work);
        if let (EXPIRED, Some(more)) = (ending.kind, &mut inner.more) {
            let expiry = more.expiry.take();
            error = expiry.map(|cause| Box::new(Error::with_cause(self.expiry_origin(), Some(cause))));
        }
        let mut bits = 0;
        if error.is_some() {
            bits |= KEPT;
            inner.more().error = error;
        }
        if children.is_some() {
            bits |= CLOSING;
        }
        // One that is occupied ends under the lock only: what may change is `TIMED`.
        let mut state = self.state.load(Ordering::Acquire);
        while let Err(now) = self.publish(state, ending, bits) {
            state = now;
        }
        drop(inner);
        leave(entry);
        children.map_or(Closed::Alone, Closed::Above)
    }

    /// Sets the state of one that ends, once what tells of the end is stored; of two ends at once, either's is
    /// right. Else returns the state by now.
    #[inline(always)]
    fn publish(&self, state: u16, ending: &mut Ending, bits: u16) -> Result<u16, u16> {
        if ending.is_cancel() {
            if let Some(caller) = ending.caller {
                let _first = self.canceled_at.set(caller);
            }
            self.prepare_date(state, ending);
        }
        let bits = bits | ending.bits();
        self.state.compare_exchange(state, state | bits, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Waits until all its linked descendants have been closed, if another thread is about it. No foreign code
    /// runs there, and what waits does so for a token further down than all that it holds up: no circle, and
    /// not for long.
    #[inline]
    pub(super) fn wait_until_closed(&self) {
        while self.has(CLOSING) {
            yield_now();
        }
    }

    /// Wakes all that wait on this very token, to look again.
    #[cold]
    pub(super) fn rouse(&self) {
        let Some(mut inner) = self.open() else { return };
        self.note(DISTURBED);
        let wakers = inner.take_wakers();
        drop(inner);
        for waker in wakers {
            shielded(|| waker.wake());
        }
    }
}

/// What closing a token came to.
enum Closed {
    /// It had ended before.
    Before,
    Alone,
    /// It has children that are to be closed, and is `CLOSING`.
    Above(Children),
}

/// A token that has been closed, and is `CLOSING` until its children are.
struct Layer {
    token: Arc<Token>,
    children: Children,
    bound: Stamp,
}

impl Layer {
    /// Closes all children, depth first, with a stack of its own.
    fn close_below(self, work: &mut Work) {
        let (mut layer, mut above) = (self, Vec::new());
        loop {
            match layer.children.next() {
                Some(child) => {
                    let Some(child) = child.upgrade() else { continue };
                    if let Some(below) = layer.close_child(child, work) {
                        above.push(mem::replace(&mut layer, below));
                    }
                }
                None => {
                    layer.token.state.fetch_and(!CLOSING, Ordering::AcqRel);
                    work.keep(layer.token);
                    let Some(next) = above.pop() else { break };
                    layer = next;
                }
            }
        }
    }

    /// Closes a child; the layer below, if that has children that are to be closed.
    #[inline]
    fn close_child(&self, child: Arc<Token>, work: &mut Work) -> Option<Layer> {
        if child.ended_before(self.bound) {
            work.chores.push(Chore::Settle(child, Stamp(self.bound.0 - 1)));
            return None;
        }
        let mut ending = child.ending_below(self.bound);
        let error = child.error_below(&self.token, &ending);
        match child.close(&mut ending, error, work) {
            Closed::Above(children) => {
                return Some(Layer { token: child, children, bound: ending.bound });
            }
            Closed::Before => child.wait_until_closed(),
            Closed::Alone => {}
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
        if self.state.load(Ordering::Relaxed) & OCCUPIED != 0 {
            let inner = self.inner.get_mut();
            leave(Token::take_entry(&self.word, inner));
            let more = inner.more.as_mut().map(|more| mem::take(&mut more.entries));
            leave(more.into_iter().flatten());
        }
        let second = self.leave_second();
        let parent = self.leave_parent().and_then(Arc::into_inner);
        if parent.is_some() || second.is_some() {
            take_apart(parent, Vec::from_iter(second));
        }
    }
}

/// Takes the last handles' tokens apart, `next` first.
#[cold]
fn take_apart(mut next: Option<Token>, mut pending: Vec<Arc<Token>>) {
    loop {
        // Before the token goes: its cause's drop may panic, and the rest must go all the same.
        while let Some(mut token) = next.take() {
            pending.extend(token.leave_second());
            next = token.leave_parent().and_then(Arc::into_inner);
        }
        let Some(other) = pending.pop() else { break };
        next = Arc::into_inner(other);
    }
}

impl Token {
    #[inline]
    fn leave_parent(&mut self) -> Option<Arc<Token>> {
        let parent = self.parent.take()?;
        parent.dismiss(Seat(self.seat.load(Ordering::Relaxed)));
        Some(parent)
    }

    /// Leaves a merged token's other parent.
    #[inline]
    fn leave_second(&mut self) -> Option<Arc<Token>> {
        if self.state.load(Ordering::Relaxed) & MERGED == 0 {
            return None;
        }
        let (second, seat) = self.inner.get_mut().more.as_mut()?.second.take()?;
        second.dismiss(seat);
        Some(second)
    }
}

#[cfg(all(test, tokio_ctx_loom))]
impl Token {
    /// What is registered here: for the models' last look.
    pub(crate) fn census(&self) -> usize {
        if self.ended() { 0 } else { self.inner.lock().census() }
    }
}
