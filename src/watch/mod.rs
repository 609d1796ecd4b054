//! What is running now, and which work is still running although its context has ended.
//!
//! A service hangs in its shutdown, or keeps a core busy for clients that disconnected long ago. Which line spawned the
//! work that does not stop? [`install`] a watch at the start of `main`, and take a snapshot:
//!
//! ```
//! use tokio_ctx::{Context, watch};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let watch = watch::install();
//!
//! let ctx = Context::background().with_cancel();
//! ctx.spawn(std::future::pending::<()>()); // This task does not check its context.
//! tokio::task::yield_now().await;
//! ctx.cancel();
//!
//! // ENDED, STILL RUNNING
//! //   count  kind        spawned at                                ended ago  state
//! //       1  task        src/main.rs:5                                 20 µs  last polled 28 µs ago
//! //          canceled at src/main.rs:7
//! println!("{}", watch.snapshot());
//! # }
//! ```
//!
//! The guide [What is still running?](../guide/what_is_still_running/index.html) shows how to find such a line in an axum
//! service, and in a worker without HTTP.
//!
//! # What is registered
//!
//! From [`install`] on, these are registered:
//!
//! - contexts derived from the background (*roots*), and contexts with a [name](crate::Context::named);
//! - requests of `wire::ServerLayer`, groups, and shutdowns;
//! - the tasks that this crate spawns ([`Context::spawn`](crate::Context::spawn) and its variants,
//!   [`Group`](crate::Group), [`Shutdown`](crate::Shutdown), `for_each_task`, `with_cancel_when`);
//! - functions of [`Context::spawn_blocking`](crate::Context::spawn_blocking) and
//!   [`Context::after_func`](crate::Context::after_func), tickets, and child processes.
//!
//! From these, a snapshot follows the tree down to all contexts that something waits on. It does not contain what was
//! derived or spawned before `install`, tasks of plain `tokio::spawn`, and contexts that are not registered and that
//! nothing waits on, neither on them nor below them.
//!
//! Taking a snapshot has no effect on the program: it polls no future, ends no context and wakes no task. It holds one
//! lock at a time, for about a thousand steps. A snapshot is weakly consistent. Values are never shown, and the texts of
//! causes only if [`show_causes`](Builder::show_causes) allows it.
//!
//! # Output
//!
//! | for | use |
//! |---|---|
//! | a terminal | [`Display`](std::fmt::Display) of a [`Snapshot`], and of the [tree under](Snapshot::under) an entry |
//! | a program | the fields of a [`Snapshot`], or its JSON: [`to_json`](Snapshot::to_json) |
//! | a browser, `curl` | `Watch::routes`, with the feature `axum` |
//! | the log | [`Watch::overstay`]: a `WARN` event for work that runs too long after the end of its context |
//! | a service that no longer responds | `Watch::dump_on`, with the feature `signal`: the text, on `SIGUSR1` |
//! | dashboards and alerts | the metrics below, with the feature `metrics` |
//!
//! # Cost
//!
//! While no watch is installed: one relaxed load when a context is derived or ends, and a few bytes in each task.
//!
//! With an installed watch, the clock is read when a context is created and when it ends. A registration costs one
//! allocation and a lock that is rarely contended, because each thread uses its own. Each poll of a registered task reads
//! the clock once more. `benches/RESULTS.md` has the measurements.
//!
//! # Metrics
//!
//! With the feature `metrics`, these are recorded through the `metrics` crate. Install its recorder before the watch. The
//! labels are kinds and lines of the program, so their number is bounded.
//!
//! | name | labels | meaning |
//! |---|---|---|
//! | `tokio_ctx_alive` (gauge) | `kind`, `line` | registered now |
//! | `tokio_ctx_ended_total` | `how`, `line` | contexts that ended by themselves, by [`How`] and by the line that created them; and operations that were `refused` |
//! | `tokio_ctx_overstaying` (gauge) | `kind`, `line` | work that has been running for longer than the grace period of [`Watch::overstay`] after the end of its context |
//! | `tokio_ctx_overstayed_total` | `kind`, `line` | work that has exceeded this grace period |
//! | `tokio_ctx_lateness_seconds` (histogram) | `how` | the time from the end of a context to the end of its work |

#[cfg(feature = "axum")]
mod access;
mod build;
mod collect;
#[cfg(all(unix, feature = "signal"))]
mod dump;
mod ends;
mod json;
mod metrics;
mod millis;
pub(crate) mod observe;
mod overstay;
#[cfg(feature = "axum")]
mod query;
#[cfg(feature = "axum")]
mod renderer;
#[cfg(feature = "axum")]
mod routes;
mod shutdowns;
mod snapshot;
mod stats;
mod text;
mod tree;
#[cfg(feature = "axum")]
mod view;

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use access::Access;
pub use build::{AlreadyInstalled, Builder, Watch, install};
pub use overstay::Overstay;
pub use snapshot::{
    AliveLine, End, EndedLine, Entry, FORMAT, How, Id, Kind, Late, LateClass, Lately, Line,
    NearlyOverdue, Phase, Poll, ShutdownState, Snapshot, State, Totals, WaitsFor,
};
pub use tree::Tree;
