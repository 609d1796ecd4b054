//! `signal`: real signals, sent to a real process. Each test runs itself once more as a child, which does
//! one half of it, and is sent the signals by the other.

#![cfg(all(unix, feature = "signal"))]

mod common;

use std::env;
use std::future::pending;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::process::ExitStatusExt;
use std::panic::Location;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio, exit};
use std::thread;
use std::time::Duration;

use common::{LONG, current_thread, ended, multi_thread, panic_text, spin_until, watched};
use tokio_ctx::Context;
use tokio_ctx::signal::{self, Signal, Signals};

static BACKGROUND: Context = Context::background();

const ROLE: &str = "TOKIO_CTX_SIGNAL_CHILD";

/// Sends a signal to a process.
fn kill(pid: u32, signal: Signal) {
    // SAFETY: it touches no memory.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal.number()) };
    assert_eq!(sent, 0, "no such process");
}

/// Sends itself a signal; it has been handled when this returns, if this is the only thread that may.
fn raise(signal: Signal) {
    kill(std::process::id(), signal);
}

/// A child that runs the other half of a test.
struct Other {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Other {
    /// Runs `child` and exits with 0, if this is the child; otherwise starts it.
    fn start<F: Future<Output = ()>>(test: &str, child: impl FnOnce() -> F) -> Other {
        if env::var_os(ROLE).is_some() {
            current_thread().block_on(child());
            exit(0);
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture"]).env(ROLE, "child").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Other { child, output }
    }

    /// Waits until it has printed this line.
    fn says(&mut self, line: &str) -> &mut Other {
        let said = self.says_something_like(line);
        assert_eq!(said, line);
        self
    }

    /// Waits for a line that contains this, and gives it.
    fn says_something_like(&mut self, part: &str) -> String {
        let mut said = String::new();
        loop {
            said.clear();
            assert_ne!(self.output.read_line(&mut said).unwrap(), 0, "it never said {part:?}");
            if said.contains(part) {
                return said.trim_end().to_owned();
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

    /// Insists on this exit status.
    fn ends_with(&mut self, code: i32) {
        let status = self.ends();
        assert_eq!(status.code(), Some(code), "{status}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if thread::panicking() {
            let _gone = self.child.kill();
        }
        let _reaped = self.child.wait();
    }
}

/// Never lets its runtime go on.
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
                let ctx = signal::shutdown(&BACKGROUND).unwrap();
                println!("ready");
                let error = ctx.done().await;
                assert!(error.is_canceled());
                assert_eq!(error.origin().canceled_at().unwrap().line(), line);
                println!("{error}");
                exit(error.cause_as::<Signal>().unwrap().number());
            });
            other.says("ready").is_sent(signal);
            let said = other.says_something_like("context canceled");
            assert!(said.starts_with("context canceled at tests/signal.rs:"), "{said}");
            assert!(said.ends_with(&format!(": {name} received")), "{said}");
            other.ends_with(signal.number());
        }
    });
}

/// Installed on return, not when first polled: otherwise this one would end the process.
#[test]
fn a_signal_right_after_the_call_is_not_lost() {
    watched(|| {
        Other::start("a_signal_right_after_the_call_is_not_lost", || async {
            let ctx = signal::shutdown(&BACKGROUND).unwrap();
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
            let ctx = signal::shutdown(&BACKGROUND).unwrap();
            println!("ready");
            ctx.done().await;
            println!("stopping");
            pending().await
        });
        other.says("ready").is_sent(Signal::INT).says("stopping").is_sent(Signal::INT).ends_with(130);
    });
}

#[test]
fn so_does_another_one_of_the_set_with_its_own_status() {
    watched(|| {
        let test = "so_does_another_one_of_the_set_with_its_own_status";
        let mut other = Other::start(test, || async {
            let ctx = signal::shutdown(&BACKGROUND).unwrap();
            println!("ready");
            ctx.done().await;
            println!("stopping");
            pending().await
        });
        other.says("ready").is_sent(Signal::INT).says("stopping").is_sent(Signal::TERM).ends_with(143);
    });
}

/// The first is never even noticed.
#[test]
fn a_stuck_runtime_does_not_keep_the_second_from_ending_the_process() {
    watched(|| {
        let test = "a_stuck_runtime_does_not_keep_the_second_from_ending_the_process";
        let mut other = Other::start(test, || async {
            let _ctx = signal::shutdown(&BACKGROUND).unwrap();
            println!("ready");
            hang();
        });
        let status = other.says("ready").is_sent(Signal::INT).is_sent(Signal::TERM).ends();
        assert!(matches!(status.code(), Some(130 | 143)), "{status}");
    });
}

#[test]
fn turned_off_later_signals_are_ignored() {
    watched(|| {
        let mut other = Other::start("turned_off_later_signals_are_ignored", || async {
            let signals = Signals::shutdown().second_signal_ends_process(false);
            let ctx = signals.notify(&BACKGROUND).unwrap();
            raise(Signal::TERM);
            ctx.done().await;
            raise(Signal::TERM);
            drop(ctx);
            raise(Signal::TERM);
            raise(Signal::INT);
            println!("still here");
        });
        other.says("still here").ends_with(0);
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
        let status = other.says("ready").is_sent(Signal::TERM).ends();
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
fn all_who_listen_are_told() {
    watched(|| {
        Other::start("all_who_listen_are_told", || async {
            let one = signal::shutdown(&BACKGROUND).unwrap();
            let other = signal::shutdown(&BACKGROUND).unwrap();
            let child = one.with_cancel();
            raise(Signal::INT);
            for ctx in [&one, &other, &child] {
                assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
            }
        })
        .ends_with(0);
    });
}

/// Tokio never gives a signal its default back: who no longer waits for it must not swallow it.
#[test]
fn after_the_scope_has_gone_a_signal_ends_the_process() {
    watched(|| {
        let test = "after_the_scope_has_gone_a_signal_ends_the_process";
        let mut other = Other::start(test, || async {
            drop(signal::shutdown(&BACKGROUND).unwrap());
            no_task_is_left().await;
            println!("ready");
            pending().await
        });
        other.says("ready").is_sent(Signal::TERM).ends_with(143);
    });
}

#[test]
fn after_the_runtime_has_gone_a_signal_ends_the_process() {
    watched(|| {
        let test = "after_the_runtime_has_gone_a_signal_ends_the_process";
        let mut other = Other::start(test, || async {
            let ctx = thread::spawn(|| {
                multi_thread(1).block_on(async { signal::shutdown(&BACKGROUND).unwrap() })
            })
            .join()
            .unwrap();
            assert!(!ctx.is_done());
            println!("ready");
            hang();
            drop(ctx);
        });
        other.says("ready").is_sent(Signal::INT).ends_with(130);
    });
}

#[test]
fn to_listen_again_is_to_start_anew() {
    watched(|| {
        let mut other = Other::start("to_listen_again_is_to_start_anew", || async {
            for _round in 0..3 {
                let ctx = signal::shutdown(&BACKGROUND).unwrap();
                raise(Signal::INT);
                assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
            }
            // While another still waits for it, one that has gone does not end the process.
            let waits = signal::shutdown(&BACKGROUND).unwrap();
            drop(signal::shutdown(&BACKGROUND).unwrap());
            tokio::task::yield_now().await;
            raise(Signal::TERM);
            assert_eq!(waits.done().await.cause_as(), Some(&Signal::TERM));
            println!("ready");
            pending().await
        });
        other.says("ready").is_sent(Signal::TERM).ends_with(143);
    });
}

/// However soon after the end, on however many threads.
#[test]
fn to_listen_again_at_once_is_to_start_anew() {
    watched(|| {
        let test = "to_listen_again_at_once_is_to_start_anew";
        let mut other = Other::start(test, || async {
            let rounds = || {
                multi_thread(2).block_on(async {
                    let mut last = None;
                    for _round in 0..500 {
                        // The one before listens until this one does.
                        let ctx = last.insert(signal::shutdown(&BACKGROUND).unwrap());
                        raise(Signal::INT);
                        assert_eq!(ctx.done().await.cause_as(), Some(&Signal::INT));
                    }
                    println!("ready");
                    pending::<()>().await;
                });
            };
            thread::spawn(rounds).join().unwrap();
        });
        other.says("ready").is_sent(Signal::INT).ends_with(130);
    });
}

async fn no_task_is_left() {
    let metrics = tokio::runtime::Handle::current().metrics();
    while metrics.num_alive_tasks() != 0 {
        tokio::task::yield_now().await;
    }
}

/// Neither signals nor their handlers matter here, so that it takes no child.
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
fn what_cannot_be_listened_for_is_refused_by_name() {
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
fn signals_tell_their_numbers_and_names() {
    assert_eq!(Signal::TERM.number(), libc::SIGTERM);
    assert_eq!(Signal::HUP.exit_code(), 128 + libc::SIGHUP);
    assert_eq!(Signal::from_raw(i32::MAX).exit_code(), i32::MAX);
    assert_eq!(format!("{:?} {}", Signal::QUIT, Signal::QUIT), "SIGQUIT SIGQUIT received");
    assert_eq!(Signal::from_raw(99).to_string(), "signal 99 received");
}

/// What a listener costs while it lasts, and that none of it stays, is told by how often this can be done.
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
