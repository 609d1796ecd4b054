//! Console control events on Windows, received through Tokio's streams.

use std::io;
use std::task::{Context, Poll};

use tokio::signal::windows;

use super::number::Signal;

pub(super) const TERMINATION: &[Signal] = &[
    Signal::CTRL_C,
    Signal::CTRL_BREAK,
    Signal::CTRL_CLOSE,
    Signal::CTRL_LOGOFF,
    Signal::CTRL_SHUTDOWN,
];

pub(super) const NAMES: &[(Signal, &str)] = &[
    (Signal::CTRL_C, "CTRL_C"),
    (Signal::CTRL_BREAK, "CTRL_BREAK"),
    (Signal::CTRL_CLOSE, "CTRL_CLOSE"),
    (Signal::CTRL_LOGOFF, "CTRL_LOGOFF"),
    (Signal::CTRL_SHUTDOWN, "CTRL_SHUTDOWN"),
];

/// Console control events.
#[cfg_attr(docsrs, doc(cfg(windows)))]
impl Signal {
    /// Ctrl-C.
    pub const CTRL_C: Signal = Signal(0);
    /// Ctrl-Break.
    pub const CTRL_BREAK: Signal = Signal(1);
    /// The console window is closed. The system ends the process some seconds later.
    pub const CTRL_CLOSE: Signal = Signal(2);
    /// The user logs off. Sent to services only.
    pub const CTRL_LOGOFF: Signal = Signal(5);
    /// The system shuts down. Sent to services only.
    pub const CTRL_SHUTDOWN: Signal = Signal(6);
}

/// Returns `STATUS_CONTROL_C_EXIT`, the exit status of a process that was ended by Ctrl-C.
pub(super) const fn exit_code(_: Signal) -> i32 {
    0xC000_013A_u32 as i32
}

pub(super) struct Listener {
    streams: Vec<(Signal, Stream)>,
    second_ends_process: bool,
}

enum Stream {
    C(windows::CtrlC),
    Break(windows::CtrlBreak),
    Close(windows::CtrlClose),
    Logoff(windows::CtrlLogoff),
    Shutdown(windows::CtrlShutdown),
}

impl Listener {
    pub(super) fn open(set: &[Signal], second_ends_process: bool) -> io::Result<Listener> {
        let mut streams = Vec::with_capacity(set.len());
        for &signal in set {
            streams.push((signal, listen(signal)?));
        }
        Ok(Listener { streams, second_ends_process })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (signal, stream) in &mut self.streams {
            let received = match stream {
                Stream::C(stream) => stream.poll_recv(cx),
                Stream::Break(stream) => stream.poll_recv(cx),
                Stream::Close(stream) => stream.poll_recv(cx),
                Stream::Logoff(stream) => stream.poll_recv(cx),
                Stream::Shutdown(stream) => stream.poll_recv(cx),
            };
            if received.is_ready() {
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    }

    /// Waits for the second signal, until the runtime is shut down.
    pub(super) async fn fired(mut self) {
        if self.second_ends_process {
            let second = std::future::poll_fn(|cx| self.poll(cx)).await;
            std::process::exit(second.exit_code());
        }
    }
}

fn listen(signal: Signal) -> io::Result<Stream> {
    match signal {
        Signal::CTRL_C => windows::ctrl_c().map(Stream::C),
        Signal::CTRL_BREAK => windows::ctrl_break().map(Stream::Break),
        Signal::CTRL_CLOSE => windows::ctrl_close().map(Stream::Close),
        Signal::CTRL_LOGOFF => windows::ctrl_logoff().map(Stream::Logoff),
        // There are no other values of `Signal`.
        _ => windows::ctrl_shutdown().map(Stream::Shutdown),
    }
}
