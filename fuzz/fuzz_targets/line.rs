//! Any bytes as `kudos::fuzzing::line` takes them, and the line that they choose from all keys and values.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::line(bytes);
    kudos::fuzzing::request(bytes);
});
