//! A supervisor: a child process that is started again when it crashes, jobs, and a shutdown in two phases.
//!
//! ```text
//! cargo run --example supervise              # sends itself a SIGTERM when all is running
//! cargo run --example supervise -- --wait    # until you press Ctrl-C; twice, to get out at once
//! ```
//!
//! Two contexts make the two phases. The *soft* one ends on the signal: nothing new is begun, the child is
//! asked to stop. The *hard* one ends a grace period later, and stops what is left. In the end everyone's
//! account is printed, and checked.

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    supervisor::run(std::env::args().any(|arg| arg == "--wait")).await
}

#[cfg(not(unix))]
fn main() {
    println!("this example talks to a shell, and to a Unix system");
}

#[cfg(unix)]
mod supervisor {
    use std::error::Error;
    use std::process::{ExitStatus, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;
    use tokio::sync::Notify;
    use tokio::task::JoinSet;
    use tokio::time::Instant;
    use tokio_ctx::process::{self, CommandExt};
    use tokio_ctx::signal::{self, Signal};
    use tokio_ctx::{CancelGuard, Context};

    /// From the signal until what is left is stopped.
    const GRACE: Duration = Duration::from_secs(2);
    const BACKOFF: Duration = Duration::from_millis(100);

    /// Crashes the first time it runs; the second time it works until it is asked to stop, and takes a
    /// moment to.
    const CHILD: &str = r#"
        trap 'echo "tidying up"; sleep 0.2; exit 0' TERM
        echo "run $RUN begins"
        while :; do
            sleep 0.05
            if [ "$RUN" = 1 ]; then echo "crashing"; exit 3; fi
        done
    "#;

    /// The two phases of a shutdown.
    struct Shutdown {
        soft: Context,
        hard: Context,
        _guards: [CancelGuard; 2],
    }

    impl Shutdown {
        fn on_signal(grace: Duration) -> std::io::Result<Shutdown> {
            let (soft, on_signal) = signal::shutdown(&Context::background())?;
            let begun = soft.clone();
            let (hard, after_grace) = Context::background().with_cancel_when(async move {
                let stopped = begun.done().await;
                tokio::time::sleep(grace).await;
                // The story goes on: why it was stopped at all.
                stopped
            });
            Ok(Shutdown { soft, hard, _guards: [on_signal, after_grace] })
        }
    }

    /// How a part ended: its name, and its own account of it.
    type Account = (&'static str, String);

    pub async fn run(wait: bool) -> Result<(), Box<dyn Error>> {
        let shutdown = Shutdown::on_signal(GRACE)?;
        let mut parts = JoinSet::new();
        let runs = Arc::new(Notify::new());
        parts.spawn(keep_child_running(shutdown.soft.clone(), runs.clone()));
        parts.spawn(work_off_jobs(shutdown.soft.clone(), shutdown.hard.clone()));
        parts.spawn(hold_on(shutdown.hard.clone()));

        if !wait {
            shutdown.soft.run(runs.notified()).await?;
            send_myself_sigterm().await?;
        }
        let stopped = shutdown.soft.done().await;
        let begun = Instant::now();
        println!("soft: {stopped}");

        let mut accounts: Vec<Account> = Vec::new();
        while let Some(account) = parts.join_next().await {
            let (name, text) = account?;
            println!("{:>4} ms  {name}: {text}", begun.elapsed().as_millis());
            accounts.push((name, text));
        }
        if !wait {
            assert_eq!(stopped.cause_as(), Some(&Signal::TERM));
            assert!(begun.elapsed() >= GRACE, "the hard phase comes after the grace period");
            check(&accounts);
        }
        Ok(())
    }

    /// Runs the child, and runs it again when it crashes, until the shutdown begins.
    async fn keep_child_running(soft: Context, runs: Arc<Notify>) -> Account {
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
        ("child", format!("{crashes} crash, then {ended}"))
    }

    async fn run_child(ctx: &Context, run: u32, runs: &Notify) -> Result<ExitStatus, process::Error> {
        let mut command = Command::new("sh");
        command.args(["-c", CHILD]).env("RUN", run.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // In a group of its own, so that the terminal's Ctrl-C reaches it through the context only.
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

    /// Begins no new job once the shutdown has begun, and finishes the one that it has.
    async fn work_off_jobs(soft: Context, hard: Context) -> Account {
        let mut finished = 0;
        while soft.check().is_ok() {
            let job = tokio::time::sleep(Duration::from_millis(300));
            match hard.run(job).await {
                Ok(()) => finished += 1,
                Err(stopped) => return ("jobs", format!("one cut short: {stopped}")),
            }
        }
        ("jobs", format!("{finished} finished, none cut short"))
    }

    /// A connection whose peer does not think of going.
    async fn hold_on(hard: Context) -> Account {
        let peer = std::future::pending::<()>();
        match hard.run(peer).await {
            Ok(()) => ("peer", "went".to_owned()),
            Err(stopped) => ("peer", format!("cut off: {stopped}")),
        }
    }

    async fn send_myself_sigterm() -> Result<(), process::Error> {
        let me = std::process::id().to_string();
        let mut kill = Command::new("kill");
        let sent = kill.args(["-TERM", &me]).bounded_by(&Context::background()).status().await?;
        assert!(sent.success());
        Ok(())
    }

    /// Everyone ended as they should have, and in this order.
    fn check(accounts: &[Account]) {
        let said = |name: &str| {
            let place = accounts.iter().position(|(of, _)| *of == name).expect("everyone ends");
            (place, accounts[place].1.as_str())
        };
        let (_, child) = said("child");
        assert!(child.starts_with("1 crash, then sh: exit status: 0: context canceled at "), "{child}");
        assert!(child.ends_with(": SIGTERM received"), "{child}");
        let (_, jobs) = said("jobs");
        assert!(jobs.ends_with("none cut short"), "{jobs}");
        let (place, peer) = said("peer");
        assert_eq!(place, 2, "only the hard phase stops it");
        assert!(peer.ends_with(": SIGTERM received"), "{peer}");
    }
}
