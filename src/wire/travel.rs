//! Values that go along from service to service, each in a header of its own or in `baggage`.

use std::borrow::Cow;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::baggage;
use super::warn::warn;
use crate::context::Context;

/// The most bytes that a value may take in a header of its own, here and on the way in.
pub(crate) const MAX_VALUE: usize = 4096;

/// A value that may leave the process: implement it for the types that are to go along with a request.
///
/// That marks the type; [`Outbound::carry`](super::Outbound::carry) and
/// [`Inbound::carry`](super::Inbound::carry) then say, on each side, that it does go along. No other
/// value of a context ever leaves it. What can't be decoded, is too long, or is there twice is dropped
/// with a `WARN`; a request is never refused for it.
///
/// Who sends the headers decides what they say: a value from outside is a claim, not a proof.
///
/// ```
/// use std::borrow::Cow;
/// use http::HeaderMap;
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{Inbound, Outbound, Travel};
///
/// struct RequestId(u64);
///
/// impl Travel for RequestId {
///     const NAME: &'static str = "x-request-id";
///     fn encode(&self) -> Cow<'_, str> {
///         self.0.to_string().into()
///     }
///     fn decode(text: &str) -> Option<Self> {
///         text.parse().ok().map(RequestId)
///     }
/// }
///
/// // Here …
/// let mut headers = HeaderMap::new();
/// let ctx = Context::background().with_value(RequestId(7));
/// ctx.inject_with(&mut headers, &Outbound::new().carry::<RequestId>())?;
/// // … and there.
/// let inbound = Inbound::new().carry::<RequestId>();
/// let ctx = Context::background().extract(&headers, &inbound).unwrap();
/// assert_eq!(ctx.value::<RequestId>().unwrap().0, 7);
/// # Ok::<(), tokio_ctx::Error>(())
/// ```
pub trait Travel: Sized + Send + Sync + 'static {
    /// The name of its header, or its key in `baggage`: in lower case, checked when compiled.
    const NAME: &'static str;

    /// The value as text.
    ///
    /// In a header of its own: visible ASCII and spaces, 4,096 bytes at most. In `baggage`, any text:
    /// it is percent-encoded there.
    fn encode(&self) -> Cow<'_, str>;

    /// The value that `encode` gave, or `None` if this text is none: it comes from outside.
    fn decode(text: &str) -> Option<Self>;
}

/// The types that go along.
#[derive(Clone, Default)]
pub(crate) struct Carried(Vec<Traveller>);

#[derive(Clone)]
struct Traveller {
    name: HeaderName,
    in_baggage: bool,
    encode: fn(&Context) -> Option<Cow<'_, str>>,
    decode: fn(&Context, &str) -> Option<Context>,
}

impl Carried {
    pub(crate) fn add<T: Travel>(&mut self, in_baggage: bool) {
        self.0.push(Traveller {
            name: const { HeaderName::from_static(T::NAME) },
            in_baggage,
            encode: |ctx| ctx.value::<T>().map(T::encode),
            decode: |ctx, text| T::decode(text).map(|value| ctx.with_value(value)),
        });
    }

    pub(crate) fn write(&self, ctx: &Context, headers: &mut HeaderMap) {
        let mut members = Vec::new();
        for traveller in &self.0 {
            match (traveller.encode)(ctx) {
                None => {}
                Some(text) if traveller.in_baggage => members.push((traveller.name.as_str(), text)),
                Some(text) => match HeaderValue::from_str(&text) {
                    Ok(value) if text.len() <= MAX_VALUE => {
                        headers.insert(traveller.name.clone(), value);
                    }
                    Ok(_) => warn(&traveller.name, "not sent: longer than 4096 bytes"),
                    Err(_) => warn(&traveller.name, "not sent: neither visible ASCII nor spaces"),
                },
            }
        }
        if !members.is_empty() {
            baggage::write(&members, headers);
        }
    }

    /// Adds the values that these headers have to the context.
    pub(crate) fn read(&self, ctx: &mut Context, headers: &HeaderMap) {
        for traveller in self.0.iter().filter(|traveller| !traveller.in_baggage) {
            match traveller.read(ctx, headers) {
                Ok(None) => {}
                Ok(Some(with)) => *ctx = with,
                Err(flaw) => warn(&traveller.name, flaw),
            }
        }
        if self.0.iter().any(|traveller| traveller.in_baggage) {
            self.read_baggage(ctx, headers);
        }
    }

    fn read_baggage(&self, ctx: &mut Context, headers: &HeaderMap) {
        let members = match baggage::read(headers) {
            Ok(members) => members,
            Err(flaw) => {
                warn(&baggage::NAME, flaw);
                return;
            }
        };
        for traveller in self.0.iter().filter(|traveller| traveller.in_baggage) {
            let member = members.iter().find(|(key, _)| *key == traveller.name.as_str());
            match member
                .map(|(_, text)| baggage::decode(text).and_then(|text| (traveller.decode)(ctx, &text)))
            {
                None => {}
                Some(Some(with)) => *ctx = with,
                Some(None) => warn(&traveller.name, UNREADABLE),
            }
        }
    }
}

const UNREADABLE: &str = "dropped: it can't be decoded";

impl Traveller {
    fn read(&self, ctx: &Context, headers: &HeaderMap) -> Result<Option<Context>, &'static str> {
        let mut values = headers.get_all(&self.name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err("dropped: it is there more than once");
        }
        if value.len() > MAX_VALUE {
            return Err("dropped: longer than 4096 bytes");
        }
        let text = value.to_str().map_err(|_| UNREADABLE)?;
        (self.decode)(ctx, text).map(Some).ok_or(UNREADABLE)
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|traveller| traveller.name.as_str())).finish()
    }
}
