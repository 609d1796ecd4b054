//! What a user holds: a context, the scope that ends it, and the ways to wait for its end.
//!
//! This file hands names on. The files of this room import each other, and none of them this one.

mod after_func;
#[cfg(feature = "test-util")]
pub(crate) mod census;
#[allow(clippy::module_inception, reason = "the room's name is that of the type all of it is about")]
mod context;
pub(crate) mod current;
mod derive;
pub(crate) mod done;
mod ended;
mod ext;
mod guard;
mod merge;
#[cfg(feature = "tower")]
mod nearest;
pub(crate) mod refusal;
#[cfg(feature = "http")]
mod request;
mod require;
mod run;
mod scope;
mod spawn;
mod tokens;
mod value;
mod when;

pub use after_func::AfterFunc;
pub use context::Context;
pub use done::{Done, DoneOwned};
pub use ended::{Ended, EndedOwned};
pub use ext::{Bounded, Checked, FutureExt, TryBounded};
pub use guard::{CancelGuard, Canceler};
pub use require::NotEnoughTime;
pub use run::{Run, TryRun};
pub use scope::CancelScope;
