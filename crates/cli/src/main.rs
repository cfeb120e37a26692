//! The `kudos` command.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[used]
// SAFETY: the loader calls what stands in this section once, before `main` and on the only thread, by the C ABI. The
// function ignores what it is called with, and uses nothing that Rust's runtime would have to set up first.
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = kudos_cli::files::note_closed_streams;

fn main() -> ExitCode {
    kudos_cli::main()
}
