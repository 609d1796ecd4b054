//! The JSON of a snapshot.

use super::snapshot::Snapshot;

impl Snapshot {
    /// Returns the snapshot as JSON, on one line. See [`Snapshot`] for the meaning of each field.
    ///
    /// Names and causes may contain any characters, including `<`, `>` and `&`. Escape them when you build a page from them.
    ///
    /// ```
    /// let watch = tokio_ctx::watch::install();
    /// let json = watch.snapshot().to_json();
    /// assert!(json.starts_with("{\"format\":1,"));
    /// ```
    pub fn to_json(&self) -> String {
        // This cannot fail: there are no maps with other keys than strings.
        serde_json::to_string(self).unwrap_or_default()
    }
}
