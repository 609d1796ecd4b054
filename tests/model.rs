//! Random scripts of operations, run on real contexts and on a simple reference model, which must agree.
//!
//! `PROPTEST_CASES` sets the number of scripts, and `PROPTEST_RNG_SEED` the seed. Both have defaults, so every
//! run is the same. A script that fails is shrunk and printed as operations and as bytes, and its seed is
//! stored in `model.proptest-regressions`. Add its bytes to `model/regressions.txt`.

#[path = "model/interpreter.rs"]
mod interpreter;
#[path = "model/reference.rs"]
mod reference;

use std::fmt;

use interpreter::{Op, Policy};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};

const CASES: u32 = 10_000;
const SEED: u64 = 7;
/// Enough for a tree of several levels whose contexts end in different ways.
const STEPS: usize = 32;

struct Script {
    policy: u8,
    ops: Vec<[u8; 4]>,
}

impl Script {
    fn bytes(&self) -> impl Iterator<Item = u8> {
        std::iter::once(self.policy).chain(self.ops.iter().flatten().copied())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", Policy(self.policy))?;
        for op in &self.ops {
            writeln!(f, "    {:?}", Op::decode(*op))?;
        }
        self.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[test]
fn contexts_agree_with_the_reference() {
    let mut config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        source_file: Some(file!()),
        test_name: Some("contexts_agree_with_the_reference"),
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    let scripts =
        (any::<u8>(), vec(any::<[u8; 4]>(), 1..STEPS)).prop_map(|(policy, ops)| Script { policy, ops });
    let outcome = TestRunner::new(config).run(&scripts, |script| {
        interpreter::run(Policy(script.policy), script.ops.iter().map(|op| Op::decode(*op)));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// Runs the scripts that have failed before.
#[test]
fn scripts_that_failed_before_pass() {
    for line in include_str!("model/regressions.txt").lines() {
        let script = line.split('#').next().unwrap_or_default().trim();
        interpreter::run_bytes(&unhex(script));
    }
}

/// Runs the scripts of the fuzzer's corpus, each of which reaches code that the others do not.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/ops");
    let Ok(scripts) = std::fs::read_dir(corpus) else {
        println!("skipped: the packaged crate has no corpus; a checkout of the repository does");
        return;
    };
    let mut ran = 0;
    for script in scripts {
        interpreter::run_bytes(&std::fs::read(script.unwrap().path()).unwrap());
        ran += 1;
    }
    assert!(ran > 100, "the corpus has {ran} scripts");
}

fn unhex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hexadecimal digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}
