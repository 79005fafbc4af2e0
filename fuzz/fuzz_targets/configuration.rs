#![no_main]
libfuzzer_sys::fuzz_target!(|text: &str| nullhop::fuzzing::configuration(text));
