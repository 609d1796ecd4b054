//! The task that waits for a process, and stops it when its context ends.
//!
//! A signal is sent to an ID, which must not belong to another process by then. Only this task reaps the process, by a
//! `wait` or `try_wait` after which [`Child::id`] returns `None`. Until then, the ID belongs to the process, even after
//! it has exited. The ID of a group belongs to the group as long as it has a member. After the context has ended, when
//! the leader may have been reaped, this is checked every [`CHECK_INTERVAL`](unix::CHECK_INTERVAL). The ID could only
//! belong to another group if the system assigned all IDs within one such interval.
//!
//! After the process has been killed, every wait has a limit, because a signal may be refused, and a process
//! that hangs in the kernel or is traced exits late or never. After [`REAP`] the task reports that the process
//! is still running, and leaves it to Tokio, which reaps it if it exits later.

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
use crate::context::registered::Registered;
use crate::error::Error;

/// How long to wait for a process to exit after it was killed, or if it cannot be signaled.
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

/// How a process exited, and what stopped it.
pub(super) struct Exit {
    /// The exit status, or `None` if the process has not exited.
    pub(super) status: Option<ExitStatus>,
    /// The error of the context, if it ended first.
    pub(super) why: Option<Error>,
    /// Whether the process, or one of its group, was killed.
    pub(super) killed: bool,
    /// Why the process, or one of its group, is still running.
    pub(super) survived: Option<Survived>,
}

/// Why a process is still running.
#[derive(Clone, Debug)]
pub(super) struct Survived {
    /// The process, or `None` if it has exited but another process of its group has not.
    pub(super) id: Option<u32>,
    /// The error of sending the signal, or `None` if it was sent but had no effect in time.
    pub(super) refused: Option<Arc<io::Error>>,
}

impl Survived {
    pub(super) const PATIENCE: Duration = REAP;
}

/// The state that the handle of a process shares with its task.
#[derive(Default)]
pub(super) struct Shared {
    /// The process has been reaped, so its ID may belong to another process.
    pub(super) reaped: AtomicBool,
    /// Asks the task to kill the process immediately.
    pub(super) kill: Notify,
}

pub(super) struct Supervisor {
    child: Child,
    shared: Arc<Shared>,
    /// Makes sure that the process is killed if this process ends without running destructors.
    entry: Option<Entry>,
    _registered: Registered,
    #[cfg(unix)]
    stop: Stop,
    /// The group, which is killed when this is dropped.
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

    /// Waits until the process has exited. Returns `None` if it should be killed before.
    async fn wait_or_kill(&mut self) -> io::Result<Option<ExitStatus>> {
        let shared = self.shared.clone();
        let (mut exit, mut kill) = (pin!(self.wait()), pin!(shared.kill.notified()));
        poll_fn(|cx| match exit.as_mut().poll(cx) {
            Poll::Ready(status) => Poll::Ready(status.map(Some)),
            Poll::Pending => kill.as_mut().poll(cx).map(|()| Ok(None)),
        })
        .await
    }

    /// Kills the process, and waits until it has exited, up to a limit.
    async fn kill(&mut self) -> io::Result<Exit> {
        let refused = self.send_kill().err();
        let status = match refused {
            // The process may have exited in the meantime.
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

    /// Waits for [`REAP`], measured by the system's clock, because Tokio's clock advances over any timer if it
    /// is paused.
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

    /// The process has exited by itself. The rest of its group is not stopped.
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

/// Kills the process if it has not exited.
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

    /// How often to check whether a group has a member left.
    pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(10);
    /// How long to wait for the members of a group that was killed. It is short, because they may have exited
    /// and only not been reaped by process 1.
    const GROUP_EXIT: Duration = Duration::from_millis(200);

    impl Stop {
        pub(in super::super) fn after(grace: Duration) -> Stop {
            Stop { grace, group: false, signal: SignalKind::terminate().as_raw_value() }
        }

        pub(in super::super) fn check(&self) -> io::Result<()> {
            if Signal::from_named_raw(self.signal).is_some() {
                return Ok(());
            }
            let text = format!("stop signal {} is not a named signal of this system", self.signal);
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }

        /// Applies the settings of one run to the command.
        pub(in super::super) fn prepare(&self, command: &mut Command) {
            if self.group {
                command.process_group(0);
            }
        }

        /// Reverts [`prepare`](Self::prepare). The standard library cannot unset a group, so it is set to the
        /// group of this process, which is the default.
        pub(in super::super) fn restore(&self, command: &mut Command) {
            if let Some(own) = own_group().filter(|_| self.group) {
                command.process_group(own);
            }
        }

        pub(in super::super) fn wants_group(&self) -> bool {
            self.group
        }
    }

    /// Returns the group of this process, or `None` if it is outside of this PID namespace.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn own_group() -> Option<i32> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        // The IDs from the namespace in which `/proc` was mounted to the innermost one, which is that of this
        // process.
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
            // The ID of a group is the ID of its leader.
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

        /// Asks the process to stop, and kills it when the grace period is over, or on request.
        pub(super) async fn stop(&mut self) -> io::Result<Exit> {
            if self.stop.grace.is_zero() {
                return self.kill().await;
            }
            let begun = Instant::now();
            let grace = match self.send_stop() {
                Ok(()) => self.stop.grace,
                // The process cannot be signaled, but may be about to exit by itself.
                Err(_refused) => self.stop.grace.min(REAP),
            };
            match timeout(grace, self.wait_or_kill()).await.unwrap_or(Ok(None))? {
                Some(status) => {
                    let left = self.stop.grace.saturating_sub(begun.elapsed());
                    let (killed, survived) = self.clear_group(left).await;
                    Ok(Exit { status: Some(status), why: None, killed, survived })
                }
                None => self.kill().await,
            }
        }

        /// Sends the stop signal, and SIGCONT, because a suspended process handles no signal until it is
        /// continued. systemd does the same.
        fn send_stop(&self) -> io::Result<()> {
            self.send(Signal::from_named_raw(self.stop.signal).unwrap_or(Signal::TERM))?;
            self.send(Signal::CONT)
        }

        pub(super) fn send_kill(&mut self) -> io::Result<()> {
            self.send(Signal::KILL)
        }

        /// Sends a signal to the group, or, without a group, to the process, unless it has been reaped. Fails
        /// if the process cannot be signaled, but not if it has just exited.
        fn send(&self, signal: Signal) -> io::Result<()> {
            let process = pid(&self.child);
            let sent = match (self.group, process) {
                // Signaling a group succeeds if it succeeds for one member, so the leader is checked
                // separately.
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

        /// Waits until the group is empty, and kills it after the given time, or on request. Returns whether it
        /// was killed, and what is left after that.
        async fn clear_group(&mut self, grace: Duration) -> (bool, Option<Survived>) {
            let begun = Instant::now();
            let shared = self.shared.clone();
            while let Some(signaled) = self.members_are_left() {
                let grace = if signaled.is_ok() { grace } else { grace.min(REAP) };
                let kill = timeout(CHECK_INTERVAL.min(grace), shared.kill.notified()).await.is_ok();
                if kill || begun.elapsed() >= grace {
                    let _refused = self.send_kill();
                    return (true, self.clear_killed_group().await);
                }
            }
            (false, None)
        }

        /// Waits a moment for a group that was killed, and returns what is left of it.
        pub(super) async fn clear_killed_group(&mut self) -> Option<Survived> {
            let begun = Instant::now();
            while let Some(refused) = self.members_are_left() {
                if begun.elapsed() >= GROUP_EXIT {
                    self.forget_group();
                    return refused
                        .err()
                        .map(|refused| Survived { id: None, refused: Some(Arc::new(refused.into())) });
                }
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
            None
        }

        /// Returns `None` if the group is empty, and otherwise whether one of its members can be signaled.
        fn members_are_left(&mut self) -> Option<Result<(), Errno>> {
            match test_kill_process_group(self.group?) {
                Ok(()) => Some(Ok(())),
                // On other systems, this is also returned for members that have not been reaped yet.
                Err(Errno::PERM) if cfg!(any(target_os = "linux", target_os = "android")) => {
                    Some(Err(Errno::PERM))
                }
                Err(_) => {
                    self.forget_group();
                    None
                }
            }
        }

        /// Kills the group when this is dropped together with its runtime.
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

        /// Kills the process, because there is no signal to ask it to stop.
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
