//! A gRPC server and its clients, on tonic's ready-made health service, so that no `protoc` is needed.

#![allow(dead_code)] // Every suite uses its part of this.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_ctx::Context;
use tokio_ctx::wire::{ClientLayer, ClientService, Inbound, Outbound, ServerLayer};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::ServiceBuilder;

use crate::common::{LONG, ms};

/// Waits for ever when asked for `stuck`, streams one message and then nothing, and notes its contexts.
#[derive(Clone)]
pub struct Stub {
    seen: mpsc::UnboundedSender<Context>,
}

pub const SERVING: HealthCheckResponse = HealthCheckResponse { status: 1 };

pub fn ask(service: &str) -> HealthCheckRequest {
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
            // By the handler's own doing, in the moment before the layer would.
            "late" => ctx.within(ms(10), async |ctx| ctx.sleep(LONG).await).await??,
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

/// A tonic server, with our layer if there is one.
pub async fn serving(inbound: Option<Inbound>) -> (SocketAddr, mpsc::UnboundedReceiver<Context>) {
    let (seen, contexts) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let layer = inbound.map(|inbound| ServerLayer::new(Context::background(), inbound));
    tokio::spawn(async {
        let stub = HealthServer::new(Stub { seen });
        match layer {
            None => Server::builder().add_service(stub).serve_with_incoming(incoming).await,
            Some(layer) => {
                Server::builder().layer(layer).add_service(stub).serve_with_incoming(incoming).await
            }
        }
    });
    (at, contexts)
}

pub fn channel(at: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{at}")).unwrap().connect_lazy()
}

pub fn client(at: SocketAddr, outbound: Outbound) -> HealthClient<ClientService<Channel>> {
    HealthClient::new(ServiceBuilder::new().layer(ClientLayer::new(outbound)).service(channel(at)))
}
