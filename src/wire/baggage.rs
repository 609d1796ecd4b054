//! The W3C `baggage` header: a list of `key=value` members that others write to as well.
//!
//! Read whole or not at all: beyond the specification's limits it is dropped before it is looked at.
//! Written beside what is there: members of others stay as they are, ours replace their elders.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::warn::warn;

pub(crate) static NAME: HeaderName = HeaderName::from_static("baggage");

/// The specification's limits, for all members together.
const MAX_BYTES: usize = 8192;
const MAX_MEMBERS: usize = 180;

/// What a value may not have in it as it is; all that is not ASCII besides.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%');

/// Key and value of each member, in their order, still encoded; properties are left aside.
pub(crate) fn read(headers: &HeaderMap) -> Result<Vec<(&str, &str)>, &'static str> {
    let lines = headers.get_all(&NAME);
    if lines.iter().map(HeaderValue::len).sum::<usize>() > MAX_BYTES {
        return Err("dropped: longer than 8192 bytes");
    }
    let mut members = Vec::new();
    for line in lines {
        let line = line.to_str().map_err(|_| "dropped: not ASCII")?;
        members.extend(line.split(',').filter_map(member).take(MAX_MEMBERS + 1 - members.len()));
        if members.len() > MAX_MEMBERS {
            return Err("dropped: more than 180 members");
        }
    }
    Ok(members)
}

fn member(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split(';').next()?.split_once('=')?;
    Some((key.trim(), value.trim()))
}

/// A member's value as the text it stands for, if it is text.
pub(crate) fn decode(value: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(value).decode_utf8().ok()
}

/// Puts these members in, in place of any with their keys. Those that no longer fit are not sent.
pub(crate) fn write(members: &[(&str, Cow<'_, str>)], headers: &mut HeaderMap) {
    let ours =
        |text: &str| member(text).is_some_and(|(key, _)| members.iter().any(|(name, _)| *name == key));
    let mut kept = Vec::new();
    for line in headers.get_all(&NAME) {
        match line.to_str() {
            // Not ours to read, nor to throw away.
            Err(_) => kept.push(line.clone()),
            Ok(text) => {
                let others: Vec<_> = text.split(',').filter(|text| !ours(text)).collect();
                let others = others.join(",");
                kept.extend(
                    HeaderValue::try_from(others.trim()).ok().filter(|others| !others.is_empty()),
                );
            }
        }
    }
    let bytes = kept.iter().map(|line| line.len() + 1).sum();
    let count = kept.iter().map(|line| line.as_bytes().split(|byte| *byte == b',').count()).sum();
    headers.remove(&NAME);
    for line in kept {
        headers.append(&NAME, line);
    }
    if let Ok(line) = HeaderValue::try_from(fitting(members, bytes, count)) {
        if !line.is_empty() {
            headers.append(&NAME, line);
        }
    }
}

fn fitting(members: &[(&str, Cow<'_, str>)], bytes: usize, count: usize) -> String {
    let mut line = String::new();
    let mut free = MAX_MEMBERS.saturating_sub(count);
    for (key, value) in members {
        let value = utf8_percent_encode(value, ENCODED);
        let size = key.len() + 2 + value.clone().map(str::len).sum::<usize>();
        if free == 0 || bytes + line.len() + size > MAX_BYTES {
            warn(&NAME, "a member was not sent: over 8192 bytes or 180 members");
            continue;
        }
        free -= 1;
        let comma = if line.is_empty() { "" } else { "," };
        line.extend([comma, key, "="]);
        line.extend(value);
    }
    line
}
