//! Fuzzes `kudos::internals::fuzzing::pickle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::pickle(bytes);
});
