//! The W3C `baggage` header: a list of `key=value` members that others write to as well.
//!
//! Read whole or not at all, from all of its lines: beyond the specification's limits it is dropped before it is
//! looked at. Written as one line, since not every reader joins several, OpenTelemetry's for one: first the members
//! of others, as they are, then ours, which replace their elders. Lines that are not ASCII are no baggage; every
//! reader would drop ours with them.

use std::borrow::Cow;

use http::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::carrier::{self, Carrier, NotSent};
use super::warn::warn;

pub(crate) static NAME: HeaderName = HeaderName::from_static("baggage");

/// The specification's limits, for all members together.
const MAX_BYTES: usize = 8192;
const MAX_MEMBERS: usize = 180;

/// What a value may not have in it as it is; all that is not ASCII besides. An equals sign is allowed there, but
/// splits the value for OpenTelemetry's reader.
const ENCODED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%').add(b'=');

/// Key and value of each member, in their order, still encoded; properties are left aside.
pub(crate) fn read(carrier: &dyn Carrier) -> Result<Vec<(&str, &str)>, &'static str> {
    let lines = carrier::values(carrier, &NAME);
    if lines.iter().map(|line| line.len()).sum::<usize>() > MAX_BYTES {
        return Err("dropped: longer than 8192 bytes");
    }
    let mut members = Vec::new();
    for line in lines {
        let line = carrier::visible(line).ok_or("dropped: not ASCII")?;
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

/// Whether this can be a member's key: a token, whose case counts.
pub(crate) const fn is_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let symbol = matches!(
            bytes[at],
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        if !bytes[at].is_ascii_alphanumeric() && !symbol {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty()
}

/// A line of these members behind those of others. `Err` names the first for which there is no room, if `strict`;
/// otherwise it is left out.
pub(crate) fn with(
    mut line: String,
    members: &[(&'static str, Cow<'_, str>)],
    strict: bool,
) -> Result<String, NotSent> {
    let count = line.split(',').filter(|member| !member.is_empty()).count();
    let mut free = MAX_MEMBERS.saturating_sub(count);
    for (key, value) in members {
        let value = utf8_percent_encode(value, ENCODED);
        let size =
            usize::from(!line.is_empty()) + key.len() + 1 + value.clone().map(str::len).sum::<usize>();
        if free == 0 || line.len() + size > MAX_BYTES {
            NotSent::new(key, "baggage would be over 8192 bytes or 180 members").or_warn(strict)?;
            continue;
        }
        free -= 1;
        line.extend([if line.is_empty() { "" } else { "," }, key, "="]);
        line.extend(value);
    }
    Ok(line)
}

/// The members of others that a carrier has, in one line.
pub(crate) fn others(members: &[(&'static str, Cow<'_, str>)], carrier: &dyn Carrier) -> String {
    let ours =
        |text: &str| member(text).is_some_and(|(key, _)| members.iter().any(|(name, _)| *name == key));
    let mut kept = String::new();
    for line in carrier::values(carrier, &NAME) {
        let Some(line) = carrier::visible(line) else {
            warn(NAME.as_str(), "a line was not passed on: not ASCII");
            continue;
        };
        let others = line.split(',').map(str::trim).filter(|text| !text.is_empty() && !ours(text));
        others.for_each(|other| kept.extend([if kept.is_empty() { "" } else { "," }, other]));
    }
    kept
}
