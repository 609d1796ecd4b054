//! `ended`: futures that wait for the end and return `()`, for APIs that take a `Future<Output = ()>`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use futures_core::future::FusedFuture;
use pin_project_lite::pin_project;

use super::context::Context;
use super::done::{Done, DoneOwned};

impl Context {
    /// Waits until the context ends, like [`done`](Self::done), and returns `()`.
    ///
    /// # Panics
    ///
    /// See [`done`](Self::done).
    ///
    /// ```
    /// use futures::StreamExt as _;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let numbers = futures::stream::iter(1..).take_until(ctx.ended());
    /// ctx.cancel();
    /// assert_eq!(numbers.count().await, 0);
    /// # }
    /// ```
    pub fn ended(&self) -> Ended<'_> {
        Ended { done: self.done() }
    }

    /// Like [`ended`](Self::ended), but the future owns a clone of the context.
    ///
    /// Servers take such a future as their signal to stop, for example axum's `with_graceful_shutdown` and
    /// tonic's `serve_with_shutdown`.
    ///
    /// # Panics
    ///
    /// See [`done`](Self::done).
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tokio::net::TcpListener;
    /// use tokio_ctx::{Context, Shutdown};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new(&Context::background());
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let app = Router::new().route("/", get(async || "hello"));
    /// let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.soft().ended_owned());
    ///
    /// shutdown.begin("SIGTERM");
    /// server.await
    /// # }
    /// ```
    pub fn ended_owned(&self) -> EndedOwned {
        EndedOwned { done: self.done_owned() }
    }
}

pin_project! {
    /// Future for [`Context::ended`]: like [`Done`], but resolves to `()`.
    #[must_use = "futures do nothing unless polled"]
    pub struct Ended<'a> {
        #[pin]
        done: Done<'a>,
    }
}

pin_project! {
    /// Future for [`Context::ended_owned`]: like [`Ended`], but owns its context.
    #[must_use = "futures do nothing unless polled"]
    pub struct EndedOwned {
        #[pin]
        done: DoneOwned,
    }
}

impl Future for Ended<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        self.project().done.poll(cx).map(drop)
    }
}

impl Future for EndedOwned {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        self.project().done.poll(cx).map(drop)
    }
}

impl FusedFuture for Ended<'_> {
    fn is_terminated(&self) -> bool {
        self.done.is_terminated()
    }
}

impl FusedFuture for EndedOwned {
    fn is_terminated(&self) -> bool {
        self.done.is_terminated()
    }
}

impl fmt::Debug for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ended").field(&self.done).finish()
    }
}

impl fmt::Debug for EndedOwned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EndedOwned").field(&self.done).finish()
    }
}
