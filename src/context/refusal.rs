//! What it costs to be refused: an operation that finds its context ended is ready at its first poll.
//!
//! A loop that takes the error for *not yet* would then spin inside one `poll`: the bound around it would
//! never act, and on one thread nothing else would run. Hence a refusal takes a unit of Tokio's cooperative
//! budget, as a read does that finds data, and yields when none is left.
//!
//! It yields once. A neighbor in the same task that uses up the budget in every turn must not withhold the end
//! for good, so that the next poll returns it. An end that is seen after the operation has begun is free.

use std::future::poll_fn;
use std::task::{Context as TaskContext, Poll, ready};

use tokio::task::coop::poll_proceed;

use super::context::Context;
use crate::error::Error;

/// How far an operation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It has not been polled.
    #[default]
    Fresh,
    /// It was refused, and has yielded.
    Yielded,
    /// It has begun.
    Begun,
}

impl Entry {
    /// Lets the operation begin, unless the context has ended. Looks at the context only until it has begun.
    #[inline]
    pub(crate) fn poll(&mut self, ctx: &Context, cx: &mut TaskContext<'_>) -> Poll<Result<(), Error>> {
        if *self == Entry::Begun { Poll::Ready(Ok(())) } else { self.poll_with(ctx.err(), cx) }
    }

    /// Lets the operation begin, unless this is how the context has ended.
    #[inline]
    pub(crate) fn poll_with(
        &mut self,
        ended: Option<Error>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<(), Error>> {
        if let Some(error) = ended {
            ready!(self.poll_refused(cx));
            return Poll::Ready(Err(error));
        }
        *self = Entry::Begun;
        Poll::Ready(Ok(()))
    }

    /// Resolves when an operation whose context has ended may say so; the next one is then fresh.
    pub(crate) fn poll_refused(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if *self == Entry::Fresh {
            match poll_proceed(cx) {
                Poll::Ready(budget) => budget.made_progress(),
                Poll::Pending => {
                    *self = Entry::Yielded;
                    return Poll::Pending;
                }
            }
        }
        *self = Entry::Fresh;
        Poll::Ready(())
    }

    /// Notes whether the operation that was polled goes on, or the next one is a fresh one.
    pub(crate) fn note<T>(&mut self, polled: &Poll<T>) {
        *self = if polled.is_pending() { Entry::Begun } else { Entry::Fresh };
    }
}

/// Returns the context's end, if it has ended, at the price of a refusal.
pub(crate) async fn checked(ctx: &Context) -> Result<(), Error> {
    let mut entry = Entry::Fresh;
    poll_fn(|cx| entry.poll(ctx, cx)).await
}
