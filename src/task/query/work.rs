//! A query in progress: runs it, cancels it when its context ends, and waits for it.
//!
//! [`Work`] is one future, which is polled by one task at a time: that of its caller, and after the end a new task
//! (`handoff.rs`). It polls the query, the cancels and the timers one after the other, so that only the server runs
//! concurrently. The connection can be used again if two conditions hold:
//!
//! - *The query has ended*: its future has returned. It is always polled first, so that a result wins over the end, and
//!   no cancel begins after it.
//! - *No cancel can take effect later*: each attempt is awaited before the connection is returned. If an attempt failed,
//!   panicked or was dropped, it may still take effect, and the connection is discarded.
//!
//! The connection is in a [`Held`], inside of the future that uses it. If that future is dropped, for example because of a
//! panic or because the runtime shuts down, the connection is discarded. Only [`Held::keep`] prevents that, which is
//! called if both conditions hold.
//!
//! A query may use up the task's cooperative budget in every poll. Therefore cancels and timers are polled without a
//! budget.

use std::future::{Future, poll_fn};
use std::mem;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::thread;
use std::time::Duration;

use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Sleep, sleep};

use super::commit::Commit;
use super::connection::{Connection, QueryFuture};
use super::outcome::{Outcome, Stopped};
use crate::context::done::Wait;
use crate::context::{CancelScope, Context};
use crate::error::{BoxError, Error};
use crate::trace::shielded;

/// The pause after the first cancel. It is doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The outcome of a query, or the payload of its panic.
pub(super) type End<C, T> = thread::Result<Outcome<C, T>>;

/// A query that has begun.
pub(super) struct Work<C: Connection, T> {
    query: Option<Running<C, T>>,
    over: Option<Returned<C, T>>,
    stop: Option<Stop>,
    must_stop: bool,
    cancels: Cancels<C>,
    commit: Arc<Commit>,
    grace: Duration,
    wait: Wait<Context>,
    // Dropped last, when nothing else can observe its end, so that no end is recorded.
    scope: CancelScope,
}

type Running<C, T> = Pin<Box<dyn Future<Output = Returned<C, T>> + Send>>;
type Returned<C, T> = (Held<C>, thread::Result<T>);

/// A connection that is discarded when dropped, unless it is kept.
struct Held<C: Connection>(Option<C>);

impl<C: Connection> Held<C> {
    fn keep(mut self) -> Option<C> {
        self.0.take()
    }
}

impl<C: Connection> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            shielded(|| connection.discard());
        }
    }
}

/// Set when the context has ended, or the query has panicked.
struct Stop {
    ended: Option<Error>,
    limit: Timer,
}

impl<C: Connection, T: Send + 'static> Work<C, T> {
    pub(super) fn begin<F>(scope: CancelScope, connection: C, f: F) -> Self
    where
        F: for<'a> FnOnce(&'a mut C, &'a Commit) -> QueryFuture<'a, T> + Send + 'static,
    {
        let (canceler, grace) = (connection.canceler(), connection.grace());
        let commit = Arc::new(Commit::new(scope.context().clone()));
        let mut held = Held(Some(connection));
        let query = {
            let commit = commit.clone();
            async move {
                let connection = held.0.as_mut().expect("kept only when the query is over");
                let result = catch_panic(async { f(connection, &commit).await }).await;
                (held, result)
            }
        };
        Work {
            query: Some(Box::pin(scope.scope(query))),
            over: None,
            stop: None,
            must_stop: false,
            cancels: Cancels::new(canceler, scope.without_cancel()),
            commit,
            grace,
            wait: Wait::new(scope.context().clone()),
            scope,
        }
    }

    /// Cancels the query's context, because its caller has dropped the future.
    pub(super) fn cancel(&self, place: &'static Location<'static>) {
        self.scope.cancel_at(place, "query dropped".into());
    }

    pub(super) fn context(&self) -> &Context {
        &self.scope
    }

    /// Returns whether its context has ended. Reads only the state, so it can be called under a lock.
    pub(super) fn has_ended(&self) -> bool {
        self.scope.token().is_some_and(|token| token.ended())
    }

    /// Returns whether the query has to be canceled, which requires its runtime.
    pub(super) fn must_stop(&self) -> bool {
        self.must_stop
    }

    /// Returns the outcome of a query that is dropped while it is being canceled.
    pub(super) fn lost(mut self) -> End<C, T> {
        if let Some((_, Err(payload))) = self.over.take() {
            return Err(payload);
        }
        let ended = self.scope.err();
        self.conclude(ended)
    }

    /// Polls the query, and cancels it after the end of the context. With `end`, that waker is registered with the
    /// context instead of the waker of the task, and the query is not canceled here.
    pub(super) fn poll(&mut self, cx: &mut TaskContext<'_>, end: Option<&Waker>) -> Poll<End<C, T>> {
        if let Some(Poll::Ready(returned)) = self.query.as_mut().map(|query| query.as_mut().poll(cx)) {
            self.query = None;
            self.over = Some(returned);
        }
        if self.stop.is_none() {
            let ended = match &self.over {
                // The query may have noticed the end before this poll.
                Some((_, Ok(_))) => return Poll::Ready(self.conclude(self.scope.err())),
                Some((_, Err(_))) => None,
                None => {
                    let waker = end.unwrap_or(cx.waker());
                    Some(ready!(Pin::new(&mut self.wait).poll(&mut TaskContext::from_waker(waker))))
                }
            };
            if end.is_some() {
                self.must_stop = true;
                return Poll::Pending;
            }
            self.stop = Some(Stop { ended, limit: timer(self.grace) });
        }
        if !self.poll_cancels(cx) {
            let limit = &mut self.stop.as_mut().expect("it was made above").limit;
            ready!(limit.as_mut().poll(cx));
        }
        let ended = self.stop.take().and_then(|stop| stop.ended);
        Poll::Ready(self.conclude(ended))
    }

    /// Cancels the query until it has ended. Returns true if it has ended and no cancel is in progress.
    fn poll_cancels(&mut self, cx: &mut TaskContext<'_>) -> bool {
        match &self.over {
            Some((_, Ok(_))) => self.cancels.poll_last(cx),
            // It is unknown whether the query still runs at the server, so it is canceled once.
            Some((_, Err(_))) => !self.commit.refuse() || self.cancels.poll_once(cx),
            None => {
                if self.commit.refuse() {
                    self.cancels.poll_again(cx);
                }
                false
            }
        }
    }

    fn conclude(&mut self, ended: Option<Error>) -> End<C, T> {
        let (is_commit, commit_sent) = (self.commit.is_in_progress(), self.commit.was_sent());
        match self.over.take() {
            Some((held, Ok(output))) => {
                let connection =
                    if is_commit || self.cancels.may_come_later() { None } else { held.keep() };
                Ok(Outcome { result: Ok(output), connection, ended, commit_sent })
            }
            Some((_, Err(payload))) => Err(payload),
            None => {
                // This discards the connection.
                self.query = None;
                let ended = ended.unwrap_or_else(|| unreachable!("only an end stops a query"));
                let cancel = self.cancels.failed.take();
                let stopped =
                    Stopped::unknown(ended.clone(), self.grace, commit_sent, is_commit, cancel);
                Ok(Outcome { result: Err(stopped), connection: None, ended: Some(ended), commit_sent })
            }
        }
    }
}

/// The attempts to cancel one query, one at a time.
struct Cancels<C: Connection> {
    attempt: Attempt<C::Canceler>,
    pause: Duration,
    begun: bool,
    failed: Option<BoxError>,
    // Contains the query's values, for the canceler.
    values: Context,
}

/// The result of an attempt and the canceler, or the payload of a panic.
type Sent<K> = thread::Result<(K, Result<(), BoxError>)>;

enum Attempt<K> {
    Pause(K, Option<Timer>),
    Sending(Pin<Box<dyn Future<Output = Sent<K>> + Send>>),
    /// The canceler has panicked.
    Lost,
}

impl<C: Connection> Cancels<C> {
    fn new(canceler: C::Canceler, values: Context) -> Self {
        Cancels {
            attempt: Attempt::Pause(canceler, None),
            pause: FIRST_PAUSE,
            begun: false,
            failed: None,
            values,
        }
    }

    /// Cancels repeatedly, because a cancel between two statements of a query has no effect.
    fn poll_again(&mut self, cx: &mut TaskContext<'_>) {
        loop {
            self.attempt = match mem::replace(&mut self.attempt, Attempt::Lost) {
                Attempt::Pause(canceler, mut pause) => {
                    if pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_pending()) {
                        self.attempt = Attempt::Pause(canceler, pause);
                        return;
                    }
                    self.begin(canceler)
                }
                Attempt::Sending(mut sending) => match sending.as_mut().poll(cx) {
                    Poll::Ready(sent) => self.record(sent),
                    Poll::Pending => {
                        self.attempt = Attempt::Sending(sending);
                        return;
                    }
                },
                Attempt::Lost => return,
            };
        }
    }

    /// Waits for the attempt in progress. Returns whether there is none.
    fn poll_last(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if let Attempt::Sending(sending) = &mut self.attempt {
            let Poll::Ready(sent) = sending.as_mut().poll(cx) else { return false };
            self.attempt = self.record(sent);
        }
        true
    }

    /// Makes one attempt, unless there was one. Returns whether it has ended.
    fn poll_once(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if !self.begun {
            self.attempt = match mem::replace(&mut self.attempt, Attempt::Lost) {
                Attempt::Pause(canceler, _) => self.begin(canceler),
                attempt => attempt,
            };
        }
        self.poll_last(cx)
    }

    fn begin(&mut self, mut canceler: C::Canceler) -> Attempt<C::Canceler> {
        self.begun = true;
        let sending = async move {
            let sent = catch_panic(async { C::cancel(&mut canceler).await }).await;
            sent.map(|sent| (canceler, sent))
        };
        Attempt::Sending(Box::pin(unconstrained(self.values.scope(sending))))
    }

    fn record(&mut self, sent: Sent<C::Canceler>) -> Attempt<C::Canceler> {
        match sent {
            Ok((canceler, sent)) => {
                if let Err(error) = sent {
                    self.failed = Some(error);
                }
                let pause = timer(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Attempt::Pause(canceler, Some(pause))
            }
            Err(payload) => {
                shielded(|| drop(payload));
                self.failed = Some("the cancel panicked".into());
                Attempt::Lost
            }
        }
    }

    /// Returns whether a cancel may affect the next query of the connection.
    fn may_come_later(&self) -> bool {
        self.failed.is_some() || matches!(self.attempt, Attempt::Sending(_))
    }
}

/// A timer that does not depend on the cooperative budget.
type Timer = Pin<Box<Unconstrained<Sleep>>>;

fn timer(after: Duration) -> Timer {
    Box::pin(unconstrained(sleep(after)))
}

/// Catches the panic of a future.
async fn catch_panic<F: Future>(future: F) -> thread::Result<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(payload) => Poll::Ready(Err(payload)),
    })
    .await
}
