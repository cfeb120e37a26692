//! Fuzzes `kudos_cli::fuzzing::row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos_cli::fuzzing::row(bytes);
});
