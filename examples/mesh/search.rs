//! The protocol of the services: `mesh.Search/Run`. The messages and the client are what tonic's code
//! generator would generate, written by hand so that no `protoc` is needed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use http::uri::PathAndQuery;
use tokio_ctx::BoxError;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Query {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Found {
    #[prost(uint64, tag = "1")]
    pub rows: u64,
}

pub trait Search: Clone + Send + Sync + 'static {
    fn search(&self, query: Query) -> impl Future<Output = Result<Found, Status>> + Send;
}

#[derive(Clone)]
pub struct SearchServer<S>(pub S);

impl<S> NamedService for SearchServer<S> {
    const NAME: &'static str = "mesh.Search";
}

impl<S: Search> tower::Service<http::Request<Body>> for SearchServer<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let search = self.0.clone();
        Box::pin(async move {
            let run = tower::service_fn(move |request: Request<Query>| {
                let search = search.clone();
                async move { search.search(request.into_inner()).await.map(Response::new) }
            });
            Ok(tonic::server::Grpc::new(ProstCodec::default()).unary(run, request).await)
        })
    }
}

/// Calls a service, with any layers around its channel.
pub async fn call<C>(channel: C, query: Query) -> Result<Found, Status>
where
    C: GrpcService<Body>,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/mesh.Search/Run");
    let codec = ProstCodec::default();
    Ok(client.unary(Request::new(query), path, codec).await?.into_inner())
}
