//! Any bytes as `kudos::fuzzing::template` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::template(bytes);
});
