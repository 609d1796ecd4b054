//! Pictures for the routes: one thread answers from them, for all that ask, and another takes them.
//!
//! Taken by each request itself, a picture would hold a worker of the service for as long as it takes, and a hundred
//! clients would take a hundred at once. In Tokio's pool for blocking functions, one that is full of functions that
//! ignore their ends would show no picture, when it is wanted most. So a thread of its own answers one request after the
//! other, from one picture as long as that is fresh, and with the same text where the same is asked. A new picture is
//! taken beside it, in a thread for that; where one takes long, requests are answered from the one before until
//! it is there. So what a crowd asks for costs one thread, and the pictures a fifth of another at most. The thread starts
//! with the first request, and ends when none has come for a while; nothing is kept then.
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
use super::view::{Shown, View};

/// So many requests wait at most.
const QUEUE: usize = 256;
/// A picture is fresh for so long, or four times as long as it took if that is more, up to so long.
const FRESH: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// What takes longer is not waited for, if there is a picture from before,
const LONG: Duration = Duration::from_millis(30);
/// not older than this.
const KEPT: Duration = Duration::from_secs(30);
/// Texts of a picture are kept up to so many bytes.
const TEXTS: usize = 8 << 20;
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

enum Message {
    Ask(Job),
    /// A new picture; none if taking it has panicked.
    Taken(Option<Box<Shot>>),
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
    static THREAD: Mutex<Option<SyncSender<Message>>> = Mutex::new(None);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let message = match thread.as_ref() {
        None => Message::Ask(job),
        Some(thread) => match thread.try_send(Message::Ask(job)) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(_)) => return Err(NoPicture::Busy),
            Err(TrySendError::Disconnected(message)) => message,
        },
    };
    let (queue, messages) = sync_channel(QUEUE);
    let is_put = queue.try_send(message).is_ok();
    let camera = Camera {
        watch,
        queue: queue.clone(),
        last: None,
        old: None,
        waiting: Vec::new(),
        is_taking: false,
    };
    let started = thread_named("tokio-ctx-watch").spawn(|| camera.run(messages));
    *thread = started.is_ok().then_some(queue);
    if is_put && started.is_ok() { Ok(()) } else { Err(NoPicture::Failed) }
}

fn thread_named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

struct Camera {
    watch: Watch,
    queue: SyncSender<Message>,
    last: Option<Box<Shot>>,
    /// One before, to be freed by the thread that takes the next: that may take a while.
    old: Option<Box<Shot>>,
    /// What the picture that is being taken is for.
    waiting: Vec<Job>,
    is_taking: bool,
}

/// A picture, and the texts that were made of it.
struct Shot {
    shown: Shown,
    taken: Instant,
    took: Duration,
    texts: HashMap<Form, Bytes>,
    /// The length of these.
    kept: usize,
}

impl Camera {
    fn run(mut self, messages: Receiver<Message>) {
        loop {
            match messages.recv_timeout(IDLE) {
                Ok(Message::Ask(job)) if job.answer.is_closed() => {}
                Ok(Message::Ask(job)) => self.ask(job),
                Ok(Message::Taken(shot)) => self.taken(shot),
                Err(RecvTimeoutError::Timeout) if self.is_taking => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn ask(&mut self, job: Job) {
        let age = self.last.as_ref().map(|shot| (shot.taken.elapsed(), shot.took));
        let is_fresh = age.is_some_and(|(age, took)| age < (4 * took).clamp(FRESH[0], FRESH[1]));
        if !is_fresh && !self.take(&job) {
            job.answer(Err(NoPicture::Failed));
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
            job.answer(Err(NoPicture::Busy));
        }
    }

    fn taken(&mut self, shot: Option<Box<Shot>>) {
        self.is_taking = false;
        let is_there = shot.is_some();
        if is_there {
            self.old = std::mem::replace(&mut self.last, shot);
        }
        for job in std::mem::take(&mut self.waiting) {
            if is_there {
                self.answer(job);
            } else {
                job.answer(Err(NoPicture::Failed));
            }
        }
    }

    /// Sees to it that a picture is being taken; false if there is no thread for that.
    fn take(&mut self, job: &Job) -> bool {
        if self.is_taking {
            return true;
        }
        let (watch, runtime, old) = (self.watch, job.runtime.clone(), self.old.take());
        let taking = Taking { queue: self.queue.clone(), shot: None };
        let started = thread_named("tokio-ctx-picture").spawn(move || {
            drop(old);
            let _clock = runtime.as_ref().map(Handle::enter);
            taking.done(Shot::take(watch));
        });
        self.is_taking = started.is_ok();
        self.is_taking
    }

    fn answer(&mut self, job: Job) {
        let Some(shot) = &mut self.last else { return };
        let text = shot.text(&job.form);
        job.answer(text);
    }
}

impl Job {
    fn answer(self, text: Result<Bytes, NoPicture>) {
        // An error: the client has left.
        let _ = self.answer.send(text);
    }
}

/// Sends the picture when it is dropped, or says that there is none.
struct Taking {
    queue: SyncSender<Message>,
    shot: Option<Box<Shot>>,
}

impl Taking {
    fn done(mut self, shot: Shot) {
        self.shot = Some(Box::new(shot));
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let _ = self.queue.send(Message::Taken(self.shot.take()));
    }
}

impl Shot {
    fn take(watch: Watch) -> Shot {
        let taken = Instant::now();
        let shown = Shown::new(watch.snapshot());
        Shot { shown, taken, took: taken.elapsed(), texts: HashMap::new(), kept: 0 }
    }

    fn text(&mut self, form: &Form) -> Result<Bytes, NoPicture> {
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

    fn new_text(&self, form: &Form) -> Result<Bytes, NoPicture> {
        let snapshot = self.shown.snapshot();
        match form {
            Form::Json(query) => {
                let view = View::new(&self.shown, query);
                serde_json::to_vec(&view).map(Bytes::from).map_err(|_| NoPicture::Failed)
            }
            Form::Text(None) => Ok(format!("{snapshot}\n").into()),
            Form::Text(Some(id)) => {
                let tree = snapshot.under(*id).ok_or(NoPicture::NotFound)?;
                Ok(format!("{tree}\n").into())
            }
        }
    }
}
