//! Requests in a snapshot: their names, how they end, and contexts that are held afterwards.

mod common;
#[path = "common/snapshot.rs"]
mod snapshot;

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::{SetOnDrop, poll_once};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use snapshot::{entry, is_gone, snapshot};
use tokio::time::advance;
use tokio_ctx::watch::{self, How, Kind, State};
use tokio_ctx::wire::{Inbound, ServerLayer};
use tokio_ctx::{Context, Shutdown};
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://service.example{path}?token=secret")).body(Empty::new()).unwrap()
}

type Answered = Result<Response<Full<Bytes>>, Infallible>;

#[tokio::test(start_paused = true)]
async fn a_request_is_listed_by_method_and_path_until_it_is_answered() {
    watch::install();
    let service = Context::background().with_cancel();
    let layer = ServerLayer::new(service.clone(), Inbound::new().max_budget(30 * SECOND));
    let line = line!() - 1;
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| -> Answered {
        tokio::time::sleep(SECOND).await;
        Ok(Response::new(Full::from("all is well")))
    }));
    let mut answer = pin!(handler.oneshot(request("/report/7")));
    assert!(poll_once(answer.as_mut()).is_pending());
    let seen = snapshot();
    let here = entry(&seen, "GET /report/7").unwrap();
    assert_eq!((here.kind, here.line.location().line(), here.is_work), (Kind::Request, line, true));
    assert_eq!((here.left, here.budget), (Some(30 * SECOND), Some(30 * SECOND)));
    assert!(here.poll.is_some_and(|poll| !poll.inside) && here.end.is_none());
    assert!(seen.entry(here.parent.unwrap()).is_some());

    let body = answer.await.unwrap().into_body();
    assert!(entry(&snapshot(), "GET /report/7").unwrap().is_work, "its body has not been sent");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "all is well");
    is_gone("GET /report/7");
    assert!(!seen.to_json().contains("secret"), "a query is not shown");
}

#[tokio::test(start_paused = true)]
async fn a_context_that_is_held_after_the_response_is_listed() {
    watch::install();
    let kept: Arc<Mutex<Vec<Context>>> = Arc::default();
    let keep = kept.clone();
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let handler = layer.layer(service_fn(move |_: Request<Empty<Bytes>>| {
        keep.lock().unwrap().push(Context::current());
        async { Answered::Ok(Response::new(Full::from("x"))) }
    }));
    let answer = handler.oneshot(request("/leak")).await.unwrap();
    drop(answer.into_body().collect().await.unwrap());
    advance(2 * SECOND).await;
    let seen = snapshot();
    let here = seen.ended.iter().find(|ended| ended.name.as_deref() == Some("GET /leak")).unwrap();
    assert_eq!((here.kind, here.state, here.end.how), (Kind::Request, State::Held, How::Finished));
    assert!(!entry(&seen, "GET /leak").unwrap().is_work);
    kept.lock().unwrap().clear();
    is_gone("GET /leak");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_answered_is_counted_as_finished() {
    watch::install();
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let line = line!() - 1;
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| {
        Answered::Ok(Response::new(Full::from("x")))
    }));
    let answer = handler.oneshot(request("/finished")).await.unwrap();
    drop(answer.into_body().collect().await.unwrap());
    let seen = snapshot();
    let is_it = |line_of: u32, how| line_of == line && how == How::Finished;
    assert!(seen.lately.iter().any(|lately| is_it(lately.line.location().line(), lately.how)));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_outlives_a_dropped_request_is_listed_below_it() {
    watch::install();
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| -> Answered {
        Context::current().spawn(pending::<()>());
        pending().await
    }));
    let spawned = line!() - 3;
    let mut answer = Box::pin(handler.oneshot(request("/left")));
    assert!(poll_once(answer.as_mut()).is_pending());
    drop(answer);
    let seen = snapshot();
    let here = seen.ended.iter().find(|ended| ended.line.location().line() == spawned).unwrap();
    assert_eq!((here.kind, here.end.how), (Kind::Task, How::RequestDropped));
    assert_eq!(here.end.cause_type, Some("RequestEnd"));
    // The task is below the request, which has ended and is held by it.
    let task = seen.entry(here.first).unwrap();
    let request = seen.entry(task.parent.unwrap()).unwrap();
    assert_eq!((request.name.as_deref(), request.is_work), (Some("GET /left"), false));
    let layer_line = request.line;
    assert!(
        seen.lately.iter().any(|lately| lately.line == layer_line && lately.how == How::RequestDropped)
    );
}

#[tokio::test(start_paused = true)]
async fn refused_requests_and_deadlines_are_counted_separately() {
    watch::install();
    let service = Context::background().with_cancel();
    let layer = ServerLayer::new(service.clone(), Inbound::new().max_budget(SECOND));
    let line = line!() - 1;
    let handler =
        layer.layer(service_fn(async |_: Request<Empty<Bytes>>| -> Answered { pending().await }));
    let answer = handler.clone().oneshot(request("/slow")).await.unwrap();
    assert_eq!(answer.status(), 504);
    drop(answer);
    service.cancel();
    let canceled = service.err().unwrap().origin().made_at().line();
    assert_eq!(handler.oneshot(request("/slow")).await.unwrap().status(), 503);
    let seen = snapshot();
    let count = |line: u32, how: How| {
        let is_it = |lately: &&watch::Lately| lately.line.location().line() == line && lately.how == how;
        seen.lately.iter().filter(is_it).map(|lately| lately.count).sum::<u64>()
    };
    assert_eq!((count(line, How::Deadline), count(canceled, How::Refused)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_exceeds_its_deadline_is_late() {
    watch::install();
    let layer = ServerLayer::new(Context::background(), Inbound::new().max_budget(SECOND));
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| -> Answered {
        // The deadline passes within one poll.
        advance(5 * SECOND).await;
        Ok(Response::new(Full::from("too late")))
    }));
    let mut answer = Box::pin(handler.oneshot(request("/blocks")));
    let _ = poll_once(answer.as_mut());
    drop(answer);
    let seen = snapshot();
    let late = seen.late.iter().flat_map(|class| &class.last);
    let late: Vec<_> = late.filter(|late| late.name.as_deref() == Some("GET /blocks")).collect();
    assert_eq!(late.len(), 1, "{seen}");
    assert_eq!((late[0].kind, late[0].how), (Kind::Request, How::Deadline));
}

/// A snapshot holds contexts for a short time, so some requests are ended, and others only counted.
#[test]
fn every_request_is_counted_once_while_snapshots_are_taken() {
    const THREADS: u64 = 4;
    const REQUESTS: u64 = 500;

    watch::install();
    let layer = ServerLayer::new(Context::background(), Inbound::new().max_budget(600 * SECOND));
    let line = line!() - 1;
    let are_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| serve(&layer, REQUESTS))).collect();
        scope.spawn(|| {
            while !are_done.load(Ordering::Relaxed) {
                let seen = snapshot();
                let here = seen.entries.iter().filter(|entry| entry.line.location().line() == line);
                assert!(here.count() as u64 <= 2 * THREADS);
            }
        });
        let _done = SetOnDrop(&are_done);
        serving.into_iter().for_each(|serving| serving.join().unwrap());
    });
    is_gone("GET /crowd");
    let seen = snapshot();
    let counted = seen.lately.iter().filter(|lately| lately.line.location().line() == line);
    let counted: Vec<_> = counted.map(|lately| (lately.how, lately.total)).collect();
    assert_eq!(counted, [(How::Finished, THREADS * REQUESTS)]);
}

#[tokio::main(flavor = "current_thread")]
async fn serve(layer: &ServerLayer, requests: u64) {
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| {
        tokio::task::yield_now().await;
        Answered::Ok(Response::new(Full::from("x")))
    }));
    for _ in 0..requests {
        let answer = handler.clone().oneshot(request("/crowd")).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_shutdown_is_listed_once_and_agrees_with_the_report() {
    watch::install();
    let shutdown = Shutdown::new(&Context::background()).grace(SECOND).cleanup(SECOND);
    let http = shutdown.named("http");
    let layer = ServerLayer::with_shutdown(&http, Inbound::new());
    let handler = layer.layer(service_fn(async |_: Request<Empty<Bytes>>| {
        let frames = futures::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    }));
    let answer = handler.oneshot(request("/stream")).await.unwrap();
    let seen = snapshot();
    let line =
        seen.entries.iter().find(|entry| entry.name.as_deref() == Some("GET /stream")).unwrap().line;
    assert_eq!(seen.entries.iter().filter(|entry| entry.line == line).count(), 1);
    let state =
        seen.shutdowns.iter().find(|state| state.waits_for.iter().any(|waits| waits.line == line));
    let waits_for = &state.unwrap().waits_for[0];
    assert_eq!((waits_for.name.as_deref(), waits_for.count), (Some("http/GET /stream"), 1));
    drop(answer);
    shutdown.begin("over");
    assert!(shutdown.wait().await.is_clean());
}

#[cfg(all(unix, feature = "process"))]
#[tokio::test]
async fn a_child_process_is_listed_while_it_runs() {
    use tokio::process::Command;
    use tokio_ctx::process::CommandExt;

    watch::install();
    let ctx = Context::background().with_cancel();
    let mut child = Command::new("sleep").arg("600").bounded_by(&ctx).spawn().unwrap();
    let line = line!() - 1;
    let name = format!("sleep (process {})", child.id().unwrap());
    let seen = snapshot();
    let here = entry(&seen, &name).unwrap();
    assert_eq!((here.kind, here.line.location().line(), here.is_work), (Kind::Process, line, true));
    ctx.cancel();
    let here = snapshot().ended.into_iter().find(|ended| ended.name.as_deref() == Some(&*name));
    assert_eq!(here.unwrap().kind, Kind::Process);
    assert!(child.wait().await.is_err());
    drop(child);
    assert!(entry(&snapshot(), &name).is_none());
}
