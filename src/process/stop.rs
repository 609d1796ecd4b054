//! The task that waits for a process, and stops it when its context ends.
//!
//! Signals go to a number, which must not be a stranger's by then. A process is reaped by this task alone,
//! by the `wait` or `try_wait` after which [`Child::id`] is `None`; until then, dead or alive, its number
//! is its own. A group's number is its own for as long as anybody is in it: that is looked after from the
//! end on, while its leader may have been reaped already, every [`LOOK`], and for the number to be a
//! stranger's, the system would have to give out all its numbers within one.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::Child;

use crate::{Context, Error};

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
    pub(super) status: ExitStatus,
    pub(super) stopped: Option<Stopped>,
}

#[derive(Clone, Debug)]
pub(super) struct Stopped {
    pub(super) why: Error,
    /// Whether it, or its group, had to be killed.
    pub(super) killed: bool,
}

pub(super) struct Supervisor {
    child: Child,
    /// Its number is another's to have.
    reaped: Arc<AtomicBool>,
    #[cfg(unix)]
    stop: Stop,
    /// The group that is to be gone when this is dropped.
    #[cfg(unix)]
    group: Option<rustix::process::Pid>,
}

impl Supervisor {
    /// Waits until the process has exited, and stops it when the context ends.
    pub(super) async fn run(mut self, ctx: Context) -> io::Result<Exit> {
        let why = match ctx.run(self.wait()).await {
            Ok(status) => return self.exited(status?),
            Err(why) => why,
        };
        if let Some(status) = self.child.try_wait()? {
            self.reaped.store(true, Ordering::Release);
            return self.exited(status);
        }
        let (status, killed) = self.stop().await?;
        Ok(Exit { status, stopped: Some(Stopped { why, killed }) })
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.reaped.store(true, Ordering::Release);
        status
    }

    pub(super) fn reaped(&self) -> Arc<AtomicBool> {
        self.reaped.clone()
    }
}

/// As the supervisor goes its child does: killed, if it has not exited.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_group();
        self.reaped.store(true, Ordering::Release);
    }
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::process::ExitStatus;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::process::{Pid, Signal};
    use rustix::process::{kill_process, kill_process_group, test_kill_process_group};
    use tokio::process::{Child, Command};
    use tokio::signal::unix::SignalKind;
    use tokio::time::{Instant, sleep, timeout};

    use super::{Exit, Stop, Supervisor};

    /// How often it is looked whether anybody is left in a group.
    const LOOK: Duration = Duration::from_millis(10);

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

        pub(in super::super) fn prepare(&self, command: &mut Command) {
            if self.group {
                command.process_group(0);
            }
        }
    }

    fn pid(child: &Child) -> Option<Pid> {
        Pid::from_raw(i32::try_from(child.id()?).ok()?)
    }

    impl Supervisor {
        pub(in super::super) fn new(child: Child, stop: Stop) -> Supervisor {
            // A group has its leader's number.
            let group = pid(&child).filter(|_| stop.group);
            Supervisor { child, reaped: Arc::default(), stop, group }
        }

        /// By itself: what it left in its group is left alone.
        pub(super) fn exited(&mut self, status: ExitStatus) -> io::Result<Exit> {
            self.group = None;
            Ok(Exit { status, stopped: None })
        }

        /// Asks it to stop, and kills it if it has not when the grace period is over.
        pub(super) async fn stop(&mut self) -> io::Result<(ExitStatus, bool)> {
            let asked = Instant::now();
            if !self.stop.grace.is_zero() {
                self.send(Signal::from_named_raw(self.stop.signal).unwrap_or(Signal::TERM));
                if let Ok(status) = timeout(self.stop.grace, self.wait()).await {
                    let grace = self.stop.grace.saturating_sub(asked.elapsed());
                    return Ok((status?, self.clear_group(grace).await));
                }
            }
            self.send(Signal::KILL);
            self.group = None;
            Ok((self.wait().await?, true))
        }

        /// Waits until nobody is left in its group, and kills who is in the end; true if somebody was.
        async fn clear_group(&mut self, grace: Duration) -> bool {
            let begun = Instant::now();
            while let Some(group) = self.group {
                // It fails once there is nobody, or nobody that could be told.
                if test_kill_process_group(group).is_err() {
                    self.group = None;
                } else if begun.elapsed() >= grace {
                    self.send(Signal::KILL);
                    self.group = None;
                    return true;
                } else {
                    sleep(LOOK.min(grace)).await;
                }
            }
            false
        }

        /// To the group if it has one of its own, else to the process, unless that has been reaped.
        fn send(&self, signal: Signal) {
            // Of a process that has just exited there is nobody to tell any more.
            let _gone = match self.group {
                Some(group) => kill_process_group(group, signal),
                None => pid(&self.child).map_or(Ok(()), |pid| kill_process(pid, signal)),
            };
        }

        /// Who is dropped half-way, with its runtime, leaves no group behind.
        pub(super) fn kill_group(&mut self) {
            if self.group.is_some() {
                self.send(Signal::KILL);
            }
        }
    }
}

#[cfg(not(unix))]
mod other {
    use std::io;
    use std::process::ExitStatus;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::process::{Child, Command};

    use super::{Exit, Stop, Supervisor};

    impl Stop {
        pub(in super::super) fn after(grace: Duration) -> Stop {
            Stop { grace }
        }

        pub(in super::super) fn check(&self) -> io::Result<()> {
            Ok(())
        }

        pub(in super::super) fn prepare(&self, _: &mut Command) {}
    }

    impl Supervisor {
        pub(in super::super) fn new(child: Child, _: Stop) -> Supervisor {
            Supervisor { child, reaped: Arc::default() }
        }

        pub(super) fn exited(&mut self, status: ExitStatus) -> io::Result<Exit> {
            Ok(Exit { status, stopped: None })
        }

        pub(super) fn kill_group(&mut self) {}

        pub(super) async fn stop(&mut self) -> io::Result<(ExitStatus, bool)> {
            // It fails if the process has just exited.
            let _gone = self.child.start_kill();
            Ok((self.wait().await?, true))
        }
    }
}
