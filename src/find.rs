//! Searches for an error of a given type in a chain of errors, including errors that `source` does not return.
//!
//! An error whose `Display` includes an inner error must not return that error as its
//! [`source`](StdError::source), because a printed chain would contain it twice. The errors of this crate work
//! in this way, and so do [`io::Error`], `Arc` and `Box`. [`held_by`] returns the inner error of each. The
//! source of the inner error is what `source` returns, so following the inner errors first visits the whole
//! chain.

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
    /// Finds an error of this type anywhere in a chain of errors. Go's `errors.Is(err, context.Canceled)`.
    ///
    /// Searches `error` itself, its [`source`](StdError::source)s, and errors inside an [`io::Error`], an
    /// `Arc`, a `Box`, and the errors of this crate, which `source` does not return. Returns the outermost one.
    /// A cyclic chain ends the search.
    ///
    /// For an `anyhow::Error` pass `error.as_ref()`, and for a boxed error `&*error`.
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

    /// Returns the cause as an `E`, if it is one or contains one. Go's `errors.As(context.Cause(ctx), &e)`.
    ///
    /// Searches the cause in the same way as [`find`](Self::find). If the cause is another [`Error`], its cause
    /// is searched as well.
    ///
    /// Converting an `anyhow::Error` into a cause hides the type of its outermost error. To keep the type, pass
    /// `error.reallocate_into_boxed_dyn_error_without_backtrace()`.
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

/// Returns the first `E` of a chain.
fn search<E: StdError + 'static>(error: &Dyn) -> Option<&E> {
    chain(Some(error), |error| held_by(error).or_else(|| error.source())).find_map(as_a)
}

/// Returns the error as an `E`, possibly from inside an `Arc` or a `Box`.
fn as_a<E: StdError + 'static>(error: &Dyn) -> Option<&E> {
    let shared = || error.downcast_ref::<Arc<E>>().map(|shared| &**shared);
    let boxed = || error.downcast_ref::<Box<E>>().map(|boxed| &**boxed);
    error.downcast_ref::<E>().or_else(shared).or_else(boxed)
}

/// Returns the inner error that an error does not return as its source.
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
