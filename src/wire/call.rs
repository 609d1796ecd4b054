//! What both halves of a client's layer say of a call: which context it belongs to, and what its end is told as.

use http::Request;

use crate::context::Context;
use crate::error::{BoxError, Error};

/// The context that a call belongs to.
pub(crate) fn context_of<A>(request: &Request<A>) -> Context {
    match request.extensions().get::<Context>() {
        Some(brought) => brought.nearest(Context::current()),
        None => Context::current(),
    }
}

/// The error of a context, as the client's code above expects it.
pub(crate) fn ended(error: Error, grpc: bool) -> BoxError {
    #[cfg(feature = "tonic")]
    if grpc {
        return tonic::Status::from(error).into();
    }
    let _ = grpc;
    error.into()
}
