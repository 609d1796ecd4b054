//! How what is spawned, and each context that is a landmark, is registered: with the watch of the process, and with the
//! test whose context it is. Whatever starts work enters it here.
//!
//! Without the features `watch` and `test-util` nothing is left of it.

#[cfg(feature = "watch")]
use std::fmt;
use std::future::Future;
use std::panic::Location;
#[cfg(any(feature = "test-util", feature = "watch"))]
use std::pin::Pin;
#[cfg(feature = "watch")]
use std::sync::Arc;
#[cfg(any(feature = "test-util", feature = "watch"))]
use std::task::{Context as TaskContext, Poll, ready};

#[cfg(any(feature = "test-util", feature = "watch"))]
use pin_project_lite::pin_project;

#[cfg(feature = "test-util")]
use super::census::InTest;
use super::context::Context;
#[cfg(feature = "watch")]
use crate::registry::{self, Draft, Inside, Record, Registration};
use crate::registry::{Kind, Name, Probe};

/// The entry of a piece of work, for as long as that is there.
#[derive(Default)]
pub(crate) struct Entry {
    #[cfg(feature = "watch")]
    watched: Option<Registration>,
    #[cfg(feature = "test-util")]
    _in_test: Option<InTest>,
}

impl Entry {
    /// Enters what works in this context, or is that context itself.
    #[inline]
    pub(crate) fn new(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Entry {
        Entry::named(ctx, kind, line, || None)
    }

    /// [`new`](Self::new), with a name, which is made only if there is a watch.
    #[inline]
    pub(crate) fn named(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        name: impl FnOnce() -> Option<Name>,
    ) -> Entry {
        Entry::probed(ctx, kind, line, || (name(), None))
    }

    /// [`named`](Self::named), with what the watch is to ask.
    #[inline]
    pub(crate) fn probed(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        more: impl FnOnce() -> (Option<Name>, Option<Probe>),
    ) -> Entry {
        let _ = (ctx, kind, line, &more);
        Entry {
            #[cfg(feature = "watch")]
            watched: Registration::new(|| {
                let (name, probe) = more();
                Draft { kind, line, name, subject: ctx.subject(), probe }
            }),
            #[cfg(feature = "test-util")]
            _in_test: if kind.is_work() { InTest::new(ctx, kind, line) } else { None },
        }
    }

    /// Enters what a watch knows otherwise in the test alone.
    #[cfg(feature = "tower")]
    pub(crate) fn in_test(ctx: &Context, kind: Kind, line: &'static Location<'static>) -> Entry {
        let _ = (ctx, kind, line);
        Entry {
            #[cfg(feature = "watch")]
            watched: None,
            #[cfg(feature = "test-util")]
            _in_test: InTest::new(ctx, kind, line),
        }
    }

    /// Says that the work is being polled, until this is dropped.
    #[inline]
    pub(crate) fn polling(&self) -> Polling<'_> {
        Polling {
            #[cfg(feature = "watch")]
            _inside: self.watched.as_ref().map(|watched| watched.record().enter()),
            _life: std::marker::PhantomData,
        }
    }

    /// The task as it is: it has no entry.
    #[cfg(not(any(feature = "test-util", feature = "watch")))]
    pub(crate) fn held_by<F: Future>(self, task: F) -> F {
        task
    }

    /// The task, which holds its entry until it is through or dropped.
    #[cfg(any(feature = "test-util", feature = "watch"))]
    pub(crate) fn held_by<F: Future>(self, task: F) -> Held<F> {
        Held { task: Some(task), entry: Some(self) }
    }
}

/// A poll that is under way.
#[must_use]
pub(crate) struct Polling<'a> {
    #[cfg(feature = "watch")]
    _inside: Option<Inside<'a>>,
    _life: std::marker::PhantomData<&'a ()>,
}

#[cfg(any(feature = "test-util", feature = "watch"))]
pin_project! {
    /// A task that is entered.
    pub(crate) struct Held<F> {
        // Before the entry: what it held is gone when the entry is.
        #[pin]
        task: Option<F>,
        entry: Option<Entry>,
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
            let _polling = this.entry.as_ref().map(Entry::polling);
            ready!(task.poll(cx))
        };
        this.task.set(None);
        *this.entry = None;
        Poll::Ready(output)
    }
}

/// Work that is registered as its context itself, and may be over before that has gone.
///
/// What then still holds the context is seen as well.
#[cfg(feature = "tower")]
pub(crate) struct Underway {
    #[cfg(feature = "watch")]
    record: Option<Arc<Record>>,
}

#[cfg(feature = "tower")]
impl Underway {
    /// Registers the context for as long as its token is there; work is under way until what is returned is dropped.
    #[inline]
    pub(crate) fn new(
        ctx: &Context,
        kind: Kind,
        line: &'static Location<'static>,
        name: impl FnOnce() -> Option<Name>,
    ) -> Underway {
        let _ = (ctx, kind, line, &name);
        Underway {
            #[cfg(feature = "watch")]
            record: if registry::is_installed() { ctx.register(kind, line, name()) } else { None },
        }
    }

    /// Says that the work is being polled, until this is dropped.
    #[inline]
    pub(crate) fn polling(&self) -> Polling<'_> {
        Polling {
            #[cfg(feature = "watch")]
            _inside: self.record.as_ref().map(|record| record.enter()),
            _life: std::marker::PhantomData,
        }
    }
}

#[cfg(all(feature = "tower", feature = "watch"))]
impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            registry::finish(&record);
        }
    }
}

#[cfg(feature = "watch")]
impl Context {
    fn subject(&self) -> Option<registry::Subject> {
        self.token().map(|token| token.subject())
    }

    /// Registers this context itself, for as long as its token is there.
    fn register(
        &self,
        kind: Kind,
        line: &'static Location<'static>,
        name: Option<Name>,
    ) -> Option<Arc<Record>> {
        let token = self.token()?;
        let subject = Some(token.subject());
        let registration = Registration::new(|| Draft { kind, line, name, subject, probe: None })?;
        let record = registration.record().clone();
        token.keep_registered(registration);
        Some(record)
    }

    /// The same context, which a [`Watch`](crate::watch::Watch) shows by this name, with what is derived from it below.
    ///
    /// The background has none to give it to: name what is derived from it. Without an installed watch this is a
    /// clone. A name is cut to 120 characters; a second one takes the place of the first.
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
        if registry::is_installed() {
            self.register(Kind::Named, line, Some(Box::new(registry::brief(&name))));
        }
        self.clone()
    }
}

#[cfg(feature = "watch")]
impl super::scope::CancelScope {
    /// The same scope, whose context has this name: [`Context::named`], keeping the owner.
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
