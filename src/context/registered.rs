//! Registration of tasks and other work, and of certain contexts, with the watch of the process and with the
//! test that the context belongs to. Each method that starts work registers it here.
//!
//! Without the features `watch` and `test-util`, all of this compiles to nothing.

#[cfg(feature = "watch")]
use std::any::Any;
#[cfg(feature = "watch")]
use std::fmt;
use std::future::Future;
use std::panic::Location;
#[cfg(any(feature = "test-util", feature = "watch"))]
use std::pin::Pin;
#[cfg(feature = "watch")]
use std::sync::{Arc, Weak};
#[cfg(any(feature = "test-util", feature = "watch"))]
use std::task::{Context as TaskContext, Poll, ready};

#[cfg(any(feature = "test-util", feature = "watch"))]
use pin_project_lite::pin_project;
#[cfg(feature = "watch")]
use tokio::time::Instant;

use super::context::Context;
#[cfg(feature = "test-util")]
use super::test_work::InTest;
#[cfg(all(feature = "tower", feature = "watch"))]
use crate::bucket::Timed;
#[cfg(feature = "tower")]
use crate::registry::Label;
#[cfg(all(feature = "tower", feature = "watch"))]
use crate::registry::Record;
#[cfg(feature = "watch")]
use crate::registry::{self, ActivePoll, Draft, Registration};
use crate::registry::{Kind, Name, Probe};
#[cfg(all(feature = "tower", feature = "watch"))]
use crate::stamp::{Stamp, nanos};
#[cfg(feature = "watch")]
use crate::token::{Attachment, Token};
#[cfg(all(feature = "tower", feature = "watch"))]
use crate::trace::shielded;

/// The registration of a piece of work, until it is dropped.
#[derive(Default)]
pub(crate) struct Registered {
    #[cfg(feature = "watch")]
    watched: Option<Registration>,
    #[cfg(feature = "test-util")]
    _in_test: Option<InTest>,
}

impl Registered {
    /// Registers work that uses this context, or the context itself.
    #[inline]
    pub(crate) fn new(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Registered {
        Registered::named(ctx, kind, line, || None)
    }

    /// Like [`new`](Self::new), with a name that is created only if there is a watch.
    #[inline]
    pub(crate) fn named(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        name: impl FnOnce() -> Option<Name>,
    ) -> Registered {
        Registered::probed(ctx, kind, line, || (name(), None))
    }

    /// Like [`named`](Self::named), with a probe for the watch.
    #[inline]
    pub(crate) fn probed(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        more: impl FnOnce() -> (Option<Name>, Option<Probe>),
    ) -> Registered {
        let _ = (ctx, kind, line, &more);
        Registered {
            #[cfg(feature = "watch")]
            watched: Registration::new(|| {
                let (label, probe) = more();
                let started = Some(Instant::now());
                Draft { kind, line, started, label, subject: ctx.subject(), probe }
            }),
            #[cfg(feature = "test-util")]
            _in_test: if kind.is_work() { InTest::new(ctx, kind, line) } else { None },
        }
    }

    /// Registers work with the test only, because the watch registers it in another way.
    #[cfg(feature = "tower")]
    pub(crate) fn in_test(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Registered {
        let _ = (ctx, kind, line);
        Registered {
            #[cfg(feature = "watch")]
            watched: None,
            #[cfg(feature = "test-util")]
            _in_test: InTest::new(ctx, kind, line),
        }
    }

    /// Marks the work as being polled, until the returned value is dropped.
    #[inline]
    pub(crate) fn polling(&self) -> Polling<'_> {
        Polling {
            #[cfg(feature = "watch")]
            _poll: self.watched.as_ref().map(|watched| watched.record().start_poll()),
            _lifetime: std::marker::PhantomData,
        }
    }

    /// Returns the task as it is: there is nothing to register it with.
    #[cfg(not(any(feature = "test-util", feature = "watch")))]
    pub(crate) fn held_by<F: Future>(self, task: F) -> F {
        task
    }

    /// Runs the task, and holds its registration until it has ended or is dropped.
    #[cfg(any(feature = "test-util", feature = "watch"))]
    pub(crate) fn held_by<F: Future>(self, task: F) -> Held<F> {
        Held { task: Some(task), registered: Some(self) }
    }
}

/// A poll in progress.
#[must_use]
pub(crate) struct Polling<'a> {
    #[cfg(feature = "watch")]
    _poll: Option<ActivePoll<'a>>,
    _lifetime: std::marker::PhantomData<&'a ()>,
}

#[cfg(any(feature = "test-util", feature = "watch"))]
pin_project! {
    /// A registered task.
    pub(crate) struct Held<F> {
        // Dropped before the registration, so that everything it owns is gone when it is deregistered.
        #[pin]
        task: Option<F>,
        registered: Option<Registered>,
    }
}

#[cfg(any(feature = "test-util", feature = "watch"))]
impl<F: Future> Future for Held<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let task = this.task.as_mut().as_pin_mut().expect("a task is not polled after it resolved");
        let output = {
            let _polling = this.registered.as_ref().map(Registered::polling);
            ready!(task.poll(cx))
        };
        this.task.set(None);
        *this.registered = None;
        Poll::Ready(output)
    }
}

/// Work that is registered as its context, and may end before the context is dropped.
///
/// Other code that still holds the context is then visible as well.
#[cfg(feature = "tower")]
pub(crate) struct InProgress {
    #[cfg(feature = "watch")]
    registration: Option<Registration>,
}

#[cfg(feature = "tower")]
impl InProgress {
    /// Registers the context until its token is dropped. The work is in progress until the returned value is
    /// dropped.
    #[inline]
    pub(crate) fn new<N: Label + 'static>(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        label: impl FnOnce() -> N,
    ) -> InProgress {
        let _ = (ctx, kind, line, &label);
        InProgress {
            #[cfg(feature = "watch")]
            registration: Registration::new(|| {
                // The context has the time.
                let started = None;
                Draft { kind, line, started, label: label(), subject: ctx.subject(), probe: None }
            }),
        }
    }

    /// Returns a handle for the owner of the context.
    #[inline]
    pub(crate) fn handle(&self) -> InProgressHandle {
        InProgressHandle {
            #[cfg(feature = "watch")]
            record: self.registration.as_ref().map(|registration| registration.record().clone()),
        }
    }

    /// Returns whether a watch counts it.
    pub(crate) fn is_watched(&self) -> bool {
        #[cfg(feature = "watch")]
        return self.registration.is_some();
        #[cfg(not(feature = "watch"))]
        false
    }

    /// Marks the work as being polled, until the returned value is dropped.
    #[inline]
    pub(crate) fn polling(&self) -> Polling<'_> {
        Polling {
            #[cfg(feature = "watch")]
            _poll: self.registration.as_ref().map(|registration| registration.record().start_poll()),
            _lifetime: std::marker::PhantomData,
        }
    }

    /// Like [`polling`](Self::polling), for a second time within one poll.
    #[inline]
    pub(crate) fn polling_again(&self) -> Polling<'_> {
        Polling {
            #[cfg(feature = "watch")]
            _poll: self
                .registration
                .as_ref()
                .map(|registration| registration.record().start_nested_poll()),
            _lifetime: std::marker::PhantomData,
        }
    }
}

/// A handle on work that is [in progress](InProgress).
#[cfg(feature = "tower")]
#[derive(Default)]
pub(crate) struct InProgressHandle {
    #[cfg(feature = "watch")]
    record: Option<Arc<Record>>,
}

#[cfg(feature = "tower")]
impl InProgressHandle {
    /// Finishes the work if its context has ended. The owner of the context calls this before it drops the context,
    /// because after that the time of the end is no longer known, and the work would not be counted as late.
    pub(crate) fn finish_if_late(&self, ctx: &Context) {
        let _ = ctx;
        #[cfg(feature = "watch")]
        if let Some(record) = self.record.as_ref().filter(|_| ctx.is_done()) {
            registry::finish(record);
        }
    }
}

#[cfg(all(feature = "tower", feature = "watch"))]
impl Drop for InProgress {
    fn drop(&mut self) {
        let Some(registration) = self.registration.take() else { return };
        // Usually nothing holds the context any more.
        if let Some(token) = registration.subject().and_then(Token::of_subject) {
            registration.finish();
            token.keep_registered(registration);
            shielded(|| drop(token));
        }
    }
}

#[cfg(all(feature = "tower", feature = "watch"))]
impl super::scope::CancelScope {
    /// Counts the end of a request that has been answered, if nothing else holds its context. The context itself is not
    /// ended, because nothing could observe that. Returns false if it has already ended.
    pub(crate) fn count_as_finished(&self, cause_type: &'static str) -> bool {
        let Some(token) = self.token() else { return true };
        let at = Stamp::now();
        let is_over = token.is_done_at(at);
        if !is_over {
            let created = match token.budget() {
                Some(budget) => Some(Timed::deadline(&**token).0.saturating_sub(nanos(budget))),
                None => token.created_at().map(|created| Stamp::new(created).0),
            };
            let lived = created.map(|created| at.0.saturating_sub(created));
            let made_at = token.made_at();
            registry::finished(registry::Finished { made_at, cause_type, at, lived });
        }
        !is_over
    }
}

/// A registration that is attached to a token, and is deregistered when the token is dropped.
#[cfg(feature = "watch")]
impl Attachment for Registration {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(feature = "watch")]
impl Token {
    /// Returns the token, as the subject of a record.
    fn subject(self: &Arc<Self>) -> registry::Subject {
        let token: Weak<Token> = Arc::downgrade(self);
        token
    }

    /// Returns the token of a record, unless it has been dropped.
    pub(crate) fn of_subject(subject: &registry::Subject) -> Option<Arc<Token>> {
        subject.upgrade()?.downcast().ok()
    }

    /// Keeps a registration until the token is dropped, or another one of its kind replaces it.
    fn keep_registered(&self, registration: Registration) {
        let kind = registration.record().kind;
        let is_replaced = |attachment: &Arc<dyn Attachment>| {
            let registration = attachment.clone().into_any().downcast::<Registration>();
            registration.is_ok_and(|registration| registration.record().kind == kind)
        };
        let registration = Arc::new(registration);
        let _replaced = self.attachments(|attachments, _| {
            let at = attachments.iter().position(is_replaced);
            attachments.push(registration);
            at.map(|at| attachments.swap_remove(at))
        });
    }

    /// Registers the token if it is a root and a watch is installed.
    #[inline]
    pub(crate) fn registered_as_root(self: Arc<Self>) -> Arc<Self> {
        if self.parent().is_none() && registry::is_installed() { self.register_root() } else { self }
    }

    #[cold]
    fn register_root(self: Arc<Self>) -> Arc<Self> {
        let (kind, line, subject) = (Kind::Root, self.made_at(), Some(self.subject()));
        let label: Option<Name> = None;
        let draft = || Draft { kind, line, started: None, label, subject, probe: None };
        if let Some(registration) = Registration::new(draft) {
            self.keep_registered(registration);
        }
        self
    }
}

/// # Watch
#[cfg(feature = "watch")]
impl Context {
    fn subject(&self) -> Option<registry::Subject> {
        self.token().map(|token| token.subject())
    }

    /// Returns the same context, which a [`Watch`](crate::watch::Watch) shows under this name.
    ///
    /// The background cannot be named; name a context that is derived from it. Without an installed watch, this
    /// returns a clone. Names are truncated to 120 characters, and a second name replaces the first.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn import(_: &Context) {}
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// tokio_ctx::watch::install();
    /// let ctx = Context::background().with_timeout(Duration::from_secs(600)).named("import");
    /// import(&ctx).await;
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "watch")))]
    #[track_caller]
    pub fn named(&self, name: impl fmt::Display) -> Context {
        let line = Location::caller();
        if let (Some(token), true) = (self.token(), registry::is_installed()) {
            let label: Option<Name> = Some(Box::new(registry::brief(&name)));
            let (kind, started, subject) = (Kind::Named, Some(Instant::now()), Some(token.subject()));
            let draft = || Draft { kind, line, started, label, subject, probe: None };
            if let Some(registration) = Registration::new(draft) {
                token.keep_registered(registration);
            }
        }
        self.clone()
    }
}

#[cfg(feature = "watch")]
impl super::scope::CancelScope {
    /// Names the scope's context, and returns the scope. See [`Context::named`].
    ///
    /// ```
    /// let import = tokio_ctx::Context::background().with_cancel().named("import");
    /// assert!(!import.is_done());
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "watch")))]
    #[track_caller]
    pub fn named(self, name: impl fmt::Display) -> super::scope::CancelScope {
        self.context().named(name);
        self
    }
}
