//! Fuzzes `kudos::internals::fuzzing::index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::index(bytes);
});
