//! Work that overstays: the event, the counter, the callback, at which times; and a dump while the runtime is stuck.
//!
//! This suite needs its own process, because a process has one thread that checks the work, and that thread uses the
//! system's clock.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tokio_ctx::watch::{self, How, Overstay};
use tokio_ctx::{Context, watch::Watch};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context as Layered, Layer, SubscriberExt};

/// The fields of each event.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(Level, String)>>>);

thread_local! {
    static IS_CALLED: Cell<bool> = const { Cell::new(false) };
}

/// The subscriber has been called by a context that it uses. If it had a lock, it would wait for itself.
static IS_CALLED_AGAIN: AtomicBool = AtomicBool::new(false);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Layered<'_, S>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{field}={value:?};");
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        IS_CALLED_AGAIN.fetch_or(IS_CALLED.replace(true), Ordering::SeqCst);
        // A subscriber may use contexts itself.
        Context::background().with_cancel().cancel_with("from the subscriber");
        IS_CALLED.set(false);
        self.0.lock().unwrap().push((*event.metadata().level(), fields.0));
    }
}

const GRACE: Duration = Duration::from_millis(50);

/// Runs one test at a time, because the tests count all work of the process.
static SERIAL: Mutex<()> = Mutex::new(());

/// Returns the next report for this line.
fn next(reports: &mpsc::Receiver<Overstay>, line: u32) -> Overstay {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let overstay = reports.recv_timeout(left).expect("the overstay is reported");
        if overstay.line.location().line() == line {
            return overstay;
        }
    }
}

fn watch_with_reports() -> (Watch, mpsc::Receiver<Overstay>) {
    let watch = watch::install();
    let (send, reports) = mpsc::channel();
    watch.overstay_with(GRACE, move |overstay| {
        send.send(overstay.clone()).unwrap();
        panic!("a callback that panics");
    });
    (watch, reports)
}

#[test]
fn overstaying_is_reported_at_doubling_intervals_while_the_runtime_is_blocked() {
    let _serial = SERIAL.lock().unwrap();
    let events = Events::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(events.clone()))
        .unwrap();
    let (watch, reports) = watch_with_reports();
    let before = watch.snapshot().totals.overstayed;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let scope = Context::background().with_timeout(Duration::from_secs(600));
    let ctx = scope.clone();
    // It blocks the only thread of its runtime.
    let stuck = std::thread::spawn(move || {
        runtime.block_on(async move {
            let (_never, blocked) = mpsc::channel::<()>();
            let task = ctx.spawn(async move { blocked.recv_timeout(Duration::from_secs(60)) });
            let line = line!() - 1;
            let (sent_line, _held) = (line, &_never);
            LINE.send(sent_line);
            drop(task.await);
        });
    });
    let line = LINE.receive();
    scope.cancel_with("secret");
    let canceled = line!() - 1;

    let first = next(&reports, line);
    assert!(first.is_first && first.over >= GRACE, "{first:?}");
    assert_eq!((first.end.how, first.end.line.location().line()), (How::Canceled, canceled));
    assert!(first.poll.unwrap().inside);
    assert_eq!(first.end.cause, None);
    let text = first.to_string();
    assert!(text.starts_with("task spawned at tests/watch_overstay.rs:"), "{text}");
    assert!(text.contains(" after its end: context canceled at tests/watch_overstay.rs:"), "{text}");
    let (second, third) = (next(&reports, line), next(&reports, line));
    assert!(!second.is_first && second.over >= 2 * GRACE && third.over >= 4 * GRACE);
    assert_eq!(watch.snapshot().totals.overstayed, before + 1);

    let warned = events.0.lock().unwrap().clone();
    let warned: Vec<_> = warned.iter().filter(|(level, _)| *level == Level::WARN).collect();
    assert!(warned.len() >= 3, "{warned:?}");
    let (_, fields) = warned[0];
    for part in [
        "still running after the end of its context",
        &format!("spawned_at=tests/watch_overstay.rs:{line};"),
        &format!("ended_at=tests/watch_overstay.rs:{canceled};"),
        "how=canceled;",
        "inside_poll=true;",
    ] {
        assert!(fields.contains(part), "{part} is not in {fields}");
    }
    assert!(!fields.contains("secret"), "{fields}");
    assert!(!IS_CALLED_AGAIN.load(Ordering::SeqCst));
    drop(stuck);
}

/// Sends the line from the task to the test.
struct Hand(Mutex<Option<u32>>, std::sync::Condvar);

static LINE: Hand = Hand(Mutex::new(None), std::sync::Condvar::new());

impl Hand {
    fn send(&self, line: u32) {
        *self.0.lock().unwrap() = Some(line);
        self.1.notify_all();
    }

    fn receive(&self) -> u32 {
        let line = self.1.wait_while(self.0.lock().unwrap(), |line| line.is_none()).unwrap();
        line.unwrap()
    }
}

#[cfg(all(unix, feature = "signal"))]
#[test]
fn a_signal_prints_a_snapshot_while_the_runtime_is_blocked() {
    use tokio_ctx::signal::Signal;

    let _serial = SERIAL.lock().unwrap();
    let watch = watch::install();
    assert!(watch.dump_on(Signal::from_raw(libc::SIGKILL)).is_err());
    let (dump, dumped) = mpsc::channel();
    let mut is_first = true;
    watch
        .dump_on_with(Signal::USR1, move |snapshot| {
            dump.send(snapshot.to_string()).unwrap();
            assert!(!std::mem::take(&mut is_first), "a callback that panics");
        })
        .unwrap();
    watch.dump_on_with(Signal::USR1, |_| unreachable!("there is one already")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let ctx = Context::background().with_cancel();
    let task = ctx.spawn(std::future::pending::<()>());
    let spawned = format!("tests/watch_overstay.rs:{}", line!() - 1);
    ctx.cancel();
    for _ in 0..2 {
        // SAFETY: it sends this process a signal that is caught.
        assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) }, 0);
        // Nothing drives the runtime at this time.
        let text = dumped.recv_timeout(Duration::from_secs(60)).expect("a dump");
        assert!(text.contains("ENDED, STILL RUNNING") && text.contains(&spawned), "{text}");
    }
    task.abort();
}
