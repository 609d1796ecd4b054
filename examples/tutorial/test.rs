//! The guide `tutorial` shows each program as it is, and its output as it is when the program is run.
//!
//! `cargo test` builds the examples before it runs this.
#![cfg(unix)]

use std::path::PathBuf;
use std::process::Command;

const GUIDE: &str = include_str!("../../src/guide/tutorial.md");

/// The programs wait for real timers: one that runs late on a busy machine is run again.
const ATTEMPTS: usize = 5;

#[test]
fn the_guide_shows_the_programs() {
    for (step, program) in PROGRAMS {
        assert_eq!(block(step, "rust"), program.trim_end(), "copy step {step} into the guide");
    }
}

#[test]
fn the_programs_print_what_the_guide_shows() {
    for (step, _) in PROGRAMS {
        let shown = without_times(block(step, "text"));
        let mut printed = String::new();
        let matches = (0..ATTEMPTS).any(|_| {
            printed = without_times(run(step).trim_end());
            printed == shown
        });
        assert!(matches, "step {step} prints:\n{printed}\n\nthe guide shows:\n{shown}");
    }
}

const PROGRAMS: [(usize, &str); 6] = [
    (1, include_str!("step_1.rs")),
    (2, include_str!("step_2.rs")),
    (3, include_str!("step_3.rs")),
    (4, include_str!("step_4.rs")),
    (5, include_str!("step_5.rs")),
    (6, include_str!("step_6.rs")),
];

/// Returns the first block of this language in a section of the guide.
fn block(step: usize, language: &str) -> &'static str {
    let section = GUIDE.split("\n# ").nth(step).expect("a section for each step");
    assert!(section.starts_with(&format!("{step}. ")), "section {step} is {section:.20}");
    let (_, block) = section.split_once(&format!("\n```{language}\n")).expect("a block");
    block.split_once("\n```\n").expect("an end of the block").0
}

/// Runs the program of a step, and returns what it prints.
fn run(step: usize) -> String {
    let deps = std::env::current_exe().unwrap();
    let mut program: PathBuf = deps.parent().unwrap().with_file_name("examples");
    program.push(format!("tutorial_{step}"));
    let output = Command::new(&program).output().unwrap_or_else(|failed| {
        panic!("{}: {failed}; it is built by `cargo test -p tokio-ctx-examples`", program.display())
    });
    assert!(output.status.success(), "step {step}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Replaces each measured time, a number before ` ms`, by `N`.
fn without_times(text: &str) -> String {
    let mut parts = text.split(" ms");
    let mut replaced = String::new();
    let mut part = parts.next().unwrap_or_default();
    for next in parts {
        let number = |c: char| c.is_ascii_digit() || c == '.';
        replaced += part.trim_end_matches(number);
        replaced += if part.ends_with(number) { "N ms" } else { " ms" };
        part = next;
    }
    replaced + part
}

#[test]
fn only_measured_times_are_replaced() {
    assert_eq!(without_times("in 102 ms, 8.5 ms; 200ms budget"), "in N ms, N ms; 200ms budget");
    assert_eq!(without_times("100 ms"), "N ms");
    assert_eq!(without_times("no ms"), "no ms");
}
