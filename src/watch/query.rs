//! The query string of a request, parsed and limited.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::snapshot::Id;

/// The form of a response.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Form {
    Json(Query),
    /// The text, or the tree under an entry.
    Text(Option<Id>),
}

/// The requested part of a snapshot, as JSON.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Query {
    /// The maximum number of entries.
    pub(super) entries: usize,
    /// Limits the entries to those under this one.
    pub(super) under: Option<Id>,
    /// The maximum number of lines in each list.
    pub(super) lines: usize,
    /// Limits the lines to those that contain this text, in lower case.
    pub(super) text: Option<String>,
    /// Lists of entries to include.
    pub(super) open: Vec<Open>,
}

/// A list of entries, and the number of entries to include.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Open {
    pub(super) most: usize,
    pub(super) list: List,
    /// The list, as in the query string.
    pub(super) key: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum List {
    /// The entries without a parent.
    Top,
    /// The entries that contain the text.
    Found,
    /// The children of an entry.
    Below(Id),
    /// The entries of a line.
    Line { state: LineState, kind: String, line: String },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum LineState {
    Ended,
    Held,
    Alive,
}

/// The error in a query string.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadQuery(String);

impl fmt::Display for BadQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const MOST_ENTRIES: usize = 10_000;
const MOST_LINES: usize = 1_000;
const LONGEST_TEXT: usize = 200;
const MOST_OPEN: usize = 64;
const MOST_LISTED: usize = 500;

impl Form {
    /// Parses the query of `/json`.
    pub(super) fn json(query: &str) -> Result<Form, BadQuery> {
        let mut all = Query { entries: 1_000, under: None, lines: 200, text: None, open: Vec::new() };
        for pair in pairs(query, &["entries", "under", "lines", "q", "open"]) {
            let (name, value) = pair?;
            match name {
                "entries" => all.entries = number(name, &value, MOST_ENTRIES as u64)? as usize,
                "lines" => all.lines = number(name, &value, MOST_LINES as u64)? as usize,
                "under" => all.under = Some(number(name, &value, u64::MAX)?),
                "q" => all.text = text(&value)?,
                _ => all.open.push(Open::new(value)?),
            }
        }
        if all.open.len() > MOST_OPEN {
            return Err(BadQuery(format!(
                "open: repeated {} times, at most {MOST_OPEN} are allowed",
                all.open.len()
            )));
        }
        Ok(Form::Json(all))
    }

    /// Parses the query of `/text`.
    pub(super) fn text(query: &str) -> Result<Form, BadQuery> {
        let mut under = None;
        for pair in pairs(query, &["under"]) {
            let (name, value) = pair?;
            under = Some(number(name, &value, u64::MAX)?);
        }
        Ok(Form::Text(under))
    }
}

/// Checks the query of a path that accepts none.
pub(super) fn none(query: &str) -> Result<(), BadQuery> {
    pairs(query, &[]).next().map_or(Ok(()), |pair| pair.map(drop))
}

impl Open {
    /// Parses `20:top`, `20:found`, `20:below/17`, or `20:ended/task/src/main.rs:12`.
    fn new(value: String) -> Result<Open, BadQuery> {
        let bad = || {
            let known = "top, found, below/ID, ended/KIND/LINE, held/KIND/LINE or alive/KIND/LINE";
            BadQuery(format!("open={}: expected a number, a colon, and one of {known}", brief(&value)))
        };
        let (most, key) = value.split_once(':').ok_or_else(bad)?;
        let most = number("open", most, MOST_LISTED as u64)? as usize;
        let list = match key.split_once('/') {
            None if key == "top" => List::Top,
            None if key == "found" => List::Found,
            Some(("below", id)) => List::Below(number("open", id, u64::MAX)?),
            Some((state, rest)) => {
                let state = match state {
                    "ended" => LineState::Ended,
                    "held" => LineState::Held,
                    "alive" => LineState::Alive,
                    _ => return Err(bad()),
                };
                let (kind, line) = rest.split_once('/').ok_or_else(bad)?;
                List::Line { state, kind: kind.to_owned(), line: line.to_owned() }
            }
            None => return Err(bad()),
        };
        Ok(Open { most, list, key: key.to_owned() })
    }
}

/// Returns the decoded pairs of a query string. Unknown and repeated names are errors.
fn pairs<'a>(
    query: &'a str,
    known: &'a [&'static str],
) -> impl Iterator<Item = Result<(&'static str, String), BadQuery>> + 'a {
    let mut seen: Vec<&str> = Vec::new();
    query.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name)?;
        let Some(found) = known.iter().find(|known| **known == name) else {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(BadQuery(format!("{}: unknown parameter; expected {known}", brief(&name))));
        };
        if *found != "open" && seen.contains(found) {
            return Err(BadQuery(format!("{found}: repeated")));
        }
        seen.push(found);
        Ok((*found, decoded(value)?))
    })
}

fn decoded(text: &str) -> Result<String, BadQuery> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(Into::into).map_err(|_| BadQuery(format!("{}: not UTF-8", brief(text))))
}

fn number(name: &str, value: &str, most: u64) -> Result<u64, BadQuery> {
    let number = value.parse().ok().filter(|number| *number <= most);
    let up_to = if most == u64::MAX { String::new() } else { format!(" of at most {most}") };
    number.ok_or_else(|| BadQuery(format!("{name}={}: not a number{up_to}", brief(value))))
}

fn text(value: &str) -> Result<Option<String>, BadQuery> {
    if value.chars().count() > LONGEST_TEXT {
        return Err(BadQuery(format!("q: longer than {LONGEST_TEXT} characters")));
    }
    let text = value.trim().to_lowercase();
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Quotes the beginning of a text that may be long.
fn brief(text: &str) -> String {
    const LONGEST: usize = 60;
    let brief: String = text.chars().take(LONGEST).collect();
    if brief.len() < text.len() { format!("{brief:?}…") } else { format!("{brief:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(query: &str) -> Vec<(usize, List)> {
        match Form::json(query).unwrap() {
            Form::Json(query) => query.open.into_iter().map(|open| (open.most, open.list)).collect(),
            Form::Text(_) => unreachable!(),
        }
    }

    fn wrong(query: &str) -> String {
        Form::json(query).unwrap_err().to_string()
    }

    #[test]
    fn queries_are_parsed() {
        let Ok(Form::Json(query)) = Form::json("entries=5&under=7&lines=3&q=GET+%2Forders%26x") else {
            panic!()
        };
        assert_eq!((query.entries, query.under, query.lines), (5, Some(7), 3));
        assert_eq!(query.text.as_deref(), Some("get /orders&x"));
        assert_eq!(open("open=20:top&open=3:found"), [(20, List::Top), (3, List::Found)]);
        assert_eq!(open("open=1:below/17"), [(1, List::Below(17))]);
        let line =
            |state, kind: &str, line: &str| List::Line { state, kind: kind.into(), line: line.into() };
        assert_eq!(
            open(
                "open=9:ended%2Ftask%2Fsrc%2Fmain.rs%3A12&open=9:held/root/C:\\a.rs:1&open=9:alive/task/b/c:1"
            ),
            [
                (9, line(LineState::Ended, "task", "src/main.rs:12")),
                (9, line(LineState::Held, "root", "C:\\a.rs:1")),
                (9, line(LineState::Alive, "task", "b/c:1")),
            ]
        );
        assert_eq!(Form::json(""), Form::json("&&q=++&lines=200"));
        assert_eq!(Form::text("under=3").unwrap(), Form::Text(Some(3)));
        assert_eq!(none(""), Ok(()));
    }

    #[test]
    fn errors_name_what_is_expected() {
        assert_eq!(
            wrong("limit=1"),
            "\"limit\": unknown parameter; expected entries, under, lines, q, open"
        );
        assert_eq!(wrong("lines=1&lines=2"), "lines: repeated");
        assert_eq!(wrong("lines=-1"), "lines=\"-1\": not a number of at most 1000");
        assert_eq!(wrong("entries=10001"), "entries=\"10001\": not a number of at most 10000");
        assert_eq!(wrong("under=x"), "under=\"x\": not a number");
        assert_eq!(wrong("q=%ff"), "\"%ff\": not UTF-8");
        assert_eq!(wrong(&format!("q={}", "x".repeat(201))), "q: longer than 200 characters");
        assert_eq!(wrong(&"open=1:top&".repeat(65)), "open: repeated 65 times, at most 64 are allowed");
        for bad in ["open=1", "open=1:x", "open=1:x/y", "open=1:ended/task", "open=1:over/a/b"] {
            assert!(wrong(bad).contains("one of top, found, below/ID"), "{}", wrong(bad));
        }
        assert_eq!(wrong("open=501:top"), "open=\"501\": not a number of at most 500");
        assert_eq!(wrong("open=1:below/x"), "open=\"x\": not a number");
        assert!(wrong(&"x".repeat(10_000)).len() < 200);
        assert_eq!(none("a=b").unwrap_err().to_string(), "\"a\": unknown parameter; expected none");
        assert_eq!(
            Form::text("q=1").unwrap_err().to_string(),
            "\"q\": unknown parameter; expected under"
        );
    }
}
