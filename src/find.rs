//! Looks for an error of a given type in a chain, also where `source` does not lead.
//!
//! An error that prints what it holds must not return that as its [`source`](StdError::source), or a printed
//! chain says it twice. The errors of this crate are of that kind, and so are [`io::Error`], `Arc` and `Box`.
//! [`held_by`] knows what each of them holds; what lies behind that is what `source` would have returned, so
//! that one way through the chain meets everything.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use crate::context::NotEnoughTime;
use crate::error::{Error, chain};
#[cfg(feature = "process")]
use crate::os::process;
use crate::task::group;
use crate::task::query::Stopped;
use crate::task::shutdown::{GraceOver, Report};

type Dyn = dyn StdError + 'static;

impl Error {
    /// This crate's error, anywhere in a chain: *was this the context?* Go's
    /// `errors.Is(err, context.Canceled)`.
    ///
    /// Looks at `error` itself and along [`source`](StdError::source), and besides at what an [`io::Error`],
    /// an `Arc`, a `Box` and the errors of this crate hold, which `source` passes over. Of several, the
    /// outermost is found. A chain that leads back to itself ends the search.
    ///
    /// For an `anyhow::Error` pass `error.as_ref()`; for a boxed error `&*error`.
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio_ctx::{Context, Error};
    ///
    /// async fn load(ctx: &Context) -> io::Result<String> {
    ///     ctx.try_run(async { Ok("a line".to_string()) }).await
    /// }
    /// async fn page(ctx: &Context) -> anyhow::Result<String> {
    ///     use anyhow::Context as _;
    ///     load(ctx).await.context("loading the page")
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::ZERO);
    /// let failed = page(&ctx).await.unwrap_err();
    /// match Error::find(failed.as_ref()) {
    ///     Some(ended) if ended.is_deadline_exceeded() => println!("504: {ended}"),
    ///     Some(ended) => println!("503: {ended}"),
    ///     None => println!("500: {failed:#}"),
    /// }
    /// # assert!(Error::find(failed.as_ref()).unwrap().is_deadline_exceeded());
    /// # }
    /// ```
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
        search(error)
    }

    /// The cause, if it is an `E`, or the first `E` among what it holds and what it came from. Go's
    /// `errors.As(context.Cause(ctx), &e)`.
    ///
    /// Looks as deep as [`find`](Self::find): into an [`io::Error`], an `Arc`, a `Box` and the errors of this
    /// crate as well. A cause that is itself an [`Error`], say of the request that this one was made for, is
    /// looked through.
    ///
    /// An `anyhow::Error` becomes a boxed error that hides the type of its outermost error.
    /// `error.reallocate_into_boxed_dyn_error_without_backtrace()` is a cause that keeps it.
    ///
    /// ```
    /// use std::io;
    /// use std::sync::Arc;
    /// use tokio_ctx::Context;
    ///
    /// # #[derive(Debug, PartialEq)]
    /// struct QuotaExceeded(u32);
    /// # impl std::fmt::Display for QuotaExceeded {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "quota") }
    /// # }
    /// # impl std::error::Error for QuotaExceeded {}
    /// let ctx = Context::background().with_cancel();
    /// ctx.cancel_with(io::Error::other(Arc::new(QuotaExceeded(3))));
    ///
    /// let err = ctx.err().unwrap();
    /// assert_eq!(err.cause_as::<io::Error>().unwrap().kind(), io::ErrorKind::Other);
    /// assert_eq!(err.cause_as(), Some(&QuotaExceeded(3)));
    /// assert!(err.cause_as::<std::fmt::Error>().is_none());
    ///
    /// let ctx = Context::background().with_cancel();
    /// let failed = anyhow::Error::from(QuotaExceeded(4));
    /// ctx.cancel_with(failed.reallocate_into_boxed_dyn_error_without_backtrace());
    /// assert_eq!(ctx.err().unwrap().cause_as(), Some(&QuotaExceeded(4)));
    /// ```
    pub fn cause_as<E: StdError + 'static>(&self) -> Option<&E> {
        search(self.cause()?)
    }
}

/// The first `E` of a chain.
fn search<E: StdError + 'static>(error: &Dyn) -> Option<&E> {
    chain(Some(error), |error| held_by(error).or_else(|| error.source())).find_map(as_a)
}

/// The error as an `E`, which may lie in an `Arc` or a `Box`.
fn as_a<E: StdError + 'static>(error: &Dyn) -> Option<&E> {
    let shared = || error.downcast_ref::<Arc<E>>().map(|shared| &**shared);
    let boxed = || error.downcast_ref::<Box<E>>().map(|boxed| &**boxed);
    error.downcast_ref::<E>().or_else(shared).or_else(boxed)
}

/// What an error holds and does not return as its source.
fn held_by(error: &Dyn) -> Option<&Dyn> {
    if let Some(error) = as_a::<Error>(error) {
        return error.cause().map(|cause| cause as _);
    }
    if let Some(error) = as_a::<io::Error>(error) {
        return error.get_ref().map(|inner| inner as _);
    }
    if let Some(shared) = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
        return Some(&**shared);
    }
    if let Some(short) = as_a::<NotEnoughTime>(error) {
        return short.context_error().map(|ended| ended as _);
    }
    if let Some(stopped) = as_a::<Stopped>(error) {
        return Some(stopped.context_error());
    }
    if let Some(grace) = as_a::<GraceOver>(error) {
        return Some(grace.why());
    }
    if let Some(report) = as_a::<Report>(error) {
        return Some(report.why());
    }
    #[cfg(feature = "process")]
    if let Some(error) = as_a::<process::Error>(error) {
        return error.held();
    }
    group::held_by(error)
}
