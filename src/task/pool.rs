//! `for_each_task`: a task for each item of a stream, in a [`Group`] with a limit.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::Location;

use futures_core::stream::Stream;
use tokio::task::coop::consume_budget;

use super::group::Group;
use crate::context::{Checked, Context};
use crate::error::Error;

#[track_caller]
pub(crate) fn for_each_task<S, F, Fut, E>(
    stream: S,
    ctx: &Context,
    n: usize,
    mut work: F,
) -> impl Future<Output = Result<(), E>>
where
    S: Stream,
    F: FnMut(Context, S::Item) -> Fut,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: From<Error> + fmt::Display + Send + 'static,
{
    let spawned_at = Location::caller();
    let (group, ctx) = Group::new(ctx);
    let mut group = group.limit(n);
    async move {
        let mut items = Box::pin(Checked::new(stream, &ctx));
        while group.wait_for_slot().await {
            let next = poll_fn(|cx| {
                // Finished tasks are freed while waiting for the next item.
                group.poll_forget(cx);
                items.as_mut().poll_next(cx)
            });
            match next.await {
                None => break,
                Some(Err(_ended)) => group.mark_incomplete(),
                Some(Ok(item)) => group.spawn_in_slot(work(ctx.clone(), item), spawned_at),
            }
            // Yields from time to time, so that a source which is always ready does not starve the tasks.
            consume_budget().await;
        }
        // Drops the source before waiting for the last tasks.
        drop(items);
        group.join().await.map(drop)
    }
}
