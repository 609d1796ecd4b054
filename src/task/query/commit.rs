//! [`Commit`]: the step of a query that is not canceled once it is sent.
//!
//! One word holds how many commits are under way, whether there has been one, and whether canceling has begun. A commit begins only where
//! canceling has not, and canceling only where no commit is under way: each is one compare-and-swap from the state in
//! which the other is not, so that no cancel meets a commit. Canceling is never taken back.
//!
//! A commit that is dropped before it is answered stays counted: its answer may still come.

use std::fmt;
use std::future::Future;

use crate::context::Context;
use crate::context::refusal::checked;
use crate::error::Error;
use crate::sync::{AtomicU32, Ordering};

/// Whether canceling has begun.
const CANCELING: u32 = 1 << 31;
/// Whether there has been a commit.
const SENT: u32 = 1 << 30;
/// The bits that count.
const UNDER_WAY: u32 = SENT - 1;

/// Sends what must not be canceled once it is sent: a commit. Handed to the function of
/// [`Context::transact`](crate::Context::transact), which shows it in use.
///
/// It cannot leave that function: a commit that another task sends would not be waited for.
pub struct Commit {
    ctx: Context,
    state: AtomicU32,
}

impl Commit {
    pub(super) fn new(ctx: Context) -> Commit {
        Commit { ctx, state: AtomicU32::new(0) }
    }

    /// Runs a commit, unless the context has ended. While it is under way, the query is not canceled.
    ///
    /// A commit that is canceled half-way may have happened or not. So its answer is waited for instead, for the
    /// connection's [`grace`](super::Connection::grace) at most; without one,
    /// [`Stopped::commit_sent`](super::Stopped::commit_sent) says that it may have happened. The same holds for
    /// every statement that does its work when it is sent, and must not be left in doubt.
    ///
    /// Do not drop it before it resolves: the connection would be discarded.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Context::err), if it ended first: the commit has then not been sent, and is dropped.
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
    ///     transaction.execute("UPDATE orders SET paid = true").await?; // This can be canceled,
    ///     commit.send(transaction.commit()).await? // and this not, once it is sent.
    /// }
    /// ```
    pub async fn send<F: Future>(&self, commit: F) -> Result<F::Output, Error> {
        checked(&self.ctx).await?;
        if !self.begin() {
            // Canceling has begun, which is after the end.
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

    /// Whether a commit has been sent and not answered.
    pub(super) fn is_under_way(&self) -> bool {
        self.state.load(Ordering::Acquire) & UNDER_WAY > 0
    }

    /// Whether a commit has been sent, answered or not.
    pub(super) fn was_sent(&self) -> bool {
        self.state.load(Ordering::Acquire) & SENT > 0
    }

    /// Refuses commits from now on, unless one is under way; whether they are refused.
    pub(super) fn refuse(&self) -> bool {
        let refused = |state| (state & UNDER_WAY == 0).then_some(state | CANCELING);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, refused).is_ok()
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("under_way", &self.is_under_way()).finish_non_exhaustive()
    }
}
