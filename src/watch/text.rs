//! The text for a terminal, 100 columns wide.

use std::fmt;

use super::snapshot::{Entry, Snapshot};

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seen", self.totals.seen)
    }
}

pub(super) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn fmt_entry(entry: &Entry, _indent: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} {}", entry.kind, entry.line)
}
