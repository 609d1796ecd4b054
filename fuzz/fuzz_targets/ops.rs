//! Passes bytes to the interpreter of the model test; see `tests/model/interpreter.rs`.

#![no_main]

#[path = "../../tests/model/interpreter.rs"]
mod interpreter;
#[path = "../../tests/model/reference.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|script: &[u8]| interpreter::run_bytes(script));
