//! The cost of contexts, compared with the alternatives: `cargo bench --bench compare`.
//!
//! Every row is one piece of work, done by this crate and by its peers in turns. `-- NAME` selects the rows whose
//! name contains it (`growth`, `held`, `tracing` and `floor` select the other tables); `-- --quick` runs shorter
//! rounds and smaller sizes. The table is also written to `tmp/compare.json` in Cargo's target directory.
//! `benches/compare-go` adds Go.

mod alloc;
mod clock;
mod derive;
mod drive;
mod floor;
mod growth;
mod held;
mod measure;
mod query;
mod report;
mod row;
mod tracing;
mod tree;
mod values;
mod wait;

use std::fs;
use std::path::Path;
use std::time::Duration;

use measure::Plan;
use row::Row;
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[derive(Default)]
struct Args {
    quick: bool,
    /// Whether it was given: `cargo test` runs benches without it.
    bench: bool,
    /// Measures one row, only our side, and prints a line of JSON for `compare-go`.
    one: Option<String>,
    /// The subscriber to install for the tracing row.
    listen: Option<String>,
    /// Prints the names and targets of the rows as JSON.
    list: bool,
    names: Vec<String>,
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }
}

fn main() {
    let args = args();
    if let Some(subscriber) = &args.listen {
        tracing::listen(subscriber);
    }
    match &args.one {
        Some(id) => println!("{}", one(id)),
        None if args.list => println!("{}", list()),
        None if args.bench => all(&args),
        None => println!("this takes minutes: cargo bench --bench compare"),
    }
}

fn args() -> Args {
    let mut args = Args::default();
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        match arg.as_str() {
            "--quick" => args.quick = true,
            "--bench" => args.bench = true,
            "--list" => args.list = true,
            "--one" => args.one = given.next(),
            "--listen" => args.listen = given.next(),
            _ => args.names.push(arg),
        }
    }
    args
}

fn rows() -> Vec<Row> {
    let rows = [derive::rows(), query::rows(), wait::rows(), tree::rows(), values::rows()];
    rows.into_iter().flatten().collect()
}

fn all(args: &Args) {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let mut rows = rows();
    rows.retain(|row| args.wants(&row.id));
    let mut json = Vec::new();
    if !rows.is_empty() {
        measure::measure(&mut rows, plan);
        section("Work", &report::table(&rows));
        json = report::json(&rows);
    }
    if args.wants("held") {
        for (head, (table, rows)) in [("Held", held::held_live()), ("Sizes", held::sizes())] {
            section(head, &table);
            json.extend(rows);
        }
    }
    if args.wants("floor") {
        section("Floor", &floor::table(plan));
    }
    if args.wants("tracing") {
        section("Tracing", &tracing::table(args.quick));
    }
    if args.wants("growth") {
        growth::tables(args.quick).iter().for_each(|growth::Table(head, table)| section(head, table));
    }
    write(&Value::from(json));
}

fn section(head: &str, table: &[Vec<String>]) {
    println!("### {head}\n");
    report::print(table);
    println!();
}

fn write(json: &Value) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare.json");
    match fs::write(&path, json.to_string()) {
        Ok(()) => eprintln!("as JSON: {}", path.display()),
        Err(error) => eprintln!("cannot write {}: {error}", path.display()),
    }
}

fn list() -> Value {
    let mut rows = report::json(&rows());
    rows.extend(held::list());
    Value::from(rows)
}

fn one(id: &str) -> Value {
    if let Some(held) = held::one(id) {
        return held;
    }
    let mut rows = rows();
    rows.push(tracing::row());
    rows.retain(|row| row.id == id);
    let row = rows.first_mut().expect("a row of that name");
    row.sides.truncate(1);
    let side = &mut row.sides[0];
    side.times = measure::calibrate(&mut side.run, Duration::from_millis(2));
    for _ in 0..25 {
        let took = (side.run)(side.times);
        side.samples.push(took.as_nanos() as f64 / side.times as f64);
    }
    if row.counts {
        measure::count(side);
    }
    report::json(&rows)[0]["sides"][0].clone()
}
