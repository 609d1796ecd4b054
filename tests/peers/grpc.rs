//! A gRPC server and its clients with tonic's health service, which needs no `protoc`, and a call with streams in both
//! directions, whose messages are bytes.

#![allow(dead_code)] // Every suite is a crate of its own and uses its part of this.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_ctx::Context;
use tokio_ctx::wire::{ClientLayer, ClientService, FinishLayer, Inbound, Outbound, ServerLayer};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::ServiceBuilder;

use crate::common::{LONG, ms};

/// A health service that never responds for `stuck`, streams one message and then nothing, and reports its contexts.
#[derive(Clone)]
pub struct Stub {
    seen: mpsc::UnboundedSender<Context>,
}

pub const SERVING: HealthCheckResponse = HealthCheckResponse { status: 1 };

pub fn health_request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[async_trait]
impl Health for Stub {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let ctx = Context::of_request(&request);
        self.seen.send(ctx.clone()).unwrap();
        match request.get_ref().service.as_str() {
            "stuck" => std::future::pending().await,
            // The handler returns the error slightly before the layer would respond.
            "late" => ctx.within(ms(10), async |ctx| ctx.sleep(LONG).await).await??,
            // Waits until the context ends for any reason.
            "asleep" => ctx.sleep(LONG).await?,
            _ => {}
        }
        Ok(Response::new(SERVING))
    }

    type WatchStream =
        tokio_stream::wrappers::UnboundedReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let ctx = Context::current();
        self.seen.send(ctx.clone()).unwrap();
        let (send, receive) = mpsc::unbounded_channel();
        send.send(Ok(SERVING)).unwrap();
        ctx.spawn(async move {
            send.closed().await;
        });
        Ok(Response::new(receive.into()))
    }
}

pub fn stub() -> (HealthServer<Stub>, mpsc::UnboundedReceiver<Context>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    (HealthServer::new(Stub { seen }), contexts)
}

/// Starts a tonic server, with a layer if `inbound` is given.
pub async fn serving(inbound: Option<Inbound>) -> (SocketAddr, mpsc::UnboundedReceiver<Context>) {
    serving_under(inbound.map(|inbound| ServerLayer::new(Context::background(), inbound))).await
}

pub async fn serving_under(
    layer: Option<ServerLayer>,
) -> (SocketAddr, mpsc::UnboundedReceiver<Context>) {
    let (stub, contexts) = stub();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(async {
        match layer {
            None => Server::builder().add_service(stub).serve_with_incoming(incoming).await,
            Some(layer) => {
                Server::builder().layer(layer).add_service(stub).serve_with_incoming(incoming).await
            }
        }
    });
    (at, contexts)
}

/// Starts a server whose handlers finish without their client.
pub async fn finishing(inbound: Inbound) -> (SocketAddr, mpsc::UnboundedReceiver<Context>) {
    let (stub, contexts) = stub();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let layers = ServiceBuilder::new()
        .layer(ServerLayer::new(Context::background(), inbound))
        .layer(FinishLayer::new())
        .into_inner();
    tokio::spawn(async {
        Server::builder().layer(layers).add_service(stub).serve_with_incoming(incoming).await
    });
    (at, contexts)
}

pub fn channel(at: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{at}")).unwrap().connect_lazy()
}

pub fn client(at: SocketAddr, outbound: Outbound) -> HealthClient<ClientService<Channel>> {
    HealthClient::new(ServiceBuilder::new().layer(ClientLayer::new(outbound)).service(channel(at)))
}

/// A codec that does not encode messages.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Calls `/peer.Chat/Chat`, which echoes messages, until the call ends.
pub async fn chat(
    at: SocketAddr,
) -> Result<(mpsc::UnboundedSender<Bytes>, tonic::Streaming<Bytes>), Status> {
    let (send, messages) = mpsc::unbounded_channel();
    // Some servers send the head with the first message.
    send.send(Bytes::from_static(b"hello")).unwrap();
    let service = ServiceBuilder::new().layer(ClientLayer::new(Outbound::new())).service(channel(at));
    let mut client = tonic::client::Grpc::new(service);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let messages = Request::new(UnboundedReceiverStream::new(messages));
    let path = http::uri::PathAndQuery::from_static("/peer.Chat/Chat");
    let mut replies = client.streaming(messages, path, Raw).await?.into_inner();
    assert_eq!(replies.message().await?.unwrap(), "hello");
    Ok((send, replies))
}
