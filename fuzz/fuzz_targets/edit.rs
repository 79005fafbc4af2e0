//! Any bytes as a request's body: the editor says what a naive twin says, whatever the cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nullhop::fuzzing::edit(bytes));
