#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nullhop::fuzzing::h2_bytes(bytes));
