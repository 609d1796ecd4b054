//! Go's `context`, made native to Tokio: one value that flows down an async call tree and carries *stop
//! now* (cancellation), *stop by then* (a deadline) and *who this is for* (request-scoped values), and
//! that can say why and where work was stopped.
//!
//! ```
//! use std::time::Duration;
//! use tokio_ctx::{Context, Error};
//!
//! async fn fetch(ctx: &Context, item: u32) -> Result<u32, Error> {
//!     // Any future, until the context ends.
//!     ctx.run(async { tokio::time::sleep(Duration::from_millis(30)).await }).await?;
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
//! // context deadline exceeded: 100ms budget set at src/main.rs:14
//! println!("{stopped}");
//! # assert!(stopped.is_deadline_exceeded());
//! # }
//! ```
//!
//! # Which to use when
//!
//! | to | use |
//! |---|---|
//! | give work a way to be stopped | [`Context::with_cancel`], and keep the [`CancelScope`] |
//! | give work a budget | [`Context::with_timeout`], [`Context::with_deadline`] |
//! | bound one step by a budget of its own | `ctx.with_timeout(d).run(step)`, [`Context::within`], [`Context::try_within`] |
//! | refuse a step that the time left is too short for | [`Context::require`] |
//! | let other code cancel the work | [`CancelScope::canceler`], [`CancelScope::split`] |
//! | run a future until the context ends | [`Context::run`], [`FutureExt::bounded_by`] |
//! | spawn a task that stops at the end, or that is handed its context | [`Context::spawn_bounded`], [`Context::spawn_with`] |
//! | tell a server when to stop | [`Context::ended_owned`] |
//! | race the end against other branches | [`Context::done`] in `tokio::select!` |
//! | stop a loop that computes | [`Context::check`], with `?` |
//! | clean up after the end | [`Context::after_func`], [`Context::without_cancel`], [`Context::keeping_deadline`] |
//! | carry a request id | [`Context::with_value`], [`Context::value`] |
//! | reach the context without passing it | [`Context::scope`], [`Context::spawn`], [`Context::current`] |
//! | end work when something happens: a message, a flag, a lost lease | [`Context::with_cancel_when`] |
//! | speak to code that takes a `CancellationToken` | [`Context::cancellation_token`], [`Context::with_token`] |
//! | run parts of one answer at once, all or nothing | [`Group`] |
//! | end a stream with the context | [`StreamExt::bounded_by`], [`StreamExt::checked_by`] |
//! | work off a stream, so many at once | [`StreamExt::for_each_task`] |
//! | shut a service down, gently first | [`Shutdown`] |
//! | stop on Ctrl-C or SIGTERM | the module [`signal`](signal/index.html) |
//! | run a program as a child process | the module [`process`](process/index.html) |
//! | give a socket to code that knows no contexts | `Context::io`, in the module [`io`](io/index.html) |
//! | run code that blocks | [`Context::spawn_blocking`], [`Context::done_blocking`], [`Context::sleep_blocking`] |
//! | test code that takes a context | the module [`testing`](testing/index.html) |
//! | find the line whose work is still here after its context has ended | the module [`watch`](watch/index.html) |
//! | learn why and where it ended | [`Error`], [`Origin`] |
//! | ask whether an error is the context's, wherever it went | [`Error::find`] |
//! | give each request of a server a context, and pass it on | `wire::ServerLayer`, `wire::ClientLayer` |
//! | do that without tower | `Context::extract`, `Context::inject` |
//!
//! # One value
//!
//! Deriving returns a [`CancelScope`]: the context, with the right to cancel it. It is used like a `Context`, and
//! ends it when dropped, as Go's `defer cancel()`, which cannot be forgotten. A scope is not `Clone`, because one
//! owner decides when the work is over: its `clone()` returns a plain `Context`, which sees the end and cannot
//! make it.
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
//! What is derived or cloned from a scope ends with it, also where the scope has no name and is dropped at the end
//! of its statement. The error then names the line:
//!
//! ```
//! # use std::time::Duration;
//! # let parent = tokio_ctx::Context::background();
//! let step = parent.with_timeout(Duration::from_secs(1)).with_cancel(); // The timeout's scope ends here,
//! // context canceled: scope dropped, context made at src/main.rs:3
//! assert!(step.is_done());
//!
//! let limit = parent.with_timeout(Duration::from_secs(1)); // and here with the variable.
//! let step = limit.with_cancel();
//! assert!(!step.is_done());
//! ```
//!
//! [`CancelScope`] shows the other [traps](CancelScope#traps).
//!
//! # What holds
//!
//! A context ends once: at the first of its scope's cancel or drop, its deadline, and its parent's end;
//! kind, cause and origin are then fixed, and the same for every question. An end goes down, never
//! up. Deadlines only shrink. Every wait is cancel-safe. No task runs per context or per deadline.
//! Everything but waiting works outside a runtime.
//!
//! # Features
//!
//! `tracing` (default): one `DEBUG` event, target `tokio_ctx`, when a context ends by its deadline or is
//! canceled, with the fields `kind`, `cause`, `budget_ms`, `derived_at`, `canceled_at` and `lived_ms`;
//! and `Context::run_in_span`, `try_run_in_span`. A `WARN` for a header of a request that is left aside.
//!
//! Not everyone needs the others, which are named like Tokio's own, or like what they are for:
//!
//! - `signal`: the module `signal`, contexts that end on a signal.
//! - `process`: the module `process`, child processes that end with a context.
//! - `io`: the module `io`, readers and writers that do.
//! - `http`: the module `wire`, a context in the headers of a request.
//! - `tower`: its layers for servers and clients.
//! - `axum`: `Context` as an extractor, `Error` as a response.
//! - `tonic`: `Error` as a `Status` and back, `Context` in requests.
//! - `test-util`: the module `testing`, a context that ends with its test and fails it if something is left.
//! - `watch`: the module `watch`, what is running now, and which work is still here after its context has ended;
//!   with `axum`, on a page for a browser as well.
//! - `metrics`: its counters, through the crate of that name.
//! - `full`: all of these, and the guides.
//!
//! # Guides
//!
//! Beside this reference stand the guides, all of whose code is tested: [Coming from
//! Go](guide/coming_from_go/index.html), [Coming from `CancellationToken` and
//! `timeout`](guide/coming_from_tokens/index.html), [Cancel safety](guide/cancel_safety/index.html),
//! [Testing code that takes a context](guide/testing/index.html), [From service to
//! service](guide/from_service_to_service/index.html), [A service that drains](guide/services/index.html),
//! [What is still running?](guide/what_is_still_running/index.html), [Recipes](guide/recipes/index.html) and [Traps](guide/traps/index.html).

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The rooms, from the ground up: `ARCHITECTURE.md` says what may import what.
mod error;
mod finished;
mod registry;
mod stamp;
mod trace;

mod token;

mod context;

mod task;

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

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod wire;

// Costs nobody anything: there is nothing in it but documentation.
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
pub use task::{Group, Shutdown, StreamExt, group, shutdown};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(test, tokio_ctx_loom))]
#[path = "../tests/loom/mod.rs"]
mod loom_models;
