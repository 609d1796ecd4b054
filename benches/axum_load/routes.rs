//! The same handler four times: without a context; with a request's contexts; with these, bounding its work; and
//! with tokens and timeouts that bound it by hand.

use std::hint::black_box;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::select;
use tokio::time::{Instant, timeout_at};
use tokio_ctx::Context;
use tokio_util::sync::CancellationToken;

/// The time limits of a request, and of its one step.
const REQUEST: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(50);

#[derive(Serialize)]
struct Answer {
    user: u64,
    team: u64,
    items: [&'static str; 3],
}

const TOO_LATE: Answer = Answer { user: 0, team: 0, items: ["too", "late", ""] };

pub fn all(server: Context, token: CancellationToken) -> Router {
    Router::new()
        .route("/without/{user}", get(without))
        .route("/with/{user}", get(with).with_state(server.clone()))
        .route("/bounded/{user}", get(bounded).with_state(server))
        .route("/by-hand/{user}", get(by_hand).with_state(token))
}

/// The work of the handler. It awaits once, like a query to a database.
async fn work(user: u64, team: u64) -> Answer {
    tokio::task::yield_now().await;
    Answer { user, team, items: black_box(["tea", "bread", "salt"]) }
}

async fn without(Path(user): Path<u64>) -> Json<Answer> {
    Json(work(user, 2).await)
}

struct User(u64);
struct Team(u64);

async fn with(State(server): State<Context>, Path(user): Path<u64>) -> Json<Answer> {
    let request = server.with_cancel();
    let ctx = request.with_timeout(REQUEST).with_value(User(user)).with_value(Team(2));
    let step = ctx.with_timeout(STEP);
    let user = step.value::<User>().map_or(0, |user| user.0);
    let team = step.value::<Team>().map_or(0, |team| team.0);
    match step.check() {
        Ok(()) => Json(work(user, team).await),
        Err(_) => Json(TOO_LATE),
    }
}

async fn bounded(State(server): State<Context>, Path(user): Path<u64>) -> Json<Answer> {
    let request = server.with_cancel();
    let ctx = request.with_timeout(REQUEST).with_value(User(user)).with_value(Team(2));
    let step = ctx.with_timeout(STEP);
    let user = step.value::<User>().map_or(0, |user| user.0);
    let team = step.value::<Team>().map_or(0, |team| team.0);
    Json(step.run(work(user, team)).await.unwrap_or(TOO_LATE))
}

/// Without values, which would have to be parameters.
async fn by_hand(State(server): State<CancellationToken>, Path(user): Path<u64>) -> Json<Answer> {
    let request = server.child_token().drop_guard();
    let until = Instant::now() + REQUEST;
    let step = request.token().child_token().drop_guard();
    let until = until.min(Instant::now() + STEP);
    select! {
        () = step.token().cancelled() => Json(TOO_LATE),
        answer = timeout_at(until, work(user, 2)) => Json(answer.unwrap_or(TOO_LATE)),
    }
}
