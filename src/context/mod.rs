//! The user-facing types: a context, the scope that can cancel it, and the ways to wait for its end.
//!
//! This file only re-exports names. The files of this module import from each other, and never from this one.

// The page of `Context` in the documentation lists its methods in the order of these modules. Blank lines keep
// the groups from being sorted into each other.

#[allow(clippy::module_inception, reason = "the module is named after its central type")]
mod context;
mod derive;

mod merge;
mod tokens;
mod when;

mod inspect;

pub(crate) mod done;
mod ended;

pub(crate) mod run;

mod require;

mod spawn;

mod after_func;

mod with_value;

pub(crate) mod current;

pub(crate) mod registered;

mod ext;
mod guard;
pub(crate) mod idle_limit;
mod interop;
#[cfg(feature = "tower")]
mod nearest;
mod progress;
pub(crate) mod refusal;
#[cfg(feature = "http")]
mod request;
mod scope;
#[cfg(feature = "test-util")]
pub(crate) mod test_work;
mod value;

pub use after_func::AfterFunc;
pub use context::Context;
pub use done::{Done, DoneOwned};
pub use ended::{Ended, EndedOwned};
pub use ext::{Bounded, Checked, FutureExt, TryBounded};
pub use guard::{CancelGuard, Canceler};
pub use progress::Progress;
pub use require::NotEnoughTime;
pub use run::{Run, TryRun};
pub use scope::CancelScope;
