//! The table, and the same as JSON.

use serde_json::{Value, json};

use crate::measure::{Ratio, median};
use crate::row::{Row, Side};

const HEAD: [&str; 9] = [
    "work",
    "ours, ns",
    "allocations, bytes",
    "peer",
    "ns",
    "allocations, bytes",
    "ratio",
    "target",
    "",
];

pub fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let mut lines = vec![HEAD.map(String::from).to_vec()];
    for row in rows {
        let (ours, peers) = row.sides.split_first().expect("our side");
        if peers.is_empty() {
            lines.push(line(row, ours, None));
        }
        lines.extend(peers.iter().map(|peer| line(row, ours, Some(peer))));
    }
    // The cells of the row itself are printed once.
    for at in (2..lines.len()).rev() {
        if lines[at][0] == lines[at - 1][0] {
            lines[at][..3].fill(String::new());
        }
    }
    lines
}

fn line(row: &Row, ours: &Side, peer: Option<&Side>) -> Vec<String> {
    let own = median(&ours.samples);
    let mut line = vec![row.work.clone(), nanos(own), taken(ours)];
    let (mut target, within) = limits(row, ours, own);
    let mut met = Some(within);
    match peer {
        None => line.extend(["", "", "", ""].map(String::from)),
        Some(peer) => {
            let ratio = Ratio::of(&ours.samples, &peer.samples);
            line.extend([peer.name.into(), nanos(median(&peer.samples)), taken(peer)]);
            line.push(format!("{:.2}", ratio.median));
            if let Some(wanted) = row.targets.iter().find(|target| target.against == peer.name) {
                target.insert(0, format!("{:?}", wanted.ratio));
                met = if within { ratio.reaches(wanted.ratio) } else { Some(false) };
            }
        }
    }
    let verdict = match (target.is_empty(), met) {
        (true, _) => "",
        (_, Some(true)) => "met",
        (_, Some(false)) => "MISSED",
        (_, None) => "unclear",
    };
    line.extend([target.join("; "), verdict.into()]);
    line
}

/// Returns the targets that do not depend on a peer, and whether they are met.
fn limits(row: &Row, ours: &Side, ns: f64) -> (Vec<String>, bool) {
    let (mut target, mut met) = (Vec::new(), true);
    if let Some(most) = row.most_ns {
        target.push(format!("≤ {most} ns"));
        met &= ns <= most;
    }
    if let (Some(most), Some((allocations, _))) = (row.most_allocations, ours.taken) {
        target.push(format!("≤ {most} alloc."));
        met &= allocations <= most + 0.01;
    }
    (target, met)
}

pub fn nanos(ns: f64) -> String {
    match ns {
        ns if ns < 10.0 => format!("{ns:.2}"),
        ns if ns < 100.0 => format!("{ns:.1}"),
        ns => thousands(ns.round() as u64),
    }
}

pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| String::from_utf8_lossy(group)).collect::<Vec<_>>().join(",")
}

fn taken(side: &Side) -> String {
    match side.taken {
        None => String::new(),
        Some((allocations, bytes)) => {
            format!("{}, {}", rounded(allocations), thousands(bytes.round() as u64))
        }
    }
}

fn rounded(number: f64) -> String {
    let number = (number * 10.0).round() / 10.0;
    if number >= 1e3 { thousands(number as u64) } else { number.to_string() }
}

/// Prints a Markdown table with aligned columns.
pub fn print(lines: &[Vec<String>]) {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..lines[0].len()).filter_map(width).collect();
    for (at, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if at == 0 {
            let dashes: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("| {} |", dashes.join(" | "));
        }
    }
}

pub fn json(rows: &[Row]) -> Vec<Value> {
    rows.iter().map(row_json).collect()
}

fn row_json(row: &Row) -> Value {
    let ours = &row.sides[0].samples;
    let sides = row.sides.iter().map(|side| {
        json!({
            "name": side.name,
            "ns": median(&side.samples),
            "ratio": Ratio::of(ours, &side.samples).median,
            "allocations": side.taken.map(|taken| taken.0),
            "bytes": side.taken.map(|taken| taken.1),
        })
    });
    let targets = row.targets.iter();
    json!({
        "id": row.id,
        "work": row.work,
        "sides": sides.collect::<Vec<_>>(),
        "targets": targets.map(|target| (target.against.to_string(), target.ratio.into()))
            .collect::<serde_json::Map<_, _>>(),
        "at_most_ns": row.most_ns,
        "at_most_allocations": row.most_allocations,
    })
}
