//! The children that are still running, so that none outlives a process that ends without unwinding.
//!
//! [`kill_all`] is for the thread that ends the process on a second signal (module `signal`): destructors do not
//! run then, and a child in a group of its own gets no signal from the terminal. It must not miss a child that is
//! being started on another thread. So a start is announced beforehand, under the same lock that says whether
//! starts are still accepted, and `kill_all` waits for the announced ones, within a bound.
//!
//! An entry is taken out right after its process was reaped, or its group found empty. For its number to belong to
//! another process by then, the system would have to hand out all its numbers in between.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A process's number, and whether it stands for the group that it leads.
type Number = (u32, bool);

static LIVE: Mutex<Live> = Mutex::new(Live { starting: 0, ending: false, numbers: BTreeSet::new() });
static STARTED: Condvar = Condvar::new();

struct Live {
    /// How many are being started right now.
    starting: usize,
    /// Whether the process is about to end, and no more are to be started.
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

    /// Enters the child; `None` if it has been reaped already.
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

/// A child's entry, which lasts until this is dropped.
pub(super) struct Entry(Number);

impl Drop for Entry {
    fn drop(&mut self) {
        live().numbers.remove(&self.0);
    }
}

/// Kills every child that runs, with its group if it has one of its own; no other can be started from then on.
#[cfg(all(unix, feature = "signal"))]
pub(crate) fn kill_all() {
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process, kill_process_group};

    /// How long a start may take, as its program may be on a slow disk.
    const START: Duration = Duration::from_secs(1);

    let mut live = live();
    live.ending = true;
    let (live, _late) = STARTED
        .wait_timeout_while(live, START, |live| live.starting > 0)
        .unwrap_or_else(PoisonError::into_inner);
    for (number, is_group) in &live.numbers {
        let Some(pid) = i32::try_from(*number).ok().and_then(Pid::from_raw) else { continue };
        // One that has just exited, or may not be signaled, keeps none of the others.
        let _gone = match is_group {
            true => kill_process_group(pid, Signal::KILL),
            false => kill_process(pid, Signal::KILL),
        };
    }
}
