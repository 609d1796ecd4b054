//! Guides: how to get from what you know to what this crate has. All their code is tested.
//!
//! - [Coming from Go](coming_from_go): every function of package `context`, the idioms around it, and the
//!   programs of the tutorials, side by side.
//! - [Coming from `CancellationToken` and `timeout`](coming_from_tokens): before and after.
//! - [Cancel safety](cancel_safety): what becomes of a future that is dropped half-way, and what to do about
//!   it.
//! - [Testing code that takes a context](testing): a clock that stands still, ends on demand, and tests that
//!   fail if something is left behind.
//! - [From service to service](from_service_to_service): the same deadline one service further, put into an
//!   existing axum or tonic program in ten lines.
//! - [A service that drains](services): axum or tonic with a shutdown and signals, from `main` to its last line, and
//!   how a middleware puts a value into the context.
//! - [What is still running?](what_is_still_running): the line whose work is still here after its context has ended, in
//!   axum and in a worker without HTTP.
//! - [Recipes](recipes): what is built beside a context, each in about ten lines.
//! - [Traps](traps): what surprises, and what to write instead.

#[doc = include_str!("coming_from_go.md")]
pub mod coming_from_go {}

#[doc = include_str!("coming_from_tokens.md")]
pub mod coming_from_tokens {}

#[doc = include_str!("cancel_safety.md")]
pub mod cancel_safety {}

#[doc = include_str!("testing.md")]
pub mod testing {}

// Its code needs gRPC servers and more: the tests in `tests/peers` run it.
#[cfg_attr(not(doctest), doc = include_str!("from_service_to_service.md"))]
pub mod from_service_to_service {}

// As above.
#[cfg_attr(not(doctest), doc = include_str!("services.md"))]
pub mod services {}

#[doc = include_str!("what_is_still_running.md")]
pub mod what_is_still_running {}

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[doc = include_str!("traps.md")]
pub mod traps {}
