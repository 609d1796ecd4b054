//! What is running now, and which work is still here although its context has ended.
//!
//! A service hangs in its shutdown, or burns a core for clients that are long gone: which line's work is still here
//! although its context has ended? [`install`] a watch first thing in `main`, and ask it:
//!
//! ```
//! use tokio_ctx::{Context, watch};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let watch = watch::install();
//!
//! let ctx = Context::background().with_cancel();
//! ctx.spawn(std::future::pending::<()>()); // It never looks at its context.
//! tokio::task::yield_now().await;
//! ctx.cancel();
//!
//! // ENDED, STILL HERE
//! //   count  kind        spawned at                                ended ago  it
//! //       1  task        src/main.rs:5                                 20 µs  last polled 28 µs ago
//! //          canceled at src/main.rs:7
//! println!("{}", watch.snapshot());
//! # }
//! ```
//!
//! The guide [What is still running?](../guide/what_is_still_running/index.html) finds a culprit in a service of axum, and in a
//! worker without HTTP.
//!
//! # What it sees
//!
//! Registered are, from [`install`] on: contexts derived from the background (*roots*) and those with a
//! [name](crate::Context::named); requests of `wire::ServerLayer`; groups and shutdowns; the tasks of all spawns of this crate
//! ([`Context::spawn`](crate::Context::spawn) and its kin, [`Group`](crate::Group), [`Shutdown`](crate::Shutdown),
//! `for_each_task`, `with_cancel_when`), functions of [`Context::spawn_blocking`](crate::Context::spawn_blocking) and
//! [`Context::after_func`](crate::Context::after_func), tickets, and child processes. From there a picture follows what is
//! waited on downward. What it does not see: what was derived or spawned before, tasks of plain `tokio::spawn`, and a
//! context that is no landmark, and on which and below which nothing waits.
//!
//! A picture changes nothing: it polls no future, ends nothing, wakes nothing, and holds one lock at a time, for a thousand
//! steps at most. It is weakly consistent. Values are never shown, and the texts of causes only if
//! [`show_causes`](Builder::show_causes) allows them.
//!
//! # Its forms
//!
//! | for | use |
//! |---|---|
//! | a terminal | [`Display`](std::fmt::Display) of a [`Snapshot`], and of what is [`under`](Snapshot::under) an entry |
//! | a program | [`Snapshot`], or as JSON: [`to_json`](Snapshot::to_json) |
//! | a browser, `curl` | `Watch::routes`, with the feature `axum` |
//! | the log | [`Watch::overstay`]: a `WARN` event for work that stays too long |
//! | a service that answers no more | `Watch::dump_on`, with the feature `signal`: the text, on `SIGUSR1` |
//! | dashboards and alarms | the counters below, with the feature `metrics` |
//!
//! # What it costs
//!
//! Not installed, one relaxed load where a context is derived or ends, and a few bytes in each task. Installed, a context's birth
//! and its end are dated, which is a reading of the clock each; what is registered costs an allocation or two and one lock
//! of the thread's own; each poll of a registered task, one more reading. `benches/RESULTS.md` has the figures.
//!
//! # Counters
//!
//! With the feature `metrics`, through the crate of that name; install its recorder before the watch. Labels are kinds and
//! lines of the program, so there is a bound to them.
//!
//! | name | labels | what |
//! |---|---|---|
//! | `tokio_ctx_alive` (gauge) | `kind`, `line` | what is registered now |
//! | `tokio_ctx_ended_total` | `how`, `line` | contexts that ended by themselves, by [`How`] and the line that made them; and operations that were `refused` |
//! | `tokio_ctx_overstaying` (gauge) | `kind`, `line` | work that stays longer than the grace of [`Watch::overstay`] |
//! | `tokio_ctx_overstayed_total` | `kind`, `line` | work that has stayed so long |
//! | `tokio_ctx_lateness_seconds` (histogram) | `how` | how long after the end of its context work left |

#[cfg(feature = "axum")]
mod access;
mod build;
#[cfg(feature = "axum")]
mod camera;
#[cfg(all(unix, feature = "signal"))]
mod dump;
mod ends;
mod json;
pub(crate) mod look;
mod metrics;
mod millis;
mod overstay;
mod picture;
#[cfg(feature = "axum")]
mod query;
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
