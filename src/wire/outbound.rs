//! What a client tells the next service.

use std::panic::Location;
use std::time::Duration;

use http::HeaderMap;

use super::timeout::DeadlineHeader;
use super::travel::{Carried, Travel};
use crate::context::Context;
use crate::error::Error;

/// What a client tells the next service: in which header the time that is left, and which values.
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
/// let told: u64 = headers["connect-timeout-ms"].to_str().unwrap().parse().unwrap();
/// assert!(told < 280);
/// # Ok::<(), tokio_ctx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbound {
    written: Vec<DeadlineHeader>,
    margin: Duration,
    carried: Carried,
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
            margin: Duration::ZERO,
            carried: Carried::default(),
        }
    }

    /// Writes these deadline headers and no others; for none of them, the call is bounded here alone.
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

    /// Keeps this much of the time back, for the answer's way home and for what is left to do then.
    ///
    /// The call itself may take all the time that is left here; a call for which nothing is left but the
    /// margin is not sent.
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

    /// Sends values of this type along, in the header of that name.
    ///
    /// See [`Travel`]. A context that has none sends none, and leaves such a header as it was.
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
        self.carried.add::<T>(false);
        self
    }

    /// Sends values of this type along, as a member of the W3C `baggage` header.
    ///
    /// See [`Travel`]. What others have put into `baggage` stays there; what would go beyond the
    /// specification's limits, 8,192 bytes and 180 members, is not sent.
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
        self.carried.add::<T>(true);
        self
    }

    /// [`Context::inject_with`], told to have been called at that line.
    pub(crate) fn inject(
        &self,
        ctx: &Context,
        headers: &mut HeaderMap,
        place: &'static Location<'static>,
    ) -> Result<(), Error> {
        ctx.check()?;
        if let Some(left) = ctx.remaining() {
            let left = left.saturating_sub(self.margin);
            for header in &self.written {
                // One that was there already, and asks for less, was set for this very call.
                let given = header.read(headers).ok().flatten().unwrap_or(left);
                if !header.write(left.min(given), headers) {
                    return Err(nothing_left(ctx, place));
                }
            }
        }
        self.carried.write(ctx, headers);
        Ok(())
    }
}

/// The error of a context that was given no time: the deadline has not passed here, but there is no use.
fn nothing_left(ctx: &Context, place: &'static Location<'static>) -> Error {
    let budget = (Duration::ZERO, "too little is left for a call".into());
    let late = ctx.child_made_at(place, Some(budget));
    late.check().expect_err("a context without time has ended at birth")
}

impl Context {
    /// Writes what is left of this context's time into the headers of a request, as `grpc-timeout`.
    ///
    /// Bound the call by the context as well, with [`run`](Self::run): that drops the request when the
    /// context ends, and over HTTP/2 the far side learns of it. [`ClientLayer`](crate::wire::ClientLayer)
    /// does both for tower services. A context without a deadline writes nothing. A `grpc-timeout` that is there and shorter stays.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it has ended: don't send. The headers are then as they were.
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
    pub fn inject(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        Outbound::new().inject(self, headers, Location::caller())
    }

    /// [`inject`](Self::inject), with headers, a margin and values of your choice.
    ///
    /// # Errors
    ///
    /// The context's [`err`](Self::err), if it has ended, or a deadline error if no more time is left than
    /// the margin, or than the header can say.
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
    pub fn inject_with(&self, headers: &mut HeaderMap, outbound: &Outbound) -> Result<(), Error> {
        outbound.inject(self, headers, Location::caller())
    }
}
