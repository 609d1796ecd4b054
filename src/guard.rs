//! What ends a context by hand: the guard, and its cancellers.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::error::{BoxError, Place};
use crate::token::Token;

/// Ends its context when dropped: Go's `defer cancel()`, which can't be forgotten.
///
/// Every constructor that makes a context of its own to end returns one beside it. Keep it in a
/// variable for as long as the work goes on (`let _ = …` drops it at once; `let _guard = …` does not).
/// Once the context has ended, by whatever, the guard has no effect.
///
/// ```
/// use tokio_ctx::Context;
///
/// let (ctx, guard) = Context::background().with_cancel();
/// assert!(!ctx.is_done());
/// drop(guard);
/// assert!(ctx.is_done());
/// ```
#[must_use = "dropping the guard ends the context"]
pub struct CancelGuard(Option<Arc<Token>>);

impl CancelGuard {
    pub(crate) fn new(token: Option<Arc<Token>>) -> Self {
        CancelGuard(token)
    }

    /// Ends the context, from any thread; once it has ended, does nothing.
    ///
    /// When this returns, every descendant has ended too. The line of this call is in the error. Go's
    /// `cancel()`, tokio-util's `CancellationToken::cancel`.
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
    /// let (child, _guard) = ctx.with_cancel();
    /// guard.cancel();
    /// assert_eq!(child.err().unwrap().origin().canceled_at().unwrap().line(), line!() - 1);
    /// ```
    #[track_caller]
    pub fn cancel(&self) {
        cancel(self.0.as_ref(), None);
    }

    /// [`cancel`](Self::cancel), and says why: the cause is the error's
    /// [`source`](std::error::Error::source). Go's `CancelCauseFunc`.
    ///
    /// A cause lives as long as the context; one that holds this very context, or its guard, is never
    /// freed. An [`Error`](crate::Error) of another context, or of this one's children, holds none.
    ///
    /// # Panics
    ///
    /// If the waker of somebody who waits panics, once all others have been woken; so does `cancel`.
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
    /// guard.cancel_with("client hung up");
    /// assert!(ctx.err().unwrap().to_string().ends_with(": client hung up"));
    /// ```
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        cancel(self.0.as_ref(), Some(cause.into()));
    }

    /// [`cancel_with`](Self::cancel_with), told to have been called at that line.
    #[cfg(feature = "tower")]
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: impl Into<BoxError>) {
        if let Some(token) = &self.0 {
            token.cancel(Some(place), Some(cause.into()));
        }
    }

    /// A handle with the same two methods that can be cloned and has no effect when dropped.
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
    /// let canceller = guard.canceller();
    /// std::thread::spawn(move || canceller.cancel_with("gave up")).join().unwrap();
    /// assert!(ctx.is_done());
    /// ```
    pub fn canceller(&self) -> Canceller {
        Canceller(self.0.clone())
    }

    /// Lets the guard go without ending the context, which is left to its parent and its deadline.
    ///
    /// ```
    /// let (parent, _guard) = tokio_ctx::Context::background().with_cancel();
    /// let (ctx, guard) = parent.with_cancel();
    /// guard.detach();
    /// assert!(!ctx.is_done());
    /// ```
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(token) = &self.0 {
            token.abandon();
        }
    }
}

/// Ends a context when told to, and not when dropped. Made by [`CancelGuard::canceller`].
///
/// It keeps no guard alive: when the guard is dropped, the context ends all the same.
///
/// ```
/// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
/// let first = guard.canceller();
/// let second = first.clone();
/// second.cancel();
/// first.cancel_with("too late: an end is final");
/// assert!(ctx.err().unwrap().cause().is_none());
/// ```
#[derive(Clone)]
pub struct Canceller(Option<Arc<Token>>);

impl Canceller {
    pub(crate) fn new(token: Option<Arc<Token>>) -> Self {
        Canceller(token)
    }

    /// See [`CancelGuard::cancel`].
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
    /// guard.canceller().cancel();
    /// assert!(ctx.is_done());
    /// ```
    #[track_caller]
    pub fn cancel(&self) {
        cancel(self.0.as_ref(), None);
    }

    /// [`cancel_with`](Self::cancel_with), in the name of another line.
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = &self.0 {
            token.cancel(Some(place), Some(cause));
        }
    }

    /// See [`CancelGuard::cancel_with`].
    ///
    /// ```
    /// let (ctx, guard) = tokio_ctx::Context::background().with_cancel();
    /// guard.canceller().cancel_with("lease lost");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "lease lost");
    /// ```
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        cancel(self.0.as_ref(), Some(cause.into()));
    }

    /// [`cancel_with`](Self::cancel_with) in the name of a line that asked for it beforehand.
    pub(crate) fn cancel_for(&self, caller: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = &self.0 {
            token.cancel(Some(caller), Some(cause));
        }
    }
}

#[track_caller]
pub(crate) fn cancel(token: Option<&Arc<Token>>, cause: Option<BoxError>) {
    if let Some(token) = token {
        token.cancel(Some(Location::caller()), cause);
    }
}

impl fmt::Debug for CancelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_handle("CancelGuard", self.0.as_deref(), f)
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_handle("Canceller", self.0.as_deref(), f)
    }
}

fn fmt_handle(name: &str, token: Option<&Token>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut debug = f.debug_struct(name);
    if let Some(token) = token {
        debug.field("made_at", &format_args!("{}", Place(token.made_at())));
    }
    debug.finish_non_exhaustive()
}
