//! Tokens that end with a [`CancellationToken`], and `CancellationToken`s that are canceled when a token ends.
//!
//! A token of the tree registers a waker with the `CancellationToken` that ends it. The waker holds the token weakly. No
//! task is needed, and queries do not read the `CancellationToken`. tokio-util calls the waker outside of its locks,
//! before its `cancel` returns.
//!
//! A `CancellationToken` is canceled after all tokens that end with its own. One that is canceled from the start must not be
//! earlier: if an ancestor has ended, the linked token below may not have been closed yet, and a query of it would say that
//! it has not ended. So [`Token::bridge`] waits until the ancestor is closed. It cannot deadlock, because its thread closes
//! nothing at that time, like all foreign code that an end calls.

use std::any::Any;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use tokio::task::coop::{Unconstrained, unconstrained};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::error::How;
use crate::sync::{Mutex, RuntimeId};
use crate::token::{Attachment, Token};
use crate::trace::shielded;

/// The registration with a `CancellationToken`, until the token of the tree ends.
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

struct EndToken {
    token: Weak<Token>,
    foreign: CancellationToken,
}

impl Wake for EndToken {
    fn wake(self: Arc<Self>) {
        if self.foreign.is_cancelled() {
            // The handle may become the last one, whose drop can run foreign code.
            shielded(|| self.token.upgrade().map(|token| token.end(How::Token, None, None)));
        }
    }
}

impl Token {
    /// Creates a child that also ends when `foreign` is canceled. It is linked from the start.
    pub(super) fn with_foreign(
        parent: Option<&Arc<Token>>,
        foreign: &CancellationToken,
        made_at: &'static Location<'static>,
    ) -> Arc<Token> {
        let token = Token::new(parent, None, made_at);
        if !token.link() {
            let has_ended = token.is_done();
            debug_assert!(has_ended, "refused, but has not ended");
            return token;
        }
        let waker = EndToken { token: Arc::downgrade(&token), foreign: foreign.clone() };
        let mut wait = Box::pin(unconstrained(foreign.clone().cancelled_owned()));
        if wait.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(waker)))).is_ready() {
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
/// It is a child of the `CancellationToken` of the parent. If a context is dropped without having ended, tokio-util
/// therefore moves the children of its `CancellationToken` to that of the parent.
pub(super) struct Bridge {
    pub(super) outer: CancellationToken,
    /// The runtimes in which a task waits for the end. Without one, nothing would notice that the deadline passes.
    tasks: Mutex<Vec<RuntimeId>>,
}

impl Bridge {
    /// Returns what the task in this runtime that waits for the end has to hold, or `None` if there is such a task. As with
    /// waits, a runtime that stalls or shuts down does not affect the others.
    pub(super) fn claim_task(self: &Arc<Self>, here: RuntimeId) -> Option<HasTask> {
        let mut tasks = self.tasks.lock();
        if tasks.contains(&here) {
            return None;
        }
        tasks.push(here);
        Some(HasTask(self.clone(), here))
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

/// Held by the task that waits for the end, so that another one is spawned if this one is dropped with its runtime.
pub(super) struct HasTask(Arc<Bridge>, RuntimeId);

impl Drop for HasTask {
    fn drop(&mut self) {
        self.0.tasks.lock().retain(|runtime| *runtime != self.1);
    }
}

impl Token {
    /// Returns the `CancellationToken` of this token, or `None` if the token has ended.
    pub(super) fn bridge(self: &Arc<Self>) -> Option<Arc<Bridge>> {
        if !self.link() {
            return None;
        }
        let mut unbridged = vec![self];
        let mut above = None;
        while let Some(parent) = unbridged[unbridged.len() - 1].parent() {
            above = parent.bridge_or_insert(None)?;
            if above.is_some() {
                break;
            }
            unbridged.push(parent);
        }
        for token in unbridged.into_iter().rev() {
            let outer = above.map_or_else(CancellationToken::new, |above| above.outer.child_token());
            above = token.bridge_or_insert(Some(outer))?;
        }
        above
    }

    /// Returns the bridge, and attaches one with `outer` if there is none. Returns `None` if the token has ended, and with it
    /// all linked tokens below.
    fn bridge_or_insert(&self, outer: Option<CancellationToken>) -> Option<Option<Arc<Bridge>>> {
        let fresh = outer.map(|outer| Arc::new(Bridge { outer, tasks: Mutex::new(Vec::new()) }));
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
        if kept.is_none() {
            self.wait_until_closed();
        }
        kept
    }
}
