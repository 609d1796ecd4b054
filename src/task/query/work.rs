//! A query under way: it runs, is canceled when its context ends, and is waited for.
//!
//! [`Work`] is one future, polled by one task at a time: its caller's, and from the end on a task of its own (`turns.rs`).
//! Query, cancels and timers are polled by the same hand, one after the other, so that nothing here races but the
//! server, of which two facts are needed:
//!
//! - *The query has ended*: its future has returned. It is polled first, always, so that a result wins over the end, and
//!   no cancel is begun after it.
//! - *No cancel can come later*: each attempt is awaited to its end before the connection is passed on. One that failed,
//!   panicked or has to be given up may still act, and the connection is discarded.
//!
//! The connection lies in a [`Held`], inside the future that uses it. Whatever drops that future, a panic or a runtime
//! that shuts down among others, discards the connection; only [`Held::keep`] saves it, called where both
//! facts are known.
//!
//! A query may use up the task's cooperative budget in every poll. Cancels and timers are therefore polled without.

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

/// The pause after the first cancel, doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What came of a query, or of one that panicked, its payload.
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
    // Last: with nothing left that sees it, its drop makes no end.
    scope: CancelScope,
}

type Running<C, T> = Pin<Box<dyn Future<Output = Returned<C, T>> + Send>>;
type Returned<C, T> = (Held<C>, thread::Result<T>);

/// A connection that is discarded, unless it is kept.
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

/// The context has ended, or the query has panicked: there is so much time left.
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
                let result = caught(async { f(connection, &commit).await }).await;
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

    /// Ends the query's context, as its caller has gone.
    pub(super) fn abandon(&self, place: &'static Location<'static>) {
        self.scope.cancel_at(place, "the query was dropped".into());
    }

    pub(super) fn context(&self) -> &Context {
        &self.scope
    }

    /// Whether it is to be stopped, for which it needs its runtime.
    pub(super) fn must_stop(&self) -> bool {
        self.must_stop
    }

    /// What came of a query that is dropped amid its end.
    pub(super) fn lost(mut self) -> End<C, T> {
        if let Some((_, Err(payload))) = self.over.take() {
            return Err(payload);
        }
        let ended = self.scope.err();
        self.conclude(ended)
    }

    /// Polls what there is to do. With an `end`, that is woken when the context ends, instead of the task, and to stop
    /// the query is left to a poll without.
    pub(super) fn poll(&mut self, cx: &mut TaskContext<'_>, end: Option<&Waker>) -> Poll<End<C, T>> {
        if let Some(Poll::Ready(returned)) = self.query.as_mut().map(|query| query.as_mut().poll(cx)) {
            self.query = None;
            self.over = Some(returned);
        }
        if self.stop.is_none() {
            let ended = match &self.over {
                // It may have seen the end itself, before it is seen here.
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

    /// Cancels the query until it has ended; whether it has, and no cancel is under way.
    fn poll_cancels(&mut self, cx: &mut TaskContext<'_>) -> bool {
        match &self.over {
            Some((_, Ok(_))) => self.cancels.poll_last(cx),
            // Whether it runs on at the server, nothing will say. Once is for the server's good.
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
        let (is_commit, commit_sent) = (self.commit.is_under_way(), self.commit.was_sent());
        match self.over.take() {
            Some((held, Ok(output))) => {
                let connection =
                    if is_commit || self.cancels.may_come_later() { None } else { held.keep() };
                Ok(Outcome { result: Ok(output), connection, ended, commit_sent })
            }
            Some((_, Err(payload))) => Err(payload),
            None => {
                // With the connection.
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
    turn: Turn<C::Canceler>,
    pause: Duration,
    begun: bool,
    failed: Option<BoxError>,
    // The query's values, for the canceler.
    values: Context,
}

/// What an attempt came to, with the canceler; or what it panicked with.
type Sent<K> = thread::Result<(K, Result<(), BoxError>)>;

enum Turn<K> {
    Pause(K, Option<Timer>),
    Sending(Pin<Box<dyn Future<Output = Sent<K>> + Send>>),
    /// The canceler has panicked.
    Lost,
}

impl<C: Connection> Cancels<C> {
    fn new(canceler: C::Canceler, values: Context) -> Self {
        Cancels {
            turn: Turn::Pause(canceler, None),
            pause: FIRST_PAUSE,
            begun: false,
            failed: None,
            values,
        }
    }

    /// Cancels again and again: one that comes between two steps of a query is lost.
    fn poll_again(&mut self, cx: &mut TaskContext<'_>) {
        loop {
            self.turn = match mem::replace(&mut self.turn, Turn::Lost) {
                Turn::Pause(canceler, mut pause) => {
                    if pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_pending()) {
                        self.turn = Turn::Pause(canceler, pause);
                        return;
                    }
                    self.begin(canceler)
                }
                Turn::Sending(mut sending) => match sending.as_mut().poll(cx) {
                    Poll::Ready(sent) => self.note(sent),
                    Poll::Pending => {
                        self.turn = Turn::Sending(sending);
                        return;
                    }
                },
                Turn::Lost => return,
            };
        }
    }

    /// Lets the attempt that is under way come to its end; whether there is none.
    fn poll_last(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if let Turn::Sending(sending) = &mut self.turn {
            let Poll::Ready(sent) = sending.as_mut().poll(cx) else { return false };
            self.turn = self.note(sent);
        }
        true
    }

    /// Sees that there was one attempt; whether it is over.
    fn poll_once(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if !self.begun {
            self.turn = match mem::replace(&mut self.turn, Turn::Lost) {
                Turn::Pause(canceler, _) => self.begin(canceler),
                turn => turn,
            };
        }
        self.poll_last(cx)
    }

    fn begin(&mut self, mut canceler: C::Canceler) -> Turn<C::Canceler> {
        self.begun = true;
        let attempt = async move {
            let sent = caught(async { C::cancel(&mut canceler).await }).await;
            sent.map(|sent| (canceler, sent))
        };
        Turn::Sending(Box::pin(unconstrained(self.values.scope(attempt))))
    }

    fn note(&mut self, sent: Sent<C::Canceler>) -> Turn<C::Canceler> {
        match sent {
            Ok((canceler, sent)) => {
                if let Err(error) = sent {
                    self.failed = Some(error);
                }
                let pause = timer(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Turn::Pause(canceler, Some(pause))
            }
            Err(payload) => {
                shielded(|| drop(payload));
                self.failed = Some("it panicked".into());
                Turn::Lost
            }
        }
    }

    /// Whether a cancel may hit what the connection does next.
    fn may_come_later(&self) -> bool {
        self.failed.is_some() || matches!(self.turn, Turn::Sending(_))
    }
}

/// A timer that a used-up cooperative budget does not hold back.
type Timer = Pin<Box<Unconstrained<Sleep>>>;

fn timer(after: Duration) -> Timer {
    Box::pin(unconstrained(sleep(after)))
}

/// What a future returns, or panics with.
async fn caught<F: Future>(future: F) -> thread::Result<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(payload) => Poll::Ready(Err(payload)),
    })
    .await
}
