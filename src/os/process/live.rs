//! The list of running children, so that they can be killed when this process ends without running destructors.
//!
//! [`kill_all`] is called by the thread that ends the process on a second signal (module `signal`). No
//! destructors run then, and a child in a group of its own does not receive signals from the terminal. A child
//! that is being started on another thread must not be missed. Therefore a start is announced beforehand, under
//! the same lock that says whether starts are still accepted, and `kill_all` waits for announced starts, up to
//! a limit.
//!
//! An entry is removed immediately after its process was reaped, or its group was found to be empty. Its ID
//! could only belong to another process by then if the system had assigned all IDs in between.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A process ID, and whether it stands for the group that the process leads.
type Number = (u32, bool);

static LIVE: Mutex<Live> = Mutex::new(Live { starting: 0, ending: false, numbers: BTreeSet::new() });
static STARTED: Condvar = Condvar::new();

struct Live {
    /// The number of children that are being started.
    starting: usize,
    /// Whether this process is about to end, so that no more children are started.
    ending: bool,
    numbers: BTreeSet<Number>,
}

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child that is being started.
pub(super) struct Start(());

impl Start {
    pub(super) fn announce() -> io::Result<Start> {
        let mut live = live();
        if live.ending {
            return Err(io::Error::other("this process is about to end"));
        }
        live.starting += 1;
        Ok(Start(()))
    }

    /// Adds the child to the list. Returns `None` if it has already been reaped.
    pub(super) fn succeeded(self, id: Option<u32>, is_group: bool) -> Option<Entry> {
        let number = (id?, is_group);
        live().numbers.insert(number);
        Some(Entry(number))
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        live().starting -= 1;
        STARTED.notify_all();
    }
}

/// The entry of a child, which is removed when this is dropped.
pub(super) struct Entry(Number);

impl Drop for Entry {
    fn drop(&mut self) {
        live().numbers.remove(&self.0);
    }
}

/// Kills all running children, and their groups if they have their own. After that, no child can be started.
#[cfg(all(unix, feature = "signal"))]
pub(crate) fn kill_all() {
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process, kill_process_group};

    /// How long to wait for a child that is being started, because its program may be on a slow disk.
    const START: Duration = Duration::from_secs(1);

    let mut live = live();
    live.ending = true;
    let (live, _late) = STARTED
        .wait_timeout_while(live, START, |live| live.starting > 0)
        .unwrap_or_else(PoisonError::into_inner);
    for (number, is_group) in &live.numbers {
        let Some(pid) = i32::try_from(*number).ok().and_then(Pid::from_raw) else { continue };
        // Ignores a process that has just exited or cannot be signaled.
        let _gone = match is_group {
            true => kill_process_group(pid, Signal::KILL),
            false => kill_process(pid, Signal::KILL),
        };
    }
}
