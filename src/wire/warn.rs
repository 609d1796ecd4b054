//! The tracing event for a header that was ignored. It contains the name and the flaw, but not the value.

#[cfg(feature = "tracing")]
#[cold]
pub(crate) fn warn(header: &str, flaw: impl std::fmt::Display) {
    crate::trace::shielded(|| {
        tracing::warn!(target: "tokio_ctx", header, %flaw, "header ignored");
    });
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn warn(_header: &str, _flaw: impl std::fmt::Display) {}
