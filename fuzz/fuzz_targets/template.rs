//! Fuzzes `kudos::internals::fuzzing::template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::template(bytes);
});
