//! Values that are sent from service to service, in a header of their own or in `baggage`.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;

use super::baggage;
use super::carrier::{self, Carrier, NotSent};
use super::warn::warn;
use crate::context::Context;

/// The longest value of a header, in bytes, in both directions.
pub(crate) const MAX_VALUE: usize = 4096;

/// A type whose values may leave the process.
///
/// Both sides have to select the type as well, with [`Outbound::carry`](super::Outbound::carry) and
/// [`Inbound::carry`](super::Inbound::carry). Other values of a context are never sent. A value arrives exactly as it
/// was sent, or not at all:
///
/// - A value that cannot be sent is left out with a `WARN`. If the outbound is [`strict`](super::Outbound::strict), the
///   call is refused.
/// - A value that cannot be decoded, is too long, or occurs twice is ignored with a `WARN`. The request is not refused. Of
///   several members of `baggage` with the same key, the first applies.
///
/// A sender can write any value into a header, so a value from an untrusted client proves nothing.
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
    /// The name of the header, in lower case, or the key in `baggage`, which is case-sensitive. It is checked at compile
    /// time. The name of a header must not end in `-bin`, which marks binary values in gRPC.
    const NAME: &'static str;

    /// Encodes the value as text.
    ///
    /// In a header of its own, the text has to be visible ASCII, with spaces only inside, and at most 4,096 bytes. In
    /// `baggage` any text is allowed, because it is percent-encoded.
    fn encode(&self) -> Cow<'_, str>;

    /// Decodes the text, which comes from another process. Returns `None` if it is invalid.
    fn decode(text: &str) -> Option<Self>;
}

/// The name of a header and its value. With `None`, the header is removed.
pub(crate) type Text<'a> = (&'a HeaderName, Option<Cow<'a, str>>);

/// The types whose values are sent.
#[derive(Clone, Default)]
pub(crate) struct Carried(Vec<CarriedType>);

#[derive(Clone)]
struct CarriedType {
    name: &'static str,
    /// The header of its own. `None` for a member of `baggage`.
    header: Option<HeaderName>,
    encode: fn(&Context) -> Option<Cow<'_, str>>,
    decode: fn(&Context, &str) -> Option<Context>,
}

impl CarriedType {
    fn new<T: Travel>(header: Option<HeaderName>) -> CarriedType {
        CarriedType {
            name: T::NAME,
            header,
            encode: |ctx| ctx.value::<T>().map(T::encode),
            decode: |ctx, text| T::decode(text).map(|value| ctx.with_value(value)),
        }
    }
}

impl Carried {
    pub(crate) fn add<T: Travel>(&mut self) {
        const { assert!(!is_binary(T::NAME), "gRPC reads the value of a header that ends in -bin as base64") };
        self.0.push(CarriedType::new::<T>(Some(const { HeaderName::from_static(T::NAME) })));
    }

    pub(crate) fn add_in_baggage<T: Travel>(&mut self) {
        const { assert!(baggage::is_key(T::NAME), "a key in baggage is a token: no spaces, no separators") };
        self.0.push(CarriedType::new::<T>(None));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of all headers but `baggage`.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().filter_map(|carried| carried.header.as_ref())
    }

    /// Returns the headers to write for the values of this context. Unless `fresh`, these include the members of
    /// `baggage` that are already in the carrier.
    ///
    /// If `strict`, returns an error for the first value that cannot be sent. Otherwise, such a value is left out.
    pub(crate) fn texts<'a>(
        &'a self,
        ctx: &'a Context,
        carrier: &dyn Carrier,
        fresh: bool,
        strict: bool,
    ) -> Result<Vec<Text<'a>>, NotSent> {
        let (mut texts, mut members) = (Vec::new(), Vec::new());
        for carried in &self.0 {
            let Some(text) = (carried.encode)(ctx) else { continue };
            match (&carried.header, sendable(&text)) {
                (None, _) => members.push((carried.name, text)),
                (Some(header), Ok(())) => texts.push((header, Some(text))),
                (Some(_), Err(flaw)) => NotSent::new(carried.name, flaw).or_warn(strict)?,
            }
        }
        if !members.is_empty() {
            let others = if fresh { String::new() } else { baggage::others(&members, carrier) };
            let line = Some(baggage::with(others, &members, strict)?).filter(|line| !line.is_empty());
            texts.push((&baggage::NAME, line.map(Cow::Owned)));
        }
        Ok(texts)
    }

    /// Adds the values in these headers to the context.
    pub(crate) fn read(&self, ctx: &mut Context, carrier: &dyn Carrier) {
        for carried in &self.0 {
            let Some(header) = &carried.header else { continue };
            match carried.read(ctx, carrier, header) {
                Ok(None) => {}
                Ok(Some(with)) => *ctx = with,
                Err(flaw) => warn(carried.name, flaw),
            }
        }
        if self.0.iter().any(|carried| carried.header.is_none()) {
            self.read_baggage(ctx, carrier);
        }
    }

    fn read_baggage(&self, ctx: &mut Context, carrier: &dyn Carrier) {
        let members = match baggage::read(carrier) {
            Ok(members) => members,
            Err(flaw) => {
                warn(baggage::NAME.as_str(), flaw);
                return;
            }
        };
        for carried in self.0.iter().filter(|carried| carried.header.is_none()) {
            let member = members.iter().find(|(key, _)| *key == carried.name);
            match member
                .map(|(_, text)| baggage::decode(text).and_then(|text| (carried.decode)(ctx, &text)))
            {
                None => {}
                Some(Some(with)) => *ctx = with,
                Some(None) => warn(carried.name, UNREADABLE),
            }
        }
    }
}

const fn is_binary(name: &str) -> bool {
    matches!(name.as_bytes(), [.., b'-', b'b', b'i', b'n'])
}

/// Checks that a header's value arrives unchanged. Spaces at its ends would be removed.
fn sendable(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_VALUE {
        Err("longer than 4096 bytes")
    } else if carrier::visible(text.as_bytes()).is_none() {
        Err("neither visible ASCII nor spaces")
    } else if text.trim_ascii() != text {
        Err("a space at its beginning or end, which would be removed")
    } else {
        Ok(())
    }
}

const UNREADABLE: &str = "ignored: it cannot be decoded";

impl CarriedType {
    fn read(
        &self,
        ctx: &Context,
        carrier: &dyn Carrier,
        header: &HeaderName,
    ) -> Result<Option<Context>, &'static str> {
        let value = carrier::only(carrier, header).map_err(|_| "ignored: it occurs more than once")?;
        let Some(value) = value else { return Ok(None) };
        if value.len() > MAX_VALUE {
            return Err("ignored: longer than 4096 bytes");
        }
        let text = carrier::visible(value).ok_or(UNREADABLE)?;
        (self.decode)(ctx, text).map(Some).ok_or(UNREADABLE)
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|carried| carried.name)).finish()
    }
}
