//! Child processes that end with a context: SIGTERM at the end, SIGKILL after a grace period, and reaped.
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
//! # What happens at the end
//!
//! 1. A context that has ended starts no process.
//! 2. A process that has exited by then is reported as it exited: finished work is not thrown away.
//! 3. Otherwise it gets SIGTERM (or another signal: `stop_signal`), and SIGCONT, without which a suspended
//!    process would not handle it. If it is still there when the [`grace`](Bounded::grace) period is over, or
//!    when [`kill`](Child::kill) is called, it gets SIGKILL. On Windows there is no signal to ask with: it is
//!    terminated at once.
//! 4. The process is reaped, and the [`Error`] says how it exited, and why it was stopped. If that takes more
//!    than 5 seconds after SIGKILL, or if it may not be signaled, the error says
//!    [so](Error::is_still_running), and it is reaped in the background should it exit later.
//!
//! The same happens when the future or the [`Child`] is dropped, which is an end of its own: a task of the
//! runtime does it, and takes the grace period for it. If that runtime is shut down before it is through, the
//! process is killed at once (and reaped, should Tokio still get to it): wait for your children before you
//! return from `main`.
//!
//! When a second Ctrl-C ends this process (module `signal`, on Unix), all children are killed first, with their
//! groups. In any other end without destructors (SIGKILL, `std::process::exit`, an abort, a signal that no context
//! of `signal` listens for) they live on.
//!
//! # The command
//!
//! It is the caller's, and can be used again. What a run sets for itself is taken back: `kill_on_drop`, the group
//! of [`process_group`](Bounded::process_group), and the pipes of [`output`](Bounded::output). As a command does
//! not show what it was set to before, the last two go back to the default: the group of this process, and its
//! standard output and error. (Where this process does not see its own group, in a PID namespace that was
//! entered from outside, the command keeps a group of its own.)
//!
//! # Traps
//!
//! - **Grandchildren.** Only the process itself is stopped; a shell's children live on. With
//!   `process_group` all are, and they share the grace period. A process can leave its group (`setsid`): such
//!   a one escapes. Where process 1 does not reap orphans (a container without an init), a group that has
//!   lost its leader looks alive until the grace period is over.
//! - **Pipes held open.** A grandchild that lives on may hold the child's output open for as long as it
//!   likes, and a reader that reads to the end waits for it (Go's `WaitDelay` is about this).
//!   [`Bounded::output`] and [`Child::wait_with_output`] read on for the grace period, at least a second, once
//!   the process itself has exited, and no longer than its context lives; after the context's end, a second.
//!   What was read until then is in the error.
//! - **A stop signal that does not arrive.** A child inherits which signals are blocked in the thread that
//!   starts it, and which are ignored in the process. If SIGTERM is among them, and the child does not change
//!   that itself (shells and most runtimes do not), it is not asked, and killed after the grace period. This cannot
//!   be changed here, as it takes unsafe code between fork and exec; to unblock it in this process instead
//!   could end this very process. Start the child through `env`, which does it (GNU coreutils 8.31):
//!   `Command::new("env").args(["--default-signal=TERM", "program"])`.
//! - **Other users.** An ordinary user may not signal a process that has changed its user (`sudo`, `su`). It is
//!   waited for during the grace period, as it may have been asked by the terminal; then the error says so.
//! - **The terminal.** Its Ctrl-C goes to all processes of the foreground group, so to children too, at the
//!   same moment. In a group of its own a child gets it only through the context, in good order; but one
//!   that reads from the terminal is then suspended by the system.
//! - **Other reapers.** The signals go to a number, and a number is only safe while the process has not been
//!   reaped. That is done here, after the last signal; a program that ignores SIGCHLD, or reaps children
//!   that are not its own (`waitpid(-1)`), takes that away.
//! - **A test's paused clock** leaps over deadlines and grace periods while it waits for a child.
//! - **Arguments may be secret.** The error names the program, and never its arguments.

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

use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::context::enter::Entry;
use crate::context::refusal::checked;
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

/// How long a process may take to stop, unless [`Bounded::grace`] says otherwise.
const GRACE: Duration = Duration::from_secs(5);
/// How long pipes are read on, at least if the process exited by itself, and at most if it was stopped.
const DRAIN: Duration = Duration::from_secs(1);

/// [`bounded_by`](CommandExt::bounded_by) for Tokio's commands.
pub trait CommandExt {
    /// Ties what the command starts to a context. Go's `exec.CommandContext`.
    ///
    /// Nothing is started yet: [`status`](Bounded::status), [`output`](Bounded::output) or
    /// [`spawn`](Bounded::spawn) does. The command can be used again, see [above](self#the-command).
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

/// A command, tied to a context. Made by [`CommandExt::bounded_by`].
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
    /// Sets how long the process may take to stop once it was asked to; then it is killed. 5 seconds unless
    /// set; zero kills at once, without asking. [`Child::kill`] cuts it short.
    ///
    /// It bounds the wait for the pipes of a process that has exited by itself as well. Go's `Cmd.WaitDelay`.
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

    /// Sets whether it runs in a process group of its own, which is then stopped as a whole: SIGTERM to all,
    /// and when the grace period is over, SIGKILL to all that are left.
    ///
    /// The stop is complete when the group is empty. A process that exits before the context ends has its group
    /// left alone: what it started in the background is its own affair. This is for one run, and the command's
    /// own `process_group` is for the others (but it is set back to the default by a run that has this).
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

    /// Sets what asks the process to stop, in place of SIGTERM. Go's `Cmd.Cancel`.
    ///
    /// Programs differ: nginx finishes its requests on SIGQUIT, PostgreSQL disconnects its clients on
    /// SIGINT, and what was written for a terminal may know SIGINT alone.
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
    /// A number that is none of the system's named signals is refused when the process is to be started,
    /// as `InvalidInput`.
    #[cfg(unix)]
    #[cfg_attr(docsrs, doc(cfg(all(unix, feature = "process"))))]
    pub fn stop_signal(mut self, signal: tokio::signal::unix::SignalKind) -> Self {
        self.stop.signal = signal.as_raw_value();
        self
    }

    /// Runs it, and returns how it exited. Go's `Cmd.Run`, but that a failure of the program's own is not an
    /// error here: see [`ExitStatus::success`].
    ///
    /// If its standard output or error is piped, the pipe is closed, as nothing reads it: as in
    /// [`Command::status`], a process that writes there fails (or gets SIGPIPE), and does not hang.
    /// Dropped, this stops the process as the context's end would, in the background.
    ///
    /// # Errors
    ///
    /// If the context had ended, if the process could not be started, or if the context's end stopped it (or
    /// [could not](Error::is_still_running)).
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, or in one without an I/O driver, as [`Command::spawn`]. A time driver is
    /// needed as well.
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
    pub async fn status(self) -> Result<ExitStatus, Error> {
        let _refused = checked(self.ctx).await; // In `spawn`, which names the program.
        let mut child = self.spawn()?;
        // Nothing reads them: kept open, they would block a process that writes much.
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().await
    }

    /// Runs it, and returns how it exited and what it wrote to its standard output and error. Go's
    /// `Cmd.Output`.
    ///
    /// Both are read meanwhile, however much it is, into memory. This takes precedence over what they were set
    /// to in the command, which inherits them afterwards. Its standard input is the command's own
    /// (inherited, unless set: `Stdio::null()` is often better). Dropped, this stops the process as the
    /// context's end would, in the background.
    ///
    /// # Errors
    ///
    /// As [`status`](Self::status); besides, if its output was still held open by others when the grace
    /// period was over, or when the context ended. What was read is in [`Error::output`].
    ///
    /// # Panics
    ///
    /// As [`status`](Self::status).
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
        let Bounded { command, ctx, program, stop, line } = self;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = Bounded { command: &mut *command, ctx, program, stop, line }.spawn();
        command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        child?.wait_with_output().await
    }

    /// Starts it. Go's `Cmd.Start`.
    ///
    /// It ends with the context whether or not it is waited for, and when the [`Child`] is dropped.
    ///
    /// # Errors
    ///
    /// If the context has ended, or if the process could not be started.
    ///
    /// # Panics
    ///
    /// As [`status`](Self::status).
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
        let Bounded { command, ctx, program, stop, line } = self;
        let failed = |why| Error::new(&program, why, None);
        ctx.check().map_err(|ended| failed(Why::NotStarted(ended)))?;
        stop.check().map_err(|error| failed(Why::NoStart(error)))?;
        let start = Start::announce().map_err(|error| failed(Why::NoStart(error)))?;
        let mut child =
            run_with(command, &stop, Command::spawn).map_err(|error| failed(Why::NoStart(error)))?;
        let entry = start.succeeded(child.id(), stop.wants_group());

        let scope = ctx.with_cancel();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (id, grace) = (child.id(), stop.grace);
        let named = || Some(Box::new(Named(program.clone(), id)) as Name);
        let registered = Entry::named(&scope, Kind::Process, line, named);
        let supervisor = Supervisor::new(child, stop, entry, registered);
        let shared = supervisor.shared();
        let exit = State::Running(tokio::spawn(supervisor.run(scope.clone())));
        Ok(Child { stdin, stdout, stderr, id, shared, program, grace, exit, scope })
    }
}

/// What a watch calls a process: `pg_dump (process 4711)`.
struct Named(String, Option<u32>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(id) => write!(f, "{} (process {id})", self.0),
            None => f.write_str(&self.0),
        }
    }
}

/// Calls `spawn` with the command set up for this one run, and sets the command back: it is the caller's.
fn run_with<R>(command: &mut Command, stop: &Stop, spawn: impl FnOnce(&mut Command) -> R) -> R {
    let kill_on_drop = command.get_kill_on_drop();
    stop.prepare(command.kill_on_drop(true));
    let spawned = spawn(command);
    stop.restore(command.kill_on_drop(kill_on_drop));
    spawned
}

/// A process that ends with a context. Made by [`Bounded::spawn`].
///
/// Dropped, it is stopped as the context's end would stop it, and reaped, in the background. That takes the
/// grace period; [`start_kill`](Self::start_kill) beforehand cuts it short.
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
    /// Its standard input, if that was piped. [`wait`](Self::wait) closes it.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, if that was piped.
    pub stdout: Option<ChildStdout>,
    /// Its standard error, if that was piped.
    pub stderr: Option<ChildStderr>,
    id: Option<u32>,
    shared: Arc<Shared>,
    program: String,
    grace: Duration,
    exit: State,
    // Dropped, it ends the context that the task watches.
    scope: CancelScope,
}

enum State {
    Running(JoinHandle<io::Result<Exit>>),
    Over(Result<Exit, Arc<io::Error>>),
}

impl Child {
    /// Its process id; `None` once it has been reaped, as the number may then be another's.
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

    /// Waits until it has exited and been reaped. Go's `Cmd.Wait`.
    ///
    /// Its standard input is closed first, if it is still here, so that it does not wait for more. Its
    /// output is not read: a process that writes more than a pipe that is not read holds waits forever.
    /// Cancel-safe; called again, it returns the same.
    ///
    /// # Errors
    ///
    /// If the context's end stopped it, or if it [could not be stopped](Error::is_still_running).
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

    /// How it exited, once it has.
    fn answer(&self) -> Result<ExitStatus, Error> {
        let exit = match &self.exit {
            State::Over(Ok(exit)) => exit,
            State::Over(Err(error)) => {
                return Err(Error::new(&self.program, Why::Lost(error.clone()), None));
            }
            State::Running(_) => unreachable!("asked once it has exited"),
        };
        let why = match (exit.why.clone(), exit.survived.clone(), exit.status) {
            (ended, Some(survived), _) => Why::Survived { ended, survived },
            (Some(ended), None, _) => Why::Stopped { ended, killed: exit.killed },
            (None, None, Some(status)) => return Ok(status),
            (None, None, None) => unreachable!("has neither exited nor survived"),
        };
        Err(Error::new(&self.program, why, exit.status))
    }

    /// Kills the process now, with its group if it has one of its own, whatever is left of the grace period. A
    /// process that is being stopped already stops now.
    ///
    /// Returns at once; [`wait`](Self::wait) returns when it is gone. Once it has exited, nothing happens.
    /// Tokio's `Child::start_kill`, Go's `Process.Kill`.
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
    ///     child.start_kill(); // Another service waits for its port.
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

    /// [`start_kill`](Self::start_kill), and [`wait`](Self::wait): returns when the process is gone.
    ///
    /// A process that was killed before its context ended has exited with a signal, which is no error.
    /// Cancel-safe: dropped, it has killed the process all the same. Tokio's `Child::kill`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
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

    /// Waits until it has exited, and reads what is left of its standard output and error meanwhile, of
    /// those that are piped and still here.
    ///
    /// Dropped, this stops the process as the context's end would, in the background.
    ///
    /// # Errors
    ///
    /// As [`Bounded::output`].
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
    /// // At the same time: a program that answers while it is written to would wait for its reader.
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
                // What it wrote is in the pipes already. Others that hold them open were not stopped.
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
    /// Reads to the end what others may hold open, within the grace period, until the context ends. What has
    /// been read by then is complete all the same.
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
