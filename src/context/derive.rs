//! The basic ways to derive a context.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use super::scope::CancelScope;
use super::value::Values;
use crate::error::BoxError;
use crate::registry;
use crate::stamp::{Stamp, nanos};
use crate::token::{Limit, Token};

impl Context {
    /// Derives a child that can be canceled. Go's `context.WithCancel`.
    ///
    /// The child ends when its scope cancels it or is dropped, or when this context ends.
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

    /// Derives a child that also ends at the given time. Go's `context.WithDeadline`.
    ///
    /// If this context has an earlier deadline, that one applies, and the error names it. With a deadline in the
    /// past, the child has already ended when it is returned.
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
        self.derive(Token::new(self.token(), Some(until(at, None)), Location::caller()))
    }

    /// Derives a child that also ends after the given time. Go's `context.WithTimeout`.
    ///
    /// If this context has an earlier deadline, that one applies. With a timeout of zero, the child has already
    /// ended when it is returned. `None` sets no timeout, so an optional limit needs no branch. A time that is
    /// too long for the clock, such as [`Duration::MAX`], sets no timeout either.
    ///
    /// On Linux and macOS the clock stops while the machine is suspended: see
    /// [Traps](https://docs.rs/tokio-ctx/latest/tokio_ctx/guide/traps/index.html#a-machine-that-sleeps).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(250));
    /// assert!(ctx.remaining().unwrap() <= Duration::from_millis(250));
    ///
    /// let limit: Option<Duration> = None; // From a configuration.
    /// let step = ctx.with_timeout(limit);
    /// assert_eq!(step.deadline(), ctx.deadline());
    /// ```
    #[track_caller]
    pub fn with_timeout(&self, after: impl Into<Option<Duration>>) -> CancelScope {
        self.derive(Token::new(self.token(), budget(after.into(), None), Location::caller()))
    }

    /// Derives a child that also ends at the given time, with `cause` as the cause of its error. Go's
    /// `context.WithDeadlineCause`.
    ///
    /// The cause is only used if this deadline ends the child. See [`with_deadline`](Self::with_deadline).
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
        self.derive(Token::new(self.token(), Some(limit), Location::caller()))
    }

    /// Derives a child that also ends after the given time, with `cause` as the cause of its error. Go's
    /// `context.WithTimeoutCause`.
    ///
    /// The cause is only used if this timeout ends the child. See [`with_timeout`](Self::with_timeout).
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

    /// Derives a context that has the same values, and never ends. Go's `context.WithoutCancel`.
    ///
    /// Use it for work that has to be done even though this context has ended, such as a cleanup. Combine it
    /// with [`with_timeout`](Self::with_timeout) to limit how long that takes.
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
        self.free()
    }

    /// Like [`with_timeout`](Self::with_timeout), with `made_at` as the line in the error.
    pub(crate) fn limited_at(
        &self,
        made_at: &'static Location<'static>,
        after: Option<Duration>,
    ) -> CancelScope {
        self.derive(Token::new(self.token(), budget(after, None), made_at))
    }

    /// Derives a context that has the same values and the same deadline, but is not canceled with this one. Go
    /// has no counterpart.
    ///
    /// Use it for work that should be finished even if the caller leaves, but not after its deadline. If the
    /// deadline has passed, the new context has already ended when it is returned. Without a deadline, this is
    /// [`without_cancel`](Self::without_cancel). The error names the line and the budget of the context that
    /// set the deadline, but not its cause.
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
        free.with_deadline_of(self, at, Location::caller()).detach()
    }

    /// Derives a child that also ends at `at`, the deadline of `other`. The error names the line that set it there, or
    /// `line` if that is not known any more.
    pub(crate) fn with_deadline_of(
        &self,
        other: &Context,
        at: Instant,
        line: &'static Location<'static>,
    ) -> CancelScope {
        let limit = until(at, None);
        let (limit, set_at) = match other.deadline_origin(at) {
            Some((set_at, budget)) => (Limit { budget: nanos(budget), ..limit }, set_at),
            // A canceled context does not store the origin of a deadline above it.
            None => (limit, line),
        };
        self.derive(Token::new(self.token(), Some(limit), set_at))
    }

    /// Returns the token that set the deadline. `None`: there is no deadline, or the context has ended.
    pub(super) fn deadline_owner(&self) -> Option<Arc<Token>> {
        let (mut path, owner) = self.token()?.path(true);
        let Some(owner) = owner else {
            // If an ancestor has ended, another thread may not have closed this context yet.
            path.last()?.wait_until_closed();
            return None;
        };
        Some(path.swap_remove(owner))
    }

    /// Returns the line that set the deadline `at`, and the budget.
    fn deadline_origin(&self, at: Instant) -> Option<(&'static Location<'static>, Duration)> {
        if let Some(owner) = self.deadline_owner() {
            return Some((owner.made_at(), owner.budget()?));
        }
        let ended = self.err().filter(|ended| ended.is_deadline_exceeded())?;
        let origin = ended.origin();
        (origin.ended_at() == at).then_some((origin.made_at(), origin.budget()?))
    }

    /// Derives a child whose error names `made_at` instead of the caller's line.
    #[cfg(feature = "http")]
    pub(crate) fn child_made_at(
        &self,
        made_at: &'static Location<'static>,
        limit: Option<(Duration, BoxError)>,
    ) -> CancelScope {
        let limit = limit.and_then(|(after, cause)| budget(Some(after), Some(cause)));
        self.derive(Token::new(self.token(), limit, made_at))
    }

    #[inline(always)]
    pub(crate) fn derive(&self, token: Arc<Token>) -> CancelScope {
        #[cfg(feature = "watch")]
        let token = if self.token().is_none() { token.registered_as_root() } else { token };
        Context::scope_of(token, self.values().clone(), self.is_todo())
    }

    pub(crate) fn scope_of(token: Arc<Token>, values: Values, todo: bool) -> CancelScope {
        CancelScope::new(Context::of_token(token, values, todo))
    }
}

/// Returns the limit of a context that ends after the given time. Inlined, so that it is not copied.
#[inline(always)]
pub(super) fn budget(after: Option<Duration>, cause: Option<BoxError>) -> Option<Limit> {
    let (budget, now) = (nanos(after?), Stamp::now());
    Some(Limit { at: Stamp(now.0.saturating_add(budget)), now, budget, cause, preset: 0 })
}

/// Returns the limit of a context that ends at the given time.
fn until(at: Instant, cause: Option<BoxError>) -> Limit {
    let (at, now) = (Stamp::new(at), Stamp::now());
    Limit { at, now, budget: at.0.saturating_sub(now.0), cause, preset: 0 }
}
