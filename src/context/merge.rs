//! `merge`: a context with two parents.

use std::panic::Location;

use super::context::Context;
use super::scope::CancelScope;
use crate::token::Token;

impl Context {
    /// Derives a child of two contexts, which ends when either of them does.
    ///
    /// The child then has the error of the context that ended first. If both had ended before, it has the error
    /// of `self`. The earlier of the two deadlines applies. Values are looked up in `self` first, then in
    /// `other`. No task is spawned. In Go, the same is built from `context.AfterFunc`.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// let shutdown = Context::background().with_cancel();
    /// let request = Context::background().with_value("alice").with_cancel();
    ///
    /// let ctx = request.merge(&shutdown);
    /// shutdown.cancel_with("going down for maintenance");
    ///
    /// assert!(!request.is_done());
    /// assert!(ctx.err().unwrap().to_string().ends_with("going down for maintenance"));
    /// assert_eq!(ctx.value::<&str>(), Some(&"alice"));
    /// ```
    #[track_caller]
    pub fn merge(&self, other: &Context) -> CancelScope {
        let made_at = Location::caller();
        let token = match (self.token(), other.token()) {
            (Some(a), Some(b)) => Token::merge(a, b, made_at),
            (a, b) => Token::new(a.or(b), None, made_at),
        };
        #[cfg(feature = "watch")]
        let token = token.registered_as_root();
        Context::scope_of(token, self.values().or(other.values()), self.is_todo())
    }
}
