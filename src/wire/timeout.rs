//! The headers that contain a timeout, and their syntaxes. They are read strictly, and written rounded down.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::carrier::{self, Carrier};

/// A header with the remaining time of a request.
///
/// It does not contain a date, so the clocks need not agree. For messages that wait in a queue, there is
/// [`DeadlineAt`](super::DeadlineAt).
///
/// The header is read strictly: a value that its specification does not allow is an error. It is written rounded down, so
/// that the next service never has more time than this one.
///
/// ```
/// use std::time::Duration;
/// use http::HeaderMap;
/// use tokio_ctx::wire::DeadlineHeader;
///
/// let mut headers = HeaderMap::new();
/// assert!(DeadlineHeader::Grpc.write(Duration::from_micros(300_500), &mut headers));
/// assert_eq!(headers["grpc-timeout"], "300500u");
/// assert_eq!(DeadlineHeader::Grpc.read(&headers).unwrap(), Some(Duration::from_micros(300_500)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadlineHeader {
    /// `grpc-timeout`: up to eight digits and a unit, `H`, `M`, `S`, `m`, `u` or `n`.
    Grpc,
    /// `connect-timeout-ms`, of the Connect protocol: up to ten digits, milliseconds.
    Connect,
    /// `x-envoy-expected-rq-timeout-ms`: up to ten digits, milliseconds.
    ///
    /// Envoy sends it to the service *behind* it, and a server reads it. A client should not send it to Envoy: Envoy
    /// overwrites it with the timeout of the route, unless its router is set to `respect_expected_rq_timeout`. A client
    /// that calls through Envoy writes [`EnvoyUpstream`](Self::EnvoyUpstream).
    Envoy,
    /// `x-envoy-upstream-rq-timeout-ms`: up to ten digits, milliseconds.
    ///
    /// A client sends it to an Envoy: the timeout of this request instead of that of the route. Envoy enforces it, and
    /// sends it on as [`Envoy`](Self::Envoy). Envoy removes the header from requests of clients that it considers
    /// external. Recent versions consider all clients external unless `internal_address_config` lists their addresses
    /// and `use_remote_address` is set. Envoy defines `0` as no timeout, and it is read as such.
    EnvoyUpstream,
    /// A header of your own: up to ten digits, milliseconds.
    Millis(HeaderName),
}

static GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) static CONNECT: HeaderName = HeaderName::from_static("connect-timeout-ms");
static ENVOY: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
static ENVOY_UPSTREAM: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");

/// The other headers with which a client can set the timeouts and retries of an Envoy.
static ENVOY_POLICY: [HeaderName; 9] = [
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-upstream-stream-duration-ms"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
];

/// Returns the headers with which a client can set the timeouts and retries of a request, in this service or in an Envoy
/// behind it.
pub(crate) fn untrusted<'a>() -> impl Iterator<Item = &'a HeaderName> {
    [&GRPC, &CONNECT, &ENVOY, &ENVOY_UPSTREAM].into_iter().chain(&ENVOY_POLICY)
}

impl DeadlineHeader {
    /// Returns the name of the header.
    ///
    /// ```
    /// use tokio_ctx::wire::DeadlineHeader;
    ///
    /// assert_eq!(DeadlineHeader::Connect.name(), "connect-timeout-ms");
    /// ```
    pub fn name(&self) -> &HeaderName {
        match self {
            DeadlineHeader::Grpc => &GRPC,
            DeadlineHeader::Connect => &CONNECT,
            DeadlineHeader::Envoy => &ENVOY,
            DeadlineHeader::EnvoyUpstream => &ENVOY_UPSTREAM,
            DeadlineHeader::Millis(name) => name,
        }
    }

    /// Reads the timeout from these headers, and returns `None` if the header is missing.
    ///
    /// A timeout of zero means that no time remains.
    ///
    /// # Errors
    ///
    /// Returns an error if the header occurs more than once, or violates its specification, for example by a sign, a
    /// space, a fraction, or too many digits.
    ///
    /// ```
    /// use http::{HeaderMap, HeaderName};
    /// use tokio_ctx::wire::DeadlineHeader;
    ///
    /// let budget = DeadlineHeader::Millis(HeaderName::from_static("x-budget-ms"));
    /// let mut headers = HeaderMap::new();
    /// assert_eq!(budget.read(&headers).unwrap(), None);
    ///
    /// headers.insert("x-budget-ms", "-5".parse().unwrap());
    /// let bad = budget.read(&headers).unwrap_err();
    /// assert_eq!(bad.to_string(), "bad header x-budget-ms: expected 1 to 10 digits, in milliseconds");
    /// ```
    pub fn read(&self, headers: &HeaderMap) -> Result<Option<Duration>, BadHeader> {
        self.read_from(headers)
    }

    pub(crate) fn read_from(&self, carrier: &dyn Carrier) -> Result<Option<Duration>, BadHeader> {
        self.read_value(carrier::only(carrier, self.name()))
    }

    #[inline]
    pub(crate) fn read_value(&self, value: carrier::Only<'_>) -> Result<Option<Duration>, BadHeader> {
        let bad = |flaw| BadHeader::new(self.name(), flaw);
        let value = match value {
            Ok(None) => return Ok(None),
            Ok(Some(value)) => value,
            Err(carrier::Several) => return Err(bad(Flaw::Repeated)),
        };
        match self {
            DeadlineHeader::Grpc => grpc(value).map(Some).ok_or_else(|| bad(Flaw::Grpc)),
            DeadlineHeader::EnvoyUpstream => match millis(value) {
                Some(timeout) => Ok(Some(timeout).filter(|timeout| !timeout.is_zero())),
                None => Err(bad(Flaw::Millis)),
            },
            _ => millis(value).map(Some).ok_or_else(|| bad(Flaw::Millis)),
        }
    }

    /// Writes this timeout into the headers, and replaces existing values of this header.
    ///
    /// Returns false, and writes nothing, if the timeout is shorter than the header can express: a nanosecond for
    /// `grpc-timeout`, a millisecond for the others; or if the map is full. A timeout that is too long is written as the longest that the header
    /// can express: 11,407 years, or 115 days.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::DeadlineHeader;
    ///
    /// let mut headers = HeaderMap::new();
    /// assert!(DeadlineHeader::Envoy.write(Duration::from_micros(1_999), &mut headers));
    /// assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "1");
    /// assert!(!DeadlineHeader::Envoy.write(Duration::from_micros(999), &mut headers));
    /// ```
    pub fn write(&self, left: Duration, headers: &mut HeaderMap) -> bool {
        let text = self.text(left);
        let value = text.and_then(|text| HeaderValue::from_str(text.as_str()).ok());
        value.is_some_and(|value| headers.try_insert(self.name(), value).is_ok())
    }

    /// Returns the value of the header, or `None` for a time that it cannot express.
    pub(crate) fn text(&self, left: Duration) -> Option<Digits> {
        match self {
            DeadlineHeader::Grpc => to_grpc(left),
            _ => to_millis(left),
        }
    }

    /// Returns the shortest time that the header can express.
    pub(crate) fn least(&self) -> Duration {
        match self {
            DeadlineHeader::Grpc => Duration::from_nanos(1),
            _ => Duration::from_millis(1),
        }
    }
}

/// The error for an invalid deadline header, if [`Inbound::strict`](crate::wire::Inbound::strict) is set.
///
/// It contains the name of the header and its correct syntax, but not the value that was sent.
///
/// ```
/// use http::HeaderMap;
/// use tokio_ctx::{Context, wire::Inbound};
///
/// let mut headers = HeaderMap::new();
/// headers.insert("grpc-timeout", "soon".parse().unwrap());
/// let bad = Context::background().extract(&headers, &Inbound::new().strict()).unwrap_err();
/// assert_eq!(bad.name(), "grpc-timeout");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadHeader {
    name: HeaderName,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Repeated,
    Grpc,
    Millis,
    Date,
}

impl BadHeader {
    pub(crate) fn new(name: &HeaderName, flaw: Flaw) -> BadHeader {
        BadHeader { name: name.clone(), flaw }
    }

    /// Returns the name of the header.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::DeadlineHeader;
    ///
    /// let mut twice = HeaderMap::new();
    /// twice.append("connect-timeout-ms", "100".parse().unwrap());
    /// twice.append("connect-timeout-ms", "900".parse().unwrap());
    /// assert_eq!(DeadlineHeader::Connect.read(&twice).unwrap_err().name(), "connect-timeout-ms");
    /// ```
    pub fn name(&self) -> &HeaderName {
        &self.name
    }
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad header {}: ", self.name)?;
        f.write_str(match self.flaw {
            Flaw::Repeated => "it must not occur more than once",
            Flaw::Grpc => "expected 1 to 8 digits and a unit: H, M, S, m, u or n",
            Flaw::Millis => "expected 1 to 10 digits, in milliseconds",
            Flaw::Date => "expected 1 to 15 digits, in milliseconds since 1970",
        })
    }
}

impl StdError for BadHeader {}

fn grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let count = number(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

fn millis(value: &[u8]) -> Option<Duration> {
    number(value, 10).map(Duration::from_millis)
}

/// Parses a value that consists of digits only. A number of `most` digits must not overflow.
pub(crate) fn number(digits: &[u8], most: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > most || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// A header's value of digits, with or without a unit. It is on the stack, because it is copied into the headers.
#[derive(Clone, Copy)]
pub(crate) struct Digits {
    text: [u8; Digits::MOST],
    start: usize,
}

impl Digits {
    const MOST: usize = 24;

    pub(crate) fn new(mut number: u64, unit: Option<u8>) -> Digits {
        let mut digits = Digits { text: [0; Digits::MOST], start: Digits::MOST };
        unit.into_iter().for_each(|unit| digits.push_front(unit));
        loop {
            digits.push_front(b'0' + (number % 10) as u8);
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    fn push_front(&mut self, byte: u8) {
        self.start -= 1;
        self.text[self.start] = byte;
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

/// Writes the time in the finest unit in which it has at most eight digits.
fn to_grpc(left: Duration) -> Option<Digits> {
    const MOST: u64 = 99_999_999;
    // Nanoseconds of half a year fit into one word.
    const YEAR: u64 = 365 * 86_400;
    let seconds = left.as_secs();
    if seconds < YEAR / 2 {
        let nanos = seconds * 1_000_000_000 + u64::from(left.subsec_nanos());
        return match (nanos, nanos / 1_000, nanos / 1_000_000) {
            (0, ..) => None,
            (nanos @ ..=MOST, ..) => Some(Digits::new(nanos, Some(b'n'))),
            (_, micros @ ..=MOST, _) => Some(Digits::new(micros, Some(b'u'))),
            (.., millis @ ..=MOST) => Some(Digits::new(millis, Some(b'm'))),
            _ => Some(Digits::new(seconds, Some(b'S'))),
        };
    }
    Some(match (seconds, seconds / 60, seconds / 3_600) {
        (seconds @ ..=MOST, ..) => Digits::new(seconds, Some(b'S')),
        (_, minutes @ ..=MOST, _) => Digits::new(minutes, Some(b'M')),
        (.., hours) => Digits::new(hours.min(MOST), Some(b'H')),
    })
}

fn to_millis(left: Duration) -> Option<Digits> {
    match left.as_millis() {
        0 => None,
        millis => Some(Digits::new(millis.min(9_999_999_999) as u64, None)),
    }
}
