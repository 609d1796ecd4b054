//! The right to cancel a context, without the context: owned by a guard, or shared by cancelers.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::error::{BoxError, How, Place};
use crate::registry;
use crate::token::Token;

/// Cancels a context when dropped. Returned by [`CancelScope::split`].
///
/// Keep the guard in a variable for as long as the work should run. (`let _ = …` drops it immediately;
/// `let _guard = …` does not.) Once the context has ended, the guard has no effect. A guard is rarely needed,
/// because a [`CancelScope`] is a context and a guard in one.
///
/// ```
/// use tokio_ctx::Context;
///
/// let (ctx, guard) = Context::background().with_cancel().split();
/// assert!(!ctx.is_done());
/// drop(guard);
/// assert!(ctx.is_done());
/// ```
///
/// [`CancelScope`]: crate::CancelScope
/// [`CancelScope::split`]: crate::CancelScope::split
#[must_use = "dropping the guard ends the context"]
pub struct CancelGuard(Option<Arc<Token>>);

impl CancelGuard {
    pub(crate) fn new(token: Option<Arc<Token>>) -> Self {
        CancelGuard(token)
    }

    /// Cancels the context. See [`CancelScope::cancel`](crate::CancelScope::cancel).
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel().split();
    /// guard.cancel();
    /// assert_eq!(ctx.err().unwrap().origin().canceled_at().unwrap().line(), line!() - 1);
    /// ```
    #[track_caller]
    pub fn cancel(&self) {
        cancel(self.0.as_ref(), None);
    }

    /// Cancels the context with a cause. See [`CancelScope::cancel_with`](crate::CancelScope::cancel_with).
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel().split();
    /// guard.cancel_with("client hung up");
    /// assert!(ctx.err().unwrap().to_string().ends_with(": client hung up"));
    /// ```
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        cancel_with(self.0.as_ref(), cause);
    }

    /// Returns a handle that can cancel the context, can be cloned, and has no effect when dropped.
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel().split();
    /// let canceler = guard.canceler();
    /// std::thread::spawn(move || canceler.cancel_with("gave up")).join().unwrap();
    /// assert!(ctx.is_done());
    /// ```
    pub fn canceler(&self) -> Canceler {
        Canceler(self.0.clone())
    }

    /// Drops the guard without canceling the context, which then ends with its parent or at its deadline.
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel().split();
    /// guard.detach();
    /// assert!(!ctx.is_done());
    /// ```
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        cancel_on_drop(self.0.as_ref());
    }
}

/// Handle that can cancel a context, can be cloned, and has no effect when dropped. Returned by
/// [`CancelScope::canceler`](crate::CancelScope::canceler).
///
/// When the scope is dropped, the context ends even if there are cancelers left.
///
/// ```
/// let ctx = tokio_ctx::Context::background().with_cancel();
/// let first = ctx.canceler();
/// let second = first.clone();
/// second.cancel();
/// first.cancel_with("no effect, the context has ended");
/// assert!(ctx.err().unwrap().cause().is_none());
/// ```
#[derive(Clone)]
pub struct Canceler(Option<Arc<Token>>);

impl Canceler {
    pub(crate) fn new(token: Option<Arc<Token>>) -> Self {
        Canceler(token)
    }

    /// Cancels the context. See [`CancelScope::cancel`](crate::CancelScope::cancel).
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.canceler().cancel();
    /// assert!(ctx.is_done());
    /// ```
    #[track_caller]
    pub fn cancel(&self) {
        cancel(self.0.as_ref(), None);
    }

    /// Cancels the context with `place` as the line in the error.
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = &self.0 {
            token.end(How::Canceled(place), Some(cause), None);
        }
    }

    /// Cancels the context with a cause. See [`CancelScope::cancel_with`](crate::CancelScope::cancel_with).
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.canceler().cancel_with("lease lost");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "lease lost");
    /// ```
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        cancel_with(self.0.as_ref(), cause);
    }

    /// Cancels the context with `caller` as the line in the error.
    pub(crate) fn cancel_for(&self, caller: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = &self.0 {
            token.end(How::Canceled(caller), Some(cause), None);
        }
    }
}

#[track_caller]
pub(crate) fn cancel_with(token: Option<&Arc<Token>>, cause: impl Into<BoxError>) {
    cancel(token, Some(registry::boxed(Location::caller(), cause)));
}

#[track_caller]
pub(crate) fn cancel(token: Option<&Arc<Token>>, cause: Option<BoxError>) {
    if let Some(token) = token {
        token.end(How::Canceled(Location::caller()), cause, None);
    }
}

impl UnwindSafe for CancelGuard {}
impl RefUnwindSafe for CancelGuard {}
impl UnwindSafe for Canceler {}
impl RefUnwindSafe for Canceler {}

impl fmt::Debug for CancelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_handle("CancelGuard", self.0.as_deref(), f)
    }
}

impl fmt::Debug for Canceler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_handle("Canceler", self.0.as_deref(), f)
    }
}

/// Cancels the context of a scope or guard that is dropped. If no other handle and no attachment can observe the end,
/// there is no end.
#[inline]
pub(super) fn cancel_on_drop(token: Option<&Arc<Token>>) {
    if let Some(token) = token.filter(|token| token.is_observed()) {
        token.end(How::GuardDropped, None, None);
    }
}

fn fmt_handle(name: &str, token: Option<&Token>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut debug = f.debug_struct(name);
    if let Some(token) = token {
        debug.field("made_at", &format_args!("{}", Place(token.made_at())));
    }
    debug.finish_non_exhaustive()
}
