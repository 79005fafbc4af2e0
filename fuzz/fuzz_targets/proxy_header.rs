#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nullhop::fuzzing::proxy_header(bytes));
