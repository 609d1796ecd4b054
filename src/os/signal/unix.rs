//! Signals on Unix: Tokio's streams receive the first signal, and a thread those that arrive after the end.
//!
//! Tokio never restores the disposition of a signal, so a signal that no context waits for any longer would be
//! lost. Therefore each [`Listener`] has a [`Registration`], which gives a signal its previous effect (module `before`)
//! after the listener has deregistered: none, if it was ignored or had a handler (which is still called), and otherwise
//! the default, which for most signals is to end the process.
//!
//! The obvious design carries out the default within the signal handler. But children in process groups of
//! their own have to be killed first (module `process`), which is not allowed in a handler. So the handler only
//! stores the number of the signal and writes a byte to a socket. A thread reads the socket, which works even
//! if the runtime is blocked or has been shut down. The bytes are the entire protocol, and their order is the
//! order of the events:
//!
//! | Byte | Written by | The first byte | Every later byte |
//! |---|---|---|---|
//! | `X` | the handler | arms: it ends the context | carries out the default |
//! | `D` | a listener that deregisters without a signal | arms | |
//!
//! So the second signal is recognized even if neither the task nor the thread has seen the first one yet, and a
//! signal that arrived before the listener deregistered is not mistaken for a later one. Each listener registers
//! actions of its own, so a signal that is being handled while another listener starts only counts for the old
//! listener. (If two signals are handled at the same time on two threads, the default of one of them is carried
//! out.)
//!
//! When a listener deregisters, its actions stay registered until another context listens for the signal. For each
//! signal, [`SLOTS`] contains the previous disposition, the listeners, and the actions that were left behind.
//! When the actions are unregistered, the last write end of the socket is closed, and the thread ends.

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

/// The signals of POSIX. [`from_raw`](Self::from_raw) creates any other.
#[cfg_attr(docsrs, doc(cfg(unix)))]
impl Signal {
    /// SIGALRM, from a timer.
    pub const ALRM: Signal = Signal(consts::SIGALRM);
    /// SIGHUP: the terminal was closed. Many services reload their configuration.
    pub const HUP: Signal = Signal(consts::SIGHUP);
    /// SIGINT, the terminal's Ctrl-C.
    pub const INT: Signal = Signal(consts::SIGINT);
    /// SIGQUIT, the terminal's Ctrl-\\.
    pub const QUIT: Signal = Signal(consts::SIGQUIT);
    /// SIGTERM, which `kill`, `docker stop` and `systemctl stop` send.
    pub const TERM: Signal = Signal(consts::SIGTERM);
    /// SIGUSR1, whose meaning the program defines.
    pub const USR1: Signal = Signal(consts::SIGUSR1);
    /// SIGUSR2, whose meaning the program defines.
    pub const USR2: Signal = Signal(consts::SIGUSR2);

    /// Returns the signal with the given number.
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
    registration: Registration,
}

impl Listener {
    #[track_caller]
    pub(super) fn open(set: &[Signal], second_ends_process: bool) -> io::Result<Listener> {
        for signal in set {
            signal.must_be_one_to_catch()?;
        }
        // Registered before the actions of the streams, which may wake tasks before the handler has returned.
        let registration = Registration::new(set, second_ends_process)?;
        let mut streams = Vec::with_capacity(set.len());
        for &signal in set {
            let kind = unix::SignalKind::from_raw(signal.0);
            let stream = unix::signal(kind).map_err(|error| listen_error(signal, &error))?;
            streams.push((signal, stream));
        }
        Ok(Listener { streams, registration })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (signal, stream) in &mut self.streams {
            if stream.poll_recv(cx).is_ready() {
                // Deregisters before the end of the context is visible, because another listener may start then.
                self.registration.deregister(true);
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    }

    /// Nothing to do: the handler and the thread take care of further signals.
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

fn listen_error(signal: Signal, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen for {signal:?}: {error}"))
}

/// The registration of a listener for its signals, and its write end of the socket.
struct Registration {
    id: u64,
    /// The write end of the socket; `None` if there are no actions.
    socket: Option<UnixStream>,
    signals: Vec<(i32, Option<Actions>)>,
}

/// For each signal, its previous disposition, its listeners, and the actions that the last listener left
/// behind.
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
    /// Returns the slot of a signal. It is created before a handler is installed, while the previous
    /// disposition can still be read.
    fn slot(&mut self, signal: Signal) -> &mut Slot {
        self.of.entry(signal.0).or_insert_with(|| Slot {
            before: Before::read(signal.0),
            listeners: Vec::new(),
            left_behind: None,
        })
    }
}

impl Registration {
    fn new(set: &[Signal], after_the_end: bool) -> io::Result<Registration> {
        let (id, acting) = {
            let mut slots = slots();
            slots.next_id += 1;
            let acts = |signal: &&Signal| after_the_end && slots.slot(**signal).before.has_an_effect();
            let acting = Vec::from_iter(set.iter().filter(acts).copied());
            (slots.next_id, acting)
        };
        let mut registration = Registration { id, socket: None, signals: Vec::with_capacity(set.len()) };
        if !acting.is_empty() {
            registration.register(&acting)?;
        }
        let mut replaced = Vec::with_capacity(set.len());
        {
            let mut slots = slots();
            for &signal in set {
                if !acting.contains(&signal) {
                    registration.signals.push((signal.0, None));
                }
                let slot = slots.slot(signal);
                slot.listeners.push(id);
                replaced.push(slot.left_behind.take());
            }
        }
        drop(replaced);
        Ok(registration)
    }

    /// Starts the thread, and registers the actions that write to its socket. If registering one fails, the
    /// previous ones are left behind when this is dropped, because their signals have already lost their
    /// defaults.
    fn register(&mut self, signals: &[Signal]) -> io::Result<()> {
        let (read, write) = UnixStream::pair()?;
        // Further bytes have no effect if the socket is full, because it then contains more than one byte.
        write.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        let last_of_thread = last.clone();
        let thread = thread::Builder::new().name("tokio-ctx-signal".into());
        thread.spawn(move || watch(read, &last_of_thread)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start the thread for later signals: {error}"))
        })?;
        let write = self.socket.insert(write);
        for &signal in signals {
            let actions = Actions::register(signal, &last, write.try_clone()?);
            self.signals.push((signal.0, Some(actions.map_err(|error| listen_error(signal, &error))?)));
        }
        Ok(())
    }

    /// Deregisters the listener, and leaves the actions behind unless another listener waits for the next signal. After
    /// a signal, only later listeners count, because the earlier ones have received the same signal.
    fn deregister(&mut self, fired: bool) {
        let mut unregistered = Vec::with_capacity(self.signals.len());
        {
            let mut slots = slots();
            for (number, actions) in self.signals.drain(..) {
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
        // Written after the other actions are unregistered. After a signal, the handler has written a byte
        // itself.
        if let Some(mut socket) = self.socket.take().filter(|_| !fired) {
            let _full = socket.write(&[DEREGISTERED]);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.signals.is_empty() {
            self.deregister(false);
        }
    }
}

/// The actions within the signal handler: store the number, and write a byte.
struct Actions([SigId; 2]);

impl Actions {
    fn register(signal: Signal, last: &Arc<AtomicUsize>, write: UnixStream) -> io::Result<Actions> {
        let number = usize::try_from(signal.0).map_err(io::Error::other)?;
        let store = flag::register_usize(signal.0, last.clone(), number)?;
        match low_level::pipe::register(signal.0, write) {
            Ok(write) => Ok(Actions([store, write])),
            Err(error) => {
                low_level::unregister(store);
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

/// The byte that a listener writes when it deregisters without a signal. A handler writes `X`.
const DEREGISTERED: u8 = b'D';

/// Reads the events until the last write end is closed, and carries out the default of a signal after the first
/// event.
fn watch(mut events: UnixStream, last: &AtomicUsize) {
    let mut armed = false;
    let mut event = [0];
    loop {
        match events.read(&mut event) {
            Ok(0) => return,
            Ok(_) if armed && event[0] != DEREGISTERED => act_as_before(last.load(Ordering::SeqCst)),
            Ok(_) => armed = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Carries out the default of a signal: suspends the process, or kills its children and ends it.
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
