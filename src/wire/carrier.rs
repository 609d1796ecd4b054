//! Carriers, which a context is written to and read from: headers, metadata, the properties of a message.
//!
//! The rest of `wire` accesses all of them through [`Carrier`]. A carrier that is an `http::HeaderMap`, or wraps one,
//! exposes it by two hidden methods. Headers are then looked up by `HeaderName`, and no name is parsed or copied.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::marker::PhantomData;

use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::warn::warn;
use crate::error::BoxError;

/// A map of text keys to text values that a context can be injected into and extracted from.
///
/// It is implemented for `http::HeaderMap`, for tonic's `MetadataMap` (feature `tonic`), and for `HashMap` and
/// `BTreeMap` from `String` to `String`. For the headers of another transport (actix, NATS, AMQP, Kafka), implement
/// it, or use [`get_with`] and [`set_with`], which make a carrier from one closure. The same two functions adapt an
/// `Extractor` and an `Injector` of OpenTelemetry.
///
/// All keys are passed in lower-case ASCII, and are valid names of HTTP headers. The implementations named above
/// compare keys case-insensitively. A case-sensitive implementation finds only the keys that were written in lower
/// case, and should document that. The feature `http` is enough for all of this; it adds the `http` crate, for its
/// header names.
///
/// ```
/// use tokio_ctx::wire::{Carrier, Inbound};
/// use tokio_ctx::{BoxError, Context};
///
/// /// The headers of a message as in Kafka: a list of keys and bytes.
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
    /// Returns the value of this key, as bytes, because a value that was received may not be text.
    fn get(&self, key: &str) -> Option<&[u8]>;

    /// Returns all values of this key, in order, for carriers that can hold more than one.
    ///
    /// More than one value of a deadline header is an error; `baggage` is read from all values.
    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        self.get(key).into_iter().collect()
    }

    /// Sets the value of this key, and removes all earlier values.
    ///
    /// # Errors
    ///
    /// Returns an error if the carrier cannot hold the value, or is read-only. A call whose deadline cannot be set is
    /// refused, with a [`NotSent`] as the cause. A value that [travels](super::Travel) and cannot be set is left out
    /// with a `WARN`, unless the outbound is [`strict`](super::Outbound::strict).
    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError>;

    /// Removes all values of this key.
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

/// Returns all values of this name.
pub(crate) fn values<'a>(carrier: &'a dyn Carrier, name: &HeaderName) -> Vec<&'a [u8]> {
    match carrier.as_headers() {
        Some(headers) => headers.get_all(name).iter().map(HeaderValue::as_bytes).collect(),
        None => carrier.get_all(name.as_str()),
    }
}

/// Returns the value of this name, or an error if there are several.
pub(crate) fn only<'a>(carrier: &'a dyn Carrier, name: &HeaderName) -> Only<'a> {
    match carrier.as_headers() {
        Some(headers) => sole(headers.get_all(name).iter().map(HeaderValue::as_bytes)),
        None => sole(carrier.get_all(name.as_str()).into_iter()),
    }
}

/// Returns the only one of these values, or an error if there are several.
#[inline]
pub(crate) fn sole<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Only<'a> {
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Several),
        (value, None) => Ok(value),
    }
}

/// Returns whether a carrier may have a header that is sought. Most requests have few headers, which are compared faster than
/// names are looked up.
pub(crate) fn may_have(carrier: &dyn Carrier, is_sought: impl Fn(&HeaderName) -> bool) -> bool {
    carrier.as_headers().is_none_or(|headers| headers.keys().any(is_sought))
}

/// The value of a name, if there is only one.
pub(crate) type Only<'a> = Result<Option<&'a [u8]>, Several>;

#[derive(Clone, Copy)]
pub(crate) struct Several;

pub(crate) fn set(carrier: &mut dyn Carrier, name: &HeaderName, value: &str) -> Result<(), NotSent> {
    put(carrier, name, value, false)
}

fn put(
    carrier: &mut dyn Carrier,
    name: &HeaderName,
    value: &str,
    is_sensitive: bool,
) -> Result<(), NotSent> {
    let not_sent = |why: BoxError| NotSent::new(name.as_str(), why);
    match carrier.as_headers_mut() {
        Some(headers) => {
            let mut value = HeaderValue::from_str(value).map_err(|why| not_sent(why.into()))?;
            value.set_sensitive(is_sensitive);
            headers.try_insert(name.clone(), value).map_err(|full| not_sent(full.into()))?;
            Ok(())
        }
        None => carrier.set(name.as_str(), value).map_err(not_sent),
    }
}

/// Like [`set`], for a value that differs from call to call.
///
/// HTTP/2 would add every such value to its table of headers, where it displaces others and is not used again. A value
/// that is marked as sensitive is not added.
pub(crate) fn set_once(
    carrier: &mut dyn Carrier,
    name: &HeaderName,
    value: &str,
) -> Result<(), NotSent> {
    put(carrier, name, value, true)
}

/// Returns the value that [`set_once`] writes into a `HeaderMap`.
pub(crate) fn value_of_call(value: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns a header's value as text, if it is visible ASCII, spaces and tabs.
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

/// The cause of a call that is refused because its deadline, or one of its values, cannot be written.
///
/// It is the [cause](crate::Error::cause_as) of the error that [`inject`](crate::Context::inject) returns.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{NotSent, get_with};
///
/// let ctx = Context::background().with_timeout(std::time::Duration::from_secs(1));
/// // A carrier that is read-only.
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

    /// Returns itself as the error if `strict`; otherwise emits a `WARN`.
    pub(crate) fn or_warn(self, strict: bool) -> Result<(), NotSent> {
        if strict {
            return Err(self);
        }
        warn(&self.key, &self);
        Ok(())
    }

    /// Returns the key that could not be written.
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
    // `Display` includes the reason itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.why.source()
    }
}

/// The error for a key with several values.
impl Carrier for HeaderMap {
    fn get(&self, key: &str) -> Option<&[u8]> {
        HeaderMap::get(self, key).map(HeaderValue::as_bytes)
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        HeaderMap::get_all(self, key).iter().map(HeaderValue::as_bytes).collect()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
        self.try_insert(HeaderName::from_bytes(key.as_bytes())?, HeaderValue::from_str(value)?)?;
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

/// Only ASCII entries are read and written, because this crate has no binary ones.
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
        // tonic's own type refuses the keys of binary entries. Its `insert` panics if the map is full.
        let key: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = key.parse()?;
        Carrier::set(AsMut::<HeaderMap>::as_mut(self), key.as_str(), value)
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

macro_rules! carrier_of_strings {
    ($map:ty $(, $param:ident: $bound:ident)?) => {
        /// Keys are case-insensitive, and written in lower case.
        impl$(<$param: $bound>)? Carrier for $map {
            fn get(&self, key: &str) -> Option<&[u8]> {
                let exact = <$map>::get(self, key);
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
    };
}

carrier_of_strings!(HashMap<String, String, S>, S: BuildHasher);
carrier_of_strings!(BTreeMap<String, String>);

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

/// A read-only carrier behind a reference, so that carriers without a known size can be read as well.
pub(crate) struct ByRef<'a, C: ?Sized>(pub(crate) &'a C);

impl<C: Carrier + ?Sized> Carrier for ByRef<'_, C> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key)
    }

    fn get_all(&self, key: &str) -> Vec<&[u8]> {
        self.0.get_all(key)
    }

    fn set(&mut self, _key: &str, _value: &str) -> Result<(), BoxError> {
        Err(READ_ONLY.into())
    }

    fn remove(&mut self, _key: &str) {}

    fn as_headers(&self) -> Option<&HeaderMap> {
        self.0.as_headers()
    }
}

const READ_ONLY: &str = "the carrier can only be read";

/// Makes a carrier for [`extract`](crate::Context::extract) from a function that looks up a key.
///
/// It adapts the types of other crates: OpenTelemetry's `Extractor`, the headers of NATS, AMQP or Kafka. The
/// function is called with keys in lower case, and decides whether keys in other cases match. The carrier is
/// read-only.
///
/// ```
/// use std::collections::HashMap;
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::{Inbound, get_with};
///
/// /// As in OpenTelemetry.
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

/// A read-only carrier. Made by [`get_with`].
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
        Err(READ_ONLY.into())
    }

    fn remove(&mut self, _key: &str) {}
}

impl<F> fmt::Debug for GetWith<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetWith").finish_non_exhaustive()
    }
}

/// Makes a carrier for [`inject`](crate::Context::inject) from a function that sets a key.
///
/// It adapts the types of other crates: OpenTelemetry's `Injector`, the headers of NATS, AMQP or Kafka. The carrier
/// is write-only. Values that are already there cannot be taken into account: existing `baggage` is replaced
/// instead of being extended, and so is a shorter deadline.
///
/// ```
/// use tokio_ctx::Context;
/// use tokio_ctx::wire::set_with;
///
/// /// As in OpenTelemetry.
/// trait Injector {
///     fn set(&mut self, key: &str, value: String);
/// }
///
/// fn inject(ctx: &Context, message: &mut dyn Injector) -> Result<(), tokio_ctx::Error> {
///     ctx.inject(&mut set_with(|key, value| {
///         message.set(key, value.to_owned());
///         Ok(())
///     }))
/// }
/// # impl Injector for Vec<String> {
/// #     fn set(&mut self, key: &str, _: String) { self.push(key.into()) }
/// # }
/// # let mut message = Vec::new();
/// # inject(&Context::background().with_timeout(std::time::Duration::from_secs(1)), &mut message).unwrap();
/// # assert_eq!(message, ["grpc-timeout"]);
/// ```
pub fn set_with<F>(set: F) -> SetWith<F>
where
    F: FnMut(&str, &str) -> Result<(), BoxError>,
{
    SetWith(set)
}

/// A write-only carrier. Made by [`set_with`].
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
