//! Any bytes as `kudos::fuzzing::index` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::index(bytes);
});
