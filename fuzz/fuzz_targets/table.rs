//! Fuzzes `kudos_tables::fuzzing::file`.
#![no_main]

use std::io::{Seek, Write};
use std::panic::catch_unwind;
use std::process::abort;

libfuzzer_sys::fuzz_target!(
    // Panics of decoders are errors of the file; libFuzzer would end the process at the first one.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| {
        let mut file = tempfile::tempfile().expect("a folder for temporary files");
        file.write_all(bytes).and_then(|()| file.rewind()).expect("memory for the file");
        if catch_unwind(|| kudos_tables::fuzzing::file(file)).is_err() {
            abort();
        }
    }
);
