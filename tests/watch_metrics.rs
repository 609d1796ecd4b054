//! The metrics of a watch: by kind and line, and by kind of end.
//!
//! This suite needs its own process, because a process has one recorder.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
};
use metrics::{SharedString, Unit};
use tokio_ctx::{Context, watch};

/// The sum of each counter, gauge and histogram, by its name and labels.
#[derive(Clone, Default)]
struct Sums(Arc<Mutex<BTreeMap<String, f64>>>);

struct Sum(Sums, String);

/// Contexts that the recorder derives and keeps, and one that it drops.
static KEPT: Mutex<Vec<Context>> = Mutex::new(Vec::new());
static DROPPED: Mutex<Option<Context>> = Mutex::new(None);

/// The next increment panics.
static PANICS: AtomicBool = AtomicBool::new(false);

impl Sum {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut sums = self.0.0.lock().unwrap();
        let sum = sums.entry(self.1.clone()).or_default();
        *sum = change(*sum);
    }
}

impl CounterFn for Sum {
    fn increment(&self, value: u64) {
        self.change(|sum| sum + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}

impl GaugeFn for Sum {
    fn increment(&self, value: f64) {
        assert!(!PANICS.swap(false, Ordering::SeqCst), "a recorder that panics");
        KEPT.lock().unwrap().push(Context::background().with_cancel().detach());
        let dropped = DROPPED.lock().unwrap().take();
        drop(dropped);
        self.change(|sum| sum + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|sum| sum - value);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

impl HistogramFn for Sum {
    fn record(&self, value: f64) {
        self.change(|sum| sum + value);
    }
}

impl Sums {
    fn of(&self, key: &Key) -> Arc<Sum> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Sum(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn get(&self, key: &str) -> Option<f64> {
        self.0.lock().unwrap().get(key).copied()
    }
}

thread_local! {
    static IS_CALLED: Cell<bool> = const { Cell::new(false) };
}

/// The recorder has been called by a context that it uses. If it had a lock, it would wait for itself.
static IS_CALLED_AGAIN: AtomicBool = AtomicBool::new(false);

/// A recorder may use contexts itself.
fn use_a_context() {
    let again = IS_CALLED.replace(true);
    IS_CALLED_AGAIN.fetch_or(again, Ordering::SeqCst);
    drop(Context::background().with_cancel());
    IS_CALLED.set(again);
}

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        panic!("a recorder that panics");
    }
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        // The watch that is being installed.
        let _watch = watch::install();
        use_a_context();
    }
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        use_a_context();
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        use_a_context();
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.of(key))
    }
}

const FILE: &str = "tests/watch_metrics.rs";

#[tokio::test]
async fn running_work_and_ends_are_counted_by_kind_and_line() {
    let sums = Sums::default();
    metrics::set_global_recorder(sums.clone()).map_err(drop).unwrap();
    let watch = watch::install();

    let root = Context::background().with_cancel();
    let make = || root.with_timeout(Duration::from_secs(60));
    let made = line!() - 1;
    let ended = |how: &str, line: u32| {
        sums.get(&format!("tokio_ctx_ended_total{{how={how},line={FILE}:{line}}}"))
    };
    for _ in 0..3 {
        make().cancel();
    }
    let dead = make();
    dead.cancel_with("why");
    let _refused = dead.run(async {}).await;
    assert_eq!(ended("canceled", made), Some(4.0));
    assert_eq!(ended("refused", made), Some(1.0));
    assert!(root.with_timeout(Duration::ZERO).is_done());
    assert_eq!(ended("deadline", line!() - 1), Some(1.0));

    let task = dead.spawn(pending::<()>());
    let line = line!() - 1;
    let key = format!("{{kind=task,line={FILE}:{line}}}");
    let alive = || sums.get(&format!("tokio_ctx_alive{key}"));
    assert_eq!(alive(), Some(1.0));
    // The work is deregistered in another thread than it was registered in.
    watch.overstay(Duration::from_millis(20));
    let until = Instant::now() + Duration::from_secs(60);
    while sums.get(&format!("tokio_ctx_overstaying{key}")) != Some(1.0) {
        assert!(Instant::now() < until, "{:#?}", sums.0.lock().unwrap());
        std::thread::yield_now();
    }
    assert_eq!(sums.get(&format!("tokio_ctx_overstayed_total{key}")), Some(1.0));
    task.abort();
    let _ = task.await;
    assert_eq!(alive(), Some(0.0));
    while sums.get(&format!("tokio_ctx_overstaying{key}")) != Some(0.0) {
        assert!(Instant::now() < until, "{:#?}", sums.0.lock().unwrap());
        std::thread::yield_now();
    }
    assert!(sums.get("tokio_ctx_lateness_seconds{how=canceled}").unwrap() >= 0.02);

    // What the recorder keeps is not counted when it is dropped either, and what it drops is.
    let given = Context::background().with_cancel().detach();
    let line = std::line!() - 1;
    let roots = || sums.get(&format!("tokio_ctx_alive{{kind=root,line={FILE}:{line}}}"));
    assert_eq!(roots(), Some(1.0));
    *DROPPED.lock().unwrap() = Some(given);
    let _other = Context::background().with_cancel();
    assert_eq!(roots(), Some(0.0));
    // What could not be counted is not subtracted.
    PANICS.store(true, Ordering::SeqCst);
    let uncounted = Context::background().with_cancel();
    let line = std::line!() - 1;
    let roots = || sums.get(&format!("tokio_ctx_alive{{kind=root,line={FILE}:{line}}}"));
    drop(uncounted);
    assert!(!PANICS.load(Ordering::SeqCst));
    assert_eq!(roots().unwrap_or(0.0), 0.0);
    let kept = std::mem::take(&mut *KEPT.lock().unwrap());
    assert!(kept.len() > 2);
    drop(kept);
    assert!(sums.0.lock().unwrap().values().all(|sum| *sum >= 0.0), "{:#?}", sums.0.lock().unwrap());
    assert!(!IS_CALLED_AGAIN.load(Ordering::SeqCst));
}
