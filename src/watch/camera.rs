//! Pictures for the routes: one thread takes them, for all that ask.
//!
//! Taken by each request itself, a picture would hold a worker of the service for as long as it takes, and a hundred
//! clients would take a hundred at once. In Tokio's pool for blocking functions, one that is full of functions that
//! ignore their ends would show no picture, when it is wanted most. So a thread of its own answers one request after the
//! other, from one picture as long as that is fresh, and with the same text where the same is asked: what a crowd asks for
//! costs one thread, and of that the pictures take a tenth at most. The thread starts with the first request, and
//! ends when none has come for a while; nothing is kept then.
//!
//! A request that arrives as the thread is ending loses its place, and asks the next thread; so nothing waits for
//! good. The lock around the queue's end is held to put a request there, which does not wait.

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
use super::snapshot::Snapshot;
use super::view::View;

/// So many requests wait at most.
const QUEUE: usize = 256;
/// A picture is fresh for so long, or ten times as long as it took if that is more, up to so long.
const FRESH: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// So many texts of a picture are kept.
const TEXTS: usize = 32;
/// The thread ends after so long without a request.
const IDLE: Duration = Duration::from_secs(5);

/// Why there is no picture.
#[derive(Debug)]
pub(super) enum NoPicture {
    /// Too many wait for one.
    Busy,
    /// There is no thread, or it has panicked.
    Failed,
    /// What is asked for is not there.
    NotFound,
}

struct Job {
    form: Form,
    /// Whose clock is read: a test may move it.
    runtime: Option<Handle>,
    answer: oneshot::Sender<Result<Bytes, NoPicture>>,
}

/// Returns a picture, or a part of it.
pub(super) async fn picture(watch: Watch, form: Form) -> Result<Bytes, NoPicture> {
    // The thread may be ending.
    for _ in 0..3 {
        let (answer, answered) = oneshot::channel();
        put(watch, Job { form: form.clone(), runtime: Handle::try_current().ok(), answer })?;
        if let Ok(picture) = answered.await {
            return picture;
        }
    }
    Err(NoPicture::Failed)
}

/// Puts a request into the queue of the thread, which is started if there is none.
fn put(watch: Watch, job: Job) -> Result<(), NoPicture> {
    static THREAD: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let job = match thread.as_ref() {
        None => job,
        Some(thread) => match thread.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(_)) => return Err(NoPicture::Busy),
            Err(TrySendError::Disconnected(job)) => job,
        },
    };
    let (queue, jobs) = sync_channel(QUEUE);
    let is_put = queue.try_send(job).is_ok();
    let camera = Camera { watch, last: None };
    let started = thread::Builder::new().name("tokio-ctx-watch".to_owned()).spawn(|| camera.run(jobs));
    *thread = started.is_ok().then_some(queue);
    if is_put && started.is_ok() { Ok(()) } else { Err(NoPicture::Failed) }
}

struct Camera {
    watch: Watch,
    last: Option<Shot>,
}

/// A picture, and the texts that were made of it.
struct Shot {
    snapshot: Snapshot,
    fresh_until: Instant,
    texts: HashMap<Form, Bytes>,
}

impl Camera {
    fn run(mut self, jobs: Receiver<Job>) {
        loop {
            match jobs.recv_timeout(IDLE) {
                Ok(job) if job.answer.is_closed() => {}
                Ok(Job { form, runtime, answer }) => {
                    let _clock = runtime.as_ref().map(Handle::enter);
                    // An error: the client has left.
                    let _ = answer.send(self.show(form));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn show(&mut self, form: Form) -> Result<Bytes, NoPicture> {
        let is_fresh = |shot: &Shot| Instant::now() < shot.fresh_until;
        if !self.last.as_ref().is_some_and(is_fresh) {
            // First: two need twice the room.
            self.last = None;
            let begun = Instant::now();
            let snapshot = self.watch.snapshot();
            let fresh = (10 * begun.elapsed()).clamp(FRESH[0], FRESH[1]);
            self.last =
                Some(Shot { snapshot, fresh_until: Instant::now() + fresh, texts: HashMap::new() });
        }
        let shot = self.last.as_mut().ok_or(NoPicture::Failed)?;
        if let Some(text) = shot.texts.get(&form) {
            return Ok(text.clone());
        }
        let text = shot.text(&form)?;
        if shot.texts.len() < TEXTS {
            shot.texts.insert(form, text.clone());
        }
        Ok(text)
    }
}

impl Shot {
    fn text(&self, form: &Form) -> Result<Bytes, NoPicture> {
        match form {
            Form::Json(query) => {
                let view = View::new(&self.snapshot, query);
                serde_json::to_vec(&view).map(Bytes::from).map_err(|_| NoPicture::Failed)
            }
            Form::Text(None) => Ok(format!("{}\n", self.snapshot).into()),
            Form::Text(Some(id)) => {
                let tree = self.snapshot.under(*id).ok_or(NoPicture::NotFound)?;
                Ok(format!("{tree}\n").into())
            }
        }
    }
}
