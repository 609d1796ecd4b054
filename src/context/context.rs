//! The type [`Context`], its roots, and how it is printed.

use std::fmt::{self, Write as _};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use super::value::Values;
use crate::error::Place;
use crate::registry::Brief;
use crate::token::Token;
use crate::trace::shielded;

/// Carries a cancellation signal, a deadline and request-scoped values through a tree of calls. Go's
/// `context.Context`.
///
/// A context is derived from a parent, and ends with its parent or earlier. The `with_…` methods derive
/// contexts. If the new context can be canceled, they return a [`CancelScope`](crate::CancelScope): the context,
/// together with the right to cancel it. Pass a context by reference as the first parameter, or make it the
/// current context of a task ([`spawn`](Self::spawn), [`current`](Self::current)). A clone refers to the same
/// context, and only increments one or two reference counts.
///
/// `anyhow::Context` and `std::task::Context` have the same name; see
/// [how to use them together](guide/traps/index.html#names-that-clash).
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

/// # Derive
impl Context {
    /// Returns the root context, which never ends, and has no deadline and no values. Go's
    /// `context.Background()`.
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

    /// Returns a root context for code where it is not yet clear which context to use. Go's `context.TODO()`.
    ///
    /// It behaves like [`background`](Self::background). `Debug` and `Display` show the difference.
    ///
    /// ```
    /// assert_eq!(tokio_ctx::Context::todo().to_string(), "context todo");
    /// ```
    pub const fn todo() -> Context {
        Context { token: None, values: Values::NONE, todo: true }
    }

    /// Creates the context of a token.
    pub(super) fn of_token(token: Arc<Token>, values: Values, todo: bool) -> Context {
        Context { token: Some(token), values, todo }
    }

    /// Adds a value in place.
    pub(crate) fn add_value<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values = self.values.with(value);
    }

    /// Returns the same context with other values.
    pub(super) fn replacing_values(&self, values: Values) -> Context {
        Context { token: self.token.clone(), values, todo: self.todo }
    }

    /// Returns a context with the same values that never ends.
    pub(super) fn free(&self) -> Context {
        Context { token: None, values: self.values.clone(), todo: self.todo }
    }

    #[inline]
    pub(crate) fn token(&self) -> Option<&Arc<Token>> {
        self.token.as_ref()
    }

    #[inline]
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Returns whether the context can never end.
    #[cfg(feature = "tower")]
    pub(crate) fn is_endless(&self) -> bool {
        self.token.is_none()
    }

    pub(crate) fn is_todo(&self) -> bool {
        self.todo
    }
}

/// Prints one line: `context background`, `context todo`, the line that made the context and the time left, or,
/// once it has ended, its error.
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

/// Prints one short line, suitable for `#[tracing::instrument]`: `Context(src/main.rs:12, 250ms left)`, or,
/// once the context has ended, `Context(canceled at src/main.rs:88: client hung up)`.
///
/// `{:#?}` shows the fields. It shows the types of the values, but never the values.
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
            // The cause is foreign code. Its text may have several lines, never end, or fail, and must not affect a function
            // whose span records the context.
            let mut brief = Brief::new(LONGEST);
            shielded(|| write!(brief, "{error}"));
            let text = brief.text();
            return write!(f, "Context({})", text.strip_prefix("context ").unwrap_or(&text));
        }
        write!(f, "Context({}", Place(token.made_at()))?;
        if let Some(left) = self.remaining() {
            // Less than a millisecond is not rounded to zero, because the context has not ended yet.
            let nanos = if left.as_millis() > 0 { left.subsec_nanos() % 1_000_000 } else { 0 };
            write!(f, ", {:?} left", left - Duration::from_nanos(nanos.into()))?;
        }
        f.write_str(")")
    }
}

/// A panic cannot leave a context in an inconsistent state, because its state changes atomically.
impl UnwindSafe for Context {}
impl RefUnwindSafe for Context {}
