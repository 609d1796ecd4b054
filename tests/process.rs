//! `process`: real children, most of them shells. The tests poll the system until a process is running or gone,
//! rather than wait for a fixed time.

#![cfg(all(unix, feature = "process"))]

mod common;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Cause, LONG, assert_same, current_thread, ended, ms, on_both, panic_text, poll_once, spin_until,
    watched, word,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::signal::unix::SignalKind;
use tokio_ctx::process::{self, Child, CommandExt};
use tokio_ctx::{CancelScope, Context, FutureExt as _};

static BACKGROUND: Context = Context::background();

/// A shell that runs this script, with its output piped.
fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The output of a child, line by line.
fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

/// Parses the process IDs on the next line.
async fn pids(lines: &mut Lines<BufReader<ChildStdout>>) -> Vec<u32> {
    let line = lines.next_line().await.unwrap().expect("a line of process ids");
    line.split(' ').map(|pid| pid.parse().unwrap()).collect()
}

/// Returns whether the process is running, and not a zombie.
fn is_running(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']),
        Err(_) if Path::new("/proc/self/stat").exists() => false,
        Err(_) => is_there(pid),
    }
}

/// Returns whether the process exists.
fn is_there(pid: u32) -> bool {
    // SAFETY: it touches no memory, and signal 0 does nothing.
    unsafe { libc::kill(pid as libc::pid_t, 0) == 0 }
}

/// A file in which a script reports its progress.
struct Marker(PathBuf);

impl Marker {
    fn new(name: &str) -> Marker {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let file = format!("tokio-ctx-{}-{number}-{name}", std::process::id());
        Marker(std::env::temp_dir().join(file))
    }

    fn is_there(&self) -> bool {
        self.0.exists()
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

async fn until(answer: impl Fn() -> bool) {
    while !answer() {
        tokio::time::sleep(ms(1)).await;
    }
}

fn signal_of(error: &process::Error) -> Option<i32> {
    error.status().unwrap().signal()
}

/// Runs a test on both kinds of runtime, with the child of a script and the scope that stops it.
fn with_child<F: Future<Output = ()>>(
    script: &'static str,
    test: impl Fn(Child, CancelScope) -> F + Copy + Send + 'static,
) {
    on_both(move || async move {
        let ctx = BACKGROUND.with_cancel();
        let child = sh(script).bounded_by(&ctx).grace(LONG).spawn().unwrap();
        test(child, ctx).await;
    });
}

#[test]
fn one_that_exits_by_itself_is_reported_as_it_exited() {
    on_both(|| async {
        let status = sh("exit 0").bounded_by(&BACKGROUND).status().await.unwrap();
        assert!(status.success());
        let status = sh("exit 7").bounded_by(&BACKGROUND).status().await.unwrap();
        assert_eq!(status.code(), Some(7));
        let status = sh("kill -9 $$").bounded_by(&BACKGROUND).status().await.unwrap();
        assert_eq!(status.signal(), Some(9));

        let ctx = BACKGROUND.with_timeout(LONG);
        let output = sh("echo out; echo err >&2; exit 3").bounded_by(&ctx).output().await.unwrap();
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    });
}

#[test]
fn one_that_handles_sigterm_is_stopped_by_it() {
    with_child(
        "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done",
        |mut child, ctx| async move {
            let mut lines = lines(&mut child);
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
            let pid = child.id().unwrap();
            ctx.cancel_with(Cause("enough"));

            let error = child.wait().await.unwrap_err();
            assert_eq!(error.status().unwrap().code(), Some(5));
            assert_same(error.context().unwrap(), &ended(&ctx));
            assert!(!error.was_killed());
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "bye");
            assert!(!is_there(pid), "reaped");
            assert_eq!(child.id(), None);
            // The same result again.
            assert_eq!(child.wait().await.unwrap_err().to_string(), error.to_string());
        },
    );
}

#[test]
fn the_error_has_program_exit_and_cause_on_one_line() {
    on_both(|| async {
        let ctx = BACKGROUND.with_timeout_cause(ms(20), Cause("too slow"));
        let mut sleep = Command::new("sleep");
        let error = sleep.arg("3600").bounded_by(&ctx).status().await.unwrap_err();
        let text = error.to_string();
        let begin = "sleep: signal: 15 (SIGTERM): context deadline exceeded: 20ms budget set at tests/";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.ends_with(": too slow"), "{text}");
        assert!(!text.contains("3600"), "arguments may be secret");

        assert_eq!(word(error.context().unwrap()), Some("too slow"));
        assert!(format!("{error:?}").starts_with(&text), "{error:?}");
        assert!(format!("{error:#?}").contains("ended"), "{error:#?}");
        // The line includes the error, so a printed chain does not repeat it.
        let source = std::error::Error::source(&error);
        assert!(!source.is_some_and(|source| source.is::<tokio_ctx::Error>()));
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.get_ref().unwrap().is::<process::Error>());
    });
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_the_grace_period() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut stubborn = sh("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        let mut child = stubborn.bounded_by(&ctx).grace(ms(100)).spawn().unwrap();
        let mut lines = lines(&mut child);
        lines.next_line().await.unwrap();
        let pid = child.id().unwrap();
        let stopped = Instant::now();
        ctx.cancel();

        let error = child.wait().await.unwrap_err();
        assert!(stopped.elapsed() >= ms(100), "not before");
        assert_eq!(signal_of(&error), Some(9));
        assert!(error.was_killed());
        assert!(!is_there(pid));
    });
}

#[test]
fn without_grace_it_is_killed_at_once() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut obedient = sh("trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        let mut child = obedient.bounded_by(&ctx).grace(Duration::ZERO).spawn().unwrap();
        lines(&mut child).next_line().await.unwrap();
        ctx.cancel();
        assert_eq!(signal_of(&child.wait().await.unwrap_err()), Some(9));

        // This does not truncate the output of a process that exits by itself.
        let mut echo = sh("echo all");
        let output = echo.bounded_by(&BACKGROUND).grace(Duration::ZERO).output();
        assert_eq!(output.await.unwrap().stdout, b"all\n");
    });
}

#[test]
fn the_grace_may_be_unlimited() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut obedient = sh("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done");
        let mut child = obedient.bounded_by(&ctx).grace(Duration::MAX).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        output.read_u8().await.unwrap();
        child.stdout = Some(output);
        ctx.cancel();
        let error = child.wait_with_output().await.unwrap_err();
        assert_eq!(error.status().unwrap().code(), Some(4));
        assert_eq!(error.output().unwrap().stdout, b"eady\n");
    });
}

#[test]
fn another_signal_can_be_chosen() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        // Not SIGINT, which a shell cannot trap if it was ignored when this program was started, such as in the background.
        let mut polite = sh("trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done");
        let bounded = polite.bounded_by(&ctx).grace(LONG).stop_signal(SignalKind::user_defined1());
        let mut child = bounded.spawn().unwrap();
        lines(&mut child).next_line().await.unwrap();
        ctx.cancel();
        assert_eq!(child.wait().await.unwrap_err().status().unwrap().code(), Some(6));

        let odd = SignalKind::from_raw(-4);
        let error = sh("exit").bounded_by(&BACKGROUND).stop_signal(odd).spawn().unwrap_err();
        let text = "sh: could not be started: stop signal -4 is not a named signal of this system";
        assert_eq!(error.to_string(), text);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    });
}

/// A shell that prints its own process ID and that of its child.
const FAMILY: &str = "sleep 3600 & echo $$ $!; wait";

#[test]
fn grandchildren_live_on_unless_the_group_is_stopped() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut child = sh(FAMILY).bounded_by(&ctx).spawn().unwrap();
        let pids = pids(&mut lines(&mut child)).await;
        ctx.cancel();
        child.wait().await.unwrap_err();
        assert!(!is_there(pids[0]));
        assert!(is_running(pids[1]));
        // SAFETY: it touches no memory.
        unsafe { libc::kill(pids[1] as libc::pid_t, libc::SIGKILL) };
    });
}

#[test]
fn the_whole_group_is_stopped_on_request() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut child = sh(FAMILY).bounded_by(&ctx).process_group(true).spawn().unwrap();
        let pids = pids(&mut lines(&mut child)).await;
        assert_eq!(child.id(), Some(pids[0]));
        ctx.cancel();
        let error = child.wait().await.unwrap_err();
        assert_eq!(signal_of(&error), Some(15));
        assert!(!is_there(pids[0]));
        assert!(!is_running(pids[1]));
    });
}

/// The leader obeys immediately; the other processes have the rest of the grace period.
#[test]
fn in_a_group_all_have_the_grace_period() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let slow = "(trap 'sleep 0.2; echo cleaned; exit' TERM; echo ready; while :; do sleep 0.01; done) & wait";
        let mut child = sh(slow).bounded_by(&ctx).grace(LONG).process_group(true).spawn().unwrap();
        let mut lines = lines(&mut child);
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
        ctx.cancel();
        // The ID is no longer available, although the group has not ended.
        until(|| child.id().is_none()).await;
        assert!(!child.wait().await.unwrap_err().was_killed());
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "cleaned");
        assert!(lines.next_line().await.unwrap().is_none());
    });
}

#[test]
fn in_a_group_a_process_that_ignores_sigterm_is_killed() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let stubborn = "(trap '' TERM; echo ready; while :; do sleep 0.01; done) & echo $$ $!; wait";
        let bounded_script = format!("exec 2>/dev/null; {stubborn}");
        let mut command = sh(&bounded_script);
        let mut child = command.bounded_by(&ctx).grace(ms(100)).process_group(true).spawn().unwrap();
        let mut lines = lines(&mut child);
        let (mut pids, mut ready) = (None, false);
        while pids.is_none() || !ready {
            match lines.next_line().await.unwrap().unwrap() {
                line if line == "ready" => ready = true,
                line => {
                    pids = Some(line.split(' ').map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
                }
            }
        }
        let stopped = Instant::now();
        ctx.cancel();
        let error = child.wait().await.unwrap_err();
        assert!(stopped.elapsed() >= ms(100));
        assert!(error.was_killed());
        assert_eq!(signal_of(&error), Some(15), "the shell itself obeyed");
        until(|| !is_running(pids.as_ref().unwrap()[1])).await;
    });
}

#[test]
fn background_processes_of_a_command_are_not_stopped() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let mut leaves = sh("sleep 3600 >/dev/null 2>&1 & echo $!");
        let output = leaves.bounded_by(&ctx).process_group(true).output().await.unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        ctx.cancel();
        assert!(is_running(pid));
        // SAFETY: it touches no memory.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
    });
}

#[test]
fn a_pipe_that_a_grandchild_holds_open_is_not_waited_for_forever() {
    on_both(|| async {
        let mut holds = sh("echo $$; sleep 20 & exit 3");
        let begun = Instant::now();
        let error = holds.bounded_by(&BACKGROUND).grace(ms(10)).output().await.unwrap_err();
        assert!(begun.elapsed() >= Duration::from_secs(1), "a second at least");
        assert_eq!(error.status().unwrap().code(), Some(3));
        assert!(error.context().is_none());
        let text = "sh: exit status: 3: output still held open by other processes 1s after it exited";
        assert_eq!(error.to_string(), text);
        assert!(!error.output().unwrap().stdout.is_empty(), "what was read is kept");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);

        // The same after an end, which the error then reports.
        let ctx = BACKGROUND.with_cancel();
        let marker = Marker::new("held");
        let script = format!("echo first; touch {marker}; sleep 20");
        let mut holds = sh(&script);
        let output = holds.bounded_by(&ctx).grace(ms(10)).output();
        let (output, ()) = tokio::join!(output, async {
            until(|| marker.is_there()).await;
            ctx.cancel();
        });
        let error = output.unwrap_err();
        assert!(error.context().unwrap().is_canceled());
        assert_eq!(error.output().unwrap().stdout, b"first\n");
    });
}

/// The wait ends with the context, not with the grace period.
#[test]
fn output_ends_with_its_context_although_a_grandchild_holds_the_pipe() {
    on_both(|| async {
        let begun = Instant::now();
        let ctx = BACKGROUND.with_timeout(ms(300));
        let mut holds = sh("echo said; sleep 30 & exit 3");
        let error = holds.bounded_by(&ctx).grace(LONG).output().await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(20), "not as long as the pipe is held");
        assert!(error.context().unwrap().is_deadline_exceeded());
        assert_eq!(error.status().unwrap().code(), Some(3), "as it exited");
        assert!(!error.was_killed() && !error.is_still_running());
        assert_eq!(error.output().unwrap().stdout, b"said\n");
        let begin =
            "sh: exit status: 3: output still held open by other processes: context deadline exceeded: ";
        assert!(error.to_string().starts_with(begin), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);

        // The process obeys, but its child does not, and is not waited for.
        let begun = Instant::now();
        let ctx = BACKGROUND.with_cancel();
        let marker = Marker::new("held-after-the-end");
        let script = format!("echo first; touch {marker}; sleep 30");
        let mut holds = sh(&script);
        let output = holds.bounded_by(&ctx).grace(LONG).output();
        let (output, ()) = tokio::join!(output, async {
            until(|| marker.is_there()).await;
            ctx.cancel();
        });
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(output.unwrap_err().output().unwrap().stdout, b"first\n");
    });
}

/// Records where the standard output and error of the shell go.
#[cfg(target_os = "linux")]
const WHERE_TO: &str = "to=$(readlink /proc/$$/fd/1 /proc/$$/fd/2); echo \"$to\" >$MARKER";

#[test]
#[cfg(target_os = "linux")]
fn output_leaves_the_command_no_pipes() {
    on_both(|| async {
        let marker = Marker::new("where-to");
        let mut command = Command::new("sh");
        command.args(["-c", WHERE_TO]).env("MARKER", marker.to_string());
        command.bounded_by(&BACKGROUND).output().await.unwrap();
        let in_output = std::fs::read_to_string(&marker.0).unwrap();
        assert!(in_output.lines().all(|to| to.starts_with("pipe:")), "{in_output}");

        command.bounded_by(&BACKGROUND).status().await.unwrap();
        let own = [1, 2].map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap());
        let afterwards = std::fs::read_to_string(&marker.0).unwrap();
        assert_eq!(Vec::from_iter(afterwards.lines().map(PathBuf::from)), own);
    });
}

/// Like Tokio's `status`, because nothing would read them.
#[test]
fn status_closes_the_pipes_of_a_command() {
    on_both(|| async {
        let much = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 3";
        let mut piped = sh(much);
        piped.stderr(Stdio::piped()).stdin(Stdio::piped());
        for _again in 0..2 {
            let status = piped.bounded_by(&BACKGROUND).status().await.unwrap();
            assert!(status.code() == Some(3), "{status}");
        }
    });
}

#[test]
fn a_run_leaves_no_kill_on_drop_in_the_command() {
    on_both(|| async {
        for kills in [false, true] {
            let mut command = sh("exit 0");
            command.kill_on_drop(kills);
            command.bounded_by(&BACKGROUND).status().await.unwrap();
            assert_eq!(command.get_kill_on_drop(), kills);
            command.bounded_by(&BACKGROUND).output().await.unwrap();
            assert_eq!(command.get_kill_on_drop(), kills);
        }
        // Also if it fails to start.
        let mut none = Command::new("/no/such/program");
        none.bounded_by(&BACKGROUND).status().await.unwrap_err();
        assert!(!none.get_kill_on_drop());
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_leaves_no_process_group_in_the_command() {
    on_both(|| async {
        let mut command = sh("echo $$ $(cut -d' ' -f5 /proc/$$/stat)");
        let run = async |command: &mut Command, own| {
            let output = command.bounded_by(&BACKGROUND).process_group(own).output().await.unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let (pid, group) = text.trim().split_once(' ').unwrap();
            (pid == group, group.parse::<i32>().unwrap())
        };
        // SAFETY: it has no preconditions.
        let ours = unsafe { libc::getpgrp() };
        for _again in 0..2 {
            assert!(run(&mut command, true).await.0);
            assert_eq!(run(&mut command, false).await, (false, ours));
        }
    });
}

/// The group of this process is outside of its PID namespace, so it has no ID there.
#[test]
#[cfg(target_os = "linux")]
fn a_process_that_cannot_see_its_own_group_can_start_others() {
    const ROLE: &str = "TOKIO_CTX_PROCESS_NAMESPACE";
    if std::env::var_os(ROLE).is_some() {
        // SAFETY: it has no preconditions.
        assert_eq!(unsafe { libc::getpgrp() }, 0);
        return current_thread().block_on(async {
            let mut command = sh("exit 3");
            for own_group in [true, false, true] {
                let bounded = command.bounded_by(&BACKGROUND).process_group(own_group);
                assert_eq!(bounded.status().await.unwrap().code(), Some(3));
            }
        });
    }
    on_both(|| async {
        let mut namespace = Command::new("unshare");
        namespace.args(["--pid", "--fork", "--kill-child"]).stderr(Stdio::null());
        if !namespace.arg("true").status().await.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no PID namespace can be made here");
            return;
        }
        let mut namespace = Command::new("unshare");
        namespace.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().unwrap());
        namespace.args(["a_process_that_cannot_see_its_own_group_can_start_others", "--exact"]);
        let output = namespace.env(ROLE, "child").bounded_by(&BACKGROUND).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}

/// A suspended process handles its signal when it is continued.
#[test]
#[cfg(target_os = "linux")]
fn a_suspended_one_is_continued_to_be_stopped() {
    on_both(|| async {
        for own_group in [false, true] {
            let ctx = BACKGROUND.with_cancel();
            let suspends = "trap 'exit 5' TERM; echo $$; kill -STOP $$; while :; do sleep 0.01; done";
            let mut command = sh(suspends);
            let bounded = command.bounded_by(&ctx).grace(LONG).process_group(own_group);
            let mut child = bounded.spawn().unwrap();
            let pids = pids(&mut lines(&mut child)).await;
            until(|| state(pids[0]) == 'T').await;
            ctx.cancel();
            let error = child.wait().await.unwrap_err();
            assert_eq!(error.status().unwrap().code(), Some(5));
        }
    });
}

/// A string of one letter for the system.
#[cfg(target_os = "linux")]
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
}

/// The behavior that the documentation describes, and the remedy that it recommends.
#[test]
#[cfg(target_os = "linux")]
fn a_blocked_stop_signal_is_inherited_unless_env_unblocks_it() {
    watched(|| {
        // SAFETY: the set is a local, and the mask is this thread's, which ends with the test.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()), 0);
        }
        current_thread().block_on(async {
            // Not a shell, because some shells unblock all signals.
            let ends_by = async |command: &mut Command, grace| {
                let ctx = BACKGROUND.with_cancel();
                let mut child = command.bounded_by(&ctx).grace(grace).spawn().unwrap();
                ctx.cancel();
                signal_of(&child.wait().await.unwrap_err())
            };
            let mut sleep = Command::new("sleep");
            assert_eq!(ends_by(sleep.arg("3600"), ms(100)).await, Some(9));

            let mut env = Command::new("env");
            let can = env.args(["--default-signal=TERM", "true"]).stderr(Stdio::null()).status();
            if !can.await.unwrap().success() {
                eprintln!("skipped: this `env` has no --default-signal");
                return;
            }
            let mut env = Command::new("env");
            env.args(["--default-signal=TERM", "sleep", "3600"]);
            assert_eq!(ends_by(&mut env, LONG).await, Some(15));
        });
    });
}

#[test]
fn a_stopping_process_can_be_killed_early() {
    with_child("trap '' TERM; echo ready; while :; do sleep 0.01; done", |mut child, ctx| async move {
        lines(&mut child).next_line().await.unwrap();
        ctx.cancel();
        let short = BACKGROUND.with_timeout(ms(20));
        assert!(child.wait().bounded_by(&short).await.is_err(), "it has an hour");
        child.start_kill();
        let error = child.wait().await.unwrap_err();
        assert!(error.was_killed() && error.context().unwrap().is_canceled());
        assert_eq!(signal_of(&error), Some(9));
        // Once the process has exited, this has no effect, and the result does not change.
        assert_eq!(child.kill().await.unwrap_err().to_string(), error.to_string());
    });
}

/// The leader has obeyed; the rest of the group takes time.
#[test]
fn the_rest_of_a_group_can_be_killed_early() {
    on_both(|| async {
        let ctx = BACKGROUND.with_cancel();
        let stubborn = "(trap '' TERM; echo ready; while :; do sleep 0.01; done) & wait";
        let mut command = sh(stubborn);
        let mut child = command.bounded_by(&ctx).grace(LONG).process_group(true).spawn().unwrap();
        let mut lines = lines(&mut child);
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
        ctx.cancel();
        until(|| child.id().is_none()).await;
        let error = child.kill().await.unwrap_err();
        assert!(error.was_killed());
        assert_eq!(signal_of(&error), Some(15), "the shell itself obeyed");
        assert!(lines.next_line().await.unwrap().is_none());
    });
}

/// A kill has an effect even if its future or the child is dropped.
#[test]
fn one_that_is_killed_before_the_end_is_reported_as_it_exited() {
    on_both(|| async {
        for own_group in [false, true] {
            let stubborn = "trap '' TERM; echo $$; while :; do sleep 0.01; done";
            let start = || {
                let mut command = sh(stubborn);
                command.bounded_by(&BACKGROUND).grace(LONG).process_group(own_group).spawn().unwrap()
            };
            let mut child = start();
            lines(&mut child).next_line().await.unwrap();
            let _dropped = common::poll_once(child.kill());
            assert_eq!(child.kill().await.unwrap().signal(), Some(9));

            let mut child = start();
            let pids = pids(&mut lines(&mut child)).await;
            child.start_kill();
            drop(child);
            until(|| !is_there(pids[0])).await;
        }
    });
}

/// Drops root's capability to signal the processes of other users, for this thread. Returns whether it has
/// succeeded, which requires root.
#[cfg(target_os = "linux")]
fn become_unable_to_signal_others() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_KILL: u32 = 5;
    let mut header = [VERSION_3, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: header and data have the layout of version 3, and outlive the calls.
    unsafe {
        if libc::geteuid() != 0
            || libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) != 0
        {
            return false;
        }
        sets[0][0] &= !(1 << CAP_KILL);
        libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) == 0
    }
}

#[cfg(target_os = "linux")]
const NOBODY: u32 = 65534;

/// A process that has changed its user, like `sudo`.
#[test]
#[cfg(target_os = "linux")]
fn one_that_may_not_be_signaled_is_an_error_and_no_endless_wait() {
    watched(|| {
        for (grace, own_group) in [(ms(50), false), (Duration::ZERO, false), (ms(50), true)] {
            let stray = std::thread::spawn(move || {
                become_unable_to_signal_others()
                    .then(|| current_thread().block_on(refused(grace, own_group)))
            });
            let Some(pids) = stray.join().unwrap() else {
                eprintln!("skipped: it takes root to start a process that may not be signaled");
                return;
            };
            for pid in pids {
                assert!(is_running(pid));
                // SAFETY: it touches no memory.
                unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
            }
        }
    });
}

#[cfg(target_os = "linux")]
async fn refused(grace: Duration, own_group: bool) -> [u32; 2] {
    let ctx = BACKGROUND.with_cancel();
    let mut command = sh("echo $$; exec sleep 3600");
    command.uid(NOBODY);
    let mut child = command.bounded_by(&ctx).grace(grace).process_group(own_group).spawn().unwrap();
    let pid = pids(&mut lines(&mut child)).await[0];
    let begun = Instant::now();
    ctx.cancel_with(Cause("enough"));
    let error = child.wait().await.unwrap_err();
    assert!(begun.elapsed() >= grace, "it might have exited for a reason of its own");
    assert!(error.is_still_running() && error.status().is_none() && !error.was_killed());
    assert_eq!(word(error.context().unwrap()), Some("enough"));
    let text = format!(
        "sh: process {pid} is still running, it may not be signaled: Operation not permitted (os error 1): \
         context canceled at "
    );
    assert!(error.to_string().starts_with(&text), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::Other);

    // Killed without an end of the context, this is an error as well.
    let mut child = command.bounded_by(&BACKGROUND).spawn().unwrap();
    let other = pids(&mut lines(&mut child)).await[0];
    let error = child.kill().await.unwrap_err();
    assert!(error.is_still_running() && error.context().is_none(), "{error}");
    [pid, other]
}

/// A member of the group that is not its leader.
#[test]
#[cfg(target_os = "linux")]
fn one_of_a_group_that_may_not_be_signaled_is_an_error() {
    watched(|| {
        let stray = std::thread::spawn(|| {
            become_unable_to_signal_others().then(|| {
                current_thread().block_on(async {
                    let ctx = BACKGROUND.with_cancel();
                    let member = "setpriv --reuid 65534 --clear-groups sh -c 'echo $$; exec sleep 3600' & wait";
                    let mut command = sh(member);
                    let bounded = command.bounded_by(&ctx).grace(ms(50)).process_group(true);
                    let mut child = bounded.spawn().unwrap();
                    let pid = pids(&mut lines(&mut child)).await[0];
                    ctx.cancel();
                    let error = child.wait().await.unwrap_err();
                    assert!(error.is_still_running());
                    assert_eq!(signal_of(&error), Some(15), "the leader has obeyed");
                    let text = "sh: signal: 15 (SIGTERM): a process of its group is still running, it may not be \
                                signaled: Operation not permitted (os error 1): context canceled at ";
                    assert!(error.to_string().starts_with(text), "{error}");
                    pid
                })
            })
        });
        match stray.join().unwrap() {
            // SAFETY: it touches no memory.
            Some(pid) => unsafe { assert_eq!(libc::kill(pid as libc::pid_t, libc::SIGKILL), 0) },
            None => eprintln!("skipped: it takes root to start a process that may not be signaled"),
        }
    });
}

/// A traced process has not exited until its tracer reports it, even if it was killed.
#[test]
#[cfg(target_os = "linux")]
fn one_that_does_not_exit_when_killed_is_not_waited_for_forever() {
    const ROLE: &str = "TOKIO_CTX_PROCESS_TRACES";
    if let Ok(pid) = std::env::var(ROLE) {
        // SAFETY: it touches no memory.
        let seized =
            unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.parse::<libc::pid_t>().unwrap(), 0, 0) };
        println!("seized: {}", seized == 0);
        let _closed = io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    }
    watched(|| {
        current_thread().block_on(async {
            let ctx = BACKGROUND.with_cancel();
            let mut sleeps = sh("echo $$; exec sleep 3600");
            let mut child = sleeps.bounded_by(&ctx).grace(Duration::ZERO).spawn().unwrap();
            let pid = pids(&mut lines(&mut child)).await[0];

            let mut tracer = Command::new(std::env::current_exe().unwrap());
            let test = "one_that_does_not_exit_when_killed_is_not_waited_for_forever";
            tracer.args([test, "--exact", "--nocapture"]).env(ROLE, pid.to_string());
            tracer.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut tracer = tracer.bounded_by(&BACKGROUND).spawn().unwrap();
            let mut output = lines(&mut tracer);
            let seized = loop {
                let line = output.next_line().await.unwrap().expect("it prints whether it could");
                if let Some((_, seized)) = line.split_once("seized: ") {
                    break seized == "true";
                }
            };
            if !seized {
                eprintln!("skipped: processes may not be traced here");
                return;
            }

            ctx.cancel();
            let error = child.wait().await.unwrap_err();
            assert!(error.is_still_running() && error.status().is_none());
            let text = format!(
                "sh: process {pid} is still running, 5s after it was killed: context canceled at "
            );
            assert!(error.to_string().starts_with(&text), "{error}");
            assert_eq!(child.id(), None, "from now on it may be reaped at any time");

            // It is reaped in the background when that is possible.
            drop(tracer.stdin.take());
            assert!(tracer.wait().await.unwrap().success());
            until(|| !is_there(pid)).await;
        });
    });
}

#[test]
fn an_ended_context_starts_nothing() {
    on_both(|| async {
        let marker = Marker::new("dead");
        let script = format!("touch {marker}");
        let ctx = BACKGROUND.with_cancel();
        ctx.cancel_with(Cause("dead"));
        let error = sh(&script).bounded_by(&ctx).status().await.unwrap_err();
        assert!(error.to_string().starts_with("sh: not started: context canceled at "), "{error}");
        assert_same(error.context().unwrap(), &ended(&ctx));
        assert!(error.status().is_none() && error.output().is_none());
        assert!(sh(&script).bounded_by(&ctx).output().await.is_err());
        assert!(sh(&script).bounded_by(&ctx).spawn().is_err());
        assert!(!marker.is_there());
    });
}

/// A process that had been started could not be returned, because the call panics, and nothing would stop it.
#[test]
fn without_a_runtime_nothing_is_started() {
    let without_io = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for inside in [false, true] {
        let _entered = inside.then(|| without_io.enter());
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = sh("echo started >&0");
        command.stdin(std::os::fd::OwnedFd::from(writer)).stdout(Stdio::null());
        panic_text(|| command.bounded_by(&BACKGROUND).process_group(true).spawn());
        let output = command.bounded_by(&BACKGROUND).output();
        panic_text(|| poll_once(output));
        let kills = command.get_kill_on_drop();
        drop(command);
        // The end of the file, because no process has the other end.
        assert_eq!(std::io::read_to_string(&mut reader).unwrap(), "");
        assert!(!kills, "a setting of the run has stayed");
    }
}

#[test]
fn a_missing_program_is_named() {
    on_both(|| async {
        let mut none = Command::new("/no/such/program");
        let error = none.arg("secret").bounded_by(&BACKGROUND).output().await.unwrap_err();
        let text = "/no/such/program: could not be started: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), text);
        assert!(error.context().is_none() && error.status().is_none() && !error.was_killed());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn much_output_on_both_pipes_is_read_at_the_same_time() {
    on_both(|| async {
        let much = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; head -c 5 /dev/zero";
        let output = sh(much).bounded_by(&BACKGROUND).output().await.unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_005, 3_000_000));
    });
}

#[test]
fn standard_input_can_be_written_while_output_is_read() {
    on_both(|| async {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cat.bounded_by(&BACKGROUND).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writes = tokio::spawn(async move { stdin.write_all(&vec![b'x'; 1_000_000]).await });
        let output = child.wait_with_output().await.unwrap();
        writes.await.unwrap().unwrap();
        assert_eq!(output.stdout.len(), 1_000_000);

        // The pipe is closed unless it was taken.
        let mut child = cat.bounded_by(&BACKGROUND).spawn().unwrap();
        assert!(child.wait().await.unwrap().success());
    });
}

#[test]
fn it_is_stopped_without_being_awaited() {
    with_child(FAMILY, |mut child, ctx| async move {
        let pids = pids(&mut lines(&mut child)).await;
        ctx.cancel();
        until(|| !is_there(pids[0])).await;
        // SAFETY: it touches no memory.
        unsafe { libc::kill(pids[1] as libc::pid_t, libc::SIGKILL) };
        assert_eq!(signal_of(&child.wait().await.unwrap_err()), Some(15));
    });
}

#[test]
fn a_child_that_is_dropped_is_stopped_and_reaped() {
    with_child(
        "trap 'exit 0' TERM; echo $$; while :; do sleep 0.01; done",
        |mut child, ctx| async move {
            let pids = pids(&mut lines(&mut child)).await;
            drop(child);
            until(|| !is_there(pids[0])).await;
            assert!(!ctx.is_done(), "the end of the child ended the context");
            drop(ctx);
        },
    );
}

#[test]
fn a_child_whose_future_is_dropped_is_stopped_and_reaped() {
    on_both(|| async {
        let marker = Marker::new("dropped");
        let script = format!("echo $$ > {marker}.new; mv {marker}.new {marker}; exec sleep 3600");
        let mut sleeps = sh(&script);
        // The context that drops the future is not the one of the process.
        let ctx = BACKGROUND.with_cancel();
        let output = sleeps.bounded_by(&BACKGROUND).output().bounded_by(&ctx);
        let (output, ()) = tokio::join!(output, async {
            until(|| marker.is_there()).await;
            ctx.cancel();
        });
        assert!(output.is_err());
        let pid: u32 = std::fs::read_to_string(&marker.0).unwrap().trim().parse().unwrap();
        until(|| !is_there(pid)).await;
    });
}

#[test]
fn a_wait_that_is_dropped_loses_nothing() {
    on_both(|| async {
        let mut child =
            sh("read line; exit 9").stdin(Stdio::piped()).bounded_by(&BACKGROUND).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let short = BACKGROUND.with_timeout(ms(20));
        assert!(child.wait().bounded_by(&short).await.is_err());
        stdin.write_all(b"go\n").await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(9));
    });
}

/// The runtime is shut down before the process has exited: the process and its group are killed.
#[test]
fn a_runtime_that_is_shut_down_leaves_nothing_behind() {
    watched(|| {
        for own_group in [false, true] {
            let runtime = current_thread();
            let (pids, child) = runtime.block_on(async {
                let mut stubborn = sh("trap '' TERM; sleep 3600 & echo $$ $!; wait");
                let bounded = stubborn.bounded_by(&BACKGROUND).process_group(own_group);
                let mut child = bounded.spawn().unwrap();
                (pids(&mut lines(&mut child)).await, child)
            });
            drop(runtime);
            let begun = Instant::now();
            while is_running(pids[0]) || (own_group && is_running(pids[1])) {
                assert!(begun.elapsed() < LONG);
                std::thread::yield_now();
            }
            if !own_group {
                assert!(is_running(pids[1]));
                // SAFETY: it touches no memory.
                unsafe { libc::kill(pids[1] as libc::pid_t, libc::SIGKILL) };
            }
            let mut child = child;
            let error = current_thread().block_on(child.wait()).unwrap_err();
            assert!(error.to_string().starts_with("sh: could not be waited for: "), "{error}");
        }
    });
}

/// A process that exits at the time of the end is reported as either, and reaped in any case.
#[test]
fn exits_and_ends_that_race_are_reported_as_one_of_them() {
    watched(|| {
        let runtime = common::multi_thread(2);
        runtime.block_on(async {
            let (mut exited, mut stopped) = (0, 0);
            for round in 0..200 {
                let ctx = BACKGROUND.with_timeout(Duration::from_micros(500 + round * 20));
                match sh("exit 0").bounded_by(&ctx).status().await {
                    Ok(status) => {
                        assert!(status.success());
                        exited += 1;
                    }
                    Err(error) => {
                        assert!(error.context().unwrap().is_deadline_exceeded());
                        stopped += 1;
                    }
                }
            }
            assert_eq!(exited + stopped, 200);
        });
        spin_until(|| runtime.metrics().num_alive_tasks() == 0);
    });
}
