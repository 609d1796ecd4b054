//! Helpers of the suites of `wire`: servers and clients on loopback, and bodies.

#![allow(dead_code)] // Every suite is a crate of its own and uses its part of this.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_ctx::wire::{Inbound, RequestEnd, ServerLayer};
use tokio_ctx::{BoxError, Context, Error};
use tower::{Layer, Service, service_fn};

use crate::common::{HANG, ended};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Http1,
    Http2,
}

/// A server on its own port, which stops when dropped.
pub struct Server {
    pub at: SocketAddr,
    version: Version,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub async fn serve<S, B>(version: Version, service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                // Clients of these tests disconnect.
                let _ended = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Server { at, version, accepting }
}

/// The client's side of a response. Dropping it closes the connection.
pub struct Answer {
    pub status: StatusCode,
    pub response: Response<Incoming>,
    // Each has a connection of its own, which is closed with it.
    _client: Client<HttpConnector, Empty<Bytes>>,
}

impl Answer {
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        self.response.frame().await
    }

    pub async fn collect(self) -> Result<Bytes, hyper::Error> {
        Ok(self.response.into_body().collect().await?.to_bytes())
    }
}

impl Server {
    pub fn get(
        &self,
        path: &str,
    ) -> impl Future<Output = Result<Answer, hyper_util::client::legacy::Error>> + Send + use<> {
        self.send(path, &[])
    }

    pub fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> impl Future<Output = Result<Answer, hyper_util::client::legacy::Error>> + Send + use<> {
        let mut request = Request::get(format!("http://{}{path}", self.at));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).unwrap();
        let client = client(self.version);
        async move {
            let response = client.request(request).await?;
            Ok(Answer { status: response.status(), response, _client: client })
        }
    }
}

pub fn client<B>(version: Version) -> Client<HttpConnector, B>
where
    B: Body<Data: Send> + Send,
{
    let mut connector = HttpConnector::new();
    // Otherwise a small body waits up to 40 ms for the delayed acknowledgment of the head.
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).http2_only(version == Version::Http2).build(connector)
}

/// A body that returns the frames of a channel.
pub struct ChannelBody(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>);

pub fn channel_body() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>, ChannelBody) {
    let (send, receive) = mpsc::unbounded_channel();
    (send, ChannelBody(receive))
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx)
    }
}

/// Waits for a condition that depends on another process, or on a socket.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let hang = tokio::time::Instant::now() + HANG;
    while !holds() {
        assert!(tokio::time::Instant::now() < hang, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A server that reports its contexts, never responds to `/wait`, and never ends `/stream`.
pub async fn remote_server(version: Version) -> (Server, mpsc::UnboundedReceiver<Context>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let ctx = Context::current();
        seen.send(ctx.clone()).unwrap();
        async move {
            if request.uri().path() == "/wait" {
                pending::<()>().await;
            }
            let (send, body) = channel_body();
            send.send(Ok(Frame::data("first".into()))).unwrap();
            ctx.after_func(|| async move { drop(send) });
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let layer = ServerLayer::new(Context::background(), Inbound::new());
    (serve(version, layer.layer(service)).await, contexts)
}

pub async fn assert_client_disconnected(ctx: &Context) {
    eventually("the server observes the end", || ctx.is_done()).await;
    assert_eq!(ended(ctx).cause_as::<RequestEnd>(), Some(&RequestEnd::Dropped));
}

pub fn context_error(error: BoxError) -> Error {
    error.downcast_ref::<Error>().unwrap_or_else(|| panic!("{error} is no context's")).clone()
}
