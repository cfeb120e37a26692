//! Fuzzes `kudos::internals::fuzzing::safetensors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::safetensors(bytes);
});
