//! Which headers a client writes for the next service.

use std::panic::Location;
use std::time::Duration;

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::baggage;
use super::carrier::{self, Carrier, NotSent};
use super::date::DeadlineAt;
use super::timeout::{DeadlineHeader, untrusted};
use super::travel::{Carried, Travel};
use crate::context::Context;
use crate::error::{BoxError, Error};

/// Selects the headers that a client writes for the next service: the remaining time, and values.
///
/// ```
/// use std::time::Duration;
/// use http::HeaderMap;
/// use tokio_ctx::{Context, wire::{DeadlineHeader, Outbound}};
///
/// let outbound = Outbound::new().write([DeadlineHeader::Connect]).margin(Duration::from_millis(20));
/// let ctx = Context::background().with_timeout(Duration::from_millis(300));
/// let mut headers = HeaderMap::new();
/// ctx.inject_with(&mut headers, &outbound)?;
/// let timeout: u64 = headers["connect-timeout-ms"].to_str().unwrap().parse().unwrap();
/// assert!(timeout < 280);
/// # Ok::<(), tokio_ctx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbound {
    written: Vec<DeadlineHeader>,
    date: Option<DeadlineAt>,
    margin: Duration,
    carried: Carried,
    sanitize: bool,
    stripped: Vec<HeaderName>,
    strict: bool,
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound::new()
    }
}

impl Outbound {
    /// Writes `grpc-timeout`, without a margin, and no values.
    ///
    /// ```
    /// let outbound = tokio_ctx::wire::Outbound::new();
    /// let mut headers = http::HeaderMap::new();
    /// tokio_ctx::Context::background().inject_with(&mut headers, &outbound)?;
    /// assert!(headers.is_empty());
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn new() -> Outbound {
        Outbound {
            written: vec![DeadlineHeader::Grpc],
            date: None,
            margin: Duration::ZERO,
            carried: Carried::default(),
            sanitize: false,
            stripped: Vec::new(),
            strict: false,
        }
    }

    /// Writes these deadline headers and no others. With an empty list, the deadline applies only on this side.
    ///
    /// A request that is forwarded may have another deadline header that this crate knows. If its time is longer than
    /// the remaining time, the remaining time replaces it.
    ///
    /// ```
    /// use tokio_ctx::wire::{DeadlineHeader, Outbound};
    ///
    /// let _outbound = Outbound::new().write([DeadlineHeader::Grpc, DeadlineHeader::Envoy]);
    /// ```
    pub fn write(mut self, headers: impl IntoIterator<Item = DeadlineHeader>) -> Self {
        self.written = headers.into_iter().collect();
        self
    }

    /// Writes the deadline as an absolute time instead of the remaining time, for messages that wait in a queue.
    ///
    /// A call of [`write`](Self::write) after this one adds headers with the remaining time again. An earlier date
    /// that is already in the message is kept. See [`DeadlineAt`].
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use std::time::Duration;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{DeadlineAt, Outbound};
    ///
    /// let outbound = Outbound::new().write_date(DeadlineAt::new(Duration::from_secs(3600)));
    /// let ctx = Context::background().with_timeout(Duration::from_secs(60));
    /// let mut properties = BTreeMap::<String, String>::new();
    /// ctx.inject_with(&mut properties, &outbound)?;
    /// assert_eq!(properties.keys().collect::<Vec<_>>(), ["x-deadline-unix-ms"]);
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn write_date(mut self, date: DeadlineAt) -> Self {
        self.written.clear();
        self.date = Some(date);
        self
    }

    /// Removes what an untrusted client may have put into the request, for an edge that forwards requests.
    ///
    /// [`Inbound::untrusted`](super::Inbound::untrusted) ignores these headers at the edge. Without this method, the
    /// next service would trust them. Before writing anything, the outbound removes all deadline headers that this
    /// crate knows, Envoy's headers that set timeouts and retries, the headers of the values that this outbound
    /// carries, and the whole `baggage`. Only the deadline and the values of the context are sent. A timeout that was
    /// set on the request itself, for example with tonic's `Request::set_timeout`, is removed as well; set it on the
    /// context instead. For other headers, such as `x-user-id` or `traceparent`, see [`strip`](Self::strip).
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::Outbound};
    ///
    /// let mut passed_on = HeaderMap::new();
    /// passed_on.insert("grpc-timeout", "1n".parse().unwrap());
    /// passed_on.insert("baggage", "tenant=eve".parse().unwrap());
    /// passed_on.insert("accept", "*/*".parse().unwrap());
    /// Context::background().inject_with(&mut passed_on, &Outbound::new().sanitize())?;
    /// assert_eq!(passed_on.keys().collect::<Vec<_>>(), ["accept"]);
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn sanitize(mut self) -> Self {
        self.sanitize = true;
        self
    }

    /// Removes these headers before anything is written.
    ///
    /// ```
    /// use http::{HeaderMap, HeaderName};
    /// use tokio_ctx::{Context, wire::Outbound};
    ///
    /// let edge = Outbound::new().sanitize().strip([HeaderName::from_static("x-user-id")]);
    /// let mut passed_on = HeaderMap::new();
    /// passed_on.insert("x-user-id", "0".parse().unwrap());
    /// Context::background().inject_with(&mut passed_on, &edge)?;
    /// assert!(passed_on.is_empty());
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn strip(mut self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        self.stripped.extend(headers);
        self
    }

    /// Refuses a call with a value that cannot be sent unchanged. Otherwise the value is left out with a `WARN`.
    ///
    /// The cause of the error is a [`NotSent`], which contains the key.
    ///
    /// ```
    /// # use std::borrow::Cow;
    /// # use tokio_ctx::wire::Travel;
    /// # struct Tenant(String);
    /// # impl Travel for Tenant {
    /// #     const NAME: &'static str = "x-tenant";
    /// #     fn encode(&self) -> Cow<'_, str> { Cow::Borrowed(&self.0) }
    /// #     fn decode(text: &str) -> Option<Self> { Some(Tenant(text.into())) }
    /// # }
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::{NotSent, Outbound};
    /// use tokio_ctx::Context;
    ///
    /// let ctx = Context::background().with_value(Tenant("café".into()));
    /// let outbound = Outbound::new().carry::<Tenant>();
    /// assert!(ctx.inject_with(&mut HeaderMap::new(), &outbound).is_ok());
    /// let refused = ctx.inject_with(&mut HeaderMap::new(), &outbound.strict()).unwrap_err();
    /// assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "x-tenant");
    /// ```
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Subtracts this much from the time that is sent, so that time remains to receive the response and to act on it.
    ///
    /// The call itself may take all of the remaining time. A call is sent only if more than the margin remains.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::Outbound};
    ///
    /// let ctx = Context::background().with_timeout(Duration::from_millis(10));
    /// let outbound = Outbound::new().margin(Duration::from_millis(20));
    /// let too_late = ctx.inject_with(&mut HeaderMap::new(), &outbound).unwrap_err();
    /// assert!(too_late.is_deadline_exceeded());
    /// ```
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = margin;
        self
    }

    /// Sends values of this type, in the header with the name of the type.
    ///
    /// See [`Travel`]. If the context has no such value, an existing header is left as it is, unless this
    /// [sanitizes](Self::sanitize).
    ///
    /// ```
    /// # use std::borrow::Cow;
    /// # use tokio_ctx::wire::Travel;
    /// # struct RequestId(String);
    /// # impl Travel for RequestId {
    /// #     const NAME: &'static str = "x-request-id";
    /// #     fn encode(&self) -> Cow<'_, str> { Cow::Borrowed(&self.0) }
    /// #     fn decode(text: &str) -> Option<Self> { Some(RequestId(text.into())) }
    /// # }
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::Outbound};
    ///
    /// let mut headers = HeaderMap::new();
    /// let ctx = Context::background().with_value(RequestId("b7".into()));
    /// ctx.inject_with(&mut headers, &Outbound::new().carry::<RequestId>())?;
    /// assert_eq!(headers["x-request-id"], "b7");
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn carry<T: Travel>(mut self) -> Self {
        self.carried.add::<T>();
        self
    }

    /// Sends values of this type, as a member of the W3C `baggage` header.
    ///
    /// See [`Travel`]. Members that are already in `baggage` are kept, unless this [sanitizes](Self::sanitize). All
    /// members are written in one line. A member that would exceed the limits of the specification, 8,192 bytes and
    /// 180 members, is not sent. OpenTelemetry's extractor for Rust reads the first 64 members, and trims values.
    ///
    /// ```
    /// # use std::borrow::Cow;
    /// # use tokio_ctx::wire::Travel;
    /// # struct Tenant(String);
    /// # impl Travel for Tenant {
    /// #     const NAME: &'static str = "tenant";
    /// #     fn encode(&self) -> Cow<'_, str> { Cow::Borrowed(&self.0) }
    /// #     fn decode(text: &str) -> Option<Self> { Some(Tenant(text.into())) }
    /// # }
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::Outbound};
    ///
    /// let mut headers = HeaderMap::new();
    /// let ctx = Context::background().with_value(Tenant("café".into()));
    /// ctx.inject_with(&mut headers, &Outbound::new().carry_in_baggage::<Tenant>())?;
    /// assert_eq!(headers["baggage"], "tenant=caf%C3%A9");
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    pub fn carry_in_baggage<T: Travel>(mut self) -> Self {
        self.carried.add_in_baggage::<T>();
        self
    }

    /// Implements [`Context::inject_with`], with the line of the call.
    ///
    /// Everything in this crate that can fail comes before the first change; only the carrier itself can fail later.
    pub(crate) fn inject(
        &self,
        ctx: &Context,
        carrier: &mut dyn Carrier,
        place: &'static Location<'static>,
    ) -> Result<(), Error> {
        let left = ctx.check_time_left()?.map(|left| left.saturating_sub(self.margin));
        let stale = left.map(|left| self.stale(left, carrier)).unwrap_or_default();
        if left.is_some_and(|left| !self.suffices(left, carrier) || !is_expressible(left, &stale)) {
            return Err(nothing_left(ctx, place));
        }
        let refused = |not_sent| refused(ctx, place, not_sent);
        let values = match self.carried.is_empty() {
            true => Vec::new(),
            false => self.carried.texts(ctx, carrier, self.sanitize, self.strict).map_err(refused)?,
        };
        self.clean(carrier);
        if let Some(left) = left {
            if !self.write_left(left, carrier).map_err(refused)? {
                return Err(nothing_left(ctx, place));
            }
            for header in stale {
                let text = header.text(left).unwrap_or_else(|| unreachable!("checked above"));
                carrier::set_once(carrier, header.name(), text.as_str()).map_err(refused)?;
            }
        }
        for (name, text) in values {
            let Some(text) = text else {
                carrier::remove(carrier, name);
                continue;
            };
            carrier::set(carrier, name, &text)
                .or_else(|not_sent| not_sent.or_warn(self.strict))
                .map_err(refused)?;
        }
        Ok(())
    }

    /// Returns whether every deadline header can express the remaining time. With only one header, that is checked
    /// when it is written.
    fn suffices(&self, left: Duration, carrier: &dyn Carrier) -> bool {
        match (&self.written[..], &self.date) {
            ([header], None) => left >= header.least(),
            (written, date) => {
                let dated = date.is_none() || left >= Duration::from_millis(1);
                dated
                    && written
                        .iter()
                        .all(|header| self.time_for(header, left, carrier) >= header.least())
            }
        }
    }

    /// Returns the headers of a forwarded request that this outbound does not write, and that contain more than the
    /// remaining time.
    fn stale(&self, left: Duration, carrier: &dyn Carrier) -> Vec<&'static DeadlineHeader> {
        let is_other = |header: &&DeadlineHeader| {
            let mut others = self.written.iter().map(DeadlineHeader::name).chain(&self.stripped);
            !others.any(|other| other == header.name())
        };
        let is_sought = |name: &HeaderName| {
            KNOWN.iter().find(|header| header.name() == name).as_ref().is_some_and(is_other)
        };
        if self.sanitize || self.written.is_empty() || !carrier::may_have(carrier, is_sought) {
            return Vec::new();
        }
        let is_longer = |header: &&DeadlineHeader| {
            header.read_from(carrier).ok().flatten().is_some_and(|given| given > left)
        };
        KNOWN.iter().filter(is_other).filter(is_longer).collect()
    }

    /// Returns the time to write into this header. A shorter time that is already there was set for this call.
    fn time_for(&self, header: &DeadlineHeader, left: Duration, carrier: &dyn Carrier) -> Duration {
        if self.sanitize {
            return left;
        }
        header.read_from(carrier).ok().flatten().map_or(left, |given| left.min(given))
    }

    /// Writes the deadline headers. Returns false, and writes nothing, if the only header cannot express such a short
    /// time.
    fn write_left(&self, left: Duration, carrier: &mut dyn Carrier) -> Result<bool, NotSent> {
        for header in &self.written {
            let is_written = match carrier.as_headers_mut() {
                Some(headers) => self.write_header(header, left, headers)?,
                None => match header.text(self.time_for(header, left, carrier)) {
                    Some(text) => {
                        carrier::set_once(carrier, header.name(), text.as_str()).map(|()| true)?
                    }
                    None => false,
                },
            };
            if !is_written {
                return Ok(false);
            }
        }
        if let Some(date) = &self.date {
            let by = date.date_in(left);
            let by = date.date(carrier).ok().flatten().map_or(by, |given| by.min(given));
            carrier::set_once(carrier, date.name(), DeadlineAt::text(by).as_str())?;
        }
        Ok(true)
    }

    /// Writes one deadline header, which is looked up once.
    fn write_header(
        &self,
        header: &DeadlineHeader,
        left: Duration,
        headers: &mut HeaderMap,
    ) -> Result<bool, NotSent> {
        let not_sent = |why: BoxError| NotSent::new(header.name().as_str(), why);
        let entry = headers.try_entry(header.name()).map_err(|why| not_sent(why.into()))?;
        let left = match &entry {
            Entry::Occupied(given) if !self.sanitize => {
                let only = carrier::sole(given.iter().map(HeaderValue::as_bytes));
                header.read_value(only).ok().flatten().map_or(left, |given| left.min(given))
            }
            _ => left,
        };
        let Some(text) = header.text(left) else { return Ok(false) };
        let value = carrier::value_of_call(text.as_bytes()).map_err(|why| not_sent(why.into()))?;
        match entry {
            Entry::Occupied(mut entry) => drop(entry.insert(value)),
            Entry::Vacant(entry) => {
                entry.try_insert(value).map_err(|why| not_sent(why.into()))?;
            }
        }
        Ok(true)
    }

    /// Removes the headers that are not forwarded.
    fn clean(&self, carrier: &mut dyn Carrier) {
        if self.sanitize {
            let own = self
                .written
                .iter()
                .map(DeadlineHeader::name)
                .chain(self.date.as_ref().map(DeadlineAt::name));
            let all = untrusted().chain([&baggage::NAME, DeadlineAt::usual_name()]);
            all.chain(own).chain(self.carried.headers()).for_each(|name| carrier::remove(carrier, name));
        }
        self.stripped.iter().for_each(|name| carrier::remove(carrier, name));
    }
}

/// The deadline headers with fixed names.
static KNOWN: [DeadlineHeader; 4] = [
    DeadlineHeader::Grpc,
    DeadlineHeader::Connect,
    DeadlineHeader::Envoy,
    DeadlineHeader::EnvoyUpstream,
];

fn is_expressible(left: Duration, headers: &[&DeadlineHeader]) -> bool {
    headers.iter().all(|header| left >= header.least())
}

/// Makes the error of a call whose headers cannot be written. The context itself has not ended.
fn refused(ctx: &Context, place: &'static Location<'static>, not_sent: NotSent) -> Error {
    let call = ctx.child_made_at(place, None);
    call.cancel_at(place, not_sent.into());
    call.check().expect_err("it has just been canceled")
}

/// Makes the error of a call for which no time remains, although the deadline of its context has not passed.
fn nothing_left(ctx: &Context, place: &'static Location<'static>) -> Error {
    let budget = (Duration::ZERO, "too little is left for a call".into());
    let late = ctx.child_made_at(place, Some(budget));
    late.check().expect_err("a context with a budget of zero has ended")
}

impl Context {
    /// Writes the remaining time of this context into the headers of a request, as `grpc-timeout`. The headers are an
    /// `http::HeaderMap` or another [`Carrier`].
    ///
    /// Bound the call by the context as well, with [`run`](Self::run). This drops the request when the context ends, and
    /// over HTTP/2 the server learns of it. [`ClientLayer`](crate::wire::ClientLayer) does both for tower services. A
    /// context without a deadline writes nothing. A shorter `grpc-timeout` that is already there is kept.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it has ended. Do not send the request then; its headers have not
    /// been changed. If the carrier cannot be written to, the cause of the error is a [`NotSent`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::Context;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), tokio_ctx::Error> {
    /// let ctx = Context::background().with_timeout(Duration::from_millis(300));
    /// tokio::time::advance(Duration::from_millis(100)).await;
    ///
    /// let mut headers = HeaderMap::new();
    /// ctx.inject(&mut headers)?;
    /// assert_eq!(headers["grpc-timeout"], "200000u");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    #[track_caller]
    pub fn inject<C: Carrier + ?Sized>(&self, mut carrier: &mut C) -> Result<(), Error> {
        Outbound::new().inject(self, &mut carrier, Location::caller())
    }

    /// Like [`inject`](Self::inject), but writes the headers and values that `outbound` selects.
    ///
    /// # Errors
    ///
    /// Returns the context's [`err`](Self::err) if it has ended, and a deadline error if less time remains than the
    /// margin, or than the header can express. The cause is a [`NotSent`] if the carrier cannot be written to, or if
    /// `outbound` is [`strict`](Outbound::strict) and a value cannot be sent. If the carrier fails, some of the headers
    /// may have been written; do not send the request.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::{DeadlineHeader, Outbound}};
    ///
    /// let outbound = Outbound::new().write([DeadlineHeader::Envoy]).margin(Duration::from_millis(5));
    /// let ctx = Context::background().with_timeout(Duration::from_millis(300));
    /// let mut headers = HeaderMap::new();
    /// ctx.inject_with(&mut headers, &outbound)?;
    /// assert!(headers.contains_key("x-envoy-expected-rq-timeout-ms"));
    /// # Ok::<(), tokio_ctx::Error>(())
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    #[track_caller]
    pub fn inject_with<C: Carrier + ?Sized>(
        &self,
        mut carrier: &mut C,
        outbound: &Outbound,
    ) -> Result<(), Error> {
        outbound.inject(self, &mut carrier, Location::caller())
    }
}
