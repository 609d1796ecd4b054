//! Deadlines and values in headers: written, read, and invalid ones.

mod common;

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use tokio_ctx::Context;
use tokio_ctx::wire::{Budget, DeadlineHeader, Inbound, Outbound, Travel};

use common::ms;

const MOST: Duration = Duration::from_secs(30);
const USUAL: Duration = Duration::from_secs(5);

fn own() -> DeadlineHeader {
    DeadlineHeader::Millis(HeaderName::from_static("x-budget-ms"))
}

fn all() -> [DeadlineHeader; 4] {
    [DeadlineHeader::Grpc, DeadlineHeader::Connect, DeadlineHeader::Envoy, own()]
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn read(header: &DeadlineHeader, value: &[u8]) -> Option<Duration> {
    let mut headers = HeaderMap::new();
    headers.insert(header.name(), HeaderValue::from_bytes(value).unwrap());
    header.read(&headers).ok().map(|read| read.expect("it is there"))
}

fn write(header: &DeadlineHeader, left: Duration) -> Option<String> {
    let mut headers = HeaderMap::new();
    let written = header.write(left, &mut headers);
    assert_eq!(written, !headers.is_empty());
    headers.get(header.name()).map(|value| value.to_str().unwrap().to_string())
}

// The syntaxes.

#[test]
fn a_grpc_timeout_is_read_in_all_units() {
    for (value, timeout) in [
        ("0n", Duration::ZERO),
        ("1n", Duration::from_nanos(1)),
        ("99999999n", Duration::from_nanos(99_999_999)),
        ("7u", Duration::from_micros(7)),
        ("300m", ms(300)),
        ("00000300m", ms(300)),
        ("2S", Duration::from_secs(2)),
        ("3M", Duration::from_secs(180)),
        ("4H", Duration::from_secs(14_400)),
        ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
    ] {
        assert_eq!(read(&DeadlineHeader::Grpc, value.as_bytes()), Some(timeout), "{value}");
    }
}

#[test]
fn milliseconds_are_read() {
    for header in [DeadlineHeader::Connect, DeadlineHeader::Envoy, own()] {
        for (value, timeout) in
            [("0", 0), ("250", 250), ("0000000250", 250), ("9999999999", 9_999_999_999)]
        {
            assert_eq!(read(&header, value.as_bytes()), Some(ms(timeout)), "{value}");
        }
    }
}

#[test]
fn values_that_violate_a_specification_are_refused() {
    let bad: [&[u8]; 22] = [
        b"",
        b"m",
        b"300",
        b"300 m",
        b" 300m",
        b"300m ",
        b"-1m",
        b"+1m",
        b"1.5S",
        b"1e3m",
        b"0x10m",
        b"300ms",
        b"300s",
        b"300h",
        b"100000000m",
        b"000000001m",
        b"18446744073709551616n",
        b"inf",
        b"NaN",
        b"1\xc2\xb5",
        b"\xd9\xa3\xd9\xa0m",
        b"1m,2m",
    ];
    for value in bad {
        assert_eq!(read(&DeadlineHeader::Grpc, value), None, "{value:?}");
    }
    let bad: [&[u8]; 13] = [
        b"",
        b" 1",
        b"1 ",
        b"-1",
        b"+1",
        b"1.0",
        b"1e3",
        b"0x10",
        b"300m",
        b"10000000000",
        b"99999999999999999999",
        b"1,2",
        b"\xd9\xa3",
    ];
    for header in [DeadlineHeader::Connect, DeadlineHeader::Envoy, own()] {
        for value in bad {
            assert_eq!(read(&header, value), None, "{value:?}");
        }
    }
}

#[test]
fn a_timeout_is_written_in_the_finest_unit_that_fits() {
    for (left, value) in [
        (Duration::from_nanos(1), "1n"),
        (Duration::from_nanos(99_999_999), "99999999n"),
        (Duration::from_nanos(100_000_999), "100000u"),
        (Duration::from_secs(100), "100000m"),
        (Duration::from_secs(100_000), "100000S"),
        (Duration::from_secs(100_000_059), "1666667M"),
        (Duration::from_secs(6_000_000_000), "1666666H"),
        (Duration::MAX, "99999999H"),
    ] {
        assert_eq!(write(&DeadlineHeader::Grpc, left).as_deref(), Some(value), "{left:?}");
    }
    assert_eq!(write(&DeadlineHeader::Grpc, Duration::ZERO), None);
    for header in [DeadlineHeader::Connect, DeadlineHeader::Envoy, own()] {
        assert_eq!(write(&header, Duration::from_micros(999)), None);
        assert_eq!(write(&header, Duration::from_micros(1_999)).unwrap(), "1");
        assert_eq!(write(&header, Duration::MAX).unwrap(), "9999999999");
    }
}

#[test]
fn the_error_for_a_bad_header_has_its_name_and_not_its_value() {
    for (header, right) in [
        (DeadlineHeader::Grpc, "1 to 8 digits and a unit: H, M, S, m, u or n"),
        (own(), "1 to 10 digits, in milliseconds"),
    ] {
        let name = header.name().as_str();
        let mut headers = HeaderMap::new();
        headers.insert(header.name(), HeaderValue::from_static("secret"));
        let bad = header.read(&headers).unwrap_err();
        assert_eq!(bad.to_string(), format!("bad header {name}: expected {right}"));
        headers.append(header.name(), HeaderValue::from_static("1m"));
        let bad = header.read(&headers).unwrap_err();
        assert_eq!(bad.to_string(), format!("bad header {name}: it must not occur more than once"));
    }
}

/// Failures are reported, but not persisted in a file.
fn unwritten() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn any_duration() -> impl Strategy<Value = Duration> {
    // All orders of magnitude are equally likely.
    (0_u32..64, any::<u64>(), 0_u32..1_000_000_000)
        .prop_map(|(shift, seconds, nanos)| Duration::new(seconds >> shift, nanos))
}

proptest! {
    #![proptest_config(unwritten())]

    #[test]
    fn a_written_timeout_is_read_as_at_most_slightly_less(left in any_duration()) {
        for header in all() {
            let Some(value) = write(&header, left) else {
                prop_assert!(left < ms(1));
                continue;
            };
            let read_back = read(&header, value.as_bytes()).expect("it reads what it writes");
            prop_assert!(read_back <= left);
            // Rounding removes less than a millisecond, or less than a hundred-thousandth of the time.
            let most = if header == DeadlineHeader::Grpc { Duration::from_secs(99_999_999 * 3_600) } else { ms(9_999_999_999) };
            prop_assert!(left.min(most) - read_back <= ms(1).max(left / 99_999));
        }
    }

    #[test]
    fn arbitrary_bytes_are_read_correctly_or_refused(value in "[ -~\u{80}-\u{ff}]{0,14}") {
        let grpc = value.strip_suffix(|unit| "HMSmun".contains(unit));
        let plain = |text: Option<&str>, most| text.is_some_and(|text| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        });
        prop_assert_eq!(read(&DeadlineHeader::Grpc, value.as_bytes()).is_some(), plain(grpc, 8));
        prop_assert_eq!(read(&own(), value.as_bytes()).is_some(), plain(Some(&value), 10));
    }
}

// What a server derives from them.

fn inbound() -> Inbound {
    Inbound::new().believe(all()).max_budget(MOST).default_budget(USUAL)
}

#[test]
fn the_earliest_of_several_deadlines_applies() {
    let several =
        headers(&[("grpc-timeout", "2S"), ("connect-timeout-ms", "300"), ("x-budget-ms", "900")]);
    assert_eq!(inbound().budget(&several).unwrap(), Some(ms(300)));
}

#[test]
fn the_maximum_applies_without_a_header() {
    let inbound = Inbound::new().max_budget(MOST);
    assert_eq!(inbound.budget(&HeaderMap::new()).unwrap(), Some(MOST));
    let inbound = inbound.default_budget(MOST * 2);
    assert_eq!(inbound.budget(&HeaderMap::new()).unwrap(), Some(MOST));
    assert_eq!(inbound.budget(&headers(&[("grpc-timeout", "31S")])).unwrap(), Some(MOST));
}

#[test]
fn a_bad_header_gets_the_default_unless_another_is_shorter() {
    let bad = ("grpc-timeout", "forever");
    assert_eq!(inbound().budget(&headers(&[bad])).unwrap(), Some(USUAL));
    assert_eq!(inbound().budget(&headers(&[bad, ("x-budget-ms", "20000")])).unwrap(), Some(USUAL));
    assert_eq!(inbound().budget(&headers(&[bad, ("x-budget-ms", "20")])).unwrap(), Some(ms(20)));
    assert_eq!(inbound().strict().budget(&headers(&[bad])).unwrap_err().name(), "grpc-timeout");
    let twice = [("grpc-timeout", "1S"), ("grpc-timeout", "1S")];
    assert_eq!(inbound().budget(&headers(&twice)).unwrap(), Some(USUAL));
    assert!(inbound().strict().budget(&headers(&twice)).is_err());
}

#[test]
fn headers_that_are_not_trusted_are_not_read() {
    let inbound = Inbound::new().believe([own()]).strict();
    assert_eq!(inbound.budget(&headers(&[("grpc-timeout", "forever")])).unwrap(), None);
}

#[test]
fn an_untrusting_server_reads_neither_deadlines_nor_values() {
    let edge = inbound().carry::<Name>().carry_in_baggage::<Name>().strict().untrusted();
    let sent = headers(&[("grpc-timeout", "junk"), ("x-name", "eve"), ("baggage", "x-name=eve")]);
    let ctx = Context::background().extract(&sent, &edge).unwrap();
    assert_eq!(edge.budget(&sent).unwrap(), Some(USUAL));
    assert!(ctx.value::<Name>().is_none());
    // The order of the calls does not matter.
    let edge = Inbound::new().untrusted().believe(all()).carry::<Name>();
    let ctx = Context::background().extract(&sent, &edge).unwrap();
    assert!(ctx.deadline().is_none() && ctx.value::<Name>().is_none());
}

#[test]
fn the_deadline_and_the_end_of_the_service_apply_to_requests() {
    let service = Context::background().with_timeout(ms(50));
    let ctx = service.extract(&headers(&[("grpc-timeout", "1H")]), &Inbound::new()).unwrap();
    assert_eq!(ctx.deadline(), service.deadline());
    service.cancel();
    assert!(ctx.is_done());
}

#[test]
fn an_end_reports_the_line_and_the_kind_of_budget() {
    let ended = |sent: &HeaderMap, inbound: &Inbound| {
        let ctx = Context::background().extract(sent, inbound).unwrap();
        let line = line!() - 1;
        let error = ctx.err().expect("it has ended from the start");
        assert_eq!((error.origin().made_at().file(), error.origin().made_at().line()), (file!(), line));
        *error.cause_as::<Budget>().unwrap()
    };
    let none = HeaderMap::new();
    assert_eq!(ended(&headers(&[("grpc-timeout", "0n")]), &inbound()), Budget::Caller);
    assert_eq!(ended(&none, &Inbound::new().default_budget(Duration::ZERO)), Budget::Default);
    assert_eq!(ended(&none, &Inbound::new().max_budget(Duration::ZERO)), Budget::Maximum);
}

#[test]
fn a_deadline_beyond_the_clock_is_none() {
    let forever = headers(&[("grpc-timeout", "99999999H")]);
    let ctx = Context::background().extract(&forever, &Inbound::new()).unwrap();
    assert!(!ctx.is_done());
    let ctx =
        Context::background().extract(&forever, &Inbound::new().max_budget(Duration::MAX)).unwrap();
    assert!(!ctx.is_done());
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        Just("grpc-timeout"),
        Just("connect-timeout-ms"),
        Just("x-envoy-expected-rq-timeout-ms"),
        Just("x-budget-ms"),
        Just("x-name"),
        Just("baggage"),
        Just("content-type"),
    ];
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "[0-9]{0,22}[HMSmun]?".prop_map(String::into_bytes),
        "(x-name|[a-z=]{1,4})=[ -~]{0,20}(,[ -~]{0,12}){0,200}".prop_map(String::into_bytes),
        (any::<u8>(), 0_usize..100_000).prop_map(|(byte, times)| vec![byte; times]),
    ];
    prop::collection::vec((name, value), 0..8).prop_map(|lines| {
        let lines = lines.into_iter().filter_map(|(name, value)| {
            Some((HeaderName::from_static(name), HeaderValue::from_bytes(&value).ok()?))
        });
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    })
}

proptest! {
    #![proptest_config(unwritten())]

    #[test]
    fn for_all_headers_the_maximum_applies_and_nothing_panics(sent in any_headers()) {
        let inbound = inbound().carry::<Name>().carry_in_baggage::<Name>();
        let budget = inbound.budget(&sent).unwrap();
        prop_assert!(budget.unwrap() <= MOST);
        let ctx = Context::background().extract(&sent, &inbound).unwrap();
        prop_assert!(ctx.remaining().unwrap() <= MOST);
        prop_assert!(ctx.value::<Name>().is_none_or(|name| name.0.len() <= 8192));

        // If strict, the result is the same, or an error.
        if let Ok(strict) = inbound.clone().strict().budget(&sent) {
            prop_assert_eq!(strict, budget);
        }
        // The derived context can be sent again.
        let mut onward = sent.clone();
        let outbound = Outbound::new().write(all()).carry::<Name>().carry_in_baggage::<Name>();
        if ctx.inject_with(&mut onward, &outbound).is_ok() {
            let sent = inbound.clone().strict().budget(&onward).unwrap().unwrap();
            prop_assert!(sent <= budget.unwrap());
        }
    }
}

// What a client writes.

#[tokio::test(start_paused = true)]
async fn each_service_gets_the_remaining_time_of_its_caller() {
    let edge = Context::background().with_timeout(ms(300));
    tokio::time::advance(ms(40)).await;
    let mut sent = HeaderMap::new();
    edge.inject(&mut sent).unwrap();
    assert_eq!(sent["grpc-timeout"], "260000u");

    let middle = Context::background().extract(&sent, &Inbound::new()).unwrap();
    tokio::time::advance(ms(100)).await;
    let mut sent = HeaderMap::new();
    middle.inject_with(&mut sent, &Outbound::new().write([own()]).margin(ms(10))).unwrap();
    assert_eq!(sent["x-budget-ms"], "150");
}

#[test]
fn a_context_without_remaining_time_is_not_sent() {
    let ctx = Context::background().with_value(Name("ada".into())).with_cancel();
    ctx.cancel_with("enough");
    let mut sent = headers(&[("accept", "*/*")]);
    let error = ctx.inject_with(&mut sent, &Outbound::new().carry::<Name>()).unwrap_err();
    assert_eq!(error.cause().unwrap().to_string(), "enough");
    assert_eq!(sent.len(), 1);

    let ctx = Context::background().with_timeout(ms(500));
    let outbound = Outbound::new().margin(ms(500));
    let error = ctx.inject_with(&mut sent, &outbound).unwrap_err();
    let line = line!() - 1;
    assert!(error.is_deadline_exceeded());
    assert_eq!(error.origin().made_at().line(), line);
    assert_eq!(sent.len(), 1);
    assert!(!ctx.is_done(), "only the call has too little");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_deadline_of_the_call_is_kept() {
    let ctx = Context::background().with_timeout(ms(300));
    for (there, timeout) in [("50m", "50000000n"), ("900m", "300000u"), ("junk", "300000u")] {
        let mut sent = headers(&[("grpc-timeout", there)]);
        ctx.inject(&mut sent).unwrap();
        assert_eq!(sent["grpc-timeout"], timeout, "{there}");
    }
    let mut sent = headers(&[("grpc-timeout", "900m"), ("grpc-timeout", "800m")]);
    ctx.inject(&mut sent).unwrap();
    assert_eq!(sent.get_all("grpc-timeout").iter().collect::<Vec<_>>(), ["300000u"]);
    Context::background().inject(&mut sent).unwrap();
    assert_eq!(sent["grpc-timeout"], "300000u");
}

// Values.

#[derive(Debug, PartialEq)]
struct Name(String);

impl Travel for Name {
    const NAME: &'static str = "x-name";
    fn encode(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }
    fn decode(text: &str) -> Option<Self> {
        (!text.contains("nobody")).then(|| Name(text.into()))
    }
}

struct Secret;

fn sent(name: &str, outbound: &Outbound) -> HeaderMap {
    let mut sent = HeaderMap::new();
    let ctx = Context::background().with_value(Name(name.into())).with_value(Secret);
    ctx.inject_with(&mut sent, outbound).unwrap();
    sent
}

fn received(sent: &HeaderMap, inbound: &Inbound) -> Option<String> {
    let ctx = Context::background().extract(sent, inbound).unwrap();
    ctx.value::<Name>().map(|name| name.0.clone())
}

#[test]
fn values_are_sent_only_if_both_sides_ask_for_them() {
    assert!(sent("ada", &Outbound::new()).is_empty());
    let marked = sent("ada", &Outbound::new().carry::<Name>());
    assert_eq!(marked.len(), 1);
    assert_eq!(received(&marked, &Inbound::new()), None);
    assert_eq!(received(&marked, &Inbound::new().carry::<Name>()).unwrap(), "ada");
    assert_eq!(received(&marked, &Inbound::new().carry_in_baggage::<Name>()), None);
}

proptest! {
    #![proptest_config(unwritten())]

    #[test]
    fn any_text_is_sent_in_baggage(name in "\\PC{0,300}") {
        let sent = sent(&name, &Outbound::new().carry_in_baggage::<Name>());
        prop_assert!(sent["baggage"].to_str().is_ok());
        let inbound = Inbound::new().carry_in_baggage::<Name>();
        prop_assert_eq!(received(&sent, &inbound), Name::decode(&name).map(|name| name.0));
    }

    #[test]
    fn plain_text_is_sent_in_a_header(name in "[!-~][ -~]{0,300}[!-~]") {
        let sent = sent(&name, &Outbound::new().carry::<Name>());
        prop_assert_eq!(received(&sent, &Inbound::new().carry::<Name>()).unwrap(), name);
    }
}

#[test]
fn baggage_of_others_is_kept_and_ours_is_replaced() {
    let mut there =
        headers(&[("baggage", "region=eu;p=1, x-name=eve ,a=b"), ("baggage", "x-name=mallory")]);
    let ctx = Context::background().with_value(Name("a,b".into()));
    ctx.inject_with(&mut there, &Outbound::new().carry_in_baggage::<Name>()).unwrap();
    let lines: Vec<_> = there.get_all("baggage").iter().map(|line| line.to_str().unwrap()).collect();
    assert_eq!(lines, ["region=eu;p=1,a=b,x-name=a%2Cb"], "one line: not every reader joins several");
    assert_eq!(received(&there, &Inbound::new().carry_in_baggage::<Name>()).unwrap(), "a,b");
}

/// Returns the warnings that were logged while `f` ran.
fn warnings(f: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    let log = log.0.lock().unwrap().clone();
    String::from_utf8(log).unwrap()
}

#[test]
fn an_ignored_header_is_a_warning_and_not_an_error() {
    let inbound = Inbound::new().carry::<Name>().default_budget(USUAL);
    let in_baggage = Inbound::new().carry_in_baggage::<Name>();
    let long = "x".repeat(4097);
    let longer = format!("a={}", "x".repeat(8192));
    let many = vec!["a=b"; 181].join(",");
    for (name, value, inbound, flaw) in [
        ("grpc-timeout", "hunter2", &inbound, "expected 1 to 8 digits"),
        ("x-name", "nobody", &inbound, "cannot be decoded"),
        ("x-name", "n\u{fc}ll", &inbound, "cannot be decoded"),
        ("x-name", &long, &inbound, "longer than 4096 bytes"),
        ("baggage", "x-name=nobody", &in_baggage, "cannot be decoded"),
        ("baggage", "x-name=%ff%fe", &in_baggage, "cannot be decoded"),
        ("baggage", "x-name=\u{fc}", &in_baggage, "not ASCII"),
        ("baggage", &longer, &in_baggage, "longer than 8192 bytes"),
        ("baggage", &many, &in_baggage, "more than 180 members"),
    ] {
        let sent = headers(&[(name, value)]);
        let log = warnings(|| assert_eq!(received(&sent, inbound), None));
        assert!(log.contains("WARN") && log.contains(flaw), "{name}: {log:?}");
        assert!(!log.contains(value), "{log:?}");
    }
    let twice = headers(&[("x-name", "ada"), ("x-name", "eve")]);
    let log = warnings(|| assert_eq!(received(&twice, &inbound), None));
    assert!(log.contains("more than once"), "{log:?}");
    let fine = headers(&[("x-name", "ada"), ("grpc-timeout", "1S")]);
    assert_eq!(warnings(|| assert_eq!(received(&fine, &inbound).unwrap(), "ada")), "");
}

#[test]
fn a_value_that_cannot_be_sent_is_left_out_with_a_warning() {
    let plain = Outbound::new().carry::<Name>();
    let log = warnings(|| assert!(sent("café\n", &plain).is_empty()));
    assert!(log.contains("neither visible ASCII"), "{log:?}");
    let log = warnings(|| assert!(sent(&"x".repeat(4097), &plain).is_empty()));
    assert!(log.contains("longer than 4096 bytes"), "{log:?}");
    let in_baggage = Outbound::new().carry_in_baggage::<Name>();
    let log = warnings(|| assert!(sent(&"ü".repeat(1500), &in_baggage).is_empty()));
    assert!(log.contains("over 8192 bytes"), "{log:?}");

    let full = vec!["a=b"; 180].join(",");
    let mut there = headers(&[("baggage", &full)]);
    let ctx = Context::background().with_value(Name("ada".into()));
    let log = warnings(|| ctx.inject_with(&mut there, &in_baggage).unwrap());
    assert!(log.contains("180 members"), "{log:?}");
    assert_eq!(there["baggage"], full);
}

#[test]
fn baggage_at_its_limits_is_read() {
    let inbound = Inbound::new().carry_in_baggage::<Name>();
    let many = format!("{},x-name=ada", vec!["a=b"; 179].join(","));
    assert_eq!(received(&headers(&[("baggage", &many)]), &inbound).unwrap(), "ada");
    let long = format!("x-name={}", "x".repeat(8192 - 7));
    assert_eq!(received(&headers(&[("baggage", &long)]), &inbound).unwrap().len(), 8192 - 7);
    let odd = " , ;, =, x-name = ada ; secret , x-name=eve";
    assert_eq!(received(&headers(&[("baggage", odd)]), &inbound).unwrap(), "ada");
}
