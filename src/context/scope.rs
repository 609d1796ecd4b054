//! [`CancelScope`]: a context, together with the right to cancel it.
//!
//! A scope contains only its context. When it is dropped, it asks the token whether this is the last handle. If
//! so, no code can observe an end, and none is recorded.

use std::borrow::Borrow;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::panic::Location;

use super::context::Context;
use super::guard::{self, CancelGuard, Canceler};
use crate::error::{BoxError, How};

/// A context together with the right to cancel it. Dropping the scope cancels the context.
///
/// This is Go's `ctx, cancel := …` and `defer cancel()` in one value. Every method that derives a cancelable
/// context returns a scope: [`with_cancel`], [`with_timeout`], [`merge`] and others. A scope dereferences to
/// its [`Context`], so `&scope` can be passed wherever a `&Context` is expected.
///
/// A scope is not `Clone`, because one owner decides when the work is over. `scope.clone()` returns a plain
/// `Context`, which sees the end but cannot cause it. To transfer the right to cancel, move the scope. To share
/// it, create a [`canceler`](Self::canceler). To separate it from the context, [`split`](Self::split) the
/// scope.
///
/// ```compile_fail,E0308
/// # use tokio_ctx::{CancelScope, Context};
/// let scope = Context::background().with_cancel();
/// let second: CancelScope = scope.clone(); // expected `CancelScope`, found `Context`
/// ```
///
/// When a scope is dropped, the error of the context names the line that derived it. If there is no clone,
/// child or waiter left to see the end, none is recorded or traced. Once the context has ended, dropping the
/// scope has no effect.
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::{Context, Error};
///
/// # async fn fetch(_url: &str) -> String { String::new() }
/// # async fn render(ctx: &Context, _page: &str) -> Result<String, Error> { ctx.check().map(|()| String::new()) }
/// async fn answer(request: &Context) -> Result<String, Error> {
///     // One step, bounded in one expression.
///     let page = request.with_timeout(Duration::from_millis(80)).run(fetch("/news")).await?;
///
///     // Several steps under one deadline. Everything that they start stops when `ctx` is dropped.
///     let ctx = request.with_timeout(Duration::from_millis(200));
///     let log = ctx.clone();
///     tokio::spawn(async move { println!("rendering is over: {}", log.done().await) });
///     render(&ctx, &page).await
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() { answer(&Context::background()).await.unwrap(); }
/// ```
///
/// # Traps
///
/// **A child or a clone of a temporary.** A scope that is not kept in a variable is dropped at the end of its
/// statement, and everything that was derived or cloned from it ends. The error names the line:
///
/// ```
/// use std::time::Duration;
/// use tokio_ctx::Context;
///
/// # let request = Context::background();
/// # let d = Duration::from_secs(1);
/// let child = request.with_timeout(d).with_cancel();
/// // context canceled: scope dropped, context made at src/main.rs:4
/// let error = child.err().unwrap();
/// assert!(error.to_string().starts_with("context canceled: scope dropped, context made at "));
/// assert_eq!(error.origin().made_at().line(), line!() - 4);
///
/// let clone = request.with_timeout(d).clone();
/// assert!(clone.is_done());
///
/// // The same in a function: the caller gets a context that has ended.
/// fn bounded(request: &Context) -> Context {
///     request.with_timeout(Duration::from_secs(1)).clone()
/// }
/// assert!(bounded(&request).is_done());
///
/// // Right: return the scope itself, or give up the right to cancel with `detach`.
/// use tokio_ctx::CancelScope;
/// fn bounded_scope(request: &Context) -> CancelScope {
///     request.with_timeout(Duration::from_secs(1))
/// }
/// assert!(!bounded_scope(&request).is_done());
/// let ctx = request.with_timeout(d).detach();
/// assert!(!ctx.is_done());
/// ```
///
/// **A scope that is moved into a task** is dropped when the task ends, which also ends the work elsewhere.
/// Move a clone instead:
///
/// ```
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let job = Context::background().with_cancel();
/// let rest = job.clone();
/// let first_step = tokio::spawn(async move { job.run(async { 1 }).await });
/// assert_eq!(first_step.await.unwrap().unwrap(), 1);
/// assert!(rest.is_done()); // Wrong: the rest of the job has been canceled.
///
/// let job = Context::background().with_cancel();
/// let step = job.clone();
/// let first_step = tokio::spawn(async move { step.run(async { 1 }).await });
/// assert_eq!(first_step.await.unwrap().unwrap(), 1);
/// assert!(!job.is_done());
/// # }
/// ```
///
/// **`clone()` on a `&CancelScope`** copies the reference, as for every type that is not `Clone`. Use
/// `context().clone()`:
///
/// ```compile_fail,E0308
/// # use tokio_ctx::{CancelScope, Context};
/// fn watched(scope: &CancelScope) -> Context {
///     scope.clone() // expected `Context`, found `&CancelScope`
/// }
/// ```
///
/// ```
/// # use tokio_ctx::{CancelScope, Context};
/// fn watched(scope: &CancelScope) -> Context {
///     scope.context().clone()
/// }
/// # let scope = Context::background().with_cancel();
/// # let ctx = watched(&scope);
/// # drop(scope);
/// # assert!(ctx.is_done());
/// ```
///
/// **[`with_value`](Self::with_value) takes the scope by value**, so that `with_timeout(d).with_value(id)`
/// returns a scope. If you need the scope again, use `scope.context().with_value(…)`, as this accept loop does
/// for every connection:
///
/// ```
/// use std::net::SocketAddr;
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio_ctx::Context;
///
/// struct Peer(SocketAddr);
///
/// # async fn talk(_: Context, _: TcpStream) {}
/// async fn serve(parent: &Context, listener: TcpListener) -> std::io::Result<()> {
///     let service = parent.with_cancel();
///     while let Ok(accepted) = service.run(listener.accept()).await {
///         let (connection, peer) = accepted?;
///         let ctx = service.context().with_value(Peer(peer));
///         tokio::spawn(talk(ctx, connection));
///     }
///     Ok(())
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// #     let listener = TcpListener::bind("127.0.0.1:0").await?;
/// #     let client = TcpStream::connect(listener.local_addr()?).await?;
/// #     let until = Context::background().with_timeout(std::time::Duration::from_millis(20));
/// #     serve(&until, listener).await?;
/// #     drop(client);
/// #     Ok(())
/// # }
/// ```
///
/// # In `join!` and `select!`
///
/// A temporary scope does not live long enough in these macros, and does not compile:
///
/// ```compile_fail,E0716
/// # use std::time::Duration;
/// # async fn fetch(_url: &str) -> u32 { 1 }
/// # async fn both(ctx: &tokio_ctx::Context, d: Duration) {
/// tokio::join!(ctx.with_timeout(d).run(fetch("/a")), ctx.with_timeout(d).run(fetch("/b")));
/// # }
/// ```
///
/// ```compile_fail,E0716
/// # use std::time::Duration;
/// # async fn fetch(_url: &str) -> u32 { 1 }
/// # async fn first(ctx: &tokio_ctx::Context, d: Duration) {
/// tokio::select! {
///     _ = ctx.with_timeout(d).run(fetch("/a")) => {}
///     _ = ctx.with_timeout(d).run(fetch("/b")) => {}
/// }
/// # }
/// ```
///
/// Use [`Context::within`], whose future owns the scope:
///
/// ```
/// # use std::time::Duration;
/// # async fn fetch(_url: &str) -> u32 { 1 }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let (ctx, d) = (tokio_ctx::Context::background(), Duration::from_secs(1));
/// let (a, b) = tokio::join!(
///     ctx.within(d, async |_| fetch("/a").await),
///     ctx.within(d, async |_| fetch("/b").await),
/// );
/// # assert_eq!(a.unwrap() + b.unwrap(), 2);
/// # }
/// ```
///
/// [`with_cancel`]: Context::with_cancel
/// [`with_timeout`]: Context::with_timeout
/// [`merge`]: Context::merge
#[must_use = "dropping the scope ends its context"]
pub struct CancelScope(Context);

impl CancelScope {
    pub(crate) fn new(ctx: Context) -> Self {
        CancelScope(ctx)
    }

    /// Cancels the context. Go's `cancel()`, tokio-util's `CancellationToken::cancel`.
    ///
    /// The error names the line of this call. If the context has already ended, this has no effect. When it
    /// returns, every descendant has ended as well, even if another thread called it first. It can be called
    /// from any thread, with or without a runtime. A waker that panics neither prevents others from being
    /// woken, nor makes this call panic.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let child = ctx.with_cancel();
    /// ctx.cancel();
    /// assert_eq!(child.err().unwrap().origin().canceled_at().unwrap().line(), line!() - 1);
    /// ```
    #[track_caller]
    pub fn cancel(&self) {
        guard::cancel(self.0.token(), None);
    }

    /// Cancels the context with a cause, which is the [`cause`](crate::Error::cause) of its error. Go's
    /// `CancelCauseFunc`.
    ///
    /// The cause lives as long as the context. A cause that contains a handle of this context is a reference
    /// cycle, and is never freed. An [`Error`](crate::Error) contains no handles and is safe to use as a cause,
    /// but a loop that passes each error to the next context builds an [unbounded
    /// chain](guide/traps/index.html#an-error-as-the-cause-of-the-next).
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// ctx.cancel_with("client hung up");
    /// assert!(ctx.err().unwrap().to_string().ends_with(": client hung up"));
    /// ```
    #[track_caller]
    pub fn cancel_with(&self, cause: impl Into<BoxError>) {
        guard::cancel_with(self.0.token(), cause);
    }

    /// Cancels the context with `place` as the line in the error.
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = self.0.token() {
            token.end(How::Canceled(place), Some(cause), None);
        }
    }

    /// Returns whether anything besides this scope can observe its end.
    #[cfg(feature = "tower")]
    pub(crate) fn is_observed(&self) -> bool {
        self.0.token().is_some_and(|token| token.is_observed())
    }

    /// Returns a handle that can cancel the context, can be cloned, and has no effect when dropped.
    ///
    /// ```
    /// let ctx = tokio_ctx::Context::background().with_cancel();
    /// let canceler = ctx.canceler();
    /// std::thread::spawn(move || canceler.cancel_with("gave up")).join().unwrap();
    /// assert!(ctx.is_done());
    /// ```
    pub fn canceler(&self) -> Canceler {
        Canceler::new(self.0.token().cloned())
    }

    /// Adds a value to the scope's context, and returns the scope. See [`Context::with_value`].
    ///
    /// Existing clones and children do not see the value. To keep the scope, call
    /// `scope.context().with_value(v)`, which returns a plain `Context`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    ///
    /// struct RequestId(u64);
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_secs(1)).with_value(RequestId(7));
    /// assert_eq!(ctx.value::<RequestId>().unwrap().0, 7);
    /// assert!(!ctx.is_done());
    /// ```
    pub fn with_value<T: Send + Sync + 'static>(mut self, value: T) -> CancelScope {
        self.0.add_value(value);
        self
    }

    /// Returns the context. `scope.context().clone()` also works where `scope` is a reference.
    ///
    /// ```
    /// let scope = tokio_ctx::Context::background().with_cancel();
    /// let watched = scope.context().clone();
    /// drop(scope);
    /// assert!(watched.is_done());
    /// ```
    pub fn context(&self) -> &Context {
        &self.0
    }

    #[cfg(feature = "http")]
    pub(crate) fn context_mut(&mut self) -> &mut Context {
        &mut self.0
    }

    /// Gives up the right to cancel, and returns the context. tokio-util's `DropGuard::disarm`.
    ///
    /// The context then ends with its parent or at its deadline.
    ///
    /// ```
    /// let parent = tokio_ctx::Context::background().with_cancel();
    /// let ctx = parent.with_cancel().detach();
    /// assert!(!ctx.is_done());
    /// drop(parent);
    /// assert!(ctx.is_done());
    /// ```
    pub fn detach(mut self) -> Context {
        // Dropping the background that is left behind has no effect.
        mem::take(&mut self.0)
    }

    /// Splits the scope into the context and a guard, which cancels the context when dropped.
    ///
    /// Keep the guard in a variable: `let (ctx, _) = …` drops it immediately, which ends the context.
    ///
    /// ```
    /// use tokio::task::JoinHandle;
    /// use tokio_ctx::{CancelGuard, Context};
    ///
    /// /// Stops its task when dropped.
    /// struct Poller {
    ///     task: JoinHandle<()>,
    ///     _stop: CancelGuard,
    /// }
    ///
    /// # async fn poll_until_done(ctx: Context) { ctx.done().await; }
    /// impl Poller {
    ///     fn start(parent: &Context) -> Poller {
    ///         let (ctx, stop) = parent.with_cancel().split();
    ///         Poller { task: tokio::spawn(poll_until_done(ctx)), _stop: stop }
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let Poller { task, _stop } = Poller::start(&Context::background());
    /// # drop(_stop);
    /// # task.await.unwrap();
    /// # }
    /// ```
    pub fn split(mut self) -> (Context, CancelGuard) {
        let ctx = mem::take(&mut self.0);
        let guard = CancelGuard::new(ctx.token().cloned());
        (ctx, guard)
    }
}

impl Drop for CancelScope {
    #[inline]
    fn drop(&mut self) {
        guard::cancel_on_drop(self.0.token());
    }
}

impl Deref for CancelScope {
    type Target = Context;

    #[inline]
    fn deref(&self) -> &Context {
        &self.0
    }
}

impl AsRef<Context> for CancelScope {
    fn as_ref(&self) -> &Context {
        &self.0
    }
}

impl Borrow<Context> for CancelScope {
    fn borrow(&self) -> &Context {
        &self.0
    }
}

/// Prints the same as the scope's [`Context`].
impl fmt::Display for CancelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CancelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CancelScope").field(&self.0).finish()
    }
}

#[cfg(all(test, not(tokio_ctx_loom)))]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn scopes() -> Vec<CancelScope> {
        let root = Context::background();
        vec![
            root.with_cancel(),
            root.with_timeout(LONG),
            root.with_timeout_cause(LONG, "late"),
            root.with_deadline(Instant::now() + LONG),
            root.with_cancel().detach().merge(&root.with_timeout(LONG).detach()),
            root.with_timeout(LONG).with_value("alice"),
            root.with_token(&CancellationToken::new()),
            root.with_cancel().detach().with_cancel(),
        ]
    }

    /// Returns whether dropping this scope ends its context: does what the drop does, and then checks.
    fn ends(scope: &CancelScope) -> bool {
        guard::cancel_on_drop(scope.0.token());
        scope.0.token().unwrap().ended()
    }

    #[test]
    fn dropping_a_scope_that_nothing_observes_records_no_end() {
        for (nth, scope) in scopes().into_iter().enumerate() {
            assert!(!ends(&scope), "scope {nth}");
            // Handles that have been dropped do not count.
            drop(scope.clone());
            drop(scope.canceler());
            drop(scope.context().with_value(1_u8));
            drop(scope.with_timeout(LONG));
            drop(scope.done());
            assert!(!ends(&scope), "scope {nth}, after its handles");
            let scope = scope.with_value(2_u8);
            assert!(!ends(&scope), "scope {nth}, with a value");
        }
    }

    #[test]
    fn dropping_a_scope_that_something_observes_records_an_end() {
        type Keep = fn(&CancelScope) -> Box<dyn std::any::Any>;
        let keepers: [Keep; 6] = [
            |scope| Box::new(scope.context().clone()),
            |scope| Box::new(scope.canceler()),
            |scope| Box::new(scope.context().with_value(1_u8)),
            |scope| Box::new(scope.with_cancel()),
            |scope| Box::new(scope.with_cancel().detach()),
            |scope| Box::new(scope.done_owned()),
        ];
        for (nth, keep) in keepers.into_iter().enumerate() {
            for (which, scope) in scopes().into_iter().enumerate() {
                let kept = keep(&scope);
                assert!(ends(&scope), "keeper {nth} of scope {which}");
                drop(kept);
            }
        }
    }
}
