//! [`CancellationToken`]s: one that is canceled when a token ends, and one that ends a token.
//!
//! A foreign token is registered with, by a waker that holds the node weakly: no task, and no question on each
//! look. tokio-util calls it outside of its locks, before its `cancel` returns.

use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use tokio::task::coop::{Unconstrained, unconstrained};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::pulse::Beat;
use super::sync::Ordering;
use super::{BRIDGED, Token};

/// What ends a token from outside of the tree: dropped, it does so no more.
pub(super) enum Foreign {
    /// The registration with a foreign token.
    Token(#[expect(dead_code, reason = "held to be dropped")] Registration),
    Pulse(Beat),
}

type Registration = Pin<Box<Unconstrained<WaitForCancellationFutureOwned>>>;

struct Link {
    node: Weak<Token>,
    foreign: CancellationToken,
}

impl Wake for Link {
    fn wake(self: Arc<Self>) {
        if self.foreign.is_cancelled() {
            if let Some(node) = self.node.upgrade() {
                node.end_from_outside();
            }
        }
    }
}

impl Token {
    /// Makes a child that also ends when `foreign` is canceled. It is linked from birth.
    pub(crate) fn with_foreign(
        parent: Option<&Arc<Token>>,
        foreign: &CancellationToken,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let token = Token::new(parent, None, made_at);
        if !token.link() {
            token.is_done();
            return token;
        }
        let link = Link { node: Arc::downgrade(&token), foreign: foreign.clone() };
        let mut wait = Box::pin(unconstrained(foreign.clone().cancelled_owned()));
        if wait.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(link)))).is_ready() {
            token.end_from_outside();
        } else if let Some(mut inner) = token.open() {
            inner.more().foreign = Some(Foreign::Token(wait));
        }
        token
    }
}

/// A `CancellationToken` that is canceled when a token ends.
///
/// It is a child of the parent's, so that when a context goes without having ended, tokio-util's own
/// tree hands what was derived from it to the parent's, and forgets what has no handle.
pub(super) struct Bridge {
    pub(super) outer: Arc<CancellationToken>,
    /// Whether a task waits for the deadline, which otherwise passes unseen.
    watched: bool,
}

/// What a bridge's watching task holds, so that another takes its place if it goes with its runtime.
pub(crate) struct Watch(Arc<Token>);

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        if let Some(bridge) = inner.more.as_mut().and_then(|more| more.bridge.as_mut()) {
            bridge.watched = false;
        }
    }
}

impl Token {
    /// What is canceled when this token ends; none if it has.
    pub(crate) fn bridge(self: &Arc<Self>) -> Option<Arc<CancellationToken>> {
        if !self.link() {
            return None;
        }
        let mut unbridged = vec![self];
        let mut above = None;
        while let Some(parent) = unbridged[unbridged.len() - 1].parent.as_ref() {
            above = parent.keep_bridge(None)?;
            if above.is_some() {
                break;
            }
            unbridged.push(parent);
        }
        for token in unbridged.into_iter().rev() {
            let outer = above.map_or_else(CancellationToken::new, |above| above.child_token());
            above = token.keep_bridge(Some(Arc::new(outer)))?;
        }
        above
    }

    /// The bridge that is there, or `fresh` if there is none; nothing at all if the token has ended.
    fn keep_bridge(
        &self,
        mut fresh: Option<Arc<CancellationToken>>,
    ) -> Option<Option<Arc<CancellationToken>>> {
        // Declared before the lock is taken, what is left of `fresh` is dropped after it.
        let mut inner = self.open()?;
        let present = inner.more.as_ref().and_then(|more| more.bridge.as_ref());
        if let Some(bridge) = present {
            return Some(Some(bridge.outer.clone()));
        }
        let Some(outer) = fresh.take() else { return Some(None) };
        inner.more().bridge = Some(Bridge { outer: outer.clone(), watched: false });
        self.state.fetch_or(BRIDGED, Ordering::AcqRel);
        Some(Some(outer))
    }

    /// For the task that is to wait for the deadline of a bridged token, if there is none yet.
    pub(crate) fn watch(self: &Arc<Self>) -> Option<Watch> {
        let mut inner = self.open()?;
        let bridge = inner.more.as_mut()?.bridge.as_mut()?;
        let watched = std::mem::replace(&mut bridge.watched, true);
        drop(inner);
        (!watched).then(|| Watch(self.clone()))
    }
}
