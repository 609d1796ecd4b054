//! How much of a response is still to be sent, as far as that is known. A transport that knows it drops the body without
//! polling it to its end, and such a response has been sent completely.

use bytes::Buf;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;

use super::body::bytes;

/// Returns whether the body of the response to such a request is never sent, whatever the response is.
pub(crate) fn is_bodiless(method: &Method) -> bool {
    matches!(*method, Method::HEAD | Method::CONNECT)
}

/// Returns whether the transport sends no body at all.
pub(crate) fn is_silent(status: StatusCode, is_bodiless: bool) -> bool {
    is_bodiless
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || status.is_informational()
}

/// The number of bytes that are still to be sent, if it is known.
pub(crate) struct Unsent {
    left: Option<u64>,
    /// Whether the transport sends no body at all.
    is_silent: bool,
}

impl Unsent {
    /// `size` is the exact size of the body, if it is known.
    pub(crate) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        size: Option<u64>,
        is_bodiless: bool,
    ) -> Unsent {
        let length = |length: &HeaderValue| length.to_str().ok()?.parse().ok();
        let left = size.or_else(|| headers.get(CONTENT_LENGTH).and_then(length));
        Unsent { left, is_silent: is_silent(status, is_bodiless) }
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
