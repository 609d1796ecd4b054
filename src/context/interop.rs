//! [`CancellationToken`]s: one that is canceled when a token of the tree ends, and one that ends a token.
//!
//! A foreign token is registered with, by a waker that holds the token of the tree weakly: no task, and no question on
//! each look. tokio-util calls it outside of its locks, before its `cancel` returns.

use std::any::Any;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use tokio::task::coop::{Unconstrained, unconstrained};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::error::How;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::token::{Attachment, Token};

/// The registration with a foreign token, until the token of the tree ends.
struct Registration(Mutex<Option<Pin<Box<Unconstrained<WaitForCancellationFutureOwned>>>>>);

impl Attachment for Registration {
    fn ended(&self) {
        let wait = self.0.lock().take();
        drop(wait);
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct Link {
    token: Weak<Token>,
    foreign: CancellationToken,
}

impl Wake for Link {
    fn wake(self: Arc<Self>) {
        if self.foreign.is_cancelled() {
            if let Some(token) = self.token.upgrade() {
                token.end(How::Token, None, None);
            }
        }
    }
}

impl Token {
    /// Makes a child that also ends when `foreign` is canceled. It is linked from birth.
    pub(super) fn with_foreign(
        parent: Option<&Arc<Token>>,
        foreign: &CancellationToken,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let token = Token::new(parent, None, made_at);
        if !token.link() {
            token.is_done();
            return token;
        }
        let link = Link { token: Arc::downgrade(&token), foreign: foreign.clone() };
        let mut wait = Box::pin(unconstrained(foreign.clone().cancelled_owned()));
        if wait.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(link)))).is_ready() {
            token.end(How::Token, None, None);
            return token;
        }
        let registration = Arc::new(Registration(Mutex::new(Some(wait))));
        let has_ended = token.attachments(|attachments, has_ended| {
            attachments.push(registration.clone());
            has_ended
        });
        if has_ended {
            registration.ended();
        }
        token
    }
}

/// A `CancellationToken` that is canceled when a token of the tree ends.
///
/// It is a child of the parent's, so that when a context goes without having ended, tokio-util's own
/// tree hands what was derived from it to the parent's, and forgets what has no handle.
pub(super) struct Bridge {
    pub(super) outer: CancellationToken,
    /// Whether a task waits for the deadline, which otherwise passes unseen.
    is_watched: AtomicBool,
}

impl Bridge {
    /// For the task that is to wait for the deadline of a bridged token, if there is none yet.
    pub(super) fn watch(self: &Arc<Self>) -> Option<Watch> {
        let is_watched = self.is_watched.swap(true, Ordering::AcqRel);
        (!is_watched).then(|| Watch(self.clone()))
    }
}

impl Attachment for Bridge {
    fn ended(&self) {
        self.outer.cancel();
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// What a bridge's watching task holds, so that another takes its place if it goes with its runtime.
pub(super) struct Watch(Arc<Bridge>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.is_watched.store(false, Ordering::Release);
    }
}

impl Token {
    /// What is canceled when this token ends; none if it has.
    pub(super) fn bridge(self: &Arc<Self>) -> Option<Arc<Bridge>> {
        if !self.link() {
            return None;
        }
        let mut unbridged = vec![self];
        let mut above = None;
        while let Some(parent) = unbridged[unbridged.len() - 1].parent() {
            above = parent.keep_bridge(None)?;
            if above.is_some() {
                break;
            }
            unbridged.push(parent);
        }
        for token in unbridged.into_iter().rev() {
            let outer = above.map_or_else(CancellationToken::new, |above| above.outer.child_token());
            above = token.keep_bridge(Some(outer))?;
        }
        above
    }

    /// The bridge that is there, or one with `outer` if there is none; nothing at all if the token has ended.
    fn keep_bridge(&self, outer: Option<CancellationToken>) -> Option<Option<Arc<Bridge>>> {
        let fresh = outer.map(|outer| Arc::new(Bridge { outer, is_watched: AtomicBool::new(false) }));
        let kept = self.attachments(|attachments, has_ended| {
            let bridge =
                |attachment: &Arc<dyn Attachment>| attachment.clone().into_any().downcast().ok();
            match attachments.iter().find_map(bridge) {
                _ if has_ended => None,
                Some(present) => Some(Some(present)),
                None => {
                    attachments.extend(fresh.clone().map(|fresh| fresh as Arc<dyn Attachment>));
                    Some(fresh.clone())
                }
            }
        });
        if fresh.is_some() {
            self.set_observed();
        }
        kept
    }
}
