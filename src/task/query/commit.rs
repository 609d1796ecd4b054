//! [`Commit`]: the step of a query that is not canceled after it was sent.
//!
//! One atomic word holds the number of commits in progress, whether there has been one, and whether canceling has begun.
//! A commit begins only if canceling has not begun, and canceling begins only if no commit is in progress. Each of the two
//! is one compare-and-swap, so that a cancel never meets a commit. Canceling is final.
//!
//! A commit that is dropped before its response remains counted, because the response may still come.

use std::fmt;
use std::future::Future;

use crate::context::Context;
use crate::context::refusal::checked;
use crate::error::Error;
use crate::sync::{AtomicU32, Ordering};

/// Set when canceling has begun.
const CANCELING: u32 = 1 << 31;
/// Set when a commit has been sent.
const SENT: u32 = 1 << 30;
/// The number of commits in progress.
const IN_PROGRESS: u32 = SENT - 1;

/// Sends a commit, which must not be canceled after it was sent. It is passed to the function of
/// [`Context::transact`](crate::Context::transact), which has an example.
///
/// It cannot leave that function, because a commit that is sent by another task would not be waited for.
pub struct Commit {
    ctx: Context,
    state: AtomicU32,
}

impl Commit {
    pub(super) fn new(ctx: Context) -> Commit {
        Commit { ctx, state: AtomicU32::new(0) }
    }

    /// Runs a commit unless the context has ended. The query is not canceled while the commit is in progress.
    ///
    /// If a commit were canceled, it would be unknown whether it took effect. Instead its response is awaited, for at
    /// most the [`grace`](super::Connection::grace) period of the connection. Without a response,
    /// [`Stopped::commit_sent`](super::Stopped::commit_sent) reports that it may have taken effect. Use this method for
    /// other statements that must not be left in doubt as well.
    ///
    /// If the future is dropped before it resolves, the connection is discarded.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Context::err) if it ended first. The commit is then dropped without being sent.
    ///
    /// ```
    /// use tokio_ctx::BoxError;
    /// use tokio_ctx::query::Commit;
    ///
    /// # struct Transaction;
    /// # impl Transaction {
    /// #     async fn execute(&self, _: &str) -> Result<u64, BoxError> { Ok(1) }
    /// #     async fn commit(self) -> Result<(), BoxError> { Ok(()) }
    /// # }
    /// async fn finish(transaction: Transaction, commit: &Commit) -> Result<(), BoxError> {
    ///     transaction.execute("UPDATE orders SET paid = true").await?; // Can be canceled.
    ///     commit.send(transaction.commit()).await? // Cannot be canceled after it was sent.
    /// }
    /// ```
    pub async fn send<F: Future>(&self, commit: F) -> Result<F::Output, Error> {
        checked(&self.ctx).await?;
        if !self.begin() {
            // Canceling begins only after the end.
            return Err(self.ctx.done().await);
        }
        let answer = commit.await;
        self.state.fetch_sub(1, Ordering::AcqRel);
        Ok(answer)
    }

    fn begin(&self) -> bool {
        let more = |state| (state & CANCELING == 0).then_some((state + 1) | SENT);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Returns whether a commit has been sent and has no response.
    pub(super) fn is_in_progress(&self) -> bool {
        self.state.load(Ordering::Acquire) & IN_PROGRESS > 0
    }

    /// Returns whether a commit has been sent, with or without a response.
    pub(super) fn was_sent(&self) -> bool {
        self.state.load(Ordering::Acquire) & SENT > 0
    }

    /// Refuses commits from now on, unless one is in progress. Returns whether they are refused.
    pub(super) fn refuse(&self) -> bool {
        let refused = |state| (state & IN_PROGRESS == 0).then_some(state | CANCELING);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, refused).is_ok()
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("in_progress", &self.is_in_progress()).finish_non_exhaustive()
    }
}
