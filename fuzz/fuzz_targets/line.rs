//! Any bytes as `kudos_cli::fuzzing::line` takes them, and the line that they choose from all keys
//! and values.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos_cli::fuzzing::line(bytes);
    kudos_cli::fuzzing::request(bytes);
});
