//! Refusals: the cooperative budget of an operation whose context has ended before the first poll.
//!
//! Such an operation is ready at its first poll. A loop that retries on every error would therefore spin inside
//! a single `poll`: the timeout around it would never act, and on a single thread nothing else would run. So a
//! refusal consumes a unit of Tokio's cooperative budget, like a read that finds data, and yields if none is
//! left.
//!
//! It yields only once. If other code in the same task uses up the budget before every poll, the next poll
//! returns the error nevertheless. An end that is seen after the operation has begun consumes no budget.

use std::future::poll_fn;
use std::task::{Context as TaskContext, Poll, ready};

use tokio::task::coop::poll_proceed;

use super::context::Context;
use crate::error::Error;

/// The progress of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Not yet polled.
    #[default]
    Fresh,
    /// Refused, and has yielded once.
    Yielded,
    /// Begun.
    Begun,
}

impl Entry {
    /// Begins the operation unless the context has ended. Does not check the context once the operation has
    /// begun.
    #[inline]
    pub(crate) fn poll(&mut self, ctx: &Context, cx: &mut TaskContext<'_>) -> Poll<Result<(), Error>> {
        if *self == Entry::Begun { Poll::Ready(Ok(())) } else { self.poll_with(ctx.err(), cx) }
    }

    /// Like [`poll`](Self::poll), with the result of querying the context, if it has ended, in `ended`.
    #[inline]
    pub(crate) fn poll_with(
        &mut self,
        ended: Option<Error>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<(), Error>> {
        if let Some(error) = ended {
            ready!(self.poll_refused(cx));
            #[cfg(feature = "watch")]
            crate::registry::refused(&error);
            return Poll::Ready(Err(error));
        }
        *self = Entry::Begun;
        Poll::Ready(Ok(()))
    }

    /// Resolves when a refused operation may return its error, and resets the state for the next operation.
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

    /// Records whether the operation that was polled is still pending.
    pub(crate) fn record<T>(&mut self, polled: &Poll<T>) {
        *self = if polled.is_pending() { Entry::Begun } else { Entry::Fresh };
    }
}

/// Returns the context's error if it has ended, and consumes budget for it.
pub(crate) async fn checked(ctx: &Context) -> Result<(), Error> {
    let mut entry = Entry::Fresh;
    poll_fn(|cx| entry.poll(ctx, cx)).await
}
