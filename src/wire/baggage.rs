//! The W3C `baggage` header: a list of `key=value` members, to which other libraries add members as well.
//!
//! The header is read from all of its lines. If it exceeds the limits of the specification, it is ignored as a whole.
//!
//! It is written as one line, because some readers, such as OpenTelemetry's, do not join several lines. Members that
//! other libraries wrote come first, unchanged. Members with our keys are replaced. Lines that are not ASCII are
//! invalid, and are not forwarded, because readers would reject the whole header, including our members.

use std::borrow::Cow;

use http::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::carrier::{self, Carrier, NotSent};
use super::warn::warn;

pub(crate) static NAME: HeaderName = HeaderName::from_static("baggage");

/// The limits of the specification, for all members together.
const MAX_BYTES: usize = 8192;
const MAX_MEMBERS: usize = 180;

/// The characters of a value that have to be encoded, besides those that are not ASCII. An equals sign is allowed by the
/// specification, but OpenTelemetry's reader would split the value there.
const ENCODED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%').add(b'=');

/// Reads the key and the encoded value of each member, in order, without the properties.
pub(crate) fn read(carrier: &dyn Carrier) -> Result<Vec<(&str, &str)>, &'static str> {
    let lines = carrier::values(carrier, &NAME);
    if lines.iter().map(|line| line.len()).sum::<usize>() > MAX_BYTES {
        return Err("ignored: longer than 8192 bytes");
    }
    let mut members = Vec::new();
    for line in lines {
        let line = carrier::visible(line).ok_or("ignored: not ASCII")?;
        members.extend(line.split(',').filter_map(member).take(MAX_MEMBERS + 1 - members.len()));
        if members.len() > MAX_MEMBERS {
            return Err("ignored: more than 180 members");
        }
    }
    Ok(members)
}

fn member(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split(';').next()?.split_once('=')?;
    Some((key.trim(), value.trim()))
}

/// Decodes the value of a member, if it is text.
pub(crate) fn decode(value: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(value).decode_utf8().ok()
}

/// Returns whether this can be the key of a member: a token, which is case-sensitive.
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

/// Appends these members to a line with the members of other libraries. If `strict`, returns an error for the first
/// member that exceeds the limits. Otherwise, such a member is left out.
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

/// Reads the members of other libraries from a carrier, as one line.
pub(crate) fn others(members: &[(&'static str, Cow<'_, str>)], carrier: &dyn Carrier) -> String {
    let ours =
        |text: &str| member(text).is_some_and(|(key, _)| members.iter().any(|(name, _)| *name == key));
    let mut kept = String::new();
    for line in carrier::values(carrier, &NAME) {
        let Some(line) = carrier::visible(line) else {
            warn(NAME.as_str(), "a line was not forwarded: not ASCII");
            continue;
        };
        let others = line.split(',').map(str::trim).filter(|text| !text.is_empty() && !ours(text));
        others.for_each(|other| kept.extend([if kept.is_empty() { "" } else { "," }, other]));
    }
    kept
}
