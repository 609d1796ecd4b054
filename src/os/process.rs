//! Child processes that end with a context: they receive SIGTERM, SIGKILL after a grace period, and are reaped.
//!
//! [`CommandExt::bounded_by`] ties a [`tokio::process::Command`] to a context. Go's counterpart is
//! `exec.CommandContext` with `Cancel` and `WaitDelay`.
//!
//! ```
//! # #[cfg(unix)] {
//! use std::time::Duration;
//! use tokio::process::Command;
//! use tokio_ctx::Context;
//! use tokio_ctx::process::CommandExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let ctx = Context::background().with_timeout(Duration::from_millis(50));
//!
//! let stopped = Command::new("sleep").arg("60").bounded_by(&ctx).status().await.unwrap_err();
//!
//! // sleep: signal: 15 (SIGTERM): context deadline exceeded: 50ms budget set at src/main.rs:6
//! println!("{stopped}");
//! assert!(stopped.context().unwrap().is_deadline_exceeded());
//! assert!(!stopped.status().unwrap().success());
//! # }
//! # main();
//! # }
//! ```
//!
//! # When the context ends
//!
//! 1. If the context has ended before, no process is started.
//! 2. If the process has already exited, its exit status is returned; the result of finished work is not
//!    discarded.
//! 3. Otherwise the process receives SIGTERM (or another `stop_signal`), and SIGCONT, because a suspended
//!    process does not handle signals. If it is still running after the [`grace`](Bounded::grace) period, or
//!    when [`kill`](Child::kill) is called, it receives SIGKILL. Windows has no such signals, so the process is
//!    terminated immediately.
//! 4. The process is reaped, and the [`Error`] says how it exited and why it was stopped. If it has not exited
//!    5 seconds after SIGKILL, or if the system does not permit signaling it, the error says that it [is still
//!    running](Error::is_still_running), and it is reaped in the background if it exits later.
//!
//! The same happens when the future or the [`Child`] is dropped. A task of the runtime then stops the process,
//! which takes up to the grace period. If the runtime is shut down earlier, the process is killed immediately.
//! Wait for your children before you return from `main`.
//!
//! When a second Ctrl-C ends this process (module `signal`, on Unix), all children and their groups are killed
//! first. If this process ends in another way without running destructors (SIGKILL, `std::process::exit`, an
//! abort, or a signal that no context of `signal` listens for), children keep running.
//!
//! # Using the command again
//!
//! The command can be used again. The settings of a run are reverted: `kill_on_drop`, the group of
//! [`process_group`](Bounded::process_group), and the pipes of [`output`](Bounded::output). The previous values
//! of the last two cannot be read from a command, so they are set to their defaults: the process group, and the
//! standard output and error, of this process. (If this process cannot see its own group, in a PID namespace
//! that was entered from outside, the command keeps a group of its own.)
//!
//! # Traps
//!
//! - **Grandchildren.** Only the process itself is stopped; the children of a shell, for example, keep running.
//!   With `process_group`, the entire group is stopped, within one grace period. A process can leave its group
//!   (`setsid`), and is then not stopped. If process 1 does not reap orphans, as in a container without an
//!   init, a group whose leader has exited appears to be alive until the grace period is over.
//! - **Pipes held open.** A grandchild that keeps running may hold the output of the child open, so that
//!   reading to the end blocks. (Go has `WaitDelay` for this.) After the process has exited,
//!   [`Bounded::output`] and [`Child::wait_with_output`] keep reading for the grace period, at least for one
//!   second, but not beyond the end of the context. If the context's end stopped the process, they read for one
//!   second. The error contains what was read.
//! - **Blocked signals.** A child inherits the blocked signals of the thread that starts it, and the ignored
//!   signals of the process. If SIGTERM is among them, and the child does not change that (shells and most
//!   runtimes do not), SIGTERM has no effect, and the child is killed after the grace period. This cannot be
//!   changed without unsafe code between fork and exec. Start the child through `env` of GNU coreutils 8.31 or
//!   newer: `Command::new("env").args(["--default-signal=TERM", "program"])`.
//! - **Other users.** An ordinary user cannot signal a process that has changed its user (`sudo`, `su`). After
//!   the grace period, during which it may exit because of a signal from the terminal, the error says that it
//!   is still running.
//! - **The terminal.** Ctrl-C goes to all processes of the foreground group at the same time, including
//!   children. A child in a group of its own is only stopped through the context. But if it reads from the
//!   terminal, the system suspends it.
//! - **Other code that reaps.** Sending signals to a process ID is only safe until the process has been reaped,
//!   which this module does after the last signal. It is not safe in a program that ignores SIGCHLD, or that
//!   reaps all children (`waitpid(-1)`).
//! - **A paused clock** in a test advances over deadlines and grace periods while waiting for a child.
//! - **Arguments can be secret.** Errors contain the name of the program, but never its arguments.
//!
//! [`tokio::process::Command`]: https://docs.rs/tokio/1/tokio/process/struct.Command.html

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::Location;
use std::pin::pin;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

#[cfg(unix)]
use rustix::process::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
#[cfg(unix)]
use tokio::signal::unix::SignalKind;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::context::refusal::checked;
use crate::context::registered::Registered;
use crate::context::{CancelScope, Context};
use crate::registry::{Kind, Name};

mod capture;
mod error;
mod live;
mod stop;

pub use error::Error;

use capture::Capture;
use error::Why;
use live::Start;
use stop::{Exit, Shared, Stop, Supervisor};

#[cfg(all(unix, feature = "signal"))]
pub(crate) use live::kill_all;

/// Panics without a runtime, or without the drivers that a process needs.
///
/// Tokio starts a process before it looks for them. When it panics, nothing has the process, and nothing would stop it.
#[track_caller]
fn require_drivers() {
    let _runtime = Handle::current();
    // Looks for the driver, and then refuses a signal that cannot be caught.
    #[cfg(unix)]
    let _refused = tokio::signal::unix::signal(SignalKind::from_raw(Signal::KILL.as_raw()));
}

/// The default of [`Bounded::grace`].
const GRACE: Duration = Duration::from_secs(5);
/// How long to keep reading pipes after the process has exited: at least, if it exited by itself; at most, if
/// it was stopped.
const DRAIN: Duration = Duration::from_secs(1);

/// Extension trait for Tokio's commands that adds [`bounded_by`](CommandExt::bounded_by).
pub trait CommandExt {
    /// Ties the processes that the command starts to a context. Go's `exec.CommandContext`.
    ///
    /// The process is started by [`status`](Bounded::status), [`output`](Bounded::output) or
    /// [`spawn`](Bounded::spawn). The command [can be used again](self#using-the-command-again).
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use tokio::process::Command;
    /// use tokio_ctx::process::{self, CommandExt};
    /// use tokio_ctx::Context;
    ///
    /// async fn head(ctx: &Context) -> Result<String, process::Error> {
    ///     let output = Command::new("echo").args(["-n", "3f2a9c1"]).bounded_by(ctx).output().await?;
    ///     Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// assert_eq!(head(&Context::background()).await.unwrap(), "3f2a9c1");
    /// # }
    /// # main();
    /// # }
    /// ```
    #[track_caller]
    fn bounded_by<'a>(&'a mut self, ctx: &'a Context) -> Bounded<'a>;
}

impl CommandExt for Command {
    #[track_caller]
    fn bounded_by<'a>(&'a mut self, ctx: &'a Context) -> Bounded<'a> {
        let program = self.as_std().get_program().to_string_lossy().into_owned();
        Bounded { command: self, ctx, program, stop: Stop::after(GRACE), line: Location::caller() }
    }
}

/// A command that is tied to a context. Returned by [`CommandExt::bounded_by`].
#[derive(Debug)]
#[must_use = "nothing is started until `status`, `output` or `spawn`"]
pub struct Bounded<'a> {
    command: &'a mut Command,
    ctx: &'a Context,
    program: String,
    stop: Stop,
    line: &'static Location<'static>,
}

impl Bounded<'_> {
    /// Sets how long the process may take to stop before it is killed. The default is 5 seconds. Go's
    /// `Cmd.WaitDelay`.
    ///
    /// With zero, the process is killed immediately. [`Child::kill`] ends the grace period early. The grace
    /// period also limits how long to wait for the pipes of a process that has exited by itself.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let mut stubborn = Command::new("sh");
    /// stubborn.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"]);
    /// stubborn.stdout(std::process::Stdio::piped());
    /// let mut child = stubborn.bounded_by(&ctx).grace(Duration::from_millis(50)).spawn().unwrap();
    /// # tokio::io::AsyncReadExt::read_u8(&mut child.stdout.take().unwrap()).await.unwrap();
    ///
    /// ctx.cancel();
    /// assert!(child.wait().await.unwrap_err().was_killed());
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.stop.grace = grace;
        self
    }

    /// Sets whether the process runs in a process group of its own, which is stopped as a whole.
    ///
    /// All processes of the group receive SIGTERM, and those that are left after the grace period receive
    /// SIGKILL. The stop is complete when the group is empty. If the process exits before the context ends, the
    /// rest of its group is not stopped. This applies to one run. It resets the `process_group` of the command
    /// itself to the default.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(100));
    /// let mut pipeline = Command::new("sh");
    /// pipeline.args(["-c", "sleep 60 | sleep 60"]);
    /// // Neither `sleep` is left.
    /// pipeline.bounded_by(&ctx).process_group(true).status().await.unwrap_err();
    /// # }
    /// ```
    #[cfg(unix)]
    #[cfg_attr(docsrs, doc(cfg(all(unix, feature = "process"))))]
    pub fn process_group(mut self, own: bool) -> Self {
        self.stop.group = own;
        self
    }

    /// Sets the signal that asks the process to stop. The default is SIGTERM. Go's `Cmd.Cancel`.
    ///
    /// For example, nginx finishes its requests on SIGQUIT, PostgreSQL disconnects its clients on SIGINT, and
    /// programs for the terminal may only handle SIGINT.
    ///
    /// ```
    /// use tokio::process::Command;
    /// use tokio::signal::unix::SignalKind;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_cancel();
    /// let mut sleep = Command::new("sleep");
    /// let mut child =
    ///     sleep.arg("60").bounded_by(&ctx).stop_signal(SignalKind::interrupt()).spawn().unwrap();
    /// ctx.cancel();
    /// let stopped = child.wait().await.unwrap_err();
    /// // sleep: signal: 2 (SIGINT): context canceled at src/main.rs:10
    /// assert!(stopped.context().unwrap().is_canceled());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Starting the process returns `InvalidInput` if the number is not one of the system's named signals.
    #[cfg(unix)]
    #[cfg_attr(docsrs, doc(cfg(all(unix, feature = "process"))))]
    pub fn stop_signal(mut self, signal: tokio::signal::unix::SignalKind) -> Self {
        self.stop.signal = signal.as_raw_value();
        self
    }

    /// Runs the process, and returns its exit status. Go's `Cmd.Run`.
    ///
    /// A status other than zero is not an error; see [`ExitStatus::success`]. If the standard output or error
    /// is piped, the pipe is closed, as in [`Command::status`], so that a process which writes to it fails
    /// rather than hangs. Dropping the future stops the process in the background.
    ///
    /// # Errors
    ///
    /// Returns an error if the context has ended, if the process could not be started, if the context's end
    /// stopped the process, or if the process [could not be stopped](Error::is_still_running).
    ///
    /// # Panics
    ///
    /// Panics if there is no Tokio runtime with an I/O driver and a time driver.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background();
    /// let status = Command::new("sh").args(["-c", "exit 3"]).bounded_by(&ctx).status().await.unwrap();
    /// assert_eq!(status.code(), Some(3));
    /// # }
    /// # main();
    /// # }
    /// ```
    ///
    /// [`Command::status`]: https://docs.rs/tokio/1/tokio/process/struct.Command.html#method.status
    pub async fn status(self) -> Result<ExitStatus, Error> {
        let _refused = checked(self.ctx).await; // `spawn` returns the error, which names the program.
        let mut child = self.spawn()?;
        // Nothing reads them. If they were kept open, a process that writes much would block.
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().await
    }

    /// Runs the process, and returns its exit status and what it wrote to its standard output and error. Go's
    /// `Cmd.Output`.
    ///
    /// The output is read into memory, without a limit. This overrides the settings of the command for its
    /// standard output and error, which are inherited afterward. The standard input is the one of the command;
    /// unless it was set, it is inherited. (`Stdio::null()` is often better.) Dropping the future stops the
    /// process in the background.
    ///
    /// # Errors
    ///
    /// See [`status`](Self::status). Also returns an error if other processes still held the output open when
    /// the grace period was over, or when the context ended. [`Error::output`] contains what was read.
    ///
    /// # Panics
    ///
    /// See [`status`](Self::status).
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let ctx = Context::background().with_timeout(Duration::from_secs(2));
    /// let mut slow = Command::new("sh");
    /// slow.args(["-c", "echo begun; exec sleep 60"]);
    ///
    /// let stopped = slow.bounded_by(&ctx).output().await.unwrap_err();
    /// assert_eq!(stopped.output().unwrap().stdout, b"begun\n");
    /// # }
    /// # main();
    /// # }
    /// ```
    pub async fn output(self) -> Result<Output, Error> {
        let _refused = checked(self.ctx).await;
        let child = self.start(|command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let spawned = command.spawn();
            command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
            spawned
        });
        child?.wait_with_output().await
    }

    /// Starts the process. Go's `Cmd.Start`.
    ///
    /// The process is stopped when the context ends, even if nothing waits for it, and when the [`Child`] is
    /// dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if the context has ended, or if the process could not be started.
    ///
    /// # Panics
    ///
    /// See [`status`](Self::status).
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::process::Stdio;
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ctx = Context::background();
    /// let mut command = Command::new("printf");
    /// let mut child =
    ///     command.arg("a\nb\n").stdout(Stdio::piped()).bounded_by(&ctx).spawn()?;
    ///
    /// let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{line}");
    /// }
    /// assert!(child.wait().await?.success());
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub fn spawn(self) -> Result<Child, Error> {
        self.start(Command::spawn)
    }

    fn start(
        self,
        spawn: impl FnOnce(&mut Command) -> io::Result<tokio::process::Child>,
    ) -> Result<Child, Error> {
        let Bounded { command, ctx, program, stop, line } = self;
        let failed = |why| Error::new(&program, why, None);
        ctx.check().map_err(|ended| failed(Why::NotStarted(ended)))?;
        stop.check().map_err(|error| failed(Why::NoStart(error)))?;
        require_drivers();
        let start = Start::announce().map_err(|error| failed(Why::NoStart(error)))?;
        let mut child = run_with(command, &stop, spawn).map_err(|error| failed(Why::NoStart(error)))?;
        let entry = start.succeeded(child.id(), stop.wants_group());

        let scope = ctx.with_cancel();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (id, grace) = (child.id(), stop.grace);
        let named = || Some(Box::new(Named(program.clone(), id)) as Name);
        let registered = Registered::named(&scope, Kind::Process, line, named);
        let supervisor = Supervisor::new(child, stop, entry, registered);
        let shared = supervisor.shared();
        let exit = State::Running(tokio::spawn(supervisor.run(scope.clone())));
        Ok(Child { stdin, stdout, stderr, id, shared, program, grace, exit, scope })
    }
}

/// The name of a process in a watch, such as `pg_dump (process 4711)`.
struct Named(String, Option<u32>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(id) => write!(f, "{} (process {id})", self.0),
            None => f.write_str(&self.0),
        }
    }
}

/// Calls `spawn` with the settings of this run, and reverts them.
fn run_with<R>(command: &mut Command, stop: &Stop, spawn: impl FnOnce(&mut Command) -> R) -> R {
    let kill_on_drop = command.get_kill_on_drop();
    stop.prepare(command.kill_on_drop(true));
    let spawned = spawn(command);
    stop.restore(command.kill_on_drop(kill_on_drop));
    spawned
}

/// A process that ends with a context. Returned by [`Bounded::spawn`].
///
/// When it is dropped, the process is stopped in the background, in the same way as when the context ends. This
/// takes up to the grace period; call [`start_kill`](Self::start_kill) before to kill the process immediately.
///
/// ```
/// # #[cfg(unix)] {
/// use tokio::process::Command;
/// use tokio_ctx::process::CommandExt;
/// use tokio_ctx::Context;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tokio_ctx::process::Error> {
/// let ctx = Context::background().with_cancel();
/// let mut child = Command::new("sleep").arg("60").bounded_by(&ctx).spawn()?;
/// println!("started {}", child.id().unwrap());
///
/// ctx.cancel_with("not needed any more");
/// let stopped = child.wait().await.unwrap_err();
/// assert!(stopped.to_string().ends_with(": not needed any more"));
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
pub struct Child {
    /// The standard input, if it is piped. [`wait`](Self::wait) closes it.
    pub stdin: Option<ChildStdin>,
    /// The standard output, if it is piped.
    pub stdout: Option<ChildStdout>,
    /// The standard error, if it is piped.
    pub stderr: Option<ChildStderr>,
    id: Option<u32>,
    shared: Arc<Shared>,
    program: String,
    grace: Duration,
    exit: State,
    // When dropped, ends the context that the task observes.
    scope: CancelScope,
}

enum State {
    Running(JoinHandle<io::Result<Exit>>),
    Over(Result<Exit, Arc<io::Error>>),
}

impl Child {
    /// Returns the process ID, or `None` once the process has been reaped, because the ID can then be reused.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::process::Error> {
    /// let mut child = Command::new("true").bounded_by(&Context::background()).spawn()?;
    /// assert!(child.id().is_some());
    /// child.wait().await?;
    /// assert!(child.id().is_none());
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub fn id(&self) -> Option<u32> {
        self.id.filter(|_| !self.shared.reaped.load(Ordering::Acquire))
    }

    /// Waits until the process has exited and has been reaped, and returns its exit status. Go's `Cmd.Wait`.
    ///
    /// Closes the standard input first, so that the process does not wait for input. The output is not read: a
    /// process that writes more to a pipe than it can hold blocks forever. When called again, this returns the
    /// same result.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe.
    ///
    /// # Errors
    ///
    /// Returns an error if the context's end stopped the process, or if it
    /// [could not be stopped](Error::is_still_running).
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::process::Error> {
    /// let mut child = Command::new("false").bounded_by(&Context::background()).spawn()?;
    /// assert_eq!(child.wait().await?.code(), Some(1));
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        if let State::Running(task) = &mut self.exit {
            let exit = task.await.unwrap_or_else(|gone| Err(io::Error::other(gone)));
            self.exit = State::Over(exit.map_err(Arc::new));
        }
        self.answer()
    }

    /// Returns the result of a process that has exited.
    fn answer(&self) -> Result<ExitStatus, Error> {
        let exit = match &self.exit {
            State::Over(Ok(exit)) => exit,
            State::Over(Err(error)) => {
                return Err(Error::new(&self.program, Why::Lost(error.clone()), None));
            }
            State::Running(_) => unreachable!("called only after the process has exited"),
        };
        let why = match (exit.why.clone(), exit.survived.clone(), exit.status) {
            (ended, Some(survived), _) => Why::Survived { ended, survived },
            (Some(ended), None, _) => Why::Stopped { ended, killed: exit.killed },
            (None, None, Some(status)) => return Ok(status),
            (None, None, None) => unreachable!("the process has either exited or survived"),
        };
        Err(Error::new(&self.program, why, exit.status))
    }

    /// Kills the process, and its group if it has one of its own, without waiting for it. Tokio's
    /// `Child::start_kill`, Go's `Process.Kill`.
    ///
    /// This also ends the grace period of a process that is being stopped. If the process has exited, it has no
    /// effect. [`wait`](Self::wait) returns when the process is gone.
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::time::Duration;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::process::Error> {
    /// let shutdown = Context::background().with_cancel();
    /// let mut server = Command::new("sh");
    /// server.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]);
    /// # server.stdout(std::process::Stdio::piped());
    /// let mut child = server.bounded_by(&shutdown).grace(Duration::from_secs(60)).spawn()?;
    /// # tokio::io::AsyncReadExt::read_u8(&mut child.stdout.take().unwrap()).await.unwrap();
    ///
    /// shutdown.cancel();
    /// if tokio::time::timeout(Duration::from_millis(50), child.wait()).await.is_err() {
    ///     child.start_kill(); // Another service needs its port.
    /// }
    /// assert!(child.wait().await.unwrap_err().was_killed());
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub fn start_kill(&self) {
        self.shared.kill.notify_one();
    }

    /// Kills the process, and waits until it is gone. Tokio's `Child::kill`.
    ///
    /// This is [`start_kill`](Self::start_kill) and [`wait`](Self::wait). If the context has not ended, the
    /// exit status with the signal is not an error.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel-safe. The process is killed even if the future is dropped after the first poll.
    ///
    /// # Errors
    ///
    /// See [`wait`](Self::wait).
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::os::unix::process::ExitStatusExt;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_ctx::process::Error> {
    /// let mut child = Command::new("sleep").arg("60").bounded_by(&Context::background()).spawn()?;
    /// assert_eq!(child.kill().await?.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.start_kill();
        self.wait().await
    }

    /// Waits until the process has exited, and returns its exit status and what it has written to the pipes of
    /// its standard output and error, unless they were taken.
    ///
    /// Dropping the future stops the process in the background.
    ///
    /// # Errors
    ///
    /// See [`Bounded::output`].
    ///
    /// ```
    /// # #[cfg(unix)] {
    /// use std::process::Stdio;
    /// use tokio::io::AsyncWriteExt;
    /// use tokio::process::Command;
    /// use tokio_ctx::process::CommandExt;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ctx = Context::background();
    /// let mut sort = Command::new("sort");
    /// sort.stdin(Stdio::piped()).stdout(Stdio::piped());
    /// let mut child = sort.bounded_by(&ctx).spawn()?;
    ///
    /// // Writes and reads concurrently, because the program may block until its output is read.
    /// let mut stdin = child.stdin.take().unwrap();
    /// let (written, output) = tokio::join!(
    ///     async move { stdin.write_all(b"pear\napple\n").await },
    ///     child.wait_with_output(),
    /// );
    /// written?;
    /// assert_eq!(output?.stdout, b"apple\npear\n");
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        let mut capture = Capture::new(self.stdout.take(), self.stderr.take());
        let exited = {
            let mut waiting = pin!(self.wait());
            poll_fn(|cx| {
                let _read_on = capture.poll(cx);
                waiting.as_mut().poll(cx)
            })
            .await
        };
        let status = match exited {
            Ok(status) => status,
            Err(error) => {
                // The output of the process is already in the pipes. Other processes may still hold them open.
                let _held_open = timeout(DRAIN, poll_fn(|cx| capture.poll(cx))).await;
                let (stdout, stderr, _failure) = capture.finish();
                return Err(error.with_output(stdout, stderr));
            }
        };
        let read = self.read_on(&mut capture).await;
        let (stdout, stderr, failure) = capture.finish();
        let incomplete = match (read, failure) {
            (_, Some(error)) => Why::Unread(error),
            (Err(why), None) => why,
            (Ok(()), None) => return Ok(Output { status, stdout, stderr }),
        };
        Err(Error::new(&self.program, incomplete, Some(status)).with_output(stdout, stderr))
    }
}

impl Child {
    /// Reads the pipes to the end, within the grace period, and until the context ends. Other processes may
    /// hold them open.
    async fn read_on(&self, capture: &mut Capture) -> Result<(), Why> {
        let patience = self.grace.max(DRAIN);
        let mut ended = pin!(self.scope.done());
        let read = poll_fn(|cx| match capture.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => ended.as_mut().poll(cx).map(|ended| Err(Why::CutOff(ended))),
        });
        timeout(patience, read).await.unwrap_or(Err(Why::HeldOpen(patience)))
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Child");
        debug.field("program", &self.program).field("id", &self.id()).finish_non_exhaustive()
    }
}
