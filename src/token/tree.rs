//! Linking a token to its parents, closing it with all that is linked below, and taking chains apart.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use super::deadline::{Bucket, Entry};
use super::end::{End, Ending};
use super::members::{Inner, Member, Members, Seat};
use super::sync::{MutexGuard, Ordering, RuntimeId, yield_now};
use super::work::Work;
use super::{
    CLOSING, DATED, DISTURBED, ENDED, EXPIRED, INHERITED, KEPT, MERGED, OCCUPIED, Stamp, TIMED, Token,
};
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
        let mut path = vec![self];
        while let Some(parent) =
            path[path.len() - 1].parent.as_ref().filter(|parent| !parent.is_linked())
        {
            path.push(parent);
        }
        path.into_iter().rev().all(|token| {
            // The top of the path has a parent, as a root is linked.
            token.parent.as_ref().is_none_or(|parent| parent.admit(token))
        })
    }

    #[cold]
    pub(super) fn link_parent(&self) {
        let _linked = self.parent.as_ref().is_none_or(Token::link);
    }

    /// Takes a child in; false if this token has ended.
    fn admit(&self, child: &Arc<Token>) -> bool {
        let Some(mut inner) = self.open() else { return false };
        if child.seat.load(Ordering::Relaxed) == 0 {
            let seat = inner.insert(Member::Child(Arc::downgrade(child)));
            child.seat.store(seat.0, Ordering::Release);
        }
        true
    }

    /// Enters a merged token in both lists, or returns the parent that has ended.
    pub(super) fn link_both<'a>(
        self: &Arc<Self>,
        parent: &'a Arc<Token>,
        other: &'a Arc<Token>,
    ) -> Result<(), &'a Arc<Token>> {
        if !other.link() {
            return Err(other);
        }
        let seat = match other.open() {
            Some(mut inner) => inner.insert(Member::Child(Arc::downgrade(self))),
            None => return Err(other),
        };
        if let Some(second) = &mut self.inner.lock().more().second {
            second.1 = seat;
        }
        // Linked only now that it is in both lists.
        if parent.link() && parent.admit(self) { Ok(()) } else { Err(parent) }
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
    #[inline]
    pub(crate) fn register(
        &self,
        seat: &mut Seat,
        waker: Waker,
        here: Option<RuntimeId>,
        mut entry: Option<Entry>,
    ) -> Option<bool> {
        let is_timed = self.open().map(|mut inner| {
            let replaced = inner.register(seat, waker);
            entry = entry.take().and_then(|entry| self.keep(&mut inner, entry));
            let is_timed = !self.has_deadline() || here.is_some_and(|here| inner.is_timed_in(here));
            drop(inner);
            drop(replaced);
            is_timed
        });
        Bucket::leave_all(entry.as_slice());
        is_timed
    }

    /// Takes a waiter, or a child, out of the list.
    #[inline]
    pub(crate) fn leave(&self, seat: Seat) {
        if seat != Seat::default() && !self.ended() {
            let mut inner = self.inner.lock();
            let member = inner.remove(seat);
            let entry = self.idle_entry(&mut inner);
            drop(inner);
            drop(member);
            if let Some((bucket, key)) = entry {
                bucket.leave(key);
            }
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
    pub(super) fn close_all(&self, mut ending: Ending, work: &mut Work) -> bool {
        let Some(members) = self.close(&mut ending, work) else { return false };
        work.report(self, &ending);
        if members.have_children() {
            self.close_below(members, ending.end(), work);
            self.state.fetch_and(!CLOSING, Ordering::AcqRel);
        } else {
            work.wake(members);
        }
        true
    }

    /// Closes descendants depth first, with a stack of its own: what is `CLOSING` are the ancestors of the one
    /// that is being closed.
    fn close_below(&self, members: Members, end: End, work: &mut Work) {
        let mut layers = vec![Layer { token: None, members, end }];
        while let Some(layer) = layers.last_mut() {
            let child = match layer.members.next() {
                Some(Member::Child(child)) => child.upgrade(),
                Some(Member::Waiter(waker)) => {
                    work.wakers.push(waker);
                    continue;
                }
                None => {
                    if let Some(token) = layers.pop().and_then(|layer| layer.token) {
                        token.state.fetch_and(!CLOSING, Ordering::AcqRel);
                        work.keep(token);
                    }
                    continue;
                }
            };
            let Some(child) = child else { continue };
            let end = layer.end;
            if child.ended_before(end) {
                work.forked.extend(end.at.map(|at| (child, at)));
                continue;
            }
            if child.close_waiter(end, work) {
                continue;
            }
            let parent = layer.token.as_deref().unwrap_or(self);
            let mut ending = child.ending_below(parent, end);
            match child.close(&mut ending, work) {
                Some(members) => {
                    work.report(&child, &ending);
                    if members.have_children() {
                        layers.push(Layer { token: Some(child), members, end: ending.end() });
                    } else {
                        work.wake(members);
                        work.keep(child);
                    }
                }
                None => {
                    child.wait_until_closed();
                    work.keep(child);
                }
            }
        }
    }

    /// Closes a token with one waiter and nothing else, which ends with its parent: the usual child of a wide one.
    #[inline]
    fn close_waiter(&self, end: End, work: &mut Work) -> bool {
        if !self.inherits_plainly(end) {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(waker) = inner.take_only_waker() else { return false };
        if let Some(entry) = self.take_entry(&mut inner) {
            work.entries.push(entry);
        }
        let dated = if end.at.is_some() { DATED } else { 0 };
        // With a waiter in the list it has not ended, and ends under the lock only.
        self.state.fetch_or(ENDED | INHERITED | dated, Ordering::AcqRel);
        drop(inner);
        work.wakers.push(waker);
        true
    }

    /// Closes this token alone, and returns its members; none if it had ended.
    #[inline]
    fn close(&self, ending: &mut Ending, work: &mut Work) -> Option<Members> {
        if self.close_unseen(ending) {
            return Some(Members::default());
        }
        if self.ended() { None } else { self.close_locked(ending, work) }
    }

    /// Ends one that nothing waits on: it takes no lock.
    #[inline]
    pub(super) fn close_unseen(&self, ending: &mut Ending) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & (OCCUPIED | ENDED) != 0 || ending.error.is_some() {
            return false;
        }
        self.prepare(ending, state);
        self.swap_state(state, state | ending.bits()).is_ok()
    }

    /// [`close_unseen`](Self::close_unseen) for one whose list is empty again.
    pub(super) fn close_deserted(&self, ending: &mut Ending) -> bool {
        let inner = self.inner.lock();
        let state = self.state.load(Ordering::Acquire);
        if state & ENDED != 0 || ending.error.is_some() || !inner.is_deserted() {
            return false;
        }
        self.prepare(ending, state);
        self.swap_state(state, state | ending.bits()).is_ok()
    }

    fn close_locked(&self, ending: &mut Ending, work: &mut Work) -> Option<Members> {
        let mut inner = self.inner.lock();
        let mut state = self.state.load(Ordering::Acquire);
        if state & ENDED != 0 {
            return None;
        }
        work.entries.extend(self.take_entry(&mut inner));
        let mut bits = 0;
        if let Some(more) = inner.more.as_deref_mut() {
            work.entries.append(&mut more.entries);
            work.bridges.extend(more.bridge.take());
            work.foreign.extend(more.foreign.take());
            if ending.kind == EXPIRED {
                let expiry = more.expiry.take();
                ending.error = expiry.map(|cause| Error::with_cause(self.expiry_origin(), Some(cause)));
            }
        }
        if let Some(error) = ending.error.take() {
            inner.more().error = Some(error);
            bits |= KEPT;
        }
        let members = inner.take_members();
        if members.have_children() {
            bits |= CLOSING;
        }
        loop {
            self.prepare(ending, state);
            match self.swap_state(state, state | bits | ending.bits()) {
                Ok(_) => return Some(members),
                Err(now) if now & ENDED != 0 => return None,
                Err(now) => state = now,
            }
        }
    }
}

impl Token {
    /// Sets the state; else returns what it is by now.
    #[inline]
    fn swap_state(&self, from: u16, to: u16) -> Result<u16, u16> {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Notes when and where it is about to end, before it is published. Of two ends at once, either's are right.
    #[inline]
    fn prepare(&self, ending: &mut Ending, state: u16) {
        if ending.kind == INHERITED {
            return;
        }
        if let Some(caller) = ending.caller {
            let _first = self.canceled_at.set(caller);
        }
        if state & TIMED != 0 && ending.at.is_none() {
            ending.at = Some(Stamp::now());
        }
        if let Some(at) = ending.at {
            self.set_date(at);
        }
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

/// A token that has been closed and whose members are to be.
struct Layer {
    /// None: where it all began.
    token: Option<Arc<Token>>,
    members: Members,
    end: End,
}

/// Leaves the lists of its parents and of its timers, and takes a chain of ancestors apart one by one, so that
/// its length never becomes stack depth.
impl Drop for Token {
    #[inline]
    fn drop(&mut self) {
        if self.state.load(Ordering::Relaxed) & OCCUPIED != 0 {
            self.leave_timers();
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
        parent.leave(Seat(self.seat.load(Ordering::Relaxed)));
        Some(parent)
    }

    /// Leaves a merged token's other parent.
    #[inline]
    fn leave_second(&mut self) -> Option<Arc<Token>> {
        if self.state.load(Ordering::Relaxed) & MERGED == 0 {
            return None;
        }
        let (second, seat) = self.inner.get_mut().more.as_mut()?.second.take()?;
        second.leave(seat);
        Some(second)
    }

    fn leave_timers(&mut self) {
        let key = self.word.load(Ordering::Relaxed) - 1;
        let inner = self.inner.get_mut();
        if let Some(bucket) = inner.bucket.take() {
            bucket.leave(key as u32);
        }
        if let Some(more) = &mut inner.more {
            Bucket::leave_all(&mem::take(&mut more.entries));
        }
    }
}

#[cfg(all(test, tokio_ctx_loom))]
impl Token {
    /// What is registered here: for the models' last look.
    pub(crate) fn census(&self) -> usize {
        if self.ended() { 0 } else { self.inner.lock().census() }
    }
}
