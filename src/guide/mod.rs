//! Guides. All code in them is tested.
//!
//! To begin with:
//!
//! - [Tutorial](tutorial): six programs and their output, from a task that is stopped to a deadline that
//!   crosses services.
//! - [The rules](rules): how to use a context well, on one page.
//!
//! For newcomers from other APIs:
//!
//! - [Coming from Go](coming_from_go): every function of package `context`, common idioms and programs, side by
//!   side.
//! - [Coming from `CancellationToken` and `timeout`](coming_from_tokens): before and after.
//!
//! By topic:
//!
//! - [Cancel safety](cancel_safety): what happens to a future that is dropped before it has finished, and what
//!   to do about it.
//! - [Testing](testing): tests with a paused clock, contexts that end on demand, and tests that fail when a
//!   task is left running.
//! - [A service that drains](services): axum or tonic with a graceful shutdown on a signal, from the first line
//!   of `main` to the last.
//! - [From service to service](from_service_to_service): propagate a deadline between services, in an existing
//!   axum or tonic program.
//! - [Spending a budget](spending_a_budget): retries, idle limits, shared work, reserves and queues under one
//!   deadline, each next to the hand-written code that it replaces.
//! - [What is still running?](what_is_still_running): find the line whose work is still running after it was
//!   canceled, in axum and in a worker without HTTP.
//! - [Recipes](recipes): patterns that take about ten lines each with a context.
//! - [Traps](traps): surprising behavior, and what to write instead.

// The package `examples` compiles and runs the programs, and compares the output.
#[cfg_attr(not(doctest), doc = include_str!("tutorial.md"))]
pub mod tutorial {}

#[doc = include_str!("rules.md")]
pub mod rules {}

#[doc = include_str!("coming_from_go.md")]
pub mod coming_from_go {}

#[doc = include_str!("coming_from_tokens.md")]
pub mod coming_from_tokens {}

#[doc = include_str!("cancel_safety.md")]
pub mod cancel_safety {}

#[doc = include_str!("testing.md")]
pub mod testing {}

// The tests in `tests/peers` run the code of these two pages, because it needs gRPC servers and more.
#[cfg_attr(not(doctest), doc = include_str!("from_service_to_service.md"))]
pub mod from_service_to_service {}

#[cfg_attr(not(doctest), doc = include_str!("services.md"))]
pub mod services {}

#[doc = include_str!("spending_a_budget.md")]
pub mod spending_a_budget {}

#[doc = include_str!("what_is_still_running.md")]
pub mod what_is_still_running {}

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[doc = include_str!("traps.md")]
pub mod traps {}
