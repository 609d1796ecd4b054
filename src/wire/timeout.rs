//! The headers that carry a timeout, and their syntaxes: read strictly, written rounded down.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// A header that says how much time a request has left: never a date, so no clocks have to agree.
///
/// It is read strictly: what its specification does not allow is an error, never a guess. It is written
/// rounded down, so that the next service never has longer than this one.
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
    /// `x-envoy-expected-rq-timeout-ms`, which Envoy sets: up to ten digits, milliseconds.
    Envoy,
    /// One of your own: up to ten digits, milliseconds.
    Millis(HeaderName),
}

static GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
static CONNECT: HeaderName = HeaderName::from_static("connect-timeout-ms");
static ENVOY: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

impl DeadlineHeader {
    /// Its name.
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
            DeadlineHeader::Millis(name) => name,
        }
    }

    /// The timeout these headers give; `None` if they don't have this one.
    ///
    /// Zero is a timeout: no time is left.
    ///
    /// # Errors
    ///
    /// If it is there more than once, or not as its specification says: a sign, a space, a fraction, too
    /// many digits.
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
    /// assert_eq!(bad.to_string(), "bad header x-budget-ms: it takes 1 to 10 digits, for milliseconds");
    /// ```
    pub fn read(&self, headers: &HeaderMap) -> Result<Option<Duration>, BadHeader> {
        let mut values = headers.get_all(self.name()).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let bad = |flaw| BadHeader { name: self.name().clone(), flaw };
        if values.next().is_some() {
            return Err(bad(Flaw::Repeated));
        }
        match self {
            DeadlineHeader::Grpc => grpc(value.as_bytes()).map(Some).ok_or(bad(Flaw::Grpc)),
            _ => millis(value.as_bytes()).map(Some).ok_or(bad(Flaw::Millis)),
        }
    }

    /// Puts this timeout into the headers, in place of what they had under this name.
    ///
    /// False, and nothing written, if it is less than the header can say: under a nanosecond for
    /// `grpc-timeout`, under a millisecond for the others. More than it can say is written as the most
    /// that it can: 11,407 years, or 115 days.
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
        let value = match self {
            DeadlineHeader::Grpc => to_grpc(left),
            _ => to_millis(left),
        };
        let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) else {
            return false;
        };
        headers.insert(self.name(), value);
        true
    }
}

/// What [`Inbound::strict`](crate::wire::Inbound::strict) refuses: a deadline header that is there, and wrong.
///
/// It names the header and says what would be right; it does not repeat what the caller sent.
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
enum Flaw {
    Repeated,
    Grpc,
    Millis,
}

impl BadHeader {
    /// The name of the header.
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
            Flaw::Repeated => "it may be given once",
            Flaw::Grpc => "it takes 1 to 8 digits and a unit, one of H, M, S, m, u and n",
            Flaw::Millis => "it takes 1 to 10 digits, for milliseconds",
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

/// Digits and nothing else, at most so many that no sum here overflows.
fn number(digits: &[u8], most: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > most || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The finest unit whose count has eight digits at most.
fn to_grpc(left: Duration) -> Option<String> {
    const MOST: u128 = 99_999_999;
    const UNITS: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    let nanos = left.as_nanos();
    let fits = UNITS.iter().find(|(size, _)| nanos / size <= MOST);
    match fits {
        _ if nanos == 0 => None,
        Some((size, unit)) => Some(format!("{}{unit}", nanos / size)),
        None => Some(format!("{MOST}H")),
    }
}

fn to_millis(left: Duration) -> Option<String> {
    match left.as_millis() {
        0 => None,
        millis => Some(millis.min(9_999_999_999).to_string()),
    }
}
