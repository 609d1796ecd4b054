//! Contexts that end on a signal: Ctrl-C, `docker stop`, `systemctl stop`.
//!
//! [`until_termination`] is what most programs want: a context that ends on the first SIGINT or SIGTERM (on
//! Windows on Ctrl-C, Ctrl-Break, the window's close, log-off and shutdown). [`notify`] takes any set of
//! signals, and [`Signals`] has the options. The cause is a [`Signal`]. Go's counterpart is
//! `signal.NotifyContext`. A service passes the context to a [`Shutdown`](crate::Shutdown), which then takes
//! the phases from there.
//!
//! ```no_run
//! use tokio_ctx::Context;
//! use tokio_ctx::signal::until_termination;
//!
//! # async fn serve(_: &Context) {}
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let ctx = until_termination(&Context::background())?;
//!     serve(&ctx).await;
//!     if let Some(why) = ctx.err() {
//!         eprintln!("stopped: {why}"); // stopped: context canceled at src/main.rs:6: SIGTERM received
//!     }
//!     Ok(()) // Stopped as it was asked to: that is a success.
//! }
//! ```
//!
//! A program that was asked to stop, and did, ends with success. systemd takes any other status for a failure,
//! also the 143 by which a shell reports SIGTERM ([`Signal::exit_code`]).
//!
//! This module has the same name as [`tokio::signal`]. Where both are used, import the functions of this one, as
//! above, or rename it: `use tokio_ctx::signal as ctx_signal;`.
//!
//! # What a signal does after the end
//!
//! Once the context has ended, by a signal or otherwise, a signal of its set does **what it did before anything
//! listened for it here**:
//!
//! - Most signals end the process, and so does SIGINT when an operator presses Ctrl-C again: at once, by that very
//!   signal, so that a shell or systemd sees what happened. (As process 1 of a container, which no signal can end,
//!   the process exits with 128 + the signal's number.) No destructors run; children that are tied to a context
//!   (module `process`) are killed first, also those in process groups of their own. On Unix a thread does this, so
//!   that it works while the runtime is stuck or shut down. On Windows it takes a running runtime, and only follows an end
//!   by a signal; the process exits with [`Signal::exit_code`], and children are left running.
//! - SIGTSTP, SIGTTIN and SIGTTOU suspend the process.
//! - A signal that is ignored by default (SIGCHLD, SIGCONT, SIGURG, SIGWINCH), or that the process was started
//!   with ignoring (SIGHUP under `nohup`, SIGINT of a shell's background job), is ignored.
//! - A signal with a handler of the program or of another library, Tokio's included, is left to that handler. It
//!   is called while the context lives as well.
//!
//! A new [`notify`] for the same signal starts anew: its first signal ends its context.
//! [`Signals::second_signal_ends_process`] turns all of this off; then the signals are ignored.
//!
//! Do not use this for a signal that comes again and again, such as SIGHUP for *read your configuration again*: one
//! that arrives between two contexts would end the process. Use Tokio's stream for that.
//!
//! # What cannot be restored
//!
//! - What a signal did before is known on Linux and Android alone, and only if `/proc` is mounted: elsewhere a
//!   process cannot read it without unsafe code, and it is taken to have been the default. Under `nohup` on macOS, do
//!   not listen for SIGHUP, or turn the second signal off.
//! - Only handlers that were there *before* the first context for a signal are seen. A program that installs its own
//!   later (Tokio's `ctrl_c()` among them) while a library's context has come and gone has both: install yours
//!   first, or listen with `second_signal_ends_process(false)`.
//! - The handler itself stays installed, as Tokio never removes one: the effect of a default is carried out by it.
//!   So a child process that is started from the first context on inherits the *default* of a signal that was
//!   ignored before, as the system does not pass handlers on.
//! - Children that are not tied to a context, and those of a process that is ended in any other way (SIGKILL,
//!   `std::process::exit`, a signal that no context listened for, an abort), go on running.
//!
//! # Traps
//!
//! - Without this, a signal's default is to end the process; with Tokio's own `signal::ctrl_c` it is
//!   swallowed for good from the first call on, also when no task waits for it any more. A program that called
//!   it *before* its first context here keeps that: see above.
//! - Some parents (`npm`, scripts with a `trap`) pass Ctrl-C on to a child that has got the terminal's
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
mod before;
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
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::{Signal, until_termination};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = until_termination(&Context::background())?;
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

    /// The status by which a shell reports a process that a signal has ended: 128 + [`number`](Self::number);
    /// on Windows `STATUS_CONTROL_C_EXIT`.
    ///
    /// It is for a program that gives up half-way. One that was asked to stop and did exits with 0: to systemd,
    /// 143 is a failure.
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

/// Returns a child context that lives until the process is asked to stop: by SIGINT or SIGTERM; on Windows by
/// Ctrl-C, Ctrl-Break, close, log-off and shutdown.
///
/// [`Signals::termination`] with nothing changed; see [`Signals::notify`] for the contract. Go's
/// `signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)`, in place of a task that waits for
/// [`tokio::signal::ctrl_c`] and cancels a token.
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
/// use tokio_ctx::signal::until_termination;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = until_termination(&Context::background())?;
/// println!("{}", ctx.done().await); // context canceled at src/main.rs:6: SIGINT received
/// # Ok(())
/// # }
/// ```
///
/// Beside Tokio's module of the same name:
///
/// ```no_run
/// # #[cfg(unix)] {
/// use tokio::signal::unix::{SignalKind, signal};
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::until_termination;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// # fn read_configuration() {}
/// let ctx = until_termination(&Context::background())?;
/// let mut hangups = signal(SignalKind::hangup())?;
/// while let Ok(Some(())) = ctx.run(hangups.recv()).await {
///     read_configuration();
/// }
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
#[track_caller]
pub fn until_termination(ctx: &Context) -> io::Result<CancelScope> {
    Signals::termination().notify(ctx)
}

/// Returns a child context that ends on the first of these signals. Go's `signal.NotifyContext`.
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
/// // `npm` passes Ctrl-C on, although the terminal has sent it to this process already.
/// let signals = Signals::termination().second_signal_ends_process(false);
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

    /// Those that ask a process to stop: SIGINT and SIGTERM; on Windows all of the console's.
    ///
    /// ```
    /// println!("{:?}", tokio_ctx::signal::Signals::termination());
    /// ```
    pub fn termination() -> Signals {
        Signals::new(system::TERMINATION.iter().copied())
    }

    /// Sets whether a signal of the set that comes after the context has ended does what it did before, which
    /// for most is to end the process ([details](self#what-a-signal-does-after-the-end)). It does unless this
    /// is `false`: then it is ignored, also when the scope is dropped, until another context listens for it.
    ///
    /// Contexts that listen for the same signal at the same time should agree.
    ///
    /// ```
    /// let signals = tokio_ctx::signal::Signals::termination().second_signal_ends_process(false);
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
    /// let ctx = Signals::termination().notify(&Context::background())?;
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
