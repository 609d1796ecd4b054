//! Signals on Unix: Tokio's streams for the first, `signal-hook`'s conditional exit for the second.
//!
//! A [`Listener`] registers two actions for each of its signals, which run within the signal handler, one
//! after the other: *if armed, exit*, and *arm*. So the first signal arms and the second exits, whatever
//! the runtime does meanwhile. (Two that are handled at once, on two threads, exit with either's status.) A listener that goes leaves its actions behind, armed, until somebody
//! listens for that signal again: Tokio never gives a signal its default back, so that without them a
//! signal which nobody waits for would be lost. [`SLOTS`] knows, for each signal, what was left behind, and
//! how many listen now.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use signal_hook::consts;
use signal_hook::{SigId, flag, low_level};
use tokio::signal::unix;

use super::Signal;

pub(super) const SHUTDOWN: &[Signal] = &[Signal::INT, Signal::TERM];

pub(super) const NAMES: &[(Signal, &str)] = &[
    (Signal::ALRM, "SIGALRM"),
    (Signal(consts::SIGCHLD), "SIGCHLD"),
    (Signal(consts::SIGCONT), "SIGCONT"),
    (Signal(consts::SIGFPE), "SIGFPE"),
    (Signal::HUP, "SIGHUP"),
    (Signal(consts::SIGILL), "SIGILL"),
    (Signal::INT, "SIGINT"),
    (Signal(consts::SIGKILL), "SIGKILL"),
    (Signal(consts::SIGPIPE), "SIGPIPE"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal(consts::SIGSEGV), "SIGSEGV"),
    (Signal(consts::SIGSTOP), "SIGSTOP"),
    (Signal::TERM, "SIGTERM"),
    (Signal(consts::SIGTSTP), "SIGTSTP"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
    (Signal(consts::SIGWINCH), "SIGWINCH"),
];

/// What POSIX has; [`from_raw`](Self::from_raw) makes any other.
#[cfg_attr(docsrs, doc(cfg(unix)))]
impl Signal {
    /// SIGALRM, of a timer.
    pub const ALRM: Signal = Signal(consts::SIGALRM);
    /// SIGHUP: the terminal has gone; to many services, *read your configuration again*.
    pub const HUP: Signal = Signal(consts::SIGHUP);
    /// SIGINT, the terminal's Ctrl-C.
    pub const INT: Signal = Signal(consts::SIGINT);
    /// SIGQUIT, the terminal's Ctrl-\\.
    pub const QUIT: Signal = Signal(consts::SIGQUIT);
    /// SIGTERM, which `kill`, `docker stop` and `systemctl stop` send.
    pub const TERM: Signal = Signal(consts::SIGTERM);
    /// SIGUSR1, which is for the program to give a meaning.
    pub const USR1: Signal = Signal(consts::SIGUSR1);
    /// SIGUSR2, which is for the program to give a meaning.
    pub const USR2: Signal = Signal(consts::SIGUSR2);

    /// The signal of this number.
    ///
    /// ```
    /// use tokio_ctx::signal::Signal;
    ///
    /// assert_eq!(Signal::from_raw(15), Signal::TERM);
    /// ```
    pub const fn from_raw(number: i32) -> Signal {
        Signal(number)
    }
}

pub(super) const fn exit_code(signal: Signal) -> i32 {
    signal.0.saturating_add(128)
}

pub(super) struct Listener {
    streams: Vec<(Signal, unix::Signal)>,
    seats: Seats,
}

impl Listener {
    #[track_caller]
    pub(super) fn open(set: &[Signal], second_ends_process: bool) -> io::Result<Listener> {
        for signal in set {
            signal.must_be_one_to_catch()?;
        }
        // Its actions come before the stream's, which may wake others before the handler is through.
        let seats = Seats::take(set, second_ends_process)?;
        let mut streams = Vec::with_capacity(set.len());
        for &signal in set {
            let kind = unix::SignalKind::from_raw(signal.0);
            let stream = unix::signal(kind).map_err(|error| unheard(signal, &error))?;
            streams.push((signal, stream));
        }
        Ok(Listener { streams, seats })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (signal, stream) in &mut self.streams {
            if stream.poll_recv(cx).is_ready() {
                // Before anybody learns of it, and listens again.
                self.seats.leave(true);
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    }

    /// The handler sees to the second.
    pub(super) async fn fired(self) {}
}

impl Signal {
    fn must_be_one_to_catch(self) -> io::Result<()> {
        if self.0 > 0 && !consts::FORBIDDEN.contains(&self.0) {
            return Ok(());
        }
        let text = format!("{self:?} cannot be caught: choose another, such as SIGTERM");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

fn unheard(signal: Signal, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen for {signal:?}: {error}"))
}

/// A listener's places among those who listen.
struct Seats {
    id: u64,
    armed: Arc<AtomicBool>,
    seats: Vec<(i32, Option<Actions>)>,
}

/// For each signal, who listens, and what the last one left behind.
static SLOTS: Mutex<Slots> = Mutex::new(Slots { next_id: 0, of: BTreeMap::new() });

struct Slots {
    next_id: u64,
    of: BTreeMap<i32, Slot>,
}

#[derive(Default)]
struct Slot {
    listeners: Vec<u64>,
    left_behind: Option<Actions>,
}

fn slots() -> MutexGuard<'static, Slots> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seats {
    fn take(set: &[Signal], second_ends_process: bool) -> io::Result<Seats> {
        let id = {
            let mut slots = slots();
            slots.next_id += 1;
            slots.next_id
        };
        let mut taken = Seats { id, armed: Arc::default(), seats: Vec::with_capacity(set.len()) };
        for &signal in set {
            let register = || Actions::register(signal, &taken.armed);
            let actions = second_ends_process.then(register).transpose();
            let actions = actions.map_err(|error| unheard(signal, &error))?;
            let mut slots = slots();
            let slot = slots.of.entry(signal.0).or_default();
            slot.listeners.push(id);
            slot.left_behind = None;
            taken.seats.push((signal.0, actions));
        }
        Ok(taken)
    }

    /// Leaves, and leaves its actions behind unless the next signal is another's to wait for: of those who
    /// have been told of this one, whoever came later; of those who have not, anybody.
    fn leave(&mut self, fired: bool) {
        let mut slots = slots();
        for (number, actions) in self.seats.drain(..) {
            let slot = slots.of.entry(number).or_default();
            slot.listeners.retain(|id| *id != self.id);
            let is_anothers = slot.listeners.iter().any(|id| !fired || *id > self.id);
            if actions.is_some() && !is_anothers {
                slot.left_behind = actions;
            }
        }
        // Only once the others are gone. A handler that fired arms by itself, and may be about to: it is
        // not to find itself armed.
        if !fired {
            self.armed.store(true, Ordering::SeqCst);
        }
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        if !self.seats.is_empty() {
            self.leave(false);
        }
    }
}

/// *If armed, exit*, and *arm*.
struct Actions([SigId; 2]);

impl Actions {
    fn register(signal: Signal, armed: &Arc<AtomicBool>) -> io::Result<Actions> {
        let exit = flag::register_conditional_shutdown(signal.0, exit_code(signal), armed.clone())?;
        match flag::register(signal.0, armed.clone()) {
            Ok(arm) => Ok(Actions([exit, arm])),
            Err(error) => {
                low_level::unregister(exit);
                Err(error)
            }
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        for id in self.0 {
            low_level::unregister(id);
        }
    }
}
