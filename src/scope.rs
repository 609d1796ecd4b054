//! [`CancelScope`]: a context together with the right to cancel it.
//!
//! A scope holds one handle, its context's, and is as large as a [`Context`]. Its drop asks the token whether
//! that handle is the last: then no code can see an end, and none is made.

use std::borrow::Borrow;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::panic::Location;

use crate::Context;
use crate::error::BoxError;
use crate::guard::{CancelGuard, Canceller};

/// A context that ends when this is dropped.
#[must_use = "a scope that is dropped at once ends its context"]
pub struct CancelScope(Context);

impl CancelScope {
    pub(crate) fn new(ctx: Context) -> Self {
        CancelScope(ctx)
    }

    /// Ends the context.
    #[track_caller]
    pub fn cancel(&self) {
        crate::guard::cancel(self.0.token(), None);
    }

    /// Ends the context, and says why.
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        crate::guard::cancel(self.0.token(), Some(cause.into()));
    }

    /// Returns a canceller.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.0.token().cloned())
    }

    /// Adds a value.
    pub fn with_value<T: Send + Sync + 'static>(mut self, value: T) -> CancelScope {
        self.0.add_value(value);
        self
    }

    /// Borrows the context.
    pub fn context(&self) -> &Context {
        &self.0
    }

    #[cfg(feature = "http")]
    pub(crate) fn context_mut(&mut self) -> &mut Context {
        &mut self.0
    }

    /// [`cancel_with`](Self::cancel_with), in the name of another line.
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = self.0.token() {
            token.cancel(Some(place), Some(cause));
        }
    }

    /// Lets the scope go without ending the context.
    pub fn detach(mut self) -> Context {
        // What is left behind is the background, which has no end.
        mem::take(&mut self.0)
    }

    /// Takes the scope apart.
    pub fn split(mut self) -> (Context, CancelGuard) {
        let ctx = mem::take(&mut self.0);
        let guard = CancelGuard::new(ctx.token().cloned());
        (ctx, guard)
    }
}

impl Drop for CancelScope {
    #[inline]
    fn drop(&mut self) {
        if let Some(token) = self.0.token() {
            token.abandon();
        }
    }
}

impl Deref for CancelScope {
    type Target = Context;

    #[inline]
    fn deref(&self) -> &Context {
        &self.0
    }
}

impl AsRef<Context> for CancelScope {
    fn as_ref(&self) -> &Context {
        &self.0
    }
}

impl Borrow<Context> for CancelScope {
    fn borrow(&self) -> &Context {
        &self.0
    }
}

/// As its [`Context`].
impl fmt::Display for CancelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CancelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CancelScope").field(&self.0).finish()
    }
}
