//! What a context is written into and read from: headers, metadata, the properties of a message.
//!
//! Everything above this file goes through [`Carrier`]. A carrier that is, or wraps, an `http::HeaderMap` says so by
//! two hidden methods, so that the layers look headers up by names that are hashed as they are and copy none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::marker::PhantomData;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::warn::warn;
use crate::error::BoxError;

/// What a context can be injected into and extracted from: text by key, in whatever a transport has for that.
///
/// Implemented for `http::HeaderMap`, for tonic's `MetadataMap` (feature `tonic`), and for `HashMap` and `BTreeMap`
/// of `String` to `String`. For the headers of another transport (actix, NATS, AMQP, Kafka) implement it, or use
/// [`get_with`] and [`set_with`] with one closure, which also take an `Extractor` and an `Injector` of OpenTelemetry.
///
/// The keys that are asked for and set are lower-case ASCII, valid as names of HTTP headers. An implementation is
/// either case-insensitive, as those named above are, or finds only what another of its kind has written; it should
/// say which. Nothing needs the feature of a transport: `http` is enough, and brings the `http` crate for the names.
///
/// ```
/// use tokio_ctx::wire::{Carrier, Inbound};
/// use tokio_ctx::{BoxError, Context};
///
/// /// The headers of a message, in the way of Kafka: a list of keys and bytes.
/// #[derive(Default)]
/// struct Message(Vec<(String, Vec<u8>)>);
///
/// impl Carrier for Message {
///     fn get(&self, key: &str) -> Option<&[u8]> {
///         self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| &value[..])
///     }
///     fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
///         self.remove(key);
///         self.0.push((key.into(), value.into()));
///         Ok(())
///     }
///     fn remove(&mut self, key: &str) {
///         self.0.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
///     }
/// }
///
/// let mut message = Message::default();
/// let ctx = Context::background().with_timeout(std::time::Duration::from_secs(5));
/// ctx.inject(&mut message)?;
/// let there = Context::background().extract(&message, &Inbound::new())?;
/// assert!(there.deadline().is_some());
/// # Ok::<(), BoxError>(())
/// ```
pub trait Carrier {
    /// The value under this key, as bytes, since what comes from outside need not be text.
    fn get(&self, key: &str) -> Option<&[u8]>;

    /// All values under this key, in order: for carriers that can hold several.
    ///
    /// A deadline that is there more than once is a bad one, and `baggage` is read from all of its lines.
    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        self.get(key).into_iter().collect()
    }

    /// Puts a value under this key, in place of all that were there.
    ///
    /// # Errors
    ///
    /// If the carrier cannot hold it, or cannot be written to: the call is then refused, with a [`NotSent`] as the
    /// cause, rather than sent without its deadline. A value that [travels](super::Travel) is left out with a `WARN`,
    /// unless the outbound is [`strict`](super::Outbound::strict).
    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError>;

    /// Removes all values under this key.
    fn remove(&mut self, key: &str);

    #[doc(hidden)]
    fn as_headers(&self) -> Option<&HeaderMap> {
        None
    }

    #[doc(hidden)]
    fn as_headers_mut(&mut self) -> Option<&mut HeaderMap> {
        None
    }
}

/// All values under a name, without a copy of either where the carrier has headers.
pub(crate) fn values<'a>(carrier: &'a dyn Carrier, name: &HeaderName) -> Vec<&'a [u8]> {
    match carrier.as_headers() {
        Some(headers) => headers.get_all(name).iter().map(HeaderValue::as_bytes).collect(),
        None => carrier.get_all(name.as_str()),
    }
}

/// The only value under a name; `Err` if there are several.
pub(crate) fn only<'a>(carrier: &'a dyn Carrier, name: &HeaderName) -> Only<'a> {
    let Some(headers) = carrier.as_headers() else {
        let values = carrier.get_all(name.as_str());
        return if values.len() > 1 { Err(Several) } else { Ok(values.first().copied()) };
    };
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Several),
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
    }
}

/// So many names are looked for in one walk.
pub(crate) const FEW: usize = 4;

/// [`only`] for each of a few names.
///
/// One walk over the headers, mostly a few, costs less than a look-up of each name, mostly none of which is there.
pub(crate) fn only_each<'a, 'n>(
    carrier: &'a dyn Carrier,
    names: impl Iterator<Item = &'n HeaderName> + Clone,
) -> [Only<'a>; FEW] {
    let mut found = [Ok(None); FEW];
    let Some(headers) = carrier.as_headers() else {
        found.iter_mut().zip(names).for_each(|(found, name)| *found = only(carrier, name));
        return found;
    };
    // Most keys have none of the lengths.
    let length = |name: &HeaderName| 1_u64 << (name.as_str().len() % 64);
    let lengths = names.clone().fold(0, |lengths, name| lengths | length(name));
    for (key, value) in headers.iter().filter(|(key, _)| lengths & length(key) != 0) {
        for (found, name) in found.iter_mut().zip(names.clone()) {
            if key == name {
                *found = if let Ok(None) = found { Ok(Some(value.as_bytes())) } else { Err(Several) };
            }
        }
    }
    found
}

/// The value under a name, if there is one and no other.
pub(crate) type Only<'a> = Result<Option<&'a [u8]>, Several>;

#[derive(Clone, Copy)]
pub(crate) struct Several;

pub(crate) fn set(carrier: &mut dyn Carrier, name: &HeaderName, value: &str) -> Result<(), NotSent> {
    let not_sent = |why: BoxError| NotSent::new(name.as_str(), why);
    match carrier.as_headers_mut() {
        Some(headers) => {
            let value = HeaderValue::from_str(value).map_err(|why| not_sent(why.into()))?;
            headers.insert(name.clone(), value);
            Ok(())
        }
        None => carrier.set(name.as_str(), value).map_err(not_sent),
    }
}

/// The text of a header's value, if it is one: visible ASCII, spaces and tabs.
pub(crate) fn visible(value: &[u8]) -> Option<&str> {
    let visible = |byte| matches!(byte, b' '..=b'~' | b'\t');
    std::str::from_utf8(value).ok().filter(|text| text.bytes().all(visible))
}

pub(crate) fn remove(carrier: &mut dyn Carrier, name: &HeaderName) {
    match carrier.as_headers_mut() {
        Some(headers) => drop(headers.remove(name)),
        None => carrier.remove(name.as_str()),
    }
}

/// Why a call was not sent: something that belongs to it could not be written into its headers.
///
/// The [cause](crate::Error::cause_as) of the error that [`inject`](crate::Context::inject) then returns.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{NotSent, get_with};
///
/// let ctx = Context::background().with_timeout(std::time::Duration::from_secs(1));
/// // One that can only be read.
/// let refused = ctx.inject(&mut get_with(|_| None::<&str>)).unwrap_err();
/// assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "grpc-timeout");
/// ```
#[derive(Debug)]
pub struct NotSent {
    key: String,
    why: BoxError,
}

impl NotSent {
    pub(crate) fn new(key: &str, why: impl Into<BoxError>) -> NotSent {
        NotSent { key: key.into(), why: why.into() }
    }

    /// An error if `strict`, and a `WARN` otherwise.
    pub(crate) fn or_warn(self, strict: bool) -> Result<(), NotSent> {
        if strict {
            return Err(self);
        }
        warn(&self.key, &self);
        Ok(())
    }

    /// The key of what could not be written.
    ///
    /// ```
    /// use tokio_ctx::Error;
    /// use tokio_ctx::wire::NotSent;
    ///
    /// fn could_not_be_written(error: &Error) -> Option<&str> {
    ///     error.cause_as::<NotSent>().map(NotSent::key)
    /// }
    /// ```
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be sent: {}", self.key, self.why)
    }
}

impl std::error::Error for NotSent {
    // What is printed above is not printed again.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.why.source()
    }
}

/// Several values under a key; keys are case-insensitive.
impl Carrier for HeaderMap {
    fn get(&self, key: &str) -> Option<&[u8]> {
        HeaderMap::get(self, key).map(HeaderValue::as_bytes)
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        HeaderMap::get_all(self, key).iter().map(HeaderValue::as_bytes).collect()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        self.insert(HeaderName::from_bytes(key.as_bytes())?, HeaderValue::from_str(value)?);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        HeaderMap::remove(self, key);
    }

    fn as_headers(&self) -> Option<&HeaderMap> {
        Some(self)
    }

    fn as_headers_mut(&mut self) -> Option<&mut HeaderMap> {
        Some(self)
    }
}

/// The ASCII entries alone: nothing of this crate is binary.
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl Carrier for tonic::metadata::MetadataMap {
    fn get(&self, key: &str) -> Option<&[u8]> {
        Carrier::get(AsRef::<HeaderMap>::as_ref(self), key)
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        Carrier::get_all(AsRef::<HeaderMap>::as_ref(self), key)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        // Its own types know which keys are binary.
        let key: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = key.parse()?;
        self.insert(key, value.parse()?);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        Carrier::remove(AsMut::<HeaderMap>::as_mut(self), key);
    }

    fn as_headers(&self) -> Option<&HeaderMap> {
        Some(self.as_ref())
    }

    fn as_headers_mut(&mut self) -> Option<&mut HeaderMap> {
        Some(self.as_mut())
    }
}

fn same<'a, V>(key: &str) -> impl Fn(&(&'a String, V)) -> bool {
    move |(name, _)| name.eq_ignore_ascii_case(key)
}

/// Keys are case-insensitive, and written in lower case.
impl<S: BuildHasher> Carrier for HashMap<String, String, S> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        let exact = HashMap::get(self, key);
        let value = exact.or_else(|| self.iter().find(same(key)).map(|(_, value)| value))?;
        Some(value.as_bytes())
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        self.iter().filter(same(key)).map(|(_, value)| value.as_bytes()).collect()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        Carrier::remove(self, key);
        self.insert(key.to_ascii_lowercase(), value.into());
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        self.retain(|name, _| !name.eq_ignore_ascii_case(key));
    }
}

/// Keys are case-insensitive, and written in lower case.
impl Carrier for BTreeMap<String, String> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        let exact = BTreeMap::get(self, key);
        let value = exact.or_else(|| self.iter().find(same(key)).map(|(_, value)| value))?;
        Some(value.as_bytes())
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        self.iter().filter(same(key)).map(|(_, value)| value.as_bytes()).collect()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        Carrier::remove(self, key);
        self.insert(key.to_ascii_lowercase(), value.into());
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        self.retain(|name, _| !name.eq_ignore_ascii_case(key));
    }
}

impl<C: Carrier + ?Sized> Carrier for &mut C {
    fn get(&self, key: &str) -> Option<&[u8]> {
        (**self).get(key)
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        (**self).get_all(key)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        (**self).set(key, value)
    }

    fn remove(&mut self, key: &str) {
        (**self).remove(key);
    }

    fn as_headers(&self) -> Option<&HeaderMap> {
        (**self).as_headers()
    }

    fn as_headers_mut(&mut self) -> Option<&mut HeaderMap> {
        (**self).as_headers_mut()
    }
}

/// A carrier to [`extract`](crate::Context::extract) from, made of a function that looks a key up.
///
/// For what this crate does not know: OpenTelemetry's `Extractor`, the headers of NATS, AMQP or Kafka. The keys it is
/// asked for are in lower case; whether another case is found is the function's business. It cannot be written to.
///
/// ```
/// use std::collections::HashMap;
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{Inbound, get_with};
///
/// /// As OpenTelemetry has it.
/// trait Extractor {
///     fn get(&self, key: &str) -> Option<&str>;
/// }
///
/// fn context_of(message: &dyn Extractor) -> Result<tokio_ctx::CancelScope, tokio_ctx::BoxError> {
///     Ok(Context::background().extract(&get_with(|key| message.get(key)), &Inbound::new())?)
/// }
/// # struct Message;
/// # impl Extractor for Message {
/// #     fn get(&self, key: &str) -> Option<&str> { (key == "grpc-timeout").then_some("2S") }
/// # }
/// # assert!(context_of(&Message).unwrap().deadline().is_some());
/// ```
pub fn get_with<'a, F, V>(get: F) -> GetWith<'a, F>
where
    F: Fn(&str) -> Option<&'a V>,
    V: AsRef<[u8]> + ?Sized + 'a,
{
    GetWith(get, PhantomData)
}

/// A carrier that can be read. Made by [`get_with`].
#[derive(Clone, Copy)]
pub struct GetWith<'a, F>(F, PhantomData<&'a ()>);

impl<'a, F, V> Carrier for GetWith<'a, F>
where
    F: Fn(&str) -> Option<&'a V>,
    V: AsRef<[u8]> + ?Sized + 'a,
{
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0(key).map(AsRef::as_ref)
    }

    fn set(&mut self, _key: &str, _value: &str) -> Result<(), BoxError> {
        Err("the carrier can only be read".into())
    }

    fn remove(&mut self, _key: &str) {}
}

impl<F> fmt::Debug for GetWith<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetWith").finish_non_exhaustive()
    }
}

/// A carrier to [`inject`](crate::Context::inject) into, made of a function that takes a key and its value.
///
/// For what this crate does not know: OpenTelemetry's `Injector`, the headers of NATS, AMQP or Kafka. What is in it
/// already is not seen: `baggage` of others is replaced, not joined, and no shorter deadline stays.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::set_with;
///
/// /// As OpenTelemetry has it.
/// trait Injector {
///     fn set(&mut self, key: &str, value: String);
/// }
///
/// fn tell(ctx: &Context, message: &mut dyn Injector) -> Result<(), tokio_ctx::Error> {
///     ctx.inject(&mut set_with(|key, value| {
///         message.set(key, value.to_owned());
///         Ok(())
///     }))
/// }
/// # impl Injector for Vec<String> {
/// #     fn set(&mut self, key: &str, _: String) { self.push(key.into()) }
/// # }
/// # let mut message = Vec::new();
/// # tell(&Context::background().with_timeout(std::time::Duration::from_secs(1)), &mut message).unwrap();
/// # assert_eq!(message, ["grpc-timeout"]);
/// ```
pub fn set_with<F>(set: F) -> SetWith<F>
where
    F: FnMut(&str, &str) -> Result<(), BoxError>,
{
    SetWith(set)
}

/// A carrier that can be written to. Made by [`set_with`].
#[derive(Clone, Copy)]
pub struct SetWith<F>(F);

impl<F> Carrier for SetWith<F>
where
    F: FnMut(&str, &str) -> Result<(), BoxError>,
{
    fn get(&self, _key: &str) -> Option<&[u8]> {
        None
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        self.0(key, value)
    }

    fn remove(&mut self, _key: &str) {}
}

impl<F> fmt::Debug for SetWith<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetWith").finish_non_exhaustive()
    }
}
