//! `signal`: real signals that are sent to a real process. Each test runs itself again as a child process,
//! and sends the signals to it.

#![cfg(all(unix, feature = "signal"))]

mod common;

use std::env;
use std::future::pending;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::panic::Location;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio, exit};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{LONG, current_thread, ended, multi_thread, panic_text, spin_until, watched};
#[cfg(target_os = "linux")]
use tokio::signal::unix::SignalKind;
use tokio_ctx::Context;
use tokio_ctx::signal::{self, Signal, Signals, until_termination};

static BACKGROUND: Context = Context::background();

const ROLE: &str = "TOKIO_CTX_SIGNAL_CHILD";

/// Sends a signal to a process.
fn kill(pid: u32, signal: Signal) {
    // SAFETY: it touches no memory.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal.number()) };
    assert_eq!(sent, 0, "no such process");
}

/// Sends a signal to this process. It has been handled when this returns, if only this thread can handle it.
fn raise(signal: Signal) {
    kill(std::process::id(), signal);
}

/// The command to run this program again.
fn this_program() -> Command {
    with_defaults(&env::current_exe().unwrap())
}

/// A program that starts with the default of these signals, which may be ignored because the tests run in the
/// background or under `nohup`.
fn with_defaults(program: &Path) -> Command {
    let mut command = Command::new(program);
    let defaults = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: it sets no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: `signal` may be called between fork and exec.
    unsafe { command.pre_exec(defaults) };
    command
}

/// A child process that runs the other half of a test.
struct Other {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Processes that it leaves running on purpose.
    strays: Vec<u32>,
}

impl Other {
    /// In the child process, runs `child` and exits with 0; otherwise, starts the child process.
    fn start<F: Future<Output = ()>>(test: &str, child: impl FnOnce() -> F) -> Other {
        Other::start_as(test, this_program(), child)
    }

    /// The same, with a command that runs this program and may do more.
    fn start_as<F: Future<Output = ()>>(
        test: &str,
        mut command: Command,
        child: impl FnOnce() -> F,
    ) -> Other {
        if env::var_os(ROLE).is_some() {
            current_thread().block_on(child());
            exit(0);
        }
        command.args([test, "--exact", "--nocapture"]).env(ROLE, "child").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Other { child, output, strays: Vec::new() }
    }

    /// Waits until the child has printed this line.
    fn prints(&mut self, line: &str) -> &mut Other {
        let printed = self.prints_line_with(line);
        assert_eq!(printed, line);
        self
    }

    /// Waits for a line that contains this text, and returns it.
    fn prints_line_with(&mut self, part: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it never printed {part:?}");
            if line.contains(part) {
                return line.trim_end().to_owned();
            }
        }
    }

    fn is_sent(&mut self, signal: Signal) -> &mut Other {
        kill(self.child.id(), signal);
        self
    }

    fn ends(&mut self) -> ExitStatus {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap()
    }

    /// Checks the exit status.
    fn ends_with(&mut self, code: i32) {
        let status = self.ends();
        assert_eq!(status.code(), Some(code), "{status}");
    }

    /// Checks that this signal ended the child.
    fn ends_by(&mut self, signal: Signal) {
        let status = self.ends();
        assert_eq!(status.signal(), Some(signal.number()), "{status}");
    }

    /// Waits until the system has suspended the child.
    #[cfg(target_os = "linux")]
    fn is_suspended(&mut self) -> &mut Other {
        let stat = format!("/proc/{}/stat", self.child.id());
        spin_until(|| {
            let stat = std::fs::read_to_string(&stat).expect("it is there");
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        });
        self
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if thread::panicking() {
            let _gone = self.child.kill();
        }
        let _reaped = self.child.wait();
        for pid in &self.strays {
            kill(*pid, Signal::from_raw(libc::SIGKILL));
        }
    }
}

/// A task that never yields to its runtime.
fn hang() {
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn each_of_the_shutdown_signals_ends_the_context_and_is_its_cause() {
    watched(|| {
        for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
            let test = "each_of_the_shutdown_signals_ends_the_context_and_is_its_cause";
            let mut other = Other::start(test, || async {
                let line = Location::caller().line() + 1;
                let ctx = until_termination(&BACKGROUND).unwrap();
                println!("ready");
                let error = ctx.done().await;
                assert!(error.is_canceled());
                assert_eq!(error.origin().canceled_at().unwrap().line(), line);
                println!("{error}");
                exit(error.cause_as::<Signal>().unwrap().number());
            });
            other.prints("ready").is_sent(signal);
            let line = other.prints_line_with("context canceled");
            assert!(line.starts_with("context canceled at tests/signal.rs:"), "{line}");
            assert!(line.ends_with(&format!(": {name} received")), "{line}");
            other.ends_with(signal.number());
        }
    });
}

/// The handler is installed on return, not on the first poll; otherwise this signal would end the process.
#[test]
fn a_signal_right_after_the_call_is_not_lost() {
    watched(|| {
        Other::start("a_signal_right_after_the_call_is_not_lost", || async {
            let ctx = until_termination(&BACKGROUND).unwrap();
            raise(Signal::TERM);
            assert_eq!(ctx.done().await.cause_as(), Some(&Signal::TERM));
        })
        .ends_with(0);
    });
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    watched(|| {
        let mut other = Other::start("a_second_signal_ends_the_process_at_once", || async {
            let ctx = until_termination(&BACKGROUND).unwrap();
            println!("ready");
            ctx.done().await;
            println!("stopping");
            pending().await
        });
        other
            .prints("ready")
            .is_sent(Signal::INT)
            .prints("stopping")
            .is_sent(Signal::INT)
            .ends_by(Signal::INT);
    });
}

#[test]
fn another_signal_of_the_set_ends_the_process_as_well() {
    watched(|| {
        let test = "another_signal_of_the_set_ends_the_process_as_well";
        let mut other = Other::start(test, || async {
            let ctx = until_termination(&BACKGROUND).unwrap();
            println!("ready");
            ctx.done().await;
            println!("stopping");
            pending().await
        });
        other
            .prints("ready")
            .is_sent(Signal::INT)
            .prints("stopping")
            .is_sent(Signal::TERM)
            .ends_by(Signal::TERM);
    });
}

/// The first signal is never noticed.
#[test]
fn a_stuck_runtime_does_not_keep_the_second_from_ending_the_process() {
    watched(|| {
        let test = "a_stuck_runtime_does_not_keep_the_second_from_ending_the_process";
        let mut other = Other::start(test, || async {
            let _ctx = until_termination(&BACKGROUND).unwrap();
            println!("ready");
            hang();
        });
        let status = other.prints("ready").is_sent(Signal::INT).is_sent(Signal::TERM).ends();
        assert!(matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM)), "{status}");
    });
}

#[test]
fn turned_off_later_signals_are_ignored() {
    watched(|| {
        let mut other = Other::start("turned_off_later_signals_are_ignored", || async {
            let signals = Signals::termination().second_signal_ends_process(false);
            let ctx = signals.notify(&BACKGROUND).unwrap();
            raise(Signal::TERM);
            ctx.done().await;
            raise(Signal::TERM);
            drop(ctx);
            raise(Signal::TERM);
            raise(Signal::INT);
            println!("still here");
        });
        other.prints("still here").ends_with(0);
    });
}

#[test]
fn only_the_chosen_ones_count() {
    watched(|| {
        let mut other = Other::start("only_the_chosen_ones_count", || async {
            let set = [Signal::USR1, Signal::HUP, Signal::USR1];
            let ctx = signal::notify(&BACKGROUND, set).unwrap();
            raise(Signal::HUP);
            assert_eq!(ctx.done().await.cause_as(), Some(&Signal::HUP));
            println!("ready");
            pending().await
        });
        let status = other.prints("ready").is_sent(Signal::TERM).ends();
        assert_eq!(status.signal(), Some(Signal::TERM.number()), "{status}");
    });
}

#[test]
fn a_signal_that_has_no_name_can_be_chosen() {
    watched(|| {
        Other::start("a_signal_that_has_no_name_can_be_chosen", || async {
            let urgent = Signal::from_raw(libc::SIGURG);
            let ctx = signal::notify(&BACKGROUND, [urgent]).unwrap();
            raise(urgent);
            let text = format!(": signal {} received", libc::SIGURG);
            assert!(ctx.done().await.to_string().ends_with(&text));
        })
        .ends_with(0);
    });
}

#[test]
fn all_listeners_are_notified() {
    watched(|| {
        Other::start("all_listeners_are_notified", || async {
            let one = until_termination(&BACKGROUND).unwrap();
            let other = until_termination(&BACKGROUND).unwrap();
            let child = one.with_cancel();
            raise(Signal::INT);
            for ctx in [&one, &other, &child] {
                assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
            }
        })
        .ends_with(0);
    });
}

/// Tokio never restores the default of a signal. Without a waiter, the signal must not be swallowed.
#[test]
fn after_the_scope_is_dropped_a_signal_ends_the_process() {
    watched(|| {
        let test = "after_the_scope_is_dropped_a_signal_ends_the_process";
        let mut other = Other::start(test, || async {
            drop(until_termination(&BACKGROUND).unwrap());
            no_task_is_left().await;
            println!("ready");
            pending().await
        });
        other.prints("ready").is_sent(Signal::TERM).ends_by(Signal::TERM);
    });
}

#[test]
fn after_the_runtime_is_dropped_a_signal_ends_the_process() {
    watched(|| {
        let test = "after_the_runtime_is_dropped_a_signal_ends_the_process";
        let mut other = Other::start(test, || async {
            let ctx = thread::spawn(|| {
                multi_thread(1).block_on(async { until_termination(&BACKGROUND).unwrap() })
            })
            .join()
            .unwrap();
            assert!(!ctx.is_done());
            println!("ready");
            hang();
            drop(ctx);
        });
        other.prints("ready").is_sent(Signal::INT).ends_by(Signal::INT);
    });
}

#[test]
fn listening_again_starts_over() {
    watched(|| {
        let mut other = Other::start("listening_again_starts_over", || async {
            for _round in 0..3 {
                let ctx = until_termination(&BACKGROUND).unwrap();
                raise(Signal::INT);
                assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
            }
            // As long as another context waits for the signal, a dropped one does not end the process.
            let waits = until_termination(&BACKGROUND).unwrap();
            drop(until_termination(&BACKGROUND).unwrap());
            tokio::task::yield_now().await;
            raise(Signal::TERM);
            assert_eq!(waits.done().await.cause_as(), Some(&Signal::TERM));
            println!("ready");
            pending().await
        });
        other.prints("ready").is_sent(Signal::TERM).ends_by(Signal::TERM);
    });
}

/// However soon after the end, on however many threads.
#[test]
fn listening_again_immediately_starts_over_on_any_thread() {
    watched(|| {
        let test = "listening_again_immediately_starts_over_on_any_thread";
        let mut other = Other::start(test, || async {
            let rounds = || {
                multi_thread(2).block_on(async {
                    let mut last = None;
                    for _round in 0..500 {
                        // The previous context listens until this one does.
                        let ctx = last.insert(until_termination(&BACKGROUND).unwrap());
                        raise(Signal::INT);
                        assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
                    }
                    println!("ready");
                    pending::<()>().await;
                });
            };
            thread::spawn(rounds).join().unwrap();
        });
        other.prints("ready").is_sent(Signal::INT).ends_by(Signal::INT);
    });
}

/// The previous effect is restored: ignored by default.
#[test]
fn one_that_is_ignored_by_default_is_ignored_afterwards() {
    watched(|| {
        let test = "one_that_is_ignored_by_default_is_ignored_afterwards";
        let mut other = Other::start(test, || async {
            for number in [libc::SIGWINCH, libc::SIGCHLD, libc::SIGURG, libc::SIGCONT] {
                let signal = Signal::from_raw(number);
                let ctx = signal::notify(&BACKGROUND, [signal]).unwrap();
                raise(signal);
                assert_eq!(ctx.done().await.cause_as(), Some(&signal));
                raise(signal);
                drop(signal::notify(&BACKGROUND, [signal]).unwrap());
                no_task_is_left().await;
                raise(signal);
            }
            println!("still here");
        });
        other.prints("still here").ends_with(0);
    });
}

/// Like `nohup`, and the background jobs of a shell.
#[test]
#[cfg(target_os = "linux")]
fn one_that_was_ignored_at_the_start_is_ignored_afterwards() {
    watched(|| {
        let test = "one_that_was_ignored_at_the_start_is_ignored_afterwards";
        let mut nohup = this_program();
        let ignore = || {
            for signal in [libc::SIGHUP, libc::SIGINT] {
                // SAFETY: it sets no handler.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            Ok(())
        };
        // SAFETY: `signal` may be called between fork and exec.
        unsafe { nohup.pre_exec(ignore) };
        let mut other = Other::start_as(test, nohup, || async {
            let set = [Signal::HUP, Signal::INT, Signal::TERM];
            let ctx = signal::notify(&BACKGROUND, set).unwrap();
            raise(Signal::HUP);
            assert_eq!(ctx.done().await.cause_as(), Some(&Signal::HUP));
            raise(Signal::HUP);
            raise(Signal::INT);
            drop(signal::notify(&BACKGROUND, set).unwrap());
            no_task_is_left().await;
            raise(Signal::HUP);
            raise(Signal::INT);
            println!("still here");
            // The third signal of the set had its default.
            pending().await
        });
        other.prints("still here").is_sent(Signal::TERM).ends_by(Signal::TERM);
    });
}

/// A library listens for a while in a program with a handler of its own.
#[test]
#[cfg(target_os = "linux")]
fn an_earlier_handler_is_called_alone_afterwards() {
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    watched(|| {
        let test = "an_earlier_handler_is_called_alone_afterwards";
        let mut other = Other::start(test, || async {
            let mut ctrl_c = tokio::signal::unix::signal(SignalKind::interrupt()).unwrap();
            // SAFETY: the handler touches an atomic alone.
            unsafe { libc::signal(libc::SIGTERM, handle as *const () as libc::sighandler_t) };

            let ctx = until_termination(&BACKGROUND).unwrap();
            raise(Signal::INT);
            ctx.done().await;
            ctrl_c.recv().await.unwrap();
            for round in 0..3 {
                if round > 0 {
                    drop(until_termination(&BACKGROUND).unwrap());
                    no_task_is_left().await;
                }
                raise(Signal::INT);
                ctrl_c.recv().await.unwrap();
                raise(Signal::TERM);
                spin_until(|| HANDLED.load(Ordering::SeqCst) == round + 1);
            }
            println!("still here");
        });
        other.prints("still here").ends_with(0);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn one_that_suspends_by_default_suspends_afterwards() {
    watched(|| {
        let stop = Signal::from_raw(libc::SIGTSTP);
        let mut other = Other::start("one_that_suspends_by_default_suspends_afterwards", || async {
            drop(signal::notify(&BACKGROUND, [stop]).unwrap());
            no_task_is_left().await;
            println!("ready");
            pending().await
        });
        other.prints("ready").is_sent(stop).is_suspended();
        // The process continues, and can be suspended again.
        other.is_sent(Signal::from_raw(libc::SIGCONT)).is_sent(stop).is_suspended();
        other.is_sent(Signal::TERM).is_sent(Signal::from_raw(libc::SIGCONT)).ends_by(Signal::TERM);
    });
}

/// The handlers of a set that were installed before one failed.
#[test]
fn a_call_that_fails_leaves_the_signals_default() {
    watched(|| {
        let mut other = Other::start("a_call_that_fails_leaves_the_signals_default", || async {
            let set = [Signal::USR2, Signal::TERM, Signal::from_raw(100_000)];
            signal::notify(&BACKGROUND, set).unwrap_err();
            println!("ready");
            pending().await
        });
        other.prints("ready").is_sent(Signal::USR2).ends_by(Signal::USR2);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_default_that_ends_the_process_does_so_by_the_signal_itself() {
    watched(|| {
        let test = "a_default_that_ends_the_process_does_so_by_the_signal_itself";
        let real_time = libc::SIGRTMIN() + 3;
        let numbers = [libc::SIGHUP, libc::SIGQUIT, libc::SIGALRM, libc::SIGUSR1, real_time];
        for number in numbers {
            let signal = Signal::from_raw(number);
            let mut this = this_program();
            this.env("SIGNAL", number.to_string());
            let mut other = Other::start_as(test, this, || async {
                let number = env::var("SIGNAL").unwrap().parse().unwrap();
                drop(signal::notify(&BACKGROUND, [Signal::from_raw(number)]).unwrap());
                no_task_is_left().await;
                println!("ready");
                pending().await
            });
            other.prints("ready").is_sent(signal);
            // The library knows no other default for signals without a name.
            if number == real_time { other.ends_with(signal.exit_code()) } else { other.ends_by(signal) }
        }
    });
}

/// Only a signal with a handler ends process 1, so it has to exit.
#[test]
#[cfg(target_os = "linux")]
fn as_process_1_a_second_signal_exits() {
    watched(|| {
        let mut namespace = Command::new("unshare");
        namespace.args(["--pid", "--fork", "--kill-child"]);
        let is_child = env::var_os(ROLE).is_some();
        if !is_child && !namespace.arg("true").status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: no PID namespace can be made here");
            return;
        }
        let mut namespace = with_defaults("unshare".as_ref());
        namespace.args(["--pid", "--fork", "--kill-child"]).arg(env::current_exe().unwrap());
        Other::start_as("as_process_1_a_second_signal_exits", namespace, || async {
            assert_eq!(std::process::id(), 1);
            let ctx = until_termination(&BACKGROUND).unwrap();
            raise(Signal::TERM);
            ctx.done().await;
            raise(Signal::TERM);
            pending().await
        })
        .ends_with(143);
    });
}

/// The groups receive nothing from the terminal, and the supervisors do not run any more.
#[test]
#[cfg(feature = "process")]
fn a_second_signal_kills_the_children_first() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio_ctx::process::CommandExt;

    const FAMILY: &str = "trap '' INT TERM; sleep 3600 & echo $$ $!; wait; wait";

    watched(|| {
        for stuck in ["", "stuck"] {
            let mut this = this_program();
            this.env("STUCK", stuck);
            let mut other =
                Other::start_as("a_second_signal_kills_the_children_first", this, || async {
                    let ctx = until_termination(&BACKGROUND).unwrap();
                    let mut children = Vec::new();
                    for own_group in [true, false, true] {
                        let mut family = tokio::process::Command::new("sh");
                        family.args(["-c", FAMILY]).stdout(Stdio::piped());
                        let family = family.bounded_by(&ctx).grace(LONG).process_group(own_group);
                        let mut child = family.spawn().unwrap();
                        let stdout = BufReader::new(child.stdout.take().unwrap());
                        println!(
                            "family {own_group} {}",
                            stdout.lines().next_line().await.unwrap().unwrap()
                        );
                        children.push(child);
                    }
                    println!("ready");
                    if env::var_os("STUCK").unwrap() == "stuck" {
                        hang();
                    }
                    ctx.done().await;
                    println!("stopping");
                    pending().await
                });
            let mut killed = Vec::new();
            for _child in 0..3 {
                let line = other.prints_line_with("family ");
                let words = Vec::from_iter(line.split(' ').skip(1).map(str::to_owned));
                killed.push(words[1].clone());
                // For the child without a group of its own, the grandchild is not killed.
                if words[0] == "true" {
                    killed.push(words[2].clone());
                } else {
                    other.strays.push(words[2].parse().unwrap());
                }
            }
            other.prints("ready").is_sent(Signal::TERM);
            if stuck.is_empty() {
                other.prints("stopping");
            }
            other.is_sent(Signal::INT);
            let status = other.child.wait().unwrap();
            assert!(matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM)), "{status}");
            for pid in killed {
                spin_until(|| !is_running(&pid));
            }
        }
    });
}

/// Each start either succeeds, and the child is killed, or is refused.
#[test]
#[cfg(all(feature = "process", target_os = "linux"))]
fn a_second_signal_misses_no_child_that_is_being_started() {
    use tokio_ctx::process::CommandExt;

    const MARK: &str = "TOKIO_CTX_SIGNAL_FAMILY";

    watched(|| {
        let test = "a_second_signal_misses_no_child_that_is_being_started";
        for round in 0..5 {
            let family = format!("{}-{round}", std::process::id());
            let mut this = this_program();
            this.env(MARK, &family);
            let mut other = Other::start_as(test, this, || async {
                let threads = (0..2).map(|_| {
                    thread::spawn(|| {
                        current_thread().block_on(async {
                            let mut children = Vec::new();
                            let mut sleep = tokio::process::Command::new("sleep");
                            sleep.arg("3600").stdout(Stdio::null());
                            loop {
                                let bounded = sleep.bounded_by(&BACKGROUND).process_group(true);
                                // Starting fails once the process is about to end.
                                children.extend(bounded.spawn().ok().filter(|_| children.len() < 200));
                            }
                        })
                    })
                });
                let _threads = Vec::from_iter(threads);
                let ctx = until_termination(&BACKGROUND).unwrap();
                println!("ready");
                ctx.done().await;
                println!("stopping");
                pending::<()>().await
            });
            other.prints("ready").is_sent(Signal::TERM).prints("stopping").is_sent(Signal::INT);
            let status = other.child.wait().unwrap();
            assert_eq!(status.signal(), Some(libc::SIGINT), "{status}");
            let mark = format!("{MARK}={family}");
            spin_until(|| !some_process_has(&mark));
        }
    });
}

/// Returns whether a process with this environment variable is running.
#[cfg(all(feature = "process", target_os = "linux"))]
fn some_process_has(variable: &str) -> bool {
    let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.any(|process| {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
    })
}

/// Returns whether the process is running, and not a zombie.
#[cfg(feature = "process")]
fn is_running(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']),
        Err(_) if cfg!(target_os = "linux") => false,
        // SAFETY: it touches no memory, and signal 0 does nothing.
        Err(_) => unsafe { libc::kill(pid.parse().unwrap(), 0) == 0 },
    }
}

async fn no_task_is_left() {
    let metrics = tokio::runtime::Handle::current().metrics();
    while metrics.num_alive_tasks() != 0 {
        tokio::task::yield_now().await;
    }
}

/// Neither signals nor handlers matter here, so no child process is needed.
#[test]
fn the_watching_task_ends_with_the_context() {
    watched(|| {
        let runtime = current_thread();
        runtime.block_on(async {
            let chosen = [Signal::USR2];
            for _round in 0..300 {
                let parent = BACKGROUND.with_cancel();
                let _ctx = signal::notify(&parent, chosen).unwrap();
                drop(parent);
                no_task_is_left().await;

                drop(signal::notify(&BACKGROUND, chosen).unwrap());
                no_task_is_left().await;

                let ended_parent = BACKGROUND.with_cancel();
                ended_parent.cancel();
                let ctx = signal::notify(&ended_parent, chosen).unwrap();
                ended(&ctx);
                no_task_is_left().await;

                let short = BACKGROUND.with_timeout(Duration::from_millis(1));
                let ctx = signal::notify(&short, chosen).unwrap();
                assert!(ctx.done().await.is_deadline_exceeded());
                no_task_is_left().await;
            }
        });
    });
}

#[test]
fn values_and_deadline_are_the_parents() {
    current_thread().block_on(async {
        let parent = BACKGROUND.with_value("blue").with_timeout(LONG);
        let ctx = signal::notify(&parent, [Signal::USR2]).unwrap();
        assert_eq!(ctx.value::<&str>(), Some(&"blue"));
        assert_eq!(ctx.deadline(), parent.deadline());
    });
}

#[test]
fn a_signal_that_cannot_be_caught_is_refused_by_name() {
    current_thread().block_on(async {
        let refused = |set: &[i32]| {
            let signals = set.iter().map(|number| Signal::from_raw(*number));
            let error = signal::notify(&BACKGROUND, signals).unwrap_err();
            (error.kind(), error.to_string())
        };
        let (kind, text) = refused(&[]);
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert_eq!(text, "no signals to listen for: name at least one");
        for (number, name) in [
            (libc::SIGKILL, "SIGKILL"),
            (libc::SIGSTOP, "SIGSTOP"),
            (libc::SIGSEGV, "SIGSEGV"),
            (0, "signal 0"),
            (-3, "signal -3"),
        ] {
            let (kind, text) = refused(&[libc::SIGUSR2, number]);
            assert_eq!(kind, ErrorKind::InvalidInput);
            assert_eq!(text, format!("{name} cannot be caught: choose another, such as SIGTERM"));
        }
        for number in [100_000, i32::MAX] {
            let (_, text) = refused(&[number]);
            assert!(text.starts_with(&format!("cannot listen for signal {number}: ")), "{text}");
        }
        no_task_is_left().await;
    });
}

#[test]
fn outside_a_runtime_it_panics_as_tokio_does() {
    let text = panic_text(|| drop(signal::notify(&BACKGROUND, [Signal::USR2])));
    assert!(text.contains("no reactor running"), "{text}");
}

#[test]
fn signals_have_their_numbers_and_names() {
    assert_eq!(Signal::TERM.number(), libc::SIGTERM);
    assert_eq!(Signal::HUP.exit_code(), 128 + libc::SIGHUP);
    assert_eq!(Signal::from_raw(i32::MAX).exit_code(), i32::MAX);
    assert_eq!(format!("{:?} {}", Signal::QUIT, Signal::QUIT), "SIGQUIT SIGQUIT received");
    assert_eq!(Signal::from_raw(99).to_string(), "signal 99 received");
}

/// Repeats this many times, which shows that a listener leaves nothing behind.
#[test]
fn listeners_come_and_go_on_several_threads() {
    watched(|| {
        let runtime = multi_thread(2);
        runtime.block_on(async {
            let tasks = (0..8).map(|_| {
                tokio::spawn(async {
                    for _round in 0..50 {
                        let ctx = signal::notify(&BACKGROUND, [Signal::USR2]).unwrap();
                        ctx.cancel();
                        ctx.done().await;
                    }
                })
            });
            for task in Vec::from_iter(tasks) {
                task.await.unwrap();
            }
        });
        spin_until(|| runtime.metrics().num_alive_tasks() == 0);
    });
}
