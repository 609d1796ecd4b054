//! Feeds a server with headers, see `fuzz/README.md`.

#![no_main]

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_ctx::Context;
use tokio_ctx::wire::{DeadlineHeader, Inbound, Outbound, Travel};

const MOST: Duration = Duration::from_secs(30);

const NAMES: [&str; 6] = [
    "grpc-timeout",
    "connect-timeout-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-budget-ms",
    "x-name",
    "baggage",
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

    let mut onward = sent.clone();
    let outbound = Outbound::new().write(all).carry::<Name>().carry_in_baggage::<Name>();
    if ctx.inject_with(&mut onward, &outbound).is_ok() {
        assert!(inbound.strict().budget(&onward).unwrap().unwrap() <= budget);
    }
    if let Some(name) = ctx.value::<Name>() {
        // What fits into an empty baggage arrives as it was.
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
