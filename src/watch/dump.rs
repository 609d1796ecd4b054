//! The text of a snapshot, printed on a signal. It works for a service that no longer responds.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread;

use signal_hook::low_level::pipe;

use super::build::Watch;
use super::snapshot::Snapshot;
use crate::os::signal::Signal;
use crate::trace::shielded;

static SIGNALS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

impl Watch {
    /// Prints a snapshot to standard error whenever the process receives a signal: `kill -USR1 4711`.
    ///
    /// A separate thread prints it, so it works while the runtime is stuck. The default action of the signal, such as ending
    /// the process, is disabled. A second call for the same signal has no effect.
    ///
    /// # Errors
    ///
    /// Returns an error if the signal cannot be caught, or if the system cannot create a socket or a thread.
    ///
    /// ```
    /// use tokio_ctx::signal::Signal;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let watch = tokio_ctx::watch::install();
    /// watch.dump_on(Signal::USR1)?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(all(unix, feature = "signal"))))]
    pub fn dump_on(&self, signal: Signal) -> io::Result<()> {
        self.dump_on_with(signal, |snapshot| {
            // A separate descriptor, because a thread that is stuck may hold the lock of `std`'s handle.
            if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
                let _closed = File::from(stderr).write_all(format!("{snapshot}\n").as_bytes());
            }
        })
    }

    /// Like [`dump_on`](Self::dump_on), but passes the snapshot to `f`, for example to log it. `f` is called on a separate
    /// thread.
    ///
    /// If `f` panics, the next signal calls it again.
    ///
    /// # Errors
    ///
    /// See [`dump_on`](Self::dump_on).
    ///
    /// ```
    /// use tokio_ctx::signal::Signal;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let watch = tokio_ctx::watch::install();
    /// watch.dump_on_with(Signal::USR2, |snapshot| tracing::info!("{snapshot}"))?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(all(unix, feature = "signal"))))]
    pub fn dump_on_with(
        &self,
        signal: Signal,
        mut f: impl FnMut(Snapshot) + Send + 'static,
    ) -> io::Result<()> {
        signal.must_be_one_to_catch()?;
        let mut signals = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
        if signals.contains(&signal.number()) {
            return Ok(());
        }
        let (mut signaled, handler) = UnixStream::pair()?;
        let watch = *self;
        thread::Builder::new().name("tokio-ctx-dump".into()).spawn(move || {
            let mut bytes = [0; 64];
            // Signals that arrive while one is handled are combined. The thread ends if the registration below fails.
            while let Ok(1..) = signaled.read(&mut bytes) {
                shielded(|| f(watch.snapshot()));
            }
        })?;
        pipe::register(signal.number(), handler)?;
        signals.insert(signal.number());
        Ok(())
    }
}
