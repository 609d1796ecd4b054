//! Go's `context`, made native to Tokio.
//!
//! A [`Context`] is one value that flows down an async call tree and carries a cancellation signal, a deadline
//! and request-scoped values. When work is stopped, the [`Error`] says why, and which line of code stopped it.
//!
//! ```
//! use std::time::Duration;
//! use tokio_ctx::{Context, Error};
//!
//! async fn fetch(ctx: &Context, item: u32) -> Result<u32, Error> {
//!     // `run` runs any future until the context ends.
//!     ctx.run(tokio::time::sleep(Duration::from_millis(30))).await?;
//!     Ok(item * 2)
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let ctx = Context::background().with_timeout(Duration::from_millis(100));
//!
//! let mut fetched = Vec::new();
//! let stopped = loop {
//!     match fetch(&ctx, fetched.len() as u32).await {
//!         Ok(item) => fetched.push(item),
//!         Err(stopped) => break stopped,
//!     }
//! };
//!
//! assert_eq!(fetched, [0, 2, 4]);
//! // context deadline exceeded: 100ms budget set at src/main.rs:10
//! println!("{stopped}");
//! # assert!(stopped.is_deadline_exceeded());
//! # }
//! ```
//!
//! New users start with the [tutorial](guide/tutorial/index.html) and [the rules](guide/rules/index.html).
//!
//! # What to use
//!
//! | to | use |
//! |---|---|
//! | make work cancelable | [`Context::with_cancel`], and keep the [`CancelScope`] |
//! | give work a deadline | [`Context::with_timeout`], [`Context::with_deadline`] |
//! | give one step a shorter deadline | `ctx.with_timeout(d).run(step)`, [`Context::within`], [`Context::try_within`] |
//! | fail early if too little time is left | [`Context::require`] |
//! | retry, limit the time without progress, share work, skip overdue work | the module [`budget`] |
//! | let other code cancel the work | [`CancelScope::canceler`], [`CancelScope::split`] |
//! | run a future until the context ends | [`Context::run`], [`FutureExt::bounded_by`] |
//! | spawn a task that is stopped when the context ends, or that receives the context | [`Context::spawn_bounded`], [`Context::spawn_with`] |
//! | tell a server when to stop | [`Context::ended_owned`] |
//! | wait for the end in `tokio::select!` | [`Context::done`] |
//! | stop a loop that computes | [`Context::check`], with `?` |
//! | clean up after the end | [`Context::after_func`], [`Context::without_cancel`], [`Context::keeping_deadline`] |
//! | carry a request ID | [`Context::with_value`], [`Context::value`] |
//! | reach the context without a parameter | [`Context::scope`], [`Context::spawn`], [`Context::current`] |
//! | end work on an event: a message, a flag, a lost lease | [`Context::with_cancel_when`] |
//! | call code that takes a `CancellationToken`, or that provides one | [`Context::cancellation_token`], [`Context::with_token`] |
//! | compute the parts of a result concurrently, all or nothing | [`Group`] |
//! | end a stream with the context | [`StreamExt::bounded_by`], [`StreamExt::checked_by`] |
//! | process a stream with a limited number of tasks | [`StreamExt::for_each_task`] |
//! | shut a service down gracefully | [`Shutdown`] |
//! | stop on Ctrl-C or SIGTERM | the module [`signal`](signal/index.html) |
//! | run a child process | the module [`process`](process/index.html) |
//! | give a socket to code that does not know contexts | `Context::io`, in the module [`io`](io/index.html) |
//! | run blocking code | [`Context::spawn_blocking`], [`Context::done_blocking`], [`Context::sleep_blocking`] |
//! | end a database query on its server too | [`Context::query`], [`Context::transact`] |
//! | test code that takes a context | the module [`testing`](testing/index.html) |
//! | find work that is still running after its context has ended | the module [`watch`](watch/index.html) |
//! | find out why and where a context ended | [`Error`], [`Origin`] |
//! | find out whether an error came from a context | [`Error::find`] |
//! | give each request of a server a context, and propagate it | `wire::ServerLayer`, `wire::ClientLayer` |
//! | do the same without tower | `Context::extract`, `Context::inject` |
//! | cancel calls by messages of the peer (JSON-RPC, MCP, LSP) | `wire::Calls` |
//!
//! # Scopes
//!
//! Deriving a context returns a [`CancelScope`]: the new context, together with the right to cancel it. A scope
//! is used like a `Context`, and cancels its context when dropped, like Go's `defer cancel()`. A scope cannot
//! be cloned, because one owner decides when the work is over. `scope.clone()` returns a plain `Context`, which
//! sees the end but cannot cause it.
//!
//! ```
//! # use std::time::Duration;
//! # use tokio_ctx::{Context, Error};
//! # async fn load(_: &Context, n: u32) -> Result<u32, Error> { Ok(n) }
//! # async fn fetch() -> u32 { 1 }
//! # async fn work(_: Context) {}
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! # let parent = Context::background();
//! let ctx = parent.with_timeout(Duration::from_millis(100));
//! load(&ctx, 7).await?; // `&CancelScope` is `&Context`.
//! tokio::spawn(work(ctx.clone())); // A `Context`.
//!
//! // A bounded step in one expression.
//! let page = parent.with_timeout(Duration::from_millis(50)).run(fetch()).await?;
//! # assert_eq!(page, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Everything that is derived or cloned from a scope ends with it. A temporary scope is dropped at the end of its
//! statement, which ends what was derived from it. The error then names the line:
//!
//! ```
//! # use std::time::Duration;
//! # let parent = tokio_ctx::Context::background();
//! // Wrong: the scope of `with_timeout` is dropped at the end of this statement.
//! let step = parent.with_timeout(Duration::from_secs(1)).with_cancel();
//! // context canceled: scope dropped, context made at src/main.rs:2
//! assert!(step.is_done());
//!
//! // Right: it lives as long as the variable.
//! let limit = parent.with_timeout(Duration::from_secs(1));
//! let step = limit.with_cancel();
//! assert!(!step.is_done());
//! ```
//!
//! [`CancelScope`] describes further [traps](CancelScope#traps).
//!
//! # Guarantees
//!
//! - A context ends once: when its scope cancels it or is dropped, when its deadline passes, or when its parent
//!   ends, whichever comes first. Kind, cause and origin are then fixed, and every method reports the same.
//! - An end propagates to all descendants, never to the parent or to siblings. When `cancel` returns, every
//!   descendant has ended.
//! - A deadline can only be shortened by deriving.
//! - No work is started under a context that has ended, and the result of finished work is never discarded.
//! - Every wait is cancel-safe. No task runs per context or per deadline.
//! - Everything except spawning tasks and waiting for a deadline works outside a runtime.
//!
//! # Features
//!
//! - `tracing` (default): emits one `DEBUG` event, with the target `tokio_ctx`, when a context is canceled or
//!   its deadline passes. Its fields are `kind`, `cause`, `budget_ms`, `derived_at`, `canceled_at` and
//!   `lived_ms`. Adds `Context::run_in_span` and `try_run_in_span`. Emits a `WARN` event for a request header
//!   that is ignored.
//! - `signal`: the module `signal`, contexts that end on a signal.
//! - `process`: the module `process`, child processes that end with a context.
//! - `io`: the module `io`, readers and writers that end with a context.
//! - `http`: the module `wire`, a context in the headers of a request, or in another carrier.
//! - `tower`: the layers of `wire` for servers and clients.
//! - `axum`: `Context` as an extractor, `Error` as a response.
//! - `tonic`: conversions between `Error` and `Status`, `Context` in requests.
//! - `test-util`: the module `testing`, a context for a test, which fails the test if a task is left running.
//! - `watch`: the module `watch`, what is running now, and what was canceled and is still running.
//! - `metrics`: the counters of `watch`, for the crate `metrics`.
//! - `full`: all of the above, and the guides.
//!
//! # Guides
//!
//! All code in the guides is tested.
//!
//! - [Tutorial](guide/tutorial/index.html): six programs and their output.
//! - [The rules](guide/rules/index.html): how to use a context well, on one page.
//! - [Coming from Go](guide/coming_from_go/index.html)
//! - [Coming from `CancellationToken` and `timeout`](guide/coming_from_tokens/index.html)
//! - [Cancel safety](guide/cancel_safety/index.html)
//! - [Testing](guide/testing/index.html)
//! - [A service that drains](guide/services/index.html)
//! - [From service to service](guide/from_service_to_service/index.html)
//! - [Spending a budget](guide/spending_a_budget/index.html)
//! - [What is still running?](guide/what_is_still_running/index.html)
//! - [Recipes](guide/recipes/index.html)
//! - [Traps](guide/traps/index.html)

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The modules, from the lowest layer up. `ARCHITECTURE.md` says what may import what.
mod bucket;
mod error;
mod finished;
mod pages;
mod registry;
mod stamp;
mod sync;
mod trace;
mod work;

mod token;

mod context;

mod task;

pub mod budget;
#[cfg(feature = "io")]
#[cfg_attr(docsrs, doc(cfg(feature = "io")))]
pub mod io;
#[cfg(any(feature = "process", feature = "signal"))]
mod os;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod testing;

mod find;

#[cfg(feature = "watch")]
#[cfg_attr(docsrs, doc(cfg(feature = "watch")))]
pub mod watch;

pub mod wire;

// Contains only documentation, and is only compiled for it.
#[cfg(all(
    any(doc, doctest),
    feature = "axum",
    feature = "io",
    feature = "process",
    feature = "signal",
    feature = "test-util",
    feature = "tonic",
    feature = "watch"
))]
#[cfg_attr(docsrs, doc(auto_cfg = false))]
pub mod guide;

pub use context::{
    AfterFunc, Bounded, CancelGuard, CancelScope, Canceler, Checked, Context, Done, DoneOwned, Ended,
    EndedOwned, FutureExt, NotEnoughTime, Run, TryBounded, TryRun,
};
pub use error::{BoxError, Error, ErrorKind, Origin};
#[cfg(feature = "process")]
#[cfg_attr(docsrs, doc(cfg(feature = "process")))]
pub use os::process;
#[cfg(feature = "signal")]
#[cfg_attr(docsrs, doc(cfg(feature = "signal")))]
pub use os::signal;
#[doc(inline)]
pub use task::{Group, Shutdown, StreamExt, group, query, shutdown};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(test, tokio_ctx_loom))]
#[path = "../tests/loom/mod.rs"]
mod loom_models;

#[cfg(all(test, tokio_ctx_loom))]
#[path = "../tests/loom/conclusions.rs"]
mod loom_models_conclusions;

#[cfg(all(test, not(tokio_ctx_loom)))]
#[path = "../tests/costs/mod.rs"]
mod costs;
