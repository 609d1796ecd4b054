//! The page of a watch in a real browser: it loads without an error, shows ended work first, filters, expands lists, pauses,
//! reports that the service does not respond, and is fast with 100,000 contexts.
//!
//! Without Chromium and its driver, the tests are skipped. There is one watch in a process, and each test counts entries, so
//! the tests run one after the other.

use std::future::pending;
use std::net::SocketAddr;
use std::panic::Location;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use serde_json::{Value, json};
use thirtyfour::common::command::FormatRequestData;
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, RequestData, SessionId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio_ctx::watch::Watch;
use tokio_ctx::{BoxError, CancelScope, Context, Shutdown};

/// A timeout, which is far longer than any step takes.
const HANG: Duration = Duration::from_secs(300);
const CROWD: usize = 100_000;

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
];

/// A service with a watch, and a browser that shows its page.
struct Page {
    browser: WebDriver,
    service: Option<Runtime>,
    at: SocketAddr,
    _profile: Profile,
    _driver: Child,
}

/// The profile directory of a browser.
struct Profile(PathBuf);

impl Drop for Profile {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs a test on the real clock, with a timeout. Skips it if there is no browser.
fn with_page(test: impl AsyncFnOnce(&mut Page) -> Result<(), BoxError>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Runtime::new().unwrap();
    let page = async {
        let Some((browser, driver, profile)) = browser().await? else { return Ok(()) };
        let (service, at) = service(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let mut page = Page { browser, service: Some(service), at, _profile: profile, _driver: driver };
        let done = match page.load().await {
            Ok(()) => test(&mut page).await,
            Err(error) => Err(error),
        };
        page.end().await;
        done
    };
    let done = runtime.block_on(async { tokio::time::timeout(HANG, page).await });
    done.expect("it hangs").unwrap();
}

/// Starts a driver on a free port, and a browser with an empty profile. Returns `None` if they are not installed.
async fn browser() -> Result<Option<(WebDriver, Child, Profile)>, BoxError> {
    let is_installed = |program| {
        std::process::Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
    };
    if !is_installed("chromium") || !is_installed("chromedriver") {
        eprintln!("skipped: Chromium is not installed (apt-get install chromium chromium-driver)");
        return Ok(None);
    }
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut text = BufReader::new(driver.stdout.take().ok_or("no pipe")?).lines();
    let port = loop {
        let line = text.next_line().await?.ok_or("the driver has ended")?;
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            break port.trim_end_matches('.').parse::<u16>()?;
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = text.next_line().await {} });
    let profile = std::env::temp_dir().join(format!("tokio-ctx-page-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&profile)?;
    let mut wanted = DesiredCapabilities::chrome();
    for flag in FLAGS {
        wanted.add_arg(flag)?;
    }
    wanted.add_arg(&format!("--user-data-dir={}", profile.display()))?;
    wanted.insert_base_capability("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL" }));
    let browser = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await?;
    Ok(Some((browser, driver, Profile(profile))))
}

/// Serves the watch on a separate runtime, so that it can be stopped.
fn service(at: SocketAddr) -> Result<(Runtime, SocketAddr), BoxError> {
    let begun = Instant::now();
    let listener = loop {
        match std::net::TcpListener::bind(at) {
            Ok(listener) => break listener,
            // The previous service is releasing it.
            Err(_) if begun.elapsed() < HANG / 8 => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error.into()),
        }
    };
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let routes: Router = Router::new().nest("/debug/watch", watch().routes());
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener)?;
        axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>()).await
    });
    Ok((runtime, at))
}

fn watch() -> Watch {
    // Enough for the crowd and everything else.
    Watch::builder().max_entries(2 * CROWD).install().unwrap_or_else(|_| tokio_ctx::watch::install())
}

/// The messages in Chromium's console since the last query.
#[derive(Debug)]
struct Console;

impl FormatRequestData for Console {
    fn format_request(&self, session: &SessionId) -> RequestData {
        RequestData::new(http::Method::POST, format!("/session/{session}/se/log"))
            .add_body(json!({ "type": "browser" }))
    }
}

impl Page {
    async fn load(&self) -> Result<(), BoxError> {
        self.browser.goto(format!("http://{}/debug/watch", self.at)).await?;
        self.until("document.body.dataset.refreshes > 0").await
    }

    async fn eval(&self, expression: &str) -> Result<Value, BoxError> {
        let value = self.browser.execute(format!("return {expression}"), Vec::new()).await?;
        Ok(value.json().clone())
    }

    async fn text(&self, selector: &str) -> Result<String, BoxError> {
        let quoted = json!(selector);
        let value = self.eval(&format!("document.querySelector({quoted})?.innerText ?? ''")).await?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an expression is true.
    async fn until(&self, expression: &str) -> Result<(), BoxError> {
        let begun = Instant::now();
        while self.eval(&format!("Boolean({expression})")).await? != true {
            if begun.elapsed() > HANG / 4 {
                let shown = self.text("body").await?;
                return Err(format!("{expression} does not come true; the page shows:\n{shown}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits for a number of refreshes.
    async fn refreshes(&self, more: u64) -> Result<(), BoxError> {
        let before = self.eval("Number(document.body.dataset.refreshes)").await?;
        let before = before.as_f64().ok_or("no refresh")?;
        self.until(&format!("document.body.dataset.refreshes >= {before} + {more}")).await
    }

    /// Sends keys to the focused element.
    async fn press(&self, keys: impl Into<TypingData>) -> Result<(), BoxError> {
        self.browser.action_chain().send_keys(keys).perform().await?;
        Ok(())
    }

    async fn is_without_an_error(&self) -> Result<(), BoxError> {
        let text = self.browser.handle.cmd(Console).await?.value_json()?;
        if text.as_array().is_none_or(|text| !text.is_empty()) {
            return Err(format!("the console has messages: {text:#}").into());
        }
        Ok(())
    }

    async fn end(mut self) {
        if let Some(service) = self.service.take() {
            service.shutdown_background();
        }
        let _ = self.browser.quit().await;
    }
}

/// A task that ignores the end of its context, and the line that spawned it.
struct Task {
    ctx: CancelScope,
    task: tokio::task::JoinHandle<()>,
    line: String,
}

impl Task {
    fn new(name: &str) -> Task {
        let ctx = Context::background().with_cancel().named(name.to_owned());
        let here = Location::caller_of();
        let task = ctx.spawn(pending());
        let line = format!("{}:{}", here.file(), here.line() + 1);
        Task { ctx, task, line }
    }

    /// Cancels the context, and waits until the page shows the task as overstaying.
    async fn overstay(&self) {
        self.ctx.cancel();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the location of the caller.
trait CallerOf {
    fn caller_of() -> &'static Location<'static>;
}

impl CallerOf for Location<'static> {
    #[track_caller]
    fn caller_of() -> &'static Location<'static> {
        Location::caller()
    }
}

#[test]
fn it_loads_without_an_error_and_shows_ended_work_first() {
    with_page(async |page| {
        page.is_without_an_error().await?;
        page.until("document.getElementById('verdict').className === 'is-good'").await?;
        let task = Task::new("GET /report");
        let _alive = Task::new("GET /fine");
        task.overstay().await;
        page.until("document.getElementById('verdict').className === 'is-bad'").await?;
        let verdict = page.text("#verdict").await?;
        assert!(verdict.contains(&task.line), "{verdict}");
        let first = page.text("#ended tbody tr").await?;
        assert!(first.starts_with(&task.line), "{first}");
        assert!(first.contains("last polled"), "{first}");
        assert!(page.eval("document.title").await?.as_str().unwrap().starts_with("(1) "));
        let order = "[...document.querySelectorAll('main > section:not([hidden])')].map((section) => section.id).join()";
        assert_eq!(page.eval(order).await?, "verdict,ended,nearly,alive,lately,tree");
        page.refreshes(3).await?;
        page.is_without_an_error().await
    });
}

#[test]
fn lines_and_trees_expand_by_keyboard() {
    with_page(async |page| {
        let task = Task::new("GET /opened");
        let _children: Vec<CancelScope> =
            (0..30).map(|at| task.ctx.context().with_cancel().named(format!("child {at}"))).collect();
        task.overstay().await;
        page.until("document.querySelector('#ended .toggle')").await?;
        // The first row gets the focus.
        page.press(Key::Down + "").await?;
        assert_eq!(page.eval("document.activeElement.innerText").await?, *task.line);
        let outline = page.eval("getComputedStyle(document.activeElement).outlineStyle").await?;
        assert_eq!(outline, "solid", "the focus is visible");
        page.press(Key::Enter + "").await?;
        page.until("document.querySelector('#ended .detail-row:not([hidden]) li')?.innerText.includes('GET /opened')").await?;
        assert_eq!(page.eval("document.activeElement.getAttribute('aria-expanded')").await?, "true");
        // A refresh keeps the focus.
        page.refreshes(2).await?;
        assert_eq!(page.eval("document.activeElement.innerText").await?, *task.line);
        page.press(Key::Enter + "").await?;
        page.until("document.querySelector('#ended .detail-row').hidden").await?;

        let find = "[...document.querySelectorAll('#tree .toggle')].find((button) => button.innerText === 'GET /opened')";
        page.until(find).await?;
        page.eval(&format!("{find}.click()")).await?;
        page.until("[...document.querySelectorAll('#tree .more')].some((more) => more.innerText === 'and 11 more')").await?;
        page.eval("document.querySelector('#tree .more').click()").await?;
        page.until("document.querySelectorAll('#tree li li').length === 31").await?;
        page.is_without_an_error().await
    });
}

#[test]
fn it_filters() {
    with_page(async |page| {
        let tasks = [Task::new("GET /first/1"), Task::new("GET /second/2")];
        let _others: Vec<CancelScope> =
            (0..300).map(|at| Context::background().with_cancel().named(format!("job {at}"))).collect();
        tasks[0].ctx.cancel();
        page.press("/second").await?;
        assert_eq!(page.eval("document.activeElement.id").await?, "filter");
        page.until("document.getElementById('found-count').innerText === '1 entry containing “second”'")
            .await?;
        page.until("!document.querySelector('#ended tbody tr') || document.querySelector('#ended table').hidden").await.ok();
        assert!(page.text("#found").await?.contains("GET /second/2"));
        assert!(!page.text("#alive").await?.contains("job"));
        assert_eq!(page.eval("location.hash").await?, "#q=second");
        page.press(Key::Escape + "").await?;
        page.until("document.getElementById('found').hidden").await?;
        page.until("document.getElementById('alive').innerText.includes('300')").await?;
        // A link to a filter.
        page.browser.goto(format!("http://{}/debug/watch#q=job+299", page.at)).await?;
        page.browser.refresh().await?;
        page.until("document.getElementById('found').innerText.includes('job 299')").await?;
        page.is_without_an_error().await
    });
}

#[test]
fn it_does_not_refresh_while_paused_or_hidden() {
    with_page(async |page| {
        let count = "Number(document.body.dataset.refreshes)";
        page.press("p").await?;
        assert_eq!(
            page.eval("document.getElementById('pause').getAttribute('aria-pressed')").await?,
            "true"
        );
        page.until("document.getElementById('status').innerText.startsWith('paused')").await?;
        // A refresh that has started may still complete.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = page.eval(count).await?;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(page.eval(count).await?, before);
        page.press("r").await?;
        page.until(&format!("{count} === {before} + 1")).await?;
        page.press("p").await?;
        page.refreshes(2).await?;

        let hide = |hidden: bool| {
            format!(
                "(Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}), \
                     document.dispatchEvent(new Event('visibilitychange')))"
            )
        };
        page.eval(&hide(true)).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = page.eval(count).await?;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(page.eval(count).await?, before);
        page.eval(&hide(false)).await?;
        page.refreshes(2).await?;
        page.is_without_an_error().await
    });
}

#[test]
fn it_reports_a_service_that_does_not_respond_and_recovers() {
    with_page(async |page| {
        assert_eq!(page.eval("document.getElementById('trouble').hidden").await?, true);
        page.service.take().unwrap().shutdown_background();
        page.until("!document.getElementById('trouble').hidden").await?;
        let text = page.text("#trouble").await?;
        assert!(text.starts_with("The service does not respond"), "{text}");
        assert!(text.contains("The page shows the data of"), "{text}");
        assert_eq!(page.text("#status").await?, "no response");
        assert_eq!(
            page.eval("document.getElementById('main').classList.contains('stale')").await?,
            true
        );

        page.service = Some(service(page.at)?.0);
        page.until("document.getElementById('trouble').hidden").await?;
        page.refreshes(2).await?;
        assert!(page.text("#status").await?.starts_with("live"));
        Ok(())
    });
}

#[test]
fn it_shows_a_shutdown_in_progress() {
    with_page(async |page| {
        let shutdown = Shutdown::new(&Context::background()).grace(HANG).cleanup(HANG);
        let ticket = shutdown.named("http/GET /slow").ticket();
        page.refreshes(1).await?;
        assert_eq!(page.eval("document.getElementById('shutdowns').hidden").await?, true);
        shutdown.begin("SIGTERM");
        page.until("document.querySelector('#shutdowns [aria-current]')?.innerText === 'draining'")
            .await?;
        let text = page.text("#shutdowns").await?;
        assert!(text.contains(", hidden;") && !text.contains("SIGTERM"), "{text}");
        assert!(
            text.contains("Waits for 1") && text.contains("http/GET /slow") && text.contains("left"),
            "{text}"
        );
        assert!(page.text("#verdict").await?.contains("Shutting down: draining"));
        shutdown.force("enough");
        page.until("document.querySelector('#shutdowns [aria-current]')?.innerText === 'canceled'")
            .await?;
        assert!(page.text("#shutdowns").await?.contains("1 overdue"));
        drop(ticket);
        page.is_without_an_error().await
    });
}

#[test]
fn markup_is_shown_as_text() {
    with_page(async |page| {
        let markup = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b>";
        let task = Task::new(markup);
        task.overstay().await;
        page.until("document.getElementById('tree').innerText.includes('<b>bold</b>')").await?;
        assert_eq!(
            page.eval("document.querySelectorAll('main img, main b b, main script').length").await?,
            0
        );
        page.until("document.querySelector('#ended .toggle')").await?;
        page.eval("document.querySelector('#ended .toggle').click()").await?;
        page.until("document.getElementById('ended').innerText.includes('onerror')").await?;
        assert_ne!(page.eval("document.title").await?, "owned");
        page.is_without_an_error().await
    });
}

#[test]
fn a_refresh_with_100_000_contexts_takes_less_than_200_ms() {
    with_page(async |page| {
        let task = Task::new("GET /report");
        let parent = Context::background().with_cancel().named("crowd");
        let crowd: Vec<CancelScope> = (0..CROWD)
            .map(|at| {
                parent.context().with_timeout(Duration::from_secs(3_600)).named(format!("job {at}"))
            })
            .collect();
        task.overstay().await;
        page.until("document.getElementById('totals').innerText.includes('100,00')").await?;
        // With this many contexts a snapshot takes long, so the page may show an older one.
        page.until("document.querySelector('#ended .toggle')").await?;
        page.eval("document.querySelector('#ended .toggle').click()").await?;
        let find = "[...document.querySelectorAll('#tree .toggle')].find((button) => button.innerText === 'crowd')";
        page.until(find).await?;
        page.eval(&format!("{find}.click()")).await?;
        page.until("[...document.querySelectorAll('#tree .more')].some((more) => more.innerText.includes('99,980'))").await?;
        let mut took = Vec::new();
        let mut snapshots = std::collections::HashSet::new();
        while took.len() < 12 || snapshots.len() < 3 {
            page.refreshes(1).await?;
            took.push(page.eval("Number(document.body.dataset.ms)").await?.as_f64().ok_or("no time")?);
            snapshots.insert(page.eval("state.last.taken_at_ms").await?.as_u64());
        }
        // Each filter is new to the service.
        let mut filtered = Vec::new();
        for job in ["job 77777", "job 66666", "job 55555", "job 44444", "job 33333"] {
            page.press(format!("/{job}")).await?;
            page.until(&format!("document.getElementById('found').innerText.includes('{job}')")).await?;
            let ms = page.eval("Number(document.body.dataset.ms)").await?;
            filtered.push(ms.as_f64().ok_or("no time")?);
            page.press(Key::Escape + "").await?;
            page.until("document.getElementById('found').hidden").await?;
        }
        let cost = page.text("#cost").await?;
        eprintln!(
            "refreshes with {CROWD} contexts, ms: {took:?}; the first with a filter: {filtered:?}; {cost}"
        );
        // Other processes can only delay a refresh. One refresh may meet one; a filter costs more, so the fastest counts. A
        // CI machine is shared, and may be slower.
        let most = if std::env::var_os("CI").is_some() { 400.0 } else { 200.0 };
        took.sort_by(f64::total_cmp);
        assert!(took[took.len() - 2] < most, "{took:?}");
        let fastest = filtered.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(fastest < most, "{filtered:?}");
        let nodes = page.eval("document.querySelectorAll('*').length").await?;
        assert!(nodes.as_f64() < Some(2_000.0), "{nodes} nodes");
        drop(crowd);
        page.is_without_an_error().await
    });
}
