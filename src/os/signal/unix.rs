//! Signals on Unix: Tokio's streams for the first, a thread for those that come after the end.
//!
//! Tokio never gives a signal its old disposition back: without more, a signal that no context waits for any
//! longer would be lost. So each [`Listener`] has a [`Seat`], which sees to it that a signal from then on does what
//! it did before (module `before`): nothing, if it was ignored or had a handler (which is called as ever);
//! otherwise the default is carried out, which for most is to end the process.
//!
//! The obvious design carries the default out within the signal handler. But children in process groups of their
//! own have to be killed first (module `process`), and a handler may not do that. So the handler only notes the
//! signal's number and writes a byte to the seat's socket; a thread reads it, which works as well while the runtime
//! is stuck or gone. The bytes are the whole protocol, and their order is the order of events:
//!
//! | Byte | Written by | The first | Every later one |
//! |---|---|---|---|
//! | `X` | the handler | arms: it ends the context | carries out the default |
//! | `L` | a listener that leaves without a signal | arms | |
//!
//! The second signal thus counts as the second although neither the task nor the thread has seen the first, and a
//! signal that came before the listener left is not taken for one that came after. A seat's actions are its own,
//! so that a signal which is being handled while another listener starts counts for the old one alone. (Of two
//! signals that are handled at once, on two threads, either's default is carried out.)
//!
//! A seat whose listener has left stays behind until another context listens for that signal. [`SLOTS`] knows, for
//! each signal, what it did before, which listeners there are, and what was left behind. When its actions are unregistered
//! the last write end closes, and the thread ends.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::mem;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use signal_hook::consts;
use signal_hook::{SigId, flag, low_level};
use tokio::signal::unix;

use super::before::Before;
use super::number::Signal;

pub(super) const TERMINATION: &[Signal] = &[Signal::INT, Signal::TERM];

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
                // Before the end can be seen, and answered by another listener.
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
    pub(crate) fn must_be_one_to_catch(self) -> io::Result<()> {
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

/// A listener's place among those that listen, and its thread's end of the socket.
struct Seats {
    id: u64,
    /// Closed when the last of the actions is gone; `None` if there are none.
    left: Option<UnixStream>,
    seats: Vec<(i32, Option<Actions>)>,
}

/// For each signal, what it did before, its listeners, and what the last one left behind.
static SLOTS: Mutex<Slots> = Mutex::new(Slots { next_id: 0, of: BTreeMap::new() });

struct Slots {
    next_id: u64,
    of: BTreeMap<i32, Slot>,
}

struct Slot {
    before: Before,
    listeners: Vec<u64>,
    left_behind: Option<Actions>,
}

fn slots() -> MutexGuard<'static, Slots> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// The signal's slot. It is made before anything listens here, when the old disposition can still be seen.
    fn slot(&mut self, signal: Signal) -> &mut Slot {
        self.of.entry(signal.0).or_insert_with(|| Slot {
            before: Before::read(signal.0),
            listeners: Vec::new(),
            left_behind: None,
        })
    }
}

impl Seats {
    fn take(set: &[Signal], after_the_end: bool) -> io::Result<Seats> {
        let (id, acting) = {
            let mut slots = slots();
            slots.next_id += 1;
            let acts = |signal: &&Signal| after_the_end && slots.slot(**signal).before.has_an_effect();
            let acting = Vec::from_iter(set.iter().filter(acts).copied());
            (slots.next_id, acting)
        };
        let mut taken = Seats { id, left: None, seats: Vec::with_capacity(set.len()) };
        if !acting.is_empty() {
            taken.register(&acting)?;
        }
        let mut replaced = Vec::with_capacity(set.len());
        {
            let mut slots = slots();
            for &signal in set {
                if !acting.contains(&signal) {
                    taken.seats.push((signal.0, None));
                }
                let slot = slots.slot(signal);
                slot.listeners.push(id);
                replaced.push(slot.left_behind.take());
            }
        }
        drop(replaced);
        Ok(taken)
    }

    /// Starts the thread, and registers the actions that write to it. If one cannot be, those before it stay
    /// behind when this is dropped, as their signals have lost their defaults.
    fn register(&mut self, signals: &[Signal]) -> io::Result<()> {
        let (read, write) = UnixStream::pair()?;
        // A full socket holds more than one byte: what is not written then would change nothing.
        write.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        let noted = last.clone();
        let thread = thread::Builder::new().name("tokio-ctx-signal".into());
        thread.spawn(move || watch(read, &noted)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start the thread for later signals: {error}"))
        })?;
        let write = self.left.insert(write);
        for &signal in signals {
            let actions = Actions::register(signal, &last, write.try_clone()?);
            self.seats.push((signal.0, Some(actions.map_err(|error| unheard(signal, &error))?)));
        }
        Ok(())
    }

    /// Leaves, and leaves its actions behind unless the next signal is another listener's to wait for: of
    /// those that have seen this one, a later one's; of those that have not, any one's.
    fn leave(&mut self, fired: bool) {
        let mut unregistered = Vec::with_capacity(self.seats.len());
        {
            let mut slots = slots();
            for (number, actions) in self.seats.drain(..) {
                let slot = slots.slot(Signal(number));
                slot.listeners.retain(|id| *id != self.id);
                let is_anothers = slot.listeners.iter().any(|id| !fired || *id > self.id);
                let stays = actions.is_some() && !is_anothers;
                unregistered.push(if stays {
                    mem::replace(&mut slot.left_behind, actions)
                } else {
                    actions
                });
            }
        }
        // Only once the others are gone. A handler that fired writes by itself.
        if let Some(mut left) = self.left.take().filter(|_| !fired) {
            let _full = left.write(&[LEFT]);
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

/// What a signal does within its handler: notes its number, and writes a byte.
struct Actions([SigId; 2]);

impl Actions {
    fn register(signal: Signal, last: &Arc<AtomicUsize>, write: UnixStream) -> io::Result<Actions> {
        let number = usize::try_from(signal.0).map_err(io::Error::other)?;
        let note = flag::register_usize(signal.0, last.clone(), number)?;
        match low_level::pipe::register(signal.0, write) {
            Ok(write) => Ok(Actions([note, write])),
            Err(error) => {
                low_level::unregister(note);
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

/// What a listener writes that leaves without a signal; a handler writes `X`.
const LEFT: u8 = b'L';

/// Reads what happens, until the last write end is closed, and carries the default out when it is time.
fn watch(mut events: UnixStream, last: &AtomicUsize) {
    let mut armed = false;
    let mut event = [0];
    loop {
        match events.read(&mut event) {
            Ok(0) => return,
            Ok(_) if armed && event[0] != LEFT => act_as_before(last.load(Ordering::SeqCst)),
            Ok(_) => armed = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Carries out the default of a signal: suspends the process, or ends it, and with it its children.
fn act_as_before(number: usize) {
    let Ok(number) = i32::try_from(number) else { return };
    if Before::suspends(number) {
        let _continued = low_level::emulate_default_handler(number);
        return;
    }
    #[cfg(feature = "process")]
    crate::os::process::kill_all();
    // Process 1 of a PID namespace cannot be ended by a signal that it does not handle.
    if std::process::id() != 1 {
        let _unknown = low_level::emulate_default_handler(number);
    }
    low_level::exit(exit_code(Signal(number)));
}
