//! The framing of messages in a body: flags and a length, five bytes, before each.
//!
//! gRPC-Web and the streams of Connect send the status in such a frame at the end of the body. It can be added only
//! between two messages, so that the layer has to know where they begin and end.

/// The flag of gRPC-Web's trailers.
pub(crate) const TRAILERS: u8 = 0x80;
/// The flag of the last frame of a Connect stream.
pub(crate) const END_STREAM: u8 = 0x02;

/// Tracks the frames of a body.
#[derive(Default)]
pub(crate) struct Envelopes {
    /// The number of the five bytes that have been received. The next two fields have their values.
    head: u8,
    flags: u8,
    length: u32,
    /// The number of bytes of the message that have not been received yet.
    left: u32,
    base64: Option<Base64>,
}

#[derive(Default)]
struct Base64 {
    bits: u32,
    /// The number of digits of the current group of four.
    digits: u8,
}

impl Envelopes {
    pub(crate) fn new(is_base64: bool) -> Envelopes {
        Envelopes { base64: is_base64.then(Base64::default), ..Envelopes::default() }
    }

    /// Returns whether the next byte begins a frame.
    pub(crate) fn is_between(&self) -> bool {
        self.head == 0 && self.left == 0 && self.base64.as_ref().is_none_or(|base64| base64.digits == 0)
    }

    /// Returns whether the body has already sent the status.
    pub(crate) fn is_over(&self) -> bool {
        self.is_between() && self.flags & (TRAILERS | END_STREAM) != 0
    }

    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        match self.base64.take() {
            None => self.follow_plain(bytes),
            Some(mut base64) => {
                for &digit in bytes {
                    let (decoded, count) = base64.push(digit);
                    self.follow_plain(&decoded[..count]);
                }
                self.base64 = Some(base64);
            }
        }
    }

    fn follow_plain(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            match self.head {
                0 => (self.flags, self.length) = (first, 0),
                _ => self.length = (self.length << 8) | u32::from(first),
            }
            self.head += 1;
            if self.head == 5 {
                (self.head, self.left) = (0, self.length);
            }
            bytes = rest;
        }
    }
}

/// The value of `digits` after the first `=` of two.
const PADDED: u8 = 4;

impl Base64 {
    /// Adds a digit, and returns the bytes that it completes, and their number.
    fn push(&mut self, digit: u8) -> ([u8; 3], usize) {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => return self.pad(),
            _ => return ([0; 3], 0),
        };
        self.bits = (self.bits << 6) | u32::from(value);
        self.digits = (self.digits + 1) % 4;
        if self.digits == 0 { (self.take(), 3) } else { ([0; 3], 0) }
    }

    /// Ends an incomplete group. Another group may follow.
    fn pad(&mut self) -> ([u8; 3], usize) {
        let count = match self.digits {
            2 => 1,
            3 => 2,
            _ => 0,
        };
        self.bits <<= 6 * (4 - u32::from(self.digits.min(4)));
        self.digits = if self.digits == 2 { PADDED } else { 0 };
        (self.take(), count)
    }

    fn take(&mut self) -> [u8; 3] {
        let [_, bytes @ ..] = std::mem::take(&mut self.bits).to_be_bytes();
        bytes
    }
}

/// Makes a frame with these flags.
pub(crate) fn frame(flags: u8, text: &str) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Encodes bytes as base64 with padding.
pub(crate) fn to_base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        [0, 1, 2, 3].map(|at| match at <= group.len() {
            true => DIGITS[(bits >> (18 - 6 * at)) as usize % 64],
            false => b'=',
        })
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Vec<u8> {
        frame(0, text)
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let body = [message("hello"), message(""), message(&"x".repeat(300)), frame(END_STREAM, "{}")];
        let ends: Vec<_> = body
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        let body = body.concat();
        for size in [1, 2, 3, 7, 64, 1000] {
            let (mut envelopes, mut at) = (Envelopes::default(), 0);
            assert!(envelopes.is_between() && !envelopes.is_over());
            for chunk in body.chunks(size) {
                envelopes.follow(chunk);
                at += chunk.len();
                assert_eq!(envelopes.is_between(), ends.contains(&at), "{size}: {at}");
                assert_eq!(envelopes.is_over(), at == body.len(), "{size}: {at}");
            }
        }
    }

    #[test]
    fn base64_is_followed_whether_it_is_padded_in_between_or_not() {
        assert_eq!(to_base64(b""), b"");
        assert_eq!(to_base64(b"f"), b"Zg==");
        assert_eq!(to_base64(b"fo"), b"Zm8=");
        assert_eq!(to_base64(b"foobar"), b"Zm9vYmFy");
        assert_eq!(to_base64(&[0xfb, 0xff, 0xfe]), b"+//+");
        for length in 0..20 {
            let text = "y".repeat(length);
            // Each frame by itself, as servers send them, and all as one.
            let frames = [message(&text), message("z"), frame(TRAILERS, &text)];
            let each: Vec<u8> = frames.iter().flat_map(|frame| to_base64(frame)).collect();
            for body in [each, to_base64(&frames.concat())] {
                for size in [1, 3, 4, 100] {
                    let mut envelopes = Envelopes::new(true);
                    let mut chunks = body.chunks(size).peekable();
                    while let Some(chunk) = chunks.next() {
                        envelopes.follow(chunk);
                        assert!(!envelopes.is_over() || chunks.peek().is_none(), "{length} {size}");
                    }
                    assert!(envelopes.is_over(), "{length} {size}");
                }
            }
            let mut envelopes = Envelopes::new(true);
            envelopes.follow(&to_base64(&message(&text)));
            assert!(envelopes.is_between() && !envelopes.is_over());
            envelopes.follow(b"AA");
            assert!(!envelopes.is_between());
        }
    }
}
