//! [`CancelScope`]: a context, together with the right to cancel it.
//!
//! A scope holds one handle, its context's, and is as large as a [`Context`]. Its drop asks the token whether
//! that handle is the last one: then no code can see an end, and none is made.

use std::borrow::Borrow;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::panic::Location;

use super::context::Context;
use super::guard::{self, CancelGuard, Canceler};
use crate::error::BoxError;

/// A context that ends when this is dropped: Go's `ctx, cancel := …` and `defer cancel()` in one value.
///
/// Every method that derives a context with an end of its own returns one: [`with_cancel`],
/// [`with_timeout`], [`merge`] and the like. It dereferences to its [`Context`], so that `&scope` goes
/// wherever `&Context` does.
///
/// A scope is not `Clone`: one owner decides when the work is over. `clone()` returns a plain `Context`, which
/// sees the end and cannot make it. To pass the right to cancel on, move the scope; to share it, hand out a
/// [`canceler`](Self::canceler); to keep it apart from the context, [`split`](Self::split) the two.
///
/// ```compile_fail,E0308
/// # use tokio_ctx::{CancelScope, Context};
/// let scope = Context::background().with_cancel();
/// let second: CancelScope = scope.clone(); // expected `CancelScope`, found `Context`
/// ```
///
/// Dropped, it ends the context, with an error that names the line which made it. If no clone, child or
/// waiter is left to see that, no end is made, and none is traced. Once the context has ended, the drop has no
/// effect.
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
///     // Several steps under one budget. What is still at work for them stops when `ctx` goes.
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
/// statement, and what was derived or cloned from it ends there. The error names the line:
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
/// // The same in a function: its caller gets what has ended.
/// fn bounded(request: &Context) -> Context {
///     request.with_timeout(Duration::from_secs(1)).clone()
/// }
/// assert!(bounded(&request).is_done());
///
/// // Returned as it is, the scope lives on. To end with the request and the deadline alone: `.detach()`.
/// use tokio_ctx::CancelScope;
/// fn bounded_scope(request: &Context) -> CancelScope {
///     request.with_timeout(Duration::from_secs(1))
/// }
/// assert!(!bounded_scope(&request).is_done());
/// let ctx = request.with_timeout(d).detach();
/// assert!(!ctx.is_done());
/// ```
///
/// **A scope that is moved into a task** is dropped with it, and ends what goes on elsewhere. Move a clone:
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
/// assert!(rest.is_done()); // The rest of the job was not done.
///
/// let job = Context::background().with_cancel();
/// let step = job.clone();
/// let first_step = tokio::spawn(async move { step.run(async { 1 }).await });
/// assert_eq!(first_step.await.unwrap().unwrap(), 1);
/// assert!(!job.is_done());
/// # }
/// ```
///
/// **`clone()` of a `&CancelScope`** copies the reference, as for every type that is not `Clone` (the compiler
/// warns of it where the types fit: `noop_method_call`). `context().clone()` is meant:
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
/// **[`with_value`](Self::with_value) takes the scope.** That keeps the owner in
/// `with_timeout(d).with_value(id)`. A scope that is used again stays where it is with
/// `scope.context().with_value(…)`, as here for every connection:
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
/// There a temporary would have to outlive its statement, and does not compile:
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
/// [`Context::within`] holds the scope itself:
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

    /// Ends the context, from any thread; once it has ended, does nothing.
    ///
    /// When this returns, every descendant has ended too, also if another call was first. The line of this call
    /// is in the error. A waker that panics keeps no other from being woken, and does not make this call panic.
    /// Go's `cancel()`, tokio-util's `CancellationToken::cancel`.
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

    /// [`cancel`](Self::cancel), and says why: the cause is the error's [`cause`](crate::Error::cause). Go's
    /// `CancelCauseFunc`.
    ///
    /// A cause lives as long as the context; one that holds this very context, or its guard, is never
    /// freed. An [`Error`](crate::Error) of another context, or of this one's children, holds none; but a loop
    /// that gives each error to the next context builds a
    /// [chain](guide/traps/index.html#an-error-as-the-cause-of-the-next) without bound.
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

    /// [`cancel_with`](Self::cancel_with), in the name of another line.
    pub(crate) fn cancel_at(&self, place: &'static Location<'static>, cause: BoxError) {
        if let Some(token) = self.0.token() {
            token.cancel(Some(place), Some(cause));
        }
    }

    /// A handle with the same two methods that can be cloned, and has no effect when dropped.
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

    /// The same scope, whose context carries `value` as well: [`Context::with_value`], keeping the owner.
    ///
    /// Clones and children that were made before do not see the value. `scope.context().with_value(v)`
    /// leaves the scope where it is, and returns a `Context`.
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

    /// The context. `scope.context().clone()` is what `scope.clone()` is, also where `scope` is a reference.
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

    /// Gives up the right to cancel: the context is left to its parent and its deadline.
    ///
    /// tokio-util's `DropGuard::disarm`.
    ///
    /// ```
    /// let parent = tokio_ctx::Context::background().with_cancel();
    /// let ctx = parent.with_cancel().detach();
    /// assert!(!ctx.is_done());
    /// drop(parent);
    /// assert!(ctx.is_done());
    /// ```
    pub fn detach(mut self) -> Context {
        // The background takes its place, which has no end.
        mem::take(&mut self.0)
    }

    /// The context, and apart from it the right to cancel, for where the two go different ways.
    ///
    /// Keep the guard in a variable: `let (ctx, _) = …` drops it, and ends the context, at once.
    ///
    /// ```
    /// use tokio::task::JoinHandle;
    /// use tokio_ctx::{CancelGuard, Context};
    ///
    /// /// Stops its task when it is dropped.
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
        if let Some(token) = self.0.token() {
            token.abandon();
        }
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

/// As its [`Context`].
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

    /// Whether the drop of this scope would make an end: it does what the drop does, and looks.
    fn ends(scope: &CancelScope) -> bool {
        scope.0.token().unwrap().abandon();
        scope.0.token().unwrap().ended()
    }

    #[test]
    fn a_scope_that_nothing_else_sees_makes_no_end() {
        for (nth, scope) in scopes().into_iter().enumerate() {
            assert!(!ends(&scope), "scope {nth}");
            // What came and went leaves nothing behind.
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
    fn a_scope_that_something_sees_makes_one() {
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
