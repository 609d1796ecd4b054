//! Contexts that end on a signal: Ctrl-C, `docker stop`, `systemctl stop`.
//!
//! [`shutdown`] is what most programs want: a context that ends on the first SIGINT or SIGTERM (on
//! Windows on Ctrl-C, Ctrl-Break, the window's close, log-off and shutdown). [`notify`] takes any set of
//! signals, [`Signals`] says the rest. The cause is a [`Signal`]. Go's counterpart is
//! `signal.NotifyContext`. A service makes a [`Shutdown`](crate::Shutdown) of it, which then takes the
//! phases from there.
//!
//! ```no_run
//! use tokio_ctx::signal::{self, Signal};
//! use tokio_ctx::Context;
//!
//! # async fn serve(_: &Context) {}
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let ctx = signal::shutdown(&Context::background())?;
//!     serve(&ctx).await;
//!     if let Some(signal) = ctx.err().and_then(|err| err.cause_as::<Signal>().copied()) {
//!         eprintln!("{signal}, bye"); // SIGTERM received, bye
//!         std::process::exit(signal.exit_code());
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # The second signal
//!
//! Once the context has ended, by a signal or otherwise, the next signal of its set ends the process at
//! once, with status 128 + its number, as if nobody had listened: an operator who presses Ctrl-C again
//! wants out. On Unix this happens within the signal handler, so that it works while the runtime is stuck
//! or shut down; nothing is flushed or dropped any more. (On Windows it takes a running runtime, and is so
//! only after an end by a signal.) Turn it off with [`Signals::second_signal_ends_process`]. A new
//! [`notify`] for the same signal starts anew: its first signal ends its context.
//!
//! Not for a signal that comes again and again, such as SIGHUP for *read your configuration again*: one
//! that arrives between two contexts would end the process. Take Tokio's stream for that.
//!
//! # Traps
//!
//! - Without this, a signal's default is to end the process; with Tokio's own `signal::ctrl_c` it is
//!   swallowed for good from the first call on, also when nobody waits for it any more. Here it is not,
//!   see above; but where Tokio's are used besides, they do not stop the second signal.
//! - Some parents (`npm`, scripts with a `trap`) pass Ctrl-C on to a child that the terminal has told
//!   already: it gets two. Turn the second signal off there.
//! - A child process in the same process group gets the terminal's Ctrl-C as well, at the same moment. See
//!   `process_group` in the module `process`.
//! - As process 1 of a container a program gets no signal that it does not listen for: this module is what
//!   makes `docker stop` prompt.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::Location;

use crate::{CancelScope, Context};

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

/// A signal, and the cause of a context that ended on it.
///
/// ```no_run
/// use tokio_ctx::signal::{self, Signal};
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = signal::shutdown(&Context::background())?;
/// let stopped = ctx.done().await;
/// if let Some(signal) = stopped.cause_as::<Signal>() {
///     eprintln!("{signal}"); // SIGTERM received
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// Its number: of the signal on Unix, of the console's control event on Windows.
    ///
    /// ```
    /// # #[cfg(unix)]
    /// assert_eq!(tokio_ctx::signal::Signal::TERM.number(), 15);
    /// ```
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The status of a process that was ended by it, as shells tell it: 128 + [`number`](Self::number); on
    /// Windows `STATUS_CONTROL_C_EXIT`.
    ///
    /// ```
    /// # #[cfg(unix)]
    /// assert_eq!(tokio_ctx::signal::Signal::INT.exit_code(), 130);
    /// ```
    pub const fn exit_code(self) -> i32 {
        system::exit_code(self)
    }

    fn name(self) -> Option<&'static str> {
        system::NAMES.iter().find(|(signal, _)| *signal == self).map(|(_, name)| *name)
    }
}

/// `SIGTERM received`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} received")
    }
}

/// `SIGTERM`.
impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl StdError for Signal {}

/// A child context that ends when the process is told to stop: on SIGINT or SIGTERM; on Windows on Ctrl-C,
/// Ctrl-Break, close, log-off and shutdown.
///
/// [`Signals::shutdown`] with nothing changed; see [`Signals::notify`] for the contract.
///
/// # Errors
///
/// As [`Signals::notify`].
///
/// # Panics
///
/// As [`Signals::notify`].
///
/// ```no_run
/// use tokio_ctx::{Context, signal};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = signal::shutdown(&Context::background())?;
/// println!("{}", ctx.done().await); // context canceled at src/main.rs:5: SIGINT received
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn shutdown(ctx: &Context) -> io::Result<CancelScope> {
    Signals::shutdown().notify(ctx)
}

/// A child context that ends on the first of these signals. Go's `signal.NotifyContext`.
///
/// [`Signals::new`] with nothing changed; see [`Signals::notify`] for the contract.
///
/// # Errors
///
/// As [`Signals::notify`].
///
/// # Panics
///
/// As [`Signals::notify`].
///
/// ```no_run
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::{self, Signal};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// # #[cfg(unix)]
/// # {
/// // SIGUSR1 sheds the optional work, and leaves the rest alone.
/// let optional = signal::notify(&Context::background(), [Signal::USR1])?;
/// optional.spawn(async { /* keeps the caches warm */ });
/// # }
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn notify(ctx: &Context, signals: impl IntoIterator<Item = Signal>) -> io::Result<CancelScope> {
    Signals::new(signals).notify(ctx)
}

/// A set of signals, and what the second one does.
///
/// ```no_run
/// use tokio_ctx::signal::Signals;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// // Whoever asked it to stop waits for as long as it takes.
/// let signals = Signals::shutdown().second_signal_ends_process(false);
/// let ctx = signals.notify(&Context::background())?;
/// # ctx.done().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing listens until `notify`"]
pub struct Signals {
    set: Vec<Signal>,
    second_ends_process: bool,
}

impl Signals {
    /// These signals; named twice is named once.
    ///
    /// ```
    /// use tokio_ctx::signal::Signals;
    ///
    /// # #[cfg(unix)]
    /// # {
    /// use tokio_ctx::signal::Signal;
    /// println!("{:?}", Signals::new([Signal::HUP, Signal::from_raw(12)]));
    /// # }
    /// ```
    pub fn new(signals: impl IntoIterator<Item = Signal>) -> Signals {
        let mut set = Vec::new();
        for signal in signals {
            if !set.contains(&signal) {
                set.push(signal);
            }
        }
        Signals { set, second_ends_process: true }
    }

    /// Those that tell a process to stop: SIGINT and SIGTERM; on Windows all of the console's.
    ///
    /// ```
    /// println!("{:?}", tokio_ctx::signal::Signals::shutdown());
    /// ```
    pub fn shutdown() -> Signals {
        Signals::new(system::SHUTDOWN.iter().copied())
    }

    /// Whether a signal of the set that comes after the context has ended ends the process at once, with
    /// status 128 + its number. It does unless this says `false`: then it is ignored.
    ///
    /// Those who listen for the same signal at the same time should say the same.
    ///
    /// ```
    /// let signals = tokio_ctx::signal::Signals::shutdown().second_signal_ends_process(false);
    /// ```
    pub fn second_signal_ends_process(mut self, ends: bool) -> Signals {
        self.second_ends_process = ends;
        self
    }

    /// A child of `ctx` that ends on the first of these signals, with the [`Signal`] as its cause.
    ///
    /// When this returns the handlers are installed: no signal from then on is lost. The line of this call
    /// is in the error. A task of the current runtime waits for the signal, and keeps the context until it
    /// ends, by whatever.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an empty set, or for a signal that cannot be caught (on Unix SIGKILL, SIGSTOP,
    /// SIGILL, SIGFPE, SIGSEGV, and numbers that are no signals); besides what the system says.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, or in one without an I/O driver, as [`tokio::signal::ctrl_c`]. A context
    /// with a deadline needs a time driver, without which the task panics.
    ///
    /// ```no_run
    /// use tokio_ctx::signal::Signals;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let ctx = Signals::shutdown().notify(&Context::background())?;
    /// ctx.done().await;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn notify(&self, ctx: &Context) -> io::Result<CancelScope> {
        let called_at = Location::caller();
        if self.set.is_empty() {
            let none = "no signals to listen for: name at least one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, none));
        }
        let mut listener = system::Listener::open(&self.set, self.second_ends_process)?;
        let scope = ctx.with_cancel();
        let (canceller, watched) = (scope.canceller(), scope.clone());
        tokio::spawn(async move {
            if let Ok(signal) = watched.run(poll_fn(|cx| listener.poll(cx))).await {
                canceller.cancel_for(called_at, Box::new(signal));
                // The context is not kept while it waits for the second.
                drop((watched, canceller));
                listener.fired().await;
            }
        });
        Ok(scope)
    }
}
