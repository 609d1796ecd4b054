//! The event that tracing receives for a header that was left aside: its name and the flaw, never its text.

use http::HeaderName;

#[cfg(feature = "tracing")]
#[cold]
pub(crate) fn warn(header: &HeaderName, flaw: impl std::fmt::Display) {
    crate::trace::shielded(|| {
        tracing::warn!(target: "tokio_ctx", header = header.as_str(), %flaw, "header left aside");
    });
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn warn(_header: &HeaderName, _flaw: impl std::fmt::Display) {}
