//! Any bytes as `kudos::fuzzing::safetensors` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::fuzzing::safetensors(bytes);
});
