//! Request-scoped values: adding one, and looking one up.

use super::context::Context;

/// # Values
impl Context {
    /// Derives a context that also carries `value`, which is looked up by its type. Go's `context.WithValue`.
    ///
    /// The new context ends when this one does. A value hides another value of the same type above it. Use a
    /// private newtype as the type of a value, so that no other module can read or replace it. Values are for
    /// data that crosses APIs, such as a request ID or the user, and not for parameters: see [the
    /// rules](https://docs.rs/tokio-ctx/latest/tokio_ctx/guide/rules/index.html#use-values-for-data-that-crosses-apis). [A service that
    /// drains](https://docs.rs/tokio-ctx/latest/tokio_ctx/guide/services/index.html) contains a middleware that sets a value.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// let ctx = Context::background().with_value(RequestId(7));
    /// assert_eq!(ctx.value::<RequestId>().unwrap().0, 7);
    ///
    /// // The type has to match exactly: a literal is a `&'static str`, not a `String`.
    /// let ctx = ctx.with_value("alice");
    /// assert!(ctx.value::<String>().is_none());
    /// assert_eq!(ctx.value::<&str>(), Some(&"alice"));
    /// ```
    pub fn with_value<T: Send + Sync + 'static>(&self, value: T) -> Context {
        self.replacing_values(self.values().with(value))
    }

    /// Returns the value of type `T`, if this context or an ancestor has one. The nearest one wins. Go's
    /// `ctx.Value(key)`.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// #[derive(Debug, PartialEq)]
    /// struct Tenant(&'static str);
    ///
    /// let ctx = Context::background().with_value(Tenant("blue")).with_value(Tenant("red"));
    /// let ctx = ctx.with_cancel();
    /// assert_eq!(ctx.value::<Tenant>(), Some(&Tenant("red")));
    /// ```
    #[inline]
    pub fn value<T: 'static>(&self) -> Option<&T> {
        self.values().get()
    }
}
