//! Any bytes as what arrives on h1: what is understood does not depend on the cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nullhop::fuzzing::h1_bytes(bytes));
