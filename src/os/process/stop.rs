//! The task that waits for a process, and stops it when its context ends.
//!
//! Signals go to a number, which must not belong to another process by then. A process is reaped by this task
//! alone, by the `wait` or `try_wait` after which [`Child::id`] is `None`; until then, dead or alive, its
//! number is its own. The number of a group belongs to it for as long as it has a member. From the end on,
//! when its leader may have been reaped already, that is looked at every [`LOOK`](unix::LOOK): for the number
//! to belong to another group, the system would have to hand out all its numbers within one such interval.
//!
//! No wait is without a bound once the process has been killed: a signal may be refused, and a process that
//! hangs in the kernel, or is traced, exits late or never. After [`REAP`] the task reports that it is still
//! there, and leaves it to Tokio, which reaps it should it exit later.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::process::Child;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::live::Entry;
use crate::context::Context;
use crate::context::enter::Entry as Registered;
use crate::error::Error;

/// How long a process may take to exit once it was killed, or if it cannot be signaled.
const REAP: Duration = Duration::from_secs(5);

/// How to stop a process.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) grace: Duration,
    #[cfg(unix)]
    pub(super) group: bool,
    #[cfg(unix)]
    pub(super) signal: i32,
}

/// How a process exited, and what stopped it, if anything had to.
pub(super) struct Exit {
    /// `None`: it has not.
    pub(super) status: Option<ExitStatus>,
    /// The context's end, if that came first.
    pub(super) why: Option<Error>,
    /// Whether it, or one of its group, had to be killed.
    pub(super) killed: bool,
    /// Why it, or one of its group, is still running.
    pub(super) survived: Option<Survived>,
}

/// Why a process is still running.
#[derive(Clone, Debug)]
pub(super) struct Survived {
    /// The process; `None` if it has exited, and another of its group has not.
    pub(super) id: Option<u32>,
    /// The system's answer to the signal; `None` if the signal was sent, and there was no effect in time.
    pub(super) refused: Option<Arc<io::Error>>,
}

impl Survived {
    pub(super) const PATIENCE: Duration = REAP;
}

/// What the handle of a process and its task share.
#[derive(Default)]
pub(super) struct Shared {
    /// Its number may belong to another process.
    pub(super) reaped: AtomicBool,
    /// Asks the task to kill it now.
    pub(super) kill: Notify,
}

pub(super) struct Supervisor {
    child: Child,
    shared: Arc<Shared>,
    /// Kills it if the process that this runs in ends without unwinding.
    entry: Option<Entry>,
    _registered: Registered,
    #[cfg(unix)]
    stop: Stop,
    /// The group that is to be gone when this is dropped.
    #[cfg(unix)]
    group: Option<rustix::process::Pid>,
}

impl Supervisor {
    /// Waits until the process has exited, and stops it when the context ends.
    pub(super) async fn run(mut self, ctx: Context) -> io::Result<Exit> {
        let why = match ctx.run(self.wait_or_kill()).await {
            Ok(first) => match first? {
                Some(status) => return self.exited(status),
                None => None,
            },
            Err(why) => Some(why),
        };
        if let Some(status) = self.child.try_wait()? {
            self.reaped();
            return self.exited(status);
        }
        let exit = if why.is_some() { self.stop().await? } else { self.kill().await? };
        Ok(Exit { why, ..exit })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.reaped();
        status
    }

    /// Waits until it has exited; `None` if it is to be killed first.
    async fn wait_or_kill(&mut self) -> io::Result<Option<ExitStatus>> {
        let shared = self.shared.clone();
        let (mut exit, mut kill) = (pin!(self.wait()), pin!(shared.kill.notified()));
        poll_fn(|cx| match exit.as_mut().poll(cx) {
            Poll::Ready(status) => Poll::Ready(status.map(Some)),
            Poll::Pending => kill.as_mut().poll(cx).map(|()| Ok(None)),
        })
        .await
    }

    /// Kills it, and waits until it has exited, within a bound.
    async fn kill(&mut self) -> io::Result<Exit> {
        let refused = self.send_kill().err();
        let status = match refused {
            // It may also have exited just now.
            Some(_) => self.child.try_wait()?,
            None => self.wait_briefly().await?,
        };
        let survived = match status {
            Some(_) => {
                self.reaped();
                self.clear_killed_group().await
            }
            None => Some(Survived { id: self.child.id(), refused: refused.map(Arc::new) }),
        };
        Ok(Exit { status, why: None, killed: true, survived })
    }

    /// Waits [`REAP`] long, and measures that by the system's clock: if Tokio's is paused, it leaps over any
    /// timer while the process exits.
    async fn wait_briefly(&mut self) -> io::Result<Option<ExitStatus>> {
        let begun = std::time::Instant::now();
        loop {
            let left = REAP.saturating_sub(begun.elapsed());
            match timeout(left, self.wait()).await {
                Ok(status) => return status.map(Some),
                Err(_late) if left.is_zero() => return Ok(None),
                Err(_late) => {}
            }
        }
    }

    /// The process has exited by itself: what it left in its group is left alone.
    fn exited(&mut self, status: ExitStatus) -> io::Result<Exit> {
        self.forget_group();
        Ok(Exit { status: Some(status), why: None, killed: false, survived: None })
    }

    fn reaped(&mut self) {
        self.shared.reaped.store(true, Ordering::Release);
        if !self.has_group() {
            self.entry = None;
        }
    }
}

/// As the supervisor goes its child does: killed, if it has not exited.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_group();
        self.shared.reaped.store(true, Ordering::Release);
    }
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::process::{Pid, Signal};
    use rustix::process::{kill_process, kill_process_group};
    use rustix::process::{test_kill_process, test_kill_process_group};
    use tokio::process::{Child, Command};
    use tokio::signal::unix::SignalKind;
    use tokio::time::{Instant, timeout};

    use super::super::live::Entry;
    use super::{Exit, REAP, Registered, Stop, Supervisor, Survived};

    /// How often it is looked whether a group has a member left.
    pub(super) const LOOK: Duration = Duration::from_millis(10);
    /// How long the members of a group that was killed are waited for. It is short, as they may be gone, and
    /// only not reaped (by process 1).
    const VANISH: Duration = Duration::from_millis(200);

    impl Stop {
        pub(in super::super) fn after(grace: Duration) -> Stop {
            Stop { grace, group: false, signal: SignalKind::terminate().as_raw_value() }
        }

        pub(in super::super) fn check(&self) -> io::Result<()> {
            if Signal::from_named_raw(self.signal).is_some() {
                return Ok(());
            }
            let text = format!("there is no signal {} to stop it with: take SIGTERM", self.signal);
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }

        /// Sets up the command for one run.
        pub(in super::super) fn prepare(&self, command: &mut Command) {
            if self.group {
                command.process_group(0);
            }
        }

        /// Takes back what [`prepare`](Self::prepare) set. std has no way to unset a group; to join the group
        /// of the parent is what a child does anyway.
        pub(in super::super) fn restore(&self, command: &mut Command) {
            if let Some(own) = own_group().filter(|_| self.group) {
                command.process_group(own);
            }
        }

        pub(in super::super) fn wants_group(&self) -> bool {
            self.group
        }
    }

    /// The group of this process; `None` if it lies in a PID namespace outside of this one.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn own_group() -> Option<i32> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        // From the namespace that `/proc` was mounted in down to the innermost, whose numbers are ours.
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpgid:"))?;
        numbers.split_whitespace().last()?.parse().ok().filter(|group| *group > 0)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn own_group() -> Option<i32> {
        Some(rustix::process::getpgrp().as_raw_nonzero().get())
    }

    fn pid(child: &Child) -> Option<Pid> {
        Pid::from_raw(i32::try_from(child.id()?).ok()?)
    }

    impl Supervisor {
        pub(in super::super) fn new(
            child: Child,
            stop: Stop,
            entry: Option<Entry>,
            registered: Registered,
        ) -> Supervisor {
            // A group has its leader's number.
            let group = pid(&child).filter(|_| stop.group);
            Supervisor { child, shared: Arc::default(), entry, _registered: registered, stop, group }
        }

        pub(super) fn has_group(&self) -> bool {
            self.group.is_some()
        }

        pub(super) fn forget_group(&mut self) {
            self.group = None;
            self.entry = None;
        }

        /// Asks it to stop, and kills it if it has not when the grace period is over, or on request.
        pub(super) async fn stop(&mut self) -> io::Result<Exit> {
            if self.stop.grace.is_zero() {
                return self.kill().await;
            }
            let asked = Instant::now();
            let grace = match self.ask() {
                Ok(()) => self.stop.grace,
                // It was not asked, and cannot be; it may be about to exit for a reason of its own.
                Err(_refused) => self.stop.grace.min(REAP),
            };
            match timeout(grace, self.wait_or_kill()).await.unwrap_or(Ok(None))? {
                Some(status) => {
                    let left = self.stop.grace.saturating_sub(asked.elapsed());
                    let (killed, survived) = self.clear_group(left).await;
                    Ok(Exit { status: Some(status), why: None, killed, survived })
                }
                None => self.kill().await,
            }
        }

        /// Sends the signal that asks it to stop, and SIGCONT: a suspended process handles no signal until
        /// it is continued. systemd does the same.
        fn ask(&self) -> io::Result<()> {
            self.send(Signal::from_named_raw(self.stop.signal).unwrap_or(Signal::TERM))?;
            self.send(Signal::CONT)
        }

        pub(super) fn send_kill(&mut self) -> io::Result<()> {
            self.send(Signal::KILL)
        }

        /// Signals the group if it has one of its own, else the process, unless that has been reaped.
        /// Fails if the process may not be signaled; one that has just exited is no failure.
        fn send(&self, signal: Signal) -> io::Result<()> {
            let process = pid(&self.child);
            let sent = match (self.group, process) {
                // A group accepts a signal if one of its members does: the leader is asked by itself.
                (Some(group), Some(leader)) => {
                    kill_process_group(group, signal).and_then(|()| test_kill_process(leader))
                }
                (Some(group), None) => kill_process_group(group, signal),
                (None, Some(process)) => kill_process(process, signal),
                (None, None) => Ok(()),
            };
            match sent {
                Err(Errno::SRCH) | Ok(()) => Ok(()),
                Err(refused) => Err(refused.into()),
            }
        }

        /// Waits until its group is empty, and kills what is left of it in the end, or on request. Returns
        /// whether it had to, and what is left nevertheless.
        async fn clear_group(&mut self, grace: Duration) -> (bool, Option<Survived>) {
            let begun = Instant::now();
            let shared = self.shared.clone();
            while let Some(signaled) = self.members_are_left() {
                let grace = if signaled.is_ok() { grace } else { grace.min(REAP) };
                let kill = timeout(LOOK.min(grace), shared.kill.notified()).await.is_ok();
                if kill || begun.elapsed() >= grace {
                    let _refused = self.send_kill();
                    return (true, self.clear_killed_group().await);
                }
            }
            (false, None)
        }

        /// Gives a group that was killed a moment to be gone, and returns what is left that cannot be.
        pub(super) async fn clear_killed_group(&mut self) -> Option<Survived> {
            let begun = Instant::now();
            while let Some(refused) = self.members_are_left() {
                if begun.elapsed() >= VANISH {
                    self.forget_group();
                    return refused
                        .err()
                        .map(|refused| Survived { id: None, refused: Some(Arc::new(refused.into())) });
                }
                tokio::time::sleep(LOOK).await;
            }
            None
        }

        /// Whether the group has members, and if so, whether one of them can be signaled.
        fn members_are_left(&mut self) -> Option<Result<(), Errno>> {
            match test_kill_process_group(self.group?) {
                Ok(()) => Some(Ok(())),
                // Elsewhere that is also the answer for members that wait to be reaped.
                Err(Errno::PERM) if cfg!(any(target_os = "linux", target_os = "android")) => {
                    Some(Err(Errno::PERM))
                }
                Err(_) => {
                    self.forget_group();
                    None
                }
            }
        }

        /// Leaves no group behind when this is dropped half-way, with its runtime.
        pub(super) fn kill_group(&mut self) {
            if self.group.is_some() {
                let _gone = self.send_kill();
            }
        }
    }
}

#[cfg(not(unix))]
mod other {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::process::{Child, Command};

    use super::super::live::Entry;
    use super::{Exit, Registered, Stop, Supervisor, Survived};

    impl Stop {
        pub(in super::super) fn after(grace: Duration) -> Stop {
            Stop { grace }
        }

        pub(in super::super) fn check(&self) -> io::Result<()> {
            Ok(())
        }

        pub(in super::super) fn prepare(&self, _: &mut Command) {}

        pub(in super::super) fn restore(&self, _: &mut Command) {}

        pub(in super::super) fn wants_group(&self) -> bool {
            false
        }
    }

    impl Supervisor {
        pub(in super::super) fn new(
            child: Child,
            _: Stop,
            entry: Option<Entry>,
            registered: Registered,
        ) -> Supervisor {
            Supervisor { child, shared: Arc::default(), entry, _registered: registered }
        }

        pub(super) fn has_group(&self) -> bool {
            false
        }

        pub(super) fn forget_group(&mut self) {}

        pub(super) fn kill_group(&mut self) {}

        /// There is no signal to ask with.
        pub(super) async fn stop(&mut self) -> io::Result<Exit> {
            self.kill().await
        }

        pub(super) fn send_kill(&mut self) -> io::Result<()> {
            self.child.start_kill()
        }

        pub(super) async fn clear_killed_group(&mut self) -> Option<Survived> {
            None
        }
    }
}
