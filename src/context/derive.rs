//! The constructors of contexts that end: each is a child, in the scope that ends it.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use super::scope::CancelScope;
use super::value::Values;
use crate::error::BoxError;
use crate::registry;
use crate::token::sync::now;
use crate::token::{Limit, Token};

impl Context {
    /// A child that ends when it is canceled or its scope dropped, or with this context. Go's
    /// `context.WithCancel`.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel();
    /// assert!(ctx.is_done());
    /// ```
    #[track_caller]
    pub fn with_cancel(&self) -> CancelScope {
        self.derive(Token::new(self.token(), None, Location::caller()))
    }

    /// A child that also ends at a point in time.
    ///
    /// The earlier of this deadline and the one that this context has counts, and is in the error. One in the
    /// past ends it at birth. One more than some four centuries off is none. Go's `context.WithDeadline`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    /// use tokio_ctx::Context;
    ///
    /// let at = Instant::now() + Duration::from_secs(3);
    /// let ctx = Context::background().with_deadline(at);
    /// assert_eq!(ctx.deadline(), Some(at));
    /// ```
    #[track_caller]
    pub fn with_deadline(&self, at: Instant) -> CancelScope {
        self.derive(Token::new(self.token(), until(at, None), Location::caller()))
    }

    /// A child that also ends when this much time has passed. Go's `context.WithTimeout`.
    ///
    /// Zero ends it at birth. `None`, [`Duration::MAX`], and whatever else is more than some four centuries off, is
    /// no deadline of its own, so that an optional limit needs no branch. On Linux and macOS the clock stands still
    /// while the machine is suspended: [Traps](guide/traps/index.html#a-machine-that-sleeps).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(250));
    /// assert!(ctx.remaining().unwrap() <= Duration::from_millis(250));
    ///
    /// let limit: Option<Duration> = None; // Of a configuration.
    /// let step = ctx.with_timeout(limit);
    /// assert_eq!(step.deadline(), ctx.deadline());
    /// ```
    #[track_caller]
    pub fn with_timeout(&self, after: impl Into<Option<Duration>>) -> CancelScope {
        self.derive(Token::new(self.token(), budget(after.into(), None), Location::caller()))
    }

    /// [`with_deadline`](Self::with_deadline), with the cause that the error is to have if this
    /// deadline ends it. Go's `context.WithDeadlineCause`.
    ///
    /// ```
    /// use tokio::time::Instant;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_deadline_cause(Instant::now(), "shop closes");
    /// assert_eq!(ctx.err().unwrap().cause().unwrap().to_string(), "shop closes");
    /// ```
    #[track_caller]
    pub fn with_deadline_cause(&self, at: Instant, cause: impl Into<BoxError>) -> CancelScope {
        let limit = until(at, Some(registry::boxed(Location::caller(), cause)));
        self.derive(Token::new(self.token(), limit, Location::caller()))
    }

    /// [`with_timeout`](Self::with_timeout), with the cause that the error is to have if this timeout
    /// ends it. Go's `context.WithTimeoutCause`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout_cause(Duration::ZERO, "index too slow");
    /// assert!(ctx.err().unwrap().to_string().ends_with(": index too slow"));
    /// ```
    #[track_caller]
    pub fn with_timeout_cause(
        &self,
        after: impl Into<Option<Duration>>,
        cause: impl Into<BoxError>,
    ) -> CancelScope {
        let limit = budget(after.into(), Some(registry::boxed(Location::caller(), cause)));
        self.derive(Token::new(self.token(), limit, Location::caller()))
    }

    /// A child that is told to have been made at that line, for those whose own line says nothing.
    #[cfg(feature = "http")]
    pub(crate) fn child_made_at(
        &self,
        made_at: &'static Location<'static>,
        limit: Option<(Duration, BoxError)>,
    ) -> CancelScope {
        let limit = limit.and_then(|(after, cause)| budget(Some(after), Some(cause)));
        self.derive(Token::new(self.token(), limit, made_at))
    }

    /// A context with the same values and the same deadline that does not end before it: for what is to be
    /// finished even if the caller leaves, but not later than it had to be.
    ///
    /// Neither the end of this context nor of those above it is seen; one that was canceled has a living one.
    /// A deadline that has passed is kept as well, so that it has ended at birth. Without a deadline it is
    /// [`without_cancel`](Self::without_cancel). Its error names the line and the budget of the context that set
    /// the deadline, not that one's cause. Go has no counterpart.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// # async fn fill_cache(_: Context) {}
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let request = Context::background().with_value("alice").with_timeout(Duration::from_secs(5));
    /// let fill = request.keeping_deadline();
    /// request.cancel_with("client hung up");
    ///
    /// assert!(!fill.is_done());
    /// assert_eq!(fill.deadline(), request.deadline());
    /// assert_eq!(fill.value::<&str>(), Some(&"alice"));
    /// tokio::spawn(fill_cache(fill));
    /// # }
    /// ```
    #[track_caller]
    pub fn keeping_deadline(&self) -> Context {
        let free = self.without_cancel();
        let Some(at) = self.deadline() else { return free };
        let now = now();
        let (set_at, budget) = self.deadline_origin(at).unwrap_or_else(|| {
            // Canceled, so that it no longer knows.
            (Location::caller(), at.saturating_duration_since(now))
        });
        free.derive(Token::new(None, Some(Limit { at, now, budget, cause: None }), set_at)).detach()
    }

    /// The line that set this deadline of the context, and the budget.
    fn deadline_origin(&self, at: Instant) -> Option<(&'static Location<'static>, Duration)> {
        if let Some(owner) = self.token()?.deadline_owner() {
            return Some((owner.made_at(), owner.budget()?));
        }
        let ended = self.err().filter(|ended| ended.is_deadline_exceeded())?;
        let origin = ended.origin();
        (origin.ended_at() == at).then_some((origin.made_at(), origin.budget()?))
    }

    fn derive(&self, token: Arc<Token>) -> CancelScope {
        Context::scope_of(token, self.values().clone(), self.is_todo())
    }

    pub(crate) fn scope_of(token: Arc<Token>, values: Values, todo: bool) -> CancelScope {
        CancelScope::new(Context::of_token(token, values, todo))
    }
}

/// The limit of a context that ends when this much time has passed.
fn budget(after: Option<Duration>, cause: Option<BoxError>) -> Option<Limit> {
    let after = after?;
    let now = now();
    Some(Limit { at: now.checked_add(after)?, now, budget: after, cause })
}

/// The limit of a context that ends at that time.
fn until(at: Instant, cause: Option<BoxError>) -> Option<Limit> {
    let now = now();
    Some(Limit { at, now, budget: at.saturating_duration_since(now), cause })
}
