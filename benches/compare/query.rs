//! Queries: has the context ended, and why?

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Instant;

use tokio_ctx::{CancelScope, Context};
use tokio_util::sync::CancellationToken;

use crate::derive::rooted;
use crate::drive::{FAR, timed, two_threads};
use crate::row::{GO, NUMBER, Row, Run, TOKEN};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::from([1, 10, 1_000].map(is_done));
    rows.extend([1, 10, 1_000].map(is_done_waited_on));
    rows.extend([is_done_deadline(), is_done_by_two(), err_by_two(), err_ended()]);
    rows.extend([err_ended_by_two(), err_ended_with_cause_by_two()]);
    rows
}

fn is_done(depth: usize) -> Row {
    let chain = chain(depth);
    let ours = repeated((chain[depth - 1].clone(), chain), |(ctx, _)| ctx.is_done());
    let tokens = tokens(depth);
    let token = repeated((tokens[depth - 1].clone(), tokens), |(token, _)| token.is_cancelled());
    let row = Row::new(format!("is-done-{depth}"), format!("is_done, live, depth {depth}"), ours);
    let row = row.peer(TOKEN, token).at_most_ns(16.0);
    if depth == 1 { row.target(GO, 1.5) } else { row }
}

/// Like a query in a service's loop, while something else waits on the context.
fn is_done_waited_on(depth: usize) -> Row {
    let chain = chain(depth);
    let ctx = chain[depth - 1].clone();
    let wait = waiting(ctx.done_owned());
    let ours = repeated((ctx, chain, wait), |(ctx, ..)| ctx.is_done());
    let tokens = tokens(depth);
    let token = tokens[depth - 1].clone();
    let wait = waiting(token.clone().cancelled_owned());
    let token = repeated((token, tokens, wait), |(token, ..)| token.is_cancelled());
    let work = format!("is_done, live, waited on, depth {depth}");
    Row::new(format!("is-done-waited-on-{depth}"), work, ours).peer(TOKEN, token).target(TOKEN, 2.0)
}

fn waiting<F: Future + 'static>(wait: F) -> Pin<Box<F>> {
    let mut wait = Box::pin(wait);
    assert!(wait.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
    wait
}

/// Like [`chain`].
pub fn tokens(depth: usize) -> Vec<CancellationToken> {
    let mut tokens = vec![CancellationToken::new()];
    while tokens.len() < depth {
        tokens.push(tokens[tokens.len() - 1].child_token());
    }
    tokens
}

/// Returns the scopes from the root to the leaf.
pub fn chain(depth: usize) -> Vec<CancelScope> {
    let mut chain = vec![rooted()];
    while chain.len() < depth {
        chain.push(chain[chain.len() - 1].with_cancel());
    }
    chain
}

fn is_done_deadline() -> Row {
    let ours = repeated(Context::background().with_timeout(FAR), |ctx| ctx.is_done());
    let by_hand = (CancellationToken::new(), Instant::now() + FAR);
    let by_hand = repeated(by_hand, |(token, at)| token.is_cancelled() || Instant::now() >= *at);
    Row::new("is-done-deadline", "is_done, live, with a deadline", ours).peer(NUMBER, by_hand)
}

fn is_done_by_two() -> Row {
    let ours = repeated_by_two(rooted(), |ctx| ctx.is_done());
    Row::new("is-done-2-threads", "is_done, live, by 2 threads on one context", ours)
        .peer(TOKEN, token_by_two())
        .uncounted()
}

fn err_by_two() -> Row {
    let ours = repeated_by_two(rooted(), |ctx| ctx.err().is_some());
    Row::new("err-2-threads", "err, live, by 2 threads on one context", ours)
        .peer(TOKEN, token_by_two())
        .uncounted()
}

fn token_by_two() -> Run {
    repeated_by_two(CancellationToken::new(), CancellationToken::is_cancelled)
}

fn err_ended() -> Row {
    let ctx = rooted();
    ctx.cancel();
    let ours = repeated(ctx, |ctx| black_box(&ctx.err()).is_some());
    let token = repeated(canceled_token(), CancellationToken::is_cancelled);
    Row::new("err-ended", "err, ended", ours).peer(TOKEN, token).target(GO, 2.0)
}

fn canceled_token() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

fn err_ended_by_two() -> Row {
    let ctx = rooted();
    ctx.cancel();
    let work = "err, ended, by 2 threads on one context";
    err_of_ended_by_two("err-ended-2-threads", work, ctx).target(TOKEN, 10.0)
}

/// With a cause, the error is shared, and stored under a lock.
fn err_ended_with_cause_by_two() -> Row {
    let ctx = rooted();
    ctx.cancel_with("a cause");
    let work = "err, ended with a cause, by 2 threads on one context";
    err_of_ended_by_two("err-ended-cause-2-threads", work, ctx)
}

fn err_of_ended_by_two(id: &str, work: &str, ctx: CancelScope) -> Row {
    let ours = repeated_by_two(ctx, |ctx| black_box(&ctx.err()).is_some());
    let token = repeated_by_two(canceled_token(), CancellationToken::is_cancelled);
    Row::new(id, work, ours).peer(TOKEN, token).uncounted()
}

/// Sums up the answers, which is cheaper than storing each in memory.
fn repeated<T: 'static>(it: T, query: impl Fn(&T) -> bool + 'static) -> Run {
    Box::new(move |times| {
        let mut yes = 0;
        let took = timed(times, || yes += u64::from(query(black_box(&it))));
        black_box(yes);
        took
    })
}

fn repeated_by_two<T: Sync + 'static>(it: T, query: impl Fn(&T) -> bool + Sync + 'static) -> Run {
    two_threads(it, move |it| {
        black_box(query(black_box(it)));
    })
}
