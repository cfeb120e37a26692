//! Any bytes as `kudos::internals::fuzzing::config` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::config(bytes);
});
