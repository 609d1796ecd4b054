//! The server's layer, in the process and over real connections: what ends a request's context, when, and what the
//! client receives.

mod common;
mod wire;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_ctx::wire::{
    Budget, ClientLayer, DeadlineHeader, Inbound, Outbound, RequestEnd, ServerBody, ServerLayer,
};
use tokio_ctx::{BoxError, Context, Error};
use tower::{Layer, ServiceExt, service_fn};

use common::{LONG, Wakes, ended, ms, poll};
use wire::{ChannelBody, Version, channel_body, eventually, serve};

/// Calls a handler once, under a layer.
async fn call<B, F>(
    layer: ServerLayer,
    request: Request<()>,
    handler: impl Fn(Request<()>) -> F,
) -> Response<ServerBody<B>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    F: Future<Output = Response<B>>,
{
    let service = service_fn(|request| handler(request).map(Ok::<_, Infallible>));
    let Ok(response) = layer.layer(service).oneshot(request).await;
    response
}

fn layer(inbound: Inbound) -> ServerLayer {
    ServerLayer::new(Context::background(), inbound)
}

fn request() -> Request<()> {
    Request::new(())
}

fn grpc(timeout: &'static str) -> Request<()> {
    Request::builder()
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout)
        .body(())
        .unwrap()
}

/// Stores the context of a handler for the test.
#[derive(Clone, Default)]
struct RecordedContext(Arc<Mutex<Option<Context>>>);

impl RecordedContext {
    fn record(&self, request: &Request<()>) {
        let ctx = request.extensions().get::<Context>().expect("the layer put it there");
        *self.0.lock().unwrap() = Some(ctx.clone());
    }

    fn ctx(&self) -> Context {
        self.0.lock().unwrap().clone().expect("the handler ran")
    }

    /// Returns the cause of the request's context.
    fn end(&self) -> RequestEnd {
        *ended(&self.ctx()).cause_as::<RequestEnd>().expect("an end of the request itself")
    }
}

#[tokio::test(start_paused = true)]
async fn the_handler_has_the_context_as_extension_and_as_current() {
    let seen = RecordedContext::default();
    let response = call(layer(Inbound::new()), grpc("300m"), async |request| {
        seen.record(&request);
        let current = Context::current();
        assert_eq!(current.deadline(), seen.ctx().deadline());
        let spawned = current.spawn(async { Context::current().deadline() }).await.unwrap();
        assert_eq!(spawned, current.deadline());
        Response::new(Full::from("done"))
    });
    let response = response.await;
    assert!(!seen.ctx().is_done(), "the body is still to come");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    assert_eq!(seen.end(), RequestEnd::Answered);
}

#[tokio::test(start_paused = true)]
async fn the_service_is_called_in_the_context() {
    let called = Arc::new(Mutex::new(None));
    let service = service_fn(|_: Request<()>| {
        *called.lock().unwrap() = Context::current().deadline();
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    layer(Inbound::new().max_budget(ms(100))).layer(service).oneshot(request()).await.unwrap();
    assert!(called.lock().unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_ends_slightly_before_its_timeout() {
    for (timeout, left) in [("300m", Duration::from_millis(298)), ("8m", ms(7)), ("0n", Duration::ZERO)]
    {
        let start = Instant::now();
        let deadline = Mutex::new(None);
        call(layer(Inbound::new()), grpc(timeout), async |_| -> Response<Empty<Bytes>> {
            *deadline.lock().unwrap() = Context::current().deadline();
            pending().await
        })
        .await;
        let deadline = deadline.into_inner().unwrap();
        assert_eq!(deadline.map(|deadline| deadline - start).unwrap_or_default(), left, "{timeout}");
    }
    // Neither the server's own limit nor the timeout of a plain request is shortened.
    for (request, inbound) in [
        (grpc("1S"), Inbound::new().max_budget(ms(300))),
        (Request::builder().header("grpc-timeout", "300m").body(()).unwrap(), Inbound::new()),
    ] {
        let start = Instant::now();
        call(layer(inbound), request, async |_| -> Response<Empty<Bytes>> { pending().await }).await;
        assert_eq!(start.elapsed(), ms(300));
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_the_response_is_504_and_the_handler_is_dropped() {
    let seen = RecordedContext::default();
    let drops = common::Drops::default();
    let response = call(layer(Inbound::new().max_budget(ms(50))), request(), async |request| {
        seen.record(&request);
        let _counted = drops.counted();
        pending::<Response<Full<Bytes>>>().await
    })
    .await;
    assert_eq!(drops.count(), 1);
    assert_eq!(response.status(), 504);
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "deadline exceeded\n");
    let end = ended(&seen.ctx());
    assert!(end.is_deadline_exceeded());
    assert_eq!(end.cause_as::<Budget>(), Some(&Budget::Maximum));
    assert_eq!(end.origin().made_at().file(), file!(), "where the layer was made");
}

#[tokio::test(start_paused = true)]
async fn the_response_to_a_late_grpc_call_has_only_trailers() {
    for (content_type, answered) in [
        ("application/grpc", "application/grpc"),
        ("application/grpc+proto", "application/grpc"),
        ("application/grpc-web+proto", "application/grpc-web+proto"),
        ("application/grpc-web-text", "application/grpc-web-text+proto"),
    ] {
        let mut request = grpc("50m");
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        let response =
            call(layer(Inbound::new()), request, async |_| -> Response<Full<Bytes>> { pending().await })
                .await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], answered);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "deadline exceeded");
        assert!(response.body().is_end_stream());
        assert_eq!(response.headers().len(), 3, "and nothing else");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_service_ends_its_requests() {
    for (request, status, grpc_status) in [(request(), 503, None), (grpc("1H"), 200, Some("14"))] {
        let service = Context::background().with_cancel();
        let seen = RecordedContext::default();
        let answer = call(ServerLayer::new(service.clone(), Inbound::new()), request, async |request| {
            seen.record(&request);
            pending::<Response<Full<Bytes>>>().await
        });
        let mut answer = pin!(answer);
        assert!(poll(answer.as_mut(), Waker::noop()).is_pending());
        service.cancel_with("secret maintenance");
        let response = answer.await;
        assert_eq!(response.status(), status);
        assert_eq!(
            response.headers().get("grpc-status").map(|status| status.to_str().unwrap()),
            grpc_status
        );
        let response = format!(
            "{:?}",
            (response.headers().clone(), response.into_body().collect().await.unwrap().to_bytes())
        );
        assert!(!response.contains("secret") && !response.contains(".rs"), "{response}");
        assert_eq!(ended(&seen.ctx()).cause().unwrap().to_string(), "secret maintenance");
    }
}

#[tokio::test]
async fn a_request_without_remaining_time_is_not_served() {
    let service = Context::background().with_cancel();
    service.cancel();
    for (layer, request, status) in [
        (layer(Inbound::new()), grpc("0m"), 200),
        (layer(Inbound::new().max_budget(Duration::ZERO)), request(), 504),
        (ServerLayer::new(service.clone(), Inbound::new()), request(), 503),
    ] {
        let response =
            call(layer, request, async |_| -> Response<Full<Bytes>> { unreachable!("not served") })
                .await;
        assert_eq!(response.status(), status);
    }
}

#[tokio::test]
async fn a_strict_server_refuses_a_bad_deadline() {
    let strict = || layer(Inbound::new().strict());
    let unserved = async |_| -> Response<Full<Bytes>> { unreachable!("not served") };
    let plain = Request::builder().header("connect-timeout-ms", "-1").body(()).unwrap();
    let response = call(strict(), plain, unserved).await;
    assert_eq!(response.status(), 400);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "bad header connect-timeout-ms: expected 1 to 10 digits, in milliseconds\n");

    let response = call(strict(), grpc("soon"), unserved).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"3".parse().unwrap()),
        "its clients look at the HTTP status first"
    );

    let lenient = layer(Inbound::new().default_budget(ms(200)));
    let seen = RecordedContext::default();
    let response = call(lenient, grpc("soon"), async |request| {
        seen.record(&request);
        assert!(Context::current().remaining().is_some());
        Response::new(Empty::<Bytes>::new())
    });
    assert_eq!(response.await.status(), 200);
}

#[tokio::test]
async fn a_dropped_handler_ends_with_dropped() {
    let seen = RecordedContext::default();
    let at_drop = Arc::new(Mutex::new(None));
    struct RecordsError(Arc<Mutex<Option<Option<Error>>>>);
    impl Drop for RecordsError {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(Context::current().err());
        }
    }
    {
        let on_drop = at_drop.clone();
        let answer = call(layer(Inbound::new()), request(), |request| {
            seen.record(&request);
            let on_drop = RecordsError(on_drop.clone());
            async move {
                let _on_drop = on_drop;
                pending::<Response<Full<Bytes>>>().await
            }
        });
        let mut answer = pin!(answer);
        assert!(poll(answer.as_mut(), Waker::noop()).is_pending());
        assert!(!seen.ctx().is_done());
    }
    assert_eq!(seen.end(), RequestEnd::Dropped);
    let error = ended(&seen.ctx());
    assert!(error.is_canceled());
    assert_eq!(error.origin().canceled_at().unwrap().file(), file!(), "no line of the layer's own");
    let at_drop =
        at_drop.lock().unwrap().clone().expect("dropped").expect("in the context, which has ended");
    common::assert_same(&at_drop, &error);
}

#[tokio::test]
async fn failures_and_panics_of_a_handler_are_the_cause() {
    let seen = RecordedContext::default();
    let failing = service_fn(|request: Request<()>| {
        seen.record(&request);
        async { Err::<Response<Full<Bytes>>, _>("no") }
    });
    assert!(layer(Inbound::new()).layer(failing).oneshot(request()).await.is_err());
    assert_eq!(seen.end(), RequestEnd::Failed);

    let panicking = call(layer(Inbound::new()), request(), async |request| -> Response<Full<Bytes>> {
        seen.record(&request);
        panic!("on purpose")
    });
    assert!(AssertUnwindSafe(panicking).catch_unwind().await.is_err());
    assert_eq!(seen.end(), RequestEnd::Panicked);
}

#[tokio::test(start_paused = true)]
async fn a_nested_layer_has_the_earlier_deadline_and_ends_with_both() {
    for ends in [0, 1] {
        let services = [(); 2].map(|()| Context::background().with_cancel());
        let inner = ServerLayer::new(services[0].clone(), Inbound::new().max_budget(ms(200)));
        let outer = ServerLayer::new(services[1].clone(), Inbound::new().max_budget(ms(100)));
        let seen = RecordedContext::default();
        let service = service_fn(|request: Request<()>| {
            seen.record(&request);
            pending::<Result<Response<Full<Bytes>>, Infallible>>()
        });
        let mut answer = pin!(outer.layer(inner.layer(service)).oneshot(request()));
        assert!(poll(answer.as_mut(), Waker::noop()).is_pending());
        assert_eq!(seen.ctx().remaining(), Some(ms(100)));
        services[ends].cancel();
        assert!(seen.ctx().is_done());
        assert_eq!(answer.await.unwrap().status(), 503);
    }
}

// The body.

type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// Calls a handler that streams what is sent to it, and stores its context in `seen`.
async fn streaming(
    layer: ServerLayer,
    request: Request<()>,
    seen: &RecordedContext,
) -> (Sender, ServerBody<ChannelBody>) {
    streaming_as("text/plain", layer, request, seen).await
}

async fn streaming_as(
    content_type: &str,
    layer: ServerLayer,
    request: Request<()>,
    seen: &RecordedContext,
) -> (Sender, ServerBody<ChannelBody>) {
    let (send, body) = channel_body();
    let body = Mutex::new(Some(body));
    let response = call(layer, request, async |request| {
        seen.record(&request);
        let body = body.lock().unwrap().take().unwrap();
        Response::builder().header("content-type", content_type).body(body).unwrap()
    })
    .await;
    (send, response.into_body())
}

#[tokio::test]
async fn the_context_lives_until_the_trailers_and_no_longer() {
    let seen = RecordedContext::default();
    let (send, mut body) = streaming(layer(Inbound::new()), request(), &seen).await;
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(!seen.ctx().is_done());
    send.send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert_eq!(seen.end(), RequestEnd::Answered);
}

#[tokio::test]
async fn a_body_that_ends_fails_or_is_dropped_ends_the_context() {
    let seen = RecordedContext::default();
    let (send, mut body) = streaming(layer(Inbound::new()), request(), &seen).await;
    drop(send);
    assert!(body.frame().await.is_none());
    assert_eq!(seen.end(), RequestEnd::Answered);

    let (send, mut body) = streaming(layer(Inbound::new()), request(), &seen).await;
    send.send(Err("disk gone".into())).unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "disk gone");
    assert_eq!(seen.end(), RequestEnd::Failed);

    let (_send, body) = streaming(layer(Inbound::new()), request(), &seen).await;
    drop(body);
    assert_eq!(seen.end(), RequestEnd::Dropped);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_during_the_body_aborts_it() {
    let seen = RecordedContext::default();
    let (send, mut body) = streaming(layer(Inbound::new().max_budget(ms(50))), request(), &seen).await;
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(error.downcast_ref::<Error>().unwrap().is_deadline_exceeded());
    assert!(body.frame().await.is_none());
    assert!(send.is_closed(), "the body was dropped");

    // The request is gRPC and the response is not. With trailers, the response would look complete.
    let (send, mut body) = streaming(layer(Inbound::new()), grpc("50m"), &seen).await;
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.frame().await.unwrap().is_err());

    let (send, mut body) =
        streaming_as("application/grpc", layer(Inbound::new()), grpc("50m"), &seen).await;
    send.send(Ok(Frame::data("a".into()))).unwrap();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!((&trailers["grpc-status"], trailers.len()), (&"4".parse().unwrap(), 2));
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// A body that has a frame at every poll, and checks the current context.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        assert!(Context::current().deadline().is_some(), "it is current in the body");
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"again")))))
    }
}

#[tokio::test]
async fn an_endless_body_ends_with_the_context() {
    let start = Instant::now();
    let service = layer(Inbound::new().max_budget(ms(20)));
    let mut body = call(service, request(), async |_| Response::new(Endless)).await.into_body();
    while let Some(Ok(_)) = body.frame().await {
        assert!(start.elapsed() < common::HANG);
    }
    assert!(start.elapsed() >= ms(20));
}

#[tokio::test(start_paused = true)]
async fn a_complete_response_is_delivered_after_the_deadline() {
    let body = call(layer(Inbound::new().max_budget(ms(50))), request(), async |_| {
        Response::new(Full::<Bytes>::from("done"))
    });
    let body = body.await.into_body();
    tokio::time::advance(ms(60)).await;
    assert_eq!(body.collect().await.unwrap().to_bytes(), "done");
}

#[tokio::test]
async fn size_hints_are_unchanged() {
    let full =
        call(layer(Inbound::new()), request(), async |_| Response::new(Full::<Bytes>::from("four")))
            .await;
    assert_eq!(full.body().size_hint().exact(), Some(4));
    assert!(!full.body().is_end_stream());
    let empty =
        call(layer(Inbound::new()), request(), async |_| Response::new(Empty::<Bytes>::new())).await;
    assert_eq!(empty.body().size_hint().exact(), Some(0));
    assert!(empty.body().is_end_stream());
}

/// A body that has ended from the start, and does not report a size of zero.
struct EmptyBody;

impl Body for EmptyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn an_empty_body_ends_the_context_at_once() {
    let seen = RecordedContext::default();
    let response = call(layer(Inbound::new()), request(), async |request| {
        seen.record(&request);
        Response::new(EmptyBody)
    })
    .await;
    assert_eq!(seen.end(), RequestEnd::Answered);
    drop(response);
}

/// A body with a known size that reports its end only when polled.
struct SizedBody(u64);

impl Body for SizedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0 {
            0 => Poll::Ready(None),
            _ => {
                self.0 -= 1;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_body_that_was_sent_completely_has_not_lost_its_client() {
    let seen = RecordedContext::default();
    let mut whole = call(layer(Inbound::new()), request(), async |request| {
        seen.record(&request);
        Response::new(SizedBody(2))
    })
    .await
    .into_body();
    whole.frame().await.unwrap().unwrap();
    assert!(!seen.ctx().is_done());
    whole.frame().await.unwrap().unwrap();
    drop(whole);
    assert_eq!(seen.end(), RequestEnd::Answered);

    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("CONNECT", 200), ("GET", 101)] {
        let request = Request::builder().method(method).body(()).unwrap();
        let response = call(layer(Inbound::new()), request, async |request| {
            seen.record(&request);
            Response::builder().status(status).body(SizedBody(2)).unwrap()
        })
        .await;
        drop(response);
        assert_eq!(seen.end(), RequestEnd::Answered, "{method} {status}");
    }
}

// Over connections.

/// A server with a handler that never responds and one that never ends its stream, and how their contexts end.
async fn stuck(
    version: Version,
) -> (wire::Server, mpsc::UnboundedReceiver<Context>, mpsc::UnboundedReceiver<&'static str>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    let (task_ends, ended_tasks) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let ctx = Context::current();
        seen.send(ctx.clone()).unwrap();
        let task_ends = task_ends.clone();
        // A task of the handler, which hyper does not drop.
        ctx.spawn(async move {
            Context::current().done().await;
            task_ends.send("stopped").unwrap();
        });
        async move {
            if request.uri().path() == "/stream" {
                let (send, body) = channel_body();
                send.send(Ok(Frame::data("first".into()))).unwrap();
                // The sender is kept, so that the body does not end.
                ctx.spawn(async move {
                    let _send = send;
                    Context::current().done().await;
                });
                return Ok::<_, Infallible>(Response::new(body));
            }
            pending().await
        }
    });
    let server =
        serve(version, ServerLayer::new(Context::background(), Inbound::new()).layer(service)).await;
    (server, contexts, ended_tasks)
}

#[tokio::test]
async fn a_client_that_disconnects_ends_the_handler_and_its_tasks() {
    for version in [Version::Http1, Version::Http2] {
        let (server, mut contexts, mut ended_tasks) = stuck(version).await;
        let call = tokio::spawn(server.get("/wait"));
        let ctx = contexts.recv().await.unwrap();
        assert!(!ctx.is_done());
        call.abort();
        assert_eq!(ended_tasks.recv().await.unwrap(), "stopped");
        assert_eq!(ended(&ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped), "{version:?}");
    }
}

#[tokio::test]
async fn a_client_that_disconnects_during_the_body_ends_it() {
    for version in [Version::Http1, Version::Http2] {
        let (server, mut contexts, mut ended_tasks) = stuck(version).await;
        let mut response = server.get("/stream").await.unwrap();
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        let ctx = contexts.recv().await.unwrap();
        assert!(!ctx.is_done());
        drop(response);
        assert_eq!(ended_tasks.recv().await.unwrap(), "stopped");
        assert_eq!(ended(&ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped), "{version:?}");
    }
}

#[tokio::test]
async fn a_response_over_a_connection_ends_with_answered() {
    for version in [Version::Http1, Version::Http2] {
        let (seen, mut contexts) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            seen.send(Context::current()).unwrap();
            async move {
                Ok::<_, Infallible>(match request.uri().path() {
                    "/full" => Response::new(Full::<Bytes>::from("full").boxed()),
                    "/sized" => Response::new(SizedBody(3).boxed()),
                    "/empty" => Response::new(Empty::new().boxed()),
                    _ => Response::builder().status(204).body(Empty::new().boxed()).unwrap(),
                })
            }
        });
        let server = serve(version, layer(Inbound::new()).layer(service)).await;
        for path in ["/full", "/sized", "/empty", "/nothing"] {
            let response = server.get(path).await.unwrap();
            response.collect().await.unwrap();
            let ctx = contexts.recv().await.unwrap();
            eventually("the context ends", || ctx.is_done()).await;
            assert_eq!(
                ended(&ctx).cause_as::<RequestEnd>(),
                Some(&RequestEnd::Answered),
                "{version:?} {path}"
            );
        }
    }
}

#[tokio::test]
async fn a_deadline_over_a_connection_sends_a_status_or_aborts_the_body() {
    for version in [Version::Http1, Version::Http2] {
        let (_hold, held) = oneshot::channel::<()>();
        let held = held.shared();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let held = held.clone();
            async move {
                if request.uri().path() == "/wait" {
                    held.await.ok();
                }
                let (send, body) = channel_body();
                send.send(Ok(Frame::data("first".into()))).unwrap();
                Context::current().after_func(|| async move { drop(send) });
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let inbound = Inbound::new().believe([DeadlineHeader::Connect]);
        let server = serve(version, layer(inbound).layer(service)).await;
        let with_deadline = |path| server.send(path, &[("connect-timeout-ms", "60")]);

        let response = with_deadline("/wait").await.unwrap();
        assert_eq!(response.status, 504);
        assert_eq!(response.collect().await.unwrap(), "deadline exceeded\n");

        let response = with_deadline("/stream").await.unwrap();
        assert_eq!(response.status, 200);
        assert!(response.collect().await.is_err(), "{version:?}: broken off, not ended");
    }
}

/// A response or an error that is held keeps no waker of the task that polled for it, which the end does not wake.
#[tokio::test]
async fn a_response_keeps_no_waker() {
    for answer in [Err("no route"), Ok(""), Ok("whole")] {
        let service =
            ServerLayer::new(Context::background().with_timeout(LONG).detach(), Inbound::new());
        let (send, receiver) = oneshot::channel::<Result<&str, &str>>();
        let receiver = Mutex::new(Some(receiver));
        let seen = RecordedContext::default();
        let mut service = service.layer(service_fn(|request: Request<()>| {
            seen.record(&request);
            let receiver = receiver.lock().unwrap().take().unwrap();
            async move { receiver.await.unwrap().map(|text| Response::new(Full::<Bytes>::from(text))) }
        }));
        let (wakes, waker) = Wakes::new();
        let mut call = pin!(tower::Service::call(&mut service, request()));
        assert!(poll(call.as_mut(), &waker).is_pending());
        assert!(Arc::strong_count(&wakes) > 3, "it does not wait");
        send.send(answer).unwrap();
        let Poll::Ready(response) = poll(call.as_mut(), &waker) else { panic!("no answer") };
        assert_eq!(response.is_err(), answer.is_err());
        assert_eq!(Arc::strong_count(&wakes), 2, "a waker was kept");

        // Another wait takes the place that this one has left.
        let (others, other) = Wakes::new();
        let (before, ctx) = (wakes.count(), seen.ctx());
        let mut wait = pin!(ctx.done());
        let is_over = poll(wait.as_mut(), &other).is_ready();
        assert_eq!(is_over, answer != Ok("whole"));
        if let (Ok(response), Ok(text)) = (response, answer) {
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
            assert_eq!(seen.end(), RequestEnd::Answered);
        }
        assert_eq!(wakes.count(), before, "the end woke the task");
        assert_eq!(others.count(), usize::from(!is_over), "the end did not wake the other wait");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Polled {
    Data(u8),
    Trailers,
    Pending,
    Failed,
}

/// A body that returns these results, one at each poll, and then ends.
fn scripted(script: Vec<Polled>) -> impl Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {
    let mut script = script.into_iter();
    let frames = futures::stream::poll_fn(move |cx| {
        Poll::Ready(match script.next() {
            None => None,
            Some(Polled::Data(byte)) => Some(Ok(Frame::data(Bytes::copy_from_slice(&[byte])))),
            Some(Polled::Trailers) => Some(Ok(Frame::trailers(HeaderMap::new()))),
            Some(Polled::Failed) => Some(Err::<_, BoxError>("torn".into())),
            Some(Polled::Pending) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        })
    });
    http_body_util::StreamBody::new(frames)
}

/// Reads a body to its end.
async fn received<B>(mut body: B) -> Vec<Polled>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        received.push(match frame.map_err(Into::into) {
            Err(error) => {
                assert_eq!(error.to_string(), "torn");
                Polled::Failed
            }
            Ok(frame) if frame.is_trailers() => Polled::Trailers,
            Ok(frame) => Polled::Data(frame.into_data().unwrap()[0]),
        });
    }
    assert!(body.is_end_stream());
    received
}

/// Both layers poll the body of a gRPC response ahead of its reader, since that of a unary call is complete at once.
#[tokio::test]
async fn frames_that_are_polled_early_arrive_in_order() {
    for bits in 0..64_u8 {
        for last in [None, Some(Polled::Trailers), Some(Polled::Failed)] {
            // The highest bit that is set ends the script.
            let length = bits.checked_ilog2().unwrap_or(0);
            let step =
                |nth| if bits >> nth & 1 == 0 { Polled::Pending } else { Polled::Data(nth as u8) };
            let script: Vec<_> = (0..length).map(step).chain(last).collect();
            let expected: Vec<_> =
                script.iter().copied().filter(|step| *step != Polled::Pending).collect();

            let seen = RecordedContext::default();
            let response = call(layer(Inbound::new().max_budget(LONG)), grpc("1H"), async |request| {
                seen.record(&request);
                Response::new(scripted(script.clone()))
            });
            assert_eq!(received(response.await.into_body()).await, expected, "{script:?}");
            let end =
                if last == Some(Polled::Failed) { RequestEnd::Failed } else { RequestEnd::Answered };
            assert_eq!(seen.end(), end, "{script:?}");

            let answer = script.clone();
            let service = service_fn(move |_: Request<()>| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(Response::new(scripted(answer))) }
            });
            let client = ClientLayer::new(Outbound::new()).layer(service);
            let ctx = Context::background().with_timeout(LONG);
            let response = ctx.scope(client.oneshot(grpc("1H"))).await.unwrap();
            assert_eq!(received(response.into_body()).await, expected, "{script:?}");
        }
    }
}

/// A complete response that is dropped halfway was not sent.
#[tokio::test]
async fn a_grpc_response_that_is_dropped_before_its_trailers_ends_with_dropped() {
    for frames in 0..=2 {
        let seen = RecordedContext::default();
        let response = call(layer(Inbound::new().max_budget(LONG)), grpc("1H"), async |request| {
            seen.record(&request);
            Response::new(scripted(vec![Polled::Data(0), Polled::Trailers]))
        });
        let mut body = response.await.into_body();
        assert_eq!(body.size_hint().exact(), Some(1));
        for _ in 0..frames {
            body.frame().await.unwrap().unwrap();
            assert!(frames == 2 || !seen.ctx().is_done());
        }
        drop(body);
        assert_eq!(seen.end(), if frames == 2 { RequestEnd::Answered } else { RequestEnd::Dropped });
    }
}
