//! Any bytes as `kudos::internals::fuzzing::template` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::template(bytes);
});
