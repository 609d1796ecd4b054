//! `with_cancel_when`: a context that ends when a future resolves.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::pin;

use super::context::Context;
use super::guard::Canceler;
use super::registered::Registered;
use super::scope::CancelScope;
use crate::error::{BoxError, Place};
use crate::registry::{self, Kind};

impl Context {
    /// Derives a child that also ends when a future resolves, with the future's output as the cause.
    ///
    /// Use it for events that should end work from outside, such as a message on a channel, a flag that
    /// changes, or a lost lease. The error names the line of this call.
    ///
    /// The future runs on a new task, with this context as [`current`](Self::current). The task keeps the child
    /// alive. It drops the future as soon as the child ends in another way, and does not poll it if this
    /// context has already ended. The child also ends if the future panics, or is dropped together with its
    /// runtime; the cause says so.
    ///
    /// In Go, a goroutine receives from a channel and calls `cancel`.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime. If the context has a deadline and the runtime has no time driver, the
    /// task panics and the child ends.
    ///
    /// # Examples
    ///
    /// A message on a `oneshot` channel. If the sender is dropped, the context continues:
    ///
    /// ```
    /// use tokio::sync::oneshot;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (stop, stopped) = oneshot::channel::<String>();
    /// let ctx = Context::background().with_cancel_when(async {
    ///     match stopped.await {
    ///         Ok(reason) => reason,
    ///         Err(_) => std::future::pending().await,
    ///     }
    /// });
    ///
    /// stop.send("the operator said so".into()).unwrap();
    /// let error = ctx.done().await;
    /// assert_eq!(error.cause().unwrap().to_string(), "the operator said so");
    /// # }
    /// ```
    ///
    /// A `watch` channel that changes to true:
    ///
    /// ```
    /// use tokio::sync::watch;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let (maintenance, mut watched) = watch::channel(false);
    /// let ctx = Context::background().with_cancel_when(async move {
    ///     match watched.wait_for(|on| *on).await {
    ///         Ok(_) => "maintenance has begun",
    ///         Err(_) => "the maintenance flag is gone",
    ///     }
    /// });
    ///
    /// assert!(!ctx.is_done());
    /// maintenance.send(true).unwrap();
    /// assert!(ctx.done().await.to_string().ends_with(": maintenance has begun"));
    /// # }
    /// ```
    ///
    /// A lease that is lost, with a custom error type as the cause:
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// #[derive(Debug)]
    /// struct LeaseLost(u32);
    /// # impl std::fmt::Display for LeaseLost {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    /// #         write!(f, "lease lost after {} renewals", self.0)
    /// #     }
    /// # }
    /// impl std::error::Error for LeaseLost {}
    ///
    /// # async fn renew(times: u32) -> bool { times < 3 }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let leading = Context::background().with_cancel_when(async {
    ///     let mut renewals = 0;
    ///     while renew(renewals).await {
    ///         renewals += 1;
    ///         tokio::time::sleep(Duration::from_secs(10)).await;
    ///     }
    ///     LeaseLost(renewals)
    /// });
    ///
    /// let stopped = leading.sleep(Duration::from_secs(3600)).await.unwrap_err();
    /// assert_eq!(stopped.cause_as::<LeaseLost>().unwrap().0, 3);
    /// # }
    /// ```
    #[track_caller]
    pub fn with_cancel_when<F>(&self, reason: F) -> CancelScope
    where
        F: Future + Send + 'static,
        F::Output: Into<BoxError>,
    {
        let called_at = Location::caller();
        let scope = self.with_cancel();
        let trigger = Trigger { canceler: Some(scope.canceler()), called_at };
        let watched = scope.clone();
        let registered = Registered::new(self, Kind::Task, called_at);
        let watching = registered.held_by(async move {
            match watched.run(caught(reason, called_at)).await {
                Ok(Ok(cause)) => trigger.cancel(cause),
                Ok(Err(panic)) => trigger.cancel(Panicked(panic_text(&*panic)).into()),
                Err(_ended_otherwise) => trigger.disarm(),
            }
        });
        tokio::spawn(self.scope(watching));
        scope
    }
}

/// Ends the context, at the latest when it is dropped.
struct Trigger {
    canceler: Option<Canceler>,
    called_at: &'static Location<'static>,
}

impl Trigger {
    fn cancel(mut self, cause: BoxError) {
        if let Some(canceler) = self.canceler.take() {
            canceler.cancel_for(self.called_at, cause);
        }
    }

    fn disarm(mut self) {
        self.canceler = None;
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        if let Some(canceler) = self.canceler.take() {
            let text =
                format!("the future given at {} was dropped before it resolved", Place(self.called_at));
            canceler.cancel_for(self.called_at, text.into());
        }
    }
}

/// Returns the future's output as a cause, or the payload of its panic. Drops the future in either case.
async fn caught<F>(
    future: F,
    called_at: &'static Location<'static>,
) -> Result<BoxError, Box<dyn Any + Send>>
where
    F: Future,
    F::Output: Into<BoxError>,
{
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = || future.as_mut().poll(cx).map(|cause| registry::boxed(called_at, cause));
        // A future that has panicked is not polled again.
        match catch_unwind(AssertUnwindSafe(polled)) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    })
    .await
}

#[derive(Debug)]
struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the future that was to end the context panicked: {}", self.0)
    }
}

impl StdError for Panicked {}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text").to_owned()
}
