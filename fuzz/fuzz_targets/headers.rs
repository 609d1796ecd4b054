//! Passes headers to a server; see `fuzz/README.md`.

#![no_main]

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_ctx::Context;
use tokio_ctx::wire::{DeadlineAt, DeadlineHeader, Inbound, Outbound, Travel};

const MOST: Duration = Duration::from_secs(30);

const NAMES: [&str; 8] = [
    "grpc-timeout",
    "connect-timeout-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-budget-ms",
    "x-name",
    "baggage",
    "x-deadline-unix-ms",
    "x-envoy-upstream-rq-timeout-ms",
];

struct Name(String);

impl Travel for Name {
    const NAME: &'static str = "x-name";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        (!text.contains('!')).then(|| Name(text.into()))
    }
}

fn headers(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else { continue };
        let name = HeaderName::from_static(NAMES[usize::from(*name) % NAMES.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Returns the same as a map of strings, if that can represent it.
fn map(headers: &HeaderMap) -> Option<HashMap<String, String>> {
    let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
    let map: Option<HashMap<_, _>> =
        headers.iter().map(|(name, value)| Some((name.as_str().to_uppercase(), text(value)?))).collect();
    map.filter(|map| map.len() == headers.len())
}

libfuzzer_sys::fuzz_target!(|lines: &[u8]| {
    let sent = headers(lines);
    let all = [
        DeadlineHeader::Grpc,
        DeadlineHeader::Connect,
        DeadlineHeader::Envoy,
        DeadlineHeader::Millis(HeaderName::from_static("x-budget-ms")),
    ];
    let inbound =
        Inbound::new().believe(all.clone()).max_budget(MOST).carry::<Name>().carry_in_baggage::<Name>();
    let budget = inbound.budget(&sent).unwrap().unwrap();
    assert!(budget <= MOST);
    if let Ok(strict) = inbound.clone().strict().budget(&sent) {
        assert_eq!(strict, Some(budget));
    }
    let ctx = Context::background().extract(&sent, &inbound).unwrap();
    assert!(ctx.remaining().unwrap() <= budget);

    let map = map(&sent);
    if let Some(map) = &map {
        assert_eq!(inbound.budget(map).unwrap(), Some(budget));
        let there = Context::background().extract(map, &inbound).unwrap();
        assert_eq!(there.value::<Name>().map(|name| &name.0), ctx.value::<Name>().map(|name| &name.0));
    }
    let date = DeadlineAt::new(MOST).skew(Duration::from_secs(1));
    let dated = Inbound::new().believe_date(date.clone()).believe([DeadlineHeader::EnvoyUpstream]);
    assert!(dated.budget(&sent).unwrap().is_none_or(|left| left <= Duration::from_secs(9_999_999_999)));
    assert!(Inbound::new().believe_date(date).budget(&sent).unwrap().is_none_or(|left| left <= MOST));

    let edge = Outbound::new().write(all.clone()).carry::<Name>().carry_in_baggage::<Name>().sanitize();
    let mut clean = sent.clone();
    Context::background().inject_with(&mut clean, &edge).unwrap();
    assert!(clean.is_empty());

    let mut onward = sent.clone();
    let outbound = Outbound::new().write(all).carry::<Name>().carry_in_baggage::<Name>();
    if ctx.inject_with(&mut onward, &outbound).is_ok() {
        assert!(inbound.strict().budget(&onward).unwrap().unwrap() <= budget);
    }
    if let Some(name) = ctx.value::<Name>() {
        // A value that is sent arrives unchanged.
        let mut alone = HeaderMap::new();
        let sent = ctx.inject_with(&mut alone, &Outbound::new().write([]).carry::<Name>().strict());
        let there = Context::background().extract(&alone, &Inbound::new().carry::<Name>()).unwrap();
        assert_eq!(there.value::<Name>().map(|name| &name.0), sent.ok().map(|()| &name.0));
        let outbound = Outbound::new().carry_in_baggage::<Name>();
        let inbound = Inbound::new().carry_in_baggage::<Name>();
        let mut alone = HeaderMap::new();
        ctx.inject_with(&mut alone, &outbound.write([])).ok();
        let there = Context::background().extract(&alone, &inbound).unwrap();
        if let Some(arrived) = there.value::<Name>() {
            assert_eq!(arrived.0, name.0);
        }
    }
});
