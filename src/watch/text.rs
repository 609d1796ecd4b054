//! The text of a snapshot, for a terminal of 100 columns.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::snapshot::{
    AliveLine, End, EndedLine, Entry, LateClass, Lately, NearlyOverdue, ShutdownState, Snapshot, State,
    Totals,
};

const WIDTH: usize = 100;
/// The maximum number of lines in a section.
const LINES: usize = 30;

/// Prints the work whose context has ended before everything else. Empty sections are omitted, except for the first
/// one.
impl Display for Snapshot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Snapshot { totals, took, .. } = self;
        fmt_totals(totals, *took, f)?;
        part(f, "ENDED, STILL RUNNING", ENDED_COLUMNS, &self.ended, fmt_ended)?;
        if self.ended.is_empty() {
            f.write_str("\n\nENDED, STILL RUNNING\n  nothing")?;
        }
        part(f, "NEARLY OVERDUE", "", &self.nearly_overdue, fmt_nearly)?;
        part(f, "SHUTDOWNS", "", &self.shutdowns, fmt_shutdown)?;
        part(f, "ALIVE, BY LINE", ALIVE_COLUMNS, &self.alive, fmt_alive)?;
        part(f, "CONTEXTS ENDED LATELY", LATELY_COLUMNS, &self.lately, fmt_lately)?;
        let late: Vec<&LateClass> = self.late.iter().filter(|class| class.count > 0).collect();
        part(f, "WORK THAT ENDED LATE", "", &late, |class, f| fmt_late(class, f))
    }
}

const ENDED_COLUMNS: &str =
    "  count  kind        spawned at                                ended ago  state";
const ALIVE_COLUMNS: &str =
    "  count  kind        line                                    oldest  least left  waiters  name";
const LATELY_COLUMNS: &str =
    "  count  how              created at                           type of cause     mean life     max";

fn part<T>(
    f: &mut Formatter<'_>,
    heading: &str,
    columns: &str,
    items: &[T],
    row: impl Fn(&T, &mut Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, "\n\n{heading}")?;
    if !columns.is_empty() {
        write!(f, "\n{columns}")?;
    }
    for item in items.iter().take(LINES) {
        f.write_str("\n")?;
        row(item, f)?;
    }
    match items.len().saturating_sub(LINES) {
        0 => Ok(()),
        more => write!(f, "\n  … and {} more lines", thousands(more)),
    }
}

fn fmt_totals(totals: &Totals, took: Duration, f: &mut Formatter<'_>) -> fmt::Result {
    let Totals { seen, work, alive, ended, held, .. } = *totals;
    write!(
        f,
        "{} at work: {} alive, {} ended and still running",
        thousands(work),
        thousands(alive),
        thousands(ended)
    )?;
    if held > 0 {
        write!(f, "; {} held", thousands(held))?;
    }
    write!(f, " ({} seen in {})", thousands(seen), Time(took))?;
    let left_out = [
        (totals.unregistered, "not registered: the limit was reached"),
        (totals.unseen as u64, "not visited: the limit was reached"),
        (totals.unlisted as u64, "not listed"),
        (totals.overstayed, "exceeded the grace period so far"),
    ];
    for (count, what) in left_out {
        if count > 0 {
            write!(f, "\n{} {what}", thousands(usize::try_from(count).unwrap_or(usize::MAX)))?;
        }
    }
    Ok(())
}

fn fmt_ended(line: &EndedLine, f: &mut Formatter<'_>) -> fmt::Result {
    let EndedLine { count, kind, longest, .. } = line;
    let place = tail(&line.line, 40);
    let doing = doing(line);
    write!(
        f,
        "{:>7}  {kind:<10}  {place:<40}  {:>9}  {}",
        thousands(*count),
        Time(*longest),
        head(&doing, 26)
    )?;
    let why = End { ago: Duration::ZERO, ..line.end.clone() };
    let text = match &line.name {
        Some(name) => format!("{name}: {}", Why(&why)),
        None => Why(&why).to_string(),
    };
    write!(f, "\n         {}", head(&text, WIDTH - 9))
}

/// Returns the state of a piece of work.
fn doing(line: &EndedLine) -> String {
    let EndedLine { state, poll, count, inside, is_work, .. } = *line;
    let ago = Time(poll.map_or(Duration::ZERO, |poll| poll.ago));
    match state {
        State::Busy if count > 1 => format!("in a poll for {ago} ({inside})"),
        State::Busy => format!("in a poll for {ago}"),
        State::Waiting => format!("last polled {ago} ago"),
        State::NeverPolled => "never polled".to_owned(),
        State::Held if is_work => "held".to_owned(),
        State::Held => "context held".to_owned(),
    }
}

/// Prints an end on one line: `canceled at src/main.rs:88: client hung up`, or with the type of the cause if its text is
/// hidden.
struct Why<'a>(&'a End);

impl Display for Why<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let End { text, how, cause, cause_type, .. } = self.0;
        let text = text.strip_prefix("context ").unwrap_or(text);
        f.write_str(text)?;
        match (cause, cause_type) {
            (Some(cause), _) => write!(f, ": {cause}")?,
            (None, Some(name)) => write!(f, ": {}", short(name))?,
            (None, None) => {}
        }
        if text.starts_with(how.as_str()) { Ok(()) } else { write!(f, " ({how})") }
    }
}

fn fmt_nearly(nearly: &NearlyOverdue, f: &mut Formatter<'_>) -> fmt::Result {
    let place = tail(&nearly.line, 40);
    let (left, budget) = (Time(nearly.left), Time(nearly.budget));
    write!(f, "  {:<10}  {place:<40}  {left:>8} left of {budget:<8}", nearly.kind)?;
    fmt_name(nearly.name.as_deref(), 17, f)
}

fn fmt_alive(line: &AliveLine, f: &mut Formatter<'_>) -> fmt::Result {
    let AliveLine { count, kind, waiters, .. } = line;
    let place = tail(&line.line, 36);
    let [oldest, least] = [line.oldest, line.least_left].map(Known);
    let (count, waiters) = (thousands(*count), thousands(*waiters));
    write!(f, "{count:>7}  {kind:<10}  {place:<36}  {oldest:>8}  {least:>10}  {waiters:>7}")?;
    fmt_name(line.name.as_deref(), 10, f)
}

fn fmt_name(name: Option<&str>, width: usize, f: &mut Formatter<'_>) -> fmt::Result {
    match name {
        Some(name) => write!(f, "  {}", head(name, width)),
        None => Ok(()),
    }
}

fn fmt_lately(lately: &Lately, f: &mut Formatter<'_>) -> fmt::Result {
    let place = tail(&lately.line, 35);
    let count = thousands(usize::try_from(lately.count).unwrap_or(usize::MAX));
    let cause = head(&short(lately.cause_type.unwrap_or("-")), 16);
    let [mean, max] = [lately.mean_lived, lately.max_lived].map(Known);
    write!(f, "{count:>7}  {:<15}  {place:<35}  {cause:<16}  {mean:>9}  {max:>6}", lately.how)
}

fn fmt_late(class: &LateClass, f: &mut Formatter<'_>) -> fmt::Result {
    let bound = match class.up_to {
        Some(bound) => format!("up to {}", Time(bound)),
        None => "more".to_owned(),
    };
    let count = thousands(usize::try_from(class.count).unwrap_or(usize::MAX));
    write!(f, "{count:>7}  {bound:<12}")?;
    let Some(last) = class.last.first() else { return Ok(()) };
    let text = format!(
        "last: {} {}, {} late ({}), {} ago",
        last.kind,
        tail(&last.line, 30),
        Time(last.late),
        last.how,
        Time(last.ago),
    );
    write!(f, "  {}", head(&text, WIDTH - 23))
}

fn fmt_shutdown(state: &ShutdownState, f: &mut Formatter<'_>) -> fmt::Result {
    let mut text = format!("{}: {}", tail(&state.line, 40), state.phase);
    if let Some(since) = state.since {
        text += &format!(" for {}", Time(since));
    }
    if let Some(left) = state.left {
        text += &format!(", {} left", Time(left));
    }
    text += &format!("; waits for {}", thousands(state.running));
    if state.overdue > 0 {
        text += &format!(", {} overdue", thousands(state.overdue));
    }
    if let Some(why) = &state.why {
        text += &format!("; {}", Why(why));
    }
    write!(f, "  {}", head(&text, WIDTH - 2))?;
    const LINES: usize = 8;
    for waits_for in state.waits_for.iter().take(LINES) {
        let name = waits_for.name.as_deref().filter(|name| !name.trim().is_empty()).unwrap_or("work");
        let late = if waits_for.overdue > 0 { ", overdue" } else { "" };
        let text = format!("{} (spawned at {}){late}", head(name, 40), tail(&waits_for.line, 36));
        write!(f, "\n{:>9}  {}", thousands(waits_for.count), head(&text, WIDTH - 11))?;
    }
    match state.waits_for.len().saturating_sub(LINES) {
        0 => Ok(()),
        more => write!(f, "\n           … and {more} more lines"),
    }
}

/// Prints one entry of a tree on one line, for the given indentation.
pub(super) fn fmt_entry(entry: &Entry, indent: usize, f: &mut Formatter<'_>) -> fmt::Result {
    let mut text = entry.kind.to_string();
    if let Some(name) = &entry.name {
        text += &format!(" {}", head(name, 40));
    }
    text += &format!(" {}", tail(&entry.line, 40));
    if let Some(age) = entry.age {
        text += &format!(", {} old", Time(age));
    }
    match (&entry.end, entry.left) {
        (Some(end), _) => text += &format!(", {} {} ago", end.how, Time(end.ago)),
        (None, Some(left)) => text += &format!(", {} left", Time(left)),
        (None, None) => {}
    }
    if let Some(poll) = entry.poll {
        let ago = Time(poll.ago);
        text +=
            &if poll.inside { format!(", in a poll for {ago}") } else { format!(", polled {ago} ago") };
    }
    match entry.waiters {
        0 => {}
        1 => text += ", 1 waiter",
        waiters => text += &format!(", {} waiters", thousands(waiters)),
    }
    f.write_str(&head(&text, WIDTH.saturating_sub(indent)))
}

/// Returns the name of a type without the modules: `Box<dyn Error + Send>`.
fn short(name: &str) -> String {
    let mut short = String::new();
    for part in
        name.split_inclusive(|char: char| !(char.is_alphanumeric() || char == '_' || char == ':'))
    {
        short += part.rsplit_once("::").map_or(part, |(_, last)| last);
    }
    short
}

/// Truncates a text at its end.
fn head(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Truncates a path at its beginning.
fn tail(text: &dyn Display, width: usize) -> String {
    let text = text.to_string();
    let count = text.chars().count();
    if count <= width {
        return text;
    }
    ['…'].into_iter().chain(text.chars().skip(count + 1 - width)).collect()
}

/// Formats a number as `1,190`.
pub(super) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Prints a duration with about three digits: `12.4 s`.
struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs_f64();
        let text = match self.0.as_secs() {
            0 if self.0.as_micros() < 1_000 => format!("{} µs", self.0.as_micros()),
            0 if self.0.as_millis() < 10 => format!("{:.1} ms", secs * 1e3),
            0 => format!("{} ms", self.0.as_millis()),
            1..100 => format!("{secs:.1} s"),
            100..6_000 => format!("{:.0} min", secs / 60.0),
            6_000..360_000 => format!("{:.0} h", secs / 3600.0),
            _ => format!("{:.0} d", secs / 86_400.0),
        };
        f.pad(&text)
    }
}

/// Prints a duration, or `-` if it is not known.
struct Known(Option<Duration>);

impl Display for Known {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => Display::fmt(&Time(time), f),
            None => f.pad("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_brief() {
        let text = |nanos| Time(Duration::from_nanos(nanos)).to_string();
        assert_eq!(text(0), "0 µs");
        assert_eq!(text(999_999), "999 µs");
        assert_eq!(text(1_500_000), "1.5 ms");
        assert_eq!(text(350_000_000), "350 ms");
        assert_eq!(text(12_440_000_000), "12.4 s");
        assert_eq!(text(300_000_000_000), "5 min");
        assert_eq!(text(u64::MAX), "213504 d");
    }

    #[test]
    fn long_texts_are_truncated() {
        assert_eq!(head("abcdef", 4), "abc…");
        assert_eq!(tail(&"src/a/very/long/path.rs:12", 10), "…ath.rs:12");
        assert_eq!(tail(&"short", 10), "short");
        assert_eq!(short("&str"), "&str");
        assert_eq!(
            short("alloc::boxed::Box<dyn core::error::Error + core::marker::Send>"),
            "Box<dyn Error + Send>"
        );
        assert_eq!(thousands(1_190), "1,190");
        assert_eq!(thousands(12), "12");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
