//! [`Context`]: what it is, and what it can be asked.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::value::Values;
use crate::error::{Error, Place};
use crate::token::Token;
use crate::token::sync::now;

/// Cancellation, a deadline and request-scoped values, for one piece of work and all it calls.
///
/// A context is derived from another and ends with it, or before: the `with_…` methods return a
/// [`CancelScope`](crate::CancelScope), which is the new context and the right to cancel it. Pass it down by reference,
/// as Go does, or let it flow along with the task ([`scope`](Self::scope), [`current`](Self::current)). A
/// clone is the same context; it costs a reference count or two. The counterpart of Go's
/// `context.Context`.
///
/// `anyhow::Context` and `std::task::Context` have the same name:
/// [what to write](guide/traps/index.html#names-that-clash).
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let request = Context::background().with_timeout(Duration::from_millis(500));
/// let step = request.with_timeout(Duration::from_millis(50));
///
/// tokio::select! {
///     stopped = step.done() => println!("{stopped}"),
///     _ = tokio::time::sleep(Duration::from_secs(1)) => unreachable!(),
/// }
/// assert!(step.is_done());
/// assert!(!request.is_done());
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Context {
    token: Option<Arc<Token>>,
    values: Values,
    todo: bool,
}

// Make.
impl Context {
    /// The root: never done, no deadline, no values. Go's `context.Background()`.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// static ROOT: Context = Context::background();
    /// assert!(!ROOT.is_done());
    /// ```
    pub const fn background() -> Context {
        Context { token: None, values: Values::NONE, todo: false }
    }

    /// The background, for where it is not clear yet which context to use; `Debug` and `Display` say so.
    /// Go's `context.TODO()`.
    ///
    /// ```
    /// assert_eq!(tokio_ctx::Context::todo().to_string(), "context todo");
    /// ```
    pub const fn todo() -> Context {
        Context { token: None, values: Values::NONE, todo: true }
    }

    /// A context that carries `value` as well, found by its type. Go's `context.WithValue`.
    ///
    /// It is the same context otherwise: it ends when this one does. A private newtype is a private
    /// key; a value of a type that is there already hides the older one. Values are for what a request
    /// carries across borders (its id, who it is for), not for parameters. [Traps](guide/traps/index.html) has
    /// more of what follows, and [A service that drains](guide/services/index.html) a middleware that sets a value.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// let ctx = Context::background().with_value(RequestId(7));
    /// assert_eq!(ctx.value::<RequestId>().unwrap().0, 7);
    ///
    /// // The type is the exact one: a literal is a `&'static str`, and no `String`.
    /// let ctx = ctx.with_value("alice");
    /// assert!(ctx.value::<String>().is_none());
    /// assert_eq!(ctx.value::<&str>(), Some(&"alice"));
    /// ```
    pub fn with_value<T: Send + Sync + 'static>(&self, value: T) -> Context {
        Context { token: self.token.clone(), values: self.values.with(value), todo: self.todo }
    }

    /// A context with the same values that never ends: for what must be finished even so. Go's
    /// `context.WithoutCancel`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn write_audit_log(_: &Context) {}
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value("alice").with_cancel();
    /// ctx.cancel();
    ///
    /// let cleanup = ctx.without_cancel().with_timeout(Duration::from_secs(5));
    /// assert!(!cleanup.is_done());
    /// assert_eq!(cleanup.value::<&str>(), Some(&"alice"));
    /// write_audit_log(&cleanup).await;
    /// # }
    /// ```
    pub fn without_cancel(&self) -> Context {
        Context { token: None, values: self.values.clone(), todo: self.todo }
    }

    /// The context of a token, with these values.
    pub(super) fn of_token(token: Arc<Token>, values: Values, todo: bool) -> Context {
        Context { token: Some(token), values, todo }
    }

    /// [`with_value`](Self::with_value), in place.
    pub(crate) fn add_value<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values = self.values.with(value);
    }

    pub(crate) fn token(&self) -> Option<&Arc<Token>> {
        self.token.as_ref()
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    pub(crate) fn is_todo(&self) -> bool {
        self.todo
    }
}

// Ask.
impl Context {
    /// When it will end at the latest: the earliest deadline on its path. Go's `ctx.Deadline()`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let parent = Context::background().with_timeout(Duration::from_secs(1));
    /// let child = parent.with_timeout(Duration::from_secs(60));
    /// assert_eq!(child.deadline(), parent.deadline());
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        self.token.as_ref()?.deadline()
    }

    /// The time left until the deadline, zero once it has passed; `None` if there is no deadline.
    ///
    /// A context that was canceled before its deadline still has time left.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// assert_eq!(Context::background().remaining(), None);
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// assert_eq!(ctx.remaining(), Some(Duration::ZERO));
    /// ```
    pub fn remaining(&self) -> Option<Duration> {
        Some(self.deadline()?.saturating_duration_since(now()))
    }

    /// Whether it has ended.
    ///
    /// A few atomic loads, never a lock; with a deadline, a look at the clock besides. tokio-util's
    /// `CancellationToken::is_cancelled`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let work = (0..).take_while(|_| !ctx.is_done());
    /// ctx.cancel();
    /// assert_eq!(work.count(), 0);
    /// ```
    #[inline]
    pub fn is_done(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_done())
    }

    /// Why it ended; `None` while it has not. Go's `ctx.Err()` and `context.Cause(ctx)`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// assert!(ctx.err().is_none());
    /// ctx.cancel_with("shutting down");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "shutting down");
    /// ```
    #[inline]
    pub fn err(&self) -> Option<Error> {
        self.token.as_ref()?.err()
    }

    /// `Err` once it has ended: for loops that compute.
    ///
    /// ```
    /// use tokio_ctx::{Context, Error};
    ///
    /// fn sum(ctx: &Context, items: &[u64]) -> Result<u64, Error> {
    ///     let mut sum = 0;
    ///     for item in items {
    ///         ctx.check()?;
    ///         sum += item;
    ///     }
    ///     Ok(sum)
    /// }
    ///
    /// let ctx = Context::background().with_cancel();
    /// assert_eq!(sum(&ctx, &[1, 2, 3]).unwrap(), 6);
    /// ctx.cancel();
    /// assert!(sum(&ctx, &[1, 2, 3]).unwrap_err().is_canceled());
    /// ```
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err).
    #[inline]
    pub fn check(&self) -> Result<(), Error> {
        match self.err() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// The value of this type that was given nearest. Go's `ctx.Value(key)`.
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
        self.values.get()
    }
}

/// `context background`, `context todo`, or where it was made and how it stands, on one line.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(token) = &self.token else {
            return f.write_str(if self.todo { "context todo" } else { "context background" });
        };
        if let Some(error) = self.err() {
            return write!(f, "{error}");
        }
        write!(f, "context made at {}", Place(token.made_at()))?;
        match self.remaining() {
            Some(left) => write!(f, ", {left:?} left"),
            None => Ok(()),
        }
    }
}

/// One short line, which `#[tracing::instrument]` records: `Context(src/main.rs:12, 250ms left)`, and once it
/// has ended why: `Context(canceled at src/main.rs:88: client hung up)`.
///
/// `{:#?}` shows the fields, and of the values the types, never the values.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return self.fmt_brief(f);
        }
        let mut debug = f.debug_struct("Context");
        match &self.token {
            None => debug.field("root", &if self.todo { "todo" } else { "background" }),
            Some(token) => debug
                .field("made_at", &format_args!("{}", Place(token.made_at())))
                .field("budget", &token.budget())
                .field("remaining", &self.remaining())
                .field("err", &self.err()),
        };
        debug.field("values", &self.values.names()).finish()
    }
}

impl Context {
    fn fmt_brief(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 160;
        let Some(token) = &self.token else {
            return f.write_str(if self.todo { "Context(todo)" } else { "Context(background)" });
        };
        if let Some(error) = self.err() {
            // A cause may have many lines.
            let text = error.to_string();
            let text = text.strip_prefix("context ").unwrap_or(&text);
            let brief: String = text.chars().take_while(|c| !c.is_control()).take(LONGEST).collect();
            let rest = if brief.len() < text.len() { "…" } else { "" };
            return write!(f, "Context({brief}{rest})");
        }
        write!(f, "Context({}", Place(token.made_at()))?;
        if let Some(left) = self.remaining() {
            // Below a millisecond, all of it: it is not over yet.
            let nanos = if left.as_millis() > 0 { left.subsec_nanos() % 1_000_000 } else { 0 };
            write!(f, ", {:?} left", left - Duration::from_nanos(nanos.into()))?;
        }
        f.write_str(")")
    }
}

/// Nothing that a panic could leave half-done is seen through a context: its state changes at once.
impl UnwindSafe for Context {}
impl RefUnwindSafe for Context {}
