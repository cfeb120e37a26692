//! Any bytes as `kudos::internals::fuzzing::safetensors` takes them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::safetensors(bytes);
});
