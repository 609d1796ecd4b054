//! JSON.

use super::snapshot::Snapshot;

impl Snapshot {
    /// The snapshot as JSON, on one line, for a program. [`Snapshot`] says what each field means.
    ///
    /// Names and causes may hold anything, `<`, `>` and `&` among it: what builds a page from them has to escape them.
    ///
    /// ```
    /// let watch = tokio_ctx::watch::install();
    /// let json = watch.snapshot().to_json();
    /// assert!(json.starts_with("{\"format\":1,"));
    /// ```
    pub fn to_json(&self) -> String {
        // Neither a map with keys that are no strings, nor a float that is none: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
