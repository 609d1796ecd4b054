//! A supervisor: a child process that is restarted when it crashes, jobs, and a shutdown in two phases.
//!
//! ```text
//! cargo run --example supervise              # sends SIGTERM to itself when everything is running
//! cargo run --example supervise -- --wait    # runs until Ctrl-C; a second Ctrl-C exits immediately
//! ```
//!
//! `Shutdown` has a context for each phase. The *soft* one ends on the signal: no new job is started,
//! and the child is asked to stop. The *hard* one ends after the grace period, and stops the remaining
//! work. At the end, the results of the tasks and the report are printed and checked.

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), tokio_ctx::BoxError> {
    supervisor::run(std::env::args().any(|arg| arg == "--wait")).await
}

#[cfg(not(unix))]
fn main() {
    println!("this example needs a Unix system with a shell");
}

#[cfg(unix)]
mod supervisor {
    use std::process::{ExitStatus, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;
    use tokio::sync::Notify;
    use tokio_ctx::process::{self, CommandExt};
    use tokio_ctx::shutdown::{Fate, Report};
    use tokio_ctx::signal::{Signal, until_termination};
    use tokio_ctx::{BoxError, Context, Shutdown};

    /// The time from the signal until the remaining work is stopped.
    const GRACE: Duration = Duration::from_secs(2);
    const BACKOFF: Duration = Duration::from_millis(100);

    /// Crashes on the first run. On the second run, works until it is asked to stop, and then takes a
    /// moment to clean up.
    const CHILD: &str = r#"
        trap 'echo "tidying up"; sleep 0.2; exit 0' TERM
        echo "run $RUN begins"
        while :; do
            sleep 0.05
            if [ "$RUN" = 1 ]; then echo "crashing"; exit 3; fi
        done
    "#;

    pub async fn run(wait: bool) -> Result<(), BoxError> {
        let until_signal = until_termination(&Context::background())?;
        let shutdown = Shutdown::new(&until_signal).grace(GRACE);
        let soft = shutdown.soft();
        let runs = Arc::new(Notify::new());
        let child = shutdown.named("child").spawn(keep_child_running(soft.clone(), runs.clone()));
        let jobs = shutdown.named("jobs").spawn(work_off_jobs(soft.clone()));
        let peer = shutdown.named("peer").spawn(hold_on());

        if !wait {
            soft.run(runs.notified()).await?;
            send_myself_sigterm().await?;
        }
        println!("soft: {}", soft.done().await);
        let report = shutdown.wait().await;

        let (child, jobs, peer) = (child.await?, jobs.await?, peer.await?);
        println!("child: {child}\njobs: {jobs}\npeer: {peer}\n{report}");
        if !wait {
            check(&child, &jobs, &peer);
            check_report(&report);
        }
        Ok(())
    }

    /// Runs the child, and restarts it when it crashes, until the shutdown begins.
    async fn keep_child_running(soft: Context, runs: Arc<Notify>) -> String {
        let mut crashes = 0;
        let ended = loop {
            match run_child(&soft, crashes + 1, &runs).await {
                Ok(status) => {
                    crashes += 1;
                    println!("child: {status}, again in {BACKOFF:?}");
                }
                Err(error) => break error.to_string(),
            }
            if let Err(stopped) = soft.sleep(BACKOFF).await {
                break stopped.to_string();
            }
        };
        format!("{crashes} crash, then {ended}")
    }

    async fn run_child(ctx: &Context, run: u32, runs: &Notify) -> Result<ExitStatus, process::Error> {
        let mut command = Command::new("sh");
        command.args(["-c", CHILD]).env("RUN", run.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A process group of its own, so that Ctrl-C in the terminal does not reach the child directly.
        let mut child = command.bounded_by(ctx).grace(GRACE).process_group(true).spawn()?;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                println!("child: {line}");
                if line == "run 2 begins" {
                    runs.notify_one();
                }
            }
        }
        child.wait().await
    }

    /// Runs jobs. When the shutdown begins, finishes the current job and starts no other.
    async fn work_off_jobs(soft: Context) -> String {
        let hard = Context::current();
        let mut finished = 0;
        while soft.check().is_ok() {
            let job = tokio::time::sleep(Duration::from_millis(300));
            match hard.run(job).await {
                Ok(()) => finished += 1,
                Err(stopped) => return format!("one cut short: {stopped}"),
            }
        }
        format!("{finished} finished, none cut short")
    }

    /// Stands for a connection that its peer keeps open.
    async fn hold_on() -> String {
        let peer = std::future::pending::<()>();
        match Context::current().run(peer).await {
            Ok(()) => "went".to_owned(),
            Err(stopped) => format!("cut off: {stopped}"),
        }
    }

    async fn send_myself_sigterm() -> Result<(), process::Error> {
        let me = std::process::id().to_string();
        let mut kill = Command::new("kill");
        let sent = kill.args(["-TERM", &me]).bounded_by(&Context::background()).status().await?;
        assert!(sent.success());
        Ok(())
    }

    /// Checks the results of the tasks.
    fn check(child: &str, jobs: &str, peer: &str) {
        assert!(child.starts_with("1 crash, then sh: exit status: 0: context canceled at "), "{child}");
        assert!(child.ends_with(": SIGTERM received"), "{child}");
        assert!(jobs.ends_with("none cut short"), "{jobs}");
        assert!(peer.starts_with("cut off: context canceled at "), "{peer}");
        assert!(peer.ends_with(": SIGTERM received"), "{peer}");
    }

    /// Checks that only the peer was stopped in the hard phase.
    fn check_report(report: &Report) {
        assert_eq!(report.why().cause_as(), Some(&Signal::TERM));
        assert!(report.took() >= GRACE, "{report}");
        let overdue: Vec<_> = report.overdue().iter().map(|late| (late.name(), late.fate())).collect();
        assert_eq!(overdue, [(Some("peer"), Fate::Canceled)]);
    }
}
