//! All kinds of carriers, and what is written into them: values, dates for queues, and no headers of an untrusted
//! client.

mod common;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use tokio_ctx::wire::{
    Budget, Carrier, DeadlineAt, DeadlineHeader, Inbound, NotSent, Outbound, Travel, get_with, set_with,
};
use tokio_ctx::{BoxError, Context};

use common::ms;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, PartialEq)]
struct Tenant(String);

impl Travel for Tenant {
    const NAME: &'static str = "x-tenant";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        Some(Tenant(text.into()))
    }
}

/// A key from the examples in the specification of baggage.
#[derive(Debug, PartialEq)]
struct UserId(String);

impl Travel for UserId {
    const NAME: &'static str = "userId";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        Some(UserId(text.into()))
    }
}

fn outbound() -> Outbound {
    Outbound::new().carry::<Tenant>().carry_in_baggage::<UserId>()
}

fn inbound() -> Inbound {
    Inbound::new().carry::<Tenant>().carry_in_baggage::<UserId>()
}

fn context() -> Context {
    let ctx = Context::background().with_timeout(HOUR).detach();
    ctx.with_value(Tenant("blue".into())).with_value(UserId("Ada, Ü = 1".into()))
}

fn assert_arrives(carrier: &impl Carrier) {
    let there = Context::background().extract(carrier, &inbound()).unwrap();
    let left = there.remaining().unwrap();
    assert!(left <= HOUR && left > HOUR - ms(60_000), "{left:?}");
    assert_eq!(there.value(), Some(&Tenant("blue".into())));
    assert_eq!(there.value(), Some(&UserId("Ada, Ü = 1".into())));
}

// Carriers.

#[test]
fn a_context_is_sent_in_every_carrier() {
    let mut headers = HeaderMap::new();
    context().inject_with(&mut headers, &outbound()).unwrap();
    assert_arrives(&headers);

    let mut map = HashMap::<String, String>::new();
    context().inject_with(&mut map, &outbound()).unwrap();
    assert_arrives(&map);

    let mut map = BTreeMap::<String, String>::new();
    context().inject_with(&mut map, &outbound()).unwrap();
    assert_eq!(map.keys().collect::<Vec<_>>(), ["baggage", "grpc-timeout", "x-tenant"]);
    assert_arrives(&map);

    let mut pairs = Vec::new();
    context()
        .inject_with(
            &mut set_with(|key, value| {
                pairs.push((key.to_owned(), value.to_owned()));
                Ok(())
            }),
            &outbound(),
        )
        .unwrap();
    assert_arrives(&get_with(|key| {
        pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }));
    // The closure may return bytes as well as text.
    assert_arrives(&get_with(|key| {
        pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_bytes())
    }));
}

#[cfg(feature = "tonic")]
#[test]
fn a_context_is_sent_in_metadata() {
    use tonic::metadata::MetadataMap;

    let mut metadata = MetadataMap::new();
    metadata.insert_bin("trace-bin", tonic::metadata::MetadataValue::from_bytes(b"\0\xff"));
    context().inject_with(&mut metadata, &outbound()).unwrap();
    assert_arrives(&metadata);
    assert_eq!(metadata.get("grpc-timeout").unwrap().as_bytes().last(), Some(&b'm'));
    assert!(metadata.get_bin("trace-bin").is_some());

    // The methods of `Carrier` access the same entries, and refuse a binary key.
    assert_eq!(Carrier::get(&metadata, "x-tenant"), Some(&b"blue"[..]));
    Carrier::set(&mut metadata, "x-tenant", "red").unwrap();
    assert_eq!(Carrier::get_all(&metadata, "x-tenant"), [b"red"]);
    assert!(Carrier::set(&mut metadata, "x-tenant-bin", "red").is_err());
    assert!(Carrier::set(&mut metadata, "x tenant", "red").is_err());
    Carrier::remove(&mut metadata, "x-tenant");
    assert_eq!(Carrier::get(&metadata, "x-tenant"), None);
}

/// Libraries of other languages may write keys that are not in lower case.
#[test]
fn keys_of_maps_are_case_insensitive() {
    fn check(mut map: impl Carrier + Extend<(String, String)>) {
        map.extend([("Grpc-Timeout".to_string(), "2S".to_string())]);
        assert_eq!(Inbound::new().budget(&map).unwrap(), Some(Duration::from_secs(2)));
        // A written value replaces it, whatever its case.
        Context::background().with_timeout(ms(1000)).inject(&mut map).unwrap();
        assert_eq!(map.get_all("GRPC-TIMEOUT").len(), 1);
        assert!(Inbound::new().budget(&map).unwrap().unwrap() <= ms(1000));
        // Two keys that differ only in their case are two values.
        map.extend([("GRPC-timeout".to_string(), "1H".to_string())]);
        let bad = Inbound::new().strict().budget(&map).unwrap_err();
        assert_eq!(bad.to_string(), "bad header grpc-timeout: it must not occur more than once");
        map.remove("grpc-TIMEOUT");
        assert_eq!((map.get("grpc-timeout"), map.get_all("grpc-timeout").len()), (None, 0));
    }
    check(HashMap::<String, String>::new());
    check(BTreeMap::<String, String>::new());
    #[derive(Default)]
    struct Headers(HeaderMap);
    impl Extend<(String, String)> for Headers {
        fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, lines: I) {
            for (name, value) in lines {
                self.0
                    .append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            }
        }
    }
    impl Carrier for Headers {
        fn get(&self, key: &str) -> Option<&[u8]> {
            Carrier::get(&self.0, key)
        }
        fn get_all(&self, key: &str) -> Vec<&[u8]> {
            Carrier::get_all(&self.0, key)
        }
        fn set(&mut self, key: &str, value: &str) -> Result<(), BoxError> {
            Carrier::set(&mut self.0, key, value)
        }
        fn remove(&mut self, key: &str) {
            Carrier::remove(&mut self.0, key);
        }
    }
    check(Headers::default());
}

#[test]
fn a_carrier_may_be_a_trait_object() {
    let mut boxed: Box<dyn Carrier> = Box::new(HashMap::<String, String>::new());
    context().inject_with(&mut *boxed, &outbound()).unwrap();
    let there = Context::background().extract(&*boxed, &inbound()).unwrap();
    assert_eq!(there.value(), Some(&Tenant("blue".into())));
    let borrowed: &mut dyn Carrier = &mut *boxed;
    Context::background().with_timeout(ms(10)).inject(borrowed).unwrap();
    assert!(Inbound::new().budget(&*boxed).unwrap().unwrap() <= ms(10));
}

#[test]
fn headers_refuse_invalid_names_and_values() {
    let mut headers = HeaderMap::new();
    assert!(Carrier::set(&mut headers, "x tenant", "blue").is_err());
    assert!(Carrier::set(&mut headers, "x-tenant", "blue\r\nx-admin: 1").is_err());
    assert!(headers.is_empty());
}

/// A call must not be sent without its deadline if the carrier is full or read-only.
#[test]
fn a_carrier_that_refuses_the_deadline_refuses_the_call() {
    let ctx = Context::background().with_timeout(HOUR);
    let mut full = set_with(|_, _| Err("no room".into()));
    let line = line!() + 1;
    let refused = ctx.inject(&mut full).unwrap_err();
    assert!(refused.is_canceled());
    assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "grpc-timeout");
    assert_eq!(
        refused.to_string(),
        format!(
            "context canceled at tests/wire_carrier.rs:{line}: grpc-timeout cannot be sent: no room"
        )
    );
    assert!(!ctx.is_done(), "the call alone is refused");
    // A context without a deadline writes nothing.
    Context::background().inject(&mut full).unwrap();
    assert!(ctx.inject(&mut get_with(|_| None::<&str>)).is_err());
}

#[test]
fn a_refused_value_is_left_out_unless_strict() {
    let mut kept = Vec::new();
    let mut small = set_with(|key, value| {
        if key == "baggage" || key == "x-tenant" {
            return Err("too long".into());
        }
        kept.push((key.to_owned(), value.to_owned()));
        Ok(())
    });
    context().inject_with(&mut small, &outbound()).unwrap();
    let refused = context().inject_with(&mut small, &outbound().strict()).unwrap_err();
    assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "x-tenant");
    assert!(kept.iter().all(|(key, _)| key == "grpc-timeout"));
}

#[test]
fn a_strict_outbound_refuses_a_value_that_would_change() {
    for bad in ["café", " blue", "blue ", "a\nb", &"x".repeat(4097)] {
        let ctx = Context::background().with_timeout(HOUR).with_value(Tenant(bad.into()));
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", "1S".parse().unwrap());
        let refused = ctx.inject_with(&mut headers, &outbound().strict()).unwrap_err();
        assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "x-tenant", "{bad:?}");
        assert_eq!(headers["grpc-timeout"], "1S", "nothing was written");
        assert!(!refused.to_string().contains(bad), "the value is not repeated");
        // Otherwise it is left out, instead of being changed.
        ctx.inject_with(&mut headers, &outbound()).unwrap();
        assert!(!headers.contains_key("x-tenant"), "{bad:?}");
    }
    let ctx = Context::background().with_value(UserId("ü".repeat(1500)));
    let refused = ctx.inject_with(&mut HeaderMap::new(), &outbound().strict()).unwrap_err();
    assert_eq!(refused.cause_as::<NotSent>().unwrap().key(), "userId");
}

/// With several headers, of which one cannot express the time, none is written.
#[test]
fn headers_are_unchanged_if_one_deadline_cannot_be_expressed() {
    let ctx = Context::background().with_timeout(HOUR);
    let outbound = Outbound::new()
        .write([DeadlineHeader::Grpc, DeadlineHeader::Connect])
        .margin(HOUR - Duration::from_micros(1));
    // The time is between a nanosecond and a millisecond, or nothing remains.
    let mut headers = HeaderMap::new();
    assert!(ctx.inject_with(&mut headers, &outbound).unwrap_err().is_deadline_exceeded());
    assert!(headers.is_empty());
}

// Baggage.

#[test]
fn keys_of_baggage_are_case_sensitive() {
    let ctx = Context::background().with_value(UserId("Amélie".into()));
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "userid=other,serverNode=DF%2028".parse().unwrap());
    ctx.inject_with(&mut headers, &outbound()).unwrap();
    assert_eq!(headers["baggage"], "userid=other,serverNode=DF%2028,userId=Am%C3%A9lie");
    let there = Context::background().extract(&headers, &inbound()).unwrap();
    assert_eq!(there.value(), Some(&UserId("Amélie".into())));

    let other = HeaderMap::from_iter([("baggage".parse().unwrap(), "USERID=eve".parse().unwrap())]);
    assert!(Context::background().extract(&other, &inbound()).unwrap().value::<UserId>().is_none());
}

#[test]
fn several_lines_of_baggage_become_one() {
    let mut headers = HeaderMap::new();
    for line in ["a=1 , b=2;p=x", " ", ", ,c=3", "userId=old"] {
        headers.append("baggage", line.parse().unwrap());
    }
    headers.append("baggage", HeaderValue::from_bytes(b"d=\xff").unwrap());
    let ctx = Context::background().with_value(UserId("new".into()));
    ctx.inject_with(&mut headers, &outbound()).unwrap();
    let lines: Vec<_> = headers.get_all("baggage").iter().collect();
    assert_eq!(lines, ["a=1,b=2;p=x,c=3,userId=new"]);
}

#[test]
fn an_old_member_is_removed_even_if_the_new_one_does_not_fit() {
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "userId=old".parse().unwrap());
    let ctx = Context::background().with_value(UserId("ü".repeat(1500)));
    ctx.inject_with(&mut headers, &outbound()).unwrap();
    assert!(!headers.contains_key("baggage"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any text, with spaces at the ends, controls, separators and percent signs, in any carrier.
    #[test]
    fn any_text_arrives_unchanged_in_baggage(text in "[ \\t]{0,2}(\\PC|[\\x00-\\x1f=;,%\"\\\\]){0,100}[ \\t]{0,2}") {
        let ctx = Context::background().with_value(UserId(text.clone()));
        let mut map = HashMap::<String, String>::new();
        ctx.inject_with(&mut map, &outbound().strict()).unwrap();
        prop_assert!(map["baggage"].bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
        let there = Context::background().extract(&map, &inbound()).unwrap();
        prop_assert_eq!(&there.value::<UserId>().unwrap().0, &text);
    }

    /// In a header of its own, a text arrives unchanged, or is not sent.
    #[test]
    fn text_arrives_unchanged_in_a_header_or_not_at_all(text in "[ \\t]{0,2}[ -~\\tü]{0,40}") {
        let ctx = Context::background().with_value(Tenant(text.clone()));
        let mut headers = HeaderMap::new();
        let sent = ctx.inject_with(&mut headers, &outbound().strict());
        let there = Context::background().extract(&headers, &inbound()).unwrap();
        match there.value::<Tenant>() {
            Some(arrived) => prop_assert_eq!(&arrived.0, &text),
            None => prop_assert!(sent.is_err()),
        }
    }
}

// Headers of an untrusted client.

#[test]
fn a_sanitizing_outbound_forwards_nothing_of_an_untrusted_client() {
    let untrusted = [
        ("grpc-timeout", "1n"),
        ("connect-timeout-ms", "1"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
        ("x-envoy-upstream-rq-timeout-ms", "0"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-upstream-stream-duration-ms", "1"),
        ("x-envoy-max-retries", "100"),
        ("x-envoy-retriable-header-names", "accept"),
        ("x-envoy-retriable-status-codes", "200"),
        ("x-envoy-retry-on", "5xx"),
        ("x-deadline-unix-ms", "1"),
        ("x-budget-ms", "1"),
        ("x-tenant", "eve"),
        ("baggage", "userId=eve,other=eve"),
        ("baggage", "more=eve"),
        ("x-user", "eve"),
        ("accept", "*/*"),
    ];
    let own = DeadlineHeader::Millis(HeaderName::from_static("x-budget-ms"));
    let edge = outbound()
        .write([DeadlineHeader::Grpc, own])
        .sanitize()
        .strip([HeaderName::from_static("x-user")]);
    let pass_on = |ctx: &Context| {
        let mut headers = HeaderMap::new();
        let mut map = HashMap::<String, String>::new();
        for (name, value) in untrusted {
            headers.append(name, value.parse().unwrap());
            map.insert(name.to_uppercase(), value.into());
        }
        ctx.inject_with(&mut headers, &edge).unwrap();
        ctx.inject_with(&mut map, &edge).unwrap();
        let mut names: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        let mut keys: Vec<_> = map.keys().map(|key| key.to_lowercase()).collect();
        keys.sort();
        assert_eq!(names, keys);
        (headers, names)
    };
    // A context without a deadline and values writes nothing.
    assert_eq!(pass_on(&Context::background()).1, ["accept"]);

    // Only the deadline of this context is written, even if the client's was shorter.
    let ctx = Context::background()
        .with_timeout(HOUR)
        .with_value(Tenant("blue".into()))
        .with_value(UserId("ada".into()));
    let (headers, names) = pass_on(&ctx);
    assert_eq!(names, ["accept", "baggage", "grpc-timeout", "x-budget-ms", "x-tenant"]);
    assert_eq!(headers["baggage"], "userId=ada");
    assert_eq!(headers["x-tenant"], "blue");
    assert!(Inbound::new().budget(&headers).unwrap().unwrap() > HOUR - ms(60_000));

    // An ended context writes nothing, and leaves the headers unchanged.
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", "eve".parse().unwrap());
    let ended = Context::background().with_timeout(Duration::ZERO);
    assert!(ended.inject_with(&mut headers, &edge).is_err());
    assert_eq!(headers["x-tenant"], "eve");
}

#[test]
fn the_header_for_envoy_is_the_one_that_it_obeys() {
    let ctx = Context::background().with_timeout(HOUR);
    let mut headers = HeaderMap::new();
    ctx.inject_with(&mut headers, &Outbound::new().write([DeadlineHeader::EnvoyUpstream])).unwrap();
    assert_eq!(headers.len(), 1);
    let sent: u64 = headers["x-envoy-upstream-rq-timeout-ms"].to_str().unwrap().parse().unwrap();
    assert!(sent <= 3_600_000 && sent > 3_500_000);
    // For Envoy, zero means no timeout. It is never written, and read as none.
    assert!(!DeadlineHeader::EnvoyUpstream.write(Duration::from_micros(999), &mut headers));
    headers.insert("x-envoy-upstream-rq-timeout-ms", "0".parse().unwrap());
    assert_eq!(DeadlineHeader::EnvoyUpstream.read(&headers).unwrap(), None);
    headers.insert("x-envoy-upstream-rq-timeout-ms", "-1".parse().unwrap());
    assert!(DeadlineHeader::EnvoyUpstream.read(&headers).is_err());
    // A server does not trust it by default, because it is meant for Envoy.
    headers.insert("x-envoy-upstream-rq-timeout-ms", "1".parse().unwrap());
    assert_eq!(Inbound::new().budget(&headers).unwrap(), None);
}

// Dates.

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn dated(date: &str) -> HashMap<String, String> {
    HashMap::from([("x-deadline-unix-ms".into(), date.into())])
}

fn at(date: Duration) -> HashMap<String, String> {
    dated(&date.as_millis().to_string())
}

#[test]
fn a_date_accounts_for_the_time_in_a_queue() {
    let outbound = Outbound::new().write_date(DeadlineAt::new(HOUR));
    let ctx = Context::background().with_timeout(ms(60_000));
    let before = now();
    let mut properties = BTreeMap::<String, String>::new();
    ctx.inject_with(&mut properties, &outbound).unwrap();
    let after = now();
    assert_eq!(properties.len(), 1, "no time that is left");
    let date = Duration::from_millis(properties["x-deadline-unix-ms"].parse().unwrap());
    assert!(date + ms(1) >= before + ms(59_000) && date <= after + ms(60_000));

    // The message is received after 20 s, or after 2 minutes.
    let inbound = Inbound::new().believe_date(DeadlineAt::new(HOUR));
    let left = inbound.budget(&at(date - ms(20_000))).unwrap().unwrap();
    assert!(left <= ms(40_000) && left > ms(30_000));
    let late = Context::background().extract(&at(date - ms(120_000)), &inbound).unwrap();
    assert_eq!(late.err().unwrap().cause_as(), Some(&Budget::Caller));
}

#[test]
fn skew_extends_a_date() {
    let inbound = |skew| Inbound::new().believe_date(DeadlineAt::new(HOUR).skew(ms(skew)));
    let passed = at(now() - ms(10_000));
    assert_eq!(inbound(0).budget(&passed).unwrap(), Some(Duration::ZERO));
    assert_eq!(inbound(5_000).budget(&passed).unwrap(), Some(Duration::ZERO));
    let left = inbound(30_000).budget(&passed).unwrap().unwrap();
    assert!(left <= ms(20_000) && left > ms(10_000), "{left:?}");
    // A maximum beyond the range of the clock is allowed.
    let forever = Inbound::new().believe_date(DeadlineAt::new(HOUR).skew(Duration::MAX));
    assert_eq!(forever.budget(&passed).unwrap(), Some(HOUR));
}

#[test]
fn a_date_gives_at_most_the_maximum() {
    let date = DeadlineAt::new(ms(500));
    let inbound = Inbound::new().believe_date(date.clone());
    for far in ["999999999999999", "99999999999999"] {
        let ctx = Context::background().extract(&dated(far), &inbound).unwrap();
        assert!(ctx.remaining().unwrap() <= ms(500));
        assert_eq!(inbound.budget(&dated(far)).unwrap(), Some(ms(500)));
    }
    let none = Inbound::new().believe_date(DeadlineAt::new(Duration::ZERO));
    let ctx = Context::background().extract(&dated("99999999999999"), &none).unwrap();
    assert_eq!(ctx.err().unwrap().cause_as(), Some(&Budget::Maximum));
    // The sender writes no later date than the maximum, and none without a deadline.
    let mut properties = HashMap::new();
    let outbound = Outbound::new().write_date(date);
    Context::background().with_timeout(HOUR).inject_with(&mut properties, &outbound).unwrap();
    let date: u64 = properties["x-deadline-unix-ms"].parse().unwrap();
    assert!(Duration::from_millis(date) <= now() + ms(500));
    let mut properties = HashMap::new();
    Context::background().inject_with(&mut properties, &outbound).unwrap();
    assert!(properties.is_empty());
}

#[test]
fn an_invalid_date_is_a_bad_header() {
    let lenient =
        Inbound::new().believe_date(DeadlineAt::new(HOUR)).default_budget(ms(5_000)).max_budget(HOUR);
    for bad in [
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.5",
        "1e12",
        "0x10",
        "2026-01-01T00:00:00Z",
        "1000000000000000",
        "99999999999999999999999",
        "١٢",
        "NaN",
    ] {
        assert_eq!(lenient.budget(&dated(bad)).unwrap(), Some(ms(5_000)), "{bad:?}");
        let refused = lenient.clone().strict().budget(&dated(bad)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "bad header x-deadline-unix-ms: expected 1 to 15 digits, in milliseconds since 1970"
        );
    }
    let mut twice = dated("1");
    twice.insert("X-Deadline-Unix-Ms".into(), "99999999999999".into());
    assert_eq!(lenient.budget(&twice).unwrap(), Some(ms(5_000)));
    assert!(lenient.clone().strict().budget(&twice).is_err());
    assert_eq!(lenient.clone().untrusted().budget(&dated("1")).unwrap(), Some(ms(5_000)));
    // A date in 1970 has passed.
    assert_eq!(lenient.budget(&dated("0")).unwrap(), Some(Duration::ZERO));
}

#[test]
fn both_sides_have_to_choose_the_date() {
    let date = DeadlineAt::new(HOUR).named(HeaderName::from_static("expires-at"));
    let mut both = HeaderMap::new();
    both.insert("grpc-timeout", "1n".parse().unwrap());
    both.insert("expires-at", (now() + ms(60_000)).as_millis().to_string().parse().unwrap());
    // A receiver that trusts dates does not trust the remaining time, and the other way round.
    let left = Inbound::new().believe_date(date.clone()).budget(&both).unwrap().unwrap();
    assert!(left > ms(50_000));
    assert_eq!(Inbound::new().budget(&both).unwrap(), Some(Duration::from_nanos(1)));
    // It may trust both; the earliest deadline applies.
    let either = Inbound::new().believe_date(date.clone()).believe([DeadlineHeader::Grpc]);
    assert_eq!(either.budget(&both).unwrap(), Some(Duration::from_nanos(1)));

    // An earlier date that is already there is kept.
    let outbound = Outbound::new().write_date(date);
    let ctx = Context::background().with_timeout(HOUR);
    let there = both["expires-at"].clone();
    ctx.inject_with(&mut both, &outbound).unwrap();
    assert_eq!(both["expires-at"], there);
    ctx.inject_with(&mut both, &outbound.clone().sanitize()).unwrap();
    assert!(both["expires-at"].to_str().unwrap() > there.to_str().unwrap());
    // Less than a millisecond cannot be expressed.
    assert!(ctx.inject_with(&mut both, &outbound.margin(HOUR - Duration::from_micros(1))).is_err());
}

// The minimum.

#[test]
fn less_than_the_minimum_ends_at_once() {
    let inbound = Inbound::new().min_budget(ms(200)).max_budget(HOUR);
    let sent = |timeout: &str| HashMap::from([("grpc-timeout".to_string(), timeout.to_string())]);
    let extract = |service: &Context, timeout: &str, inbound: &Inbound| {
        service
            .extract(&sent(timeout), inbound)
            .unwrap()
            .err()
            .map(|end| *end.cause_as::<Budget>().unwrap())
    };
    let service = Context::background();
    assert_eq!(extract(&service, "199m", &inbound), Some(Budget::Minimum));
    assert_eq!(extract(&service, "0n", &inbound), Some(Budget::Minimum));
    assert_eq!(extract(&service, "200m", &inbound), None);
    assert!(service.extract(&HashMap::new(), &inbound).unwrap().err().is_none());
    assert!(service.extract(&HashMap::new(), &Inbound::new().min_budget(HOUR)).unwrap().err().is_none());
    // The time of the service is compared as well, and so is the server's default.
    let stopping = Context::background().with_timeout(ms(100));
    assert_eq!(extract(&stopping, "10S", &inbound), Some(Budget::Minimum));
    let untrusted = inbound.clone().untrusted().default_budget(ms(100));
    assert_eq!(extract(&service, "10S", &untrusted), Some(Budget::Minimum));

    let late = service.extract(&sent("1m"), &inbound).unwrap().err().unwrap();
    assert!(late.is_deadline_exceeded());
    assert!(late.to_string().ends_with(": less than the server's minimum"), "{late}");
}

/// The capacity of a `HeaderMap` is limited, and its `insert` panics beyond it.
#[test]
fn full_headers_refuse_the_call() {
    let mut full = HeaderMap::new();
    let insert = |full: &mut HeaderMap, at: u32| {
        let name = HeaderName::from_bytes(format!("x-{at}").as_bytes()).unwrap();
        full.try_insert(name, "x".parse().unwrap()).is_ok()
    };
    (0..).find(|at| !insert(&mut full, *at));
    assert!(Carrier::set(&mut full, "one-more", "x").is_err());
    #[cfg(feature = "tonic")]
    {
        let mut metadata = tonic::metadata::MetadataMap::from_headers(full.clone());
        assert!(Carrier::set(&mut metadata, "one-more", "x").is_err());
    }
    assert!(!DeadlineHeader::Grpc.write(HOUR, &mut full));

    let ctx = Context::background().with_timeout(HOUR).with_value(UserId("ada".into()));
    let date = Outbound::new().write_date(DeadlineAt::new(HOUR));
    let value = Outbound::new().write([]).carry_in_baggage::<UserId>();
    for outbound in [Outbound::new(), date, value.clone().strict()] {
        let refused = ctx.inject_with(&mut full, &outbound).unwrap_err();
        assert!(refused.cause_as::<NotSent>().is_some(), "{refused}");
    }
    assert!(ctx.inject_with(&mut full, &value).is_ok(), "left out");
}
