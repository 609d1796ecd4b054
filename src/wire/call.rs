//! Functions that both halves of a client's layer use: they return the context of a call, and the error of its end.

use http::Request;

use crate::context::Context;
use crate::error::{BoxError, Error};

/// Returns the context of a call.
pub(crate) fn context_of<A>(request: &Request<A>) -> Context {
    match request.extensions().get::<Context>() {
        Some(brought) => brought.nearest(Context::current()),
        None => Context::current(),
    }
}

/// Converts the error of a context to the type that the protocol's client code expects.
pub(crate) fn ended(error: Error, grpc: bool) -> BoxError {
    #[cfg(feature = "tonic")]
    if grpc {
        return tonic::Status::from(error).into();
    }
    let _ = grpc;
    error.into()
}
