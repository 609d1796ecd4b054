//! Contexts that end on a signal: Ctrl-C, `docker stop`, `systemctl stop`.
//!
//! Most programs use [`until_termination`], which returns a context that ends on the first SIGINT or SIGTERM
//! (on Windows on Ctrl-C, Ctrl-Break, when the console window is closed, on log-off, and on system shutdown).
//! [`notify`] takes any set of signals, and [`Signals`] has options. The cause of the end is a [`Signal`]. Go's
//! counterpart is `signal.NotifyContext`. A service passes the context to a [`Shutdown`](crate::Shutdown).
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
//!         // stopped: context canceled at src/main.rs:6: SIGTERM received
//!         eprintln!("stopped: {why}");
//!     }
//!     Ok(()) // Stopped as requested, which is a success.
//! }
//! ```
//!
//! A program that stops on request should exit with success. systemd treats any other status as a failure,
//! including 143, by which a shell reports SIGTERM ([`Signal::exit_code`]).
//!
//! This module has the same name as [`tokio::signal`]. If you use both, import the functions of this module, as
//! above, or rename it: `use tokio_ctx::signal as ctx_signal;`.
//!
//! # The second signal
//!
//! After the context has ended, for whatever reason, a signal of its set has **the effect that it had before
//! the first context for it was created**:
//!
//! - Most signals end the process. For example, a second Ctrl-C ends it immediately, and the exit status shows
//!   the signal. (Process 1 of a container cannot be ended by a signal; it exits with 128 + the number of the
//!   signal.) No destructors run, but children that are tied to a context (module `process`) are killed first,
//!   including those in process groups of their own. On Unix this is done by a thread, so it works even if the
//!   runtime is blocked or has been shut down. On Windows it requires a running runtime, and only happens if a
//!   signal ended the context; the process exits with [`Signal::exit_code`], and children keep running.
//! - SIGTSTP, SIGTTIN and SIGTTOU suspend the process.
//! - A signal that is ignored by default (SIGCHLD, SIGCONT, SIGURG, SIGWINCH), or that was ignored when the
//!   process was started (SIGHUP under `nohup`, SIGINT in a background job of a shell), is ignored.
//! - A signal with a handler of the program or of another library, including Tokio, is left to that handler.
//!   The handler is also called before the context has ended.
//!
//! A new context for the same signal starts over: the first signal ends that context.
//! [`Signals::second_signal_ends_process`] turns this behavior off; further signals are then ignored.
//!
//! Do not use this module for a signal that arrives repeatedly, such as SIGHUP to reload the configuration. A
//! signal that arrives between two contexts would end the process. Use [`tokio::signal`] for that.
//!
//! # Limitations
//!
//! - The previous effect of a signal is only known on Linux and Android, and only if `/proc` is mounted.
//!   Elsewhere it cannot be read without unsafe code, and is assumed to be the default. Under `nohup` on macOS,
//!   do not listen for SIGHUP, or turn the effect of the second signal off.
//! - Only handlers that were installed *before* the first context for a signal are detected. If a program
//!   installs a handler later (including Tokio's `ctrl_c()`), after a context of a library has ended, a signal
//!   has both effects. Install your handler first, or use `second_signal_ends_process(false)`.
//! - Tokio never removes a signal handler, so it stays installed, and carries out the default effect itself. A
//!   child process that is started after the first context therefore inherits the *default* of a signal that
//!   was previously ignored, because the system does not pass handlers on.
//! - Children that are not tied to a context keep running. So do all children of a process that ends in another
//!   way: by SIGKILL, `std::process::exit`, an abort, or a signal that no context listened for.
//!
//! # Traps
//!
//! - After the first call of Tokio's `signal::ctrl_c`, Ctrl-C no longer ends the process, even if no task waits
//!   for it. A program that calls it *before* its first context of this module keeps this behavior.
//! - Some parent processes (`npm`, scripts with a `trap`) forward Ctrl-C to a child that has already received
//!   it from the terminal, so the child receives two. Turn the effect of the second signal off in this case.
//! - A child process in the same process group receives Ctrl-C from the terminal at the same time. See
//!   `process_group` in the module `process`.
//! - Process 1 of a container only receives signals that it listens for. Without this module, `docker stop`
//!   therefore takes 10 seconds.
//!
//! [`tokio::signal`]: https://docs.rs/tokio/1/tokio/signal/index.html

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::Location;

use crate::context::{CancelScope, Context};

#[cfg(unix)]
mod before;
mod number;
#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

pub use number::Signal;

impl Signal {
    /// Returns the exit status of a process that was ended by this signal: 128 + [`number`](Self::number), as
    /// shells report it; on Windows `STATUS_CONTROL_C_EXIT`.
    ///
    /// Use it for a program that aborts its work. A program that stops properly on request should exit with 0,
    /// because systemd treats 143 as a failure.
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

/// Prints a text such as `SIGTERM received`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} received")
    }
}

/// Prints the name, such as `SIGTERM`.
impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl StdError for Signal {}

/// Derives a child that ends when the process is asked to stop. Go's
/// `signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)`.
///
/// It listens for SIGINT and SIGTERM; on Windows for Ctrl-C, Ctrl-Break, close, log-off and shutdown. This is
/// [`Signals::termination`] with the default options. See [`Signals::notify`].
///
/// # Errors
///
/// See [`Signals::notify`].
///
/// # Panics
///
/// See [`Signals::notify`].
///
/// ```no_run
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::until_termination;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let ctx = until_termination(&Context::background())?;
/// println!("{}", ctx.done().await); // context canceled at src/main.rs:4: SIGINT received
/// # Ok(())
/// # }
/// ```
///
/// Together with Tokio's module of the same name:
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

/// Derives a child that ends on the first of the given signals. Go's `signal.NotifyContext`.
///
/// This is [`Signals::new`] with the default options. See [`Signals::notify`].
///
/// # Errors
///
/// See [`Signals::notify`].
///
/// # Panics
///
/// See [`Signals::notify`].
///
/// ```no_run
/// use tokio_ctx::Context;
/// use tokio_ctx::signal::{self, Signal};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// # #[cfg(unix)]
/// # {
/// // SIGUSR1 stops the optional work only.
/// let optional = signal::notify(&Context::background(), [Signal::USR1])?;
/// optional.spawn(async { /* refresh the caches */ });
/// # }
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn notify(ctx: &Context, signals: impl IntoIterator<Item = Signal>) -> io::Result<CancelScope> {
    Signals::new(signals).notify(ctx)
}

/// A set of signals, and options.
///
/// ```no_run
/// use tokio_ctx::signal::Signals;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// // `npm` forwards Ctrl-C, although this process has already received it from the terminal.
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
    /// Creates a set of signals. Duplicates are ignored.
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

    /// Creates the set of signals that ask a process to stop: SIGINT and SIGTERM; on Windows all console
    /// events.
    ///
    /// ```
    /// println!("{:?}", tokio_ctx::signal::Signals::termination());
    /// ```
    pub fn termination() -> Signals {
        Signals::new(system::TERMINATION.iter().copied())
    }

    /// Sets whether a signal that arrives after the context has ended has its previous effect, which for most
    /// signals is to end the process. The default is `true`. See [the second signal](self#the-second-signal).
    ///
    /// With `false`, such a signal is ignored, even after the scope has been dropped, until another context
    /// listens for it. Contexts that listen for the same signal at the same time should use the same setting.
    ///
    /// ```
    /// let signals = tokio_ctx::signal::Signals::termination().second_signal_ends_process(false);
    /// ```
    pub fn second_signal_ends_process(mut self, ends: bool) -> Signals {
        self.second_ends_process = ends;
        self
    }

    /// Derives a child of `ctx` that ends on the first of these signals, with the [`Signal`] as its cause.
    ///
    /// The handlers are installed when this returns, and no signal is lost after that. The error of the context
    /// names the line of this call. A task of the current runtime waits for the signal, and keeps the context
    /// alive until it ends.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` if the set is empty, or contains a signal that cannot be caught (on Unix SIGKILL,
    /// SIGSTOP, SIGILL, SIGFPE, SIGSEGV, and numbers that are not signals). Returns errors of the operating
    /// system.
    ///
    /// # Panics
    ///
    /// Panics if there is no Tokio runtime with an I/O driver, like [`tokio::signal::ctrl_c`]. If the context
    /// has a deadline and the runtime has no time driver, the task panics.
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
    ///
    /// [`tokio::signal::ctrl_c`]: https://docs.rs/tokio/1/tokio/signal/fn.ctrl_c.html
    #[track_caller]
    pub fn notify(&self, ctx: &Context) -> io::Result<CancelScope> {
        let called_at = Location::caller();
        if self.set.is_empty() {
            let none = "no signals to listen for: name at least one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, none));
        }
        let mut listener = system::Listener::open(&self.set, self.second_ends_process)?;
        let scope = ctx.with_cancel();
        let (canceler, watched) = (scope.canceler(), scope.clone());
        tokio::spawn(async move {
            if let Ok(signal) = watched.run(poll_fn(|cx| listener.poll(cx))).await {
                canceler.cancel_for(called_at, Box::new(signal));
                // Does not keep the context alive while waiting for the second signal.
                drop((watched, canceler));
                listener.fired().await;
            }
        });
        Ok(scope)
    }
}
