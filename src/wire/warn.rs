//! What tracing is told of a header that was left aside: its name and what was wrong, never what it said.

use http::HeaderName;

#[cfg(feature = "tracing")]
#[cold]
pub(crate) fn warn(header: &HeaderName, flaw: impl std::fmt::Display) {
    tracing::warn!(target: "tokio_ctx", header = header.as_str(), %flaw, "header left aside");
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn warn(_header: &HeaderName, _flaw: impl std::fmt::Display) {}
