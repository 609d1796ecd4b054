//! `current`: the context of the current task.
//!
//! While a task is polled, its context is moved into a thread-local, and back afterwards, so that no poll clones it.

use std::cell::RefCell;
use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::task::{self, Poll};

use pin_project_lite::pin_project;

use super::context::Context;
#[cfg(feature = "tracing")]
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tracing")]
use crate::trace::shielded;

thread_local! {
    /// The background outside of all scopes. It has no destructor, so that it can be used until the thread ends; [`Entered`]
    /// always takes the context out again.
    static CURRENT: RefCell<ManuallyDrop<Context>> =
        const { RefCell::new(ManuallyDrop::new(Context::background())) };
}

/// Keeps a context the current one until it is dropped.
pub(crate) struct Entered<'a>(&'a mut Context);

/// Makes the context in `lent` the current one, until the guard is dropped and moves it back.
#[inline]
pub(crate) fn enter(lent: &mut Context) -> Entered<'_> {
    swap(lent);
    Entered(lent)
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        swap(self.0);
    }
}

#[inline]
fn swap(lent: &mut Context) {
    CURRENT.with(|current| mem::swap(&mut **current.borrow_mut(), lent));
}

pin_project! {
    /// A future that is polled, and dropped, with its context as the current one.
    struct Scoped<F> {
        ctx: Context,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Scoped<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                let _entered = enter(this.ctx);
                this.future.set(None);
            }
        }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _entered = enter(this.ctx);
        let future = this.future.as_mut().as_pin_mut().expect("polled again after it was ready");
        let polled = future.poll(cx);
        if polled.is_ready() {
            this.future.set(None);
        }
        polled
    }
}

/// # The current context
impl Context {
    /// Returns the current context of this task, or the background if there is none.
    ///
    /// It is set by [`spawn`](Self::spawn) and the other methods that spawn tasks, [`scope`](Self::scope),
    /// [`sync_scope`], [`within`](Self::within) and `run_in_span`; the innermost one applies. A task that was
    /// started with [`tokio::spawn`] has no current context. Go has no counterpart. [The
    /// rules](https://docs.rs/tokio-ctx/latest/tokio_ctx/guide/rules/index.html#where-current-is-right) say when to use it.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// fn log_line(text: &str) -> String {
    ///     match Context::current().value::<RequestId>() {
    ///         Some(id) => format!("[{}] {text}", id.0),
    ///         None => text.to_string(),
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_value(RequestId(7));
    /// assert_eq!(ctx.scope(async { log_line("hello") }).await, "[7] hello");
    /// assert_eq!(log_line("hello"), "hello");
    /// # }
    /// ```
    ///
    /// [`sync_scope`]: Self::sync_scope
    /// [`tokio::spawn`]: https://docs.rs/tokio/1/tokio/task/fn.spawn.html
    pub fn current() -> Context {
        CURRENT.with(|current| Context::clone(&current.borrow()))
    }

    /// Runs a future with this context as the [`current`](Self::current) context.
    ///
    /// The future is not stopped when the context ends; combine this with [`run`](Self::run) for that. Calls
    /// can be nested.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// ctx.cancel();
    /// let seen = ctx.scope(async { Context::current().is_done() }).await;
    /// assert!(seen);
    /// # }
    /// ```
    pub fn scope<F: Future>(&self, f: F) -> impl Future<Output = F::Output> + use<F> {
        Scoped { ctx: self.clone(), future: Some(f) }
    }

    /// Calls a function with this context as the [`current`](Self::current) context.
    ///
    /// ```
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_value(42_u8);
    /// let found = ctx.sync_scope(|| Context::current().value::<u8>().copied());
    /// assert_eq!(found, Some(42));
    /// ```
    pub fn sync_scope<R>(&self, f: impl FnOnce() -> R) -> R {
        self.clone().enter(f)
    }

    /// Like [`sync_scope`](Self::sync_scope), but takes the context by value.
    #[inline]
    pub(crate) fn enter<R>(mut self, f: impl FnOnce() -> R) -> R {
        let _entered = enter(&mut self);
        f()
    }

    /// Runs a future until the context ends, inside a tracing span, and records in the span how it ended.
    ///
    /// This combines [`run`](Self::run) and [`scope`](Self::scope), and enters the span on every poll. The
    /// future owns a clone of the context, so it can be spawned. For a fallible future, use
    /// [`try_run_in_span`](Self::try_run_in_span).
    ///
    /// The following fields are recorded, if the span declares them:
    ///
    /// - `deadline_ms`: the time left at the start, in milliseconds.
    /// - `status`: `done`, `canceled`, `deadline exceeded`, `dropped` or `panicked`.
    /// - `otel.status_code`: `ERROR` after a deadline or a panic, for
    ///   [OpenTelemetry](https://docs.rs/tracing-opentelemetry).
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it ends first.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tracing::{Instrument as _, field, info_span};
    ///
    /// # async fn load_profile(_id: u32) -> String { "ada".into() }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(80));
    /// let span = info_span!("profile", id = 7, deadline_ms = field::Empty, status = field::Empty);
    /// let profile = ctx.run_in_span(span, load_profile(7)).await?;
    /// assert_eq!(profile, "ada");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    pub fn run_in_span<F: Future>(
        &self,
        span: tracing::Span,
        f: F,
    ) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        self.bounded_in_span(span, self.run_owned(f), |_, run| match run {
            Ok(_) => Status::Done,
            Err(ended) => Status::Ended(ended.kind()),
        })
    }

    /// Runs a fallible future until the context ends, inside a tracing span, and returns a single flat result.
    ///
    /// See [`run_in_span`](Self::run_in_span). If the future returns an error, the status is `failed`, and
    /// `otel.status_code` is `ERROR`. But if the context has ended by then, the status is `canceled` or
    /// `deadline exceeded`, because the future most likely returned the error of the context.
    ///
    /// # Errors
    ///
    /// Returns the error of the future, or the context's [`err`](Self::err) if it ends first, converted into
    /// `E`.
    ///
    /// # Panics
    ///
    /// See [`run`](Self::run).
    ///
    /// ```
    /// use std::io;
    /// use tokio_ctx::Context;
    /// use tracing::{field, info_span};
    ///
    /// # async fn load_profile(_id: u32) -> io::Result<String> { Ok("ada".into()) }
    /// async fn profile(ctx: &Context, id: u32) -> io::Result<String> {
    ///     let span = info_span!("profile", id, status = field::Empty);
    ///     ctx.try_run_in_span(span, load_profile(id)).await
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() { assert_eq!(profile(&Context::background(), 7).await.unwrap(), "ada"); }
    /// ```
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    pub fn try_run_in_span<F, T, E>(
        &self,
        span: tracing::Span,
        f: F,
    ) -> impl Future<Output = Result<T, E>> + use<F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let bounded = self.run_owned(f);
        self.bounded_in_span(span, async move { bounded.await? }, |ctx, result| match result {
            Ok(_) => Status::Done,
            Err(_) => ctx.err().map_or(Status::Failed, |ended| Status::Ended(ended.kind())),
        })
    }

    #[cfg(feature = "tracing")]
    fn bounded_in_span<F, S>(
        &self,
        span: tracing::Span,
        bounded: F,
        status: S,
    ) -> impl Future<Output = F::Output> + use<F, S>
    where
        F: Future,
        S: FnOnce(&Context, &F::Output) -> Status,
    {
        use tracing::Instrument;

        if let Some(left) = self.remaining().filter(|_| !span.is_disabled()) {
            shielded(|| span.record("deadline_ms", left.as_secs_f64() * 1e3).is_disabled());
        }
        let mut recorder = Recorder { span: span.clone(), status: None };
        let (ctx, bounded) = (self.clone(), self.scope(bounded));
        let recorded = async move {
            let output = bounded.await;
            recorder.status = Some(status(&ctx, &output));
            drop(recorder);
            output
        };
        recorded.instrument(span)
    }
}

/// How a future in a span ended, unless it was dropped.
#[cfg(feature = "tracing")]
enum Status {
    Done,
    Failed,
    Ended(ErrorKind),
}

/// Records in a span how its future ended. Without a status, it was dropped or panicked.
#[cfg(feature = "tracing")]
struct Recorder {
    span: tracing::Span,
    status: Option<Status>,
}

#[cfg(feature = "tracing")]
impl Drop for Recorder {
    fn drop(&mut self) {
        let (status, is_error) = match self.status {
            Some(Status::Done) => ("done", false),
            Some(Status::Failed) => ("failed", true),
            Some(Status::Ended(ErrorKind::Canceled)) => ("canceled", false),
            Some(Status::Ended(ErrorKind::DeadlineExceeded)) => ("deadline exceeded", true),
            None if std::thread::panicking() => ("panicked", true),
            None => ("dropped", false),
        };
        // A subscriber that panics must not panic inside a drop.
        shielded(|| {
            self.span.record("status", status);
            if is_error {
                self.span.record("otel.status_code", "ERROR");
            }
        });
    }
}
