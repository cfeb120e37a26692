//! Fuzzes `kudos_cli::fuzzing::line` with the bytes, and with the line of known keys and values
//! that they select.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos_cli::fuzzing::line(bytes);
    kudos_cli::fuzzing::request(bytes);
});
