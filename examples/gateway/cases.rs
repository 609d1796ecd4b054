//! The client: runs six cases, checks each, and prints what happened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::http::StatusCode;
use reqwest::Client;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_ctx::{BoxError, Context, Shutdown};

use crate::services::{Event, Part, Progress, SLOW};
use crate::{BUDGET, OPTIONAL_BUDGET, RequestId, User};

/// The time limit of a case. Without a fault, none takes a tenth of it.
const CASE_BUDGET: Duration = Duration::from_secs(10);
/// How soon after a client has disconnected all services must have stopped working for it.
const PROMPTLY: Duration = Duration::from_millis(50);

/// Returns an error with this message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

/// Runs the cases. Returns an error if one of them did not have the expected result.
pub async fn run(
    gateway: SocketAddr,
    shutdown: Shutdown,
    events: UnboundedReceiver<Event>,
) -> Result<(), BoxError> {
    let mut driver = Driver { client: Client::builder().no_proxy().build()?, gateway, events };
    let mut failed = 0;
    failed += case("1. all three are fast", driver.all_fast()).await;
    failed += case("2. an optional one is slow", driver.optional_slow()).await;
    failed += case("3. the required one is slow", driver.required_slow()).await;
    failed += case("4. the client hangs up half-way", driver.hang_up()).await;
    failed += case("5. SIGTERM during a request", driver.sigterm(shutdown)).await;
    failed += case("6. SIGTERM to a gateway that stays up", driver.container()).await;
    ensure!(failed == 0, "{failed} of 6 cases failed");
    println!("\nall six cases passed");
    Ok(())
}

/// What happened in a case, as lines to print.
type Account = Result<Vec<String>, BoxError>;

/// Runs a case and prints the result. Returns the number of failures, 0 or 1.
async fn case(title: &str, case: impl Future<Output = Account>) -> usize {
    println!("\n{title}");
    match Context::background().with_timeout(CASE_BUDGET).try_run(case).await {
        Ok(lines) => {
            for line in lines {
                println!("   {line}");
            }
            0
        }
        Err(error) => {
            println!("   FAILED: {error}");
            1
        }
    }
}

/// A client, and the events of the services.
struct Driver {
    client: Client,
    gateway: SocketAddr,
    events: UnboundedReceiver<Event>,
}

impl Driver {
    async fn all_fast(&mut self) -> Account {
        let id = RequestId("case-1".to_owned());
        let answer = self.get(&id, "/user/1").await?;
        let user = answer.user()?;
        ensure!(answer.took < BUDGET, "it took {}", ms(answer.took));
        ensure!(user.request_id == id, "answered as request {}", user.request_id);
        ensure!(user.missing.is_empty(), "missing: {}", user.missing.join(", "));
        let visits = user.activity.unwrap_or_default();
        ensure!(!visits.is_empty(), "nothing missing, and yet no activity");
        // An event contains the ID that the service received, so receiving the event shows that the ID
        // was sent.
        self.wait_for_events(&id, &Part::ALL, Progress::is_finished).await?;
        Ok(vec![
            format!("{answer}, with everything; last seen at {}", visits[0]),
            format!("all three services received the request ID {id}"),
        ])
    }

    async fn optional_slow(&mut self) -> Account {
        let id = RequestId("case-2".to_owned());
        let answer = self.get(&id, "/user/2?slow=preferences").await?;
        let user = answer.user()?;
        ensure!(answer.took < BUDGET, "it took {}", ms(answer.took));
        ensure!(user.preferences.is_none(), "got the preferences after all");
        ensure!(user.activity.is_some(), "the activity is missing as well");
        let reason = format!("preferences: context deadline exceeded: {OPTIONAL_BUDGET:?} budget");
        let missing = user.missing.join(", ");
        ensure!(missing.starts_with(&reason), "the reason given is: {missing}");
        let stopped = self.wait_for_events(&id, &[Part::Preferences], Progress::is_stopped).await?;
        let mut account = vec![format!("{answer}, without {missing}")];
        account.extend(stopped.iter().map(Event::to_string));
        Ok(account)
    }

    async fn required_slow(&mut self) -> Account {
        let id = RequestId("case-3".to_owned());
        let answer = self.get(&id, "/user/3?slow=profile").await?;
        let Answer { status, body, took } = &answer;
        ensure!(*status == StatusCode::GATEWAY_TIMEOUT, "{answer}: {body}");
        ensure!(*took >= BUDGET && *took < SLOW, "{answer}: {body}");
        let reason = format!("profile: context deadline exceeded: {BUDGET:?} budget");
        ensure!(body.starts_with(&reason), "the reason given is: {body}");
        let stopped = self.wait_for_events(&id, &[Part::Profile], Progress::is_stopped).await?;
        let mut account = vec![format!("{answer}: {body}")];
        account.extend(stopped.iter().map(Event::to_string));
        Ok(account)
    }

    async fn hang_up(&mut self) -> Account {
        let id = RequestId("case-4".to_owned());
        let ctx = Context::background().with_cancel();
        let answer = self.get(&id, "/user/4?slow=all");
        let client = ctx.spawn_bounded(answer);
        self.wait_for_events(&id, &Part::ALL, Progress::is_started).await?;

        let hung_up = Instant::now();
        ctx.cancel_with("the user closed the page");
        let outcome = client.await?;
        let Err(why) = outcome else {
            return Err("the client got an answer, although it had hung up".into());
        };
        let mut account = vec![format!("all three services at work; the client: {why}")];
        for event in self.wait_for_events(&id, &Part::ALL, Progress::is_stopped).await? {
            let after = event.at - hung_up;
            ensure!(after <= PROMPTLY, "only {} later, {event}", ms(after));
            account.push(format!("{} later, {event}", ms(after)));
        }
        Ok(account)
    }

    async fn sigterm(&mut self, shutdown: Shutdown) -> Account {
        let id = RequestId("case-5".to_owned());
        let in_flight = tokio::spawn(self.get(&id, "/user/5?slow=activity"));
        self.wait_for_events(&id, &Part::ALL, Progress::is_started).await?;

        let sent_at = Instant::now();
        send_sigterm(std::process::id()).await?;
        let (refused, report) = tokio::join!(
            async {
                refuses_connections(self.gateway).await?;
                io::Result::Ok((sent_at.elapsed(), in_flight.is_finished()))
            },
            shutdown.wait(),
        );
        let (refused, too_late) = refused?;
        ensure!(!too_late, "it only stopped accepting when nothing was in flight");
        let answer = in_flight.await??;
        answer.user()?;
        ensure!(report.is_clean(), "{report}");
        Ok(vec![
            format!("{} later, the gateway refuses new connections", ms(refused)),
            format!("the request in flight: {answer}"),
            report.to_string(),
        ])
    }

    /// Runs `--serve` as a container runtime does, and checks the answers, the log and the exit status.
    async fn container(&mut self) -> Account {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--serve", "0"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().ok_or("it has ended already")?;
        let mut log = BufReader::new(process.stdout.take().ok_or("no pipe")?).lines();
        let gateway = says(&mut log, "gateway at http://").await?;
        self.gateway = gateway.parse()?;

        let id = RequestId("case-6".to_owned());
        let in_flight = tokio::spawn(self.get(&id, "/user/6?slow=activity"));
        says(&mut log, "[case-6] activity: started").await?;
        let sent_at = Instant::now();
        send_sigterm(pid).await?;
        let answer = in_flight.await??;
        answer.user()?;
        let report = says(&mut log, "shut down in ").await?;
        let status = process.wait().await?;
        ensure!(status.success(), "{status}: shut down in {report}");
        Ok(vec![
            format!("the request in flight: {answer}"),
            format!("{} later, the process has ended, {status}", ms(sent_at.elapsed())),
        ])
    }

    /// Sends a request with the given ID to the gateway. It is sent when the future is first polled.
    fn get(&self, id: &RequestId, path: &str) -> impl Future<Output = reqwest::Result<Answer>> + use<> {
        let url = format!("http://{}{path}", self.gateway);
        let request = self.client.get(url).header(RequestId::HEADER, &id.0);
        async move {
            let started = Instant::now();
            let response = request.send().await?;
            let status = response.status();
            let body = response.text().await?;
            let took = started.elapsed();
            Ok(Answer { status, body, took })
        }
    }

    /// Waits until each of `parts` has reported this progress for the request.
    async fn wait_for_events(
        &mut self,
        id: &RequestId,
        parts: &[Part],
        progress: impl Fn(&Progress) -> bool,
    ) -> Result<Vec<Event>, BoxError> {
        let mut received = Vec::new();
        while received.len() < parts.len() {
            let event = self.events.recv().await.ok_or("the services are gone")?;
            if event.request == *id && parts.contains(&event.part) && progress(&event.progress) {
                received.push(event);
            }
        }
        Ok(received)
    }
}

/// The answer of the gateway, and how long it took.
struct Answer {
    status: StatusCode,
    body: String,
    took: Duration,
}

impl Answer {
    /// Returns the user in the answer, or an error for another answer.
    fn user(&self) -> Result<User, BoxError> {
        ensure!(self.status == StatusCode::OK, "{self}: {}", self.body);
        Ok(serde_json::from_str(&self.body)?)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {}", self.status, ms(self.took))
    }
}

/// Waits for a line of a log with this prefix, and returns the rest of the line.
async fn says(log: &mut Lines<BufReader<ChildStdout>>, begin: &str) -> Result<String, BoxError> {
    while let Some(line) = log.next_line().await? {
        if let Some(rest) = line.strip_prefix(begin) {
            return Ok(rest.to_owned());
        }
    }
    Err(format!("its log has no line that begins with {begin:?}").into())
}

/// Sends a process the signal that `docker stop` sends.
async fn send_sigterm(pid: u32) -> Result<(), BoxError> {
    let kill = format!("kill -TERM {pid}");
    // `kill` is a builtin of every shell, but not a program on every machine.
    let status = Command::new("sh").arg("-c").arg(&kill).status().await?;
    ensure!(status.success(), "`{kill}`: {status}");
    Ok(())
}

/// Waits until nothing listens at `addr`, by trying to connect.
async fn refuses_connections(addr: SocketAddr) -> io::Result<()> {
    loop {
        match TcpStream::connect(addr).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => return Ok(()),
                // The port was closed before this connection was accepted.
                io::ErrorKind::ConnectionReset => {}
                _ => return Err(error),
            },
        }
    }
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
