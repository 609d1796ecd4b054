//! The event that tracing receives for a header that was left aside: its name and the flaw, never its text.

#[cfg(feature = "tracing")]
#[cold]
pub(crate) fn warn(header: &str, flaw: impl std::fmt::Display) {
    crate::trace::shielded(|| {
        tracing::warn!(target: "tokio_ctx", header, %flaw, "header left aside");
    });
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn warn(_header: &str, _flaw: impl std::fmt::Display) {}
