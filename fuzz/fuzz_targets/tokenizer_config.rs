//! Fuzzes `kudos::internals::fuzzing::tokenizer_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kudos::internals::fuzzing::tokenizer_config(bytes);
});
