//! How much of a response is still to be sent, as far as that is known. A transport that knows it drops the body without
//! polling it to its end, and such a response has been sent completely.

use bytes::Buf;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::{Body, Frame};

use super::body::bytes;

/// Returns whether the body of the response to such a request is never sent, whatever the response is.
pub(crate) fn is_bodiless(method: &Method) -> bool {
    matches!(*method, Method::HEAD | Method::CONNECT)
}

/// The number of bytes that are still to be sent, if it is known.
pub(crate) struct Unsent {
    left: Option<u64>,
    /// Whether the transport sends no body at all.
    is_silent: bool,
}

impl Unsent {
    pub(crate) fn of<B: Body>(response: &Response<B>, is_bodiless: bool) -> Unsent {
        let status = response.status();
        let is_silent = is_bodiless
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || status.is_informational();
        let length = |length: &HeaderValue| length.to_str().ok()?.parse().ok();
        let exact = response.body().size_hint().exact();
        let left = exact.or_else(|| response.headers().get(CONTENT_LENGTH).and_then(length));
        Unsent { left, is_silent }
    }

    /// Returns whether the length of the body has been announced.
    pub(crate) fn is_known(&self) -> bool {
        self.left.is_some()
    }

    /// Returns whether the transport may drop the body without polling it again.
    pub(crate) fn is_nothing(&self) -> bool {
        self.is_silent || self.left == Some(0)
    }

    /// Subtracts a frame that is about to be sent.
    pub(crate) fn subtract<D: Buf>(&mut self, frame: &Frame<D>) {
        self.left = self.left.map(|left| left.saturating_sub(bytes(frame)));
    }
}
