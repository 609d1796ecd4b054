//! Responses for the routes: one thread renders them, and another takes the snapshots.
//!
//! If each request took its own snapshot, it would block a worker of the service, and a hundred clients would take a
//! hundred snapshots at once. Tokio's pool for blocking functions is not used either: it may be full of functions that
//! do not stop, which is when the snapshot is needed most.
//!
//! Instead, a thread renders one request after the other. It uses the same snapshot while it is recent, and the same
//! text for equal requests. Another thread takes each new snapshot. If that takes long, requests are answered from the
//! previous snapshot in the meantime. Any number of clients therefore costs one thread, and at most a fifth of the time
//! of another one for snapshots. The first request starts the thread. It ends, and frees all memory, when there has
//! been no request for some seconds.
//!
//! A request that is sent while the thread ends is not answered, and is sent again to the next thread. The lock around
//! the sender is held to put a request into the queue, which does not block.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::build::Watch;
use super::query::Form;
use super::view::{Shown, View};

/// The maximum number of requests that wait.
const QUEUE: usize = 256;
/// How long a snapshot is used: four times the time that it took, within these limits.
const FRESH: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// If the last snapshot took longer than this, requests are answered from it while the next one is taken,
const LONG: Duration = Duration::from_millis(30);
/// unless it is older than this.
const KEPT: Duration = Duration::from_secs(30);
/// The maximum number of bytes of rendered texts that are kept with a snapshot.
const TEXTS: usize = 8 << 20;
/// The thread ends when there has been no request for this time.
const IDLE: Duration = Duration::from_secs(5);

/// Why a request is not answered with a snapshot.
#[derive(Debug)]
pub(super) enum Unavailable {
    /// Too many requests are waiting.
    Busy,
    /// The thread could not be started, or it panicked.
    Failed,
    /// There is no such entry.
    NotFound,
}

struct Job {
    form: Form,
    /// The runtime whose clock is read, which a test may have paused.
    runtime: Option<Handle>,
    answer: oneshot::Sender<Result<Bytes, Unavailable>>,
}

enum Message {
    Render(Job),
    /// A new snapshot; `None` if taking it panicked.
    Taken(Option<Box<Rendered>>),
}

/// Returns the response to a request.
pub(super) async fn render(watch: Watch, form: Form) -> Result<Bytes, Unavailable> {
    // Sends the request again if the thread was about to end.
    for _ in 0..3 {
        let (answer, answered) = oneshot::channel();
        send(watch, Job { form: form.clone(), runtime: Handle::try_current().ok(), answer })?;
        if let Ok(text) = answered.await {
            return text;
        }
    }
    Err(Unavailable::Failed)
}

/// Sends a request to the thread, which is started if it does not run.
fn send(watch: Watch, job: Job) -> Result<(), Unavailable> {
    static THREAD: Mutex<Option<SyncSender<Message>>> = Mutex::new(None);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let message = match thread.as_ref() {
        None => Message::Render(job),
        Some(thread) => match thread.try_send(Message::Render(job)) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(_)) => return Err(Unavailable::Busy),
            Err(TrySendError::Disconnected(message)) => message,
        },
    };
    let (queue, messages) = sync_channel(QUEUE);
    let is_sent = queue.try_send(message).is_ok();
    let renderer = Renderer {
        watch,
        queue: queue.clone(),
        last: None,
        old: None,
        waiting: Vec::new(),
        is_taking: false,
    };
    let started = thread_named("tokio-ctx-watch").spawn(|| renderer.run(messages));
    *thread = started.is_ok().then_some(queue);
    if is_sent && started.is_ok() { Ok(()) } else { Err(Unavailable::Failed) }
}

fn thread_named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

struct Renderer {
    watch: Watch,
    queue: SyncSender<Message>,
    last: Option<Box<Rendered>>,
    /// The previous snapshot. The thread that takes the next one frees it, which may take some time.
    old: Option<Box<Rendered>>,
    /// The requests that wait for the snapshot that is being taken.
    waiting: Vec<Job>,
    is_taking: bool,
}

/// A snapshot, and the texts that were rendered from it.
struct Rendered {
    shown: Shown,
    taken: Instant,
    took: Duration,
    texts: HashMap<Form, Bytes>,
    /// The length of these texts.
    kept: usize,
}

impl Renderer {
    fn run(mut self, messages: Receiver<Message>) {
        loop {
            match messages.recv_timeout(IDLE) {
                Ok(Message::Render(job)) if job.answer.is_closed() => {}
                Ok(Message::Render(job)) => self.accept(job),
                Ok(Message::Taken(rendered)) => self.taken(rendered),
                Err(RecvTimeoutError::Timeout) if self.is_taking => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn accept(&mut self, job: Job) {
        let age = self.last.as_ref().map(|rendered| (rendered.taken.elapsed(), rendered.took));
        let is_fresh = age.is_some_and(|(age, took)| age < (4 * took).clamp(FRESH[0], FRESH[1]));
        if !is_fresh && !self.take(&job) {
            job.answer(Err(Unavailable::Failed));
        } else if is_fresh || age.is_some_and(|(age, took)| took > LONG && age < KEPT) {
            self.answer(job);
        } else {
            self.wait(job);
        }
    }

    fn wait(&mut self, job: Job) {
        if self.waiting.len() >= QUEUE {
            self.waiting.retain(|job| !job.answer.is_closed());
        }
        if self.waiting.len() < QUEUE {
            self.waiting.push(job);
        } else {
            job.answer(Err(Unavailable::Busy));
        }
    }

    fn taken(&mut self, rendered: Option<Box<Rendered>>) {
        self.is_taking = false;
        let has_snapshot = rendered.is_some();
        if has_snapshot {
            self.old = std::mem::replace(&mut self.last, rendered);
        }
        for job in std::mem::take(&mut self.waiting) {
            if has_snapshot {
                self.answer(job);
            } else {
                job.answer(Err(Unavailable::Failed));
            }
        }
    }

    /// Starts to take a snapshot, unless one is being taken. Returns false if there is no thread for it.
    fn take(&mut self, job: &Job) -> bool {
        if self.is_taking {
            return true;
        }
        let (watch, runtime, old) = (self.watch, job.runtime.clone(), self.old.take());
        let taking = Taking { queue: self.queue.clone(), rendered: None };
        let started = thread_named("tokio-ctx-snapshot").spawn(move || {
            drop(old);
            let _clock = runtime.as_ref().map(Handle::enter);
            taking.done(Rendered::take(watch));
        });
        self.is_taking = started.is_ok();
        self.is_taking
    }

    fn answer(&mut self, job: Job) {
        let Some(rendered) = &mut self.last else { return };
        let text = rendered.text(&job.form);
        job.answer(text);
    }
}

impl Job {
    fn answer(self, text: Result<Bytes, Unavailable>) {
        // An error means that the client has disconnected.
        let _ = self.answer.send(text);
    }
}

/// Sends the snapshot when it is dropped, or `None` if there is none.
struct Taking {
    queue: SyncSender<Message>,
    rendered: Option<Box<Rendered>>,
}

impl Taking {
    fn done(mut self, rendered: Rendered) {
        self.rendered = Some(Box::new(rendered));
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let _ = self.queue.send(Message::Taken(self.rendered.take()));
    }
}

impl Rendered {
    fn take(watch: Watch) -> Rendered {
        let taken = Instant::now();
        let shown = Shown::new(watch.snapshot());
        Rendered { shown, taken, took: taken.elapsed(), texts: HashMap::new(), kept: 0 }
    }

    fn text(&mut self, form: &Form) -> Result<Bytes, Unavailable> {
        if let Some(text) = self.texts.get(form) {
            return Ok(text.clone());
        }
        let text = self.new_text(form)?;
        if self.kept + text.len() <= TEXTS {
            self.kept += text.len();
            self.texts.insert(form.clone(), text.clone());
        }
        Ok(text)
    }

    fn new_text(&self, form: &Form) -> Result<Bytes, Unavailable> {
        let snapshot = self.shown.snapshot();
        match form {
            Form::Json(query) => {
                let view = View::new(&self.shown, query);
                serde_json::to_vec(&view).map(Bytes::from).map_err(|_| Unavailable::Failed)
            }
            Form::Text(None) => Ok(format!("{snapshot}\n").into()),
            Form::Text(Some(id)) => {
                let tree = snapshot.under(*id).ok_or(Unavailable::NotFound)?;
                Ok(format!("{tree}\n").into())
            }
        }
    }
}
