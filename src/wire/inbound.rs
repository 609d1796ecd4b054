//! Which headers of a request a server trusts, and how it derives a context from them.

use std::panic::Location;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::carrier::{ByRef, Carrier};
use super::date::DeadlineAt;
use super::timeout::{BadHeader, DeadlineHeader};
use super::travel::{Carried, Travel};
use super::warn::warn;
use crate::context::{CancelScope, Context};
pub use crate::finished::Budget;

/// Selects the headers of a request that a server trusts, and the limits that it sets itself.
///
/// [`new`](Self::new) trusts all three deadline headers that this crate knows. It sets no limit and extracts no values. To
/// limit every request, set a [`max_budget`](Self::max_budget), which applies to requests without a deadline header as
/// well.
///
/// ```
/// use std::time::Duration;
/// use http::HeaderMap;
/// use tokio_ctx::wire::Inbound;
///
/// let inbound =
///     Inbound::new().max_budget(Duration::from_secs(30)).default_budget(Duration::from_secs(5));
/// let budget = |timeout: Option<&'static str>| {
///     let timeout = timeout.map(|timeout| ("grpc-timeout".parse().unwrap(), timeout.parse().unwrap()));
///     inbound.budget(&HeaderMap::from_iter(timeout)).unwrap().unwrap()
/// };
/// assert_eq!(budget(Some("300m")), Duration::from_millis(300));
/// assert_eq!(budget(Some("1H")), Duration::from_secs(30));
/// assert_eq!(budget(None), Duration::from_secs(5));
/// assert_eq!(budget(Some("soon")), Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
pub struct Inbound {
    believed: Vec<DeadlineHeader>,
    /// The lengths of their names, and of `content-type`, as a set of bits.
    lengths: u64,
    date: Option<DeadlineAt>,
    max: Option<Duration>,
    min: Option<Duration>,
    default: Option<Duration>,
    strict: bool,
    untrusted: bool,
    carried: Carried,
}

impl Default for Inbound {
    fn default() -> Self {
        Inbound::new()
    }
}

impl Inbound {
    /// Trusts `grpc-timeout`, `connect-timeout-ms` and `x-envoy-expected-rq-timeout-ms`.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// assert_eq!(Inbound::new().budget(&HeaderMap::new()).unwrap(), None);
    /// ```
    pub fn new() -> Inbound {
        Inbound {
            believed: Vec::new(),
            lengths: 0,
            date: None,
            max: None,
            min: None,
            default: None,
            strict: false,
            untrusted: false,
            carried: Carried::default(),
        }
        .believe([DeadlineHeader::Grpc, DeadlineHeader::Connect, DeadlineHeader::Envoy])
    }

    /// Trusts these deadline headers and no others. If a request has several, the earliest deadline applies.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::{HeaderMap, HeaderName};
    /// use tokio_ctx::wire::{DeadlineHeader, Inbound};
    ///
    /// let own = DeadlineHeader::Millis(HeaderName::from_static("x-budget-ms"));
    /// let inbound = Inbound::new().believe([own, DeadlineHeader::Grpc]);
    /// let mut headers = HeaderMap::new();
    /// headers.insert("x-budget-ms", "250".parse().unwrap());
    /// headers.insert("connect-timeout-ms", "50".parse().unwrap());
    /// assert_eq!(inbound.budget(&headers).unwrap(), Some(Duration::from_millis(250)));
    /// ```
    pub fn believe(mut self, headers: impl IntoIterator<Item = DeadlineHeader>) -> Self {
        self.believed = headers.into_iter().collect();
        let names = self.believed.iter().map(DeadlineHeader::name).chain([&CONTENT_TYPE]);
        self.lengths = names.fold(0, |bits, name| bits | length_bit(name));
        self
    }

    /// Trusts an absolute time instead of the headers with the remaining time, for messages from a queue.
    ///
    /// A call of [`believe`](Self::believe) after this one adds such headers again. See [`DeadlineAt`].
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::time::Duration;
    /// use tokio_ctx::wire::{DeadlineAt, Inbound};
    ///
    /// let inbound = Inbound::new().believe_date(DeadlineAt::new(Duration::from_secs(60)));
    /// let sent = |date: &str| HashMap::from([("x-deadline-unix-ms".to_string(), date.to_string())]);
    /// // A date that has passed, and one beyond the maximum.
    /// assert_eq!(inbound.budget(&sent("1000")).unwrap(), Some(Duration::ZERO));
    /// assert_eq!(inbound.budget(&sent("9999999999999")).unwrap(), Some(Duration::from_secs(60)));
    /// ```
    pub fn believe_date(mut self, date: DeadlineAt) -> Self {
        self.date = Some(date);
        self.believe([])
    }

    /// Sets the longest time that a request gets, with or without a deadline header.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let inbound = Inbound::new().max_budget(Duration::from_secs(30));
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "99999999H".parse().unwrap());
    /// assert_eq!(inbound.budget(&headers).unwrap(), Some(Duration::from_secs(30)));
    /// ```
    pub fn max_budget(mut self, max: Duration) -> Self {
        self.max = Some(max);
        self
    }

    /// Removes the maximum and the default, for a route whose requests may take longer than others.
    ///
    /// A deadline in the headers still applies.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let usual = Inbound::new().max_budget(Duration::from_secs(30));
    /// let events = usual.clone().unlimited();
    /// assert_eq!(events.budget(&HeaderMap::new()).unwrap(), None);
    /// ```
    pub fn unlimited(mut self) -> Self {
        (self.max, self.default) = (None, None);
        self
    }

    /// Sets the minimum time that a request needs. A request with less ends at once, by its deadline.
    ///
    /// A [`ServerLayer`](crate::wire::ServerLayer) responds `504 Gateway Timeout`, for gRPC `DEADLINE_EXCEEDED`,
    /// without calling the handler. The context that [`extract`](Context::extract) returns has ended, with the cause
    /// [`Budget::Minimum`]. The minimum is compared with the remaining time of the request, or with that of the service
    /// if it is shorter. A request without a deadline always has enough time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::Context;
    /// use tokio_ctx::wire::{Budget, Inbound};
    ///
    /// let report = Inbound::new().min_budget(Duration::from_millis(200));
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "150m".parse().unwrap());
    /// let late = Context::background().extract(&headers, &report)?;
    /// assert_eq!(late.err().unwrap().cause_as(), Some(&Budget::Minimum));
    /// # Ok::<(), tokio_ctx::wire::BadHeader>(())
    /// ```
    pub fn min_budget(mut self, min: Duration) -> Self {
        self.min = Some(min);
        self
    }

    /// Sets the time that a request gets without a valid deadline header.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let inbound = Inbound::new().default_budget(Duration::from_secs(5));
    /// assert_eq!(inbound.budget(&HeaderMap::new()).unwrap(), Some(Duration::from_secs(5)));
    /// ```
    pub fn default_budget(mut self, default: Duration) -> Self {
        self.default = Some(default);
        self
    }

    /// Refuses requests with an invalid deadline header.
    ///
    /// The response is `400 Bad Request`, for gRPC `INVALID_ARGUMENT`. Without this method, such a request gets the
    /// default, and a `WARN` is logged.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "1e9S".parse().unwrap());
    /// assert!(Inbound::new().budget(&headers).is_ok());
    /// assert!(Inbound::new().strict().budget(&headers).is_err());
    /// ```
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Trusts no headers at all, for a server at the edge, whose clients are not trusted.
    ///
    /// This overrides the other methods. Only the default and the maximum apply, and no values are extracted.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let edge = Inbound::new().untrusted().default_budget(Duration::from_secs(2));
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "1n".parse().unwrap());
    /// assert_eq!(edge.budget(&headers).unwrap(), Some(Duration::from_secs(2)));
    /// ```
    pub fn untrusted(mut self) -> Self {
        self.untrusted = true;
        self
    }

    /// Extracts values of this type, from the header with the name of the type.
    ///
    /// See [`Travel`].
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
    /// use tokio_ctx::{Context, wire::Inbound};
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("x-request-id", "b7".parse().unwrap());
    /// let inbound = Inbound::new().carry::<RequestId>();
    /// let ctx = Context::background().extract(&headers, &inbound)?;
    /// assert_eq!(ctx.value::<RequestId>().unwrap().0, "b7");
    /// # Ok::<(), tokio_ctx::wire::BadHeader>(())
    /// ```
    pub fn carry<T: Travel>(mut self) -> Self {
        self.carried.add::<T>();
        self
    }

    /// Extracts values of this type, from the member of the W3C `baggage` header with the key of the type.
    ///
    /// See [`Travel`]. A `baggage` header that exceeds the limits of the specification, 8,192 bytes and 180 members, is
    /// ignored.
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
    /// use tokio_ctx::{Context, wire::Inbound};
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("baggage", "region=eu, tenant=caf%C3%A9;public".parse().unwrap());
    /// let inbound = Inbound::new().carry_in_baggage::<Tenant>();
    /// let ctx = Context::background().extract(&headers, &inbound)?;
    /// assert_eq!(ctx.value::<Tenant>().unwrap().0, "café");
    /// # Ok::<(), tokio_ctx::wire::BadHeader>(())
    /// ```
    pub fn carry_in_baggage<T: Travel>(mut self) -> Self {
        self.carried.add_in_baggage::<T>();
        self
    }

    /// Returns the time that a request with these headers gets. `None` means no limit but that of the service.
    ///
    /// # Errors
    ///
    /// Returns an error if this is [`strict`](Self::strict) and a deadline header is invalid.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::wire::Inbound;
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "2S".parse().unwrap());
    /// assert_eq!(Inbound::new().budget(&headers).unwrap(), Some(Duration::from_secs(2)));
    /// ```
    pub fn budget<C: Carrier + ?Sized>(&self, carrier: &C) -> Result<Option<Duration>, BadHeader> {
        let scanned = carrier.as_headers().and_then(|headers| self.scan(headers).timeout);
        Ok(self.limit(&ByRef(carrier), scanned)?.map(|(budget, _)| budget))
    }

    fn limit(
        &self,
        carrier: &dyn Carrier,
        scanned: Option<Option<Duration>>,
    ) -> Result<Option<(Duration, Budget)>, BadHeader> {
        let scanned = scanned.filter(|_| !self.untrusted && self.date.is_none());
        let (limit, wrong) = match scanned {
            Some(timeout) => (timeout.map(|timeout| (timeout, Budget::Caller)), false),
            None => self.read_limit(carrier)?,
        };
        let default = self.default.filter(|_| wrong || limit.is_none());
        Ok(earliest(earliest(limit, default, Budget::Default), self.max, Budget::Maximum))
    }

    /// Reads the headers one by one. Returns the limit that they set, and whether one of them was wrong.
    #[cold]
    fn read_limit(
        &self,
        carrier: &dyn Carrier,
    ) -> Result<(Option<(Duration, Budget)>, bool), BadHeader> {
        let mut limit = None;
        let mut wrong = false;
        if !self.untrusted {
            let mut take = |read: Result<Option<Duration>, BadHeader>, max: Option<Duration>| match read
            {
                Ok(None) => Ok(()),
                Ok(timeout) => {
                    limit = earliest(limit, timeout, Budget::Caller);
                    limit = earliest(limit, max, Budget::Maximum);
                    Ok(())
                }
                Err(bad) if self.strict => Err(bad),
                Err(bad) => {
                    warn(bad.name().as_str(), &bad);
                    wrong = true;
                    Ok(())
                }
            };
            for header in &self.believed {
                take(header.read_from(carrier), None)?;
            }
            if let Some(date) = &self.date {
                take(date.read_from(carrier), Some(date.max()))?;
            }
        }
        Ok((limit, wrong))
    }

    /// Reads all headers in one pass. Most names are skipped by their length.
    #[inline]
    pub(crate) fn scan<'a>(&self, headers: &'a HeaderMap) -> Scan<'a> {
        let mut scan = Scan { content_type: None, timeout: Some(None) };
        let mut seen = 0_u64;
        for (name, value) in headers {
            if self.lengths & length_bit(name) == 0 {
                continue;
            }
            if *name == CONTENT_TYPE {
                scan.content_type.get_or_insert(value);
                continue;
            }
            let Some(nth) = self.believed.iter().position(|header| header.name() == name) else {
                continue;
            };
            let bit = 1_u64.checked_shl(nth as u32).filter(|bit| seen & bit == 0);
            let read = self.believed[nth].read_value(Ok(Some(value.as_bytes()))).ok();
            scan.timeout = match (scan.timeout, bit.and(read)) {
                (Some(Some(least)), Some(Some(timeout))) => Some(Some(least.min(timeout))),
                (Some(least), Some(timeout)) => Some(least.or(timeout)),
                _ => None,
            };
            seen |= bit.unwrap_or(0);
        }
        scan
    }

    /// Derives the context of a request from `root`. `head_start` returns how much earlier than the timeout in the
    /// headers the context ends.
    pub(crate) fn derive(
        &self,
        root: &Context,
        carrier: &dyn Carrier,
        scanned: Option<Option<Duration>>,
        made_at: &'static Location<'static>,
        head_start: fn(Duration) -> Duration,
    ) -> Result<CancelScope, BadHeader> {
        let limit = self.limit(carrier, scanned)?;
        let budget = match limit {
            limit if self.is_too_little(limit, root) => Some((Duration::ZERO, Budget::Minimum)),
            Some((budget, Budget::Caller)) => Some((budget - head_start(budget), Budget::Caller)),
            limit => limit,
        };
        let mut scope = root.request_made_at(made_at, budget);
        if !self.untrusted {
            self.carried.read(scope.context_mut(), carrier);
        }
        Ok(scope)
    }

    /// Returns whether the request, or its service, has less time than the minimum.
    fn is_too_little(&self, limit: Option<(Duration, Budget)>, root: &Context) -> bool {
        let Some(min) = self.min else { return false };
        let limit = limit.map(|(budget, _)| budget);
        limit.into_iter().chain(root.remaining()).any(|given| given < min)
    }
}

/// The result of [`Inbound::scan`].
pub(crate) struct Scan<'a> {
    pub(crate) content_type: Option<&'a HeaderValue>,
    /// The shortest time in the headers that are believed. `None` if one of them is malformed or repeated, which is
    /// rare. Each header is then read separately.
    pub(crate) timeout: Option<Option<Duration>>,
}

#[inline]
fn length_bit(name: &HeaderName) -> u64 {
    1_u64.rotate_left(name.as_str().len() as u32)
}

fn earliest(
    limit: Option<(Duration, Budget)>,
    other: Option<Duration>,
    whose: Budget,
) -> Option<(Duration, Budget)> {
    match (limit, other) {
        (Some((budget, whose)), other) if other.is_none_or(|other| budget <= other) => {
            Some((budget, whose))
        }
        (limit, other) => other.map(|other| (other, whose)).or(limit),
    }
}

/// # Between services
impl Context {
    /// Derives the context of a request from its headers, for servers without a
    /// [`ServerLayer`](crate::wire::ServerLayer). The headers are an `http::HeaderMap` or another [`Carrier`].
    ///
    /// Call this on the context of the service; the request ends with it. The deadline comes from the headers that
    /// `inbound` trusts, and is not later than that of this context. If it passes, the cause is a [`Budget`]. The
    /// context has the values that `inbound` extracts. Dropping the scope ends it, so keep the scope until the response
    /// has been sent.
    ///
    /// # Errors
    ///
    /// Returns an error if `inbound` is [`strict`](Inbound::strict) and a deadline header is invalid.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::HeaderMap;
    /// use tokio_ctx::{Context, wire::Inbound};
    ///
    /// let service = Context::background().with_cancel();
    /// let mut headers = HeaderMap::new();
    /// headers.insert("grpc-timeout", "300m".parse().unwrap());
    ///
    /// let ctx = service.extract(&headers, &Inbound::new())?;
    /// assert!(ctx.remaining().unwrap() <= Duration::from_millis(300));
    /// # Ok::<(), tokio_ctx::wire::BadHeader>(())
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    #[track_caller]
    pub fn extract<C: Carrier + ?Sized>(
        &self,
        carrier: &C,
        inbound: &Inbound,
    ) -> Result<CancelScope, BadHeader> {
        let scanned = carrier.as_headers().and_then(|headers| inbound.scan(headers).timeout);
        let scope =
            inbound.derive(self, &ByRef(carrier), scanned, Location::caller(), |_| Duration::ZERO)?;
        #[cfg(feature = "watch")]
        if let Some(token) = scope.token() {
            token.clone().registered_as_root();
        }
        Ok(scope)
    }
}
