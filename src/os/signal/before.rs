//! The disposition that a signal had before the first context for it was created.
//!
//! On Linux it is read from `/proc/self/status`, before a handler of this crate is installed. On other systems
//! it cannot be read without unsafe code, and is assumed to be the default.

use signal_hook::consts;

/// The disposition of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// The default: most signals end the process, some suspend it.
    Default,
    /// Ignored, by default, since the start of the process (`nohup`), or by the program itself.
    Ignored,
    /// A handler of the program or of another library, which is still called.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    Handled,
}

/// Ignored by default. (SIGCONT continues the process in any case.)
const NO_EFFECT: &[i32] = &[
    consts::SIGCHLD,
    consts::SIGCONT,
    consts::SIGURG,
    consts::SIGWINCH,
    #[cfg(any(
        target_os = "macos",
        target_os = "freebsd",
        target_os = "dragonfly",
        target_os = "netbsd",
        target_os = "openbsd",
    ))]
    consts::SIGINFO,
];

impl Before {
    pub(super) fn read(signal: i32) -> Before {
        if NO_EFFECT.contains(&signal) { Before::Ignored } else { disposition(signal) }
    }

    /// Returns whether the previous effect has to be carried out here, because the system no longer does.
    pub(super) fn has_an_effect(self) -> bool {
        self == Before::Default
    }

    /// Returns whether the default of a signal suspends the process.
    pub(super) fn suspends(signal: i32) -> bool {
        [consts::SIGTSTP, consts::SIGTTIN, consts::SIGTTOU].contains(&signal)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn disposition(signal: i32) -> Before {
    std::fs::read_to_string("/proc/self/status")
        .map_or(Before::Default, |status| disposition_in(&status, signal))
}

/// Parses the status file. If a line is missing, assumes the default.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn disposition_in(status: &str, signal: i32) -> Before {
    let is_in = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.and_then(|mask| u128::from_str_radix(mask.trim(), 16).ok());
        signal
            .checked_sub(1)
            .and_then(|bit| mask?.checked_shr(u32::try_from(bit).ok()?))
            .is_some_and(|mask| mask & 1 == 1)
    };
    match () {
        () if is_in("SigCgt:") => Before::Handled,
        () if is_in("SigIgn:") => Before::Ignored,
        () => Before::Default,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn disposition(_: i32) -> Before {
    Before::Default
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::{Before, disposition_in};

    #[test]
    fn dispositions_are_read_from_the_masks() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000000001\nSigCgt:\t8000000000004002\n";
        assert_eq!(disposition_in(status, 1), Before::Ignored);
        assert_eq!(disposition_in(status, 2), Before::Handled);
        assert_eq!(disposition_in(status, 15), Before::Handled);
        assert_eq!(disposition_in(status, 64), Before::Handled);
        assert_eq!(disposition_in(status, 3), Before::Default);
        assert_eq!(disposition_in(status, 0), Before::Default);
        assert_eq!(disposition_in(status, i32::MIN + 1), Before::Default);
        assert_eq!(disposition_in("", 1), Before::Default);
        assert_eq!(disposition_in("SigIgn:\tno number\n", 1), Before::Default);
    }
}
