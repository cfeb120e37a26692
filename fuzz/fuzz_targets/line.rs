//! Any bytes as `kudos::fuzzing::line` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::line(bytes);
});
