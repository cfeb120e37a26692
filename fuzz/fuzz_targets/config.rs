//! Any bytes as `kudos::fuzzing::config` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::config(bytes);
});
