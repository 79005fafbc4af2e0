//! The meter beside its naive twin, and beside itself when the same bytes come in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nullhop::fuzzing::meter(bytes));
