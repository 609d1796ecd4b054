//! The real token under every order that loom can find, within a bound of preemptions.
//!
//! Each file holds the models of one idea: two or three threads, one tree, one thing against another.
//! A model ends by asking every context in every way (promises 1 to 3: it ended once, all below with
//! it, one story), by seeing that each waiter left pending was woken, and that nothing is left behind.
//! No model waits on a deadline: Tokio's timers are not loom's to explore. The model's clock is, and
//! whoever asks reads it.
//!
//! ```text
//! RUSTFLAGS="--cfg tokio_ctx_loom" cargo test --lib --release loom_models
//! ```
//!
//! With `-- --nocapture` each model tells how many orders it went through. `LOOM_MAX_PREEMPTIONS`
//! overrides every model's own bound.

use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{self, Poll, Wake, Waker};
use std::time::Instant;

use crate::token::Token;
use crate::{Context, DoneOwned, Error, sync};

mod anchors;
mod bridge;
mod cancel;
mod deadline;
mod derive;
mod drops;
mod latch;
mod link;
mod merge;
mod rivals;
mod wake;

/// Goes through the orders of `model`: first with up to `preemptions[0]` in each, then, threads reading
/// also what is no longer the latest, with up to `preemptions[1]`.
fn explore<F: Fn() + Send + Sync + Copy + 'static>(preemptions: [usize; 2], model: F) {
    explore_with(false, preemptions[0], model);
    explore_with(true, preemptions[1], model);
}

/// The same without stale loads, which are too many for three threads far from each other.
fn explore_exact<F: Fn() + Send + Sync + Copy + 'static>(preemptions: usize, model: F) {
    explore_with(false, preemptions, model);
}

fn explore_with<F: Fn() + Send + Sync + Copy + 'static>(stale: bool, preemptions: usize, model: F) {
    let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    let name = name.rsplit_once("loom_models::").map_or(name, |(_, name)| name);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    let bound = *builder.preemption_bound.get_or_insert(preemptions);
    let orders = Arc::new(AtomicUsize::new(0));
    let (begun, counter) = (Instant::now(), orders.clone());
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        sync::allow_stale_loads(stale);
        // The statics before the threads: the first to touch one must not order the rest.
        census(&Context::background().with_cancel());
        sync::now();
        model();
    });
    let (orders, seconds) = (orders.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    let loads = if stale { "stale" } else { "exact" };
    println!("{orders:>7} orders, {loads} loads, {bound} preemptions, {seconds:>5.1} s: {name}");
}

/// A root, and a chain of so many levels below it whose guards are detached.
fn chain(root: &Context, levels: usize) -> Vec<Context> {
    let mut all = vec![root.clone()];
    for level in 0..levels {
        let child = all[level].with_cancel().detach();
        all.push(child);
    }
    all
}

/// What is registered with a context, and the pushes under way.
fn census(ctx: &Context) -> (usize, usize) {
    ctx.token().expect("a root of its own").census()
}

/// A task's waker that counts.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn rung(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that does nothing but wait for the end.
struct Waiter {
    done: Pin<Box<DoneOwned>>,
    bell: Arc<Bell>,
    /// How often it had been woken before it last looked.
    heard: usize,
    told: Option<Error>,
}

impl Waiter {
    fn on(ctx: &Context) -> Waiter {
        let done = Box::pin(ctx.done_owned());
        Waiter { done, bell: Arc::default(), heard: 0, told: None }
    }

    /// Looks once. True: it has been told of the end.
    fn poll(&mut self) -> bool {
        self.heard = self.bell.rung();
        let waker = Waker::from(self.bell.clone());
        if let Poll::Ready(error) = self.done.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            self.told = Some(error);
        }
        self.told.is_some()
    }

    /// From its next look on another task waits.
    fn change_hands(&mut self) {
        self.bell = Arc::default();
    }

    /// After the end: it has been told, or woken since it last looked, and nothing of it is left.
    fn finish(mut self, told: &Error) {
        if self.told.is_none() {
            assert!(self.bell.rung() > self.heard, "a lost wake-up");
            assert!(self.poll(), "woken for nothing");
        }
        same(told, self.told.as_ref().expect("was told"));
        drop(self.done);
        assert_eq!(Arc::strong_count(&self.bell), 1, "a waker left behind");
    }
}

#[track_caller]
fn same(a: &Error, b: &Error) {
    assert!(ptr::eq(a.origin(), b.origin()), "two stories: {a}, and {b}");
}

/// Asks a context that has ended in every way there is.
#[track_caller]
fn story(ctx: &Context) -> Error {
    assert!(ctx.is_done(), "has not ended");
    let error = ctx.err().expect("ended, and so has an error");
    same(&error, &ctx.check().expect_err("as err says"));
    let mut waiter = Waiter::on(ctx);
    assert!(waiter.poll(), "still waits after the end");
    waiter.finish(&error);
    error
}

/// All of them have ended, with one and the same error.
#[track_caller]
fn one_story<'a>(all: impl IntoIterator<Item = &'a Context>) -> Error {
    let mut stories = all.into_iter().map(story);
    let first = stories.next().expect("at least one");
    stories.for_each(|other| same(&first, &other));
    first
}

/// The cause's words, or "" if there is none.
fn why(error: &Error) -> String {
    error.cause().map(ToString::to_string).unwrap_or_default()
}

/// Remembers contexts, to see that none is kept by anything.
struct Roll(Vec<Weak<Token>>);

impl Roll {
    fn of<'a>(all: impl IntoIterator<Item = &'a Context>) -> Roll {
        Roll(all.into_iter().filter_map(|ctx| ctx.token().map(Arc::downgrade)).collect())
    }

    /// Once all handles are gone.
    #[track_caller]
    fn is_gone(self) {
        assert!(self.0.iter().all(|token| token.strong_count() == 0), "a token left behind");
        let probe = Context::background().with_cancel();
        assert_eq!(census(&probe).1, 0, "a push that never ended");
    }
}
